"""Loading a user's script: what is refused, and what reaches run()."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from scoring_imports import imports_undone

from scoring_runtime.data_plane import ScoringRequest
from scoring_runtime.entry_script import EntryScript
from scoring_runtime.errors import BadInputError, ContentTypeError, ResultError, ScriptError

JSON = "application/json"


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with imports_undone():
        yield


def load(folder: Path, source: str) -> EntryScript:
    file = folder / "score.py"
    file.write_text(dedent(source))
    return EntryScript.load(file)


def refusal(folder: Path, source: str) -> ScriptError:
    with pytest.raises(ScriptError) as caught:
        load(folder, source).init()
    assert str(folder / "score.py") in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


def answer(script: EntryScript, request: ScoringRequest) -> bytes:
    return script.render(script.run(script.parse(request)))


def test_run_gets_the_body_as_text_whatever_the_content_type(tmp_path: Path) -> None:
    script = load(tmp_path, "def init(): pass\ndef run(data): return [type(data).__name__, data]")
    assert answer(script, ScoringRequest("å".encode(), "image/png")) == '["str","å"]'.encode()


def test_init_runs_before_run_and_keeps_its_globals(tmp_path: Path) -> None:
    script = load(tmp_path, "def init():\n global m\n m = 2\ndef run(data): return m")
    script.init()
    assert answer(script, ScoringRequest(b"")) == b"2"


def test_modules_beside_the_script_are_importable(tmp_path: Path) -> None:
    (tmp_path / "scoring_helper_beside.py").write_text("FACTOR = 7")
    script = load(
        tmp_path, "import scoring_helper_beside as h\ndef init(): pass\ndef run(data): return h.FACTOR"
    )
    assert answer(script, ScoringRequest(b"")) == b"7"


def test_classes_of_the_script_can_be_pickled(tmp_path: Path) -> None:
    source = (
        "import pickle\nclass A: pass\ndef init(): pass\ndef run(data): return len(pickle.dumps(A())) > 0"
    )
    assert answer(load(tmp_path, source), ScoringRequest(b"")) == b"true"


def test_request_headers_are_passed_to_a_run_that_asks(tmp_path: Path) -> None:
    script = load(tmp_path, "def init(): pass\ndef run(data, request_headers): return request_headers['a']")
    assert answer(script, ScoringRequest(b"", headers={"a": "b"})) == b'"b"'


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("'text'", b'"text"'),
        ("None", b"{}"),
        ("{1: 2}", b'{"1":2}'),
        ("float('nan')", b"null"),
        ("2 ** 70", b"1180591620717411303424"),
        ("__import__('numpy').arange(6).reshape(2, 3).T", b"[[0,3],[1,4],[2,5]]"),
    ],
)
def test_results_are_written_as_json(tmp_path: Path, result: str, body: bytes) -> None:
    assert (
        answer(load(tmp_path, f"def init(): pass\ndef run(data): return {result}"), ScoringRequest(b""))
        == body
    )


@pytest.mark.parametrize("result", ["{1, 2}", "object()", "b'bytes'", "(lambda x: x.append(x) or x)([])"])
def test_a_result_json_cannot_hold_is_refused(tmp_path: Path, result: str) -> None:
    script = load(tmp_path, f"def init(): pass\ndef run(data): return {result}")
    with pytest.raises(ResultError):
        answer(script, ScoringRequest(b""))


def test_a_body_that_is_not_utf8_is_the_callers_mistake(tmp_path: Path) -> None:
    script = load(tmp_path, "def init(): pass\ndef run(data): return 1")
    with pytest.raises(BadInputError, match="not UTF-8 text: invalid start byte at byte 1"):
        script.parse(ScoringRequest(b"a\xff"))


def test_a_form_body_is_refused_and_says_what_to_send(tmp_path: Path) -> None:
    script = load(tmp_path, "def init(): pass\ndef run(data): return 1")
    with pytest.raises(ContentTypeError, match="Content-Type: application/json"):
        script.parse(ScoringRequest(b"x", "application/x-www-form-urlencoded"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def init(): pass", "has no run(); expected 'def init():' and 'def run(data):'"),
        ("def run(data): pass", "has no init()"),
        ("def init(): pass\nrun = 3", "run in"),
        ("def init(): pass\ndef run(): pass", "takes no parameter for the input data"),
        ("def init(): pass\ndef run(request_headers): pass", "takes no parameter for the input data"),
        ("def init(): pass\ndef run(*args): pass", "takes '*args'"),
        ("def init(): pass\ndef run(data, **more): pass", "takes '**more'"),
        ("def init(): pass\ndef run(data, /): pass", "positional-only"),
        ("def init(): pass\ndef run(a, b): pass", "needs 'b' beside 'a'"),
        ("def init(): pass\nasync def run(data): pass", "coroutine"),
        ("def init(model): pass\ndef run(data): pass", "must take no parameter, not 'model'"),
    ],
)
def test_a_script_that_cannot_work_is_refused_at_start(tmp_path: Path, source: str, text: str) -> None:
    assert text in str(refusal(tmp_path, source))


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"does not exist: .*absent\.py"):
        EntryScript.load(tmp_path / "absent.py")


def test_an_import_error_shows_the_users_own_traceback(tmp_path: Path) -> None:
    error = refusal(tmp_path, "import no_such_package_at_all\ndef init(): pass\ndef run(data): pass")
    lines = error.user_traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{tmp_path / "score.py"}", line 1')
    assert lines[-1] == "ModuleNotFoundError: No module named 'no_such_package_at_all'"


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "line 1" in refusal(tmp_path, "def run(:").user_traceback


def test_init_that_raises_shows_causes_and_none_of_our_frames(tmp_path: Path) -> None:
    source = """
        def init():
            try:
                open("absent-model.pkl")
            except OSError as error:
                raise RuntimeError("no model") from error
        def run(data): pass
    """
    error = refusal(tmp_path, source)
    assert "init() of" in str(error) and "RuntimeError: no model" in str(error)
    assert "FileNotFoundError" in error.user_traceback
    assert "entry_script.py" not in error.user_traceback


def test_init_that_exits_is_a_failure(tmp_path: Path) -> None:
    assert "SystemExit" in str(refusal(tmp_path, "import sys\ndef init(): sys.exit(0)\ndef run(data): pass"))


# A package with the interface of inference_schema.schema_util: what the runtime asks of it, and nothing else.
SCHEMA_PACKAGE = """
import functools
_SCHEMAS = {}
def input_schema(name, sample):
    def decorate(run):
        names = run.__code__.co_varnames[: run.__code__.co_argcount]
        properties = {n: {} for n in names} | {name: {"type": "array"}}
        @functools.wraps(run)
        def wrapper(**kwargs):
            kwargs[name] = type(sample)(kwargs[name])
            return run(**kwargs)
        _SCHEMAS[wrapper] = {"type": "object", "properties": properties, "example": {name: sample}}
        return wrapper
    return decorate
