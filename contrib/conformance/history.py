"""What happened to each message, as the test saw it, and one judge of it: loss, duplicates, order, early redelivery.

Every call has a moment at which it began and one at which it ended, counted by one counter, for the test drives all
processes. So "before" is certain where one call ended before the other began, and only then is anything judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, pairwise

import msgspec

__all__ = ["Committed", "Delivered", "Event", "GivenBack", "History", "Put", "faults_of"]


class Put(msgspec.Struct, frozen=True):
    """outcome: done; failed (nobody knows whether it was written)."""

    message: str
    key: str
    producer: str
    began: int
    ended: int
    outcome: str = "done"


class Delivered(msgspec.Struct, frozen=True):
    """began: when the `get` was called that brought it."""

    message: str
    key: str
    member: str
    attempts: int
    began: int
    ended: int


class Committed(msgspec.Struct, frozen=True):
    """outcome: done; stale (it had gone back before); failed (nobody knows)."""

    message: str
    member: str
    began: int
    ended: int
    outcome: str = "done"


class GivenBack(msgspec.Struct, frozen=True):
    """From `began` on, what this member has in hand may be another's: it was killed, stopped, cut off or closed."""

    member: str
    why: str
    began: int


Event = Put | Delivered | Committed | GivenBack


class History:
    """ordered: messages of a key must be delivered in the order put, by one member at a time (a topic's promise).

    counts_survive: attempts must grow even if the broker was killed in between (`Rig.counts_survive_restarts`).
    """

    def __init__(self, ordered: bool, counts_survive: bool = True) -> None:
        self.ordered, self.counts_survive = ordered, counts_survive
        self.events: list[Event] = []
        self._count = count()

    def now(self) -> int:
        return next(self._count)

    def put(self, message: str, key: str, producer: str, began: int, outcome: str = "done") -> None:
        self.events.append(Put(message, key, producer, began, self.now(), outcome))

    def delivered(self, message: str, key: str, member: str, attempts: int, began: int) -> None:
        self.events.append(Delivered(message, key, member, attempts, began, self.now()))

    def committed(self, message: str, member: str, began: int, outcome: str = "done") -> None:
        self.events.append(Committed(message, member, began, self.now(), outcome))

    def given_back(self, member: str, why: str, since: int | None = None) -> None:
        self.events.append(GivenBack(member, why, self.now() if since is None else since))

    @property
    def acknowledged(self) -> set[str]:
        """Messages whose `put` returned."""
        return {event.message for event in self.events if isinstance(event, Put) and event.outcome == "done"}

    @property
    def settled(self) -> set[str]:
        """Messages whose `commit` returned."""
        return {event.message for event in self.events if isinstance(event, Committed) and event.outcome == "done"}

    @property
    def uncertain(self) -> set[str]:
        """Messages of which nobody knows whether a `commit` settled them."""
        return {event.message for event in self.events if isinstance(event, Committed) and event.outcome == "failed"}

    def check(self) -> None:
        """Raises AssertionError with all that is wrong, and with the events of the first message concerned."""
        faults = list(faults_of(self.events, self.ordered, self.counts_survive))
        if faults:
            first = faults[0].split()[1].rstrip(":")
            story = [str(event) for event in self.events if getattr(event, "message", first) == first][:40]
            more = f"\n… and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise AssertionError("\n".join([*faults[:10], *(["…"] if more else []), "", *story]) + more)


def faults_of(events: Sequence[Event], ordered: bool, counts_survive: bool = True) -> Iterator[str]:
    """Everything that must not be, a sentence each; the second word is the message."""
    puts = {event.message: event for event in events if isinstance(event, Put)}
    deliveries: dict[str, list[Delivered]] = {}
    commits: dict[str, list[Committed]] = {}
    returns: list[GivenBack] = [event for event in events if isinstance(event, GivenBack)]
    for event in events:
        if isinstance(event, Delivered):
            deliveries.setdefault(event.message, []).append(event)
        elif isinstance(event, Committed):
            commits.setdefault(event.message, []).append(event)
    killed = [] if counts_survive else [event.began for event in returns if event.why == "restart"]
    yield from _lost(puts.values(), deliveries, commits)
    for message, several in deliveries.items():
        if message not in puts:
            yield f"phantom {message}: delivered to {several[0].member}, never put"
        yield from _repeated(several, commits.get(message, []), returns, killed)
    if ordered:
        yield from _overtaken(puts, deliveries, commits)
        yield from _two_hands(deliveries, commits, returns)


