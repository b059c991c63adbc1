"""Which of a model's onnxruntime sessions a run gets.

Threads inside one run and runs beside each other are worth about the same, and together they fight
(benchmarks/serving, cnn). So a model with long runs has two sessions:

| at this moment | session |
| --- | --- |
| no other run, the processors free | all processors in one run; its threads wait spinning, but only while it runs |
| no other run, but other programs take the processors | one processor: spinning threads would lose twice as much |
| other runs beside it | one processor each |
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .errors import BadInputError, ModelError
from .providers import RECORD
from .run_timer import ScoringTimeout

# A run this long gains from all processors while it is alone; below it, waking the other threads costs as much.
LONG_S = 1e-3
# Two sessions hold the weights twice; a larger model has one, with all processors, and runs one at a time.
_MOST_TWICE_BYTES = 64 * 1024 * 1024

# So many lone runs are judged together; with all processors they must take less than this part of what one takes now:
# a busy machine slows both.
_JUDGED = 4
_GAIN = 0.95
_NEW_PART = 0.2
# After a bad judgement so many lone runs have one processor; each time twice as many, while it stays bad.
_FIRST_PAUSE = 16
_LONGEST_PAUSE = 256


class LoneRuns:
    """Whether lone runs gain from all processors; told how long each of those took."""

    def __init__(self, single_s: float) -> None:
        self._single_s = single_s
        self._judged = 0
        self._total_s = 0.0
        self._pause = 0
        self._next_pause = _FIRST_PAUSE

    def gain(self) -> bool:
        """Asked once for each lone run."""
        if self._pause:
            self._pause -= 1
            return False
        return True

    def saw_single(self, seconds: float) -> None:
        """How long a lone run took with one processor."""
        self._single_s += _NEW_PART * (seconds - self._single_s)

    def saw(self, seconds: float) -> None:
        self._judged += 1
        self._total_s += seconds
        if self._judged < _JUDGED:
            return
        if self._total_s > _JUDGED * _GAIN * self._single_s:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        else:
            self._next_pause = _FIRST_PAUSE
        self._judged, self._total_s = 0, 0.0


class RunStops:
    """The run options of each thread that runs the model; one that is told to stop ends before its next node.

    One node alone (a huge product) does not listen; `RunTimer` then finds its thread stuck.
    """

    def __init__(self) -> None:
        self._options: dict[int, ort.RunOptions] = {}

    def of_this_thread(self) -> ort.RunOptions:
        thread = threading.get_ident()
        found = self._options.get(thread)
        if found is None:
            found = self._options[thread] = ort.RunOptions()
            found.log_severity_level = _FATAL
        return found

    def stop(self, thread: int) -> None:
        if thread in self._options:
            self._options[thread].terminate = True

    def clear(self, thread: int) -> None:
        if thread in self._options:
            self._options[thread].terminate = False


class OnnxSessions:
    """`run` may be called from several threads.

    Attributes:
        first: the session that tells inputs and outputs.
        parallel_runs: how many runs at once are worth it.
        stops: how a run in another thread is ended.
    """

    def __init__(self, file: Path, providers: Sequence[str]) -> None:
        """Open the file for one processor and onnxruntime's `providers`, the preferred one first.

        Raises:
            ModelError: onnxruntime cannot.
        """
        self.first = _session(file, 1, providers)
        self.parallel_runs = 1
        self.stops = RunStops()
        self._file = file
        self._providers = providers
        self._whole: ort.InferenceSession | None = None
        self._lone_runs = LoneRuns(0.0)
        self._running = 0
        self._lock = threading.Lock()

    def use_processors(self, threads: int, run_s: float | None) -> None:
        """Take `threads` processors for a model whose run takes `run_s` with one, None when nobody knows."""
        if threads == 1 or (run_s is not None and run_s <= LONG_S):
            return
        if run_s is None or self._file.stat().st_size > _MOST_TWICE_BYTES:
            self.first = _session(self._file, threads, self._providers)
            return
        self._whole = _session(self._file, threads, self._providers, spinning=True)
        self._lone_runs = LoneRuns(run_s)
        self.parallel_runs = threads

    def run(self, outputs: Sequence[str], arguments: Mapping[str, Any]) -> list[Any]:
        """Every output, in order.

        Raises:
            BadInputError: the model refuses the arguments.
            ScoringTimeout: the run was stopped.
        """
        options = self.stops.of_this_thread()
        try:
            if self._whole is None:
                return list(self.first.run(outputs, arguments, options))
            return self._run_beside_others(self._whole, outputs, arguments, options)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise BadInputError(f"the model refuses the input: {_first_line(error)}") from error
        except Exception:
            if options.terminate:
                raise ScoringTimeout from None
            raise

    def _run_beside_others(
        self,
        whole: ort.InferenceSession,
        outputs: Sequence[str],
        arguments: Mapping[str, Any],
        options: ort.RunOptions,
    ) -> list[Any]:
        with self._lock:
            self._running += 1
            is_lone = self._running == 1
            session = whole if is_lone and self._lone_runs.gain() else self.first
        started = time.perf_counter()
        try:
            return list(session.run(outputs, arguments, options))
        finally:
            with self._lock:
                if is_lone and self._running == 1:  # else it had company for a part of its time
                    told = self._lone_runs.saw if session is whole else self._lone_runs.saw_single
                    told(time.perf_counter() - started)
                self._running -= 1


def _session(
    file: Path, threads: int, providers: Sequence[str], *, spinning: bool = False
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Never between runs: spinning threads would take a shared edge device's processors while nobody asks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(*RECORD)
    options.log_severity_level = _FATAL
    try:
        return ort.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime {ort.__version__} cannot load {file}: {_first_line(error)}") from error


# What fails a run comes as an exception; its own log line as well would let callers fill the log.
_FATAL = 4


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
