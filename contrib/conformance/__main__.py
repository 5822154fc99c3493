"""`python -m thalweg.contrib.conformance` lists all properties by profile, as Markdown; with FILE…, certificates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .page import page
from .properties import Mode, Profile
from .suite import PROPERTIES

__all__ = ["listing"]


def listing() -> Iterator[str]:
    for profile in Profile:
        found = [prop for prop in PROPERTIES.values() if prop.profile is profile]
        needs = sorted({need.value for prop in found for need in prop.needs})
        yield f"### {profile.value}"
        yield ""
        if needs:
            yield f"Needs the capability {' and '.join(f'`{need}`' for need in needs)}."
            yield ""
        for prop in found:
            only = "" if Mode.QUICK in prop.modes else f" (mode {', '.join(sorted(prop.modes))})"
            number = f" ({len(prop.cases)} cases)" if len(prop.cases) > 1 else ""
            yield f"- {prop.sentence}{number}{only}"
        yield ""


if __name__ == "__main__":
    documents = [msgspec.json.decode(Path(name).read_bytes()) for name in sys.argv[1:]]
    lines = page(*documents) if documents else listing()
    print("\n".join(lines).rstrip())
