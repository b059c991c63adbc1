"""Loading and calling a user's `score.py`: `init()` once, then `run(…)` per request.

1. The script is loaded by its path as module `entry_module`, with its own folder first on `sys.path`.
2. An undecorated `run(data)` gets the body as a str, whatever the content type.
3. A `run` decorated with `inference_schema` gets its parameters picked by name from the JSON object in the
   body; names it does not know are ignored, defaults are honoured, the decorator converts them.
4. A parameter `request_headers` gets the headers as a dict, in both kinds.
5. A `run` decorated with `@rawhttp` gets an `AMLRequest` for GET, POST and OPTIONS; any run may return an `AMLResponse`.
6. A script that has a `driver_module` with `run` is Azure ML's generated wrapper: that `run` and the wrapper's `init`
   are called.
7. What cannot work is refused at start: no `init` or `run`, `*args`, `**kwargs`, positional-only or no
   parameter, a coroutine, a decorator that names a parameter which `run` does not have, `@rawhttp` with a schema.
8. The user's own failure comes first and complete: `ScriptError.user_traceback`.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .current_request import set_request_id
from .data_plane import Rendered, ScoringRequest
from .errors import BadInputError, ContentTypeError, ScriptError
from .json_codec import decode, encode
from .raw_http import AMLRequest, AMLResponse, is_rawhttp
from .schema import Signature
from .tracebacks import user_traceback

MODULE_NAME = "entry_module"
EXPECTED = "expected 'def init():' and 'def run(data):'"
HEADERS_PARAMETER = "request_headers"
# Azure ML's server hands such a body to run() as an empty string (facts/azureml.md §0, 7); curl sends it unasked.
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")

Parse = Callable[[ScoringRequest], dict[str, Any]]


class EntryScript:
    """A loaded script; `init()` before the first `run`."""

    def __init__(self, path: Path, module: ModuleType, tracks_requests: bool = False) -> None:
        self.path = path
        self._tracks_requests = tracks_requests
        self._init = _function(module, "init", path)
        self._run = _function(_driver(module), "run", path)
        _check_init(self._init, path)
        parameters = _run_parameters(self._run, path)
        self._wants_headers = parameters.pop(HEADERS_PARAMETER, None) is not None
        schemas = _decorated_schemas(self._run)
        self.takes_raw_http = is_rawhttp(self._run)
        if self.takes_raw_http:
            if schemas is not None:
                raise ScriptError(
                    f"run() in {path} is decorated with @rawhttp and with a schema; expected one of them: a raw run"
                    " gets the request as it is"
                )
            self._parse: Parse = _raw_parser(next(iter(parameters)))
            self.signature = Signature()
        elif schemas is None:
            self._parse = _text_parser(next(iter(parameters)))
            self.signature = Signature()
        else:
            _check_schema_names(schemas.input, parameters, path)
            self._parse = _object_parser(parameters)
            self.signature = schemas

    @classmethod
    def load(cls, path: Path, tracks_requests: bool = False) -> EntryScript:
        """Run the script's top level.

        Args:
            path: the script.
            tracks_requests: whether `current_request` knows which request a thread computes.

        Raises:
            ScriptError: no such file, it cannot be imported, or it has no usable `init` and `run`.
        """
        return cls(path, _import(path), tracks_requests)

    def init(self) -> None:
        """Call the user's `init()`.

        Raises:
            ScriptError: it raised (SystemExit included).
        """
        try:
            self._init()
        except BaseException as error:
            raise ScriptError(
                f"init() of {self.path} raised {_summary(error)}", user_traceback(error)
            ) from error

    def parse(self, request: ScoringRequest) -> dict[str, Any]:
        if request.content_type in FORM_TYPES and not self.takes_raw_http:
            raise ContentTypeError(
                f"content type '{request.content_type}' is not scored; send the body with"
                " 'Content-Type: application/json' (curl: -H 'Content-Type: application/json')"
            )
        if self._tracks_requests:
            set_request_id(request.request_id)
        arguments = self._parse(request)
        if self._wants_headers:
            arguments[HEADERS_PARAMETER] = dict(request.headers)
        return arguments

    def run(self, arguments: dict[str, Any]) -> Any:
        return self._run(**arguments)

    def render(self, result: Any) -> bytes | Rendered:
        if isinstance(result, AMLResponse):
            return result.render()
        return b"{}" if result is None else encode(result)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise ScriptError(f"the entry script does not exist: {path}")
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ScriptError(f"the entry script must be a Python file ending in .py, not {path}")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # as the import system does: pickle and dataclasses look it up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[MODULE_NAME]
        raise ScriptError(f"importing {path} raised {_summary(error)}", user_traceback(error)) from error
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    function: Any = getattr(module, name, None)
    if function is None:
        raise ScriptError(f"{path} has no {name}(); {EXPECTED}")
    if not callable(function):
        raise ScriptError(f"{name} in {path} is a {type(function).__name__}, not a function; {EXPECTED}")
    if inspect.iscoroutinefunction(function):
        raise ScriptError(
            f"{name}() in {path} is a coroutine ('async def'), which is not awaited; {EXPECTED}"
        )
    checked: Callable[..., Any] = function
    return checked


def _driver(module: ModuleType) -> ModuleType:
    """Where `run` is: in the script, or in the module that Azure ML's generated `main.py` wraps."""
    driver: Any = getattr(module, "driver_module", None)
    return driver if callable(getattr(driver, "run", None)) else module


