"""What was measured, as a table for people and as JSON for comparisons."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import Case, Figure, Measured, scaled
from rich.console import Console
from rich.table import Table
from workload import ACCOUNTS, MESSAGE_BYTES

__all__ = ["as_json", "circumstances", "print_table"]

Results = Mapping[str, Mapping[str, Measured]]

HEADINGS = ("case", "side", "msg/s", "CPU µs/msg", "p50 µs", "p99 µs", "of base", "by CPU", "target")


def rows(case: Case, results: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """One row a side, as text under HEADINGS; spreads in brackets."""
    base = next(iter(case.sides))
    lines: list[tuple[str, ...]] = []
    for number, (side, measured) in enumerate(results.items()):
        lines.append(
            (
                "" if number else case.name,
                side,
                "" if case.latency else _spread(measured.rate, 1, ",.0f"),
                "" if case.latency else _spread(measured.cpu, 1e6, ".2f"),
                _spread(measured.p50, 1e6, ".0f"),
                _spread(measured.p99, 1e6, ".0f"),
                "" if side == base else _spread(measured.ratio(results[base], case.latency), 1, ".2f"),
                "" if side == base or case.latency else _spread(measured.cpu_ratio(results[base]), 1, ".2f"),
                _verdict(case, measured, results[base]) if number == 1 else "",
            )
        )
    return lines


def _spread(figure: Figure | None, factor: float, style: str) -> str:
    if figure is None:
        return ""
    middle, low, high = (format(value * factor, style) for value in (figure.median, figure.low, figure.high))
    return f"{middle} ({low}-{high})"


def _verdict(case: Case, measured: Measured, base: Measured) -> str:
    if case.target is None:
        return ""
    if case.latency:
        assert measured.p50 is not None
        met, wanted = measured.p50.median <= case.target, f"p50 <= {case.target * 1e6:.0f} µs"
    else:
        met, wanted = measured.cpu_ratio(base).median >= case.target, f">= {case.target} by CPU"
    return f"{wanted}: {'met' if met else 'MISSED'}"


def print_table(cases: Sequence[Case], results: Results, messages: int, rounds: int) -> None:
    """A drawn table on a terminal, columns of text elsewhere."""
    about = [f"{case.name}: {case.about} ({scaled(case, messages):,} messages)" for case in cases]
    legend = (
        f"Medians of {rounds} rounds (smallest-largest). 'of base': speed as a share of its round's base; 'by CPU': "
        "the same of CPU time, which other programs on the machine disturb less."
    )
    lines = [row for case in cases for row in rows(case, results[case.name])]
    console = Console()
    if console.is_terminal:
        table = Table(*HEADINGS)
        for line in lines:
            table.add_row(*line, style=None if line[1] == "bare" else "bold", end_section=False)
        console.print(table)
        console.print("\n".join([*about, legend]), highlight=False)
        return
    widths = [max(len(line[column]) for line in [HEADINGS, *lines]) for column in range(len(HEADINGS))]
    for line in [HEADINGS, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("\n".join(["", *about, legend]))


def as_json(cases: Sequence[Case], results: Results, messages: int, rounds: int) -> dict[str, Any]:
    """Everything, so that runs of different days and machines can be compared. Times in seconds."""
    return {
        **circumstances(),
        "settings": {"messages": messages, "rounds": rounds, "keys": ACCOUNTS, "message_bytes": MESSAGE_BYTES},
        "cases": [_case(case, results[case.name], scaled(case, messages)) for case in cases],
    }


def circumstances() -> dict[str, Any]:
    """When, where and of what was measured."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "versions": {"python": sys.version.split()[0], **_versions("thalweg", "msgspec")},
    }


def _case(case: Case, results: Mapping[str, Measured], messages: int) -> dict[str, Any]:
    base = results[next(iter(case.sides))]
    return {
        "name": case.name,
        "about": case.about,
        "messages": messages,
        "target": case.target,
        "sides": [
            {
                "name": side,
                "messages_per_second": asdict(measured.rate),
                "cpu_per_message": asdict(measured.cpu),
                "p50": measured.p50 and asdict(measured.p50),
                "p99": measured.p99 and asdict(measured.p99),
                "ratio": asdict(measured.ratio(base, case.latency)),
                "cpu_ratio": asdict(measured.cpu_ratio(base)),
                "rounds": [asdict(sample) for sample in measured.samples],
            }
            for side, measured in results.items()
        ],
    }


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def _commit() -> str | None:
    """What was measured; with "+" if files were changed since."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
