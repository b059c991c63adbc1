"""The Open Inference Protocol: routes, JSON and binary tensors, and what is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scoring_models as models
from scoring_asgi import AppUnderTest
from scoring_server import Reply

from scoring_runtime.data_plane import DataPlane
from scoring_runtime.inference_v2 import InferenceV2, V2Scorer
from scoring_runtime.metrics import Metrics
from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.readiness import Phase, Readiness

OCTETS = {"content-type": "application/octet-stream"}


class V2UnderTest:
    def __init__(self, file: Path, phase: Phase = Phase.READY) -> None:
        self.non_finite = 0
        model = OnnxModel.load(file, threads=1, count_non_finite=lambda n: None)
        scorer = V2Scorer(model, "digits", "3", self._count)
        v2 = InferenceV2(scorer, DataPlane(scorer, Metrics("digits:3")), Readiness("digits:3", phase))
        self.app = AppUnderTest(scorer=model, v2=v2, body_limit_bytes=100_000)

    def _count(self, values: int) -> None:
        self.non_finite += values

    def get(self, path: str) -> Reply:
        return self.app.call("GET", path)

    def infer(self, inputs: Any, **more: Any) -> Reply:
        body = json.dumps({"inputs": inputs, **more}).encode()
        return self.app.call("POST", "/v2/models/digits/infer", body, {"content-type": "application/json"})

    def infer_binary(self, document: dict[str, Any], binary: bytes) -> Reply:
        head = json.dumps(document).encode()
        headers = {**OCTETS, "inference-header-content-length": str(len(head))}
        return self.app.call("POST", "/v2/models/digits/infer", head + binary, headers)


def error(reply: Reply) -> str:
    assert reply.status == 400, reply.body
    return str(reply.json()["error"])


def x(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    return {name: value for name, value in {**tensor, **changes}.items() if value is not ...}


@pytest.fixture
def double(tmp_path: Path) -> V2UnderTest:
    return V2UnderTest(models.doubler(tmp_path))


def test_health_and_metadata(double: V2UnderTest) -> None:
    assert double.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert double.get("/v2/health/live").json() == {"live": True}
    assert double.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/digits", "/v2/models/digits/versions/3"):
        assert double.get(path).json() == {
            "name": "digits",
            "versions": ["3"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
            "parameters": {"providers": "cpu"},
        }
        assert double.get(path + "/ready").json() == {"name": "digits", "ready": True}


def test_ready_is_503_while_stopping_and_live_is_not(tmp_path: Path) -> None:
    stopping = V2UnderTest(models.doubler(tmp_path), Phase.STOPPING)
    paths = ("/v2/health/ready", "/v2/models/digits/ready", "/v2/health/live")
    assert [stopping.get(path).status for path in paths] == [503, 503, 200]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v2/models/other", "there is no model 'other'; this server has 'digits'"),
        ("/v2/models/digits/versions/4/ready", "model 'digits' has no version '4'; this server has '3'"),
    ],
)
def test_an_unknown_model_names_the_known_one(double: V2UnderTest, path: str, text: str) -> None:
    reply = double.get(path)
    assert (reply.status, reply.json()) == (404, {"error": text})
    assert double.app.call("POST", "/v2/models/other/infer", b"{}").status == 404


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_json_tensors_may_be_flat_or_nested(double: V2UnderTest, data: Any) -> None:
    reply = double.infer([x(shape=[2, 3], data=data)], id="q-1")
    assert reply.json() == {
        "model_name": "digits",
        "model_version": "3",
        "id": "q-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [2, 4, 6, 8, 10, 12]}],
    }
    assert reply.headers["x-request-id"]


def test_binary_tensors_in_and_out(double: V2UnderTest) -> None:
    values = np.array([[1, np.nan, -2]], "<f4")
    document = {
        "inputs": [x(data=..., parameters={"binary_data_size": 12})],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    reply = double.infer_binary(document, values.tobytes())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
    size = int(reply.headers["inference-header-content-length"])
    (tensor,) = json.loads(reply.body[:size])["outputs"]
    assert tensor == {
        "name": "y",
        "datatype": "FP32",
        "shape": [1, 3],
        "parameters": {"binary_data_size": 12},
    }
    np.testing.assert_array_equal(np.frombuffer(reply.body[size:], "<f4"), values[0] * 2)
    assert double.non_finite == 0


def test_binary_output_may_be_asked_for_all(double: V2UnderTest) -> None:
    reply = double.infer([x()], parameters={"binary_data_output": True})
    assert reply.body.endswith(np.array([2, 4, 6], "<f4").tobytes())
    mixed = double.infer(
        [x()],
        parameters={"binary_data_output": True},
        outputs=[{"name": "y", "parameters": {"binary_data": False}}],
    )
    assert mixed.json()["outputs"][0]["data"] == [2, 4, 6]


def test_strings_are_length_prefixed(tmp_path: Path) -> None:
    under = V2UnderTest(models.copier(tmp_path, models.STRING))
    texts = ["å", "", "bc"]
    packed = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    tensor = {"name": "x", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    assert under.infer_binary({"inputs": [tensor]}, packed).json()["outputs"][0]["data"] == texts
    reply = under.infer(
        [{"name": "x", "shape": [3], "datatype": "BYTES", "data": texts}],
        parameters={"binary_data_output": True},
    )
    assert reply.body.endswith(packed)
    for broken, text in (
        (packed[:-1], "an element of 2 bytes where 1 are left"),
        (packed[:6] + b"ab", "2 bytes where an element's length"),
    ):
        tensor["parameters"] = {"binary_data_size": len(broken)}
        assert text in error(under.infer_binary({"inputs": [tensor]}, broken))


def test_maps_come_as_json_texts_and_nan_as_null(tmp_path: Path) -> None:
    reply = V2UnderTest(models.classifier(tmp_path)).infer(
        [{"name": "scores", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}]
    )
    label, probabilities = reply.json()["outputs"]
    assert (label["datatype"], label["data"]) == ("INT64", [0])
    assert probabilities["datatype"] == "BYTES"
    assert json.loads(probabilities["data"][0]) == {"4": 0.5, "5": 0.5}
    under = V2UnderTest(models.logarithm(tmp_path))
    reply = under.infer([{"name": "x", "shape": [2], "datatype": "FP32", "data": [-1, 1]}])
    assert (reply.json()["outputs"][0]["data"], under.non_finite) == ([None, 0], 1)


EXPECTS = "input 'x' expects FP32 [N, 3], found "


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (None, "'inputs' must be an array of tensors"),
        ([1], "'inputs' must be an array of tensors"),
        ([], "input 'x' (FP32 [N, 3]) is missing"),
        ([x(name="z")], "inputs[0]: the model has no such input; expected 'x', found 'z'"),
        ([x(name=...)], "expected 'x', found no name"),
        ([x(), x()], "input 'x' is given twice"),
        ([x(datatype="INT64")], EXPECTS + "datatype 'INT64'"),
        ([x(datatype=...)], EXPECTS + "no datatype"),
        ([x(shape=[3])], EXPECTS + "shape [3]"),
        ([x(shape=[-1, 3])], EXPECTS + "a shape that is no array of sizes"),
        ([x(shape=[True, 3])], EXPECTS + "a shape that is no array of sizes"),
        ([x(shape=[2, 3])], EXPECTS + "3 elements under shape [2, 3], which has 6"),
        ([x(data=[[1], [2], [3]])], EXPECTS + "'data' of shape [3, 1] under shape [1, 3]"),
        ([x(data=[[1, 2], [3]])], EXPECTS + "rows of different lengths (first at [1])"),
        ([x(data=["1", "2", "3"])], "input 'x' expects float32 [N, 3], found text"),
        ([x(data=...)], EXPECTS + "neither 'data' nor 'binary_data_size'"),
        ([x(parameters={"binary_data_size": 0})], EXPECTS + "both 'data' and 'binary_data_size'"),
        (
            [x(data=..., parameters={"binary_data_size": 4})],
            EXPECTS + "binary_data_size 4 where 0 bytes are left",
        ),
        ([x(parameters=3)], "input 'x': 'parameters' must be an object"),
    ],
)
def test_a_wrong_tensor_is_named_with_what_is_expected(double: V2UnderTest, inputs: Any, text: str) -> None:
    assert text in error(double.infer(inputs))
    assert double.infer([x()]).status == 200


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"outputs": [{"name": "z"}]}, "outputs[0]: the model has no such output; expected 'y'"),
        ({"outputs": {}}, "'outputs' must be an array"),
        (
            {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            "output 'y': 'binary_data' must be true or false",
        ),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"id": 7}, "'id' must be a string"),
        ({"parameters": {"binary_data_output": "yes"}}, "'binary_data_output' must be true or false"),
    ],
)
def test_a_wrong_request_says_what_is_expected(double: V2UnderTest, more: dict[str, Any], text: str) -> None:
    assert text in error(double.infer([x()], **more))


BINARY = {"inputs": [x(data=..., parameters={"binary_data_size": 12})]}


@pytest.mark.parametrize(
    ("binary", "text"),
    [
        (bytes(11), "binary_data_size 12 where 11 bytes are left"),
        (bytes(13), "1 bytes follow the last tensor"),
    ],
)
def test_a_wrong_byte_length_is_refused(double: V2UnderTest, binary: bytes, text: str) -> None:
    assert text in error(double.infer_binary(BINARY, binary))


@pytest.mark.parametrize("length", ["-1", "x", "100000", "9" * 30, "٣"])
def test_a_wrong_header_length_is_refused(double: V2UnderTest, length: str) -> None:
    headers = {**OCTETS, "inference-header-content-length": length.encode().decode("latin-1")}
    assert "inference-header-content-length must be" in error(
        double.app.call("POST", "/v2/models/digits/infer", b"{}", headers)
    )


def test_other_content_types_and_bodies_are_refused(double: V2UnderTest) -> None:
    path = "/v2/models/digits/infer"
    assert double.app.call("POST", path, b"{}", {"content-type": "text/plain"}).status == 415
    assert "not JSON" in error(double.app.call("POST", path, b"{"))
    assert "expected a JSON object" in error(double.app.call("POST", path, b"[]"))
    assert double.app.call("GET", path).status == 405
    reply = double.app.call("POST", path, b" " * 100_001)
    assert (reply.status, list(reply.json())) == (413, ["error"])


@pytest.mark.parametrize(
    ("kind", "datatype", "dtype"), [(models.BOOL, "BOOL", "?"), (models.INT64, "INT64", "<i8")]
)
def test_every_number_type_keeps_its_bytes(tmp_path: Path, kind: int, datatype: str, dtype: str) -> None:
    under = V2UnderTest(models.copier(tmp_path, kind))
    given = np.array([0, 1], dtype)
    tensor = {
        "name": "x",
        "shape": [2],
        "datatype": datatype,
        "parameters": {"binary_data_size": given.nbytes},
    }
    reply = under.infer_binary(
        {"inputs": [tensor], "parameters": {"binary_data_output": True}}, given.tobytes()
    )
    assert reply.body.endswith(given.tobytes())
    if kind == models.BOOL:
        tensor["parameters"] = {"binary_data_size": 2}
        assert "neither 0 nor 1" in error(under.infer_binary({"inputs": [tensor]}, b"\0\2"))


def test_a_script_has_no_v2_routes() -> None:
    make: Callable[[], AppUnderTest] = AppUnderTest
    assert make().call("GET", "/v2/health/live").status == 404
