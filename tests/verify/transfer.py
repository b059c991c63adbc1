"""Each request of a push and of a pull with each fault, and the fuzz of unpacking at length: `scripts/verify transfer`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "integration")]

FUZZ_EXAMPLES = "1000"
PASSWORD = "correct-horse"


def main() -> int:
    from registry_proxy import Fault, FaultProxy
    from registry_tokens import token_registry
    from test_transfer_faults import build_image
    from transfer_sweep import Sweep, sweep_pull, sweep_push

    from edge_containers.registry_client import BasicCredentials
    from edge_contracts.redact import Secret
    from publisher.image_transfer import Access

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with token_registry(folder / "registry", {"ci": (PASSWORD, {"pull", "push"})}) as registry:
            image = build_image(folder / "image")
            access = Access(BasicCredentials("ci", Secret(PASSWORD)), timeout_s=10, sleep=lambda _: None)
            with FaultProxy(registry.address) as proxy:
                sweep = Sweep(proxy, registry.address, image, access, folder / "sweep", itertools.count())
                print("push:", sweep_push(sweep, Fault, every=True), flush=True)
                print("pull:", sweep_pull(sweep, Fault, every=True), flush=True)
    fuzz = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--timeout=3600",
        "tests/unit/edge_containers/test_unpack_fuzz.py",
    ]
    return subprocess.run(
        fuzz, cwd=ROOT, env=os.environ | {"FUZZ_EXAMPLES": FUZZ_EXAMPLES}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
