"""Threads that run the model, so that health questions are answered while it computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import BusyError

Result = TypeVar("Result")

# Requests that wait for a thread. At the message size of IoT Edge this is 256 MB at the very worst; a client
# that finds it full is told to come again.
MAX_WAITING = 1024


class WorkerPool:
    """A few daemon threads in front of one bounded queue.

    As many `run()` at once as there are threads, a caller's own thread between `try_enter` and `leave` included.

    Not `ThreadPoolExecutor`: that one joins its threads when the interpreter ends, and a `run()` that never
    returns would keep a stopped module alive.
    """

    def __init__(self, threads: int, max_waiting: int = MAX_WAITING) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], object]]] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._full = f"{max_waiting} requests are waiting already; try again"
        self._waiting = 0
        self._running = 0
        self._lock = threading.Lock()
        self._slots = threading.Lock() if threads == 1 else threading.BoundedSemaphore(threads)
        for number in range(threads):
            threading.Thread(target=self._work, name=f"scoring-{number}", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        return self._running > 0 or self._waiting > 0

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Run `call` in a worker thread, in order of arrival.

        Raises:
            BusyError: the queue is full.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise BusyError(self._full)
            self._waiting += 1
        self._queue.put((future, call))
        return future

    def refuse(self, why: str) -> None:
        """Whatever waits, and whatever comes, gets a BusyError: the threads do not come back."""
        with self._lock:
            self._max_waiting, self._full = 0, why
        while True:
            try:
                future, _ = self._queue.get_nowait()
            except queue.Empty:
                return
            self._count(waiting=-1)
            if future.set_running_or_notify_cancel():
                future.set_exception(BusyError(why))

    def try_enter(self) -> bool:
        """Whether the calling thread may run the model itself now; then it must `leave`. Whoever waits goes first."""
        return not self._waiting and self._slots.acquire(blocking=False)

    def leave(self) -> None:
        self._slots.release()

    def _work(self) -> None:
        while True:
            future, call = self._queue.get()
            with self._slots:
                self._count(waiting=-1, running=+1)
                result, error = _outcome(future, call)
                self._count(running=-1)
            # Told after the slot is free: whoever waits for this answer may ask for the next one at once.
            if error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(result)
            del future, call, result, error  # a waiting thread must not hold the last answer's memory

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        with self._lock:
            self._waiting += waiting
            self._running += running


def _outcome(future: Future[Any], call: Callable[[], object]) -> tuple[object, BaseException | None]:
    if not future.set_running_or_notify_cancel():
        return None, None
    try:
        return call(), None
    except BaseException as error:
        return None, error
