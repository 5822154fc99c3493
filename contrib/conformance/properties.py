"""What a property is: a function that drives a transport or a store, and what the certificate says about it."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import msgspec
from thalweg.channel import Capability

__all__ = ["Mode", "Profile", "Property", "Unavailable", "cases", "prop", "properties_of"]


class Profile(enum.StrEnum):
    """What a set of properties is worth to a program. The first five are levels; the others follow a capability."""

    CORE = "Core"
    DURABLE = "Durable"
    ORDERED = "Ordered"
    FENCED = "Fenced"
    REPLAY = "Replay"
    LOCKS = "Locks"
    PEERS = "Peers"
    GROUPED = "Grouped"
    WORK_QUEUE = "WorkQueue"
    PRIORITY = "Priority"
    DELAY = "Delay"
    EXPIRY = "Expiry"
    STORE = "Store"


class Mode(enum.StrEnum):
    """How much is done. Quick and full run the same properties at different sizes, stress and chaos their own."""

    QUICK = "quick"
    FULL = "full"
    STRESS = "stress"
    CHAOS = "chaos"


class Unavailable(Exception):
    """The rig cannot do what a property needs; the property is skipped, and the certificate gives this reason."""


class Property(msgspec.Struct, frozen=True):
    """needs: without one of these capabilities, the property gives way to a test that the power raises.

    cases: the arguments of each case by its name; {"": ()} if there is but one.
    """

    name: str
    profile: Profile
    needs: Sequence[Capability]
    modes: frozenset[Mode]
    cases: Mapping[str, tuple[Any, ...]]
    run: Callable[..., Any]
    area: str

    @property
    def sentence(self) -> str:
        return self.name.replace("_", " ")


def cases(*choices: Mapping[str, object]) -> Mapping[str, tuple[Any, ...]]:
    """Each combination of the choices, named after them."""
    combined = product(*(choice.items() for choice in choices))
    return {"-".join(name for name, _ in some): tuple(value for _, value in some) for some in combined}


USUAL = frozenset({Mode.QUICK, Mode.FULL})


def prop(
    profile: Profile,
    *needs: Capability,
    cases: Mapping[str, tuple[Any, ...]] | None = None,
    modes: frozenset[Mode] = USUAL,
) -> Callable[[Callable[..., Any]], Property]:
    """Makes a function a property: its name states what must hold."""

    def made(function: Callable[..., Any]) -> Property:
        area = function.__module__.rpartition(".")[2]
        return Property(function.__name__, profile, needs, modes, cases or {"": ()}, function, area)

    return made


def properties_of(modules: Sequence[object]) -> Mapping[str, Property]:
    """All properties of these modules by name, in the order written. A name that occurs twice is an error."""
    found: dict[str, Property] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Property) and inspect.getmodule(value.run) is module:
                if value.name in found:
                    raise ValueError(f"two properties are named {value.name!r}")
                found[value.name] = value
    return found
