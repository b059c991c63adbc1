"""state-dir: the state folder can be written, and its release record can be read."""

from __future__ import annotations

import os

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig
from edge_agent.store import Store, StoreError


def _run(config: AgentConfig) -> Finding:
    folder = config.state_dir
    mend = f"make {folder} writable by this user (uid {os.geteuid()}), or set agent.state_dir"
    try:
        store = Store(folder)
        store.prepare()
        probe = folder / f".check-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        store.load_record()
    except StoreError as error:
        return Finding(Outcome.ERROR, error.message, mend)
    except OSError as error:
        return Finding(Outcome.ERROR, f"{folder} cannot be written: {error.strerror}", mend)
    return Finding(Outcome.OK, str(folder))


CHECK = Check("state-dir", "the state folder is writable and its records are whole", _run)
