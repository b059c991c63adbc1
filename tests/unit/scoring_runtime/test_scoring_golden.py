"""Recorded answers: reproduced, or the start fails and says where."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import scoring_models as models
from scoring_asgi import FunctionScorer
from scoring_server import ScoringServer, run_to_end

from scoring_runtime.errors import GoldenError
from scoring_runtime.golden import check_golden, difference
from scoring_runtime.onnx_model import OnnxModel


def write(folder: Path, name: str = "a.json", **case: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(json.dumps(case))
    return file


def double(value: Any) -> Any:
    return [2 * number for number in value]


def failure(folder: Path, run: Any = double) -> str:
    with pytest.raises(GoldenError) as caught:
        check_golden(folder, FunctionScorer(run))
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_reproduced_answers_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.json", request=[1, 2], response=[2, 4])
    write(tmp_path, "b.json", request=[0.1], response=[0.2000001])
    write(tmp_path, "c.json", requestBase64=base64.b64encode(b"[3]").decode(), response=[6])
    write(tmp_path, "d.json", request=[3], responseBase64=base64.b64encode(b"[6]").decode())
    assert check_golden(tmp_path, FunctionScorer(double)) == 4


def test_a_bare_model_reproduces_octets(tmp_path: Path) -> None:
    model = OnnxModel.load(models.doubler(tmp_path), threads=1, count_non_finite=lambda n: None)
    request = base64.b64encode(bytes(12)).decode()
    write(
        tmp_path / "g",
        contentType="application/octet-stream",
        requestBase64=request,
        response={"y": [[0, 0, 0]]},
    )
    assert check_golden(tmp_path / "g", model) == 1


def test_a_difference_names_the_file_the_place_and_both_values(tmp_path: Path) -> None:
    write(tmp_path, "fine.json", request=[1], response=[2])
    file = write(tmp_path, "wrong.json", request=[1, 2], response=[2, 4.1])
    expected = f"golden case {file}: response[1]: expected 4.1, found 4 (rtol 1e-05, atol 1e-08)"
    assert failure(tmp_path) == expected


def test_a_run_that_fails_is_a_difference(tmp_path: Path) -> None:
    write(tmp_path, request=[1], response=[2])
    assert "found run_failed" in failure(tmp_path, lambda value: 1 / 0)
    assert "found bad_result" in failure(tmp_path, lambda value: {1})


@pytest.mark.parametrize(
    ("expected", "found", "where"),
    [
        (1, True, "response: expected 1, found True"),
        (None, 0, "response: expected None, found 0"),
        ([1], [1, 2], "response: expected 1 elements, found 2"),
        ({"a": 1}, {"b": 1}, "response: expected the keys ['a'], found ['b']"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "y"}]}, "response.a[0].b: expected 'x', found 'y'"),
        ("[1, 2.5]", "[1, 2]", "response[1]: expected 2.5, found 2"),
        (100.0, 100.2, "response: expected 100.0, found 100.2"),
    ],
)
def test_differences_say_where(expected: Any, found: Any, where: str) -> None:
    assert difference(expected, found, rtol=1e-3, atol=0).startswith(where)
    assert difference(found, found, rtol=0, atol=0) == ""


def test_text_that_holds_json_is_compared_as_json() -> None:
    assert difference("[0.5, 1]", "[0.50001,1.0]", rtol=1e-3, atol=0) == ""


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ({}, "must have 'request' or 'requestBase64'"),
        ({"request": 1, "requestBase64": "", "response": 1}, "must have 'request' or 'requestBase64'"),
        ({"request": 1}, "must have 'response' or 'responseBase64'"),
        ({"requestBase64": "?", "response": 1}, "'requestBase64' must be base64"),
        ({"request": 1, "response": 1, "rtol": -1}, "'rtol' must be a number from 0, not -1"),
        ({"request": 1, "response": 1, "tolerance": 1}, "unknown key 'tolerance'"),
        ({"request": 1, "response": 1, "contentType": 3}, "'contentType' must be a string"),
    ],
)
def test_a_broken_case_names_the_key(tmp_path: Path, case: dict[str, Any], text: str) -> None:
    write(tmp_path, **case)
    assert text in failure(tmp_path)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    assert failure(tmp_path) == f"there are no golden cases (*.json) in {tmp_path}"
    (tmp_path / "a.json").write_text("{")
    assert "cannot be read" in failure(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    assert "must be a JSON object" in failure(tmp_path)


def test_a_module_with_a_difference_never_becomes_ready(tmp_path: Path) -> None:
    models.doubler(tmp_path)
    file = write(tmp_path / "golden", request={"data": [[1, 2, 3]]}, response={"y": [[2, 4, 7]]})
    arguments = ("--model", "model.onnx", "--port", "0", "--golden", "golden")
    ended = run_to_end(tmp_path, *arguments)
    assert ended.returncode == 3
    assert f"golden case {file}: response.y[0][2]: expected 7, found 6" in ended.stderr
    assert run_to_end(tmp_path, *arguments[:-1], "absent").returncode == 2
    write(tmp_path / "golden", request={"data": [[1, 2, 3]]}, response={"y": [[2, 4, 6]]})
    with ScoringServer(tmp_path, "--model", "model.onnx", EDGEWRIGHT_GOLDEN="golden") as server:
        assert server.health().status == 200
        assert "1 golden answers are reproduced" in server.log
