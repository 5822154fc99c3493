"""What a property needs of the world around a transport: to open it, here or elsewhere, crash it, let time pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from thalweg.channel import Transport
from thalweg.clock import Clock, VirtualClock
from thalweg.errors import ConfigurationError
from thalweg.registry import load_transport
from thalweg.url import Url

from .link import InProcessLink, Link, Proxy
from .properties import Unavailable
from .puppet import Nursery, Puppet

__all__ = ["Commands", "InProcess", "InProcessRig", "Rig", "rig_for", "with_option"]

LEASE, TIMEOUT = 1.0, 1.0
"""Seconds; a URL without `lease`, and on a spoiled network without `timeout`, is given these, if its driver can."""


class Commands(NamedTuple):
    """Shell commands of the options `--thalweg-restart`, `--thalweg-stop` and `--thalweg-start`."""

    restart: str = ""
    stop: str = ""
    start: str = ""


class Rig:
    """A broker under test, for one property at a time. Override what your broker can do, or does differently.

    lease: seconds after which what a dead or hung member held is another's. Used for locks and members too.
    step: seconds between two looks at what is awaited.
    patience: seconds to wait for what must happen before it counts as missing; costs time in failing properties only.
    counts_survive_restarts: False for a broker that, killed, forgets how often it has just delivered a message.
    locks_outlast_connections: True: it is to be shown that a lock is kept if its holder comes back within the lease.
    """

    lease = 30.0
    patience = 30.0
    counts_survive_restarts = True
    locks_outlast_connections = False
    step = 0.02

    def __init__(self, url: str, commands: Commands | None = None) -> None:
        self.url, self.commands = url, commands or Commands()

    async def prepare(self) -> None:
        """Called before each property. May skip or fail it by pytest's means."""

    async def open(self) -> Transport:
        """One more transport on the same broker, in this process, open."""
        transport = load_transport(self.url)
        await transport.open()
        return transport

    async def open_elsewhere(self) -> Transport:
        """One more transport on the same broker, open, that `crash` and `hang` can strike: in a process of its own."""
        return await Nursery.of(self.url).open()

    async def crash(self, transport: Transport) -> None:
        """Kill the process of a transport from `open_elsewhere`, as kill -9 does."""
        _puppet(transport).crash()

    async def hang(self, transport: Transport) -> None:
        """Stop it, as SIGSTOP does: it holds what it has and answers nothing."""
        _puppet(transport).hang()

    async def resume(self, transport: Transport) -> None:
        """Let it go on after `hang`."""
        _puppet(transport).resume()

    async def open_impatient(self, stuck: float) -> Transport:
        """As `open_elsewhere`; its event loop counts as stuck after so many seconds without a sign of life."""
        url = with_option(self.url, "stuck", f"{stuck:g}")
        if url == self.url:
            raise Unavailable("its driver has no option stuck= (or Rig.open_impatient)")
        return await Nursery.of(url).open()

    async def block(self, transport: Transport, seconds: float, computing: bool) -> None:
        """Keep the event loop of its process from turning; returns when it turns again.

        computing: by a computation, else by a call that does not come back.
        """
        await _puppet(transport).block(seconds, computing)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def own_broker(self) -> None:
        """Called before a property stops the broker: from now on `open` reaches one that may be stopped.

        Raises `Unavailable` where there is none. May start one for the purpose.
        """
        if not (self.commands.restart or (self.commands.stop and self.commands.start)):
            raise Unavailable("no way to restart the broker was given (--thalweg-restart, or Rig.own_broker)")

    async def restart_broker(self) -> None:
        """Kill the broker and start it again on the same data. May return before it answers."""
        if self.commands.restart:
            await run(self.commands.restart)
        else:
            await self.stop_broker()
            await self.start_broker()

    async def stop_broker(self) -> None:
        """Kill the broker."""
        if not self.commands.stop or not self.commands.start:
            raise Unavailable("no way to stop the broker was given (--thalweg-stop and --thalweg-start)")
        await run(self.commands.stop)

    async def start_broker(self) -> None:
        """Start what `stop_broker` has stopped."""
        await run(self.commands.start)

    async def open_linked(self) -> tuple[Transport, Link]:
        """One more transport, whose network can be spoiled: by default, through a proxy on this machine."""
        host, port = self.address()
        proxy = Proxy(host, port)
        url = with_option(self.through(*await proxy.start(self.proxy_port)), "timeout", f"{TIMEOUT:g}")
        transport = load_transport(url)
        try:
            await transport.open()
        except BaseException:
            await proxy.close()
            raise
        return transport, proxy

    proxy_port = 0
    """Where the proxy listens; 0 for any free port. Brokers that tell clients their address may need it to be known."""

    def address(self) -> tuple[str, int]:
        """Host and port of the broker, for the proxy. By default those of the URL, which must name one of each."""
        hosts = Url(self.url).hosts.split(",")
        name, colon, port = hosts[0].rpartition(":")
        if len(hosts) != 1 or not colon or not port.isdigit():
            raise Unavailable("no proxy fits before this broker: its URL does not name one host:port (or Rig.address)")
        return name.strip("[]"), int(port)

    def through(self, host: str, port: int) -> str:
        """The URL by which a client reaches the broker by way of a proxy at this address."""
        return self.url.replace(Url(self.url).hosts, f"{host}:{port}", 1)

    async def raw_rate(self, messages: int, size: int) -> float:
        """Messages per second that the bare client puts and gets, for the stress property of throughput."""
        raise Unavailable("this rig brings no bare client to compare with (Rig.raw_rate, Rig.share)")

    share = 0.3
    """The part of `raw_rate` that the transport claims to reach."""

    async def clean(self, names: Sequence[str]) -> None:
        """Called after each property with the names it used, of topics, groups and locks; may delete them."""

    async def close(self) -> None:
        """Called after each property, last."""


