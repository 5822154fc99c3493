"""Certificates as a page of Markdown: what was certified, what each profile came to, every failure, skip and waiver."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .properties import Profile

__all__ = ["page"]

Certificate = Mapping[str, Any]

COUNTS = ("passed", "failed", "skipped", "waived", "undeclared")
COMMON = ("python", "thalweg")


def page(*documents: Mapping[str, Any]) -> Iterator[str]:
    """The lines for documents as `--thalweg-certificate` writes them, each of a run."""
    certificates: Sequence[Certificate] = [one for document in documents for one in document["certificates"]]
    written = sorted({document["written"][:10] for document in documents})
    modes = {f"mode {one['mode']}" for one in certificates}
    seeds = ", ".join(map(str, sorted({one["seed"] for one in certificates})))
    common = {f"{name.capitalize()} {one['versions'][name]}" for one in certificates for name in COMMON}
    yield f"Written {', '.join(written)}; {', '.join(sorted(modes))}, seed {seeds}; {', '.join(sorted(common))}."
    yield ""
    yield "| target | server | client | properties | passed | failed | skipped | waived | not offered |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in certificates:
        counts = Counter(prop["outcome"] for prop in one["properties"])
        cells = [_target(one), _server(one), _client(one), counts.total(), *(counts[word] or "-" for word in COUNTS)]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    transports = [one for one in certificates if Profile.STORE.value not in one["profiles"]]
    if transports:
        yield from _profiles(transports)
    yield from _not_passed(certificates)


def _profiles(certificates: Sequence[Certificate]) -> Iterator[str]:
    yield f"| profile | {' | '.join(map(_target, certificates))} |"
    yield f"|---|{'---|' * len(certificates)}"
    for profile in Profile:
        rows = [one["profiles"].get(profile.value) for one in certificates]
        if any(rows):
            yield f"| {profile.value} | {' | '.join(_verdict(row) for row in rows)} |"
    yield ""


def _verdict(row: Mapping[str, Any] | None) -> str:
    """The number that passed where all did."""
    if row is None:
        return ""
    if row["verdict"] == "not offered":
        return "-"
    others = [f"{row[word]} {word}" for word in COUNTS[1:4] if row.get(word)]
    return ", ".join([str(row.get("passed", 0)), *others])


def _not_passed(certificates: Sequence[Certificate]) -> Iterator[str]:
    for word, title in (("failed", "Failed"), ("waived", "Waived"), ("skipped", "Skipped")):
        by_reason: dict[tuple[str, str], dict[str, list[str]]] = {}
        for one in certificates:
            for prop in one["properties"]:
                for case in prop["cases"]:
                    if case["outcome"] == word:
                        names = by_reason.setdefault((_target(one), case.get("reason", "")), {})
                        names.setdefault(prop["name"].replace("_", " "), []).append(case["case"])
        yield f"## {title}"
        yield ""
        for (target, reason), names in by_reason.items():
            yield f"- {target}: {reason}:"
            for name, cases in names.items():
                yield f"    - {name}" + (f" ({', '.join(cases)})" if any(cases) else "")
        if not by_reason:
            yield "Nothing."
        yield ""


def _target(one: Certificate) -> str:
    """Without the options by which the suite makes things small and short."""
    name = re.sub(r"(?<=[?&])(lease|message_bytes)=[^&]*&?", "", one["target"]).rstrip("?&")
    return f"`{name}`" if "(" not in name else "`{}` {}".format(*name.split(" ", 1))


def _server(one: Certificate) -> str:
    """What it says of itself, but for its address."""
    said: str = re.split(r", (?=\S+:\d|/)| in /", one.get("description", "(never opened)"))[0]
    return said.partition(" (")[0]


def _client(one: Certificate) -> str:
    return ", ".join(f"{name} {number}" for name, number in one["versions"].items() if name not in COMMON) or "-"
