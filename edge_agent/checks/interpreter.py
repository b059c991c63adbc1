"""interpreter: process.python runs, and is a version that images can be built for."""

from __future__ import annotations

import subprocess

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig

TIMEOUT_S = 20.0
SUPPORTED = ("3.11", "3.12", "3.13")
PROGRAM = "import sys; print('%d.%d' % sys.version_info[:2])"


def _run(config: AgentConfig) -> Finding:
    command = [str(config.python), "-I", "-S", "-c", PROGRAM]
    mend = "set process.python to a Python 3.11 to 3.13, the version the images are built for"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(Outcome.ERROR, f"{config.python} does not run: {error}", mend)
    version = done.stdout.strip()
    if done.returncode != 0 or version not in SUPPORTED:
        found = version or f"exit code {done.returncode}"
        return Finding(
            Outcome.ERROR, f"{config.python} must be one of {', '.join(SUPPORTED)}, not {found}", mend
        )
    return Finding(Outcome.OK, f"{config.python} is Python {version}")


CHECK = Check("interpreter", "the interpreter of images without a base runs", _run)
