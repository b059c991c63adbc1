"""Counters of one scoring module and their Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping

# Seconds. From a tiny tabular model (tens of microseconds) to the longest scoring timeout; dense enough that
# a median and a 95th percentile read from the buckets are within a factor of about 1.6.
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06,
    0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip


class Metrics:
    """Thread-safe: requests are counted in worker threads and read by the HTTP thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._run_seconds = 0.0
        self._runs = 0
        self._non_finite = 0
        self._gauges: dict[str, Callable[[], float]] = {}
        self._facts: list[str] = []

    def request(self, source: str, outcome: str, run_s: float | None) -> None:
        """Count one request from `source` (http or message); `run_s` is None when run was not reached."""
        with self._lock:
            self._requests[source, outcome] += 1
            if run_s is not None:
                self._buckets[bisect_left(BUCKETS_S, run_s)] += 1
                self._run_seconds += run_s
                self._runs += 1

    def non_finite(self, values: int) -> None:
        """Count numbers of an answer that JSON could only say as null."""
        with self._lock:
            self._non_finite += values

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Show `read()` under `name` at every scrape."""
        self._gauges[name] = read

    def fact(self, name: str, label: str, values: Mapping[str, float]) -> None:
        """Show what does not change, one line for each key of `values`, which is the value of `label`."""
        lines = (
            f'edgewright_{name}{{model="{_escape(self._model)}",{label}="{_escape(key)}"}} {value:g}'
            for key, value in values.items()
        )
        self._facts += [f"# TYPE edgewright_{name} gauge", *lines]

    def text(self) -> str:
        with self._lock:
            requests = dict(self._requests)
            buckets, total_s, runs = list(self._buckets), self._run_seconds, self._runs
            non_finite = self._non_finite
        label = f'model="{_escape(self._model)}"'
        return "\n".join(
            [
                *_requests_lines(label, requests),
                *_histogram_lines(label, buckets, total_s, runs),
                "# TYPE edgewright_non_finite_values_total counter",
                f"edgewright_non_finite_values_total{{{label}}} {non_finite}",
                *(
                    f"# TYPE edgewright_{name} gauge\nedgewright_{name}{{{label}}} {read():g}"
                    for name, read in self._gauges.items()
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


def _histogram_lines(label: str, buckets: list[int], total_s: float, runs: int) -> list[str]:
    lines = ["# TYPE edgewright_run_seconds histogram"]
    below = 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
        below += count
        lines.append(f'edgewright_run_seconds_bucket{{{label},le="{bound}"}} {below}')
    lines.append(f"edgewright_run_seconds_sum{{{label}}} {total_s:.6f}")
    lines.append(f"edgewright_run_seconds_count{{{label}}} {runs}")
    return lines


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
