from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg.duration import seconds
from thalweg.errors import ConfigurationError, DecodeError
from thalweg.policy import (
    DEFAULT_POLICY,
    Action,
    DeadLetter,
    Decision,
    Outcomes,
    Policy,
    Reject,
    Retry,
    RetryLater,
    Skip,
)


class HTTPError(Exception):
    pass


def decide(policy: Policy, error: Exception, attempts: int = 1, outcomes: Outcomes | None = None) -> Decision:
    return policy.decide(error, attempts, outcomes or Outcomes(), random.Random(7).random)


def actions(policy: Policy, error: Exception, attempts: int) -> list[Action]:
    return [decide(policy, error, attempt).action for attempt in range(1, attempts + 1)]


def test_attempts_count_the_first_one_and_then_the_dead_letter_follows() -> None:
    retry, dead = Action.RETRY, Action.DEAD_LETTER
    assert actions(Retry(3), ValueError("x"), 4) == [retry, retry, dead, dead]
    assert actions(Retry(1), ValueError("x"), 1) == [dead]
    assert actions(DEFAULT_POLICY, ValueError("x"), 5) == [retry] * 4 + [dead]
    assert actions(Retry(2, then=Skip()), ValueError("x"), 2) == [retry, Action.SKIP]
    assert set(actions(Retry(None), ValueError("x"), 50)) == {retry}


def test_first_policy_whose_on_matches_decides() -> None:
    policy = Retry(5, on=(HTTPError,), then=DeadLetter()) | Skip(on=KeyError) | DeadLetter()
    assert decide(policy, HTTPError()).action is Action.RETRY
    assert decide(policy, KeyError()).action is Action.SKIP
    assert decide(policy, ValueError()).action is Action.DEAD_LETTER
    assert decide(Skip() | Retry(), HTTPError()).action is Action.SKIP


def test_an_error_that_no_policy_names_goes_to_the_dead_letter_within_its_limits() -> None:
    policy = Retry(5, on=HTTPError, then=DeadLetter(max_consecutive=1))
    outcomes = Outcomes()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.DEAD_LETTER
    outcomes.dead_lettered()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.HALT


def test_backoff_grows_by_the_factor_up_to_its_bound() -> None:
    policy = Retry(None, backoff=0.1, factor=2.0, max_backoff=1, jitter=0)
    delays = [decide(policy, ValueError(), attempt).delay for attempt in (1, 2, 3, 4, 5, 6, 5000)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1, 1])


@given(st.integers(1, 10_000), st.floats(0, 1), st.integers())
def test_jitter_shortens_at_most_by_its_share_and_is_a_function_of_the_random_source(
    attempts: int, jitter: float, seed: int
) -> None:
    policy = Retry(None, backoff=timedelta(seconds=1), max_backoff=timedelta(seconds=30), jitter=jitter)
    full = min(2.0 ** min(attempts - 1, 10), 30)
    delays = {policy.decide(ValueError(), attempts, Outcomes(), random.Random(seed).random).delay for _ in range(2)}
    assert len(delays) == 1
    assert full * (1 - jitter) - 1e-9 <= delays.pop() <= full


def test_retry_later_is_honoured_whatever_the_policy_and_the_attempts() -> None:
    for policy in (Skip(), DeadLetter(), Retry(1)):
        decision = decide(policy, RetryLater(timedelta(minutes=2), "quota"), 99)
        assert (decision.action, decision.delay) == (Action.RETRY, 120.0)
        assert "quota" in decision.reason


def test_reject_goes_to_the_dead_letter_whatever_the_policy() -> None:
    for policy in (Skip(), Retry(50), Retry(5, then=Skip())):
        decision = decide(policy, Reject("no such account"))
        assert decision.action is Action.DEAD_LETTER
        assert decision.reason == "Reject: no such account"


def test_undecodable_bytes_are_not_retried() -> None:
    assert decide(Retry(5), DecodeError("expected int")).action is Action.DEAD_LETTER
    assert decide(Retry(5, then=Skip()), DecodeError("expected int")).action is Action.SKIP


