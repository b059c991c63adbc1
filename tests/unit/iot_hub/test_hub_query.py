from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import cast

from hub_values import Clock, add_device, new_core, run

from edge_contracts.query import parse_query
from iot_hub.device_query import Continuation, QueryPage, query_page
from iot_hub.hub import Hub
from iot_hub.identities import IdentityKey
from iot_hub.presence import Presence
from iot_hub.store import HubStore

DEVICES = 600
# Long enough that the hub has to stop for others on the way.
SLOW = " AND ".join(["length(concat(deviceId, deviceId, deviceId)) > 1"] * 100)


def new_hub() -> Hub:
    """A hub of many devices, for reading only."""
    core = new_core()
    for number in range(DEVICES):
        add_device(core, f"d-{number:04}")
    return Hub(core, cast(HubStore, None), cast(Executor, None), Presence(Clock()))


def test_others_have_their_turn_while_a_query_goes_over_the_twins() -> None:
    hub = new_hub()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def ask() -> QueryPage:
        others = asyncio.ensure_future(count_turns())
        page = await query_page(
            hub, parse_query(f"SELECT COUNT() AS n FROM devices WHERE {SLOW}"), 100, Continuation()
        )
        others.cancel()
        return page

    assert asyncio.run(ask()).rows == [{"n": DEVICES}]
    assert turns > 2


def test_devices_that_go_meanwhile_are_passed_over() -> None:
    hub = new_hub()

    async def delete_the_last() -> None:
        for number in range(DEVICES - 100, DEVICES):
            run(hub.core, hub.core.delete_identity(IdentityKey(f"d-{number:04}"), None))

    async def ask() -> QueryPage:
        others = asyncio.ensure_future(delete_the_last())
        page = await query_page(hub, parse_query(f"SELECT * FROM devices WHERE {SLOW}"), 1000, Continuation())
        await others
        return page

    page = asyncio.run(ask())
    assert [row["deviceId"] for row in page.rows] == [f"d-{number:04}" for number in range(DEVICES - 100)]


def test_top_holds_over_pages() -> None:
    hub = new_hub()

    async def ask() -> list[list[str]]:
        query, start, pages = parse_query("SELECT TOP 5 deviceId FROM devices"), Continuation(), []
        while True:
            page = await query_page(hub, query, 2, start)
            pages.append([row["deviceId"] for row in page.rows])
            if page.continuation is None:
                return pages
            start = Continuation.parse(str(page.continuation))

    assert asyncio.run(ask()) == [["d-0000", "d-0001"], ["d-0002", "d-0003"], ["d-0004"]]
