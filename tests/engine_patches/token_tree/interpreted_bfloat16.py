"""Triton's interpreter, made to multiply bfloat16.

numpy has no such type, so the interpreter of Triton 3.9 holds its bits as integers, and `tl.dot`
multiplies those (triton/runtime/interpreter.py, `create_dot`). GPUs are not affected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def multiply_bfloat16() -> None:
    """Makes the interpreter of this process widen bfloat16 before it multiplies."""
    multiply = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, _widened(a), _widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
