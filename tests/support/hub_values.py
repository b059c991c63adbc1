"""A hub core without disk or network: a clock that is set, and random bytes that count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from iot_hub.core import Change, Effect, HubCore
from iot_hub.identities import IdentityKey, IdentityRequest

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class CountedBytes:
    """Distinct bytes at each call, the same in each run."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, size: int) -> bytes:
        self._calls += 1
        return self._calls.to_bytes(size, "big")


def new_core(clock: Clock | None = None) -> HubCore:
    return HubCore(now=clock or Clock(), random_bytes=CountedBytes())


def run(core: HubCore, change: Change) -> tuple[Effect, ...]:
    """What the hub does with a change, but for the disk."""
    core.apply(change)
    return change.effects


def add_device(core: HubCore, device_id: str = "d", **request: Any) -> IdentityKey:
    key = IdentityKey(device_id)
    run(core, core.put_identity(key, IdentityRequest(**request), None))
    return key
