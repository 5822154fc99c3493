"""How far an input was fetched is committed as how far it was handled."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg.journal.rows import Reached, encode, reached_key
from thalweg.runtime.topic_input import TopicInput

RULE = "3"

collect = TopicInput.collect


def early(self: TopicInput, rows: dict[bytes, bytes | None]) -> bool:
    news = collect(self, rows)
    if news and self.fetched is not None:
        rows[reached_key(self.name)] = encode(Reached(self.fetched, 0))
    return news


def planted() -> AbstractContextManager[object]:
    return patch.object(TopicInput, "collect", early)
