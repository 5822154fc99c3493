"""`thalweg doctor`: whether this program can run on this broker and store, and what it would get there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import typer
from rich.text import Text
from thalweg.app import App
from thalweg.channel import Capability, TopicInfo, TopicSpec, Transport
from thalweg.dead_letters import dead_letter_topic
from thalweg.declaring import check_leftovers
from thalweg.errors import MirrorError, ThalwegError, TopicMismatch
from thalweg.grouping import groups_of
from thalweg.needs import check_needs
from thalweg.registry import load_mirrors, load_stores, load_transport
from thalweg.starting import looking, mirrored

from .declared import guarantee_name
from .output import Output, redacted
from .session import session_of
from .topics import records_in

__all__ = ["doctor"]


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    verdict: Verdict
    about: str
    says: str


_MARKS = {
    Verdict.OK: (" ✓ ", "bold green"),
    Verdict.NOTE: (" · ", "dim"),
    Verdict.WARNING: (" ! ", "bold yellow"),
    Verdict.PROBLEM: (" ✗ ", "bold red"),
}

_GIVES = {
    Capability.LOG: "tables, replay, keyed order",
    Capability.LOCKS: "one owner a task, leaders",
    Capability.PEERS: "work shared among workers",
    Capability.GROUPED: "work shared among workers by the broker's groups, one owner a task, leaders",
    Capability.FENCING: "outputs commit with the state",
    Capability.WORK_QUEUE: "queues with leases and retries",
    Capability.PRIORITY: "send(priority=) on queues",
    Capability.DELAY: "send(delay=) on queues",
    Capability.EXPIRY: "send(expires=) on queues",
}


def doctor(context: typer.Context) -> None:
    """Meet the broker and the store and say what they can do for this program. Creates no topic and runs nothing.

    Exit code 1 if the program could not start, or would not do what it declares.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    findings = [*_store(app), *session.run(_broker(app)), *session.run(_mirrors(app))]
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        _print(output, finding, width)
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    if problems:
        output.note(f"{problems} problem{'' if problems == 1 else 's'}: the program would not run as declared")
        raise typer.Exit(1)
    output.note("the program can run here")


def _store(app: App) -> Iterator[Finding]:
    try:
        yield Finding(Verdict.OK, "store", load_stores(app.store).description)
    except ThalwegError as error:
        yield Finding(Verdict.PROBLEM, "store", str(error))


async def _mirrors(app: App) -> list[Finding]:
    """One that cannot be reached is no problem: the worker runs, and it catches up."""
    findings: list[Finding] = []
    for where, tables in mirrored(app):
        names = ", ".join(table.name for table in tables)
        try:
            mirrors = load_mirrors(where)
            try:
                for table in tables:
                    mirrors.table(table)
                findings.append(Finding(Verdict.OK, "mirror", f"{await mirrors.check()}, of {names}"))
            except MirrorError as error:
                findings.append(
                    Finding(Verdict.WARNING, "mirror", f"{error}. Until it is back, {names} cannot be read there")
                )
            finally:
                await mirrors.close()
        except ThalwegError as error:
            findings.append(Finding(Verdict.PROBLEM, "mirror", str(error)))
    return findings


async def _broker(app: App) -> list[Finding]:
    try:
        transport = load_transport(app.broker)
        async with looking(app, transport) as existing:
            findings = [*_offers(app, transport), *_needs(app, transport), *_topics(app, existing)]
            findings.extend([finding async for finding in _left(app, transport, existing)])
            return findings
    except ThalwegError as error:
        return [Finding(Verdict.PROBLEM, "broker", str(error))]


def _offers(app: App, transport: Transport) -> Iterator[Finding]:
    yield Finding(Verdict.OK, "broker", transport.description)
    for capability in Capability:
        if capability in transport.capabilities:
            yield Finding(Verdict.OK, f"can {capability.value}", _GIVES[capability])
        elif capability not in _made_up_for(transport):
            yield Finding(Verdict.NOTE, f"no {capability.value}", f"not offered: {_GIVES[capability]}")
    limit = transport.limits.message_bytes
    yield Finding(Verdict.NOTE, "largest message", "no limit known" if limit is None else f"{limit:,} bytes")
    if transport.limits.commit_messages is not None:
        yield Finding(Verdict.NOTE, "largest commit", f"{transport.limits.commit_messages:,} messages")
    for text in transport.warnings:
        yield Finding(Verdict.WARNING, "broker", text)
    if said := transport.limits.lease_warning(app.lease):
        yield Finding(Verdict.WARNING, "lease", said)


