"""A RabbitMQ of a test's own, on another port, with a throw-away folder: killed, stopped and started at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

__all__ = ["RabbitServer"]

_PROGRAMS = Path("/usr/lib/rabbitmq/bin")  # those on PATH are wrappers that change the user


def _free_port() -> int:
    """With those that belong to it: of epmd, of the stream plug-in, of Erlang's distribution."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port > 40000:
            port -= 20000
        try:
            for other in (port, port + 1, port + 2, port + 20000):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", other))
        except OSError:
            continue
        return port


class RabbitServer:
    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self.stream_port = self.port + 1
        self.folder = folder
        self.plugins = "[rabbitmq_stream]."
        self.settings = ""
        self.variables: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def lacking() -> str:
        """What this machine lacks for it."""
        if not (_PROGRAMS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
            return "tests that stop the server start one of their own, and need the package rabbitmq-server"
        return ""

    @property
    def url(self) -> str:
        return self.url_of("guest", "guest")

    def url_of(self, user: str, password: str, rest: str = "") -> str:
        separator = "&" if "?" in rest else "?"
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}{rest}{separator}stream_port={self.stream_port}"

    def start(self) -> None:
        (self.folder / "enabled_plugins").write_text(f"{self.plugins}\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"stream.listeners.tcp.1 = 127.0.0.1:{self.stream_port}\n"
            f"stream.advertised_host = 127.0.0.1\nstream.advertised_port = {self.stream_port}\n"
            "loopback_users = none\n" + self.settings
        )
        if not self._processes:
            self._run("epmd", "-address", "127.0.0.1", "-port", str(self.port + 2))
        self._run(str(_PROGRAMS / "rabbitmq-server"))
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._processes[-1].poll() is None, (self.folder / "output").read_text()[-2000:]
            assert time.monotonic() < deadline, "RabbitMQ does not come up"
            time.sleep(0.05)

    def settle(self) -> None:
        """RabbitMQ keeps its list of quorum queues and streams in memory for a while (3.10: a second): when the server
        is killed, those that are younger have no leader ever again, and what they held is lost. This writes it down.
        """
        self.control("stop_app")
        self.control("start_app")

    def kill(self) -> None:
        """As a power failure does."""
        self.signal(signal.SIGKILL)
        self._processes.pop().wait()

    def signal(self, number: int) -> None:
        os.kill(int((self.folder / "rabbitmq.pid").read_text()), number)

    def close(self) -> None:
        for process in reversed(self._processes):
            if process is self._processes[-1] and len(self._processes) > 1:
                self.signal(signal.SIGKILL)
            process.kill()
            process.wait()
        self._processes.clear()

    def control(self, *command: str) -> None:
        """rabbitmqctl."""
        program = [str(_PROGRAMS / "rabbitmqctl"), "--quiet", *command]
        subprocess.run(program, env=self._environment(), check=True, capture_output=True)

    def _run(self, *command: str) -> None:
        with open(self.folder / "output", "ab") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.settimeout(5)
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.variables,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.port + 2),
            "HOME": str(self.folder),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self.port + 20000),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_NODENAME": f"thalweg-{self.port}@localhost",
            "RABBITMQ_PID_FILE": str(self.folder / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
