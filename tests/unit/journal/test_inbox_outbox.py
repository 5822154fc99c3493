"""Outbox and inbox together: producers that fail in every way the design speaks of, one destination log, one consumer.

One checker judges what the consumer handled: nothing lost, nothing twice, nothing out of order. It is itself put to the
test with two rules that are known to be wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg.errors import DecodeError
from thalweg.journal import inbox as inbox_module
from thalweg.journal.inbox import FORGOTTEN, PLAIN, Accepted, Inbox
from thalweg.journal.origin import HEADER, HEADER_BYTES, Origin, OutputId, destination_of, origin_of
from thalweg.journal.outbox import WINDOW, Outbox, OutboxRow, Output
from thalweg.message import Message, Position

TOPIC, PARTITION = "orders", 3
JOURNALS = [bytes([number]) * 16 for number in range(8)]


# --- the world: what the parts may meet ---


class Producer:
    """A task with its journal, its owner, and the owners it had before, who do not know that they are no more."""

    def __init__(self, name: int, world: World) -> None:
        self.name, self.world = name, world
        self.journal: list[Output] = []
        self.row = OutboxRow()  # as the newest commit holds it: behind what is really confirmed
        self.epoch = 1
        self.numbers = count()
        self.owner = self.open()
        self.zombies: list[Outbox] = []

    def open(self) -> Outbox:
        return Outbox(JOURNALS[self.name], TOPIC, PARTITION, self.epoch, self.row, self.journal)

    def value(self) -> bytes:
        return b"%d:%d" % (self.name, next(self.numbers))

    def commit(self, outputs: int) -> None:
        for _ in range(outputs):
            self.journal.append(self.owner.add(Message(self.value())))
        self.row = self.owner.row
        self.owner.committed(outputs)

    def commit_directly(self, outputs: int) -> None:
        """The journal record and the outputs in one atomic step."""
        for _ in range(outputs):
            message = Message(self.value())
            (written,) = self.owner.direct([message])
            self.world.log.append(written)
            row = self.owner.row
            self.journal.append(Output(row.last, self.journal[-1].id if self.journal else (0, 0), message))
        self.row = self.owner.row

    def pump(self, outbox: Outbox) -> None:
        """Send what may be sent; each message is refused, stored, stored unacknowledged, or delayed in the network."""
        acked, failed = 0, False
        for message in outbox.to_send():
            fate = 1.0 if self.world.calm else self.world.random.random()
            if fate >= 0.2:
                (self.world.delayed if 0.3 <= fate < 0.4 else self.world.log).append(message)
            if fate < 0.4:
                failed = True
            elif not failed:
                acked += 1
        if failed:
            outbox.confirmed(acked)
            outbox.failed()
        else:
            outbox.confirmed(acked)

    def take_over(self) -> None:
        self.zombies.append(self.owner)
        self.epoch += self.world.random.randint(1, 5)
        self.owner = self.open()

    def lose_suffix_of_the_journal(self) -> None:
        """The broker loses the newest commits, of which nothing was confirmed; their outputs may be under way."""
        lost = self.world.random.randint(0, 3)
        while lost and self.journal and self.journal[-1].id > self.row.confirmed:
            self.world.disowned.add(self.journal.pop().message.value)
            lost -= 1
        last = self.journal[-1].id if self.journal else (0, 0)
        self.row = OutboxRow(last, self.row.confirmed)
        self.zombies.append(self.owner)
        self.epoch += 1
        self.owner = self.open()


class World:
    def __init__(self, seed: int, producers: int = 1, **faults: bool) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.log: list[Message] = []
        self.delayed: list[Message] = []
        self.disowned: set[bytes | None] = set()  # values that nobody can be asked for any more
        self.producers = [Producer(name, self) for name in range(producers)]
        self.plain = 0
        self.calm = False

    def on(self, fault: str) -> bool:
        return self.faults.get(fault, False)

    def run(self, steps: int = 150) -> None:
        for step in range(steps):
            self.step(self.random.choice(self.producers))
            if self.on("destination_loss") and step == steps // 2:
                self.random.choice([self.lose_one_from_the_destination, self.lose_suffix_of_the_destination])()
        self.settle()

    def step(self, producer: Producer) -> None:
        fate = self.random.random()
        if fate < 0.3:
            direct = self.on("direct") and producer.owner.clear
            (producer.commit_directly if direct else producer.commit)(self.random.randint(1, 4))
        elif fate < 0.7:
            producer.pump(producer.owner)
        elif fate < 0.78 and producer.zombies:
            producer.pump(self.random.choice(producer.zombies))
        elif fate < 0.88 and self.delayed:
            self.log.append(self.delayed.pop(self.random.randrange(len(self.delayed))))
        elif fate < 0.93:
            producer.take_over()
            if self.on("journal_loss") and self.random.random() < 0.5:
                producer.lose_suffix_of_the_journal()
        elif self.on("plain"):
            self.log.append(Message(b"plain:%d" % self.plain))
            self.plain += 1

    def lose_suffix_of_the_destination(self) -> None:
        """The broker loses the newest records of the destination, confirmed or not."""
        kept = self.log[: -self.random.randint(1, 10)]
        left = {message.value for message in kept}
        self.disowned |= {
            output.message.value
            for producer in self.producers
            for output in producer.journal
            if output.id <= producer.owner.row.confirmed and output.message.value not in left
        }
        self.disowned |= {message.value for message in self.log if not message.headers and message.value not in left}
        self.log = kept

    def lose_one_from_the_destination(self) -> None:
        """The broker loses an output after it has confirmed it, every copy of it."""
        confirmed = [
            output.message.value
            for producer in self.producers
            for output in producer.journal
            if output.id <= producer.row.confirmed
        ]
        if confirmed:
            lost = self.random.choice(confirmed)
            self.disowned.add(lost)
            self.log = [message for message in self.log if message.value != lost]
            self.delayed = [message for message in self.delayed if message.value != lost]

    def settle(self) -> None:
        """The producers get everything through in the end, sometimes in calm weather; what was delayed lands last."""
        self.calm = self.random.random() < 0.5
        for producer in self.producers:
            while not producer.owner.clear:
                producer.pump(producer.owner)
        self.random.shuffle(self.delayed)
        self.log += self.delayed
        self.delayed = []


def positions(log: list[Message], chance: random.Random) -> list[tuple[int, Message]]:
    """Ordered, not dense."""
    position = 0
    placed = []
    for message in log:
        position += chance.randint(1, 3)
        placed.append((position, message))
    return placed


NewInbox = Callable[[int | None, dict[bytes, OutputId]], Inbox]


def plain_inbox(start: int | None, rows: dict[bytes, OutputId]) -> Inbox:
    return Inbox(TOPIC, PARTITION, start, rows)


def consume(log: list[tuple[int, Message]], chance: random.Random, new: NewInbox, crashes: bool) -> list[Accepted]:
    """Handle the log with commits and crashes in between: a crash takes back all that was handled since the commit."""
    handled: list[Accepted] = []
    rows: dict[bytes, OutputId] = {}
    resume: int | None = log[0][0] - 1 if log else None
    committed = 0
    lives = 10 if crashes else 1
    while True:
        inbox = new(resume, dict(rows))
        del handled[committed:]
        unfinished: list[Accepted] = []
        for position, message in log:
            if resume is not None and position <= resume:
                continue
            unfinished += inbox.receive(position, message)
            fate = chance.random()
            if fate < 0.5:
                done = chance.randint(0, len(unfinished))
                handled += unfinished[:done]
                del unfinished[:done]
                inbox.finished(done)
            if fate < 0.2:
                for key, value in inbox.export().items():
                    if value is None:
                        del rows[key]
                    else:
                        rows[key] = value
                resume, committed = inbox.resume, len(handled)
                assert inbox.oldest_parked is None or resume is None or resume < inbox.oldest_parked
            if lives > 1 and fate > 0.98:
                lives -= 1
                break
        else:
            return handled + unfinished


def judge(world: World, log: list[Message], start: int, handled: list[Accepted]) -> dict[str, int]:
    """How many values were lost, handled twice, and handled out of order."""
    assert not any(record.refused or record.warning for record in handled)
    values = [record.record.value for record in handled]
    before = {message.value for message in log[:start]}
    lost = twice = disordered = 0
    expected = [[output.message.value for output in producer.journal] for producer in world.producers] + [
        [message.value for message in log if not message.headers]
    ]
    for wanted in expected:
        place = {value: index for index, value in enumerate(wanted)}
        seen = [value for value in values if value in place]
        needed = [value for value in wanted if value not in before and value not in world.disowned]
        lost += len(set(needed) - set(seen))
        twice += len(seen) - len(set(seen))
        order = [place[value] for value in seen]
        disordered += order != sorted(order)
    return {"lost": lost, "twice": twice, "disordered": disordered}


def late_start(world: World) -> int:
    """Anywhere, but often in the last burst of a producer, where no later output comes to help."""
    newest = world.producers[0].journal[-1:]
    places = [index for index, message in enumerate(world.log) if newest and message.value == newest[0].message.value]
    last_burst = max(0, min(places, default=0) - world.random.randint(0, 4))
    return world.random.choice([world.random.randint(0, len(world.log)), last_burst])


def play(seed: int, faults: Mapping[str, bool], new: NewInbox = plain_inbox) -> dict[str, int]:
    world = World(seed, producers=3 if faults.get("several") else 1, **faults)
    world.run()
    start = late_start(world) if faults.get("late") else 0
    placed = positions(world.log, world.random)
    handled = consume(placed[start:], world.random, new, crashes=faults.get("crashes", False))
    return judge(world, world.log, start, handled)


SOUND = {"lost": 0, "twice": 0, "disordered": 0}
FAULTS = ["late", "destination_loss", "direct", "several", "plain", "crashes", "journal_loss"]


MIXES: list[list[str]] = [
    [],
    ["late"],
    ["destination_loss"],
    ["direct"],
    ["crashes"],
    ["journal_loss"],
    ["late", "destination_loss", "direct"],
    ["several", "plain", "crashes"],
    FAULTS,
]


@pytest.mark.parametrize(
    "faults",
    MIXES,
    ids=lambda faults: "+".join(faults) or "takeovers, zombies and lost answers only",
)
def test_nothing_is_lost_doubled_or_disordered(faults: list[str]) -> None:
    for seed in range(60):
        assert play(seed, dict.fromkeys(faults, True)) == SOUND, f"seed {seed}"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.fixed_dictionaries({fault: st.booleans() for fault in FAULTS}))
def test_nothing_is_lost_doubled_or_disordered_under_any_mix_of_faults(seed: int, faults: dict[str, bool]) -> None:
    assert play(seed, faults) == SOUND


# --- rules that are known to be wrong must be caught by the same checker ---


class BareWatermark(Inbox):
    """Takes whatever is above the watermark: what a pipelined send has overtaken is lost."""

    def _admit(
        self, producer: inbox_module._Producer, origin: Origin, before: Position | None, record: Accepted
    ) -> list[Accepted]:
        if origin.id <= producer.watermark:
            return []
        producer.watermark = origin.id
        return self._accept(before, record)


class PrevAlone(Inbox):
    """Waits for the output before, floor or not: a consumer that starts in the middle waits for ever."""

    def _settle(self, producer: inbox_module._Producer, floor: OutputId) -> list[Accepted]:
        return []


class NoIds(Inbox):
    """Takes every copy."""

    def _admit(
        self, producer: inbox_module._Producer, origin: Origin, before: Position | None, record: Accepted
    ) -> list[Accepted]:
        return self._accept(before, record)


class FloorWithoutRelease(Inbox):
    """Raises the watermark to the floor and forgets that something was parked below it."""

    def _settle(self, producer: inbox_module._Producer, floor: OutputId) -> list[Accepted]:
        if floor > producer.watermark:
            producer.watermark = floor
            return self._release(producer)
        return []


class CommitsPastTheParked(Inbox):
    """Commits the position read, whatever is parked or unfinished before it."""

    @property
    def resume(self) -> Position | None:
        return self._read

    @property
    def oldest_parked(self) -> Position | None:
        return None


class ExportsTheUnfinished(Inbox):
    """Exports the watermarks as they are, not as of the events that have finished."""

    def export(self) -> dict[bytes, OutputId | None]:
        changed = super().export()
        return changed | {journal: producer.watermark for journal, producer in self._producers.items()}


class ForgetsPlainPositions(Inbox):
    """Handles records without an origin again whenever a parked record keeps the position back."""

    def export(self) -> dict[bytes, OutputId | None]:
        return {key: value for key, value in super().export().items() if key != PLAIN}


def broken(rule: type[Inbox]) -> NewInbox:
    return lambda start, rows: rule(TOPIC, PARTITION, start, rows)


def harm(new: NewInbox, runs: int, **faults: bool) -> dict[str, int]:
    total = dict(SOUND)
    for seed in range(runs):
        for kind, number in play(seed, faults, new).items():
            total[kind] += number
    return total


@pytest.mark.parametrize(
    ("rule", "faults", "kind"),
    [
        (BareWatermark, [], "lost"),
        (PrevAlone, ["late"], "lost"),
        (PrevAlone, ["destination_loss"], "lost"),
        (NoIds, [], "twice"),
        (NoIds, [], "disordered"),
        (FloorWithoutRelease, ["destination_loss"], "lost"),
        (CommitsPastTheParked, ["crashes"], "lost"),
        (ExportsTheUnfinished, ["crashes"], "lost"),
        (ForgetsPlainPositions, ["crashes", "plain"], "twice"),
    ],
)
def test_the_checker_catches_broken_rules_of_the_consumer(rule: type[Inbox], faults: list[str], kind: str) -> None:
    assert harm(broken(rule), 40, **dict.fromkeys(faults, True))[kind] > 0


def test_the_checker_catches_a_last_output_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait a consumer that starts in the middle of the last burst sets its end aside for ever."""

    def all_at_once(outbox: Outbox) -> list[Message]:
        first, outbox._sent = outbox._sent, outbox._committed
        return [
            outbox._addressed(output.message, output.id, output.prev, outbox._confirmed)
            for output in list(outbox._outputs)[first : outbox._sent]
        ]

    assert harm(plain_inbox, 40, late=True) == SOUND
    monkeypatch.setattr(Outbox, "to_send", all_at_once)
    assert harm(plain_inbox, 40) == SOUND
    assert harm(plain_inbox, 40, late=True)["lost"] > 0