def _made_up_for(transport: Transport) -> frozenset[Capability]:
    """What a program does not miss here: groups are instead of locks and peers, and they instead of groups."""
    instead = frozenset({Capability.LOCKS, Capability.PEERS})
    if Capability.GROUPED in transport.capabilities:
        return instead
    return frozenset({Capability.GROUPED}) if instead <= transport.capabilities else frozenset()


def _needs(app: App, transport: Transport) -> Iterator[Finding]:
    try:
        check_needs(app, transport)
    except ThalwegError as error:
        yield Finding(Verdict.PROBLEM, "needs", str(error))
    else:
        yield Finding(Verdict.OK, "needs", "all that the program declares is offered")
    try:
        groups = groups_of(app, transport, app.delays)
    except ThalwegError as error:
        yield Finding(Verdict.PROBLEM, "partitions", str(error))
    else:
        tasks = sum(group.partitions for group in groups.values())
        yield Finding(Verdict.OK, "tasks", f"{tasks}, which up to as many workers can share")
    yield Finding(Verdict.OK, "guarantee", f"{guarantee_name(app.guarantee)} (asked for: {app.wanted_guarantee})")


def _topics(app: App, existing: Mapping[str, TopicInfo]) -> Iterator[Finding]:
    for plan in app.topics.values():
        spec, found = plan.spec, existing.get(plan.name)
        kind = "queue" if spec.queue else "topic"
        if found is None and not spec.declare:
            yield Finding(Verdict.PROBLEM, f"{kind} {plan.name}", str(spec.absent("the broker")))
        elif found is None:
            partitions = "" if spec.queue else f" with {plan.partitions} partitions"
            yield Finding(Verdict.NOTE, f"{kind} {plan.name}", f"will be created{partitions}")
        elif (problem := _mismatch(spec, found)) is not None:
            yield Finding(Verdict.PROBLEM, f"{kind} {plan.name}", problem)
        else:
            partitions = "" if spec.queue else f", {found.partitions} partitions"
            yield Finding(Verdict.OK, f"{kind} {plan.name}", f"exists{partitions}")


def _mismatch(spec: TopicSpec, found: TopicInfo) -> str | None:
    try:
        spec.check(found.queue, found.partitions, "the broker")
    except TopicMismatch as error:
        return str(error)
    return None


async def _left(app: App, transport: Transport, existing: Mapping[str, TopicInfo]) -> AsyncIterator[Finding]:
    """What earlier runs left behind."""
    if not app.running.has_log:
        return
    try:
        await check_leftovers(app, transport, existing, everywhere=True)
    except ThalwegError as error:
        yield Finding(Verdict.PROBLEM, "state", str(error))
    for name in app.topics:
        letters = existing.get(dead_letter_topic(app.id, name))
        count = 0 if letters is None else await records_in(app, letters)
        if count:
            yield Finding(Verdict.NOTE, "dead letters", f"{count:,} of {name}: thalweg dead-letters list {name}")


def _print(output: Output, finding: Finding, width: int) -> None:
    if output.json:
        row: dict[str, Any] = {**finding._asdict(), "says": redacted(finding.says)}
        output.rows((), [row])
    elif output.terminal:
        mark, style = _MARKS[finding.verdict]
        text_style = style.removeprefix("bold ") if finding.verdict in (Verdict.WARNING, Verdict.PROBLEM) else ""
        output.show(
            Text.assemble((mark, style), (f"{finding.about:<{width}}  ", "bold"), (redacted(finding.says), text_style))
        )
    else:
        output.rows(("verdict", "about", "says"), [{**finding._asdict(), "verdict": finding.verdict.value}])