def test_too_many_dead_letters_in_a_row_halt_and_a_success_starts_the_count_again() -> None:
    policy, outcomes = DeadLetter(max_consecutive=2), Outcomes()
    for _ in range(2):
        assert decide(policy, ValueError(), 1, outcomes).action is Action.DEAD_LETTER
        outcomes.dead_lettered()
    halt = decide(policy, ValueError("boom"), 1, outcomes)
    assert halt.action is Action.HALT
    assert "max_consecutive" in halt.reason
    assert "boom" in halt.reason
    outcomes.finished()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.DEAD_LETTER


def test_too_large_a_share_of_dead_letters_halts_but_not_before_a_hundred_events() -> None:
    policy, outcomes = DeadLetter(max_ratio=0.1), Outcomes()
    for _ in range(DeadLetter.FEWEST_EVENTS):
        assert decide(policy, ValueError(), 1, outcomes).action is Action.DEAD_LETTER
        outcomes.dead_lettered()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.HALT
    outcomes = Outcomes()
    outcomes.finished(91)
    for _ in range(9):
        outcomes.dead_lettered()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.DEAD_LETTER  # 10 of 101
    outcomes.dead_lettered()
    assert decide(policy, ValueError(), 1, outcomes).action is Action.HALT  # 11 of 102


@given(st.lists(st.booleans(), max_size=3000))
def test_outcomes_look_back_on_at_most_a_window_and_a_half(ends: list[bool]) -> None:
    outcomes = Outcomes()
    for dead in ends:
        if dead:
            outcomes.dead_lettered()
        else:
            outcomes.finished()
    assert min(len(ends), Outcomes.WINDOW // 2) <= outcomes.events <= Outcomes.WINDOW
    recent = ends[len(ends) - outcomes.events :]
    assert outcomes.dead_letters == sum(recent)
    row = len(ends) - max((index + 1 for index, dead in enumerate(ends) if not dead), default=0)
    assert outcomes.consecutive == row


def test_reasons_are_one_short_line_even_of_a_broken_error() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert decide(DeadLetter(), Broken()).reason == "Broken: (its text cannot be shown)"
    reason = decide(DeadLetter(), ValueError("line\n" * 10_000)).reason
    assert len(reason) <= 200
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Retry(0), "Retry(attempts)=0"),
        (lambda: Retry(True), "Retry(attempts)=True"),
        (lambda: Retry(backoff=-1), "Retry(backoff)=-1"),
        (lambda: Retry(max_backoff=float("nan")), "Retry(max_backoff)=nan"),
        (lambda: Retry(factor=0.5), "Retry(factor)=0.5"),
        (lambda: Retry(jitter=1.5), "Retry(jitter)=1.5"),
        (lambda: Retry(on=(ValueError, "KeyError")), "Retry(on): 'KeyError'"),  # type: ignore[arg-type]
        (lambda: Retry(on=BaseException), "Retry(on): <class 'BaseException'>"),  # type: ignore[arg-type]
        (lambda: Retry(then=Retry()), "Retry(then)=Retry("),  # type: ignore[arg-type]
        (lambda: DeadLetter(max_consecutive=0), "DeadLetter(max_consecutive)=0"),
        (lambda: DeadLetter(max_ratio=0), "DeadLetter(max_ratio)=0"),
        (lambda: DeadLetter(max_ratio=1.1), "DeadLetter(max_ratio)=1.1"),
        (lambda: Skip(on=3), "Skip(on): 3"),  # type: ignore[arg-type]
        (lambda: RetryLater(-1), "RetryLater(delay)=-1"),
    ],
)
def test_a_wrong_argument_is_named(build: Any, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert named in str(caught.value)


def test_policies_join_only_with_policies() -> None:
    with pytest.raises(TypeError):
        Retry() | 3  # type: ignore[operator]


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), 10**400, "5", None, True, timedelta(-1)])
def test_what_is_no_duration_is_refused_by_the_setting_s_name(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^ttl="):
        seconds(value, "ttl")


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (2, 2.0), (0.5, 0.5), (timedelta(minutes=1), 60.0)])
def test_durations_are_seconds_or_timedelta(value: Any, expected: float) -> None:
    assert seconds(value, "ttl") == expected
