"""Signals before the event loop can hear them: `init()` comes first and may take minutes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


class EarlySignals:
    """SIGUSR1 is remembered; SIGTERM ends the process, which by default a process 1 in a container would ignore."""

    def __init__(self, activated: bool = False) -> None:
        self.activated = activated

    def install(self) -> None:
        signal.signal(signal.SIGUSR1, self._activate)
        signal.signal(signal.SIGTERM, _leave)

    def _activate(self, number: int, frame: FrameType | None) -> None:
        self.activated = True


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing is served yet, so nothing is left to finish; an exception could be caught by the script."""
    sys.stderr.flush()
    os._exit(0)
