"""What the demo shows: a progress bar, then tables with small bars; plain lines where the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from flights import Results

__all__ = ["progress", "report"]

WIDTH = 100
"""Characters in a line where there is no terminal to ask."""

EIGHTHS = " ▏▎▍▌▋▊▉█"


@contextmanager
def progress() -> Iterator[Callable[[int, int, int], None]]:
    """A function to be called with the numbers of flights that have left, that are counted, and of all."""
    console = _console()
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        leaving, counting = (bars.add_task(text, total=None) for text in ("left New York", "counted"))

        def update(left: int, counted: int, total: int) -> None:
            bars.update(leaving, completed=min(left, total), total=total)
            bars.update(counting, completed=min(counted, total), total=total)

        yield update


def _lines(console: Console) -> Callable[[int, int, int], None]:
    """One line for each tenth."""
    shown = -1

    def update(left: int, counted: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * counted // max(1, total)
        if tenth > shown:
            shown = tenth
            console.print(f"{10 * tenth:3} %  {counted:,} of {total:,} flights counted")
            console.file.flush()

    return update


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def report(results: Results) -> None:
    console = _console()
    for title, table in (_airlines(results), _routes(results), _alerts(results)):
        console.print(f"[bold]{title}[/]", highlight=False, soft_wrap=True)
        if table.row_count:
            console.print(table)
    rate = results.counted / results.seconds if results.seconds else 0
    console.print(
        f"{results.counted:,} flights counted in {results.seconds:.1f} s ({rate:,.0f} flights/s), "
        f"guarantee: {results.guarantee.replace('_', ' ')}",
        highlight=False,
    )
    if not results.counted:
        console.print("All had been counted before. To begin anew, delete what the broker keeps.")


def _airlines(results: Results) -> tuple[str, Table]:
    table = _table("airline", "flights", "departs late by", "arrives late by", "by over 15 min")
    rows = sorted(results.airlines.items(), key=lambda row: -row[1].flights)
    worst = max((_mean(d.departure_sum, d.departed) for _, d in rows), default=1)
    for name, d in rows:
        departure, arrival = _mean(d.departure_sum, d.departed), _mean(d.arrival_sum, d.arrived)
        share = _mean(d.late, d.departed)
        table.add_row(
            name,
            f"{d.flights:,}",
            f"{departure:5.1f} min {_bar(departure, worst)}",
            f"{arrival:5.1f} min",
            f"{share:4.0%} {_bar(share, 0.5)}",
        )
    return f"{len(rows)} airlines", table


def _routes(results: Results, count: int = 8) -> tuple[str, Table]:
    table = _table("route", "to", "flights", "")
    busiest = sorted(results.routes.items(), key=lambda row: (-row[1], row[0]))[:count]
    for route, flights in busiest:
        airport = route.partition("-")[2]
        table.add_row(route, results.airports.get(airport, airport), f"{flights:,}", _bar(flights, busiest[0][1]))
    return f"The {len(busiest)} busiest of {len(results.routes)} routes", table


def _alerts(results: Results, count: int = 5) -> tuple[str, Table]:
    title = f"{len(results.alerts)} alerts: two hours late three times in a row, of {len(results.aircraft):,} aircraft"
    table = _table("planned (UTC)", "late by", "route", "aircraft", "visibility")
    for alert in sorted(results.alerts, key=lambda alert: -(alert.flight.dep_delay or 0))[:count]:
        flight, plane, weather = alert.flight, alert.plane, alert.weather
        table.add_row(
            f"{flight.scheduled:%d %b %H:%M}",
            f"{flight.dep_delay} min",
            flight.route,
            f"{flight.tailnum}" + (f" ({plane.manufacturer.title()} {plane.model})" if plane else ""),
            f"{weather.visib:g} mi" if weather else "?",
        )
    return title, table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        numeric = column in ("flights", "late by", "arrives late by", "visibility")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    return table


def _mean(total: int, count: int) -> float:
    return total / count if count else 0.0


def _bar(value: float, full: float, width: int = 10) -> str:
    """`width` characters when `value` reaches `full`, in steps of an eighth of a character."""
    eighths = round(8 * width * min(1.0, max(0.0, value / full)) if full > 0 else 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
