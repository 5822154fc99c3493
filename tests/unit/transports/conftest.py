"""What tests of drivers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest


@pytest.fixture
async def watchdog() -> AsyncIterator[None]:
    """A call that hangs fails its test instead of hanging the run."""
    loop = asyncio.get_running_loop()

    def bite() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel("this test hangs")

    timer = loop.call_later(30, bite)
    yield
    timer.cancel()
