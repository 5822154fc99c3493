"""`scripts/brokers`: starts what is missing, leaves alone what is not its own, and says what cannot be had."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "brokers"


def brokers(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REDIS_URL": url}
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield f"redis://127.0.0.1:{port}"
    brokers("down", "redis", url=f"redis://127.0.0.1:{port}")
    for path in (SCRIPT.parents[1] / ".brokers").glob(f"redis-{port}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def process(status: str) -> int:
    return int(status.partition("(process ")[2].partition(")")[0])


@pytest.mark.skipif(not shutil.which("redis-server", path="/usr/bin:/usr/local/bin"), reason="needs redis-server")
def test_up_starts_what_is_missing_once_and_down_stops_it(url: str) -> None:
    assert brokers("install", "redis", url=url).stdout == "redis: installed\n"
    assert brokers("status", "redis", url=url).returncode == 1
    first = brokers("up", "redis", url=url)
    assert (first.returncode, first.stderr) == (0, "")
    running = process(brokers("status", "redis", url=url).stdout)
    assert brokers("up", "redis", url=url).returncode == 0
    assert process(brokers("status", "redis", url=url).stdout) == running
    os.kill(running, signal.SIGKILL)
    assert brokers("up", "redis", url=url).returncode == 0
    assert process(brokers("status", "redis", url=url).stdout) != running
    assert "stopped" in brokers("down", "redis", url=url).stdout
    assert brokers("status", "redis", url=url).returncode == 1


def test_a_broker_that_cannot_be_had_is_named_with_the_reason_but_not_its_password() -> None:
    done = brokers("up", "redis", url="redis://me:hunter2@127.0.0.2:1")
    assert done.returncode == 1
    assert "redis IS MISSING: nothing answers at 127.0.0.2:1" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
