"""A Kafka of a test's own, killed and started at will; its jars are those that `scripts/brokers` fetched."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
JARS = Path(os.environ.get("KAFKA_JARS", ROOT / ".brokers" / "jars" / "kafka"))

USERS = {"ada": "a secret", "eve": "another secret"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """Listens without encryption, with passwords (PLAIN and SCRAM) and, given a certificate, with TLS.

    One of several has a number, and knows the ports of all controllers, by number.
    """

    def __init__(
        self,
        folder: Path,
        *settings: str,
        certificate: Path | None = None,
        number: int = 1,
        controllers: Mapping[int, int] | None = None,
    ) -> None:
        self.folder, self.certificate = folder, certificate
        self.port, self.password_port, self.tls_port, self.proxied_port, self.proxy_port, controller_port = free_ports(
            6
        )
        controllers = controllers or {number: controller_port}
        copies = min(3, len(controllers))
        users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
        modules = "org.apache.kafka.common.security"
        listeners = [
            f"PLAINTEXT://127.0.0.1:{self.port}",
            f"SASL_PLAINTEXT://127.0.0.1:{self.password_port}",
            *([f"SSL://127.0.0.1:{self.tls_port}"] if certificate else []),
        ]
        self.settings = [
            "process.roles=broker,controller",
            f"node.id={number}",
            f"controller.quorum.voters={','.join(f'{n}@127.0.0.1:{port}' for n, port in controllers.items())}",
            f"listeners={','.join(listeners)},CONTROLLER://127.0.0.1:{controllers[number]}",
            f"advertised.listeners={','.join(listeners)}",
            "controller.listener.names=CONTROLLER",
            "listener.security.protocol.map="
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL",
            "inter.broker.listener.name=PLAINTEXT",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f"listener.name.sasl_plaintext.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required {users};",
            f"listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
            f"listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
            f"log.dirs={folder}/data",
            f"offsets.topic.replication.factor={copies}",
            "offsets.topic.num.partitions=1",
            f"transaction.state.log.replication.factor={copies}",
            f"transaction.state.log.min.isr={max(1, copies - 1)}",
            "transaction.state.log.num.partitions=1",
            "group.initial.rebalance.delay.ms=0",
            "group.min.session.timeout.ms=500",
            "broker.session.timeout.ms=1000",  # so that one that was killed may come back at once
            "broker.heartbeat.interval.ms=300",
            *settings,
        ]
        if certificate:
            self.settings += ["ssl.keystore.type=PEM", f"ssl.keystore.location={certificate}"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.begin()
        self.wait()

    def begin(self, identity: str | None = None) -> None:
        """Start it, and do not wait until it answers."""
        settings = self.folder / "server.properties"
        if not settings.exists():
            settings.write_text("\n".join(self.settings))
            identity = identity or new_identity()
            scram = [
                part
                for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512")
                for name, password in USERS.items()
                for part in ("--add-scram", f"{kind}=[name={name},password={password}]")
            ]
            self._java(
                "kafka.tools.StorageTool", "format", f"--cluster-id={identity}", "-c", str(settings), *scram
            ).wait()
        self.process = self._java("kafka.Kafka", str(settings))

    def wait(self) -> None:
        assert self.process is not None
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.05)

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        fast = ("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                ["java", *fast, "-cp", f"{JARS}/*", *arguments], stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        """It listens before it serves: ask for its ApiVersions (correlation id 7, no client id)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(bytes.fromhex("0000000a 0012 0000 00000007 ffff"))
                return connection.recv(8)[4:] == b"\0\0\0\x07"
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def cluster(folder: Path, count: int = 3) -> list[Server]:
    """As many brokers, not started yet: `begin` each with the same identity, then `wait` for each."""
    controllers = dict(enumerate(free_ports(count), 1))
    servers: list[Server] = []
    for number in controllers:
        place = folder / str(number)
        place.mkdir()
        servers.append(Server(place, number=number, controllers=controllers))
    return servers


def new_identity() -> str:
    """Of a cluster."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def installed() -> bool:
    return shutil.which("java") is not None and JARS.is_dir()


def check_installed(missing: Callable[[str, str], NoReturn]) -> None:
    if not installed():
        missing(
            "kafka", f"tests that stop the broker start one of their own, and need Java and {JARS} (scripts/brokers)"
        )
