"""Where a run belongs, when runs are joined, and who may run at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import scoring_models as models
from onnx import helper
from scoring_models import FLOAT, tensor

from scoring_runtime.calibration import (
    DEMOTE_S,
    INLINE_S,
    PROMOTE_AFTER,
    PROVEN_AFTER,
    SLOW_S,
    LoopWatch,
    Placement,
    calibrate,
)
from scoring_runtime.head_memo import MAX_HEADS, HeadMemo
from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.onnx_sessions import LoneRuns
from scoring_runtime.turn_batch import score_together
from scoring_runtime.workers import WorkerPool

SHORT_S, LONG_S = INLINE_S / 2, INLINE_S * 2


def load(file: Path) -> OnnxModel:
    return OnnxModel.load(file, threads=1, count_non_finite=lambda values: None)


class Lap(LoopWatch):
    """A call in the event loop as a watch tells it: how much of it was its own."""

    def __init__(self, own_s: float) -> None:
        super().__init__(counts=False)
        self._own_s = own_s

    def own_part(self) -> float:
        return self._own_s


def promoted() -> Placement:
    placement = Placement()
    for _ in range(PROMOTE_AFTER):
        assert not placement.inline
        placement.saw_in_thread(SHORT_S, SHORT_S)
    assert placement.inline
    return placement


def test_a_script_of_short_calls_is_promoted_and_demoted_at_the_first_that_holds_up_the_loop() -> None:
    placement = promoted()
    placement.saw_slow(Lap(DEMOTE_S * 1.1))
    assert not placement.inline


def test_after_a_demotion_it_must_be_short_for_twice_as_many_calls() -> None:
    placement = promoted()
    placement.saw_slow(Lap(DEMOTE_S * 1.1))
    for _ in range(2 * PROMOTE_AFTER):
        assert not placement.inline
        placement.saw_in_thread(SHORT_S, SHORT_S)
    assert placement.inline


def test_slow_calls_add_up_to_a_demotion() -> None:
    placement = promoted()
    calls = 0
    while placement.inline:
        placement.saw_slow(Lap(2 * SLOW_S))
        calls += 1
    assert (calls - 1) * 2 * SLOW_S <= DEMOTE_S < calls * 2 * SLOW_S


def test_slow_calls_far_apart_are_forgotten() -> None:
    placement = promoted()
    for _ in range(20):
        placement.saw_slow(Lap(2 * SLOW_S))
        placement.saw_in_loop(PROVEN_AFTER)
    assert placement.inline


def test_time_that_others_took_is_not_the_scripts_fault() -> None:
    placement = promoted()
    for _ in range(100):
        placement.saw_slow(Lap(SHORT_S))
    assert placement.inline


@pytest.mark.parametrize(
    ("long_processor", "long_wait", "inline"),
    [
        (0, 0, True),
        (2, 2, True),
        (3, 3, False),
        (0, PROMOTE_AFTER // 2, True),
        (0, PROMOTE_AFTER // 2 + 1, False),
    ],
    ids=["short", "some long", "more long", "waits for the others", "waits by itself"],
)
def test_what_is_promoted(long_processor: int, long_wait: int, inline: bool) -> None:
    placement = Placement()
    for number in range(PROMOTE_AFTER):
        wall_s = LONG_S if number < long_wait else SHORT_S
        placement.saw_in_thread(wall_s, LONG_S if number < long_processor else SHORT_S)
    assert placement.inline is inline


def test_computing_and_sleeping_are_a_calls_own() -> None:
    watch = LoopWatch(counts=True)
    time.sleep(0.02)
    slept_s = watch.lap()
    assert watch.own_part() == slept_s >= 0.02
    watch = LoopWatch(counts=True)
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    watch.lap()
    assert watch.own_part() > 0.01


def judged(runs: LoneRuns, seconds: float) -> int:
    """How many lone runs have one processor after a judgement over runs of `seconds`."""
    while runs.gain():
        runs.saw(seconds)
    paused = 1
    while not runs.gain():
        paused += 1
    return paused


def test_lone_runs_keep_all_processors_while_they_gain() -> None:
    runs = LoneRuns(single_s=0.010)
    for _ in range(100):
        assert runs.gain()
        runs.saw(0.007)


def test_lone_runs_that_gain_nothing_have_one_processor_for_twice_as_long_each_time() -> None:
    runs = LoneRuns(single_s=0.010)
    assert [judged(runs, 0.040) for _ in range(9)] == [16, 32, 64, 128, 256, 256, 256, 256, 256]


def test_a_busy_machine_that_slows_both_is_no_reason_to_change() -> None:
    runs = LoneRuns(single_s=0.010)
    for _ in range(50):
        runs.saw_single(0.030)
    for _ in range(100):
        assert runs.gain()
        runs.saw(0.022)


def test_a_gain_in_between_makes_the_next_pause_short_again() -> None:
    runs = LoneRuns(single_s=0.010)
    judged(runs, 0.040), judged(runs, 0.040)
    for _ in range(4):
        runs.saw(0.005)
    assert judged(runs, 0.040) == 16


def test_a_graph_that_computes_across_its_rows_is_never_joined(tmp_path: Path) -> None:
    file = models.save(
        tmp_path,
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [tensor("x", FLOAT, ["N", 3])],
        [tensor("y", FLOAT, ["N", 3])],
    )
    model = load(file)
    assert model.joins_rows()
    assert model.calibration.rows == 1


def test_fixed_rows_or_a_second_free_dimension_are_never_joined(tmp_path: Path) -> None:
    assert not load(models.doubler(tmp_path, shape=(1, 3))).joins_rows()
    assert not load(models.doubler(tmp_path, shape=("N", "M"))).joins_rows()
    assert load(models.doubler(tmp_path, shape=("N", "M"))).calibration.run_s is None


class TimedModel:
    """A model whose runs take as long as it is told."""

    def __init__(self, first_s: float, each_s: float) -> None:
        self._first_s, self._each_s = first_s, each_s

    def example(self, rows: int) -> list[int]:
        return list(range(rows))

    def run(self, rows: Sequence[int]) -> list[int]:
        until = time.perf_counter() + self._first_s + self._each_s * len(rows)
        while time.perf_counter() < until:
            pass
        return list(rows)

    def joins_rows(self) -> bool:
        return True

    def same_rows(self, joined: list[int], singles: Sequence[list[int]]) -> bool:
        return joined == [row for single in singles for row in single]

    def row(self, rows: Sequence[int], index: int) -> list[int]:
        return [rows[index]]


def test_runs_are_joined_where_rows_are_nearly_free_and_not_where_each_costs() -> None:
    assert calibrate(TimedModel(100e-6, 0)).rows >= 8
    assert calibrate(TimedModel(0, 100e-6)).rows == 1


def test_a_model_that_refuses_made_up_values_is_not_calibrated() -> None:
    class Refusing(TimedModel):
        def run(self, rows: Sequence[int]) -> list[int]:
            raise ValueError("not these")

    assert calibrate(Refusing(0, 0)).run_s is None


class Adder:
    """Rows are numbers; 13 breaks the run, text cannot be read."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []

    def read_rows(self, request: Any) -> tuple[list[int], int]:
        rows = [int(part) for part in request.split()]
        return rows, len(rows)

    def join(self, rows: Sequence[list[int]]) -> list[int]:
        return [value for part in rows for value in part]

    def run(self, arguments: list[int]) -> list[int]:
        self.runs.append(arguments)
        if 13 in arguments:
            raise RuntimeError("bad luck")
        return [value + 1 for value in arguments]

    def render_rows(self, result: list[int], rows: Sequence[int]) -> list[bytes]:
        values = iter(result)
        return [b" ".join(b"%d" % next(values) for _ in range(count)) for count in rows]


