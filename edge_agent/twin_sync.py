"""One identity's twin, kept in step with the hub: desired properties in, reported properties out.

Rules:

1. The full twin is fetched at every (re)connect; a patch is applied only if it leads to the version after the last
   one, else the full twin is fetched again.
2. What was received is on the disk before it is acted on.
3. Only differences are reported, against what the hub said at connect and acknowledged since.
4. No failure of the hub ends the loop: it waits by `backoff.connect_delay_s` and connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from edge_agent.background import in_thread
from edge_agent.backoff import connect_delay_s
from edge_agent.hub_client import (
    Closed,
    Connector,
    DesiredPatch,
    HubLink,
    HubLinkError,
    HubRefusedError,
    HubUnauthorizedError,
    Resync,
)
from edge_agent.identity import Identities, IdentityError
from edge_agent.store import Store, StoreError
from edge_contracts.reported import diff
from edge_contracts.twin import merge_patch

IDENTITY_TIMEOUT_S = 30.0
STEADY_AFTER_S = 30.0
"""A connection that lasted this long starts the back-off anew; shorter ones count as failed tries."""

log = logging.getLogger("edge_agent.twin")


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How the connection stands, for `status`."""

    connected: bool = False
    tries: int = 0
    last_error: str = ""
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class Desired:
    """Desired properties and their `$version`; version 0 is none received yet."""

    values: dict[str, Any]
    version: int


class TwinSync:
    """Keeps one module identity's twin in step."""

    def __init__(
        self,
        module: str,
        file: str,
        *,
        connector: Connector,
        identities: Identities,
        store: Store,
        on_desired: Callable[[Desired], None],
        on_connected: Callable[[], None],
        random: Random,
    ) -> None:
        self.module = module
        self.status = LinkStatus()
        self._file = file
        self._connector = connector
        self._identities = identities
        self._store = store
        self._on_desired = on_desired
        self._on_connected = on_connected
        self._random = random
        self._desired = Desired({}, 0)
        self._wanted: dict[str, Any] | None = None
        self._acknowledged: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._connected_at: float | None = None

    def load(self) -> None:
        """Take up the desired properties kept by an earlier run, and announce them."""
        try:
            kept = self._store.read(self._file)
            desired = Desired(dict(kept["desired"]), int(kept["version"])) if kept is not None else None
        except (StoreError, KeyError, TypeError, ValueError) as error:
            # The hub has it still, and what is committed is in another file: no reason not to start.
            log.error("%s is not used: %s", self._file, error)
            return
        if desired is not None:
            self._desired = desired
            self._on_desired(desired)

    def report(self, reported: dict[str, Any]) -> None:
        """Make `reported` what the hub shows, as soon as it can be told."""
        if reported != self._wanted:
            self._wanted = reported
            self._changed.set()

    async def run(self) -> None:
        """Keep in step until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._connected_at = None
            await self._one_connection()
            steady = self._connected_at is not None and loop.time() - self._connected_at >= STEADY_AFTER_S
            tries = 0 if steady else self.status.tries
            self.status = replace(self.status, connected=False, tries=tries + 1)
            await asyncio.sleep(connect_delay_s(tries, self._random.random()))

    async def _one_connection(self) -> None:
        link: HubLink | None = None
        try:
            await in_thread(IDENTITY_TIMEOUT_S, self._identities.ensure, self.module)
            link = self._connector.link(self.module)
            await link.open()
            await self._fetch(link)
            self.status = LinkStatus(connected=True, tries=self.status.tries)
            self._connected_at = asyncio.get_running_loop().time()
            log.info("%s is connected, desired version %d", self.module, self._desired.version)
            self._on_connected()
            await self._follow(link)
            self._note("the connection was lost", "hub-disconnected")
        except HubUnauthorizedError as error:
            self._note(str(error), error.code)
            await self._renew_identity()
        except (HubLinkError, IdentityError, StoreError) as error:
            self._note(str(error), error.code)
        except TimeoutError:
            self._note(f"the hub did not answer within {IDENTITY_TIMEOUT_S:g} s", "hub-unreachable")
        except Exception as error:
            # Whatever a hub or the SDK does must not end the agent: it is said, and tried again.
            self._note(f"{self.module}: {type(error).__name__}: {error}", "hub-link")
        finally:
            if link is not None:
                await link.close()

    async def _follow(self, link: HubLink) -> None:
        """Apply what comes and send what changes, until the link is closed."""
        event = asyncio.ensure_future(link.next_event())
        change = asyncio.ensure_future(self._changed.wait())
        try:
            while True:
                await asyncio.wait({event, change}, return_when=asyncio.FIRST_COMPLETED)
                if change.done():
                    self._changed.clear()
                    change = asyncio.ensure_future(self._changed.wait())
                    await self._send(link)
                if event.done():
                    if isinstance(event.result(), Closed):
                        return
                    await self._apply(link, event.result())
                    event = asyncio.ensure_future(link.next_event())
        finally:
            for task in (event, change):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(event, change, return_exceptions=True)

    async def _apply(self, link: HubLink, event: DesiredPatch | Resync | Closed) -> None:
        if isinstance(event, DesiredPatch) and event.version == self._desired.version + 1:
            self._receive(Desired(merge_patch(self._desired.values, event.values), event.version))
        elif not (isinstance(event, DesiredPatch) and event.version == self._desired.version):
            await self._fetch(link)

    async def _fetch(self, link: HubLink) -> None:
        twin = await link.twin()
        self._acknowledged = twin.reported
        self._changed.set()
        if (twin.version, twin.desired) != (self._desired.version, self._desired.values):
            self._receive(Desired(twin.desired, twin.version))

    def _receive(self, desired: Desired) -> None:
        self._store.write(self._file, {"version": desired.version, "desired": desired.values})
        self._desired = desired
        self._on_desired(desired)

    async def _send(self, link: HubLink) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        patch = diff(self._acknowledged, wanted)
        if not patch:
            return
        try:
            await link.report(patch)
        except HubRefusedError as error:
            # The hub will refuse the same patch again: stay connected, and say so.
            self._note(str(error), error.code, connected=True)
            return
        self._acknowledged = wanted

    async def _renew_identity(self) -> None:
        """The device may have been created anew at the hub: set our key again."""
        try:
            await in_thread(IDENTITY_TIMEOUT_S, lambda: self._identities.ensure(self.module, again=True))
        except (IdentityError, StoreError, TimeoutError) as error:
            self._note(str(error), getattr(error, "code", "hub-unreachable"))

    def _note(self, text: str, code: str, *, connected: bool = False) -> None:
        if text != self.status.last_error:
            log.warning("%s", text)
        self.status = replace(self.status, connected=connected, last_error=text, error_code=code)
