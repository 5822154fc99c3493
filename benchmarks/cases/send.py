"""Producing alone, one message at a time, each durable before the next."""

from measuring import Case, Run
from programs import new_app
from workload import Withdrawal, withdrawals

from .produce import bare


async def thalweg(run: Run) -> None:
    app = new_app()
    topic = app.topic("withdrawals", key=str, value=Withdrawal)
    work = withdrawals(run.messages)
    async with app:
        with run.timed():
            for withdrawal in work:
                await topic.send(withdrawal, key=withdrawal.account)
        log = await app.running.open_log(topic.name)
        batches = await log.read(dict.fromkeys(range(topic.partitions)), run.messages, 1 << 60, 0)
        assert sum(len(batch.records) for batch in batches.values()) == run.messages


CASE = Case(
    "produce-one", "send() one by one into 8 partitions, nobody reads", {"bare": bare, "thalweg": thalweg}, share=0.25
)
