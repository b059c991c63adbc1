"""Diagnostics: one per file, each with an id, what it verifies, and how to mend what it finds.

A check is a module with `CHECK = Check(id, verifies, function)`; the function returns findings and does not raise.
They run in the order of `MODULES`; when the configuration cannot be read, the first says so and no other runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any

from edge_agent.config import AgentConfig, ConfigError

MODULES = (
    "config_well_formed",
    "connection_string",
    "clock",
    "hub_mqtt",
    "hub_https",
    "interpreter",
    "sandbox_tier",
    "state_dir",
    "disk_space",
    "edge_hub_address",
    "last_release",
)


class Outcome(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and the way to mend it."""

    outcome: Outcome
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One diagnostic."""

    id: str
    verifies: str
    function: Callable[[AgentConfig], Finding]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check with its finding."""

    check: str
    verifies: str
    outcome: Outcome
    detail: str
    mend: str

    def as_document(self) -> dict[str, Any]:
        """The entry of `edge-agent check -o json`."""
        return {
            "id": self.check,
            "verifies": self.verifies,
            "result": self.outcome.value,
            "detail": self.detail,
            "mend": self.mend,
        }


def all_checks() -> Iterator[Check]:
    """Every check, in order."""
    for name in MODULES:
        yield import_module(f"edge_agent.checks.{name}").CHECK


def run_checks(config: AgentConfig) -> list[CheckResult]:
    """Run them all."""
    results = []
    for check in all_checks():
        found = check.function(config)
        results.append(CheckResult(check.id, check.verifies, found.outcome, found.detail, found.mend))
    return results


def unreadable_config(error: ConfigError) -> list[CheckResult]:
    """The results where there is no configuration to check anything with."""
    first, *others = all_checks()
    mend = error.next_command or f"correct {error.where or 'the file'}"
    broken = CheckResult(first.id, first.verifies, Outcome.ERROR, error.message, mend)
    skipped = (
        CheckResult(check.id, check.verifies, Outcome.SKIPPED, "no configuration", "") for check in others
    )
    return [broken, *skipped]
