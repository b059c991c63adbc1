"""The contract of Azure ML's scoring server as a table, black box over HTTP, for any server command.

Each row is one acceptance case (facts: azureml.md §6, rows 16 to 26, 41, 45, 48, 55; §2 for the rest). Rows 40, 42 to 44, 46
and 47 are of the service in front of a scoring server, and are tested there. `scoring_contract.py` says how to run the
table against another server; `ours` marks what is this runtime's own decision, with the reason.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import scoring_contract as contract
from scoring_contract import Answer, ContractServer
from scoring_server import call

JSON = {"content-type": "application/json"}
ORIGIN = "https://app.example"
ANY = re.compile(".+")

COUNTER = """
import json
count = 0
def init():
    global count
    count += 1
def run(data):
    return {"init": count, "type": type(data).__name__, "data": data}
"""
SEED_BINARY = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse

def init():
    print("This is init()")

@rawhttp
def run(request):
    print("This is run()")
    print("Request: [{0}]".format(request))
    if request.method == 'GET':
        # For this example, just return the URL for GETs.
        respBody = str.encode(request.full_path)
        return AMLResponse(respBody, 200)
    elif request.method == 'POST':
        reqBody = request.get_data(False)
        respBody = bytearray(reqBody)
        respBody.reverse()
        respBody = bytes(respBody)
        return AMLResponse(respBody, 200)
    else:
        return AMLResponse("bad request", 500)
"""
ANSWERS = """
import json
from azureml.contrib.services.aml_response import AMLResponse
def init(): pass
def run(data):
    kind = json.loads(data)["kind"]
    if kind == "none": return None
    if kind == "text": return json.dumps([1, 2])
    if kind == "raise": raise RuntimeError("the secret detail")
    if kind == "set": return {1, 2}
    if kind == "empty": return AMLResponse(None, 333)
    if kind == "json": return AMLResponse("test", 555, json_str=True)
    if kind == "plain": return AMLResponse("test", 444)
    if kind == "headers": return AMLResponse(b"x", 200, {"a": "A", "b": "B, C", "Content-Type": "image/x"})
    if kind == "ids":
        response = AMLResponse("", 200)
        response.headers["x-request-id"] = "cannot-be-overwritten"
        return response
    if kind == "stream": return AMLResponse((str(n) for n in range(3)), 200)
    return kind
"""
HEADERS = """
def init(): pass
def run(data, request_headers, extra=1):
    return {"header": request_headers.get("x-own") or request_headers.get("X-Own"), "extra": extra}
"""
SLOW = """
import json, time
def init(): pass
def run(data):
    end = time.monotonic() + json.loads(data)
    while time.monotonic() < end: sum(range(1000))
    return "done"
"""
SCHEMA = """
import numpy as np
from inference_schema.schema_decorators import input_schema, output_schema
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
input_sample = np.array([[1.8, 2.8]])
def init(): pass
@input_schema('data', NumpyParameterType(input_sample))
@output_schema(StandardPythonParameterType([1.0]))
def run(data, times=1):
    return (data.sum(axis=1) * times).tolist()
"""
PANDAS = """
import pandas as pd
from inference_schema.schema_decorators import input_schema
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
def init(): pass
@input_schema('frame', PandasParameterType(pd.DataFrame({"a": [1], "b": [2.5]})))
@input_schema('options', StandardPythonParameterType({"scale": 1}))
def run(frame, options):
    return {"columns": list(frame.columns), "sum": float(frame.sum().sum()) * options["scale"]}
"""
SCRIPTS = {
    "counter": COUNTER,
    "binary": SEED_BINARY,
    "answers": ANSWERS,
    "headers": HEADERS,
    "schema": SCHEMA,
    "pandas": PANDAS,
    "cors": COUNTER,
}
VARIABLES = {"cors": {"AML_CORS_ORIGINS": f"{ORIGIN},https://other.example"}}
NEEDS = {"schema": "inference_schema", "pandas": "pandas"}


@dataclass(frozen=True)
class Row:
    """A request and what must come back; a header of None must be absent, a pattern must match."""

    case: str
    script: str
    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    json: Any = ...
    content: bytes | None = None
    expect: dict[str, str | re.Pattern[str] | None] = field(default_factory=dict)
    ours: str = ""


