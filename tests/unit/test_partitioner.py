from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg.errors import ConfigurationError
from thalweg.partitioner import crc32_partitioner, murmur2, murmur2_partitioner, partitioner_for


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # the vectors of Kafka's own test of Utils.murmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected
    assert murmur2_partitioner(data, 1 << 31) == expected & 0x7FFFFFFF


@given(st.binary(max_size=200), st.integers(1, 500))
def test_partition_is_in_range_and_the_same_on_a_hit_as_on_a_miss(key: bytes, partitions: int) -> None:
    first = murmur2_partitioner(key, partitions)
    assert first == (murmur2(key) & 0x7FFFFFFF) % partitions == murmur2_partitioner(key, partitions)
    assert first in range(partitions)
    assert crc32_partitioner(key, partitions) in range(partitions)


def test_crc32_is_the_one_librdkafka_uses() -> None:
    assert crc32_partitioner(b"123456789", 1 << 32) == 0xCBF43926


def test_cache_is_bounded_in_entries_and_in_bytes() -> None:
    from thalweg.partitioner import _PositiveHashes

    class Small(_PositiveHashes):
        KEYS = 10

    cache = Small()
    for number in range(100):
        key = b"%d" % number
        assert cache[key] == murmur2(key) & 0x7FFFFFFF
        assert len(cache) <= 10
    long = bytes(1000)
    assert cache[long] == murmur2(long) & 0x7FFFFFFF
    assert long not in cache


def by_length(key: bytes, partitions: int) -> int:
    return len(key) % partitions


def out_of_range(key: bytes, partitions: int) -> int:
    return partitions


def test_partitioners_are_found_by_name_and_by_dotted_path() -> None:
    assert partitioner_for("murmur2") is murmur2_partitioner
    assert partitioner_for("crc32") is crc32_partitioner
    assert partitioner_for(f"{__name__}:by_length")(b"abc", 2) == 1


@pytest.mark.parametrize("name", ["murmur3", "", "no.such.module:f", f"{__name__}:missing", f"{__name__}:__name__"])
def test_an_unknown_partitioner_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="partitioner=") as caught:
        partitioner_for(name)
    assert repr(name) in str(caught.value)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="'murmur2', 'crc32'"):
        partitioner_for("murmur3")


def test_a_foreign_partitioner_that_leaves_the_range_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"out_of_range.*gave 4; expected 0 to 3"):
        partitioner_for(f"{__name__}:out_of_range")(b"k", 4)
