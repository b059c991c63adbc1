"""`scripts/verify scoring_fuzz [--examples N]`: the fuzz tests of the scoring server with many examples of each."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = "tests/integration/test_scoring_fuzz.py"


def main() -> int:
    """Run pytest; its exit code."""
    parser = argparse.ArgumentParser(description="Fuzz the scoring server.")
    parser.add_argument("--examples", type=int, default=2000, help="of each test (default 2000)")
    examples = parser.parse_args().examples
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", TESTS],
        cwd=ROOT,
        env={**os.environ, "EDGEWRIGHT_FUZZ_EXAMPLES": str(examples)},
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
