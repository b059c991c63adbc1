"""How long the walk of one model takes: `python benchmarks/walk.py [RUNS]`, by default 3.

Runs `edgewright demo` RUNS times, each in an empty folder, and prints for each step the median seconds and the spread.
The answers are checked by the demo itself: it fails when a score, a digest or a roll-back is not what it must be. The
package caches are warm after the first run, which is therefore listed apart. Results go to benchmarks/results/walk.json
with the versions and the machine they belong to. The bar is 60 s on 2 cores with warm package caches.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BAR_S = 60.0
RESULTS = Path(__file__).resolve().parent / "results" / "walk.json"
PACKAGES = ("edgewright", "azure-iot-device", "azure-iot-hub", "onnxruntime", "uvicorn", "uv", "scikit-learn")


def run_once() -> list[dict[str, Any]]:
    """One demo; its table."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "publisher.cli", "demo", "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
    table: list[dict[str, Any]] = json.loads(done.stdout)
    return table


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(seconds), 2),
        "least": round(min(seconds), 2),
        "most": round(max(seconds), 2),
    }


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    tables = [run_once() for _ in range(runs + 1)][1:]
    steps = [
        {
            "step": rows[0]["title"],
            "seconds": spread([row["seconds"] for row in rows]),
            "moved": rows[-1]["moved"],
            "found": rows[-1]["found"],
        }
        for rows in zip(*tables, strict=True)
    ]
    total = spread([sum(row["seconds"] for row in table) for table in tables])
    for step in steps:
        print(f"{step['step']:42} {step['seconds']['median']:6.1f} s  {step['moved']}")
    print(f"{'total':42} {total['median']:6.1f} s  ({total['least']} to {total['most']}); bar {BAR_S:g} s")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            cwd=RESULTS.parent,
        ).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "runs": runs,
        "bar_s": BAR_S,
        "total_s": total,
        "steps": steps,
    }
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if total["median"] <= BAR_S else 1


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
