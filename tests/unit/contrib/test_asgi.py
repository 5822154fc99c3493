"""A worker inside real web applications: Starlette in a test client, and behind uvicorn over loopback."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from thalweg import App, BrokerError, OutsideEvent, Stream
from thalweg.contrib.asgi import lifespan
from thalweg.errors import ConfigurationError, UnknownScheme

numbers = itertools.count()


def make_counter(broker: str | None = None) -> SimpleNamespace:
    app = App("counter", broker=broker or f"memory://counter-{next(numbers)}", partitions=2)
    words = app.topic("words", key=str, value=str)
    counts = app.table("counts", key=str, value=int, default=int)

    @app.agent(words)
    async def count(stream: Stream[str]) -> AsyncIterator[int]:
        async for word in stream:
            counts[word] += 1
            yield counts[word]

    async def ask(request: Request) -> JSONResponse:
        word = request.path_params["word"]
        return JSONResponse(await count.ask(word, key=word))

    async def read(request: Request) -> JSONResponse:
        return JSONResponse(counts[request.path_params["word"]])

    async def write(request: Request) -> JSONResponse:
        counts[request.path_params["word"]] = 0
        return JSONResponse(None)

    routes = [
        Route("/{word}", ask, methods=["POST"]),
        Route("/{word}", read),
        Route("/{word}", write, methods=["DELETE"]),
    ]
    return SimpleNamespace(**locals())


def test_routes_ask_agents_and_read_tables() -> None:
    counter = make_counter()
    with TestClient(Starlette(routes=counter.routes, lifespan=lifespan(counter.app))) as client:
        assert [client.post("/ada").json() for _ in range(3)] == [1, 2, 3]
        assert client.get("/ada").json() == 3
        assert client.get("/bob").json() == 0


def test_a_route_that_writes_a_table_is_told_to_cast() -> None:
    counter = make_counter()
    with TestClient(Starlette(routes=counter.routes, lifespan=lifespan(counter.app))) as client:
        client.post("/ada")
        with pytest.raises(OutsideEvent, match=r"table 'counts' .*await agent\.cast"):
            client.delete("/ada")
        assert client.get("/ada").json() == 1


def test_the_app_runs_for_as_long_as_the_inner_lifespan_and_its_state_arrives() -> None:
    counter = make_counter()
    seen: list[Any] = []

    @asynccontextmanager
    async def own(web: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append(await counter.count.ask("first", key="first"))
        yield {"greeting": "hello"}
        seen.append(await counter.count.ask("first", key="first"))

    async def greet(request: Request) -> JSONResponse:
        return JSONResponse(request.state.greeting)

    web = Starlette(routes=[Route("/", greet)], lifespan=lifespan(counter.app, own))
    with TestClient(web) as client:
        assert client.get("/").json() == "hello"
        assert seen == [1]
    assert seen == [1, 2]
    assert not counter.app.is_running


async def started(web: Starlette) -> dict[str, Any]:
    """What the web application answers to the server's `lifespan.startup`."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(UnknownScheme):
        await web({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return dict(sent[0])


async def test_what_keeps_the_worker_from_starting_fails_the_start_up() -> None:
    counter = make_counter("memmory://")
    answer = await started(Starlette(lifespan=lifespan(counter.app)))
    assert answer["type"] == "lifespan.startup.failed"
    assert "memmory" in answer["message"]
    assert not counter.app.is_running


async def test_an_inner_lifespan_that_fails_stops_the_app() -> None:
    counter = make_counter()

    @asynccontextmanager
    async def own(web: Starlette) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    with pytest.raises(LookupError, match="no database"):
        async with lifespan(counter.app, own)(Starlette()):
            pytest.fail("started")
    assert not counter.app.is_running


async def test_shutdown_finishes_the_event_that_is_being_handled() -> None:
    app = App("slow", partitions=1)
    jobs = app.topic("jobs", value=str)
    begun, finished = asyncio.Event(), []

    @app.agent(jobs)
    async def work(stream: Stream[str]) -> None:
        async for job in stream:
            begun.set()
            for _ in range(100):
                await asyncio.sleep(0)
            finished.append(job)

    async with lifespan(app)(Starlette()):
        await jobs.send("print")
        await begun.wait()
        assert finished == []
    assert finished == ["print"]


async def test_a_client_only_sends_and_asks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    web_side, worker_side = make_counter(url), make_counter(url)
    async with lifespan(web_side.app, client=True)(Starlette()):
        await web_side.words.send("ada", key="ada")
        assert web_side.app.running.worker is None
        async with worker_side.app:
            assert await web_side.count.ask("ada", key="ada") == 2


async def test_an_app_under_test_is_used_as_it_is() -> None:
    counter = make_counter()
    web = Starlette(routes=counter.routes, lifespan=lifespan(counter.app))
    async with counter.app.test(), web.router.lifespan_context(web):
        transport = httpx2.ASGITransport(app=web)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.post("/ada")).json() == 1
            assert (await client.get("/ada")).json() == 1
    assert not counter.app.is_running


def test_a_second_server_for_one_app_is_refused() -> None:
    counter = make_counter()
    web = Starlette(lifespan=lifespan(counter.app))
    with TestClient(web), pytest.raises(ConfigurationError, match="another event loop"), TestClient(web):
        pytest.fail("started")


async def test_a_worker_that_cannot_go_on_is_told_at_once_and_raised_at_shutdown() -> None:
    counter = make_counter()
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    running = lifespan(counter.app, on_failure=told.set_result)(Starlette())
    await running.__aenter__()
    counter.app.running.worker.give_up(BrokerError("gone"))
    assert str(await told) == "gone"
    with pytest.raises(BrokerError, match="gone"):
        await running.__aexit__(None, None, None)
    assert not counter.app.is_running


@asynccontextmanager
async def serving(web: Starlette) -> AsyncIterator[str]:
    """The application behind a real server; yields its address."""
    server = uvicorn.Server(uvicorn.Config(web, lifespan="on", ws="none", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def test_behind_a_real_server_over_loopback() -> None:
    counter = make_counter()
    async with (
        serving(Starlette(routes=counter.routes, lifespan=lifespan(counter.app))) as address,
        httpx2.AsyncClient(base_url=address) as client,
    ):
        assert (await client.post("/ada")).json() == 1
        assert (await client.post("/ada")).json() == 2
        assert (await client.get("/ada")).json() == 2
    assert not counter.app.is_running


async def test_a_real_server_does_not_start_without_its_worker() -> None:
    web = Starlette(lifespan=lifespan(make_counter("memmory://").app))
    server = uvicorn.Server(uvicorn.Config(web, lifespan="on", ws="none", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(SystemExit):
        await server.serve(sockets=[listening])
    assert not server.started