@runtime_checkable
class InProcess(Protocol):
    """A transport whose broker lives in this process: its crash is a call, and its time is a clock it was given."""

    def private(self, clock: Clock) -> Transport:
        """A transport on a new broker of its own."""
        ...

    def again(self) -> Transport:
        """Another transport on the same broker."""
        ...

    def kill(self) -> None: ...
    def cut(self) -> None: ...
    def heal(self) -> None: ...


class InProcessRig(Rig):
    """A new broker for each property, and a clock that moves only when a property lets time pass."""

    patience = 5.0
    locks_outlast_connections = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lease = float(Url(url).query.get("lease", self.lease))
        self.clock = VirtualClock(1_577_836_800.0)
        loaded = load_transport(url)
        if not isinstance(loaded, InProcess):
            raise ConfigurationError(f"{Url(url)}: its transport lacks what InProcess asks for")
        self._first = loaded.private(self.clock)
        self._opened = 0

    @property
    def step(self) -> float:  # type: ignore[override]
        """A lease takes so many steps that whoever works is never long without one, and few enough to wait for it."""
        return self.lease / 60

    async def open(self) -> Transport:
        first = self._first
        assert isinstance(first, InProcess)
        transport = first if self._opened == 0 else first.again()
        self._opened += 1
        await transport.open()
        return transport

    async def open_elsewhere(self) -> Transport:
        return await self.open()

    async def open_linked(self) -> tuple[Transport, Link]:
        transport = await self.open()
        return transport, InProcessLink(_in_process(transport))

    async def own_broker(self) -> None:
        raise Unavailable("the broker is in this process: there is none to restart")

    async def crash(self, transport: Transport) -> None:
        _in_process(transport).kill()

    async def hang(self, transport: Transport) -> None:
        _in_process(transport).cut()

    async def resume(self, transport: Transport) -> None:
        _in_process(transport).heal()

    async def open_impatient(self, stuck: float) -> Transport:
        raise Unavailable("the event loop of a broker in this process is everybody's")

    async def block(self, transport: Transport, seconds: float, computing: bool) -> None:
        raise Unavailable("the event loop of a broker in this process is everybody's")

    async def pass_time(self, seconds: float) -> None:
        """Stops at each timer on the way, so that what it wakes sees its own time."""
        end = self.clock.now() + seconds
        await self._settle()
        while (due := self.clock.next()) is not None and due <= end:
            self.clock.move(due)
            await self._settle()
        self.clock.move(end)
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


async def run(command: str) -> None:
    """Raises `RuntimeError` with what the command said if it fails."""
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode(errors="replace").strip()
    if process.returncode:
        raise RuntimeError(f"{command!r} failed with exit code {process.returncode}: {said}")


def rig_for(url: str, commands: Commands | None = None) -> Rig:
    """The rig for a URL that nobody has made one for."""
    leased = with_option(url, "lease", str(LEASE))
    rig = InProcessRig(leased) if isinstance(load_transport(leased), InProcess) else Rig(leased, commands)
    named = Url(leased).query.get("lease")
    if named is not None:
        rig.lease = float(named)
    return rig


def with_option(url: str, name: str, value: str) -> str:
    """The URL with this option, unless it names it already or its driver does not know it."""
    if name in Url(url).query:
        return url
    separator = "&" if "?" in url else "?" if "://" in url else "://?"
    changed = f"{url}{separator}{name}={value}"
    try:
        load_transport(changed)
    except ConfigurationError:
        return url
    return changed


def _puppet(transport: Transport) -> Puppet:
    if not isinstance(transport, Puppet):
        raise TypeError("only a transport from open_elsewhere can be crashed, stopped or blocked")
    return transport


def _in_process(transport: Transport) -> InProcess:
    assert isinstance(transport, InProcess)
    return transport
