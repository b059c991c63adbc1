"""Who is connected, and since when; kept in memory, as a hub that starts has no connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edge_contracts.twin import format_time
from iot_hub.identities import NEVER, IdentityKey


@dataclass(slots=True)
class Activity:
    """What is known of one identity's connections; times as IoT Hub writes them."""

    is_connected: bool = False
    state_updated_time: str = NEVER
    last_activity_time: str = NEVER

    @property
    def connection_state(self) -> str:
        return "Connected" if self.is_connected else "Disconnected"


class Presence:
    """The activity of every identity that was seen since the hub started."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._activities: dict[IdentityKey, Activity] = {}

    def of(self, key: IdentityKey) -> Activity:
        return self._activities.get(key) or Activity()

    def set_connected(self, key: IdentityKey, is_connected: bool) -> None:
        activity = self._activities.setdefault(key, Activity())
        activity.is_connected = is_connected
        activity.state_updated_time = activity.last_activity_time = format_time(self._now())

    def heard(self, key: IdentityKey) -> None:
        self._activities.setdefault(key, Activity()).last_activity_time = format_time(self._now())

    def forget(self, key: IdentityKey) -> None:
        self._activities.pop(key, None)

    def connected_devices(self) -> int:
        """Devices with a connection, their modules not counted."""
        return sum(
            activity.is_connected and key.module_id is None for key, activity in self._activities.items()
        )
