"""A door from plain threads into an app: a client on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .agent import Agent
from .errors import NotRunning
from .headers import UserHeaders
from .queue import Queue
from .table import Table
from .topic import Topic

if TYPE_CHECKING:
    from .app import App

__all__ = ["Portal"]

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
P = ParamSpec("P")


class Portal:
    """`with app.portal() as portal:`; its methods may be called from any thread, and wait for the result.

    An app that runs already (embedded in an event loop) is used as it is, through its loop; otherwise a client is
    started.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Portal:
        if self._app.is_running:
            self._loop = self._app.running.loop
            return self
        started: list[BaseException | None] = []
        ready = threading.Event()

        async def live() -> None:
            self._stop = asyncio.Event()
            try:
                async with self._app.client():
                    self._loop = asyncio.get_running_loop()
                    started.append(None)
                    ready.set()
                    await self._stop.wait()
            finally:
                self._loop = None

        def run() -> None:
            try:
                asyncio.run(live())
            except BaseException as error:
                started.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name=f"thalweg-portal-{self._app.id}", daemon=True)
        self._thread.start()
        ready.wait()
        if started and started[0] is not None:
            self._thread.join()
            raise started[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        self._loop = None

    def call(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **options: P.kwargs) -> R:
        """Run any coroutine function of the app there: `portal.call(topic.send, value, key=key)`."""
        if self._loop is None:
            raise NotRunning("the portal is closed; use it inside `with app.portal() as portal:`")
        try:
            inside = asyncio.get_running_loop()
        except RuntimeError:
            inside = None
        if inside is self._loop:
            raise NotRunning("a portal is for threads: here, in the event loop, await the coroutine itself")
        return asyncio.run_coroutine_threadsafe(function(*args, **options), self._loop).result()

    def send(
        self,
        topic: Topic[K, V] | Queue[K, V],
        value: V,
        *,
        key: K | None = None,
        headers: UserHeaders | None = None,
    ) -> None:
        """Durable when this returns. For further options: `portal.call(topic.send, value, timestamp=…)`."""

        async def send() -> None:
            await topic.send(value, key=key, headers=headers)

        self.call(send)

    def ask(self, agent: Agent[V, R], value: V, *, key: Any = None, timeout: float = 10.0) -> R:
        return self.call(agent.ask, value, key=key, timeout=timeout)

    def ask_all(self, agent: Agent[V, R], values: Iterable[V], *, key: Any = None, timeout: float = 10.0) -> list[R]:
        return self.call(agent.ask_all, values, key=key, timeout=timeout)

    def cast(self, agent: Agent[V, Any], value: V, *, key: Any = None) -> None:
        self.call(agent.cast, value, key=key)

    def table(self, table: Table[K, V], key: K, *, timeout: float = 10.0) -> V | None:
        """`await table.ask(key)`."""
        return self.call(table.ask, key, timeout=timeout)
