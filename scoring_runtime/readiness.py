"""Where the module is in its life; written by the server, read by the health routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Phase(Enum):
    STARTING = "starting"  # init() has not returned
    READY = "ready"
    STOPPING = "stopping"  # SIGTERM was received


@dataclass(slots=True)
class Readiness:
    """`details` are asked for `/ready?verbose=1`; they never decide whether the module is ready."""

    model: str
    phase: Phase = Phase.STARTING
    serving_public: bool = False
    details: dict[str, Callable[[], Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY

    def report(self) -> dict[str, Any]:
        return {
            "ready": self.is_ready,
            "phase": self.phase.value,
            "model": self.model,
            "servingPublic": self.serving_public,
            **{name: dict(read()) for name, read in self.details.items()},
        }
