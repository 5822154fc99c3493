"""Certificates as a page: nothing that did not pass may be missing there."""

from __future__ import annotations

import msgspec
from thalweg.contrib.conformance.certificate import Certificate, Outcome, to_json
from thalweg.contrib.conformance.page import page
from thalweg.contrib.conformance.suite import PROPERTIES

NAME = "a_commit_appends_records_and_outputs_and_says_where_the_records_lie"


def certificate(target: str, description: str, *outcomes: Outcome) -> Certificate:
    facts = {"description": description, "versions": {"python": "3.11.7", "thalweg": "0.1", "hiredis": "3.5"}}
    return Certificate(target, "quick", 7, facts=facts, cases={NAME: list(outcomes), "topics_are_separate": []})


def lines(*certificates: Certificate) -> list[str]:
    for one in certificates:
        del one.cases["topics_are_separate"]
    return list(page(msgspec.json.decode(to_json(certificates, PROPERTIES))))


def test_what_passed_is_counted_and_nothing_else_is_said_of_it() -> None:
    found = lines(certificate("redis://h?lease=1&x=2", "Redis 7.0.15, 10.0.0.1:6379", Outcome("", "passed", 1.0)))
    assert "| `redis://h?x=2` | Redis 7.0.15 | hiredis 3.5 | 1 | 1 | - | - | - | - |" in found
    assert "| Fenced | 1 |" in found
    assert found.count("Nothing.") == 3


def test_what_did_not_pass_is_there_with_its_reason() -> None:
    found = lines(
        certificate(
            "a://", "A in /secret/place", Outcome("queue", "failed", 1.0, "it broke"), Outcome("", "passed", 1.0)
        ),
        certificate("b:// (cluster)", "B", Outcome("", "waived", 1.0, "known")),
        certificate("c://", "C", Outcome("", "skipped", 1.0, "no proxy")),
        certificate("d://", "D", Outcome("", "undeclared", 0.1, "fencing")),
    )
    sentence = NAME.replace("_", " ")
    for first in ("- `a://`: it broke:", "- `b://` (cluster): known:", "- `c://`: no proxy:"):
        assert found[found.index(first) + 1].startswith(f"    - {sentence}")
    assert f"    - {sentence} (queue)" in found
    assert "| Fenced | 0, 1 failed | 0, 1 waived | 0, 1 skipped | - |" in found
    assert "secret" not in "\n".join(found)
