"""The plug-in as a third party meets it: a driver of its own, a folder of its own, pytest in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = """
from thalweg.transports.memory import MemoryBroker, MemoryOptions, MemoryTransport

class Forgetful(MemoryTransport):
    'Loses the attempts of what comes back, and knows no locks.'

    @classmethod
    def from_url(cls, url):
        return cls(options=MemoryOptions(lease=30, message_bytes=10_000, locks=False))

    def private(self, clock):
        return Forgetful(MemoryBroker(clock=clock), self.options)

    def again(self):
        return Forgetful(self.broker, self.options)

    async def channel(self, topic, group):
        channel = await super().channel(topic, group)
        get = channel.get

        async def forgetting(limit, timeout):
            deliveries = await get(limit, timeout)
            for delivery in deliveries:
                delivery.attempts = 1
            return deliveries

        channel.get = forgetting
        return channel
"""
URL = "driver:Forgetful://"
FEW = "a_message_is_delivered_as_it_was_put or the_count_of_attempts or what_was_acknowledged or rivals_for_a_lock"


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "driver.py").write_text(DRIVER, encoding="utf-8")
        (path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n", encoding="utf-8")
        (path / "test_own.py").write_text("def test_of_its_own(): pass\n", encoding="utf-8")

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", *arguments],
            cwd=self.path,
            env=environment | {"PYTHONPATH": str(self.path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def certificate(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        done = self.pytest("--thalweg-certificate=out.json", *arguments)
        document = json.loads((self.path / "out.json").read_text(encoding="utf-8"))
        assert document["schema"] == "thalweg-conformance/1", done.stdout
        (certificate,) = document["certificates"]
        return done, certificate


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def outcomes(certificate: dict[str, Any]) -> dict[str, str]:
    return {found["name"]: found["outcome"] for found in certificate["properties"]}


def test_a_certificate_says_what_held_what_did_not_and_what_was_not_tried(folder: Folder) -> None:
    done, certificate = folder.certificate(f"--thalweg-transport={URL}", "-k", FEW, "--thalweg-seed=5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(certificate) == {
        "a_message_is_delivered_as_it_was_put": "passed",
        "the_count_of_attempts_grows_with_each_return": "failed",
        "what_was_acknowledged_to_a_producer_survives_its_death": "passed",
        "what_was_acknowledged_survives_a_restart_of_the_broker": "skipped",
        "rivals_for_a_lock_have_one_winner": "undeclared",
    }
    assert certificate["seed"] == 5
    assert certificate["mode"] == "quick"
    assert certificate["description"] == "memory (in this process)"
    assert certificate["limits"] == {"message_bytes": 10_000, "commit_messages": None, "lease": 0.0, "head_bytes": None}
    assert {"python", "thalweg"} <= set(certificate["versions"])
    verdicts = {name: row["verdict"] for name, row in certificate["profiles"].items()}
    assert verdicts == {"Core": "failed", "Durable": "held, as far as run", "Locks": "not offered"}
    (failed,) = (found for found in certificate["properties"] if found["outcome"] == "failed")
    assert failed["cases"][0]["case"] == "topic"
    assert "[1, 1, 1, 1] == [1, 2, 3, 4]" in failed["cases"][0]["reason"]
    (skipped,) = (found for found in certificate["properties"] if found["outcome"] == "skipped")
    assert "none to restart" in skipped["cases"][0]["reason"]
    assert "test_of_its_own" not in done.stdout
    assert "not offered" in done.stdout


def test_a_waived_failure_fails_nothing_and_stays_visible(folder: Folder) -> None:
    waiver = "the_count_of_attempts_grows_with_each_return: the broker does not count"
    done, certificate = folder.certificate(
        f"--thalweg-transport={URL}", "-k", FEW, f"--thalweg-waive={waiver}", "--thalweg-profile=Core"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(certificate)["the_count_of_attempts_grows_with_each_return"] == "waived"
    assert certificate["profiles"]["Core"]["verdict"] == "held, but for waivers"
    assert set(certificate["profiles"]) == {"Core"}
    assert "waived: the_count_of_attempts_grows_with_each_return[topic]: the broker does not count" in done.stdout


def test_workers_of_xdist_write_one_certificate(folder: Folder) -> None:
    done, certificate = folder.certificate(
        "--thalweg-transport=memory://", "-n", "2", "--thalweg-profile=Ordered,WorkQueue"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: row["verdict"] for name, row in certificate["profiles"].items()} == {
        "Ordered": "held",
        "WorkQueue": "held",
    }
    assert len(certificate["properties"]) == sum(row["passed"] for row in certificate["profiles"].values())
    assert certificate["capabilities"]


def test_with_paths_the_tests_there_run_too(folder: Folder) -> None:
    done = folder.pytest(f"--thalweg-transport={URL}", "test_own.py", "-k", "of_its_own or rivals_for_a_lock")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_own.py::test_of_its_own" in done.stdout
    assert "rivals_for_a_lock_have_one_winner" in done.stdout


def test_a_rig_from_conftest_is_used(folder: Folder) -> None:
    (folder.path / "conftest.py").write_text(
        "from thalweg.contrib.conformance import InProcessRig, Unavailable\n"
        "class Mine(InProcessRig):\n"
        "    async def open_elsewhere(self):\n"
        "        raise Unavailable('not on a Wednesday')\n"
        "def pytest_thalweg_rig(url, config):\n"
        "    return Mine(url)\n",
        encoding="utf-8",
    )
    done, certificate = folder.certificate(f"--thalweg-transport={URL}", "-k", "what_was_acknowledged_to_a_producer")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = certificate["properties"]
    assert [case["reason"] for case in found["cases"]] == ["not on a Wednesday"] * 2


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--thalweg-profile=Cor", "--thalweg-profile=Cor: expected some of Core, Durable"),
        ("--thalweg-mode=slow", "--thalweg-mode=slow: expected some of quick, full"),
        ("--thalweg-waive=nonsense: because", "of an existing property"),
        ("--thalweg-waive=the_last_value_wins", "expected 'property: reason'"),
        ("--thalweg-transport=nonsense", "not a URL"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(folder: Folder, option: str, complaint: str) -> None:
    done = folder.pytest("--thalweg-transport=memory://", option)
    assert done.returncode == 4, done.stdout
    assert complaint in done.stderr


def test_a_run_that_does_not_ask_for_it_imports_nothing_of_thalweg(folder: Folder) -> None:
    (folder.path / "test_own.py").write_text(
        "import sys\ndef test_nothing(): assert 'pytest_thalweg' in sys.modules and 'thalweg' not in sys.modules\n",
        encoding="utf-8",
    )
    done = folder.pytest()
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
