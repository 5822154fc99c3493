"""What every store promises (thalweg.store), each property on each of the three; what those on disk promise besides."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thalweg.errors import ConfigurationError, StoreError, UnknownOption
from thalweg.registry import load_stores
from thalweg.store import Checkpoint, Store, Stores

DISK = ["sqlite", "rocksdb"]
KINDS = ["memory", *DISK]
WRITER = Path(__file__).with_name("crash_writer.py")

Rows = dict[bytes, bytes]
Open = Callable[[], Store]


def url_of(kind: str, folder: Path) -> str:
    return "memory://" if kind == "memory" else f"{kind}:///{folder}"


def rows_of(store: Store) -> Rows:
    return dict(store.scan(b"", None))


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    opened = load_stores(url_of(request.param, tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores.open("task")


@pytest.fixture(params=DISK)
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    opened = load_stores(url_of(request.param, tmp_path / "state"))
    yield opened
    opened.close()


# --- rows --------------------------------------------------------------------------------------------------


def test_a_missing_key_is_none_and_an_empty_value_is_not_missing(store: Store) -> None:
    store.apply({b"empty": b""}, Checkpoint(1, 2))
    assert store.get(b"missing") is None
    assert store.get(b"empty") == b""
    assert list(store.scan(b"", None)) == [(b"empty", b"")]


def test_the_last_value_wins(store: Store) -> None:
    store.apply({b"k": b"long" * 50}, Checkpoint(1, 0))
    store.apply({b"k": b"new"}, Checkpoint(2, 0))
    assert store.get(b"k") == b"new"
    assert rows_of(store) == {b"k": b"new"}


def test_deleting_is_idempotent_and_a_deleted_key_can_come_back(store: Store) -> None:
    store.apply({b"a": b"1", b"b": b"2", b"empty": b""}, Checkpoint(1, 0))
    store.apply({b"a": None, b"never": None, b"empty": None}, Checkpoint(2, 0))
    store.apply({b"a": None}, Checkpoint(3, 0))
    assert store.get(b"a") is None
    assert rows_of(store) == {b"b": b"2"}
    store.apply({b"a": b"again"}, Checkpoint(4, 0))
    assert list(store.scan(b"", None)) == [(b"a", b"again"), (b"b", b"2")]


def test_any_bytes_are_keys_and_values(store: Store) -> None:
    every = [bytes([byte]) for byte in range(256)]
    odd = [b"", b"\0", b"\0\0", b"\1", b"\xff" * 300, b"k" * 5000, "schlüssel€".encode(), b"'; DROP TABLE rows; --"]
    rows = {key: key[::-1] for key in every + odd}
    store.apply(rows, Checkpoint(1, 0))
    assert all(store.get(key) == value for key, value in rows.items())
    assert list(store.scan(b"", None)) == sorted(rows.items())


def test_a_large_value_is_kept_whole(store: Store) -> None:
    large = random.Random(1).randbytes(5_000_000)
    store.apply({b"large": large, b"small": b"s"}, Checkpoint(1, 0))
    assert store.get(b"large") == large
    assert rows_of(store) == {b"large": large, b"small": b"s"}


def test_an_empty_batch_moves_the_checkpoint(store: Store) -> None:
    assert store.checkpoint() is None
    store.apply({}, Checkpoint(0, 0))
    assert store.checkpoint() == Checkpoint(0, 0)
    store.apply({}, Checkpoint(2**63 - 1, 2**32 - 1))
    assert store.checkpoint() == Checkpoint(2**63 - 1, 2**32 - 1)


def test_clear_deletes_rows_and_checkpoint_and_the_store_goes_on(store: Store) -> None:
    store.apply({b"%d" % n: b"x" for n in range(1000)}, Checkpoint(5, 6))
    store.clear()
    assert (rows_of(store), store.get(b"1"), store.checkpoint()) == ({}, None, None)
    store.apply({b"1": b"y"}, Checkpoint(1, 1))
    assert (rows_of(store), store.checkpoint()) == ({b"1": b"y"}, Checkpoint(1, 1))


def test_an_apply_whose_changes_raise_changes_nothing(store: Store) -> None:
    class Broken(dict[bytes, bytes | None]):
        def items(self) -> Iterator[tuple[bytes, bytes | None]]:  # type: ignore[override]
            yield b"a", b"new"
            yield b"b", None
            raise KeyboardInterrupt

    store.apply({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    with pytest.raises(KeyboardInterrupt):
        store.apply(Broken(), Checkpoint(2, 0))
    assert (rows_of(store), store.checkpoint()) == ({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
    store.apply({b"b": None}, Checkpoint(3, 0))
    assert rows_of(store) == {b"a": b"1"}


# --- scans -------------------------------------------------------------------------------------------------


def test_a_scan_is_in_bytewise_order(store: Store) -> None:
    keys = [b"b", b"a\xff", b"a", b"\xff\xff", b"a\0", b"B", b"\x80", b"\x7f", b"ab", b"\xff", b""]
    store.apply(dict.fromkeys(keys, b"v"), Checkpoint(1, 0))
    assert [key for key, _ in store.scan(b"", None)] == sorted(keys)


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (b"a", b"c", [b"a", b"a\0", b"b", b"b\xff\xff"]),
        (b"a\0", b"b", [b"a\0"]),
        (b"b", b"b", []),
        (b"c", b"a", []),
        (b"aa", b"azz", []),
        (b"b\xff", b"c", [b"b\xff\xff"]),  # the last key with the prefix b"b" may be followed by any number of 0xFF
        (b"\xff", None, [b"\xff", b"\xff\0", b"\xff\xff"]),
        (b"\xff\xff", None, [b"\xff\xff"]),
        (b"\xff\xff\0", None, []),
        (b"d", b"\xff", []),
        (b"", b"", []),
    ],
)
def test_ranges_hold_their_start_but_not_their_stop(
    store: Store, start: bytes, stop: bytes | None, found: list[bytes]
) -> None:
    keys = [b"a", b"a\0", b"b", b"b\xff\xff", b"c", b"\xff", b"\xff\0", b"\xff\xff"]
    store.apply(dict.fromkeys(keys, b"v"), Checkpoint(1, 0))
    assert [key for key, _ in store.scan(start, stop)] == found


def test_a_scan_of_many_rows_gives_each_once(store: Store) -> None:
    rows = {b"%05d" % n: b"%d" % n for n in range(3000)}
    store.apply(rows, Checkpoint(1, 0))
    assert list(store.scan(b"", None)) == sorted(rows.items())
    assert len(list(store.scan(b"00064", b"02000"))) == 2000 - 64


def test_reading_on_after_the_last_key_sees_the_latest_rows(store: Store) -> None:
    store.apply({b"%03d" % n: b"old" for n in range(300)}, Checkpoint(1, 0))
    rows = store.scan(b"", None)
    chunk = [next(rows) for _ in range(10)]
    store.apply({b"%03d" % n: b"new" for n in range(300)}, Checkpoint(2, 0))
    rest = list(store.scan(chunk[-1][0] + b"\0", None))
    assert rest == [(b"%03d" % n, b"new") for n in range(10, 300)]


@pytest.mark.parametrize("pause", [1, 63, 64, 65])
def test_rows_that_do_not_change_during_a_scan_are_yielded_exactly_once(store: Store, pause: int) -> None:
    """Every second row is rewritten, deleted or added while the scan goes on; the others must come through."""
    still = {b"%05d" % n: b"still %d" % n for n in range(0, 500, 2)}
    moving = [b"%05d" % n for n in range(1, 500, 2)]
    store.apply({**still, **dict.fromkeys(moving[::2], b"before")}, Checkpoint(0, 0))
    seen: list[tuple[bytes, bytes]] = []
    for row in store.scan(b"", None):
        seen.append(row)
        if len(seen) % pause == 0:
            turn = len(seen) // pause % 3
            store.apply(dict.fromkeys(moving, (b"after", None, b"later")[turn]), Checkpoint(len(seen), 0))
    keys = [key for key, _ in seen]
    assert keys == sorted(set(keys))
    assert {key: value for key, value in seen if key in still} == still
    assert {value for key, value in seen if key not in still} <= {b"before", b"after", b"later"}


def test_several_scans_and_gets_do_not_disturb_each_other(store: Store) -> None:
    rows = {b"%03d" % n: b"%d" % n for n in range(200)}
    store.apply(rows, Checkpoint(1, 0))
    pairs = zip(store.scan(b"", None), store.scan(b"", None), strict=True)
    assert all(one == other and store.get(one[0]) == one[1] for one, other in pairs)


def test_a_scan_that_nobody_finishes_hinders_nothing(stores: Stores) -> None:
    store = stores.open("task")
    store.apply({b"%03d" % n: b"v" for n in range(200)}, Checkpoint(1, 0))
    rows = store.scan(b"", None)
    next(rows)
    store.clear()
    assert rows_of(store) == {}
    store.close()
    again = stores.open("task")
    with pytest.raises(StoreError):
        list(rows)  # its page is used up, then it needs the store
    again.apply({b"k": b"v"}, Checkpoint(1, 0))


# --- opening and closing -----------------------------------------------------------------------------------


def test_a_second_opener_is_refused_until_the_first_closes(stores: Stores) -> None:
    first = stores.open("task")
    other = stores.open("other")
    with pytest.raises(StoreError, match=r"task.*open already"):
        stores.open("task")
    other.apply({b"k": b"other"}, Checkpoint(1, 0))
    assert first.get(b"k") is None
    first.close()
    stores.open("task").apply({b"k": b"v"}, Checkpoint(1, 0))


def test_closing_twice_is_harmless(stores: Stores) -> None:
    store = stores.open("task")
    store.close()
    store.close()
    again = stores.open("task")
    store.close()
    with pytest.raises(StoreError, match="open already"):
        stores.open("task")
    again.close()
    stores.close()
    stores.close()


def test_closing_the_stores_closes_each(stores: Stores) -> None:
    one, other = stores.open("one"), stores.open("other")
    stores.close()
    for store in (one, other):
        with pytest.raises(StoreError):
            store.get(b"k")
    stores.open("one")


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get(b"k"),
        lambda store: list(store.scan(b"", None)),
        lambda store: store.apply({b"k": b"v"}, Checkpoint(1, 0)),
        lambda store: store.checkpoint(),
        lambda store: store.clear(),
    ],
    ids=["get", "scan", "apply", "checkpoint", "clear"],
)
def test_a_closed_store_refuses_to_work(store: Store, use: Callable[[Store], object]) -> None:
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    with pytest.raises(StoreError):
        use(store)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a\\b", "a b", "ä", "a\0", "a\n", "x" * 201]
)
def test_a_name_that_is_no_file_name_is_refused(stores: Stores, name: str) -> None:
    with pytest.raises(ConfigurationError, match="store name"):
        stores.open(name)


@pytest.mark.parametrize("name", ["a", "9", "bank-3", "app.group-1_x", "x" * 200, "a.db", "a.lock"])
def test_allowed_names_open_stores_of_their_own(stores: Stores, name: str) -> None:
    stores.open("a.b").apply({b"k": b"other"}, Checkpoint(1, 0))
    assert rows_of(stores.open(name)) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="nonsense"):
        load_stores(f"{url_of(kind, tmp_path)}?nonsense=1")


@pytest.mark.parametrize("kind", DISK)
def test_a_url_without_a_folder_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind}:///folder"):
        load_stores(f"{kind}://")


# --- a model -----------------------------------------------------------------------------------------------

KEYS = st.binary(max_size=3) | st.sampled_from([b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\0"])
BATCHES = st.dictionaries(KEYS, st.none() | st.binary(max_size=40), max_size=90)
STEPS = st.lists(
    BATCHES | st.just("reopen") | st.just("clear") | st.tuples(KEYS, st.none() | KEYS), min_size=1, max_size=25
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_a_store_is_a_sorted_dict(kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[object]) -> None:
    stores = load_stores(url_of(kind, tmp_path_factory.mktemp("model")))
    store, model, last = stores.open("task"), Rows(), None
    for position, step in enumerate(steps):
        if isinstance(step, Mapping):
            last = Checkpoint(position, position)
            store.apply(step, last)
            model.update(step)
            model = {key: value for key, value in model.items() if value is not None}
        elif isinstance(step, tuple):
            start, stop = step
            expected = [(key, model[key]) for key in sorted(model) if start <= key and (stop is None or key < stop)]
            assert list(store.scan(start, stop)) == expected
        elif step == "clear":
            store.clear()
            model, last = {}, None
        else:
            store.close()
            store = stores.open("task")
            if kind == "memory":
                model, last = {}, None
        assert store.checkpoint() == last
    assert list(store.scan(b"", None)) == sorted(model.items())
    assert all(store.get(key) == value for key, value in model.items())
    stores.close()


# --- memory ------------------------------------------------------------------------------------------------


def test_a_memory_store_is_gone_when_it_is_closed() -> None:
    stores = load_stores("memory://")
    store = stores.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    again = stores.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)


def test_two_memory_stores_share_nothing() -> None:
    one, other = load_stores("memory://").open("task"), load_stores("memory://").open("task")
    one.apply({b"k": b"v"}, Checkpoint(1, 0))
    assert rows_of(other) == {}


# --- disk: closing, crashing, competing ---------------------------------------------------------------------


def test_a_reopened_store_is_identical(on_disk: Stores) -> None:
    store = on_disk.open("task")
    rows: Rows = {}
    for batch in range(20):
        changes = {random.Random(f"{batch} {n}").randbytes(4): b"%d" % n * (n % 7) for n in range(300)}
        store.apply(changes, Checkpoint(batch, batch * 3))
        rows.update(changes)
    store.close()
    again = on_disk.open("task")
    assert list(again.scan(b"", None)) == sorted(rows.items())
    assert again.checkpoint() == Checkpoint(19, 57)


@pytest.mark.parametrize("kind", DISK)
def test_a_kill_takes_back_nothing_acknowledged_and_leaves_no_half_of_a_batch(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    for acknowledged in (1, 7, 30):
        with subprocess.Popen([sys.executable, WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline().startswith("open")
            last = 0
            for _ in range(acknowledged):
                last = int(writer.stdout.readline())
            writer.kill()  # in the middle of a later batch, most likely
        stores = load_stores(url)
        store = stores.open("task")
        checkpoint = store.checkpoint()
        assert checkpoint is not None
        n = checkpoint.position
        assert n >= last
        assert checkpoint.checksum == n * 7
        expected = dict.fromkeys(
            [*(b"row%03d" % row for row in range(500)), b"odd" if n % 2 else b"even"], b"%d" % n * 20
        )
        assert rows_of(store) == expected
        stores.close()


@pytest.mark.parametrize("kind", DISK)
def test_another_process_is_refused_until_the_first_dies(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    with subprocess.Popen([sys.executable, WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline().startswith("open")
        with pytest.raises(StoreError, match="open already, here or in another process"):
            load_stores(url).open("task")
        load_stores(url).open("another").close()
        writer.kill()
    stores = load_stores(url)
    stores.open("task")
    stores.close()


FULL_DISK = """
import resource, sys
from thalweg.errors import StoreError
from thalweg.registry import load_stores
from thalweg.store import Checkpoint
stores = load_stores(sys.argv[1])
store = stores.open("task")
store.apply({b"a": b"1", b"b": b"2"}, Checkpoint(1, 0))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
try:
    store.apply({b"a": b"new", b"b": None, **{b"%d" % n: b"x" * 1000 for n in range(5000)}}, Checkpoint(2, 0))
