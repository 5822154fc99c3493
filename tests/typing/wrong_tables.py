"""What must not pass: each line with the comment is an error, and no other line is."""

from collections.abc import AsyncIterator

from good import Deposit, Order, Transfer, Withdrawal, app, histories, latest, orders, totals, withdrawals
from thalweg import Stream, Table


async def rows() -> None:
    totals["ada"] = 5
    totals["ada"] = "5"  # error
    totals["ada"] = None  # error
    totals[7] = 5  # error
    totals["ada"] += "1"  # error
    totals[b"ada"] += 1  # error
    del totals[7]  # error
    text: str = totals["ada"]  # error
    number: int = totals.get("ada")  # error
    also: int = totals.get("ada", "none")  # error
    print(text, number, also)
    print(totals.get(7))  # error
    for key, value in totals.items():
        print(key + 1)  # error
        print(value.upper())  # error
    asked: int = await totals.ask("ada")  # error
    print(asked)
    print(await totals.ask(7))  # error
    print(await totals.ask("ada", timeout="1s"))  # error
    histories[7].append("x")
    histories[7].append(7)  # error
    histories["ada"].append("x")  # error
    histories[7] = {"x"}  # error
    latest["ada"] = Deposit("ada", 1)
    latest["ada"] = Withdrawal("ada", "NO", 5, 0.0)  # error


def history() -> str:
    return ""


app.table("a", value=int, default=int)
app.table("b", value=int, default=0)  # error
app.table("c", value=int, default=str)  # error (mypy): pyright widens V to `int | str`, and objects where it is used
app.table("d")  # error
app.table("f", value=list[str], default=dict)  # error (mypy): as above
app.table("g", value=int, like="withdrawals")  # error
app.table("h", value=int, like=totals)  # error
app.table("i", value=int, partitions="8")  # error
widened = app.table("j", value=int, default=history)  # error (mypy): as above

wrong_value: Table[str, str] = totals  # error
wrong_key: Table[int, int] = totals  # error
wider: Table[str, float] = totals  # error
of_topic: Table[str, Order] = orders.table("k")  # error
of_union: Table[str, Deposit | Transfer] = latest  # error
withdrawals.table("l", replicated="yes")  # error


@app.agent(withdrawals)
async def total(stream: Stream[Withdrawal]) -> AsyncIterator[int]:
    async for withdrawal in stream:
        totals[withdrawal.amount] += withdrawal.amount  # error
        totals[withdrawal.account] += withdrawal.country  # error
        yield totals[withdrawal.account]
        yield withdrawal.account  # error
