"""The agent's two tools: SQL over a SQLite file that cannot be written to, and a calculator."""

from __future__ import annotations

import ast
import csv
import math
import operator
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from langchain_core.tools import BaseTool, tool

__all__ = ["build_database", "calculate", "calculator", "database_tool", "run_query"]

_DATA = Path(__file__).with_name("data") / "gapminder.csv"
_MAX_ROWS = 10
_MAX_STEPS = 1_000_000  # of SQLite's virtual machine: a cross join ends in well under a second
_MAX_EXPONENT = 64
_MAX_DEPTH = 20
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def build_database(path: Path) -> Path:
    """Writes the table `gapminder` to a new SQLite file and returns its path."""
    with _DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE gapminder (country TEXT, continent TEXT, year INTEGER,"
            " life_expectancy REAL, population INTEGER, gdp_per_capita REAL)"
        )
        connection.executemany(
            "INSERT INTO gapminder VALUES (:country, :continent, :year, :life_expectancy,"
            " :population, :gdp_per_capita)",
            rows,
        )
    return path


def run_query(database: Path, sql: str) -> str:
    """Returns the first rows that one SELECT gives, or what is wrong with it, as text."""

    def allow(action: int, *_: object) -> int:
        return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY

    num_calls = 0

    def count() -> bool:
        nonlocal num_calls
        num_calls += 1
        return num_calls * 1000 > _MAX_STEPS

    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        connection.set_authorizer(allow)
        connection.set_progress_handler(count, 1000)
        try:
            rows = connection.execute(sql).fetchmany(_MAX_ROWS + 1)
        except sqlite3.Error as error:
            return f"Error: {error}"
    lines = [", ".join(map(str, row)) for row in rows[:_MAX_ROWS]]
    more = ["..."] if len(rows) > _MAX_ROWS else []
    return "\n".join([*lines, *more]) or "No rows."


def database_tool(database: Path) -> BaseTool:
    """Returns the tool that queries `database`."""

    @tool
    def query_database(sql: str) -> str:
        """Run one SQLite SELECT statement and return its rows."""
        return run_query(database, sql)

    return query_database


def calculate(expression: str) -> str:
    """Returns the value of an arithmetic expression, or what is wrong with it, as text."""
    try:
        return f"{_value(ast.parse(expression.strip(), mode='eval').body):.12g}"
    except (SyntaxError, MemoryError):
        return "Error: this is no arithmetic on numbers"
    except (ValueError, ArithmeticError, RecursionError) as error:
        return f"Error: {error}"


@tool
def calculator(expression: str) -> str:
    """Evaluate arithmetic on numbers with + - * / ** and parentheses."""
    return calculate(expression)


def _value(node: ast.expr, depth: int = 0) -> float:
    if depth > _MAX_DEPTH:
        raise ValueError("the expression is nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        if isinstance(node.op, ast.Pow) and abs(right) > _MAX_EXPONENT:
            raise ValueError(f"the exponent must be at most {_MAX_EXPONENT}")
        result = _OPERATORS[type(node.op)](left, right)
        if isinstance(result, complex) or not math.isfinite(result):
            raise ValueError("the result is no finite number")
        return result
    raise ValueError(f"only numbers and + - * / ** are allowed, not {ast.unparse(node)!r}")