def test_the_checker_catches_resending_under_new_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def renumbered(outbox: Outbox) -> None:
        outbox._sent = 0
        outputs: list[Output] = list(outbox._outputs)
        for index, output in enumerate(outputs):
            prev, outbox._last = outbox._last, (outbox._epoch, outbox._last[1] + 1)
            outbox._outputs[index] = msgspec.structs.replace(output, id=outbox._last, prev=prev)

    monkeypatch.setattr(Outbox, "failed", renumbered)
    assert harm(plain_inbox, 40)["twice"] > 0


# --- the outbox by itself ---


def outbox(epoch: int = 5, row: OutboxRow | None = None, outputs: list[Output] | None = None) -> Outbox:
    return Outbox(JOURNALS[0], TOPIC, PARTITION, epoch, row, outputs or [])


def origins(messages: list[Message]) -> list[Origin]:
    found = [origin_of(message.headers, destination_of(TOPIC, PARTITION)) for message in messages]
    return [origin for origin in found if origin is not None]


def add(box: Outbox, number: int) -> list[Output]:
    return [box.add(Message(b"%d" % index)) for index in range(number)]


def test_nothing_leaves_before_its_commit_counts() -> None:
    box = outbox()
    add(box, 3)
    assert box.to_send() == []
    assert not box.unconfirmed
    box.committed(2)
    assert [message.value for message in box.to_send()] == [b"0"]
    assert [output.message.value for output in box.unconfirmed] == [b"0", b"1"]


