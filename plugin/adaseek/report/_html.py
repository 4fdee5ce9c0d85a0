"""HTML that cannot be injected into: every text is escaped unless it is already `Html`."""

from __future__ import annotations

import html
import json
import math
from typing import Any  # Any: JSON values

__all__ = ["Html", "details", "join", "json_block", "table", "tag"]

_VOID = frozenset({"br", "col", "hr", "meta"})


class Html(str):
    """Markup that was built by this module. Adding or formatting gives a plain `str` again,
    which is escaped when used, so a mistake shows as visible tags and never as live ones."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | None) -> Html:
    """Returns one element; plain text children and attribute values are escaped.

    A trailing underscore of an attribute's name is dropped (`class_`) and inner ones become
    hyphens (`aria_label`). An attribute that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Returns the children one after the other, plain text escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def details(summary: str, *children: str, is_open: bool = False, class_: str = "") -> Html:
    """Returns a block that the reader can unfold."""
    opened = {"open": ""} if is_open else {}
    return tag("details", tag("summary", summary), *children, class_=class_ or None, **opened)


def table(
    caption: str,
    headings: list[str],
    rows: list[list[str]],
    *,
    numeric: frozenset[int] = frozenset(),
) -> Html:
    """Returns a table with header cells for the columns and for the first cell of each row.

    `numeric` holds the columns whose cells are aligned to the right. The table scrolls inside
    its own box in a narrow window.
    """
    kind = dict.fromkeys(numeric, "number")
    head = join(*(tag("th", h, scope="col", class_=kind.get(i)) for i, h in enumerate(headings)))
    body = join(
        *(
            tag(
                "tr",
                tag("th", row[0], scope="row"),
                *(tag("td", cell, class_=kind.get(i)) for i, cell in enumerate(row[1:], 1)),
            )
            for row in rows
        )
    )
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body))
    # A box that scrolls must be reachable with the keyboard.
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def json_block(identifier: str, value: Any) -> Html:
    """Returns `value` in a data block that no text inside can end or turn into a comment."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Html(f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>')


def _finite(value: Any) -> Any:
    """Returns `value` with every NaN and infinity, which JSON has no form for, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
