"""`@rawhttp`, `AMLRequest` and `AMLResponse`, and the imports that old scripts use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from scoring_asgi import AppUnderTest
from scoring_imports import imports_undone
from scoring_server import Reply

import scoring_runtime
from scoring_runtime import old_imports
from scoring_runtime.data_plane import DataPlane, Outcome, ScoringRequest
from scoring_runtime.entry_script import EntryScript
from scoring_runtime.errors import BadInputError, ScriptError
from scoring_runtime.metrics import Metrics
from scoring_runtime.raw_http import AMLRequest

SHIMS = str(Path(scoring_runtime.__file__ or "").parent / "shims")
IMPORTS = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
"""


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with imports_undone():
        sys.path.append(SHIMS)
        yield


def load(folder: Path, source: str) -> EntryScript:
    (folder / "score.py").write_text(IMPORTS + "def init(): pass\n" + dedent(source))
    return EntryScript.load(folder / "score.py")


def serve(folder: Path, source: str) -> AppUnderTest:
    return AppUnderTest(scorer=load(folder, source))


def answered(folder: Path, expression: str) -> Reply:
    return serve(folder, f"def run(data):\n    return {expression}\n").call("POST", "/score", b"x")


RAW = """
@rawhttp
def run(request):
    if request.method == 'GET':
        return AMLResponse(str.encode(request.full_path), 200)
    if request.method == 'POST':
        return AMLResponse(request.get_data(False)[::-1], 200, {'Content-Type': 'application/octet-stream'})
    return AMLResponse("bad request", 500)
"""


def test_a_raw_script_gets_every_method_whole(tmp_path: Path) -> None:
    app = serve(tmp_path, RAW)
    assert app.call("GET", "/score?a=1&b=%C3%A5").body == b"/score?a=1&b=%C3%A5"
    assert app.call("GET", "/score").body == b"/score?"
    posted = app.call("POST", "/score", b"\x00\x01\x02\x03\xff")
    assert (posted.status, posted.body) == (200, b"\xff\x03\x02\x01\x00")
    assert posted.headers["content-type"] == "application/octet-stream"
    refused = app.call("OPTIONS", "/score")
    assert (refused.status, refused.body) == (500, b"bad request")
    assert refused.headers["x-ms-run-function-failed"] == "True"
    assert refused.headers["content-type"].startswith("text/html")


def test_a_raw_run_may_answer_with_a_plain_value(tmp_path: Path) -> None:
    app = serve(tmp_path, "@rawhttp\ndef run(request): return {'got': len(request.data)}")
    reply = app.call("POST", "/score", b"123", {"content-type": "application/x-www-form-urlencoded"})
    assert (reply.json(), reply.headers["content-type"]) == ({"got": 3}, "application/json")


def test_a_raw_run_with_a_schema_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "inference_schema"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "schema_util.py").write_text(
        "def is_schema_decorated(run): return True\ndef get_input_schema(run): return {}\ndef get_output_schema(run): return {}\ndef get_supported_versions(run): return ['3.0']\n"
    )
    with pytest.raises(ScriptError, match="@rawhttp and with a schema"):
        load(tmp_path, "import inference_schema.schema_util\n@rawhttp\ndef run(request): pass")


@pytest.mark.parametrize(
    ("expression", "status_type_and_failed", "body"),
    [
        ("AMLResponse(None, 333)", (333, "application/json", "False"), b"{}"),
        ("AMLResponse('test', 444)", (444, "text/html; charset=utf-8", "False"), b"test"),
        ("AMLResponse('test', 555, json_str=True)", (555, "application/json", "True"), b'"test"'),
        (
            "AMLResponse(b'x', 200, {'content-type': 'a/b'}, run_function_failed=True)",
            (200, "a/b", "True"),
            b"x",
        ),
        (
            "AMLResponse((str(n) for n in range(3)), 200)",
            (200, "text/html; charset=utf-8", "False"),
            b"012",
        ),
    ],
)
def test_an_aml_response_says_everything(
    tmp_path: Path, expression: str, status_type_and_failed: tuple[int, str, str], body: bytes
) -> None:
    reply = answered(tmp_path, expression)
    failed = reply.headers["x-ms-run-function-failed"]
    assert (reply.status, reply.headers["content-type"], failed) == status_type_and_failed
    assert reply.body == body
    assert float(reply.headers["x-ms-run-fn-exec-ms"]) >= 0


def test_header_values_are_split_at_commas_and_the_servers_own_stay(tmp_path: Path) -> None:
    given = "{'a': 'A', 'b': 'A, B', 'Content-Type': 'A', 'x-ms-run-function-failed': 'Z', 'x-request-id': 'mine'}"
    app = serve(tmp_path, f"def run(data): return AMLResponse(None, 555, {given}, run_function_failed=True)")
    reply = app.call("POST", "/score", b"x", {"x-request-id": "theirs"})
    assert [value for name, value in app.sent_headers if name == "b"] == ["A", "B"]
    assert reply.headers["a"] == "A" and reply.headers["content-type"] == "application/json"
    assert reply.headers["x-ms-run-function-failed"] == "True"
    assert [value for name, value in app.sent_headers if name == "x-request-id"] == ["theirs"]


