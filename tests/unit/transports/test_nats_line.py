"""What NATS's driver writes and reads on the line: records, names, and the protocol in pieces of any size."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg.errors import BrokerError
from thalweg.message import Message
from thalweg.transports.nats.records import decode, encode_header, name_of, place_of, stamp_of, token
from thalweg.transports.nats.wire import NoAnswer, Wire, WireLost, hpub, pub

BATCH = b"Nats-Batch-Id: a_-9\r\nNats-Batch-Sequence: 12\r\nNats-Batch-Commit: 1\r\n"

plain = st.text(st.characters(codec="ascii", min_codepoint=33), max_size=8).map(str.encode)
contents = st.one_of(st.binary(max_size=12), plain, st.just(b" a "), st.just(b"100%41 of %"), st.just("ü".encode()))
names = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["thalweg-key", "thalweg-time", "thalweg-delay", "Nats-TTL", "nats-x", "%", "a:b", "%41", ""]),
)
messages = st.builds(
    Message,
    value=st.none() | st.binary(max_size=20),
    key=st.none() | contents,
    headers=st.lists(st.tuples(names, contents), max_size=4).map(tuple),
    timestamp=st.integers(1, 1 << 43),
)


@given(messages, st.sampled_from([b"", BATCH]))
def test_a_record_comes_back_as_it_was_written_and_the_servers_lines_are_not_its_own(
    message: Message, lines: bytes
) -> None:
    header = encode_header(message, lines)
    assert header.startswith(b"NATS/1.0\r\n")
    assert header.endswith(b"\r\n\r\n")
    assert decode(header, message.value or b"", 7) == message


@given(st.text(max_size=40), st.text(max_size=40))
def test_names_come_back_and_no_two_share_a_subject(one: str, other: str) -> None:
    found = token(one)
    assert name_of(found) == one
    assert found.isascii()
    assert not set(found) & set(" .*>/\\%+\t\r\n")
    assert found
    assert (found == token(other)) == (one == other)


def test_a_name_that_is_too_long_is_refused_by_name() -> None:
    assert token("n" * 200)
    with pytest.raises(BrokerError, match="'nnn"):
        token("n" * 201)


def test_times_are_exact_to_the_nanosecond() -> None:
    assert stamp_of("1970-01-01T00:00:01Z") == 1_000_000_000
    assert stamp_of("2026-11-25T09:33:49.190584026Z") - stamp_of("2026-11-25T09:33:49Z") == 190_584_026
    assert stamp_of("2026-11-25T10:33:49.5+01:00") == stamp_of("2026-11-25T09:33:49.5Z")


def test_both_forms_of_a_delivery_say_the_same() -> None:
    old = b"$JS.ACK.stream.consumer.2.41.7.1795599063206914483.19"
    new = b"$JS.ACK.hub.ACCOUNT.stream.consumer.2.41.7.1795599063206914483.19.x"
    assert place_of(old) == place_of(new) == (2, 41, 7, 1_795_599_063_206_914_483)


class Line(asyncio.Transport):
    """Where a wire writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


