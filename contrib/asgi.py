"""A Thalweg app inside a web application: FastAPI, Starlette, Litestar and whatever else takes a lifespan.

    web = Starlette(routes=[…], lifespan=lifespan(app))

Nothing of a web framework is imported here: a lifespan is a function from the web application to a context manager.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, overload

from thalweg.app import App
from thalweg.errors import ConfigurationError
from thalweg.starting import client_running, worker_running

__all__ = ["lifespan"]

W = TypeVar("W")
S = TypeVar("S")


@overload
def lifespan(
    app: App, *, client: bool = ..., on_failure: Callable[[BaseException], object] | None = ...
) -> Callable[[Any], AbstractAsyncContextManager[None]]: ...
@overload
def lifespan(
    app: App,
    inner: Callable[[W], AbstractAsyncContextManager[S]],
    *,
    client: bool = ...,
    on_failure: Callable[[BaseException], object] | None = ...,
) -> Callable[[W], AbstractAsyncContextManager[S]]: ...
def lifespan(
    app: App,
    inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    *,
    client: bool = False,
    on_failure: Callable[[BaseException], object] | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Run the app for as long as the web application runs, in the web server's event loop.

    inner: the web application's own lifespan; it runs inside, so that it may send and ask from its first line to its
    last, and what it yields is what the framework gets. (What agents need before they start goes into
    `App(lifespan=)`.) client: only send and ask; the agents run in workers of their own.

    The web server starts to serve once the worker runs; what keeps the worker from starting fails the start-up. At
    shutdown the inner lifespan ends first, then the worker drains. A worker that cannot go on while the server runs
    logs why, calls `on_failure` with the exception, and raises it at shutdown; to stop the server at once, pass
    `on_failure=lambda error: signal.raise_signal(signal.SIGTERM)`.

    An app that runs already in this event loop (`app.test()`) is used as it is.
    """

    @asynccontextmanager
    async def around(web: Any) -> AsyncIterator[Any]:
        failed: asyncio.Future[None] | None = None
        async with AsyncExitStack() as stack:
            if app.is_running:
                _check_loop(app)
            elif client:
                await stack.enter_async_context(client_running(app))
            else:
                failed = (await stack.enter_async_context(worker_running(app))).failed
                if on_failure is not None:
                    _tell(failed, on_failure)
            yield None if inner is None else await stack.enter_async_context(inner(web))
        if failed is not None and failed.done():
            failed.result()

    return around


def _check_loop(app: App) -> None:
    if app.running.loop is not asyncio.get_running_loop():
        raise ConfigurationError(f"app {app.id!r} runs already, in another event loop; give each server a process")


def _tell(failed: asyncio.Future[None], on_failure: Callable[[BaseException], object]) -> None:
    def tell(future: asyncio.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            on_failure(error)

    failed.add_done_callback(tell)
