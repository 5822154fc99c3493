"""One partition of a group: whatever is lent, finished, retried and taken over, nothing is lost or comes back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg.errors import BrokerError
from thalweg.message import Batch, Message
from thalweg.transports.kafka.line import (
    DUE,
    EXPIRES,
    FINISHED,
    FINISHING,
    LENT,
    MOST_LATER_BYTES,
    MOST_OPEN,
    OVER,
    READ_RECORDS,
    Entry,
    Line,
    settle,
)
from thalweg.transports.kafka.progress import Progress, Run


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    first = draw(st.integers(0, 1 << 50))
    runs: list[Run] = []
    due: dict[int, int] = {}
    at = first
    for length, finished, attempts in draw(
        st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.integers(0, 300)), max_size=40)
    ):
        runs.append((at, at + length, finished, 0 if finished else attempts))
        if attempts == 7 and not finished:
            due[at] = 1_700_000_000_000 + length
        at += length
    return Progress(first, runs, due)


@given(progresses())
def test_what_was_stored_comes_back(progress: Progress) -> None:
    assert Progress.decode(*progress.encode()) == progress


@pytest.mark.parametrize("text", ["", "by another program", "AAAA", "AXic", "\N{SNOWMAN}"])
def test_a_text_that_is_not_ours_says_nothing(text: str) -> None:
    assert Progress.decode(7, text) == Progress(7)


def alternating(count: int, attempts: int, due: bool, chance: random.Random) -> Progress:
    """Every second run is finished, and all lengths differ: the worst there can be."""
    runs: list[Run] = []
    when: dict[int, int] = {}
    at = 1 << 40
    for _ in range(count):
        length = chance.randrange(1, 60)
        runs.append((at, at + 1, False, chance.randrange(1, attempts + 1)))
        runs.append((at + 1, at + 1 + length, True, 0))
        if due:
            when[at] = 1_700_000_000_000 + chance.randrange(10**8)
        at += 1 + length
    return Progress(1 << 40, runs, when)


def test_as_many_gaps_as_there_may_be_fit_and_what_is_finished_is_never_left_out() -> None:
    chance = random.Random(1)
    few = alternating(150, 9, True, chance)
    assert Progress.decode(*few.encode()) == few
    many = alternating(MOST_OPEN + READ_RECORDS, 9, True, chance)
    assert len(many.encode()[1]) <= 4000
    assert Progress.decode(*many.encode()) == Progress(many.first, many.runs)
    long = alternating(MOST_OPEN + READ_RECORDS, 10**6, False, chance)
    assert len(long.encode()[1]) <= 4000
    kept = Progress.decode(*long.encode())
    assert [run[:3] for run in kept.runs] == [run[:3] for run in long.runs]
    assert all(run[3] == 1 for run in kept.runs if not run[2])
    with pytest.raises(BrokerError, match=r"offset\.metadata\.max\.bytes"):
        alternating(10 * MOST_OPEN, 9, True, chance).encode()


class Model:
    """A partition's log, and what its group has done by the books of a plain program."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.log: list[tuple[int, Message]] = []
        self.finished: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.stored: tuple[int, str] | None = None
        self.stored_finished: set[int] = set()
        self.line = Line(None, 0, None, True)
        self.lent: list[Entry] = []

    def write(self, count: int) -> None:
        for _ in range(count):
            position = len(self.log) * self.step + 3
            self.log.append((position, Message(b"%d" % position)))

    def read(self, limit: int) -> None:
        after = self.line.after
        new = [(p, m) for p, m in self.log if after is None or p > after][:limit]
        self.line.add(Batch([m for _, m in new], [p for p, _ in new]))

    def lend(self, limit: int, now: int) -> None:
        for entry in self.line.lend(limit, now, 0.0):
            assert entry.position not in self.finished
            assert entry.position not in {other.position for other in self.lent}
            self.attempts[entry.position] = self.attempts.get(entry.position, 0) + 1
            assert entry.attempts == self.attempts[entry.position]
            self.lent.append(entry)
        self.store()

    def store(self) -> None:
        progress = self.line.progress()
        if progress is not None:
            self.stored = progress.encode()
            self.stored_finished = set(self.finished)

    def take_over(self) -> None:
        """By another member, as after a crash."""
        progress = None if self.stored is None else Progress.decode(*self.stored)
        self.line = Line(None, 0, progress, True)
        self.lent.clear()


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_a_line_against_a_model(chance: random.Random, step: int) -> None:
    model = Model(step)
    now = 1
    for _ in range(chance.randrange(5, 80)):
        now += 1
        action = chance.choice(
            ["write", "read", "lend", "lend", "finish", "finish", "fail", "retry", "end", "take over"]
        )
        entry = chance.choice(model.lent) if model.lent else None
        if action == "write":
            model.write(chance.randrange(6))
        elif action == "read":
            model.read(chance.randrange(1, 8))
        elif action == "lend":
            model.lend(chance.randrange(1, 6), now)
        elif action == "take over":
            model.take_over()
        elif entry is not None:
            model.lent.remove(entry)
            if action == "finish":
                entry.state = FINISHING
                model.finished.add(entry.position)
                model.store()
                model.line.finished(entry)
            elif action == "fail":  # to store it
                entry.state = FINISHING
                settle([entry], finished=False)
                model.lent.append(entry)
            elif action == "retry":
                model.line.take_back(entry, now + chance.randrange(3))
                model.store()
            else:
                model.line.take_back(entry)
            assert entry.state == {"finish": FINISHED, "fail": LENT}.get(action, OVER)
    model.take_over()
    for _ in range(200):
        now += 10
        model.read(1000)
        model.lend(1000, now)
        for entry in model.lent:
            entry.state = FINISHING
            model.finished.add(entry.position)
        model.store()
        for entry in model.lent:
            model.line.finished(entry)
        model.lent.clear()
    assert model.finished == {position for position, _ in model.log}
    assert model.line.on_loan == 0
    if model.log:
        assert model.line.progress() == Progress(model.log[-1][0] + 1)