except StoreError:
    print(sorted(store.scan(b"", None)), store.checkpoint().position)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
stores.close()
store = stores.open("task")
print(sorted(store.scan(b"", None)), store.checkpoint().position)
store.apply({b"c": b"3"}, Checkpoint(3, 0))
stores.close()
"""


@pytest.mark.parametrize("kind", DISK)
def test_an_apply_that_the_disk_refuses_changes_nothing(kind: str, tmp_path: Path) -> None:
    script = [sys.executable, "-c", FULL_DISK, url_of(kind, tmp_path)]
    done = subprocess.run(script, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[(b'a', b'1'), (b'b', b'2')] 1"] * 2


# --- disk: damage ------------------------------------------------------------------------------------------


class Image:
    """A store as it lay on disk when its process was killed, or after it was closed; and its rows after each batch."""

    def __init__(self, kind: str, end: str, folder: Path) -> None:
        self.stores = load_stores(url_of(kind, folder / "state"))
        self.place = folder / "state" / ("task.db" if kind == "sqlite" else "task.rocksdb")
        self.rows_at: dict[int, Rows] = {}
        self._saved = folder / "saved"
        dice = random.Random(7)
        rows: Rows = {}
        store = self.stores.open("task")
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
                store = self.stores.open("task")
        if end == "killed":
            shutil.copytree(self.place.parent, self._saved)
        store.close()
        if end == "closed":
            self.stores.open("task").close()  # RocksDB moves its log into a table on this occasion
            shutil.copytree(self.place.parent, self._saved)

    def restore(self) -> None:
        shutil.rmtree(self.place.parent)
        shutil.copytree(self._saved, self.place.parent)

    def files(self) -> list[Path]:
        """Those that hold data. Left out: RocksDB's MANIFEST (see the module's docstring) and its notes to itself."""
        files = sorted(self.place.iterdir()) if self.place.is_dir() else sorted(self.place.parent.glob("task.db*"))
        return [file for file in files if file.suffix in {".db", ".db-wal", ".sst", ".log"} and file.stat().st_size]

    def verdict(self) -> str:
        """`whole` or `older`: the very rows of its checkpoint; `empty`; `refused` by a `StoreError`. Else fails."""
        store = None
        try:
            store = self.stores.open("task")
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
        expected = self.rows_at[checkpoint.position]
        assert scanned == expected
        assert found == {key: expected.get(key) for key in self.rows_at[7]}
        return "whole" if checkpoint.position == 7 else "older"


@pytest.fixture(params=[(kind, end) for kind in DISK for end in ("killed", "closed")], ids="-".join)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    kind, end = request.param
    return Image(kind, end, tmp_path)


def test_an_undamaged_image_is_whole(image: Image) -> None:
    image.restore()
    assert image.verdict() == "whole"


def test_a_flipped_bit_anywhere_is_detected_or_harmless(image: Image) -> None:
    dice, verdicts = random.Random(3), set()
    image.restore()
    for file in image.files():
        image.restore()
        sound = file.read_bytes()
        anywhere = dice.sample(range(len(sound) * 8), 16)
        at_the_head_of_a_page = [page * 8 + dice.randrange(160) for page in range(0, len(sound), 4096)]
        for bit in anywhere + at_the_head_of_a_page:
            image.restore()
            flipped = bytearray(sound)
            flipped[min(bit // 8, len(flipped) - 1)] ^= 1 << bit % 8
            file.write_bytes(flipped)
            verdicts.add(image.verdict())
    assert verdicts & {"refused", "empty"}  # else the test has missed the data


def test_a_torn_file_is_detected_or_older_by_whole_batches(image: Image) -> None:
    dice, verdicts = random.Random(4), set()
    image.restore()
    for file in image.files():
        image.restore()
        sound = file.read_bytes()
        for length in dice.sample(range(len(sound)), 6):
            image.restore()
            file.write_bytes(sound[:length])
            verdicts.add(image.verdict())
    assert verdicts & {"older", "empty"}


def test_sqlite_pages_that_count_too_few_or_too_many_rows_are_found(tmp_path: Path) -> None:
    image = Image("sqlite", "closed", tmp_path)
    image.restore()
    sound, verdicts = image.place.read_bytes(), set()
    for page in range(4096, len(sound), 4096):
        image.restore()
        flipped = bytearray(sound)
        flipped[page + 4] ^= 1  # the low byte of the number of cells in this page
        image.place.write_bytes(flipped)
        verdicts.add(image.verdict())  # fails if rows are missing
    assert "empty" in verdicts


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "thalweg.stores"]


def test_what_is_not_a_store_is_set_aside_with_one_warning(on_disk: Stores, caplog: pytest.LogCaptureFixture) -> None:
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    store.close()
    (place,) = (path for path in _folder(on_disk).iterdir() if path.suffix != ".lock")
    if place.is_dir():
        (place / "CURRENT").write_bytes(b"no database" * 1000)
    else:
        place.write_bytes(b"no database" * 1000)
    store = on_disk.open("task")
    assert (rows_of(store), store.checkpoint()) == ({}, None)
    assert len(warnings_in(caplog)) == 1
    assert f"{place} is damaged and will be rebuilt; set aside as {place}.damaged" in warnings_in(caplog)[0]
    store.apply({b"k": b"new"}, Checkpoint(2, 0))
    store.close()
    store = on_disk.open("task")
    assert (rows_of(store), store.checkpoint()) == ({b"k": b"new"}, Checkpoint(2, 0))
    assert len(warnings_in(caplog)) == 1
    aside = Path(f"{place}.damaged")
    assert b"no database" in (aside / "CURRENT" if aside.is_dir() else aside).read_bytes()


def test_a_file_in_the_place_of_a_store_is_set_aside(on_disk: Stores, caplog: pytest.LogCaptureFixture) -> None:
    on_disk.open("task").close()
    (place,) = (path for path in _folder(on_disk).iterdir() if path.suffix != ".lock")
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.write_bytes(b"x" * 1000)
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    assert rows_of(store) == {b"k": b"v"}
    assert len(warnings_in(caplog)) == 1


def test_a_folder_in_the_place_of_an_sqlite_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "task.db").mkdir()
    stores = load_stores(url_of("sqlite", tmp_path))
    for _ in range(2):  # the first attempt lets go of the lock
        with pytest.raises(StoreError, match="unable to open"):
            stores.open("task")


def test_a_store_whose_folder_is_deleted_meanwhile_refuses_to_write(on_disk: Stores) -> None:
    store = on_disk.open("task")
    store.apply({b"k": b"v"}, Checkpoint(1, 0))
    shutil.rmtree(_folder(on_disk))
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.apply({b"k": b"w"}, Checkpoint(2, 0))
    store.close()
    again = on_disk.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)
    again.apply({b"k": b"x"}, Checkpoint(1, 0))


def test_a_folder_that_cannot_be_made_is_a_store_error(on_disk: Stores) -> None:
    _folder(on_disk).parent.mkdir(parents=True, exist_ok=True)
    _folder(on_disk).write_bytes(b"a file")
    with pytest.raises(StoreError, match="cannot be opened"):
        on_disk.open("task")


def _folder(stores: Stores) -> Path:
    return Path(stores.description.partition(" in ")[2])


class DamagedRow:
    """A store with a damaged row that opening it does not find: SQLite with `verify_mb=0`, RocksDB always."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.stores = load_stores(url_of(kind, folder) + ("?verify_mb=0" if kind == "sqlite" else "?cache_mb=2"))
        self.rows = {b"key%04d" % n: random.Random(n).randbytes(200) for n in range(4000)}
        self.bad = b"key2000"
        store = self.stores.open("task")
        store.apply(self.rows, Checkpoint(1, 0))
        store.close()
        self.stores.open("task").close()  # RocksDB moves its log into a table on this occasion
        (found,) = (file for file in folder.rglob("*") if file.is_file() and self.rows[self.bad] in file.read_bytes())
        data = bytearray(found.read_bytes())
        data[data.index(self.rows[self.bad]) + 100] ^= 1
        found.write_bytes(data)
        self.store = self.stores.open("task")