def _check_init(init: Callable[..., Any], path: Path) -> None:
    required = [p.name for p in inspect.signature(init).parameters.values() if _is_required(p)]
    if required:
        raise ScriptError(f"init() in {path} must take no parameter, not '{required[0]}'; {EXPECTED}")


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _run_parameters(run: Callable[..., Any], path: Path) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(run).parameters)
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ScriptError(
                f"run() in {path} takes '{parameter}'; positional-only parameters, *args and **kwargs"
                f" cannot be filled from a request; {EXPECTED}"
            )
    if not set(parameters) - {HEADERS_PARAMETER}:
        raise ScriptError(f"run() in {path} takes no parameter for the input data; {EXPECTED}")
    first, *others = (p for name, p in parameters.items() if name != HEADERS_PARAMETER)
    needed = [p.name for p in others if _is_required(p)]
    if needed and _decorated_schemas(run) is None:
        raise ScriptError(
            f"run() in {path} needs '{needed[0]}' beside '{first.name}', but an undecorated run gets the body alone;"
            f" give '{needed[0]}' a default or decorate run with inference_schema's input_schema"
        )
    return parameters


def _text_parser(name: str) -> Parse:
    def parse(request: ScoringRequest) -> dict[str, Any]:
        try:
            return {name: str(request.body, "utf-8")}
        except UnicodeDecodeError as error:
            raise BadInputError(f"the body is not UTF-8 text: {error.reason} at byte {error.start}") from None

    return parse


def _raw_parser(name: str) -> Parse:
    def parse(request: ScoringRequest) -> dict[str, Any]:
        return {name: AMLRequest(request)}

    return parse


def _object_parser(parameters: Mapping[str, inspect.Parameter]) -> Parse:
    def parse(request: ScoringRequest) -> dict[str, Any]:
        if request.content_type != "application/json":
            found = f"'{request.content_type}'" if request.content_type else "none"
            raise ContentTypeError(f"expected content type 'application/json', found {found}")
        document = decode(request.body)
        if not isinstance(document, dict):
            raise BadInputError(
                f"expected a JSON object with {_names(parameters)}, found {_json_kind(document)}"
            )
        missing = [name for name, p in parameters.items() if name not in document and _is_required(p)]
        if missing:
            raise BadInputError(
                f"a value for the parameter '{missing[0]}' is missing; expected {_names(parameters)}"
            )
        # Defaults are passed on by name: the decorator converts what it is given and fails on what is left out.
        return {name: document.get(name, parameter.default) for name, parameter in parameters.items()}

    return parse


def _decorated_schemas(run: Callable[..., Any]) -> Signature | None:
    """The schemas of a decorated run, None for a plain one. Looks only if the script imported the package."""
    package = sys.modules.get("inference_schema.schema_util")
    if package is None or not package.is_schema_decorated(run):
        return None
    return Signature(
        input=package.get_input_schema(run),
        output=package.get_output_schema(run),
        versions=tuple(package.get_supported_versions(run)),
    )


def _check_schema_names(
    schema: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], path: Path
) -> None:
    """Refuse `@input_schema('data', …) def run(raw_data)`: it imports well and then fails at every request."""
    known = {*parameters, HEADERS_PARAMETER}
    for name in schema.get("properties", {}):
        if name not in known:
            raise ScriptError(
                f"input_schema in {path} describes the parameter '{name}', but run() takes {_names(parameters)};"
                " give both the same name"
            )


def _names(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in parameters)


def _json_kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
