"""The saga of examples/orders.py: paid in time, reminded of, or ended; never two of them, though its worker dies."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "examples" / "orders.py"


@pytest.fixture
def shop() -> Any:
    spec = importlib.util.spec_from_file_location("orders_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where msgspec looks for the types of annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("broker", ["memory://", "memory://?fencing=false"])
async def test_each_order_is_paid_in_time_or_ends_and_its_customer_hears_of_it_once(shop: Any, broker: str) -> None:
    async with shop.app.test(broker=broker) as t:
        for number in range(4):
            for _ in range(2):  # the second is none
                await shop.steps.send(shop.Placed(f"o-{number}", f"c-{number}"))
        await t.advance(300)
        await shop.steps.send(shop.Paid("o-0"))
        await t.crash()
        await t.advance(400)  # all but the first are reminded
        await shop.steps.send(shop.Paid("o-1"))
        await t.crash()
        await t.advance(199)
        await shop.steps.send(shop.Paid("o-2"))  # in the last second
        await t.advance(1)
        await shop.steps.send(shop.Paid("o-3"))  # too late
        await t.crash()
        await t.advance(3600)
        states = {f"o-{number}": shop.orders[f"o-{number}"].state for number in range(4)}
        assert states == {"o-0": "paid", "o-1": "paid", "o-2": "paid", "o-3": "ended"}
        told: dict[str, list[str]] = {}
        for mail in t.sent(shop.mails):
            told.setdefault(mail.key, []).append(mail.value.split(" ", 1)[1])
        reminder, thanks = "waits for your payment", "is paid, thank you"
        assert told == {
            "c-0": [thanks],
            "c-1": [reminder, thanks],
            "c-2": [reminder, thanks],
            "c-3": [reminder, "was not paid in time"],
        }
