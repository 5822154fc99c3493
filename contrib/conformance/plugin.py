"""What the pytest plug-in does once it is asked to: adds the suites, gathers the reports, writes the certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thalweg.errors import ConfigurationError
from thalweg.registry import load_stores, load_transport
from thalweg.url import Url

from .certificate import Certificate, Outcome, lines_of, to_json
from .properties import Mode, Profile
from .rig import Commands, Rig, rig_for
from .stores.rig import StoreRig
from .suite import NOTE, PROPERTIES, Settings, Suite, Target, names_of, store, transport

__all__ = ["Conformance", "check"]


def check(config: pytest.Config) -> None:
    """Raises `pytest.UsageError` where an option cannot be meant."""
    for url in config.getoption("thalweg_transport"):
        _usable(load_transport, url)
    for url in config.getoption("thalweg_store"):
        _usable(load_stores, url)
    for option, known in (("thalweg_mode", Mode), ("thalweg_profile", Profile)):
        for name in (config.getoption(option) or "").split(","):
            if name and name not in {word.value for word in known} and (name, known) != ("all", Profile):
                flag = "--" + option.replace("_", "-")
                raise pytest.UsageError(f"{flag}={name}: expected some of {', '.join(w.value for w in known)}")
    for text in config.getoption("thalweg_waive"):
        name, _, reason = text.partition(":")
        if name.strip() not in names_of(PROPERTIES) or not reason.strip():
            raise pytest.UsageError(f"--thalweg-waive={text!r}: expected 'property: reason', of an existing property")


class Conformance:
    """A plug-in of its own, registered only when the suite is asked for."""

    def __init__(self, config: pytest.Config) -> None:
        check(config)
        self._config = config
        self._settings = Settings(config)
        self._certificates: dict[str, Certificate] = {}
        self._targets = [transport(str(Url(url)), _maker(config, url)) for url in config.getoption("thalweg_transport")]
        self._targets += [_store(config, url) for url in config.getoption("thalweg_store")]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        for target in self._targets:
            suite: Suite = Suite.from_parent(session, name=target.name, nodeid=target.name, target=target)
            items += suite.collect()

    def pytest_report_header(self) -> str:
        names = ", ".join(target.name for target in self._targets) or "suites of test modules"
        return f"thalweg conformance: {names}; mode {self._settings.mode}, seed {self._settings.seed}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called on the controller too, where pytest-xdist is used."""
        note = next((value for name, value in report.user_properties if name == NOTE), None)
        if not isinstance(note, dict) or (report.when != "call" and report.passed):
            return
        certificate = self._certificates.setdefault(
            note["target"], Certificate(note["target"], ",".join(sorted(self._settings.modes)), self._settings.seed)
        )
        certificate.facts.update(note.get("facts", {}))
        certificate.note(note["property"], _outcome(report, note))

    def pytest_sessionfinish(self) -> None:
        file = self._config.getoption("thalweg_certificate")
        if file and not hasattr(self._config, "workerinput"):
            Path(file).write_bytes(to_json(list(self._certificates.values()), PROPERTIES))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for certificate in self._certificates.values():
            terminalreporter.section(f"conformance of {certificate.target}", sep="=", bold=True)
            for line in lines_of(certificate, PROPERTIES):
                terminalreporter.line(line)
        file = self._config.getoption("thalweg_certificate")
        if file:
            terminalreporter.line(f"certificate written to {file}")


def _usable(load: Callable[[str], object], url: str) -> None:
    try:
        load(url)
    except ConfigurationError as error:
        raise pytest.UsageError(str(error)) from None


def _store(config: pytest.Config, url: str) -> Target:
    def make() -> StoreRig:
        made = config.hook.pytest_thalweg_store_rig(url=url, config=config)
        return made if isinstance(made, StoreRig) else StoreRig(url)

    return store(str(Url(url)), make)


def _maker(config: pytest.Config, url: str) -> Any:
    commands = Commands(*(config.getoption(f"thalweg_{name}") or "" for name in Commands._fields))

    def make() -> Rig:
        made = config.hook.pytest_thalweg_rig(url=url, config=config)
        return made if isinstance(made, Rig) else rig_for(url, commands)

    return make


def _outcome(report: pytest.TestReport, note: dict[str, Any]) -> Outcome:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = str(crash.message if crash else report.longrepr).strip()
        return Outcome(note["case"], "failed", round(report.duration, 3), reason.splitlines()[0] if reason else "")
    if hasattr(report, "wasxfail"):
        reason = f"{report.wasxfail.removeprefix('reason: ')} ({note.get('waived', '')})"
        return Outcome(note["case"], "waived", round(report.duration, 3), reason)
    if report.skipped:
        where = report.longrepr
        reason = str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")
        return Outcome(note["case"], "skipped", round(report.duration, 3), reason)
    if "undeclared" in note:
        return Outcome(note["case"], "undeclared", round(report.duration, 3), note["undeclared"])
    return Outcome(note["case"], "passed", round(report.duration, 3))
