"""Handling alone, without state: a backlog that lies ready is decoded, encoded again and sent on."""

import asyncio

import msgspec
from measuring import Case, Run
from programs import finished, new_app, passing_on
from workload import Withdrawal, as_json, withdrawals


async def bare(run: Run) -> None:
    source: asyncio.Queue[bytes] = asyncio.Queue()
    target: asyncio.Queue[bytes] = asyncio.Queue()
    for data in as_json(run.messages):
        source.put_nowait(data)
    decode, encode = msgspec.json.Decoder(Withdrawal).decode, msgspec.json.Encoder().encode
    with run.timed():
        for _ in range(run.messages):
            await target.put(encode(decode(await source.get())))
    passed = [target.get_nowait() for _ in range(target.qsize())]
    assert passed == list(as_json(run.messages))


async def thalweg(run: Run) -> None:
    program = passing_on(new_app())
    async with program.app:
        await program.source.send_many((w.account, w) for w in withdrawals(run.messages))
        with run.timed():
            program.begin.set()
            await finished(program, run.messages)
        assert program.target is not None
        log = await program.app.running.open_log(program.target.name)
        batches = await log.read(dict.fromkeys(range(program.target.partitions)), run.messages, 1 << 60, 0)
        passed = [record.value for batch in batches.values() for record in batch.records]
        assert sorted(value or b"" for value in passed) == sorted(as_json(run.messages))


CASE = Case(
    "handle-pass",
    "a backlog passed on to another topic, with its last commit, exactly once",
    {"bare": bare, "thalweg": thalweg},
    share=0.5,
)
