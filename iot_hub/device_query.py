"""Queries over the hub's twins: page by page, in the order of the identities' ids.

A continuation names the last identity shown and how many rows were given, so that what comes and goes between two pages
shifts nothing; the rows of groups are counted anew for each page.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from edge_contracts.errors import ContractError
from edge_contracts.query import Groups, Query, Source, parse_query
from iot_hub.errors import HubRequestError
from iot_hub.hub import Hub
from iot_hub.identities import IdentityKey

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
# How long twins are looked at before messages and other requests have their turn.
_TURN_S = 0.005
_PLAIN_TYPES = {Source.DEVICES: "Twin", Source.MODULES: "Twin", Source.JOBS: "DeviceJob"}


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where the next page begins: behind an identity, after so many rows."""

    after: IdentityKey | None = None
    rows: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Continuation:
        """Read the header x-ms-continuation."""
        if not text:
            return cls()
        try:
            device_id, module_id, rows = json.loads(base64.urlsafe_b64decode(text))
        except (binascii.Error, ValueError, TypeError) as error:
            raise _bad_continuation(text) from error
        if (
            not isinstance(device_id, str | None)
            or not isinstance(module_id, str | None)
            or type(rows) is not int
        ):
            raise _bad_continuation(text)
        return cls(None if device_id is None else IdentityKey(device_id, module_id), max(rows, 0))

    def __str__(self) -> str:
        device_id, module_id = (
            (None, None) if self.after is None else (self.after.device_id, self.after.module_id)
        )
        return base64.urlsafe_b64encode(json.dumps([device_id, module_id, self.rows]).encode()).decode()


@dataclass(frozen=True, slots=True)
class QueryPage:
    """Rows of one page, their type as x-ms-item-type names it, and where the next one begins; None at the end."""

    rows: list[dict[str, Any]]
    item_type: str
    continuation: Continuation | None


def read_query(body: object) -> Query:
    """The query in a request body `{"query": "SELECT …"}`."""
    text = body.get("query") if isinstance(body, Mapping) else None
    if not isinstance(text, str):
        raise HubRequestError(
            "ArgumentInvalid",
            f"query must be text, as in 'SELECT * FROM devices', not {type(text).__name__}",
            where="query",
        )
    try:
        return parse_query(text)
    except ContractError as error:
        raise HubRequestError("ArgumentInvalid", error.message, where=error.where) from error


async def query_page(hub: Hub, query: Query, size: int, start: Continuation) -> QueryPage:
    """The next page of at most `size` rows."""
    item_type = "Raw" if query.elements else _PLAIN_TYPES[query.source]
    most = size if query.top is None else min(size, max(query.top - start.rows, 0))
    rows, more = await (_grouped if query.is_grouped else _plain)(hub, query, most, start)
    ends = query.top is not None and start.rows + len(rows) >= query.top
    return QueryPage(rows, item_type, None if ends else more)


async def _plain(
    hub: Hub, query: Query, most: int, start: Continuation
) -> tuple[list[dict[str, Any]], Continuation | None]:
    rows: list[dict[str, Any]] = []
    last: IdentityKey | None = None
    async with aclosing(_matching(hub, query, start.after)) as found:
        async for key, document in found:
            if len(rows) == most:
                return rows, Continuation(last, start.rows + most)
            rows.append(query.row(document) if query.elements else hub.twin_document(key))
            last = key
    return rows, None


async def _grouped(
    hub: Hub, query: Query, most: int, start: Continuation
) -> tuple[list[dict[str, Any]], Continuation | None]:
    groups = Groups(query)
    async for _, document in _matching(hub, query, None):
        groups.add(document)
    rows = groups.rows()
    end = start.rows + most
    return rows[start.rows : end], Continuation(None, end) if end < len(rows) else None


async def _matching(
    hub: Hub, query: Query, after: IdentityKey | None
) -> AsyncGenerator[tuple[IdentityKey, dict[str, Any]], None]:
    """Keys, and what the query looks at, of the twins that the condition holds for, from behind `after` on."""
    clock = asyncio.get_running_loop().time
    end_of_turn = clock() + _TURN_S
    for key in _keys(hub, query.source, after):
        if clock() > end_of_turn:
            await asyncio.sleep(0)
            end_of_turn = clock() + _TURN_S
        # It may have gone in another one's turn.
        if hub.core.find(key) is not None:
            document = hub.twin_document(key, query.members)
            if query.matches(document):
                yield key, document


def _keys(hub: Hub, source: Source, after: IdentityKey | None) -> list[IdentityKey]:
    if source is Source.JOBS:
        # This hub schedules no jobs.
        return []
    keys = [record.key for record in hub.core.devices()]
    if source is Source.MODULES:
        keys = [module.key for device in keys for module in hub.core.modules(device)]
    return keys if after is None else keys[bisect_right(keys, _order(after), key=_order) :]


def _order(key: IdentityKey) -> tuple[str, str]:
    return key.device_id, key.module_id or ""


def _bad_continuation(text: str) -> HubRequestError:
    return HubRequestError(
        "ArgumentInvalid",
        f"x-ms-continuation must be one that this hub gave, not {text!r}",
        where="x-ms-continuation",
    )
