"""The process above the workers: it has the listening sockets, replaces workers, and passes signals on.

1. It imports next to nothing and never runs a user's code. Workers are forked from it and load everything themselves.
2. The first worker reads the arguments, takes the addresses and hands the sockets up. Until it is ready its end is the
   end of all: its exit code is passed on, and a worker that died by a signal is exit code 3.
3. Once it is ready the other workers start. From then on a worker that ends is replaced, and one that gives no sign of
   life for longer than `run()` may take and GRACE_S is killed first.
4. The first replacement comes at once, the next ones of the same minute after doubling, jittered pauses (not after
   silence or a stuck run, which take their time anyway). More than MOST_DEATHS in WINDOW_S end everything with EXIT_DYING: whoever
   restarts modules must see it.
5. SIGTERM and SIGINT: the sockets are closed here, the workers drain, and the end is 0 if each of them ended so.
   SIGUSR1 (EDGEWRIGHT_HOLD) goes to every worker, and to those to come.
6. When it dies by whatever cause the kernel kills its workers. As process 1 it reaps what others leave behind.

Signals are blocked and waited for (sigtimedwait): no handler runs, and process 1 does not lose them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

from .seat import Board, Field, Seat, starved_s
from .signals import EarlySignals

GRACE_S = 0.5
MOST_DEATHS = 5
WINDOW_S = 60.0
MAX_PAUSE_S = 5.0
_FIRST_PAUSE_S = 0.2
# Over the worker's own drain (server.DRAIN_S), which cuts what is left.
STOP_S = 11.0
EXIT_DYING = 4
EXIT_STUCK = 5  # a worker's own, when a run() cannot be stopped
_EXIT_BAD_START = 3

# A silent worker is looked at again after this; and when the supervisor itself woke so much too late, the whole machine
# stood still, and silence says nothing.
_LOOK_AGAIN_S = 0.15
_SHORTEST_WAIT_S = 0.02
_LONGEST_WAIT_S = 60.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
_SOCKET_VARIABLES = ("EDGEWRIGHT_HTTP_FD", "EDGEWRIGHT_HEALTH_FD")


def supervise(work: Callable[[Seat], None]) -> int:
    """Run `work` in forked workers until stopped; the exit code. In a worker it does not return."""
    return Supervisor(work).run()


class Supervisor:
    def __init__(self, work: Callable[[Seat], None]) -> None:
        self._work = work
        self._board = Board()
        self._seats: dict[int, int] = {}  # by process id
        self._due: dict[int, float] = {}  # seats without a worker, and when they get one
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._workers = 1
        self._silence_s = 0.0
        self._descriptors: list[int] = []
        self._started = self._activated = False
        self._stop_by: float | None = None
        self._exit_code = 0
        self._awake_since = 0.0
        self._killed: set[int] = set()  # processes, for their silence
        self._suspects: dict[int, float] = {}  # the last beat of a worker that was silent when last looked at
        self._mask: set[int] = set()
        self._line, self._workers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def run(self) -> int:
        # Never called, for the signal is waited for; runtimes look for a handler (SigCgt) before they send SIGUSR1, which
        # would end a process that has none, and a signal that is waited for is not shown as blocked either.
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._fork(0, first=True)
        self._workers_end.close()
        self._take_sockets()
        self._line.close()
        while self._seats or self._due:
            self._wait()
            self._reap()
            if self._stop_by is None:
                self._look_after()
            elif time.monotonic() >= self._stop_by:
                self._signal_all(signal.SIGKILL)
        return self._exit_code

    # ---- workers ----

    def _fork(self, number: int, *, first: bool = False) -> None:
        row = self._board.row(number)
        row[Field.READY] = row[Field.LENIENT_UNTIL] = 0.0
        parent = os.getpid()
        process = os.fork()
        if process:
            self._seats[process] = number
            return
        _die_with(parent)
        self._line.close()
        early = EarlySignals(self._activated)
        early.install()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._work(Seat(number, self._board, early, parent, self._workers_end if first else None))
        os._exit(0)  # not reached: `work` ends the process

    def _take_sockets(self) -> None:
        """What the first worker reports; nothing when it has ended instead, which the loop then sees."""
        message, descriptors, _, _ = socket.recv_fds(
            self._line, 64, len(_SOCKET_VARIABLES), socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return
        workers, silence_s = message.split()
        self._workers, self._silence_s = int(workers), float(silence_s)
        for variable in _SOCKET_VARIABLES:
            if os.environ.get(variable):
                os.close(int(os.environ[variable]))
        self._descriptors = list(descriptors)
        for variable, descriptor in zip(_SOCKET_VARIABLES, descriptors, strict=False):
            os.environ[variable] = str(descriptor)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            if process in self._seats:
                self._ended(process, self._seats.pop(process), os.waitstatus_to_exitcode(status))

    def _ended(self, process: int, number: int, code: int) -> None:
        if not self._started:
            self._end_of_start(process, code)
        elif self._stop_by is not None:
            self._exit_code = self._exit_code or (EXIT_DYING if code else 0)
        else:
            self._replace(process, number, code)

    def _end_of_start(self, process: int, code: int) -> None:
        if code < 0:
            _say(f"worker 0 (pid {process}) {_how(code)} before it was ready")
        if self._stop_by is None:
            self._exit_code = code if 0 <= code <= _EXIT_BAD_START else _EXIT_BAD_START

    def _replace(self, process: int, number: int, code: int) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(died > now - WINDOW_S for died in self._deaths)
        found = f"worker {number} (pid {process}) {_how(code)}"
        if recent > MOST_DEATHS:
            _say(f"{found}; {recent} ended within {WINDOW_S:g} s, so the module ends")
            self._stop(EXIT_DYING)
            return
        pause = 0.0 if process in self._killed or code == EXIT_STUCK else _pause_s(recent)
        self._killed.discard(process)
        _say(f"{found}; replaced" + (f" in {pause:.1f} s" if pause else ""))
        self._due[number] = now + pause
        self._board.row(number)[Field.REPLACED] += 1

    # ---- what goes on ----

    def _wait(self) -> None:
        """Until a signal or the next thing to do."""
        now = time.monotonic()
        asked = now + min(max(self._next(now) - now, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        received = signal.sigtimedwait(_SIGNALS, asked - now)
        now = time.monotonic()
        if now > asked + _LOOK_AGAIN_S:
            self._awake_since = now
        if received is None:
            return
        if received.si_signo in (signal.SIGTERM, signal.SIGINT):
            self._stop(0)
        elif received.si_signo == signal.SIGUSR1:
            self._activated = True
            self._signal_all(signal.SIGUSR1)

    def _next(self, now: float) -> float:
        if self._stop_by is not None:
            return self._stop_by
        looks = (
            now + self._silence_s - quiet_s + (_LOOK_AGAIN_S if number in self._suspects else 0.0)
            for _, number, quiet_s in self._quiet(now)
        )
        return min((*self._due.values(), *looks), default=now + _LONGEST_WAIT_S)

    def _look_after(self) -> None:
        now = time.monotonic()
        if not self._started and self._board.row(0)[Field.READY]:
            self._started = True
            self._due = dict.fromkeys(range(1, self._workers), now)
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._fork(number)
        self._look_for_silence(now)

    def _look_for_silence(self, now: float) -> None:
        """Kill a worker that was found silent twice, with no beat in between."""
        for process, number, quiet_s in self._quiet(now):
            beat = self._board.row(number)[Field.BEAT]
            if quiet_s <= self._silence_s:
                self._suspects.pop(number, None)
            elif self._suspects.get(number) != beat:
                self._suspects[number] = beat
            elif quiet_s > self._silence_s + _LOOK_AGAIN_S:
                del self._suspects[number]
                _say(f"worker {number} (pid {process}) gave no sign of life for {quiet_s:.1f} s; killed")
                os.kill(process, signal.SIGKILL)
                self._killed.add(process)
                self._board.row(number)[Field.READY] = 0.0

    def _quiet(self, now: float) -> list[tuple[int, int, float]]:
        """(process, seat, seconds of unexpected silence) of every worker that should beat."""
        found = []
        for process, number in self._seats.items():
            row = self._board.row(number)
            if row[Field.READY]:
                quiet_s = now - max(row[Field.BEAT], row[Field.LENIENT_UNTIL], self._awake_since)
                if quiet_s > self._silence_s:  # others may have had the processors; that is no silence
                    quiet_s -= max(0.0, starved_s(process) - row[Field.STARVED])
                found.append((process, number, quiet_s))
        return found

    # ---- the end ----

    def _stop(self, code: int) -> None:
        if self._stop_by is not None:
            return
        self._stop_by = time.monotonic() + STOP_S
        self._exit_code = code
        self._due.clear()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._seats:
            os.kill(process, number)  # not reaped yet, so it is still this process


def _die_with(parent: int) -> None:
    """Have the kernel kill this worker when its supervisor dies."""
    import ctypes  # a megabyte that the supervisor does without

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def _pause_s(recent: int) -> float:
    """Before the replacement of the n-th death in a row."""
    if recent < 2:
        return 0.0
    spread = 0.5 + os.urandom(1)[0] / 512  # `random` would be imported for this alone
    return min(MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (recent - 1)) * spread


def _how(code: int) -> str:
    if code == EXIT_STUCK:
        return "has ended because of a run() that cannot be stopped"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(text: str) -> None:
    """A log line as `log_format` writes it; `text` is ours alone and has nothing to escape."""
    now = time.time()
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    if os.environ.get("EDGEWRIGHT_LOG_FORMAT", "").strip().lower() == "json":
        line = f'{{"time": "{at}", "level": "ERROR", "logger": "{_LOGGER}", "message": "{text}"}}'
    else:
        line = f"{at} ERROR {_LOGGER} {text}"
    print(line, file=sys.stderr, flush=True)


_LOGGER = "scoring_runtime.supervisor"
