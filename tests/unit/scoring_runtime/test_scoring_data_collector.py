"""ModelDataCollector: where rows go, what they carry, and what bounds them."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_server import ScoringServer

from scoring_runtime import data_collector
from scoring_runtime.current_request import set_request_id
from scoring_runtime.data_collector import CORRELATION_COLUMNS, ModelDataCollector, close_all

WORKSPACE = "sub/group/ws"


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AML_MODEL_DC_STORAGE_ENABLED", "true")
    monkeypatch.setenv("EDGEWRIGHT_COLLECTED_DIR", str(tmp_path))
    set_request_id("req-1")
    yield
    close_all()


def collector(designation: str = "inputs", **options: Any) -> ModelDataCollector:
    names = {"workspace": WORKSPACE, "webservice_name": "svc", "model_version": "3"}
    return ModelDataCollector("digits", designation=designation, **(names | options))


def files(folder: Path) -> list[Path]:
    close_all()
    return sorted(folder.rglob("*.csv"))


def rows(folder: Path, designation: str = "inputs") -> list[dict[str, str]]:
    (file,) = (file for file in files(folder) if f"/{designation}/" in str(file))
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_rows_lie_under_the_documented_path_with_eight_columns(tmp_path: Path) -> None:
    collector(feature_names=["a", "b"]).collect(np.array([[1, 2.5], [3, 4]]))
    (file,) = files(tmp_path)
    today = datetime.now(UTC).strftime("%Y/%m/%d")
    assert file == tmp_path / f"modeldata/sub/group/ws/svc/digits/3/inputs/{today}/data.csv"
    first, second = rows(tmp_path)
    assert list(first) == ["a", "b", *CORRELATION_COLUMNS]
    assert (first["a"], first["b"], second["a"]) == ("1.0", "2.5", "3.0")
    assert (first["$aml_workspace"], first["$aml_service_name"]) == (WORKSPACE, "svc")
    assert (first["$aml_model_name"], first["$aml_model_version"]) == ("digits", "3")
    assert (first["$aml_dc_boundary"], first["$aml_request_id"]) == ("1440", "req-1")
    assert first["$aml_dc_correlation_id"] != second["$aml_dc_correlation_id"]


def test_predictions_join_their_inputs_by_correlation_id(tmp_path: Path) -> None:
    collector().collect([[1, 2], [3, 4]], user_correlation_id="user")
    collector("predictions", feature_names=["label"]).collect(np.array([7, 8]))
    inputs, predictions = rows(tmp_path), rows(tmp_path, "predictions")
    ids = [row["$aml_dc_correlation_id"] for row in inputs]
    assert ids == [row["$aml_dc_correlation_id"] for row in predictions]
    assert all(identifier.startswith("user-") for identifier in ids)
    assert [row["label"] for row in predictions] == ["7", "8"]


def test_another_request_does_not_join(tmp_path: Path) -> None:
    collector().collect([[1]])
    set_request_id("req-2")
    collector("predictions").collect([[1]])
    first, second = rows(tmp_path)[0], rows(tmp_path, "predictions")[0]
    assert first["$aml_dc_correlation_id"] != second["$aml_dc_correlation_id"]


def test_correlations_may_be_added_by_hand(tmp_path: Path) -> None:
    correlations = collector().collect([[1], [2]])
    set_request_id("later")
    labels = collector("labels")
    labels.collect(labels.add_correlations([[5], [6]], correlations))
    joined = [row["$aml_dc_correlation_id"] for row in rows(tmp_path, "labels")]
    assert joined == [row["$aml_dc_correlation_id"] for row in rows(tmp_path)]


class Frame:
    """As much of a data frame as is asked for."""

    columns = ("x", "y")

    def itertuples(self, index: bool, name: None) -> Iterator[tuple[int, str]]:
        yield from [(1, "a,b"), (2, 'c"\n')]


class SparkFrame:
    def toPandas(self) -> Frame:
        return Frame()


@pytest.mark.parametrize(
    ("data", "features", "expected"),
    [
        ([1, 2], None, [{"0": "1", "1": "2"}]),
        ([1, 2], ["p"], [{"p": "1"}, {"p": "2"}]),
        (np.ones((1, 2, 2)), None, [{"0": "1.0", "1": "1.0", "2": "1.0", "3": "1.0"}]),
        (np.array(5), None, [{"0": "5"}]),
        (Frame(), None, [{"x": "1", "y": "a,b"}, {"x": "2", "y": 'c"\n'}]),
        (SparkFrame(), ["p", "q"], [{"p": "1", "q": "a,b"}, {"p": "2", "q": 'c"\n'}]),
    ],
)
def test_what_a_row_is(tmp_path: Path, data: Any, features: list[str] | None, expected: Any) -> None:
    collector(feature_names=features).collect(data)
    found = [{k: v for k, v in row.items() if k not in CORRELATION_COLUMNS} for row in rows(tmp_path)]
    assert found == expected


def test_other_types_warn_and_store_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="cannot collect a dict"):
        assert collector().collect({"a": 1}) is None
    assert files(tmp_path) == []


def test_off_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AML_MODEL_DC_STORAGE_ENABLED")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collector().collect([[1]]) is None
    assert files(tmp_path) == []


def test_debug_prints_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AML_MODEL_DC_DEBUG", "true")
    monkeypatch.setenv("AML_MODEL_DC_BOUNDARY", "hour")
    collector().collect([[1]])
    assert ",60,sub/group/ws,svc," in capsys.readouterr().out
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [({"designation": "other"}, "designation"), ({"workspace": "one"}, "subscription/group/workspace")],
)
def test_a_wrong_argument_is_named(change: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        collector(**change)


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    ModelDataCollector("../../x", webservice_name="..", model_version="a/b").collect([[1]])
    (file,) = files(tmp_path)
    assert "/default/default/default/_/.._.._x/a_b/general/" in str(file)


def test_old_days_go_first_and_then_rows_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_COLLECTED_MAX_BYTES", "2000")
    old = tmp_path / "modeldata/sub/group/ws/svc/digits/3/inputs/2018/12/31/data.csv"
    old.parent.mkdir(parents=True)
    old.write_text("x" * 1800)
    collector().collect([[1]])
    (kept,) = files(tmp_path)
    assert kept != old and kept.stat().st_size < 2000
    for _ in range(20):
        collector().collect([[1]])
    close_all()
    assert kept.stat().st_size <= 2000
    assert "rows dropped" in caplog.text


def test_a_full_buffer_drops_instead_of_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_collector, "QUEUE_BYTES", 10)
    collector().collect([[1]])
    assert files(tmp_path) == []


SCRIPT = """
import json
from azureml.monitoring import ModelDataCollector

def init():
    global inputs, predictions
    inputs = ModelDataCollector("digits", designation="inputs", feature_names=["a", "b"])
    predictions = ModelDataCollector("digits", designation="predictions", feature_names=["sum"])

def run(data):
    rows = json.loads(data)["data"]
    inputs.collect(rows)
    answer = [sum(row) for row in rows]
    predictions.collect(answer)
    return answer
"""


def test_what_a_served_script_collects_survives_sigterm(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCRIPT)
    variables = {"AML_MODEL_DC_STORAGE_ENABLED": "true", "EDGEWRIGHT_COLLECTED_DIR": str(tmp_path)}
    with ScoringServer(tmp_path, "--entry-script", "score.py", **variables) as server:
        reply = server.score({"data": [[1, 2], [3, 4]]}, **{"x-request-id": "mine"})
        assert reply.json() == [3, 7]
        assert server.stop() == 0
    inputs, predictions = rows(tmp_path), rows(tmp_path, "predictions")
    assert [row["sum"] for row in predictions] == ["3", "7"]
    assert {row["$aml_request_id"] for row in inputs + predictions} == {"mine"}
    assert [r["$aml_dc_correlation_id"] for r in inputs] == [r["$aml_dc_correlation_id"] for r in predictions]
