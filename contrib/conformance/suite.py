"""Properties as pytest items: each runs in an event loop of its own, and notes what a certificate needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from thalweg.channel import Transport

from . import stores as store_properties
from . import transports as transport_properties
from .alarm import alarm
from .facts import facts_of, facts_of_stores
from .properties import Mode, Profile, Property, Unavailable, properties_of
from .rig import Rig
from .stores.rig import StoreRig
from .stores.trial import StoreTrial
from .transports import refuses
from .trial import Trial

__all__ = ["NOTE", "PROPERTIES", "Case", "Settings", "Suite", "Target", "names_of", "store", "transport"]

NOTE = "thalweg-conformance"
"""The name of the user property of a report that belongs to a certificate."""

TRANSPORT = properties_of(transport_properties.MODULES)
STORE = properties_of(store_properties.MODULES)
PROPERTIES: Mapping[str, Property] = {**TRANSPORT, **STORE}


class Settings:
    """The options of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self.modes = frozenset(Mode(name) for name in config.getoption("thalweg_mode").split(","))
        self.seed: int = config.getoption("thalweg_seed")
        chosen = config.getoption("thalweg_profile")
        self.profiles = frozenset(map(Profile, Profile if chosen == "all" else chosen.split(","))) if chosen else None
        self.patience: float | None = config.getoption("thalweg_patience")
        waivers = [text.partition(":") for text in config.getoption("thalweg_waive")]
        self.waivers: Mapping[str, str] = {name.strip(): reason.strip() for name, _, reason in waivers}

    @property
    def mode(self) -> Mode:
        return max(self.modes, key=list(Mode).index)


class Target:
    """What is to be certified: a name to show, a rig for each property, and which may fail, with the reason."""

    def __init__(
        self,
        name: str,
        rig: Callable[[], Rig] | Callable[[], StoreRig],
        properties: Mapping[str, Property],
        waive: Mapping[str, str],
        profiles: Collection[str],
    ) -> None:
        self.name, self.rig, self.properties, self.waivers = name, rig, properties, waive
        self.profiles = frozenset(Profile(profile) for profile in profiles or Profile)
        self.facts: dict[str, Any] = {}
        unknown = set(waive) - names_of(properties)
        if unknown:
            raise ValueError(f"{name}: no property is named {' or '.join(sorted(unknown))}")


def names_of(properties: Mapping[str, Property]) -> set[str]:
    """Of properties, and of each of their cases."""
    return {f"{name}[{case}]" if case else name for name, prop in properties.items() for case in ("", *prop.cases)}


def transport(
    name: str,
    rig: Callable[[], Rig],
    waive: Mapping[str, str] = MappingProxyType({}),
    profiles: Collection[str] = (),
) -> Target:
    """A variable of a test module with this value becomes the suite of transports: one test for each property.

    waive: as `--thalweg-waive`: reasons by `property` or `property[case]`. profiles: only these, for one that differs
    from another in some things (unless --thalweg-profile names others); by default all.
    """
    return Target(name, rig, TRANSPORT, waive, profiles)


def store(name: str, rig: Callable[[], StoreRig], waive: Mapping[str, str] = MappingProxyType({})) -> Target:
    """The same, of stores."""
    return Target(name, rig, STORE, waive, ())


class Suite(pytest.Collector):
    """All properties of one target."""

    def __init__(self, *, target: Target, **rest: Any) -> None:
        super().__init__(**rest)
        self.target = target

    def collect(self) -> Iterator[Case]:
        settings = Settings(self.config)
        for prop in self.target.properties.values():
            if prop.profile in (settings.profiles or self.target.profiles) and prop.modes & settings.modes:
                for case in prop.cases:
                    yield Case.from_parent(
                        self,
                        name=f"{prop.name}[{case}]" if case else prop.name,
                        prop=prop,
                        case=case,
                        settings=settings,
                    )


class Case(pytest.Item):
    """One property with one set of arguments."""

    def __init__(self, *, prop: Property, case: str, settings: Settings, **rest: Any) -> None:
        super().__init__(**rest)
        assert isinstance(self.parent, Suite)
        self.prop, self.case, self.settings, self.target = prop, case, settings, self.parent.target
        self.note: dict[str, Any] = {"target": self.target.name, "property": prop.name, "case": case}
        self.user_properties.append((NOTE, self.note))

    def reportinfo(self) -> tuple[str, int, str]:
        return self.path.as_posix(), 0, f"{self.target.name}: {self.name}"

    def _traceback_filter(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
        """From the property on: how pytest and asyncio came to it is of no interest."""
        own = [entry for entry in excinfo.traceback if "conformance" in str(entry.path)]
        inner = excinfo.traceback.cut(path=self.prop.run.__code__.co_filename)
        return inner if own and len(inner) < len(excinfo.traceback) else excinfo.traceback

    def runtest(self) -> None:
        rig = self.target.rig()
        try:
            if isinstance(rig, Rig):
                with asyncio.Runner() as runner:
                    runner.run(self._watched(rig))
            else:
                self._run_store(rig)
        except Unavailable as lack:
            pytest.skip(str(lack))
        except asyncio.CancelledError:
            raise AssertionError("the property was cancelled: a call did not end in time") from None
        except Exception as error:
            waivers = {**self.target.waivers, **self.settings.waivers}
            reason = waivers.get(self.name, waivers.get(self.prop.name))
            if reason is None:
                raise
            self.note["waived"] = f"{type(error).__name__}: {error}".splitlines()[0]
            pytest.xfail(reason)

    def _run_store(self, rig: StoreRig) -> None:
        rig.prepare()
        trial = StoreTrial(rig, self.settings.mode, f"{self.settings.seed} {self.name}")
        try:
            if not self.target.facts:
                self.target.facts.update(facts_of_stores(trial.stores), keeps=trial.keeps())
                self.note["facts"] = self.target.facts
            if self.prop.area == "surviving" and not self.target.facts["keeps"]:
                self.note["undeclared"] = "keeps nothing"
                trial.keeps()
            else:
                self.prop.run(trial, *self.prop.cases[self.case])
        finally:
            trial.close()

    async def _watched(self, rig: Rig) -> None:
        """A call that hangs fails its property instead of hanging the run."""
        if self.settings.patience is not None:
            rig.patience = self.settings.patience
        seconds = min(60, 20 * rig.patience) + 6 * rig.patience + 20 * (0 if rig.lease >= 30 else rig.lease)
        limit = asyncio.timeout(seconds)
        try:
            with alarm(1.5 * seconds):
                async with limit:
                    await self._run(rig)
        except TimeoutError:
            if limit.expired():
                raise AssertionError("the property hangs") from None
            raise

    async def _run(self, rig: Rig) -> None:
        trial = Trial(rig, self.settings.mode, f"{self.settings.seed} {self.name}")
        try:
            await rig.prepare()
            first = None if self.target.facts else await self._meet(trial)
            missing = [need for need in self.prop.needs if need not in self.target.facts["capabilities"]]
            if missing:
                self.note["undeclared"] = missing[0].value
                await refuses(trial, first or await trial.open(), missing[0])
            else:
                await self.prop.run(trial, *self.prop.cases[self.case])
        except BaseException:
            try:
                await trial.close()
            except Exception as error:
                self.add_report_section("call", "closing", f"{type(error).__name__}: {error}")
            raise
        await trial.close()

    async def _meet(self, trial: Trial) -> Transport:
        transport = await trial.open()
        self.target.facts.update(facts_of(transport))
        self.note["facts"] = self.target.facts
        return transport