@pytest.mark.parametrize(
    "expression",
    ["AMLResponse('x', 200, {'a': 'b\\r\\nc: d'})", "AMLResponse('x', 99)", "AMLResponse(3, 200)"],
)
def test_an_answer_that_cannot_be_sent_fails_in_the_script(
    tmp_path: Path, expression: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert answered(tmp_path, expression).status == 500
    assert "score.py" in caplog.text


def test_a_stream_is_gathered_for_callers_without_streams(tmp_path: Path) -> None:
    plane = DataPlane(
        load(tmp_path, "def run(data): return AMLResponse(iter(['a', b'b']), 200)"), Metrics("m")
    )
    assert plane.score(ScoringRequest(b""), "message").body == b"ab"
    broken = DataPlane(
        load(tmp_path, "def run(data): return AMLResponse((1 / n for n in [0]), 200)"), Metrics("m")
    )
    assert broken.score(ScoringRequest(b""), "message").outcome is Outcome.RUN_FAILED


def request(body: bytes = b"", content_type: str = "", target: str = "/score", **headers: str) -> AMLRequest:
    kind = content_type.partition(";")[0]
    return AMLRequest(
        ScoringRequest(body, kind, headers={"content-type": content_type, **headers}, target=target)
    )


def test_a_request_knows_its_query_headers_and_cookies() -> None:
    asked = request(target="/score?n=3&n=4&s=a%20b", cookie="k=v", host="h:1")
    assert asked.args.get("n", type=int) == 3 and asked.args.getlist("n") == ["3", "4"]
    assert (asked.args["s"], asked.args.get("x", "d"), asked.args.get("s", 1, type=int)) == ("a b", "d", 1)
    assert (asked.headers["HOST"], asked.cookies["k"]) == ("h:1", "v")
    assert asked.url == "http://h:1/score?n=3&n=4&s=a%20b"


def test_a_request_reads_json_and_forms() -> None:
    assert request(b'{"a": 1}', "application/json").json == {"a": 1}
    assert request(b'{"a": 1}').get_json() is None
    assert request(b"{").get_json(force=True, silent=True) is None
    with pytest.raises(BadInputError):
        request(b"{", "application/json").get_json()
    assert request(b"a=1&b=%20", "application/x-www-form-urlencoded").form == {"a": "1", "b": " "}


def test_a_request_reads_uploaded_files() -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\nhi\r\n'
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.bin"\r\nContent-Type: image/x\r\n\r\n'
        b"\x00\r\n\xff\r\n--B--\r\n"
    )
    asked = request(body, 'multipart/form-data; boundary="B"')
    assert asked.form == {"note": "hi"}
    file: Any = asked.files["image"]
    assert (file.filename, file.content_type, file.read()) == ("a.bin", "image/x", b"\x00\r\n\xff")


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b"", "multipart/form-data", "no boundary"),
        (b"--B\r\n\r\nx", "multipart/form-data; boundary=B", "has no name"),
        (b"", "multipart/form-data; boundary=B", "closing boundary"),
        (b"a&" * 1001, "application/x-www-form-urlencoded", "at most 1000 fields"),
    ],
)
def test_a_broken_form_names_what_is_wrong(body: bytes, content_type: str, text: str) -> None:
    with pytest.raises(BadInputError, match=text):
        assert request(body, content_type).form is not None


def test_a_driver_module_runs_and_the_outer_init_is_called(tmp_path: Path) -> None:
    (tmp_path / "scoring_inner_driver.py").write_text(
        "def init(): raise RuntimeError\ndef run(data): return 'inner ' + data\n"
    )
    (tmp_path / "score.py").write_text(
        "import scoring_inner_driver as driver_module\ncalls = []\ndef init(): calls.append(1)\ndef run(data): return 'outer'\n"
    )
    script = EntryScript.load(tmp_path / "score.py")
    script.init()
    assert script.render(script.run(script.parse(ScoringRequest(b"x")))) == b'"inner x"'


def test_the_old_name_of_joblib_is_joblib_itself() -> None:
    finders = list(sys.meta_path)
    try:
        old_imports.install()
        old_imports.install()
        assert len(sys.meta_path) == len(finders) + 1
        import joblib
        from sklearn.externals import joblib as old  # type: ignore[attr-defined]

        assert old is joblib and joblib.__spec__.name == "joblib"
        import sklearn.externals.joblib.numpy_pickle as pickle  # type: ignore[import-not-found]

        assert pickle is sys.modules["joblib.numpy_pickle"]
    finally:
        sys.meta_path[:] = finders


CORS = {"cors_origins": ("https://app.example",)}


def test_without_origins_no_answer_has_cors_headers() -> None:
    reply = AppUnderTest().call("POST", "/score", b"1", {"origin": "https://app.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_an_allowed_origin_is_named_on_every_answer() -> None:
    app = AppUnderTest(**CORS)
    for method, path in (("POST", "/score"), ("OPTIONS", "/score"), ("GET", "/nothing")):
        reply = app.call(method, path, b"1", {"origin": "https://app.example"})
        assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (
            "https://app.example",
            "Origin",
        )
    other = app.call("POST", "/score", b"1", {"origin": "https://evil.example"})
    assert other.status == 200 and "access-control-allow-origin" not in other.headers


def test_a_preflight_is_answered_before_the_script(tmp_path: Path) -> None:
    app = AppUnderTest(scorer=load(tmp_path, RAW), cors_origins=("*",))
    asked = {
        "origin": "https://x",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-a",
    }
    reply = app.call("OPTIONS", "/score", headers=asked)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-methods"] == "GET, POST"
    assert reply.headers["access-control-allow-headers"] == "x-a"
