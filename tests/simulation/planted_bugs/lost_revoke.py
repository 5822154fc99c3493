"""What the plan, or the group, takes from a worker is not given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

from thalweg.runtime.holding import Holding
from thalweg.runtime.membership import Membership
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import TaskKey

RULE = "ownership"

give_up = Holding.give_up


async def ignore(
    self: Holding, key: TaskKey, in_good_order: bool = True, release: Callable[[], Awaitable[None]] | None = None
) -> None:
    """As if nothing had been said."""
    if not in_good_order:
        await give_up(self, key, in_good_order, release)


def planted() -> AbstractContextManager[object]:
    patches = ExitStack()
    patches.enter_context(patch.object(Holding, "give_up", ignore))
    for owner in (Ownership, Membership):
        _spare(patches, owner)
    return patches


def _spare(patches: ExitStack, owner: type[Ownership] | type[Membership]) -> None:
    """A worker that leaves gives up all that it has."""
    leave = owner.leave

    async def leaves(self: Ownership | Membership) -> None:
        with patch.object(Holding, "give_up", give_up):
            await leave(self)  # type: ignore[arg-type]

    patches.enter_context(patch.object(owner, "leave", leaves))
