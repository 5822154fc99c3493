"""A limit of memory that the kernel enforces: a process above it is killed. For Linux."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Limit", "limited"]


class Limit:
    """enter: to be called in the process, before it begins. what: is limited, in words."""

    def __init__(self, what: str, enter: Callable[[], None], files: tuple[Path, Path] | None = None) -> None:
        self.what, self.enter, self._files = what, enter, files

    def most(self) -> int | None:
        """Bytes that counted at most since this was last asked, if the kernel says so; what files have in the page
        cache counts too, up to the limit.
        """
        if self._files is None:
            return None
        found = int(self._files[0].read_text())
        self._files[0].write_text("0")
        return found

    def killed(self) -> bool:
        """Whether the kernel has killed anything that went above it."""
        if self._files is None:
            return False
        lines = (line.split() for line in self._files[1].read_text().splitlines())
        return any(name == "oom_kill" and int(count) > 0 for name, count in lines)


@contextmanager
def limited(size: int) -> Iterator[Limit]:
    """At most `size` bytes in a control group of its own, which counts all that a process has in memory, files in the
    page cache too; where such a group may not be made, of its data (heap, stacks, what it maps privately).
    """
    group = _own_group()
    try:
        folder = None if group is None else Path(tempfile.mkdtemp(prefix="thalweg-", dir=group))
    except OSError:
        folder = None
    if folder is None:
        yield Limit("data of a process", lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)))
        return
    procs = folder / "cgroup.procs"
    try:
        new = (folder / "memory.max").exists()
        (folder / ("memory.max" if new else "memory.limit_in_bytes")).write_text(str(size))
        swap = folder / ("memory.swap.max" if new else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if new else str(size))
        files = ("memory.peak", "memory.events") if new else ("memory.max_usage_in_bytes", "memory.oom_control")
        yield Limit(
            "memory of a control group, page cache included",
            lambda: (procs.write_text(str(os.getpid())), None)[1],
            (folder / files[0], folder / files[1]),
        )
    finally:
        folder.rmdir()


def _own_group() -> Path | None:
    """Where a control group for memory may be made, if anywhere."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        base = Path("/sys/fs/cgroup/memory" if "memory" in controllers.split(",") else "/sys/fs/cgroup")
        here = base / path.lstrip("/")
        if (here / "memory.limit_in_bytes").exists() or (here / "memory.max").exists():
            return here
    return None
