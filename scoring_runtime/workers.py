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

    Not `ThreadPoolExecutor`: that one joins its threads when the interpreter ends, and a `run()` that never
    returns would keep a stopped module alive.
    """

    def __init__(self, threads: int, max_waiting: int = MAX_WAITING) -> None:
        self._queue: queue.Queue[tuple[Future[Any], Callable[[], object]]] = queue.Queue(max_waiting)
        self._running = 0
        self._lock = threading.Lock()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"scoring-{number}", daemon=True).start()

    @property
    def is_busy(self) -> bool:
        return self._running > 0 or not self._queue.empty()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Run `call` in a worker thread, in order of arrival.

        Raises:
            BusyError: the queue is full.
        """
        future: Future[Result] = Future()
        try:
            self._queue.put_nowait((future, call))
        except queue.Full:
            raise BusyError(f"{self._queue.maxsize} requests are waiting already; try again") from None
        return future

    def _work(self) -> None:
        while True:
            future, call = self._queue.get()
            self._count(+1)
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            self._count(-1)
            del future, call  # a waiting thread must not hold the last answer's memory

    def _count(self, change: int) -> None:
        with self._lock:
            self._running += change