def together(requests: list[str], most_rows: int) -> tuple[dict[str, bytes], list[str], Adder]:
    model, answers, alone = Adder(), {}, []
    score_together(
        model,
        requests,
        most_rows=most_rows,
        run=model.run,
        answer=lambda members, bodies, run_s: answers.update(zip(members, bodies, strict=True)),
        alone=alone.append,
    )
    return answers, alone, model


def test_joined_requests_get_their_own_rows_in_runs_of_bounded_size() -> None:
    answers, alone, model = together(["1", "2 3", "4 5", "x", "1 2 3 4 5"], most_rows=4)
    assert answers == {"1": b"2", "2 3": b"3 4", "4 5": b"5 6"}
    assert alone == ["x", "1 2 3 4 5"]
    assert model.runs == [[1, 2, 3], [4, 5]]


def test_members_of_a_failed_run_are_asked_alone() -> None:
    answers, alone, _ = together(["1", "13", "2"], most_rows=8)
    assert (answers, alone) == ({}, ["1", "13", "2"])


def test_the_callers_own_thread_counts_as_one_of_the_pools() -> None:
    pool = WorkerPool(1)
    assert pool.try_enter()
    waiting = pool.submit(threading.get_ident)
    assert not pool.try_enter()
    with pytest.raises(TimeoutError):
        waiting.result(0.05)
    pool.leave()
    assert waiting.result(5) != threading.get_ident()
    assert pool.try_enter()


def test_the_head_memo_is_bounded_and_forgets_no_rule() -> None:
    memo = HeadMemo(1000)
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n"
    for number in range(MAX_HEADS * 2 + 3):
        found = memo.read(head % (number, number % 1001))
        assert found is not None and found[0].length == number % 1001
    assert len(memo._heads) <= MAX_HEADS
    assert memo.read(head % (1, 1001)) is None


def test_a_fresh_id_is_cut_out_and_comes_back() -> None:
    memo = HeadMemo(1000)
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nX-Request-ID: id-%d\r\nContent-Length: 2\r\n\r\n"
    for number in range(3):
        found = memo.read(head % number)
        assert found is not None
        parsed, given_id = found
        assert given_id == f"id-{number}"
        assert b"x-request-id: id-%d\r\n" % number in parsed.id_headers(given_id)
        assert parsed.headers_with(given_id)["x-request-id"] == given_id
    assert len(memo._heads) == 1
