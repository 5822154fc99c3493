"""A commit of which nobody knows whether it happened is written again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.capabilities import Claim, Commit
from thalweg.errors import AmbiguousCommit, BrokerError
from thalweg.journal.writer import FencedWriter, JournalKey, Written

RULE = "2"

call = FencedWriter._call


async def again(
    self: FencedWriter,
    commits: Mapping[JournalKey, Commit],
    claims: Mapping[JournalKey, Claim],
    results: dict[JournalKey, Written | BrokerError],
) -> None:
    await call(self, commits, claims, results)
    if any(isinstance(result, AmbiguousCommit) for result in results.values()):
        for journal in [j for j in commits if isinstance(results.get(j), AmbiguousCommit)]:
            del results[journal]
        await call(self, commits, claims, results)


def planted() -> AbstractContextManager[object]:
    return patch.object(FencedWriter, "_call", again)