def is_schema_decorated(run): return run in _SCHEMAS
def get_input_schema(run): return _SCHEMAS[run]
def get_output_schema(run): return {"type": "object"}
def get_supported_versions(run): return ["3.0", "3.1"]
"""
DECORATED = """
    from inference_schema.schema_util import input_schema
    def init(): pass
    @input_schema("{decorated}", (1.0,))
    def run({parameters}): return [type({first}).__name__, {result}]
"""


@pytest.fixture
def schema_package(tmp_path: Path) -> None:
    package = tmp_path / "inference_schema"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "schema_util.py").write_text(SCHEMA_PACKAGE)


def decorated(folder: Path, name: str, parameters: str, result: str) -> EntryScript:
    first = parameters.partition(",")[0].partition("=")[0]
    return load(folder, DECORATED.format(decorated=name, parameters=parameters, first=first, result=result))


@pytest.mark.usefixtures("schema_package")
def test_a_decorated_run_gets_converted_parameters_and_its_defaults(tmp_path: Path) -> None:
    script = decorated(tmp_path, "data", "data, method='mean'", "method")
    assert answer(script, ScoringRequest(b'{"data": [1], "other": 2}', JSON)) == b'["tuple","mean"]'
    assert answer(script, ScoringRequest(b'{"data": [1], "method": "max"}', JSON)) == b'["tuple","max"]'
    assert script.signature.versions == ("3.0", "3.1")
    assert script.signature.input["example"] == {"data": (1.0,)}


@pytest.mark.usefixtures("schema_package")
def test_a_default_of_a_decorated_parameter_goes_through_the_decorator_too(tmp_path: Path) -> None:
    script = decorated(tmp_path, "data", "data=[1]", "data")
    assert answer(script, ScoringRequest(b"{}", JSON)) == b'["tuple",[1]]'


@pytest.mark.usefixtures("schema_package")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[1]", "expected a JSON object with 'data', found an array"),
        (b"{}", "a value for the parameter 'data' is missing"),
        (b"{", "not JSON"),
        (b"", "the body is empty"),
    ],
)
def test_a_decorated_run_refuses_bodies_without_its_parameters(
    tmp_path: Path, body: bytes, text: str
) -> None:
    with pytest.raises(BadInputError, match=text):
        decorated(tmp_path, "data", "data", "1").parse(ScoringRequest(body, JSON))


@pytest.mark.usefixtures("schema_package")
def test_a_decorated_run_takes_json_only(tmp_path: Path) -> None:
    with pytest.raises(ContentTypeError, match="expected content type 'application/json', found none"):
        decorated(tmp_path, "data", "data", "1").parse(ScoringRequest(b"{}"))


@pytest.mark.usefixtures("schema_package")
def test_a_decorator_that_names_another_parameter_is_refused_with_both_names(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"the parameter 'data', but run\(\) takes 'raw_data'"):
        decorated(tmp_path, "data", "raw_data", "1")
