"""SCORING_TIMEOUT_MS: a `run()` that takes longer is stopped where it is, whichever thread it has.

1. `ScoringTimeout` is raised in the thread at its next bytecode (PyThreadState_SetAsyncExc). It is no `Exception`, so
   that a script's `except Exception:` lets it through.
2. Code that does not return to Python (a long sleep, a native call) goes on until it does; the client is answered all the
   same by whoever waits for the result, and `overdue` says how many there are.
3. A run pays for two dictionary writes and one lock that nobody else holds.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

# How exact the end is: a twentieth of the time, but never more than so many wake-ups of an idle process.
_TICK_PART = 20
_SHORTEST_TICK_S = 0.005
_LONGEST_TICK_S = 1.0
_EXPIRED = -1.0


class ScoringTimeout(BaseException):
    """run() took longer than it may; no Exception, so that a script does not catch it by chance."""


class RunTimer:
    """One watching thread for all runs of a process."""

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self.timeout_s = timeout_ms / 1000
        self._started: dict[int, float] = {}  # by thread; _EXPIRED once it was told to stop
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="run-timer", daemon=True).start()

    @property
    def in_flight(self) -> int:
        return len(self._started)

    @property
    def overdue(self) -> int:
        """Runs that were told to stop and have not."""
        return list(self._started.values()).count(_EXPIRED)

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
                expired = self._started.pop(thread, None) == _EXPIRED
            if expired:  # what was not raised yet must not be raised in the next run
                _set_exception(thread, None)

    def _watch(self) -> None:
        tick_s = min(max(self.timeout_s / _TICK_PART, _SHORTEST_TICK_S), _LONGEST_TICK_S)
        while True:
            time.sleep(tick_s)
            latest = time.perf_counter() - self.timeout_s
            for thread, started in list(self._started.items()):
                if _EXPIRED < started < latest:
                    self._stop(thread, started)

    def _stop(self, thread: int, started: float) -> None:
        with self._lock:
            if self._started.get(thread) == started:
                self._started[thread] = _EXPIRED
                _set_exception(thread, ScoringTimeout)


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(kind) if kind else ctypes.c_void_p()
    )
