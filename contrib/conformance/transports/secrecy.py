"""What a URL holds for the broker alone is shown to nobody."""

from __future__ import annotations

import logging
import re
import secrets
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from thalweg.contrib.conformance.properties import Profile, prop
from thalweg.contrib.conformance.trial import Trial
from thalweg.errors import ThalwegError
from thalweg.registry import load_transport


def with_password(url: str, password: str) -> str:
    """The URL as a user called `somebody` would write it."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = re.match(r"([^/?]*)([/?]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{scheme}{slashes}somebody:{password}@{authority.rpartition('@')[2]}{slash}{path}"


@contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged at INFO and above, by whomever."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    keeper, root = Keeper(logging.INFO), logging.getLogger()
    root.addHandler(keeper)
    try:
        yield lines
    finally:
        root.removeHandler(keeper)


@prop(Profile.CORE)
async def a_password_shows_in_no_text_error_or_log(trial: Trial) -> None:
    """Whether the broker lets somebody in by it or not."""
    password = f"s3cr3t{secrets.token_hex(8)}"
    shown: list[str] = []
    with logged() as lines:
        try:
            transport = load_transport(with_password(trial.rig.url, password))
            shown += [repr(transport), str(transport), transport.description]
            try:
                await trial.soon(transport.open(), "open to let somebody in or to refuse")
                shown += [transport.description, repr(transport), *transport.warnings]
                with suppress(ThalwegError):
                    await transport.channel(trial.name("nowhere"), trial.name("g"))
            finally:
                await transport.close()
        except ThalwegError as error:
            shown += [repr(error), str(error), *traceback.format_exception(error)]
    leaks = [text for text in (*shown, *lines) if password in text]
    assert not leaks, f"the password shows: {leaks[0].replace(password, '<the password>')}"
