"""The pytest plug-in that certifies transports and stores: options and hooks only, for it is imported in every run.

It stands outside the package `thalweg` because importing that would cost each run of pytest a tenth of a second.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from thalweg.contrib.conformance.rig import Rig
    from thalweg.contrib.conformance.stores.rig import StoreRig

__all__: list[str] = []

pytest.register_assert_rewrite("thalweg.contrib.conformance")

_ASKED = ("thalweg_transport", "thalweg_store", "thalweg_certificate")


class Hooks:
    @pytest.hookspec(firstresult=True)
    def pytest_thalweg_rig(self, url: str, config: pytest.Config) -> Rig | None:
        """The rig (`thalweg.contrib.conformance.Rig`) for this URL of `--thalweg-transport`; None: the usual one.

        Called anew for each property.
        """

    @pytest.hookspec(firstresult=True)
    def pytest_thalweg_store_rig(self, url: str, config: pytest.Config) -> StoreRig | None:
        """The rig (`thalweg.contrib.conformance.StoreRig`) for this URL of `--thalweg-store`; None: the usual one."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("thalweg", "conformance of Thalweg transports and stores").addoption
    add("--thalweg-transport", action="append", default=[], metavar="URL", help="certify this transport")
    add("--thalweg-store", action="append", default=[], metavar="URL", help="certify this store")
    add("--thalweg-mode", default="quick", metavar="MODE", help="quick (default), full, stress, chaos; or several: a,b")
    add("--thalweg-seed", type=int, metavar="N", help="seed of all that is random; by default a new one")
    add("--thalweg-profile", metavar="NAMES", help="only these profiles: Core,Durable,…; all")
    add("--thalweg-patience", type=float, metavar="S", help="seconds to wait for what must happen (default: the rig's)")
    add("--thalweg-restart", metavar="COMMAND", help="kills the broker and starts it again on its data")
    add("--thalweg-stop", metavar="COMMAND", help="kills the broker; with --thalweg-start")
    add("--thalweg-start", metavar="COMMAND", help="starts the broker that --thalweg-stop has killed")
    add(
        "--thalweg-waive",
        action="append",
        default=[],
        metavar="'PROPERTY: REASON'",
        help="tolerate the failure of this property; it is in the certificate",
    )
    add("--thalweg-certificate", metavar="FILE", help="write the certificate, as JSON, to this file")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.thalweg_seed is None:
        config.option.thalweg_seed = random.SystemRandom().randrange(1_000_000)
    if any(config.getoption(name) for name in _ASKED):
        from thalweg.contrib.conformance.plugin import Conformance

        config.pluginmanager.register(Conformance(config), "thalweg-conformance")
        asked = config.getoption("thalweg_transport") or config.getoption("thalweg_store")
        if asked and config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = []  # the suite alone, not all the tests that happen to lie here


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> pytest.Collector | None:
    """A variable of a test module that holds a target becomes its suite."""
    if type(obj).__module__ != "thalweg.contrib.conformance.suite":
        return None
    suite = sys.modules["thalweg.contrib.conformance.suite"]
    if not isinstance(obj, suite.Target):
        return None
    found: pytest.Collector = suite.Suite.from_parent(collector, name=name, target=obj)
    return found
