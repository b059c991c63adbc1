"""Whatever a client sends: a 4xx that says what is expected, never a 5xx of our own, and the next request is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import scoring_models as models
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scoring_asgi import AppUnderTest
from scoring_server import Reply

from scoring_runtime.data_plane import DataPlane
from scoring_runtime.inference_v2 import InferenceV2, V2Scorer
from scoring_runtime.metrics import Metrics
from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.readiness import Phase, Readiness

JSON = {"content-type": "application/json"}
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
LIMIT = 50_000
GOOD = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppUnderTest]:
    """A bare model [N, 3] with both protocols."""
    model = OnnxModel.load(
        models.doubler(tmp_path_factory.mktemp("model")), threads=1, count_non_finite=lambda n: None
    )
    scorer = V2Scorer(model, "m", "1", lambda n: None)
    v2 = InferenceV2(scorer, DataPlane(scorer, Metrics("m")), Readiness("m", Phase.READY))
    yield AppUnderTest(scorer=model, v2=v2, body_limit_bytes=LIMIT)


def score(app: AppUnderTest, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    return app.call("POST", "/score", body, JSON if headers is None else headers)


def infer(app: AppUnderTest, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    return app.call("POST", "/v2/models/m/infer", body, JSON if headers is None else headers)


def refused(reply: Reply, text: str, status: int = 400) -> None:
    assert reply.status == status, reply.body
    document = reply.json()
    assert text in document.get("message", document.get("error"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is empty"),
        (b'{"data": [[1, 2', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"data": [[1,2,3],[4,5]]}', "rows of different lengths (first at [1])"),
        (b'{"data": [1,2,3]}', "input 'x' expects float32 [N, 3], found shape [3]"),
        (b'{"data": [[1,2,"3"]]}', "found text"),
        (b'{"data": [[1,2,null]]}', "found null"),
        (b'{"data": [[1,2,1e300]]}', "a number too large for float32"),
        (b'{"data": [[1,2,%s]]}' % (b"9" * 400), "number is infinity"),
        (b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}", "input 'x' expects float32 [N, 3]"),
        (b'{"data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "not JSON"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "not JSON"),
        (b'{"other": [[1,2,3]]}', "the model has no input 'other'"),
        (b"[]", "expected a JSON object"),
    ],
)
def test_a_bad_body_is_named_and_the_next_one_served(app: AppUnderTest, body: bytes, text: str) -> None:
    refused(score(app, body), text)
    assert score(app, b'{"data": [[1,2,3]]}').json() == {"y": [[2, 4, 6]]}


def test_a_body_over_the_limit_is_413(app: AppUnderTest) -> None:
    refused(score(app, b" " * (LIMIT + 1)), "exceeds the limit", 413)


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/csv", "a/b/c;;;"]
)
def test_another_content_type_is_415(app: AppUnderTest, kind: str) -> None:
    refused(score(app, b"a=1", {"content-type": kind}), "expected content type", 415)


@pytest.mark.parametrize("headers", [{f"x-{n}": "a" * 20 for n in range(4000)}, {"x-long": "a" * 70_000}])
def test_a_head_over_the_limit_is_431(app: AppUnderTest, headers: dict[str, str]) -> None:
    reply = app.call("GET", "/", headers=headers)
    refused(reply, "the head exceeds 65536 bytes", 431)
    assert reply.headers["connection"] == "close"


def test_a_deeply_nested_query_is_no_failure_of_ours(app: AppUnderTest) -> None:
    assert app.call("GET", "/score?data=" + "[" * 5000).status == 400
    assert app.call("GET", "/score?data=" + "[" * 700 + "]" * 700).status == 400
    assert app.call("GET", "/score?data=[[1,2,3]]").json() == {"y": [[2, 4, 6]]}


NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=True), st.booleans(), st.none(), st.text(max_size=3))
VALUES = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
TYPES = st.sampled_from(
    ["application/json", "application/octet-stream", "", "text/plain", "application/json; charset=x"]
)


def is_right(reply: Reply) -> None:
    assert reply.status in (200, 400, 415), (reply.status, reply.body)
    if reply.status != 200:
        document = reply.json()
        assert document.get("message") or document.get("error")


@FUZZ
@given(body=st.binary(max_size=60), kind=TYPES)
@example(body=b"\0" * 13, kind="application/octet-stream")
def test_any_bytes_get_an_answer(app: AppUnderTest, body: bytes, kind: str) -> None:
    is_right(score(app, body, {"content-type": kind}))
    is_right(infer(app, body, {"content-type": kind}))


@FUZZ
@given(value=VALUES)
@example(value=[[True, 1, 2]])
@example(value=[[10**30, 1, 2]])
@example(value=[])
def test_any_json_value_gets_an_answer(app: AppUnderTest, value: Any) -> None:
    for document in (value, {"data": value}, {"x": value}, {"data": [value, value]}):
        is_right(score(app, json.dumps(document).encode()))


CHANGES = st.sampled_from(["name", "shape", "datatype", "data", "parameters", "extra"])


@FUZZ
@given(
    changes=st.dictionaries(CHANGES, VALUES, max_size=3),
    top=st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), VALUES, max_size=2),
)
@example(changes={"shape": [2**62, 3]}, top={})
@example(changes={"shape": [0, 3], "data": []}, top={})
@example(changes={"parameters": {"binary_data_size": True}}, top={})
@example(changes={}, top={"outputs": [{"name": "y", "parameters": 1}]})
@example(changes={"data": [[[[1]]]]}, top={})
def test_any_tensor_gets_an_answer(app: AppUnderTest, changes: dict[str, Any], top: dict[str, Any]) -> None:
    tensor = {**GOOD["inputs"][0], **changes}
    is_right(infer(app, json.dumps({"inputs": [tensor], **top}).encode()))
    assert infer(app, json.dumps(GOOD).encode()).status == 200


@FUZZ
@given(length=st.text(max_size=6), body=st.binary(max_size=40), size=st.integers(-2, 50))
def test_any_binary_framing_gets_an_answer(app: AppUnderTest, length: str, body: bytes, size: int) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    octets = {"content-type": "application/octet-stream"}
    framed = {**octets, "inference-header-content-length": str(len(head))}
    is_right(infer(app, head + body, framed))
    try:
        length.encode("latin-1")
    except UnicodeEncodeError:
        return
    is_right(infer(app, head + body, {**octets, "inference-header-content-length": length}))


@FUZZ
@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(["data", "x", "y"]), st.one_of(st.text(max_size=8), VALUES.map(json.dumps))
        ),
        max_size=4,
    )
)
def test_any_query_gets_an_answer(app: AppUnderTest, pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={value}" for name, value in pairs if value.isascii())
    is_right(app.call("GET", f"/score?{query}"))