def test_ids_are_dense_and_each_names_the_one_before() -> None:
    outputs = add(outbox(), 3)
    assert [(output.id, output.prev) for output in outputs] == [((5, 1), (0, 0)), ((5, 2), (5, 1)), ((5, 3), (5, 2))]


def test_last_output_waits_until_all_before_it_are_confirmed_and_then_says_so() -> None:
    box = outbox()
    outputs = add(box, 3)
    box.committed(3)
    first = box.to_send()
    assert [message.value for message in first] == [b"0", b"1"]
    assert box.to_send() == []
    box.confirmed(1)
    assert box.to_send() == []
    box.confirmed(1)
    (last,) = origins(box.to_send())
    assert last.floor == last.prev == outputs[1].id
    box.confirmed(1)
    assert box.clear
    assert box.row == OutboxRow(outputs[2].id, outputs[2].id)


def test_a_single_output_leaves_at_once() -> None:
    box = outbox()
    add(box, 1)
    box.committed(1)
    assert len(box.to_send()) == 1


def test_after_a_failure_everything_unconfirmed_leaves_again_under_its_own_id() -> None:
    box = outbox()
    add(box, 5)
    box.committed(5)
    sent = origins(box.to_send())
    box.confirmed(1)
    box.failed()
    again = origins(box.to_send())
    assert [origin.id for origin in again] == [origin.id for origin in sent[1:]]
    assert {origin.floor for origin in again} == {sent[0].id}