async def new_wire() -> tuple[Wire, Line]:
    wire, line = Wire(10, b"_INBOX.me."), Line()
    wire.connection_made(line)
    wire.data_received(b'INFO {"version": "2.15.1", "max_payload": 100}\r\n')
    assert (await wire.info).max_payload == 100
    return wire, line


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_what_comes_in_pieces_of_any_size_is_the_same(cuts: list[int]) -> None:
    async def run() -> None:
        wire, line = await new_wire()
        got: list[tuple[bytes, ...]] = []
        number = wire.subscribe(b"a.>", lambda *message: got.append(message))
        assert b"SUB a.> 2\r\n" in line.written
        header = b"NATS/1.0\r\nx: y\r\n\r\n"
        data = (
            b"MSG a.b 2 5\r\nhe\r\no\r\nPING\r\n+OK\r\nMSG a.c 2 reply.to 0\r\n\r\n"
            + b"HMSG a.d 2 %d %d\r\n%bbody\r\n" % (len(header), len(header) + 4, header)
            + b"HMSG a.e 2 r %d %d\r\n%b\r\nMSG other 9 1\r\nx\r\n" % (len(header), len(header), header)
        )
        start = 0
        while start < len(data):
            for size in cuts:
                wire.data_received(data[start : start + size])
                start += size
        assert got == [
            (b"a.b", b"", b"", b"he\r\no"),
            (b"a.c", b"reply.to", b"", b""),
            (b"a.d", b"", header, b"body"),
            (b"a.e", b"r", header, b""),
        ]
        assert line.written.endswith(b"PONG\r\n")
        wire.unsubscribe(number)
        wire.data_received(b"MSG a.b 2 1\r\nz\r\n")
        assert len(got) == 4
        wire.abort(ConnectionError("the end"))
        wire.connection_lost(None)

    asyncio.run(run())


async def test_answers_find_who_asked_and_a_loss_tells_all_who_wait() -> None:
    wire, _ = await new_wire()
    asked = [wire.expect(b"subject.%d" % number) for number in range(5)]
    wire.data_received(b"MSG %b 1 2\r\nok\r\n" % asked[1][0])
    assert await asked[1][1] == (b"", b"ok")
    wire.data_received(b"HMSG %b 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % asked[2][0])
    with pytest.raises(NoAnswer):
        await asked[2][1]
    wire.data_received(b"-ERR 'Permissions Violation for Publish to \"subject.3\"'\r\n")
    with pytest.raises(NoAnswer, match="Permissions"):
        await asked[3][1]
    asked[4][1].cancel()
    await asyncio.sleep(0)
    wire.data_received(b"MSG %b 1 2\r\nok\r\n" % asked[4][0])
    wire.data_received(b"-ERR 'Stale Connection'\r\n")
    wire.connection_lost(None)
    with pytest.raises(WireLost, match="Stale Connection"):
        await asked[0][1]
    with pytest.raises(WireLost):
        await wire.expect(b"later")[1]
    with pytest.raises(WireLost):
        wire.send(b"x")


async def test_several_answers_come_up_to_a_count_or_to_the_one_that_ends_them() -> None:
    wire, _ = await new_wire()
    reply, counted = wire.collect(b"s", 2)
    for _ in range(2):
        wire.data_received(b"MSG %b 1 1\r\nx\r\n" % reply)
    assert await counted == [(b"", b"x"), (b"", b"x")]
    for status, fine in ((b"204 EOB", True), (b"404 Message Not Found", True), (b"408 Bad Request", False)):
        reply, several = wire.collect(b"s")
        wire.data_received(b"MSG %b 1 2\r\nhi\r\n" % reply)
        end = b"NATS/1.0 %b\r\n\r\n" % status
        wire.data_received(b"HMSG %b 1 %d %d\r\n%b\r\n" % (reply, len(end), len(end), end))
        if fine:
            assert await several == [(b"", b"hi")]
        else:
            with pytest.raises(NoAnswer, match="408 Bad Request"):
                await several
    wire.abort(ConnectionError("done"))
    wire.connection_lost(None)


async def test_what_is_no_nats_ends_the_connection() -> None:
    wire, line = Wire(10, b"_INBOX.me."), Line()
    wire.connection_made(line)
    wire.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert line.aborted
    with pytest.raises(WireLost, match="not NATS"):
        await wire.info
    wire.connection_lost(None)


def test_what_is_sent_says_its_sizes() -> None:
    assert pub(b"s", b"", b"abc") == b"PUB s  3\r\nabc\r\n"
    assert hpub(b"s", b"r", b"NATS/1.0\r\n\r\n", b"abc") == b"HPUB s r 12 15\r\nNATS/1.0\r\n\r\nabc\r\n"
