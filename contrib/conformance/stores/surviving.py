"""What a store that keeps rows between processes promises besides: kills, full disks, damage.

A store may take back what a crash took, for the journal gives it again, but only whole batches, and never in silence:
rows and checkpoint are always of one moment.
"""

from __future__ import annotations

import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from thalweg.contrib.conformance.properties import Profile, Unavailable, prop
from thalweg.errors import StoreError
from thalweg.store import Checkpoint

from .trial import Rows, StoreTrial, rows_of
from .writer import expected, writing


@prop(Profile.STORE)
def a_reopened_store_is_identical(trial: StoreTrial) -> None:
    store, rows = trial.open(), Rows()
    for batch in range(20):
        changes = {random.Random(f"{batch} {n}").randbytes(4): b"%d" % n * (n % 7) for n in range(300)}
        store.apply(changes, Checkpoint(batch, batch * 3))
        rows.update(changes)
    store.close()
    again = trial.load().open(trial.name)
    assert list(again.scan(b"", None)) == sorted(rows.items())
    assert again.checkpoint() == Checkpoint(19, 57)


@prop(Profile.STORE)
def a_kill_leaves_whole_batches_and_takes_back_nothing_acknowledged(trial: StoreTrial) -> None:
    for acknowledged in [1, 2, 4, 7, 13, 30] * trial.size:
        with writing(trial.rig.url, trial.name) as writer:
            last = writer.batches(acknowledged)
            time.sleep(trial.dice.random() * 0.01)  # so that it strikes anywhere in a later batch
            writer.kill()
        store = trial.open()
        checkpoint = store.checkpoint()
        assert checkpoint is not None
        n = checkpoint.position
        assert n >= last
        assert checkpoint.checksum == n * 7
        assert rows_of(store) == expected(n)
        store.close()


@prop(Profile.STORE)
def another_process_is_refused_until_the_first_dies(trial: StoreTrial) -> None:
    with writing(trial.rig.url, trial.name) as writer:
        assert writer.open
        with pytest.raises(StoreError):
            trial.open()
        trial.stores.open(f"{trial.name}-another").close()
        writer.kill()
    trial.open()


@prop(Profile.STORE)
def a_restore_that_was_interrupted_starts_over(trial: StoreTrial) -> None:
    """`clear`, then batches from the first on: killed at any time, the store says how far it is."""
    store = trial.open()
    store.apply({b"old": b"old"}, Checkpoint(99, 0))
    store.clear()
    store.close()
    with writing(trial.rig.url, trial.name) as writer:
        writer.batches(2)
        writer.kill()
    store = trial.open()
    checkpoint = store.checkpoint()
    assert rows_of(store) == (expected(checkpoint.position) if checkpoint else {})
    store.clear()
    assert (rows_of(store), store.checkpoint()) == ({}, None)