def post(
    case: str, script: str, body: bytes | Any, headers: dict[str, str] | None = None, **more: Any
) -> Row:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Row(case, script, "POST", "/score", body, JSON if headers is None else headers, **more)


def get(case: str, script: str, path: str, **more: Any) -> Row:
    return Row(case, script, "GET", path, **more)


def kind(case: str, name: str, **more: Any) -> Row:
    return post(case, "answers", {"kind": name}, **more)


def ids(case: str, given: dict[str, str], expect: dict[str, Any], **more: Any) -> Row:
    return post(case, "counter", b"1", {**JSON, **given}, expect=expect, **more)


FAILED, FINE = {"x-ms-run-function-failed": "True"}, {"x-ms-run-function-failed": "False"}
RUN = {**FINE, "x-ms-run-fn-exec-ms": re.compile(r"\d+\.\d{3}"), "content-type": "application/json"}
LONG = "x" * 101
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NO_CLIENT_IDS = {"x-ms-request-id": None, "x-ms-client-request-id": None}

ROWS = [
    # §2.1 routes
    get("26 health", "counter", "/", content=b"Healthy"),
    Row("26 health by HEAD", "counter", "HEAD", "/"),
    Row("26 other methods of the health route", "counter", "DELETE", "/", status=405, expect={"content-type": "application/json"}),
    get("26 no such route", "counter", "/nothing", status=404, expect={"content-type": "application/json"}),
    post("26 a slash too many", "counter", b"1", status=200, expect=RUN),
    Row("26 score with a slash", "counter", "POST", "/score/", b"1", JSON, status=404),
    Row("26 score by PUT", "counter", "PUT", "/score", b"1", JSON, status=405, expect={"content-type": "application/json"}),
    Row("26 score by OPTIONS", "counter", "OPTIONS", "/score"),
    get("26 query values are JSON or text", "counter", "/score?a=1&b=x&a=2", json={"init": 1, "type": "str", "data": ANY}),
    get("26 the server's version", "counter", "/", expect={"x-ms-server-version": re.compile(r"[a-z]+/\d+\.\d+\.\d+")}),
    post("26 the server's version on a score", "counter", b"1", expect={"x-ms-server-version": re.compile(r"[a-z]+/\d+\.\d+\.\d+")}),
    get("25 swagger 2", "counter", "/swagger.json", expect={"content-type": "application/json"}),
    get("25 swagger 3", "counter", "/swagger.json?version=3"),
    get("25 swagger of an unknown version", "counter", "/swagger.json?version=9", status=404),
    # §2.3 ids (I01 to I08) and trace
    ids("I01 an id is made", {}, {"x-request-id": ANY, "x-ms-request-id": ANY, "x-ms-client-request-id": None}),
    ids("I02 the request's id", {"x-request-id": "R"}, {"x-request-id": "R", "x-ms-request-id": "R", "x-ms-client-request-id": None}),
    ids("I03 the old client id", {"x-ms-request-id": "L"}, {"x-request-id": ANY, "x-ms-request-id": "L", "x-ms-client-request-id": "L"}),
    ids("I04 the client id", {"x-ms-client-request-id": "C"}, {"x-ms-request-id": "C", "x-ms-client-request-id": "C"}),
    ids("I05 both client ids", {"x-ms-request-id": "L", "x-ms-client-request-id": "C"}, {"x-ms-request-id": "L", "x-ms-client-request-id": "C"}),
    ids("I06 a long id", {"x-request-id": LONG}, {"x-request-id": None, **NO_CLIENT_IDS}, status=431, json={"message": "x-request-id must not exceed 100 characters"}),
    ids("I07 a long old client id", {"x-request-id": "R", "x-ms-request-id": LONG}, {"x-request-id": "R", **NO_CLIENT_IDS}, status=431, json={"message": "x-ms-request-id and x-ms-client-request-id must not exceed 100 characters"}),
    ids("I07 a long client id", {"x-ms-client-request-id": LONG}, {"x-request-id": ANY, **NO_CLIENT_IDS}, status=431),
    ids("I07 the limit itself", {"x-request-id": "x" * 100}, {"x-request-id": "x" * 100}),
    kind("I08 a script cannot set the request's id", "ids", headers={**JSON, "x-request-id": "R"}, expect={"x-request-id": "R"}),
    ids("26 TraceId", {"TraceId": "T"}, {"traceid": "T"}),
    ids("26 traceparent", {"traceparent": TRACE}, {"traceparent": TRACE}, ours="W3C Trace Context, which Azure ML's server does not return"),
    # §2.4 kinds of run, results
    post("16 body as text, any content type", "counter", "å".encode(), {"content-type": "text/x"}, json={"init": 1, "type": "str", "data": "å"}, expect=RUN),
    post("26 body that is not UTF-8", "counter", b"\xff", status=400, expect=FINE),
    post("26 form body", "counter", b"a=1", {"content-type": "application/x-www-form-urlencoded"}, status=415, ours="an empty text is a silent trap"),
    post("26 request_headers and defaults", "headers", b"", {"x-own": "yes"}, json={"header": "yes", "extra": 1}),
    kind("26 None is an empty object", "none", json={}, expect=RUN),
    kind("17 text is encoded again", "text", json="[1, 2]", expect=RUN),
    kind("26 AMLResponse of nothing", "empty", status=333, json={}, expect={**FINE, "content-type": "application/json"}),
    kind("26 AMLResponse as JSON", "json", status=555, json="test", expect=FAILED),
    kind("26 AMLResponse of text", "plain", status=444, content=b"test", expect={**FINE, "content-type": re.compile("text/html.*")}),
    kind("26 AMLResponse headers", "headers", content=b"x", expect={"a": "A", "b": re.compile("B|C"), "content-type": "image/x"}),
    kind("26 AMLResponse of a generator", "stream", content=b"012"),
    kind("48 a run that raises", "raise", status=500, expect={**FAILED, "content-type": "application/json"}),
    kind("26 a result JSON cannot hold", "set", status=500, expect={"content-type": "application/json"}),
    # raw HTTP
    post("18 binary POST", "binary", b"\x00\x01\x02\x03\xff", {"content-type": "application/octet-stream"}, content=b"\xff\x03\x02\x01\x00", expect=FINE),
    get("19 binary GET", "binary", "/score?param=1", content=b"/score?param=1"),
    Row("20 another method of a raw script", "binary", "OPTIONS", "/score", status=500, content=b"bad request", expect=FAILED),
    post("21 contrib import", "binary", b"ab", {}, content=b"ba"),
    # schema
    post("22 numpy parameter", "schema", {"data": [[1, 2], [3, 4]]}, json=[3, 7], expect=RUN),
    post("22 defaults and extras", "schema", {"data": [[1, 2]], "times": 2, "other": 1}, json=[6]),
    get("22 swagger of the sample", "schema", "/swagger.json"),
    post("26 a missing parameter", "schema", {}, status=400, expect=FINE),
    post("26 no object", "schema", [1], status=400),
    post("26 broken JSON", "schema", b"{", status=400),
    post("26 no body", "schema", b"", status=400),
    post("26 another content type", "schema", b"{}", {"content-type": "text/plain"}, status=415),
    post("26 a charset", "schema", {"data": [[1, 2]]}, {"content-type": "application/json; charset=utf-8"}, json=[3]),
    post("24 pandas and standard", "pandas", {"frame": [{"a": 1, "b": 2}], "options": {"scale": 2}}, json={"columns": ["a", "b"], "sum": 6}),
    # CORS
    post("55 off", "counter", b"1", {**JSON, "origin": ORIGIN}, expect={"access-control-allow-origin": None}),
    post("55 an allowed origin", "cors", b"1", {**JSON, "origin": ORIGIN}, expect={"access-control-allow-origin": ORIGIN}),
    post("55 another origin", "cors", b"1", {**JSON, "origin": "https://evil.example"}, expect={"access-control-allow-origin": None}),
    Row("55 a preflight", "cors", "OPTIONS", "/score", None, {"origin": ORIGIN, "access-control-request-method": "POST"}, expect={"access-control-allow-origin": ORIGIN, "access-control-allow-methods": re.compile(".*POST.*")}),
]  # fmt: skip


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ContractServer]]:
    """Started by the first row that needs them."""
    started: dict[str, ContractServer] = {}
    yield started
    for server in started.values():
        server.__exit__()