def test_at_most_a_window_is_under_way_and_no_floor_is_further_behind() -> None:
    box = outbox()
    add(box, 3 * WINDOW)
    box.committed(3 * WINDOW)
    under_way = 0
    while not box.clear:
        sent = box.to_send()
        under_way += len(sent)
        assert under_way <= WINDOW
        assert all(origin.id[1] - origin.floor[1] <= WINDOW for origin in origins(sent))
        done = max(1, under_way // 2)
        box.confirmed(done)
        under_way -= done


def test_a_parked_destination_is_tried_with_one_output_and_keeps_all() -> None:
    box = outbox()
    add(box, 3)
    box.committed(3)
    sent = box.to_send()
    box.failed()
    box.parked = "no rights"
    add(box, 1)
    box.committed(1)
    assert box.row.parked == "no rights"
    tried = box.to_send()
    assert origins(tried) == origins(sent)[:1]
    assert box.to_send() == []
    box.confirmed(1)
    box.parked = ""
    assert box.row.parked == ""
    again = box.to_send()
    assert [message.value for message in again] == [b"1", b"2"]
    assert [one.id for one in origins(again)][:1] == [origins(sent)[1].id]


def test_direct_outputs_need_a_clear_outbox_and_claim_nothing_but_what_is_ahead_of_them() -> None:
    box = outbox()
    written = origins(box.direct([Message(b"a"), Message(b"b")]))
    assert all(origin.floor == origin.prev for origin in written)
    assert box.clear
    add(box, 1)
    assert not box.clear
    with pytest.raises(ValueError, match="ahead"):
        box.direct([Message(b"c")])


def test_a_new_owner_goes_on_with_what_the_journal_does_not_know_to_be_confirmed() -> None:
    box = outbox()
    outputs = add(box, 4)
    box.committed(4)
    box.to_send()
    box.confirmed(2)
    heir = outbox(9, box.row, outputs)
    assert [output.id for output in heir.unconfirmed] == [output.id for output in outputs[2:]]
    assert heir.add(Message(b"new")).id == (9, 5)
    with pytest.raises(ValueError, match="epoch 5 is not above 5"):
        outbox(5, box.row, outputs)


@pytest.mark.parametrize("report", [lambda box: box.confirmed(2), lambda box: box.committed(1)])
def test_reports_beyond_what_was_asked_are_errors(report: Callable[[Outbox], None]) -> None:
    box = outbox()
    add(box, 2)
    box.committed(2)
    box.to_send()
    with pytest.raises(ValueError, match="but"):
        report(box)


def test_the_users_headers_stay_in_front() -> None:
    box = outbox()
    box.add(Message(b"v", b"k", (("trace", b"1"),), 7))
    box.committed(1)
    (sent,) = box.to_send()
    assert (sent.value, sent.key, sent.headers[0], sent.timestamp) == (b"v", b"k", ("trace", b"1"), 7)
    assert sent.size == Message(b"v", b"k", (("trace", b"1"),)).size + HEADER_BYTES


# --- the header ---

IDS = st.integers(1, (1 << 32) - 1)


@given(st.binary(min_size=16, max_size=16), IDS, IDS, st.integers(0, 1000), st.integers(0, 1000))
def test_headers_come_back_as_they_were(journal: bytes, epoch: int, seq: int, older: int, behind: int) -> None:
    prev = (max(0, epoch - older), seq - 1)
    floor = (max(0, prev[0] - older), max(0, seq - 1 - behind))
    origin = Origin(journal, (epoch, seq), prev, floor)
    name, value = origin.header(77)
    assert len(name) + len(value) == HEADER_BYTES
    assert origin_of((("a", b"b"), (name, value)), 77) == origin


def damaged(value: bytes) -> list[bytes]:
    return [b"", value[:-1], value + b"x", bytes(len(value)), b"\xff" * len(value), b"\x02" + value[1:]]


def test_a_damaged_header_makes_the_record_a_foreign_one_with_a_warning() -> None:
    box = Inbox(TOPIC, PARTITION)
    _, value = Origin(JOURNALS[0], (5, 2), (5, 1), (5, 1)).header(destination_of(TOPIC, PARTITION))
    for position, data in enumerate(damaged(value)):
        (accepted,) = box.receive(position, Message(b"v", headers=((HEADER, data),)))
        assert accepted.warning is not None
        assert HEADER in accepted.warning
        assert accepted.refused is None
    (twice,) = box.receive(100, Message(b"v", headers=((HEADER, value), (HEADER, value))))
    assert twice.warning is not None
    assert "twice" in twice.warning


@given(st.binary(max_size=80) | st.binary(min_size=57, max_size=57).map(lambda data: b"\x01" + data[1:]))
def test_no_header_whatever_raises_anything_but_a_decode_error(data: bytes) -> None:
    try:
        origin_of(((HEADER, data),), 77)
    except DecodeError:
        pass
    (accepted,) = Inbox(TOPIC, PARTITION).receive(1, Message(b"v", headers=((HEADER, data),)))
    assert accepted.position == 1


@pytest.mark.parametrize(("topic", "partition"), [(TOPIC, PARTITION + 1), ("other", PARTITION)])
def test_a_record_copied_from_elsewhere_is_foreign_here(topic: str, partition: int) -> None:
    box = Outbox(JOURNALS[0], topic, partition, 5)
    box.add(Message(b"v"))
    box.committed(1)
    (accepted,) = Inbox(TOPIC, PARTITION).receive(1, box.to_send()[0])
    assert accepted.warning is not None
    assert "another topic or partition" in accepted.warning


# --- the inbox by itself ---


def record(seq: int, floor: int = 0, journal: int = 0, epoch: int = 5) -> Message:
    id, prev, below = ((epoch, number) if number else (0, 0) for number in (seq, seq - 1, floor))
    origin = Origin(JOURNALS[journal], id, prev, below)
    return Message(b"%d" % seq, headers=(origin.header(destination_of(TOPIC, PARTITION)),))


def values(accepted: list[Accepted]) -> list[int]:
    return [int(one.record.value or b"-1") for one in accepted]


def test_an_overtaking_record_is_parked_and_released_in_order() -> None:
    box = Inbox(TOPIC, PARTITION)
    assert values(box.receive(10, record(1))) == [1]
    assert values(box.receive(11, record(3))) == []
    assert values(box.receive(12, record(4))) == []
    assert box.oldest_parked == 11
    assert values(box.receive(13, record(2))) == [2, 3, 4]
    assert box.oldest_parked is None
    assert values(box.receive(14, record(3))) == []


def test_a_floor_releases_what_waits_below_it_in_order() -> None:
    box = Inbox(TOPIC, PARTITION)
    assert values(box.receive(1, record(8, floor=5)) + box.receive(2, record(7, floor=5))) == []
    assert values(box.receive(3, record(11, floor=9))) == [7, 8]
    assert values(box.receive(4, record(9, floor=5))) == [], "at or below a floor already told: a copy"
    assert values(box.receive(5, record(10, floor=5))) == [10, 11]


def test_an_output_whose_commit_was_lost_with_the_journal_never_takes_the_watermark_back() -> None:
    box = Inbox(TOPIC, PARTITION)
    box.receive(1, record(6, floor=5))
    orphan, heir = record(8, floor=5), Origin(JOURNALS[0], (9, 7), (5, 6), (5, 6))
    assert values(box.receive(2, orphan)) == []
    header = heir.header(destination_of(TOPIC, PARTITION))
    assert values(box.receive(3, Message(b"7", headers=(header,)))) == [7]
    assert box.oldest_parked is None
    assert box.receive(4, Message(b"7", headers=(header,))) == []


def test_the_committed_position_stays_before_what_is_parked_or_unfinished() -> None:
    box = Inbox(TOPIC, PARTITION, start=4)
    assert box.resume == 4
    box.receive(10, record(2))  # parked
    box.receive(12, record(1))
    assert box.resume == 4
    box.finished(1)
    assert box.resume == 4
    assert box.export() == {JOURNALS[0]: (5, 1)}
    box.finished(1)
    assert box.resume == 12
    assert box.export() == {JOURNALS[0]: (5, 2)}
    assert box.export() == {}


def test_plain_records_finished_after_a_parked_one_are_not_handled_again_after_a_restart() -> None:
    box = Inbox(TOPIC, PARTITION)
    box.receive(1, record(2))
    (plain,) = box.receive(2, Message(b"7"))
    assert plain.journal == PLAIN
    box.finished(1)
    rows = {key: value for key, value in box.export().items() if value is not None}
    assert (box.resume, rows) == (None, {PLAIN: (0, 2)})
    again = Inbox(TOPIC, PARTITION, box.resume, rows)
    assert values(again.receive(1, record(2))) == []
    assert values(again.receive(2, Message(b"7"))) == []
    assert values(again.receive(3, record(1))) == [1, 2]
    assert values(again.receive(4, Message(b"8"))) == [8]


def test_plain_records_alone_leave_no_row() -> None:
    box = Inbox(TOPIC, PARTITION)
    box.receive(1, Message(b"7"))
    box.finished(1)
    assert box.export() == {}
    assert box.resume == 1


def test_records_may_bypass_the_inbox_only_while_it_holds_nothing() -> None:
    box = Inbox(TOPIC, PARTITION)
    box.passed(100)
    box.receive(101, record(2))
    assert box.resume == 100
    with pytest.raises(ValueError, match="bypass"):
        box.passed(102)
    with pytest.raises(ValueError, match="position 101 does not come after 101"):
        box.receive(101, record(1))


def test_parking_is_bounded_and_the_record_beyond_is_refused_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MAX_PARKED", 3)
    box = Inbox(TOPIC, PARTITION)
    for position in range(3):
        assert box.receive(position, record(position + 2)) == []
    (refused,) = box.receive(3, record(5))
    assert refused.refused is not None
    assert "more than 3 outputs" in refused.refused
    assert values(box.receive(4, record(1))) == [1, 2, 3, 4]


def test_an_honest_producer_never_has_more_than_a_window_parked() -> None:
    for seed in range(20):
        world = World(seed)
        world.run()
        box, most = Inbox(TOPIC, PARTITION), 0
        for position, message in enumerate(world.log[len(world.log) // 3 :]):
            box.receive(position, message)
            most = max(most, sum(len(producer.parked) for producer in box._producers.values()))
        assert most <= WINDOW


def finish(box: Inbox, rows: dict[bytes, OutputId], accepted: list[Accepted]) -> list[int]:
    box.finished(len(accepted))
    for key, value in box.export().items():
        if value is None:
            del rows[key]
        else:
            rows[key] = value
    return values(accepted)


def test_a_forgotten_producer_s_copies_are_refused_its_new_owner_passes_and_so_do_new_producers() -> None:
    rows: dict[bytes, OutputId] = {}
    box = Inbox(TOPIC, PARTITION, max_producers=2)
    assert finish(box, rows, box.receive(1, record(1, journal=0, epoch=5))) == [1]
    assert finish(box, rows, box.receive(2, record(1, journal=1, epoch=6))) == [1]
    assert finish(box, rows, box.receive(3, record(1, journal=2, epoch=7))) == [1]
    assert set(rows) == {JOURNALS[1], JOURNALS[2], FORGOTTEN}
    for inbox in (box, Inbox(TOPIC, PARTITION, 3, rows, max_producers=2)):
        (copy,) = inbox.receive(4, record(1, journal=0, epoch=5))
        assert copy.refused is not None
        assert "forgotten" in copy.refused
        inbox.finished(1)
        (newer,) = inbox.receive(5, record(1, journal=0, epoch=8))
        assert newer.refused is None


def test_a_producer_whose_records_a_restart_would_read_again_is_not_forgotten() -> None:
    box = Inbox(TOPIC, PARTITION, max_producers=2)
    box.receive(1, record(2, journal=0))  # parked: a restart reads from before it
    box.receive(2, record(1, journal=1))
    box.finished(1)
    (refused,) = box.receive(3, record(1, journal=2))
    assert refused.refused is not None
    assert "2 other producers" in refused.refused
    assert values(box.receive(4, record(1, journal=0))) == [1, 2]
    box.finished(3)
    (accepted,) = box.receive(5, record(1, journal=3))
    assert accepted.refused is None
