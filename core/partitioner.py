"""Which partition a key belongs to: one client-side function everywhere, never a broker's own hashing.

`murmur2` is the default of Kafka's Java client, `crc32` that of librdkafka ("consistent_random"). A message without a
key is none of this module's business: whoever sends it spreads such messages.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from typing import Protocol

from .dotted import load
from .errors import ConfigurationError

__all__ = ["Partitioner", "crc32_partitioner", "fitting", "murmur2", "murmur2_partitioner", "partitioner_for"]


class Partitioner(Protocol):
    """Pure and stable: the same key and count give the same partition, in every process and release."""

    def __call__(self, key: bytes, partitions: int, /) -> int:
        """A number in range(partitions)."""
        ...


def murmur2(data: bytes) -> int:
    """MurmurHash 2 with Kafka's seed, as the signed 32-bit integer that Kafka's `Utils.murmur2` returns."""
    length = len(data)
    h = 0x9747B28C ^ (length & 0xFFFFFFFF)
    words, rest = divmod(length, 4)
    for k in struct.unpack_from(f"<{words}I", data):
        k = k * 0x5BD1E995 & 0xFFFFFFFF
        k = (k ^ k >> 24) * 0x5BD1E995
        h = (h * 0x5BD1E995 ^ k) & 0xFFFFFFFF
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    h ^= h >> 15
    return h - 0x1_0000_0000 if h & 0x8000_0000 else h


class _PositiveHashes(dict[bytes, int]):
    """murmur2 of recent keys without the sign bit (Kafka's `toPositive`). Full, it starts over: simple and bounded.

    A dict with `__missing__`: a hit costs 48 ns, where `functools.lru_cache` under the same function takes 69 ns.
    """

    LARGEST_KEY = 128  # bytes: 65,536 keys of this size are some 15 MB; longer keys are hashed each time
    KEYS = 65_536

    def __missing__(self, key: bytes) -> int:
        positive = murmur2(key) & 0x7FFFFFFF
        if len(key) <= self.LARGEST_KEY:
            if len(self) >= self.KEYS:
                self.clear()
            self[key] = positive
        return positive


_positive_hashes = _PositiveHashes()


def murmur2_partitioner(key: bytes, partitions: int) -> int:
    """Kafka's default for keyed records: toPositive(murmur2(key)) % partitions."""
    return _positive_hashes[key] % partitions


def crc32_partitioner(key: bytes, partitions: int) -> int:
    """librdkafka's default for keyed records. (It takes an empty key for none and spreads it; here it is a key.)"""
    return zlib.crc32(key) % partitions


_BY_NAME: dict[str, Partitioner] = {"murmur2": murmur2_partitioner, "crc32": crc32_partitioner}


def fitting(keys: Collection[bytes], partition: int, partitions: int) -> list[str]:
    """The names of the partitioners known here that put all these keys into that partition."""
    return [
        name
        for name, partition_of in _BY_NAME.items()
        if all(partition_of(key, partitions) == partition for key in keys)
    ]


def partitioner_for(name: str) -> Partitioner:
    """The partitioner called "murmur2" or "crc32", or the one at a dotted path ("package.module:function").

    Raises `ConfigurationError` listing the known names.
    """
    known = _BY_NAME.get(name)
    if known is not None:
        return known
    if ":" not in name:
        raise ConfigurationError(
            f"partitioner={name!r} is unknown; known are {', '.join(map(repr, _BY_NAME))}, "
            "or a dotted path 'package.module:function'"
        )
    found = load(name, "partitioner")
    if not callable(found):
        raise ConfigurationError(
            f"partitioner={name!r} is a {type(found).__name__}; expected a function (key, partitions)"
        )

    def checked(key: bytes, partitions: int) -> int:
        partition = found(key, partitions)
        if not (isinstance(partition, int) and 0 <= partition < partitions):
            raise ConfigurationError(f"partitioner={name!r} gave {partition!r}; expected 0 to {partitions - 1}")
        return partition

    return checked