def server_of(
    name: str, servers: dict[str, ContractServer], factory: pytest.TempPathFactory
) -> ContractServer:
    package = NEEDS.get(name)
    if name not in servers:
        if package and not contract.has_package(package):
            pytest.skip(f"{package} is not installed in {contract.PYTHON}")
        folder = factory.mktemp(name)
        servers[name] = ContractServer(folder, SCRIPTS[name], **VARIABLES.get(name, {}))
    return servers[name].until_healthy()


@pytest.mark.parametrize("row", ROWS, ids=[row.case for row in ROWS])
def test_row(row: Row, servers: dict[str, ContractServer], tmp_path_factory: pytest.TempPathFactory) -> None:
    if row.ours and not contract.IS_OURS:
        pytest.skip(f"ours: {row.ours}")
    server = server_of(row.script, servers, tmp_path_factory)
    answer = server.call(row.method, row.path, row.body, row.headers)
    assert answer.status == row.status, answer.body
    if row.content is not None:
        assert answer.body == row.content
    if row.json is not ...:
        assert_json(row.json, answer.json())
    if answer.status in (400, 404, 405, 415, 431) and row.method != "HEAD":
        assert isinstance(answer.json()["message"], str)
    assert_headers(row.expect, answer)


def assert_json(expected: Any, found: Any) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert_json(value, found[key])
    elif expected is not ANY:
        assert expected == found