@prop(Profile.STORE)
def a_batch_that_the_disk_refuses_changes_nothing(trial: StoreTrial) -> None:
    store = trial.open()
    store.apply({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    with full_disk():
        try:
            store.apply({b"a": b"new", b"b": None, **{b"%d" % n: b"x" * 1000 for n in range(5000)}}, Checkpoint(2, 0))
        except StoreError:
            pass
        else:
            raise Unavailable("a limit of file size (RLIMIT_FSIZE) does not hinder this store")
        assert (rows_of(store), store.checkpoint()) == ({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    store.close()
    store = trial.open()
    assert (rows_of(store), store.checkpoint()) == ({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    store.apply({b"c": b"3"}, Checkpoint(3, 0))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- damage ------------------------------------------------------------------------------------------------


class Image:
    """A store as it lay on disk when its process was killed (`running`) or had closed it, and its rows by batch."""

    def __init__(self, trial: StoreTrial, running: bool) -> None:
        self.trial, self.rows_at = trial, dict[int, Rows]()
        self._saved = Path(tempfile.mkdtemp(prefix="thalweg-image-"))
        dice, rows, store = random.Random(7), Rows(), trial.open()
        for batch in range(8):
            changes: dict[bytes, bytes | None] = {
                dice.randbytes(dice.choice([1, 4, 8])): dice.randbytes(dice.choice([0, 3, 20, 100, 3000]))
                for _ in range(40)
            }
            changes |= dict.fromkeys(dice.sample(sorted(rows), min(8, len(rows))))
            store.apply(changes, Checkpoint(batch, batch))
            rows = {key: value for key, value in {**rows, **changes}.items() if value is not None}
            self.rows_at[batch] = rows
            if batch == 4:  # so that there is more than a log: the latter batches stay in it
                store.close()
                store = trial.open()
        if not running:
            store.close()
            trial.open().close()  # a store may tidy up on this occasion
        self._files = trial.rig.files(trial.name)
        for number, file in enumerate(self._files):
            shutil.copy(file, self._saved / str(number))
        store.close()

    def restore(self) -> list[Path]:
        """Puts every file back; returns those that may be damaged."""
        for file in self.trial.rig.files(self.trial.name):
            file.unlink()
        for number, file in enumerate(self._files):
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._saved / str(number), file)
        return [file for file in self._files if file.stat().st_size and not self.trial.rig.is_exempt(file)]

    def verdict(self) -> str:
        """`whole` or `older`: the very rows of its checkpoint; `empty`; `refused` by a `StoreError`. Else fails."""
        store = None
        try:
            store = self.trial.open()
            checkpoint = store.checkpoint()
            found, scanned = {key: store.get(key) for key in self.rows_at[7]}, rows_of(store)
        except StoreError:
            return "refused"
        finally:
            if store:
                store.close()
        if checkpoint is None:
            assert scanned == {}
            return "empty"
        expected_rows = self.rows_at[checkpoint.position]
        assert scanned == expected_rows, "damage went unnoticed: the rows are not those of the checkpoint"
        assert found == {key: expected_rows.get(key) for key in self.rows_at[7]}
        return "whole" if checkpoint.position == 7 else "older"

    def close(self) -> None:
        shutil.rmtree(self._saved)


ENDS = {"killed": (True,), "closed": (False,)}


def verdicts(
    trial: StoreTrial, running: bool, damage: Callable[[bytes, random.Random], Iterator[bytes]]
) -> tuple[set[str], Image]:
    """What becomes of the store with one of its files damaged, each in each way."""
    image, found = Image(trial, running), set[str]()
    image.restore()
    assert image.verdict() == "whole"
    for file in image.restore():
        image.restore()
        sound = file.read_bytes()
        for damaged in damage(sound, trial.dice):
            image.restore()
            file.write_bytes(damaged)
            found.add(image.verdict())
    image.close()
    return found, image


@prop(Profile.STORE, cases=ENDS)
def a_flipped_bit_anywhere_is_detected_or_harmless(trial: StoreTrial, running: bool) -> None:
    def flipped(sound: bytes, dice: random.Random) -> Iterator[bytes]:
        bits = dice.sample(range(len(sound) * 8), min(len(sound) * 8, 4 * trial.size))
        pages = range(0, len(sound), 4096)
        heads = dice.sample(pages, min(len(pages), 12 * trial.size))
        for bit in [*bits, *(page * 8 + dice.randrange(160) for page in heads)]:
            damaged = bytearray(sound)
            damaged[min(bit // 8, len(damaged) - 1)] ^= 1 << bit % 8
            yield bytes(damaged)

    found, _ = verdicts(trial, running, flipped)
    assert found & {"refused", "empty"}, "no damage was ever noticed: the rig's files are not those of the store"


@prop(Profile.STORE, cases=ENDS)
def a_torn_file_is_detected_or_older_by_whole_batches(trial: StoreTrial, running: bool) -> None:
    def torn(sound: bytes, dice: random.Random) -> Iterator[bytes]:
        for length in dice.sample(range(len(sound)), min(len(sound), 3 * trial.size)):
            yield sound[:length]

    found, _ = verdicts(trial, running, torn)
    assert found & {"older", "empty", "refused"}, "no file was ever missed: the rig's files are not those of the store"


@prop(Profile.STORE)
def a_damaged_store_is_empty_at_its_next_opening_and_works_again(trial: StoreTrial) -> None:
    image = Image(trial, running=False)
    for file in image.restore():
        size = file.stat().st_size
        file.write_bytes(bytes(trial.dice.getrandbits(8) for _ in range(min(size, 10_000))))
    image.close()
    for _ in range(2):  # damage may be found only as it is read; the opener after that finds it empty
        try:
            store = trial.open()
            found = rows_of(store)
        except StoreError:
            trial.stores.close()
            continue
        assert (found, store.checkpoint()) == ({}, None)
        store.apply({b"k": b"new"}, Checkpoint(1, 0))
        store.close()
        assert rows_of(trial.open()) == {b"k": b"new"}
        return
    raise AssertionError("a damaged store was refused twice: it is to be set aside")
