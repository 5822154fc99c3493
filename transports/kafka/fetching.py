"""One fetch: what one broker has of some partitions, from given offsets on."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.protocol.fetch import FetchRequest
from thalweg.message import Position

from .connection import Cluster
from .records import Chunk, unpack

__all__ = ["OUT_OF_RANGE", "Fetched", "fetch"]

OUT_OF_RANGE = 1


class Fetched(msgspec.Struct):
    """Of one partition. code: 0, or an error's. end: the offset that the next record that can be read will have, or a
    later one. start: the first offset kept."""

    code: int
    start: Position
    end: Position
    chunk: Chunk


async def fetch(
    cluster: Cluster,
    node: int,
    lane: str,
    topic: str,
    offsets: Mapping[int, Position],
    *,
    max_bytes: int,
    partition_bytes: int,
    wait: float = 0.0,
    committed: bool = True,
    hide: bool = True,
) -> Mapping[int, Fetched]:
    """By partition. Waits up to `wait` seconds for something to lie there. Raises Unreachable, Lost, BrokerError."""
    wanted = [(partition, offset, partition_bytes) for partition, offset in offsets.items()]
    request = FetchRequest(round(wait * 1000), 1, max_bytes, int(committed), [(topic, wanted)])
    answer = await cluster.ask(node, request, lane)
    found: dict[int, Fetched] = {}
    for _, partitions in answer.topics:
        for partition, code, high, stable, start, aborted, *_, data in partitions:
            try:
                chunk = unpack(data or b"", offsets[partition], aborted if committed else None, hide)
            except (CorruptRecordException, UnsupportedCodecError, UnicodeDecodeError) as error:
                raise cluster.explain(error, f"topic {topic!r} partition {partition}: ") from None
            found[partition] = Fetched(code, start, stable if committed else high, chunk)
    return found
