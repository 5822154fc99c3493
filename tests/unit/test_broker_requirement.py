"""A missing broker may be skipped on a laptop; where brokers are required it must never look like a success."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest

Missing = Callable[[str, str], NoReturn]


@pytest.mark.parametrize("required", ["", "redis", "nats,redis"])
def test_a_broker_that_is_not_required_is_skipped(
    required: str, broker_missing: Missing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_BROKERS", required)
    with pytest.raises(pytest.skip.Exception, match="kafka is missing: no server"):
        broker_missing("kafka", "no server")


@pytest.mark.parametrize("required", ["all", "kafka", "redis,kafka", "redis kafka"])
def test_a_broker_that_is_required_fails(
    required: str, broker_missing: Missing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_BROKERS", required)
    with pytest.raises(pytest.fail.Exception, match="kafka is missing: no server"):
        broker_missing("kafka", "no server")
