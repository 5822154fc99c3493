"""`thalweg table`: rows as the last commit left them, read from the journal beside the worker that owns it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from thalweg.app import App
from thalweg.codec import DECODE_ERRORS, TypeCodec
from thalweg.errors import ConfigurationError, DecodeError
from thalweg.journal.replay import committed_rows, records_until_now
from thalweg.journal.rows import below, prefix
from thalweg.runtime.tables import TablePlan
from thalweg.starting import looking
from thalweg.topic_table import Replica

from .output import to_json
from .session import session_of
from .values import parsed

__all__ = ["table"]

SCREEN = 1000
"""Rows on a terminal, unless --limit says otherwise."""


def table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A table that the program declares")],
    key: Annotated[str | None, typer.Argument(help="Of one row: JSON of the declared type, bare text for str")] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only rows whose key, as text, begins so (dates, numbers: as JSON)"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="How many rows at most; 0: all (default: all when piped, 1000 on a terminal)"),
    ] = None,
) -> None:
    """Print a row's value as JSON, or all rows, or those of a prefix (JSON lines when piped).

    Rows are read from the journal on the broker, as the last commit left them. No worker is disturbed, and none needs
    to run. Exit code 1 if there is no such row.
    """
    session = session_of(context)
    app, output = session.app(), session.output
    source = _Rows(app, name)
    session.warn_if_nothing_lasts(app)
    rows = session.run(source.read(None if key is None else source.encoded(key)))
    for passed_over in source.passed_over:
        output.warning(f"table {name!r} passes over the record at {passed_over}")
    for unreadable in source.unreadable:
        output.error(f"table {name!r}, {unreadable}")
    if key is not None:
        if not rows:
            output.note(f"table {name!r} has no row {key!r}")
            raise typer.Exit(1)
        output.line(to_json(rows[0]["value"]))
        return
    if prefix is not None:
        rows = [row for row in rows if _text(row["key"]).startswith(prefix)]
    most = SCREEN if limit is None and output.terminal else limit or None
    shown = rows[:most]
    if output.terminal:
        output.paged(("key", "value"), shown, none=f"table {name!r} has no {'rows' if prefix is None else 'such rows'}")
    else:
        for row in shown:
            output.line(to_json(row))
    if len(shown) < len(rows):
        output.note(f"{len(shown):,} of {len(rows):,} rows; --limit 0 shows all")
    if source.unreadable:
        raise typer.Exit(1)


def _text(key: object) -> str:
    return key if isinstance(key, str) else to_json(key).strip('"')


class _Rows:
    """One table's rows: of a journal, or of the topic itself where the table is replicated."""

    def __init__(self, app: App, name: str) -> None:
        self._app, self._name = app, name
        self.passed_over: list[str] = []
        self.unreadable: list[str] = []
        self._replica = next((replica for replica in app.replicas if replica.name == name), None)
        if name in app.tables:
            self._plan: TablePlan = app.tables[name]
        elif self._replica is not None:
            self._plan = self._replica.plan
        else:
            known = ", ".join(sorted([*app.tables, *(replica.name for replica in app.replicas)])) or "none"
            raise ConfigurationError(f"app {app.id!r} declares no table {name!r}; it has: {known}")

    def encoded(self, key: str) -> bytes:
        """The key's bytes. A bare str or int is its own JSON or text; a date or an id may want quotes around it."""
        plan, what = self._plan, f"key of table {self._name!r}"
        as_it_is: TypeCodec[Any] = TypeCodec(plan.encode_key, plan.decode_key, "the table's key type", "raw")
        quoted: TypeCodec[Any] = TypeCodec(plan.encode_key, plan.decode_key, "the table's key type", "json")
        try:
            found = parsed(as_it_is, key, what)
        except DecodeError:
            found = parsed(quoted, key, what)
        return plan.encode_key(found)

    async def read(self, key: bytes | None) -> list[dict[str, Any]]:
        """The row of this key, or all, in the order of their keys."""
        async with looking(self._app) as existing:
            if self._replica is not None:
                found = await self._of_topic(self._replica) if self._replica.topic_name in existing else {}
            else:
                journal = f"{self._app.id}-journal-{self._plan.group}"
                found = await self._of_journal(journal, key) if journal in existing else {}
        rows = []
        for raw_key, raw in sorted(found.items()):
            if key is not None and raw_key != key:
                continue
            if (problem := self._problem(raw_key, raw)) is None:
                rows.append({"key": self._plan.decode_key(raw_key), "value": self._plan.decode(raw)})
            else:
                self.unreadable.append(f"key {raw_key!r}: {problem}")
        try:
            rows.sort(key=lambda row: row["key"])
        except TypeError:
            pass  # keys that cannot be compared stay in the order of their bytes
        return rows

    async def _of_journal(self, journal: str, key: bytes | None) -> dict[bytes, bytes]:
        plan, start = self._plan, prefix(self._plan.name)
        if key is None:
            partitions, first, stop = range(plan.partitions), start, below(start)
        else:
            partition = plan.partition_of(key, plan.partitions)
            partitions, first, stop = range(partition, partition + 1), start + key, start + key + b"\0"
        log = await self._app.running.open_log(journal)
        try:
            found: dict[bytes, bytes] = {}
            for partition in partitions:
                found.update(await committed_rows(log, partition, first, stop))
        finally:
            await log.close()
        return {raw_key[len(start) :]: raw for raw_key, raw in found.items()}

    async def _of_topic(self, replica: Replica[Any, Any]) -> dict[bytes, bytes]:
        log = await self._app.running.open_log(replica.topic_name)
        found: dict[bytes, bytes] = {}
        try:
            for partition in range(replica.partitions):
                async for position, record in records_until_now(log, partition):
                    if record.key is None:
                        continue
                    if record.value is None:
                        found.pop(record.key, None)
                    elif (problem := self._problem(record.key, record.value)) is None:
                        found[record.key] = record.value
                    else:  # as the program does
                        self.passed_over.append(f"{replica.topic_name}/{partition}/{position}: {problem}")
        finally:
            await log.close()
        return found

    def _problem(self, raw_key: bytes, raw: bytes) -> str | None:
        """Why it is no row of this table."""
        try:
            self._plan.decode_key(raw_key)
            self._plan.decode(raw)
        except DECODE_ERRORS as error:
            return f"not of the declared types: {error}"
        return None
