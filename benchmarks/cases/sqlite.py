"""For information: the same backlog and sum with broker and store on disk, against the same bare loop in memory."""

import tempfile
from functools import partial
from pathlib import Path

from measuring import Case, Run
from programs import Guarantee, new_app, sum_backlog

from .handle_sum import bare


async def thalweg(run: Run, guarantee: Guarantee) -> None:
    with tempfile.TemporaryDirectory() as folder:
        broker, store = Path(folder, "broker.db"), Path(folder, "store")
        await sum_backlog(run, new_app(f"sqlite:///{broker}", guarantee, f"sqlite:///{store}"))


CASE = Case(
    "sqlite-sum",
    "handle-sum with sqlite:// as broker and store",
    {
        "bare": bare,
        "exactly once": partial(thalweg, guarantee="exactly_once"),
        "at least once": partial(thalweg, guarantee="at_least_once"),
    },
    share=0.25,
)
