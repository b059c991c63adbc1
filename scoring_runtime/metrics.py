"""Counters of one scoring module and their Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, MutableSequence, Sequence

# Seconds. From a tiny tabular model (tens of microseconds) to the longest scoring timeout; dense enough that
# a median and a 95th percentile read from the buckets are within a factor of about 1.6.
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06,
    0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip


SOURCES = ("http", "message", "golden")
OUTCOMES = ("ok", "bad_input", "unsupported_content_type", "run_failed", "bad_result", "timed_out")
# What a worker shows as it is now; the sum over the workers is what the module shows.
GAUGES = ("runs_in_flight", "runs_overdue", "messages_connected")

# Where a row of numbers keeps what.
_REQUESTS = {(source, outcome): i for i, (source, outcome) in enumerate(itertools.product(SOURCES, OUTCOMES))}
_BUCKETS = len(_REQUESTS)
_RUN_SECONDS = _BUCKETS + len(BUCKETS_S) + 1
_NON_FINITE = _RUN_SECONDS + 1
_GAUGES = _NON_FINITE + 1
NUMBERS = _GAUGES + len(GAUGES)


class Metrics:
    """Thread-safe: requests are counted in worker threads and read by the HTTP thread.

    Every worker process counts in a row of its own and shows the sum of all rows, whichever is asked.
    """

    def __init__(
        self,
        model: str,
        own: MutableSequence[float] | memoryview[float] | None = None,
        others: Sequence[Sequence[float] | memoryview[float]] = (),
    ) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._own = own if own is not None else [0.0] * NUMBERS
        self._others = others
        self._gauges: dict[int, Callable[[], float]] = {}
        self._counters: dict[str, Callable[[], int]] = {}
        self._facts: list[str] = []
        for index in range(_GAUGES, NUMBERS):  # a predecessor's
            self._own[index] = 0.0

    def request(self, source: str, outcome: str, run_s: float | None, count: int = 1) -> None:
        """Count requests from `source` (http or message); `run_s` is None when run was not reached.

        Args:
            count: that many alike, which shared a run.
        """
        own = self._own
        with self._lock:
            own[_REQUESTS[source, outcome]] += count
            if run_s is not None:
                own[_BUCKETS + bisect_left(BUCKETS_S, run_s)] += count
                own[_RUN_SECONDS] += run_s * count

    def non_finite(self, values: int) -> None:
        """Count numbers of an answer that JSON could only say as null."""
        with self._lock:
            self._own[_NON_FINITE] += values

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Show `read()` under `name`, one of GAUGES; other workers see it as `publish` found it last."""
        self._gauges[_GAUGES + GAUGES.index(name)] = read

    def counter(self, name: str, read: Callable[[], int]) -> None:
        """Show a count that is kept elsewhere, for all workers together."""
        self._counters[name] = read

    def publish(self) -> None:
        for index, read in self._gauges.items():
            self._own[index] = read()

    def fact(self, name: str, label: str, values: Mapping[str, float]) -> None:
        """Show what does not change, one line for each key of `values`, which is the value of `label`."""
        lines = (
            f'edgewright_{name}{{model="{_escape(self._model)}",{label}="{_escape(key)}"}} {value:g}'
            for key, value in values.items()
        )
        self._facts += [f"# TYPE edgewright_{name} gauge", *lines]

    def text(self) -> str:
        self.publish()
        with self._lock:
            numbers = [sum(column) for column in zip(self._own, *self._others, strict=False)]
        label = f'model="{_escape(self._model)}"'
        counters = {
            "non_finite_values_total": int(numbers[_NON_FINITE]),
            **{name: read() for name, read in self._counters.items()},
        }
        return "\n".join(
            [
                *_requests_lines(
                    label, {key: int(numbers[at]) for key, at in _REQUESTS.items() if numbers[at]}
                ),
                *_histogram_lines(
                    label, list(map(int, numbers[_BUCKETS:_RUN_SECONDS])), numbers[_RUN_SECONDS]
                ),
                *(
                    f"# TYPE edgewright_{name} counter\nedgewright_{name}{{{label}}} {count}"
                    for name, count in counters.items()
                ),
                *(
                    f"# TYPE edgewright_{name} gauge\nedgewright_{name}{{{label}}} {numbers[_GAUGES + number]:g}"
                    for number, name in enumerate(GAUGES)
                    if _GAUGES + number in self._gauges
                ),
                *self._facts,
                "",
            ]
        )


def _requests_lines(label: str, requests: Mapping[tuple[str, str], int]) -> list[str]:
    failed = sum(count for (_, outcome), count in requests.items() if outcome != "ok")
    return [
        "# TYPE edgewright_requests_total counter",
        *(
            f'edgewright_requests_total{{{label},source="{source}",outcome="{outcome}"}} {count}'
            for (source, outcome), count in sorted(requests.items())
        ),
        "# TYPE edgewright_request_errors_total counter",
        f"edgewright_request_errors_total{{{label}}} {failed}",
    ]


def _histogram_lines(label: str, buckets: Sequence[int], total_s: float) -> list[str]:
    lines = ["# TYPE edgewright_run_seconds histogram"]
    below = 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
        below += count
        lines.append(f'edgewright_run_seconds_bucket{{{label},le="{bound}"}} {below}')
    lines.append(f"edgewright_run_seconds_sum{{{label}}} {total_s:.6f}")
    lines.append(f"edgewright_run_seconds_count{{{label}}} {below}")
    return lines


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