def test_neighbours_lent_alike_make_one_run_and_what_nobody_got_is_not_stored() -> None:
    line = Line(None, 0, Progress(10), False)
    line.add(Batch([Message(b"")] * 100, range(10, 110)))
    assert line.progress() == Progress(10)
    lent = line.lend(50, 0, 0.0)
    assert line.progress() == Progress(10, [(10, 60, False, 1)])
    for entry in lent[:20]:
        line.finished(entry)
    assert line.progress() == Progress(30, [(30, 60, False, 1)])


def test_a_full_line_reads_no_further_until_something_is_finished() -> None:
    line = Line(None, 0, None, False)
    line.add(Batch([Message(b"")] * MOST_OPEN, range(MOST_OPEN)))
    assert not line.has_room
    (entry,) = line.lend(1, 0, 0.0)
    line.finished(entry)
    assert line.has_room


def test_what_waits_in_memory_is_bounded_in_bytes() -> None:
    line = Line(None, 0, None, True)
    later = Message(b"x" * MOST_LATER_BYTES, b"k", ((DUE, b"100"),))
    line.add(Batch([later], range(1)))
    assert not line.has_room
    (entry,) = line.lend(1, 100, 0.0)
    assert line.has_room
    again = line.take_back(entry, 200)
    assert not line.has_room
    line.lend_again(entry, again)
    assert not line.lend(1, 200, 0.0)
    assert line.has_room


def test_a_message_is_delivered_when_due_and_not_once_it_has_expired() -> None:
    line = Line(None, 0, None, True)
    headers = [((DUE, b"100"),), ((EXPIRES, b"50"), ("mine", b"1")), ((EXPIRES, b"60"),), ((DUE, b"not a number"),)]
    line.add(Batch([Message(b"%d" % n, headers=h) for n, h in enumerate(headers)], range(4)))
    lent = line.lend(10, 49, 0.0)
    assert [(e.record.value, e.record.headers) for e in lent] == [(b"1", (("mine", b"1"),)), (b"2", ()), (b"3", ())]
    again = line.take_back(lent[1])
    assert line.next_due == 100
    assert not line.lend(10, 60, 0.0)
    assert again.state == FINISHED
    assert [e.record.value for e in line.lend(10, 100, 0.0)] == [b"0"]


def test_after_a_gap_the_group_goes_on_with_what_is_kept() -> None:
    line = Line(None, 0, Progress(5, [(5, 8, False, 2)]), False)
    line.skip_to(100)
    line.add(Batch([Message(b"")] * 2, range(100, 102)))
    assert [(e.position, e.attempts) for e in line.lend(10, 0, 0.0)] == [(100, 1), (101, 1)]
    assert line.progress() == Progress(100, [(100, 102, False, 1)])
