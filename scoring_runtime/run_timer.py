"""SCORING_TIMEOUT_MS: a `run()` that takes longer is stopped where it is, whichever thread it has.

1. How depends on what runs. Python: `ScoringTimeout` is raised in the thread at its next bytecode
   (PyThreadState_SetAsyncExc); it is no `Exception`, so that a script's `except Exception:` lets it through. A bare ONNX
   model: its run is told to end before its next node (`onnx_sessions.RunStops`).
2. What does not listen (a long sleep, a native call) goes on until it does; the client is answered all the same by whoever
   waits for the result, and `overdue` says how many there are. After STUCK_S of it `on_stuck` is told, once: the process
   cannot get its thread back, so it should be replaced.
3. A run pays for two dictionary writes and one lock that nobody else holds.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

STUCK_S = 0.5

# How exact the end is: a twentieth of the time, but never more than so many wake-ups of an idle process.
_TICK_PART = 20
_SHORTEST_TICK_S = 0.005
_LONGEST_TICK_S = 1.0
_OVERDUE_TICK_S = 0.05


class ScoringTimeout(BaseException):
    """run() took longer than it may; no Exception, so that a script does not catch it by chance."""


class RunStopper(Protocol):
    """How a run is stopped, by the thread that it has."""

    def stop(self, thread: int) -> None: ...

    def clear(self, thread: int) -> None:
        """The thread has ended its run: what was not heard must not hit the next one."""


class PythonStopper:
    def stop(self, thread: int) -> None:
        _set_exception(thread, ScoringTimeout)

    def clear(self, thread: int) -> None:
        _set_exception(thread, None)


class RunTimer:
    """One watching thread for all runs of a process."""

    def __init__(
        self,
        timeout_ms: int,
        stopper: RunStopper | None = None,
        on_stuck: Callable[[], None] | None = None,
    ) -> None:
        self.timeout_ms = timeout_ms
        self.timeout_s = timeout_ms / 1000
        self.on_stuck = on_stuck
        self._stopper = stopper or PythonStopper()
        self._started: dict[int, float] = {}  # by thread
        self._told: dict[int, float] = {}  # when the thread was told to stop
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="run-timer", daemon=True).start()

    @property
    def in_flight(self) -> int:
        return len(self._started)

    @property
    def overdue(self) -> int:
        """Runs that were told to stop and have not."""
        return len(self._told)

    def run(self, function: Callable[[Any], Any], arguments: Any) -> Any:
        """`function(arguments)` in this thread.

        Raises:
            ScoringTimeout: it took too long.
        """
        thread = threading.get_ident()
        self._started[thread] = time.perf_counter()
        try:
            return function(arguments)
        finally:
            with self._lock:
                self._started.pop(thread, None)
                told = self._told.pop(thread, None)
            if told is not None:
                self._stopper.clear(thread)

    def _watch(self) -> None:
        tick_s = min(max(self.timeout_s / _TICK_PART, _SHORTEST_TICK_S), _LONGEST_TICK_S)
        while True:
            time.sleep(min(tick_s, _OVERDUE_TICK_S) if self._told else tick_s)
            now = time.perf_counter()
            for thread, started in list(self._started.items()):
                if started < now - self.timeout_s and thread not in self._told:
                    self._stop(thread, started, now)
            if self.on_stuck is not None and any(told < now - STUCK_S for told in list(self._told.values())):
                told_once, self.on_stuck = self.on_stuck, None
                told_once()

    def _stop(self, thread: int, started: float, now: float) -> None:
        with self._lock:
            if self._started.get(thread) == started:
                self._told[thread] = now
                self._stopper.stop(thread)


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(kind) if kind else ctypes.c_void_p()
    )