@pytest.fixture(params=DISK)
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DamagedRow]:
    made = DamagedRow(request.param, tmp_path)
    yield made
    made.stores.close()


def test_a_damaged_row_is_refused_by_get_and_scan_and_sound_rows_are_not(damaged: DamagedRow) -> None:
    assert damaged.store.get(b"key0001") == damaged.rows[b"key0001"]
    with pytest.raises(StoreError):
        damaged.store.get(damaged.bad)
    with pytest.raises(StoreError):
        list(damaged.store.scan(b"", None))
    assert len(list(damaged.store.scan(b"", b"key1000"))) == 1000


def test_after_damage_was_found_the_next_opener_gets_an_empty_store(
    damaged: DamagedRow, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreError) as caught:
        list(damaged.store.scan(b"", None))
    damaged.store.close()
    again = damaged.stores.open("task")
    assert (rows_of(again), again.checkpoint()) == ({}, None)
    assert len(warnings_in(caplog)) == 1
    assert caught.value.__cause__ is not None  # the error is still alive: it holds nothing of the store open


def test_clear_replaces_a_damaged_store(damaged: DamagedRow, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError):
        damaged.store.get(damaged.bad)
    damaged.store.clear()
    assert len(warnings_in(caplog)) == 1
    damaged.store.apply({b"k": b"v"}, Checkpoint(2, 0))
    assert rows_of(damaged.store) == {b"k": b"v"}
    damaged.store.close()
    assert rows_of(damaged.stores.open("task")) == {b"k": b"v"}
    assert len(warnings_in(caplog)) == 1


def test_sqlite_finds_a_damaged_row_on_opening_unless_the_file_is_too_large(tmp_path: Path) -> None:
    damaged = DamagedRow("sqlite", tmp_path)
    damaged.stores.close()
    stores = load_stores(url_of("sqlite", tmp_path))
    assert stores.open("task").checkpoint() is None
    stores.close()


def test_sqlite_finds_a_flipped_checkpoint(tmp_path: Path) -> None:
    stores = load_stores(url_of("sqlite", tmp_path) + "?verify_mb=0")
    store = stores.open("task")
    store.apply({b"k": b"v"}, Checkpoint(0x1234567890ABCD, 0x1F2E3D4C))
    store.close()
    file = tmp_path / "task.db"
    data = file.read_bytes()
    assert data.count(bytes.fromhex("1234567890ABCD")) == 1
    file.write_bytes(data.replace(bytes.fromhex("1234567890ABCD"), bytes.fromhex("1234567890ABCF")))
    assert stores.open("task").checkpoint() is None
    stores.close()


def test_the_descriptions_are_one_line(stores: Stores) -> None:
    assert stores.description
    assert os.linesep not in stores.description
