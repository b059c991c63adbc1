"""Shared access policies: named keys of the whole hub, and what each may do.

The five policies and their rights are those that Azure creates with every hub ("Control access to IoT Hub").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

from edge_contracts.redact import Secret


class Right(Flag):
    """What a policy's token may do."""

    REGISTRY_READ = auto()
    REGISTRY_WRITE = auto()
    SERVICE_CONNECT = auto()
    DEVICE_CONNECT = auto()


OWNER_POLICY = "iothubowner"

RIGHTS_OF_POLICY: dict[str, Right] = {
    OWNER_POLICY: Right.REGISTRY_READ | Right.REGISTRY_WRITE | Right.SERVICE_CONNECT | Right.DEVICE_CONNECT,
    "service": Right.SERVICE_CONNECT,
    "device": Right.DEVICE_CONNECT,
    "registryRead": Right.REGISTRY_READ,
    "registryReadWrite": Right.REGISTRY_READ | Right.REGISTRY_WRITE,
}


@dataclass(frozen=True, slots=True)
class SharedAccessPolicy:
    """One policy with its two keys (base64)."""

    name: str
    rights: Right
    primary_key: Secret
    secondary_key: Secret

    @property
    def keys(self) -> tuple[str, str]:
        return self.primary_key.reveal(), self.secondary_key.reveal()