def assert_headers(expected: dict[str, Any], answer: Answer) -> None:
    for name, value in expected.items():
        found = answer.headers.get(name)
        if value is None:
            assert found is None, f"{name}: {found}"
        elif isinstance(value, re.Pattern):
            assert found is not None and value.fullmatch(found), f"{name}: {found}"
        else:
            assert found == value, name


# ---- cases with a life of their own ----


def test_16_init_runs_once_for_fifty_requests(tmp_path: Path) -> None:
    with ContractServer(tmp_path, COUNTER).until_healthy() as server:
        found = [server.call("POST", "/score", b"1", JSON).json()["init"] for _ in range(50)]
    assert found == [1] * 50


SEED_JSON = """
import json
import numpy as np
import os
import pickle
from sklearn.externals import joblib
from sklearn.linear_model import LogisticRegression

from azureml.core.model import Model

def init():
    global model
    # retrieve the path to the model file using the model name
    model_path = Model.get_model_path('sklearn_mnist')
    model = joblib.load(model_path)

def run(raw_data):
    data = np.array(json.loads(raw_data)['data'])
    # make prediction
    y_hat = model.predict(data)
    return json.dumps(y_hat.tolist())
"""


def test_17_the_original_documents_script_runs_verbatim(tmp_path: Path) -> None:
    """On another server too: its `azureml.core` and `sklearn.externals.joblib` are then this runtime's shims."""
    if not contract.has_package("sklearn"):
        pytest.skip(f"scikit-learn is not installed in {contract.PYTHON}")
    import joblib
    from sklearn.linear_model import LogisticRegression

    model = tmp_path / "azureml-models/sklearn_mnist/1"
    model.mkdir(parents=True)
    joblib.dump(LogisticRegression().fit([[0, 0], [9, 9]], [3, 8]), model / "sklearn_mnist_model.pkl")
    with ContractServer(tmp_path, SEED_JSON, **contract.shims_for_others(tmp_path)).until_healthy() as server:
        answer = server.call("POST", "/score", b'{"data": [[9, 8], [0, 1]]}', JSON)
    assert json.loads(answer.json()) == [8, 3]