def _lost(
    puts: Iterable[Put], deliveries: dict[str, list[Delivered]], commits: dict[str, list[Committed]]
) -> Iterator[str]:
    for put in puts:
        if put.outcome == "done" and put.message not in deliveries:
            yield f"lost {put.message}: its put returned, it was never delivered"
        elif put.outcome == "done" and not any(c.outcome != "stale" for c in commits.get(put.message, [])):
            yield f"lost {put.message}: it was delivered and never committed, and did not come again"


def _repeated(
    several: list[Delivered], commits: list[Committed], returns: list[GivenBack], killed: list[int]
) -> Iterator[str]:
    done = min((commit.ended for commit in commits if commit.outcome == "done"), default=None)
    for earlier, later in pairwise(several):
        if done is not None and later.began > done:
            yield f"undead {later.message}: delivered to {later.member} after its commit had returned"
        elif not _let_go(earlier, later, commits, returns) and not (
            later.began < earlier.ended and _let_go(later, earlier, commits, returns)  # handed out in which order?
        ):
            yield (
                f"duplicate {later.message}: delivered to {later.member} while {earlier.member} had it in hand, "
                "alive and within its lease"
            )
    for earlier, later in pairwise(several):
        forgotten = any(earlier.began < moment < later.ended for moment in killed)
        if later.attempts <= earlier.attempts and later.began > earlier.ended and not forgotten:
            yield f"uncounted {later.message}: attempts {earlier.attempts}, then {later.attempts}"


def _let_go(earlier: Delivered, later: Delivered, commits: list[Committed], returns: list[GivenBack]) -> bool:
    if any(back.member == earlier.member and earlier.began < back.began < later.ended for back in returns):
        return True
    return any(commit.member == earlier.member and commit.outcome != "done" for commit in commits)


def _overtaken(
    puts: dict[str, Put], deliveries: dict[str, list[Delivered]], commits: dict[str, list[Committed]]
) -> Iterator[str]:
    """A message is delivered although an earlier one of its key has neither been delivered nor committed before."""
    by_key: dict[str, list[Put]] = {}
    for put in sorted(puts.values(), key=lambda put: put.ended):
        if put.outcome == "done":
            by_key.setdefault(put.key, []).append(put)
    for several in by_key.values():
        first_seen = {
            put.message: min((d.ended for d in deliveries.get(put.message, [])), default=None) for put in several
        }
        latest: Put | None = None
        seen_until = -1
        for put in several:
            seen = first_seen[put.message]
            if seen is None:
                continue
            if latest is not None and _came_before(latest, put) and seen < seen_until:
                yield f"overtaken {latest.message}: {put.message} of the same key was put after it and came first"
            if seen > seen_until:
                latest, seen_until = put, seen


def _came_before(one: Put, other: Put) -> bool:
    """Certainly: the one had ended, or both were of the same call, whose messages are noted in their order."""
    return one.ended < other.began or (one.producer, one.began) == (other.producer, other.began)


def _two_hands(
    deliveries: dict[str, list[Delivered]], commits: dict[str, list[Committed]], returns: list[GivenBack]
) -> Iterator[str]:
    """A key's messages are in the hands of two members at once."""
    holds: dict[str, list[tuple[int, int, str, str]]] = {}
    for several in deliveries.values():
        for delivery in several:
            if any(back.member == delivery.member and delivery.began < back.began < delivery.ended for back in returns):
                continue  # it may have lost it before it learned that it had it
            ends = [c.began for c in commits.get(delivery.message, []) if c.member == delivery.member]
            ends += [back.began for back in returns if back.member == delivery.member]
            ends = [end for end in ends if end > delivery.ended]
            until = min(ends, default=delivery.ended)
            holds.setdefault(delivery.key, []).append((delivery.ended, until, delivery.member, delivery.message))
    for key, spans in holds.items():
        spans.sort()
        end, holder = -1, ""
        for start, until, member, message in spans:
            if start < end and member != holder:
                yield f"shared {message}: {member} has it while {holder} has others of its key {key} in hand"
            if until > end:
                end, holder = until, member
