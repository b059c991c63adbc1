"""A hub at the level of `HubLink`, module identities, and an edge hub, all in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from edge_agent.hub_client import Closed, DesiredPatch, HubLinkError, HubUnauthorizedError, LinkEvent, Twin
from edge_agent.identity import IdentityError, ModuleIdentity
from edge_contracts.messages import Message
from edge_contracts.redact import Secret
from edge_contracts.routes import Route
from edge_contracts.twin import merge_patch


class HubDouble:
    """Twins by module name; `online` and `accepts_keys` are the link one controls."""

    def __init__(self) -> None:
        self.online = True
        self.accepts_keys = True
        self.desired: dict[str, tuple[dict[str, Any], int]] = {}
        self.reported: dict[str, dict[str, Any]] = {}
        self.patches: list[tuple[str, dict[str, Any]]] = []
        self.full_gets: dict[str, int] = {}
        self.links: dict[str, LinkDouble] = {}

    def link(self, module: str) -> LinkDouble:
        return LinkDouble(self, module)

    def set_desired(self, module: str, values: dict[str, Any]) -> int:
        """Replace the desired properties, as applying a manifest does; the new version."""
        old, version = self.desired.get(module, ({}, 1))
        self.desired[module] = (deepcopy(values), version + 1)
        patch = {**deepcopy(values), **{key: None for key in old if key not in values}}
        self._tell(module, DesiredPatch(patch, version + 1))
        return version + 1

    def patch_desired(self, module: str, patch: dict[str, Any], *, skip: int = 0) -> int:
        """Merge a patch; `skip` versions are lost on the way."""
        values, version = self.desired[module]
        self.desired[module] = (merge_patch(values, patch), version + 1 + skip)
        self._tell(module, DesiredPatch(patch, version + 1 + skip))
        return version + 1 + skip

    def drop(self) -> None:
        """Every connection is lost."""
        for link in list(self.links.values()):
            link.events.put_nowait(Closed())
        self.links.clear()

    def _tell(self, module: str, event: DesiredPatch) -> None:
        if module in self.links and self.online:
            self.links[module].events.put_nowait(event)


class LinkDouble:
    """One connection."""

    def __init__(self, hub: HubDouble, module: str) -> None:
        self._hub = hub
        self._module = module
        self.events: asyncio.Queue[LinkEvent] = asyncio.Queue()

    async def open(self) -> None:
        self._check()
        if not self._hub.accepts_keys:
            raise HubUnauthorizedError(f"{self._module}: the hub does not accept this identity's key")
        self._hub.links[self._module] = self

    async def twin(self) -> Twin:
        self._check()
        self._hub.full_gets[self._module] = self._hub.full_gets.get(self._module, 0) + 1
        values, version = self._hub.desired.get(self._module, ({}, 1))
        return Twin(deepcopy(values), version, deepcopy(self._hub.reported.get(self._module, {})))

    async def report(self, patch: dict[str, Any]) -> None:
        self._check()
        self._hub.patches.append((self._module, deepcopy(patch)))
        before = self._hub.reported.get(self._module, {})
        self._hub.reported[self._module] = merge_patch(before, patch)

    async def next_event(self) -> LinkEvent:
        return await self.events.get()

    async def close(self) -> None:
        if self._hub.links.get(self._module) is self:
            del self._hub.links[self._module]

    def _check(self) -> None:
        if not self._hub.online:
            raise HubLinkError(f"{self._module}: connection refused")


class IdentitiesDouble:
    """Keys by name; `online` like the hub's."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.online = True
        self.renewed: list[str] = []
        self._known = {name: ModuleIdentity(name, Secret("a2V5")) for name in known}
        self._lock = threading.Lock()

    def names(self) -> frozenset[str]:
        return frozenset(name for name in self._known if not name.startswith("$"))

    def key_of(self, name: str) -> str | None:
        return "a2V5" if name in self._known else None

    def ensure(self, name: str, *, again: bool = False) -> ModuleIdentity:
        if again:
            self.renewed.append(name)
        if name in self._known and not again:
            return self._known[name]
        if not self.online:
            raise IdentityError("the hub cannot be reached", temporary=True)
        with self._lock:
            return self._known.setdefault(name, ModuleIdentity(name, Secret("a2V5")))

    def adopt(self, name: str) -> None:
        self._known.setdefault(name, ModuleIdentity(name, Secret("a2V5")))

    def remove(self, name: str) -> None:
        if not self.online:
            raise IdentityError("the hub cannot be reached", temporary=True)
        self._known.pop(name, None)


class LocalHubDouble:
    """An edge hub that only remembers what it was told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started = False
        self.start_error: OSError | None = None
        self.routes: tuple[Route, ...] = ()
        self.modules: set[str] = set()
        self.published: list[Message] = []

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.started = True

    async def stop(self) -> None:
        self.started = False

    def set_routes(self, routes: Sequence[Route], default_ttl_s: int) -> None:
        self.routes = tuple(routes)

    def module_environment(self, module: str) -> dict[str, str]:
        return {"IOTEDGE_MODULEID": module}

    async def ensure_module(self, module: str) -> Path:
        self.modules.add(module)
        return self._folder / module

    async def remove_module(self, module: str) -> None:
        self.modules.discard(module)

    async def publish_local(self, message: Message) -> int:
        self.published.append(message)
        return len(self.routes)

    def upstream_changed(self) -> None:
        pass

    def connected_modules(self) -> tuple[str, ...]:
        return tuple(sorted(self.modules)) if self.started else ()

    async def close_idle(self) -> None:
        pass

    async def close(self) -> None:
        pass
