"""What the plan, or the group, takes from a worker is not given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from thalweg.runtime.membership import Membership
from thalweg.runtime.ownership import Ownership
from thalweg.runtime.task import TaskKey


@contextmanager
def planted() -> Iterator[None]:
    async def ignore(self: Ownership | Membership, key: TaskKey) -> None:
        """As if nothing had been said."""

    with ExitStack() as patches:
        for owner in (Ownership, Membership):
            _plant(patches, owner, ignore)
        yield


def _plant(patches: ExitStack, owner: type[Ownership] | type[Membership], ignore: object) -> None:
    leave, give_up = owner.leave, owner._give_up

    async def leaves(self: Ownership | Membership) -> None:
        with patch.object(owner, "_give_up", give_up):
            await leave(self)  # type: ignore[arg-type]

    patches.enter_context(patch.object(owner, "_give_up", ignore))
    patches.enter_context(patch.object(owner, "leave", leaves))
