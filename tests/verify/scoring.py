"""`scripts/verify scoring`: soak of the scoring runtime; exit code 1 on a wrong answer or memory that grows.

A bare model and a script get half of the requests each, on loopback; `tests/support/scoring_soak.py` says which.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from scoring_soak import GROWTH_LIMIT_BYTES, WrongAnswerError, soak


def main() -> int:
    """Both servers, one after the other."""
    parser = argparse.ArgumentParser(description="Soak the scoring runtime.")
    parser.add_argument("--requests", type=int, default=1_000_000, help="in all (default 1000000)")
    parser.add_argument("--limit-s", type=float, default=3600, help="give up after so long for one server")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for is_script in (False, True):
            try:
                report = soak(
                    Path(folder, str(is_script)),
                    options.requests // 2,
                    is_script=is_script,
                    limit_s=options.limit_s,
                )
            except (WrongAnswerError, OSError) as error:
                print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
                return 1
            print(report, flush=True)
            failed |= report.growth_bytes > GROWTH_LIMIT_BYTES
    if failed:
        print(f"error: memory grew by more than {GROWTH_LIMIT_BYTES / 1e6:g} MB", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