def test_22_the_schema_shows_arrays_of_doubles_and_the_sample(
    servers: dict[str, ContractServer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = server_of("schema", servers, tmp_path_factory).call("GET", "/swagger.json").json()
    data = document["definitions"]["ServiceInput"]["properties"]["data"]
    assert (data["type"], data["items"]["type"]) == ("array", "array")
    assert data["items"]["items"] == {"type": "number", "format": "double"}
    assert document["definitions"]["ServiceInput"]["example"]["data"][0][0] == 1.8


SCHEMA_MISTAKE = SCHEMA.replace("def run(data, times=1)", "def run(raw_data)")


@pytest.mark.skipif(
    not contract.IS_OURS, reason="ours: the other server starts, and fails at every call (next row)"
)
def test_23_the_original_documents_schema_mistake_is_refused_with_both_names(tmp_path: Path) -> None:
    if not contract.has_package("inference_schema"):
        pytest.skip(f"inference-schema is not installed in {contract.PYTHON}")
    with ContractServer(tmp_path, SCHEMA_MISTAKE) as server:
        assert server.until_ended() == 3
        assert "'data'" in server.log and "'raw_data'" in server.log


@pytest.mark.skipif(contract.IS_OURS, reason="theirs: here the start is refused (row before)")
def test_23_the_original_documents_schema_mistake_fails_at_every_call(tmp_path: Path) -> None:
    with ContractServer(tmp_path, SCHEMA_MISTAKE).until_healthy() as server:
        by_decorator = server.call("POST", "/score", b'{"data": [[1, 2]]}', JSON)
        by_parameter = server.call("POST", "/score", b'{"raw_data": [[1, 2]]}', JSON)
    assert (by_decorator.status, by_parameter.status) == (400, 500)
    assert "raw_data" in by_decorator.json()["message"]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("def init(): pass\n", "run"),
        ("def run(data): pass\n", "init"),
        ("def init(): pass\ndef run(*args): pass\n", "args"),
        ("def init(): pass\ndef run(): pass\n", "run"),
        ("import no_such_package_of_anyone\n", "no_such_package_of_anyone"),
        ("def init(): raise RuntimeError('no licence')\ndef run(data): pass\n", "no licence"),
    ],
)
def test_26_a_script_that_cannot_work_ends_the_start(tmp_path: Path, script: str, text: str) -> None:
    with ContractServer(tmp_path, script) as server:
        assert server.until_ended() != 0
        assert text in server.log


def test_41_a_slow_run_is_answered_in_time_and_really_stopped(tmp_path: Path) -> None:
    with ContractServer(tmp_path, SLOW, SCORING_TIMEOUT_MS="400").until_healthy() as server:
        started = time.monotonic()
        answer = server.call("POST", "/score", b"30", JSON)
        assert time.monotonic() - started < 5
        assert (answer.status, answer.json()) == (500, {"message": "Scoring timeout after 400 ms"})
        assert answer.headers["x-ms-run-function-failed"] == "True"
        assert server.call("POST", "/score", b"0", JSON).json() == "done"


@pytest.mark.skipif(
    not contract.IS_OURS,
    reason="ours: the other server has no collector; its package (native, for libssl 1.0) does not load",
)
def test_45_collection_is_off_by_default_and_lies_under_the_documented_path(tmp_path: Path) -> None:
    script = """
        from azureml.monitoring import ModelDataCollector
        def init():
            global inputs
            inputs = ModelDataCollector("m", designation="inputs", feature_names=["a"])
        def run(data):
            inputs.collect([[1]])
            return "ok"
    """
    for enabled, found in (("false", 0), ("true", 1)):
        folder = tmp_path / enabled
        folder.mkdir()
        variables = {"AML_MODEL_DC_STORAGE_ENABLED": enabled, "EDGEWRIGHT_COLLECTED_DIR": str(folder)}
        with ContractServer(folder, script, **variables).until_healthy() as server:
            assert server.call("POST", "/score", b"1", JSON).json() == "ok"
        pattern = "modeldata/default/default/default/default/m/default/inputs/????/??/??/data.csv"
        assert len(list(folder.glob(pattern))) == found


def test_26_a_health_port_of_its_own(tmp_path: Path) -> None:
    port = contract.free_port()
    variables = {"SEPERATE_HEALTH_ENDPOINT": "true", "HEALTH_PORT": str(port)}
    # Azure ML's server overwrites HEALTH_PORT by its own default.
    options = f"--health_port {port}"
    with ContractServer(tmp_path, COUNTER, others_options=options, **variables).until_healthy() as server:
        assert call(("127.0.0.1", port), "GET", "/").body == b"Healthy"
        assert server.call("GET", "/").body == b"Healthy"


