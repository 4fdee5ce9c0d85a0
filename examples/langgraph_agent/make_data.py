"""Writes `data/`: the table from the package plotly, and questions with answers found by SQL.

Run it only to change the questions; what it writes is part of the repository. Needs plotly.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import plotly
from tools import build_database

_DATA = Path(__file__).with_name("data")
_SOURCE = Path(plotly.__file__).parent / "package_data" / "datasets" / "gapminder.csv.gz"
_NUM_PER_KIND = {"train": 7, "val": 7, "test": 8}
_YEARS = range(1952, 2008, 5)
_NAMES = {
    "life_expectancy": "life expectancy",
    "population": "population",
    "gdp_per_capita": "GDP per capita",
}
_CONTINENTS = ("Africa", "the Americas", "Asia", "Europe")


def main() -> None:
    _write_table()
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = build_database(Path(folder) / "gapminder.db")
        with closing(sqlite3.connect(path)) as connection:
            countries = [
                name
                for (name,) in connection.execute("SELECT DISTINCT country FROM gapminder")
                if name.isascii() and "," not in name and "'" not in name
            ]
            generator.shuffle(countries)
            pool = itertools.cycle(countries)
            places = list(itertools.product(_CONTINENTS, _YEARS))
            generator.shuffle(places)
            iter_places = iter(places)
            splits: dict[str, list[dict[str, object]]] = {}
            for split, count in _NUM_PER_KIND.items():
                rows = [
                    {"kind": kind, "question": question, "sql": sql, "answer": answer}
                    for number in range(count)
                    for kind, question, sql in _questions(generator, pool, iter_places, number)
                    if (answer := connection.execute(sql).fetchone()[0]) is not None
                ]
                generator.shuffle(rows)
                splits[split] = rows
    for split, rows in splits.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (_DATA / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_table() -> None:
    with gzip.open(_SOURCE, "rt", encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    with (_DATA / "gapminder.csv").open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["country", "continent", "year", *_NAMES])
        for row in rows:
            numbers = (round(float(row["lifeExp"]), 1), row["pop"])
            wealth = round(float(row["gdpPercap"]))
            writer.writerow([row["country"], row["continent"], row["year"], *numbers, wealth])


def _questions(
    generator: random.Random,
    countries: Iterator[str],
    places: Iterator[tuple[str, int]],
    number: int,
) -> Iterator[tuple[str, str, str]]:
    """Yields (kind, question, SQL of the answer), one of each kind."""
    columns = list(_NAMES)
    column, other = columns[number % 3], columns[(number + 1) % 3]
    country, first, second = next(countries), next(countries), next(countries)
    early, late = sorted(generator.sample(_YEARS, 2))
    yield (
        "look-up",
        f"What was the {_NAMES[column]} of {country} in {late}?",
        _value(column, country, late),
    )
    yield (
        "difference",
        f"By how much did the {_NAMES[other]} of {first} change from {early} to {late}?",
        f"SELECT ({_value(other, first, late)}) - ({_value(other, first, early)})",
    )
    yield (
        "ratio",
        f"What was the {_NAMES[column]} of {country} in {early} divided by that of {second}?",
        f"SELECT 1.0 * ({_value(column, country, early)}) / ({_value(column, second, early)})",
    )
    continent, when = next(places)
    yield (
        "maximum",
        f"Which country of {continent} had the highest {_NAMES[other]} in {when}?",
        f"SELECT country FROM gapminder WHERE continent = '{continent.removeprefix('the ')}'"
        f" AND year = {when} ORDER BY {other} DESC LIMIT 1",
    )
    yield (
        "product",
        f"What was the total GDP of {second} in {late}, that is GDP per capita times population?",
        f"SELECT gdp_per_capita * population FROM gapminder WHERE country = '{second}'"
        f" AND year = {late}",
    )


def _value(column: str, country: str, year: int) -> str:
    return f"SELECT {column} FROM gapminder WHERE country = '{country}' AND year = {year}"


if __name__ == "__main__":
    main()
