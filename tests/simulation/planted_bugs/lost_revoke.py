"""What a group takes from its member is not given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from thalweg.runtime.membership import Membership
from thalweg.runtime.task import TaskKey


@contextmanager
def planted() -> Iterator[None]:
    async def ignore(self: Membership, key: TaskKey) -> None:
        """As if nothing had been said."""

    leave = Membership.leave
    give_up = Membership._give_up

    async def leaves(self: Membership) -> None:
        with patch.object(Membership, "_give_up", give_up):
            await leave(self)

    with patch.object(Membership, "_give_up", ignore), patch.object(Membership, "leave", leaves):
        yield
