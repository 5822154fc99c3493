"""What stores on disk share: a folder with one place a store, held by one process, emptied when it is damaged."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from thalweg.errors import ConfigurationError, StoreDamaged, StoreError, StoreFull
from thalweg.store import check_name
from thalweg.url import Url

__all__ = ["Place", "folder_of", "log", "remove"]

log = logging.getLogger("thalweg.stores")

_COMPANIONS = ("", "-wal", "-shm", "-journal")  # what SQLite keeps beside a file; harmless for a folder


def folder_of(url: Url) -> Path:
    """The folder that a store URL names."""
    if not url.file:
        raise ConfigurationError(
            f"{url} names no folder; write '{url.scheme}:///folder' (relative) or '{url.scheme}:////folder' (absolute)"
        )
    return Path(url.file)


class Place:
    """The file or folder of one store, locked until `release` or until this process dies.

    Raises `StoreError` if it cannot be had: another store has it open, or the folder cannot be written.

    damage: set by the store once it has found any. What is here is then set aside at the latest by `release`, or the
    next opener, if it does not read everything, would take it for sound. gone: others have deleted or replaced it.
    full: it could not be written.
    """

    def __init__(self, folder: Path, name: str, suffix: str) -> None:
        self.path = folder / f"{check_name(name)}{suffix}"
        self.damage: Exception | None = None
        self._identity = (0, 0)
        self.gone = self.full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path.with_name(f"{self.path.name}.lock"))
        except BlockingIOError:
            raise StoreError(f"store {self.path} is open already, here or in another process; close it there") from None
        except OSError as error:
            raise StoreError(f"store {self.path} cannot be opened: {error}") from error

    def remember(self) -> None:
        """Take what lies here now for the store (see `check`)."""
        self._identity = self._found()

    def check(self) -> None:
        """Raise `StoreError` if someone has deleted or replaced what `remember` saw: writing to it would be lost."""
        if self._found() != self._identity:
            if not self.gone:
                self.gone = True
                log.warning("store %s was deleted or replaced while open, and will be rebuilt", self.path)
            raise StoreDamaged(f"store {self.path} was deleted or replaced while open; open it again to rebuild it")

    def set_aside(self) -> None:
        """Move what is damaged out of the way (one earlier such thing is overwritten) and log it."""
        aside = f"{self.path}.damaged"
        try:
            for companion in _COMPANIONS:
                _remove(Path(aside + companion))
                if os.path.lexists(f"{self.path}{companion}"):
                    os.rename(f"{self.path}{companion}", aside + companion)
        except OSError as error:
            raise StoreError(f"store {self.path} is damaged ({self.damage}), and stays in place: {error}") from error
        log.warning("store %s is damaged and will be rebuilt; set aside as %s: %s", self.path, aside, self.damage)
        self.damage = None

    def error(self, text: str, full: bool = False) -> StoreError:
        """What to raise for what went wrong here."""
        if self.damage is not None:
            return StoreDamaged(f"store {self.path}: {text}")
        if full:
            self.full = True
            return StoreFull(
                f"store {self.path} cannot be written: {text}. Nothing is lost: what it lacks is in the journal. Make "
                "room, and it goes on by itself"
            )
        return StoreError(f"store {self.path}: {text}")

    def release(self) -> None:
        """Let others open it. Twice is harmless."""
        try:
            if self.damage is not None:
                self.set_aside()
        finally:
            self._lock.close()

    def _found(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)


def remove(folder: Path, name: str, suffix: str) -> bool:
    """Delete the store, if there is one; whether there was. Raises `StoreError` if somebody has it open."""
    path = folder / f"{check_name(name)}{suffix}"
    if not any(os.path.lexists(f"{path}{companion}") for companion in _COMPANIONS):
        return False
    place = Place(folder, name, suffix)
    try:
        for companion in _COMPANIONS:
            _remove(Path(f"{path}{companion}"))
    except OSError as error:
        raise StoreError(f"store {path} cannot be removed: {error}") from error
    finally:
        place.release()
    return True


def _lock(path: Path) -> BinaryIO:
    """The file, locked against every other opener: by the kernel, which unlocks it when the process dies."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
