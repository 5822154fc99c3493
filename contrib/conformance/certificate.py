"""The certificate: what was run, what held, what failed, what was skipped or waived and why; as JSON and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from .properties import Profile, Property

__all__ = ["Certificate", "Outcome", "lines_of", "to_json"]

SCHEMA = "thalweg-conformance/1"


class Outcome(msgspec.Struct, omit_defaults=True):
    """Of one case of one property.

    outcome: passed; failed; skipped (the rig or transport lacks what is needed: see reason); waived (it failed, and
    that was asked to be tolerated: see reason); undeclared (the capability is not declared, and using it raised).
    """

    case: str
    outcome: str
    seconds: float
    reason: str = ""


class Certificate(msgspec.Struct):
    """Of one target. `cases` lists the outcomes of each property by its name."""

    target: str
    mode: str
    seed: int
    started: str = ""
    facts: dict[str, Any] = {}
    cases: dict[str, list[Outcome]] = {}

    def note(self, name: str, outcome: Outcome) -> None:
        self.cases.setdefault(name, []).append(outcome)

    def outcome(self, name: str) -> str:
        """Of a property: the worst of its cases."""
        outcomes = {case.outcome for case in self.cases[name]}
        return next(word for word in ("failed", "waived", "skipped", "passed", "undeclared") if word in outcomes)

    def profiles(self, properties: Mapping[str, Property]) -> dict[str, dict[str, Any]]:
        """Verdict and counts by profile; a profile of which nothing was run is left out."""
        counts: dict[str, Counter[str]] = {}
        for name in self.cases:
            counts.setdefault(properties[name].profile.value, Counter())[self.outcome(name)] += 1
        ordered = [profile.value for profile in Profile if profile.value in counts]
        return {profile: {"verdict": _verdict(counts[profile]), **counts[profile]} for profile in ordered}


def _verdict(counts: Mapping[str, int]) -> str:
    if counts.get("failed"):
        return "failed"
    if not counts.get("passed"):
        return "not offered" if set(counts) == {"undeclared"} else "not shown"
    if counts.get("waived"):
        return "held, but for waivers"
    return "held, as far as run" if counts.get("skipped") else "held"


def to_json(certificates: Sequence[Certificate], properties: Mapping[str, Property]) -> bytes:
    """The document that docs/conformance.md describes."""
    document = {
        "schema": SCHEMA,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "certificates": [
            {
                "target": certificate.target,
                **certificate.facts,
                "mode": certificate.mode,
                "seed": certificate.seed,
                "profiles": certificate.profiles(properties),
                "properties": [
                    {
                        "name": name,
                        "profile": properties[name].profile.value,
                        "needs": [need.value for need in properties[name].needs],
                        "outcome": certificate.outcome(name),
                        "cases": certificate.cases[name],
                    }
                    for name in sorted(certificate.cases, key=list(properties).index)
                ],
            }
            for certificate in certificates
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def lines_of(certificate: Certificate, properties: Mapping[str, Property]) -> Iterator[str]:
    """The same for people: a table of profiles, then all that is not plainly passed, with its reason."""
    facts = certificate.facts
    yield f"certifies     {facts.get('description', '(never opened)')}"
    yield f"versions      {', '.join(f'{name} {number}' for name, number in facts.get('versions', {}).items())}"
    yield f"capabilities  {', '.join(facts.get('capabilities', [])) or 'none'}"
    yield f"run           mode {certificate.mode}, seed {certificate.seed}"
    for warning in facts.get("warnings", []):
        yield f"warning       {warning}"
    yield ""
    columns = ("passed", "failed", "skipped", "waived", "undeclared")
    yield f"{'profile':12}{'verdict':24}" + "".join(f"{column:>11}" for column in columns)
    for name, row in certificate.profiles(properties).items():
        yield f"{name:12}{row['verdict']:24}" + "".join(f"{row.get(column) or '-':>11}" for column in columns)
    for word in ("failed", "waived", "skipped"):
        for name in sorted(certificate.cases, key=list(properties).index):
            for case in certificate.cases[name]:
                if case.outcome == word:
                    yield f"{word}: {name}{f'[{case.case}]' if case.case else ''}: {case.reason}"
