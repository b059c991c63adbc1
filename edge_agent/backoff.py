"""How long to wait before trying again: pure functions of the number of tries and a random number in [0, 1).

| what                    | delay before try n+1                                    | cap    |
| ----------------------- | ------------------------------------------------------- | ------ |
| restart of a module     | none for the first, then 10·2^n s                       | 300 s  |
| pull, start, identities | 10·2^n s                                                | 300 s  |
| connecting to the hub   | 1·2^n s, at most 10 s for the first 30 tries (≈ 5 min)  | 60 s   |

10·2^n and 300 s are IoT Edge's numbers, without its uncapped growth and without giving up. The connection is
retried quickly at first because a hub that restarts should have its devices back within seconds; ten seconds is
also the device SDK's own retry interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BASE_S = 10.0
CAP_S = 300.0
JITTER = 0.1
HEALTHY_AFTER_S = 600.0
"""A module that ran this long is no longer counted as crashing (IoT Edge's IntensiveCareTime)."""

QUICK_CONNECTS = 30
QUICK_CONNECT_CAP_S = 10.0
CONNECT_CAP_S = 60.0
_MAX_EXPONENT = 16


def restart_delay_s(crashes: int, random: float) -> float:
    """Wait before restarting a module that has crashed `crashes` times before this one."""
    return 0.0 if crashes == 0 else retry_delay_s(crashes - 1, random)


def retry_delay_s(failures: int, random: float) -> float:
    """Wait before trying a failed step again, `failures` failures having come before this one."""
    return _jittered(min(BASE_S * 2 ** min(failures, _MAX_EXPONENT), CAP_S), random)


def connect_delay_s(tries: int, random: float) -> float:
    """Wait before connecting to the hub again after `tries` failed tries in a row."""
    cap = QUICK_CONNECT_CAP_S if tries < QUICK_CONNECTS else CONNECT_CAP_S
    return _jittered(min(2.0 ** min(tries, _MAX_EXPONENT), cap), random)


def _jittered(delay_s: float, random: float) -> float:
    return delay_s * (1 + JITTER * (2 * random - 1))


@dataclass(frozen=True, slots=True)
class RestartRecord:
    """One module instance's crashes, in the agent's monotonic clock."""

    crashes: int = 0
    running_since: float | None = None
    due: float | None = None
    """When it may be started again; None while it runs."""

    def seen_running(self, clock: float) -> RestartRecord:
        """The record after an observation that found the instance running."""
        since = clock if self.running_since is None else self.running_since
        crashes = 0 if clock - since >= HEALTHY_AFTER_S else self.crashes
        return replace(self, crashes=crashes, running_since=since, due=None)

    def seen_exited(self, clock: float, random: float) -> RestartRecord:
        """The record after an observation that found the instance exited; idempotent until it runs again."""
        if self.due is not None:
            return self
        ran_well = self.running_since is not None and clock - self.running_since >= HEALTHY_AFTER_S
        before = 0 if ran_well else self.crashes
        return RestartRecord(before + 1, None, clock + restart_delay_s(before, random))