@pytest.mark.skipif(
    not contract.IS_OURS, reason="ours: the other server has no JSON log, and does what is asked for here"
)
def test_26_json_logs_and_a_warning_of_what_has_no_effect(tmp_path: Path) -> None:
    variables = {"EDGEWRIGHT_LOG_FORMAT": "json", "AML_APP_INSIGHTS_ENABLED": "true"}
    with ContractServer(tmp_path, COUNTER, **variables).until_healthy() as server:
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert [line["level"] for line in lines if "AML_APP_INSIGHTS_ENABLED" in line["message"]] == ["WARNING"]


def test_26_the_servers_version_can_be_switched_off(tmp_path: Path) -> None:
    variables = {"SERVER_VERSION_LOG_RESPONSE_ENABLED": "false"}
    with ContractServer(tmp_path, COUNTER, **variables).until_healthy() as server:
        for answer in (server.call("GET", "/"), server.call("POST", "/score", b"1", JSON)):
            assert "x-ms-server-version" not in answer.headers


@pytest.mark.parametrize("named", [False, True])
def test_26_settings_come_from_a_file_beside_the_script_or_named(tmp_path: Path, named: bool) -> None:
    file = tmp_path / ("elsewhere.json" if named else "config.json")
    file.write_text('{"SCORING_TIMEOUT_MS": 300, "SERVICE_NAME": "from the file", "SERVICE_VERSION": "7"}')
    variables = {"SERVICE_VERSION": "8", **({"AZUREML_CONFIG_FILE": str(file)} if named else {})}
    with ContractServer(tmp_path, SLOW, **variables).until_healthy() as server:
        assert server.call("POST", "/score", b"30", JSON).json() == {
            "message": "Scoring timeout after 300 ms"
        }
        info = server.call("GET", "/swagger.json").json()["info"]
    assert (info["title"], info["version"]) == ("from the file", "8")


LOGGING = """
import logging
def init(): logging.getLogger("own").debug("init says this")
def run(data): return data
"""


def test_26_logging_json_beside_the_script_is_obeyed(tmp_path: Path) -> None:
    formatter = {
        "class": "azureml_inference_server_http.log_config.AMLLogFormatter",
        "format": "[marked] %(message)s",
    }
    document = {
        "version": 1,
        "formatters": {"own": formatter},
        "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
        "loggers": {"own": {"level": "DEBUG", "handlers": ["own"], "propagate": False}},
    }
    (tmp_path / "logging.json").write_text(json.dumps(document))
    with ContractServer(tmp_path, LOGGING).until_healthy() as server:
        assert "[marked] init says this" in server.log


def test_26_a_script_imports_from_the_source_directory(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library/helper_of_the_contract.py").write_text("ANSWER = 42")
    script = "import helper_of_the_contract\ndef init(): pass\ndef run(data): return helper_of_the_contract.ANSWER\n"
    with ContractServer(tmp_path, script, AZUREML_SOURCE_DIRECTORY="library").until_healthy() as server:
        assert server.call("POST", "/score", b"", JSON).json() == 42


def test_26_a_line_in_the_log_for_each_scored_request_and_none_for_probes(tmp_path: Path) -> None:
    with ContractServer(tmp_path, COUNTER, EDGEWRIGHT_ACCESS_LOG="1").until_healthy() as server:
        assert server.call("POST", "/score", b"1", JSON).status == 200
        assert server.call("GET", "/score?a=1").status == 200
        assert server.call("GET", "/swagger.json").status == 200
        wanted = (
            r"POST /score 200 \d+\.\d{3}ms \d+$",
            r"GET /score\?a=1 200 \d",
            r"GET /swagger\.json 200 \d",
        )
        server.until_logged(lambda log: all(re.search(line, log, re.MULTILINE) for line in wanted))
        assert not re.search(r"GET / 200 \d+\.", server.log)


def test_48_a_failure_is_in_the_log_and_not_in_the_answer(tmp_path: Path) -> None:
    with ContractServer(tmp_path, ANSWERS).until_healthy() as server:
        answer = server.call("POST", "/score", b'{"kind": "raise"}', {**JSON, "x-request-id": "failing-7"})
        assert (answer.status, b"secret" in answer.body) == (500, False)
        server.until_logged(lambda log: "RuntimeError: the secret detail" in log)
        if contract.IS_OURS:
            assert "failing-7" in server.log
