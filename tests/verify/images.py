"""`scripts/verify images`: the long forms of tests/integration/test_images_sweep.py.

Builds under every set of circumstances; a sparse model of 2 GB, with the peak of memory; builds interrupted at random
times. Prints a line for each, and with `--output FILE` writes them there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from images_sweep import CIRCUMSTANCES, build, interrupt_builds, make_source, new_workspace

MEMORY_BAR_BYTES = 200 << 20


def reproducible(folder: Path) -> str:
    digests = {
        build(new_workspace(folder, f"w{number}"), make_source(folder / f"s{number}"), how)["digest"]
        for number, how in enumerate(CIRCUMSTANCES)
    }
    assert len(digests) == 1, digests
    return f"{len(CIRCUMSTANCES)} circumstances (clock, umask, locale, hash seed, order of files): one digest"


def memory(folder: Path, size_bytes: int) -> str:
    found = build(new_workspace(folder, "w"), make_source(folder / "s", size_bytes))
    peak, seconds = found["peakBytes"], found["seconds"]
    assert peak < MEMORY_BAR_BYTES, peak
    return f"model of {size_bytes / 1e9:.1f} GB: peak memory {peak / 1e6:.0f} MB (bar {MEMORY_BAR_BYTES / 1e6:.0f}), build {seconds:.1f} s"


def interrupted(folder: Path, count: int, seed: int) -> str:
    ends = interrupt_builds(folder, count, seed)
    told = ", ".join(f"{number} {how}" for how, number in sorted(ends.items()))
    return f"{count} rounds of SIGINT at random times (seed {seed}): {told}; every listed image whole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="builds to interrupt")
    parser.add_argument("--size", type=float, default=2e9, help="bytes of the large model")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    # A shell's background job has it ignored, and would hand that on to the builds that are to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lines = []
    for run in (
        reproducible,
        lambda folder: memory(folder, int(options.size)),
        lambda folder: interrupted(folder, options.count, options.seed),
    ):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(run(Path(folder)))
            print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("".join(f"- {line}\n" for line in lines))


if __name__ == "__main__":
    main()
