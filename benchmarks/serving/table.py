"""A result file of `bench.py` as tables: `python benchmarks/serving/table.py results/serving.json`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "edgewright"
SCRIPT = "edgewright, score.py"
AZUREML = "azureml-inference-server-http"
FASTAPI = "fastapi+uvicorn"
TWO_CALLERS = "two threads"
MLSERVER = "mlserver, in process"
FLOOR = "raw protocol, constant answer"


@dataclass(frozen=True)
class Bar:
    """`ratio` of one run must be at least `must`; at most, when `lower`."""

    text: str
    ratio: Callable[[Results], float]
    must: float
    goal: float
    lower: bool = False


class Results:
    """Medians over the rounds of one result file."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def values(self, case: str, server: str, connections: int, name: str) -> list[float]:
        return [found["at"][str(connections)][name] for found in self._rounds(case, server)]

    def rate(self, case: str, server: str, connections: int) -> float:
        return statistics.median(self.values(case, server, connections, "requests_per_s"))

    def p50_us(self, case: str, server: str, connections: int) -> float:
        return statistics.median(self.values(case, server, connections, "p50_us"))

    def of_server(self, case: str, server: str, name: str) -> float:
        return statistics.median([found[name] for found in self._rounds(case, server)])

    def bare(self, case: str) -> float:
        """The best of the sessions that one thread calls; two callers at once are shown beside it."""
        many = self.document["bare_runs_per_s"][case]
        ways = [way for way in many[0] if TWO_CALLERS not in way]
        return max(statistics.median([found[way] for found in many]) for way in ways)

    def failed(self, case: str, server: str) -> int:
        return sum(
            at["wrong"] + at["errors"] for found in self._rounds(case, server) for at in found["at"].values()
        )

    def _rounds(self, case: str, server: str) -> list[dict[str, Any]]:
        rounds: list[dict[str, Any]] = json.loads(json.dumps(self.document["rounds"][case][server]))
        return rounds


def _times(case: str, connections: int, peer: str, ours: str = OURS) -> Callable[[Results], float]:
    return lambda found: found.rate(case, ours, connections) / found.rate(case, peer, connections)


def _of_bare(case: str, connections: int) -> Callable[[Results], float]:
    return lambda found: found.rate(case, OURS, connections) / found.bare(case)


def _part(name: str) -> Callable[[Results], float]:
    return lambda found: found.of_server("tab", OURS, name) / found.of_server("tab", AZUREML, name)


BARS = (
    Bar("tab c=64, unique headers, × azureml", _times("tab-unique", 64, AZUREML), 15, 25),
    Bar("tab c=64, unique headers, × FastAPI", _times("tab-unique", 64, FASTAPI), 3, 5),
    Bar("tab c=64, × azureml", _times("tab", 64, AZUREML), 25, 40),
    Bar("tab c=64, × FastAPI", _times("tab", 64, FASTAPI), 5, 5),
    Bar("tab c=64, × MLServer in process", _times("tab", 64, MLSERVER), 10, 10),
    Bar("tab c=64, of the bare loop", _of_bare("tab", 64), 0.40, 0.55),
    Bar("the peer's score.py, c=64, × azureml", _times("tab", 64, AZUREML, SCRIPT), 15, 25),
    Bar(
        "tab c=1, median latency, × raw protocol",
        lambda found: found.p50_us("tab", OURS, 1) / found.p50_us("tab", FLOOR, 1),
        1.5,
        1.25,
        lower=True,
    ),
    Bar("tab c=1, × azureml", _times("tab", 1, AZUREML), 3, 3),
    Bar("cnn c=1, × azureml", _times("cnn", 1, AZUREML), 1.2, 1.2),
    Bar("cnn c=1, of the best bare session", _of_bare("cnn", 1), 0.75, 0.9),
    Bar("cnn c=8, × azureml", _times("cnn", 8, AZUREML), 1.4, 1.4),
    Bar("cnn c=8, of the best bare session", _of_bare("cnn", 8), 0.95, 1.1),
    Bar("raw image, c=8, × azureml", _times("img", 8, AZUREML), 8, 12),
    Bar("cold start, of azureml's", _part("cold_start_s"), 0.5, 0.3, lower=True),
    Bar("resident memory, of azureml's", _part("rss_mb"), 0.65, 0.55, lower=True),
)


def table(document: dict[str, Any]) -> str:
    """One row for each case, server and number of connections: medians, and the lowest to the highest."""
    found = Results(document)
    lines = [
        "| case | server | c | requests/s | lowest–highest | p50 µs | p99 µs | CPU µs/request | cold s | RSS MB | wrong or failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, servers in document["rounds"].items():
        for server, rounds in servers.items():
            for connections in rounds[0]["at"]:
                rates = found.values(case, server, connections, "requests_per_s")
                times = [
                    statistics.median(found.values(case, server, connections, name))
                    for name in ("p50_us", "p99_us", "cpu_us")
                ]
                cells = [case, server, str(connections), f"{statistics.median(rates):,.0f}"]
                cells += [f"{min(rates):,.0f}–{max(rates):,.0f}", *(f"{value:,.0f}" for value in times)]
                cells += [f"{found.of_server(case, server, 'cold_start_s'):.2f}"]
                cells += [f"{found.of_server(case, server, 'rss_mb'):.0f}", str(found.failed(case, server))]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(document: dict[str, Any]) -> str:
    """The issue's bars, met or missed as they are; those whose case was not run are left out."""
    lines = ["| bar | must | goal | found | |", "|---|---|---|---|---|"]
    found = Results(document)
    for bar in BARS:
        try:
            ratio = bar.ratio(found)
        except KeyError:
            continue
        sign = "≤" if bar.lower else "≥"
        lines.append(
            f"| {bar.text} | {sign} {bar.must:g} | {sign} {bar.goal:g} | {ratio:.2f} | {_verdict(bar, ratio)} |"
        )
    return "\n".join(lines)


def cpu_ratios(document: dict[str, Any]) -> str:
    """A peer's processor time per request over ours: a busy machine moves it less than requests per second."""
    found = Results(document)
    lines = ["| case | c | ours | azureml / ours | FastAPI / ours |", "|---|---|---|---|---|"]
    for case, servers in document["rounds"].items():
        for ours in (OURS, SCRIPT):
            for connections in servers[ours][0]["at"] if ours in servers else ():
                own, azureml, fastapi = (
                    statistics.median(found.values(case, server, connections, "cpu_us"))
                    for server in (ours, AZUREML, FASTAPI)
                )
                lines.append(
                    f"| {case} | {connections} | {ours} | {azureml / own:.1f} | {fastapi / own:.1f} |"
                )
    return "\n".join(lines)


def _verdict(bar: Bar, ratio: float) -> str:
    def reached(limit: float) -> bool:
        return ratio <= limit if bar.lower else ratio >= limit

    return "goal reached" if reached(bar.goal) else "met" if reached(bar.must) else "missed"


def main(arguments: Sequence[str]) -> None:
    document = json.loads(Path(arguments[0]).read_text())
    print(f"{bars(document)}\n\n{cpu_ratios(document)}\n\n{table(document)}")


if __name__ == "__main__":
    main(sys.argv[1:])
