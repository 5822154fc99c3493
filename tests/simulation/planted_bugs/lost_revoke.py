"""What a group takes from its member is not given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from thalweg.runtime.holding import Holding
from thalweg.runtime.membership import Membership
from thalweg.runtime.task import TaskKey


@contextmanager
def planted() -> Iterator[None]:
    leave = Membership.leave
    give_up = Holding.give_up

    async def ignores(
        self: Holding, key: TaskKey, in_good_order: bool = True, release: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """As if nothing had been said."""
        if not in_good_order or release is not None:
            await give_up(self, key, in_good_order, release)

    async def leaves(self: Membership) -> None:
        with patch.object(Holding, "give_up", give_up):
            await leave(self)

    with patch.object(Holding, "give_up", ignores), patch.object(Membership, "leave", leaves):
        yield
