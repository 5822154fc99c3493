"""What commands print: tables and boxes on a terminal, plain lines when piped, JSON lines with `--json`.

Answers go to standard output, everything else (errors, notes, logs) to standard error. `NO_COLOR` takes the colours
away; what is piped has neither colours nor boxes in any case.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from thalweg.errors import ThalwegError
from thalweg.url import Url

__all__ = ["Output", "facts", "printable", "readable", "redacted", "table", "to_json", "without_secrets"]

Row = Mapping[str, Any]

_CREDENTIALS = re.compile(r"(\w://)\S*@")
_URL = re.compile(r"[A-Za-z][\w.:+-]*://[^\s'\"]*")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Output:
    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.terminal = not json and sys.stdout.isatty()
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    @property
    def err(self) -> Console:
        """Standard error: for logs and what moves there."""
        return self._err

    @property
    def height(self) -> int:
        return self._out.height

    def rows(self, columns: Sequence[str], rows: Iterable[Row], *, title: str = "", none: str = "") -> None:
        """One line a row. With `--json` all that a row holds; else what stands under `columns`.

        none: said on standard error when there is no row.
        """
        found = list(rows)
        if not found:
            if none:
                self.note(none)
            return
        if self.terminal:
            self.show(table(columns, found, title))
            return
        for row in found:
            self.line(to_json(row) if self.json else "\t".join(_cell(row.get(name)) for name in columns))

    def paged(self, columns: Sequence[str], rows: Sequence[Row], *, title: str = "", none: str = "") -> None:
        """As `rows`, through the user's pager if they do not fit on the terminal."""
        if self.terminal and len(rows) + 5 > self.height:
            with self._out.pager():
                self.rows(columns, rows, title=title)
        else:
            self.rows(columns, rows, title=title, none=none)

    def show(self, what: RenderableType) -> None:
        """For terminals."""
        self._out.print(what)

    def line(self, text: str) -> None:
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Something worth knowing that is not the answer."""
        self._err.print(Text(redacted(text), "dim"), soft_wrap=True)

    def warning(self, text: str) -> None:
        self._err.print(Text.assemble(("warning: ", "bold yellow"), redacted(text)), soft_wrap=True)

    def error(self, text: str) -> None:
        self._err.print(Text.assemble(("error: ", "bold red"), redacted(text)), soft_wrap=True)


def _console(stream: TextIO) -> Console:
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, color_system=None, width=10_000)


def table(columns: Sequence[str], rows: Iterable[Row], title: str = "") -> RenderableType:
    """Rows under their columns; numbers to the right."""
    rows = list(rows)
    shape = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        numeric = any(isinstance(row.get(name), int) and not isinstance(row.get(name), bool) for row in rows)
        shape.add_column(
            name.replace("_", " "),
            style="cyan" if number == 0 else None,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=number == 0 and len(columns) > 1,
        )
    for row in rows:
        shape.add_row(*(Text(_shown(row.get(name))) for name in columns))
    body = Padding(shape, (0, 0, 0, 1))
    return Group(Text(f" {title}", "bold"), body) if title else body


def facts(title: str | Text, pairs: Iterable[tuple[str, RenderableType]]) -> RenderableType:
    """Names and what they stand for, in a box."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value)
    return Panel(
        grid, title=title, title_align="left", box=box.ROUNDED, border_style="blue", expand=False, padding=(0, 1)
    )


def to_json(value: Any) -> str:
    """One line of JSON for any value that a table, a topic or a report may hold."""
    return msgspec.json.encode(_plain(value), enc_hook=_other).decode()


def readable(data: bytes | None) -> Any:
    """Bytes as text if they are UTF-8, else as {"base64": …}."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def redacted(text: str) -> str:
    """Without what stands before the '@' of a URL: a second net under errors, which name no credentials themselves."""
    return _CREDENTIALS.sub(r"\1***@", text)


def without_secrets(text: str) -> str:
    """What the user typed, quoted in an error, with every URL in it as the driver would show it."""
    return _URL.sub(lambda match: _safe(match[0]), text)


def _safe(url: str) -> str:
    try:
        return str(Url(url))
    except ThalwegError:
        return f"{url.partition('://')[0]}://***"


def _plain(value: Any) -> Any:
    """Bytes made readable, also inside plain containers; everything else is left to msgspec."""
    if isinstance(value, bytes | bytearray | memoryview):
        return readable(bytes(value))
    if isinstance(value, Mapping) and type(value) is dict:
        return {
            key if isinstance(key, str | int | float) else _as_text(key): _plain(part) for key, part in value.items()
        }
    if type(value) in (list, tuple):
        return [_plain(part) for part in value]
    return value


def _as_text(key: Any) -> str:
    return key.decode(errors="replace") if isinstance(key, bytes) else to_json(key)


def _other(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic
    return dump(mode="json") if callable(dump) else str(value)


def printable(text: str) -> str:
    """Without what would steer the terminal, line breaks excepted."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _shown(value: Any) -> str:
    """For people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return printable(value)
    return to_json(value)


def _cell(value: Any) -> str:
    """For programs: one field of a tab-separated line."""
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return str(value).lower()
    text = value if isinstance(value, str) else to_json(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
