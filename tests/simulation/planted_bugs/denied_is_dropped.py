"""Outputs that the broker refuses for lack of rights are given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any
from unittest.mock import patch

from thalweg.errors import AccessDenied
from thalweg.message import Message
from thalweg.runtime.deliveries import Deliveries

RULE = "4"


def planted() -> AbstractContextManager[object]:
    init = Deliveries.__init__

    def careless(self: Deliveries, *arguments: Any) -> None:
        init(self, *arguments)
        send = self._send

        async def give_up(topic: str, messages: Mapping[int, Sequence[Message]]) -> None:
            with suppress(AccessDenied):
                await send(topic, messages)

        self._send = give_up

    return patch.object(Deliveries, "__init__", careless)
