"""Deployment templates in iotedgedev's dialect (`deployment.template.json`), expanded to deployment manifests.

Rules:
- `${MODULES.NAME}`, also with a platform (`${MODULES.NAME.amd64}`, `.arm64v8`, `.debug` …), is the image of that name:
  the same reference for every platform, since an image here is one index for all of them.
- `${NAME}` is a variable anywhere, `$NAME` where it begins with a capital or `_`: `$upstream`, `$body` and the like are of
  the route language. Variables come from `.env` files and from the environment, which wins.
- Every variable and image that is missing is named, not only the first one.
- A value goes into a JSON string as text, whatever it holds; outside of strings it must be a JSON scalar.
- createOptions may be an object; `$schema-template` and a module's `build` members are dropped.

>>> expand('{"image": "${MODULES.scorer.amd64}", "n": $N}', {"N": "3"}, lambda name: f"registry.example/{name}:1")
{'image': 'registry.example/scorer:1', 'n': 3}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from edge_contracts.create_options import is_create_options_name, split_create_options
from edge_contracts.documents import canonical_json, parse_object
from edge_contracts.errors import ContractError, PublishError
from publisher.errors import NotFoundError

PLATFORM_SUFFIXES = ("amd64", "arm64v8", "arm64", "arm32v7", "windows-amd64")
UNSUPPORTED = {
    "arm32v7": "images for 32-bit ARM are not built (ONNX Runtime has no wheels for it)",
    "windows-amd64": "images for Windows are not built",
}
DROPPED_KEYS = ("$schema-template",)

_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_PLACEHOLDER = re.compile(r"\$\{(?P<braced>[^}\"]*)\}|\$(?P<bare>[A-Z_][A-Za-z0-9_]*)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(
    rf"MODULES\.(?P<name>[A-Za-z0-9_-]+?)(?:\.(?P<platform>{'|'.join(PLATFORM_SUFFIXES)}))?(?:\.debug)?"
)
_ASSIGNMENT = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


class TemplateError(PublishError):
    """A template cannot be expanded; every variable or image that is missing is named."""

    code = "template"


ImageOf = Callable[[str], str]
"""Image reference of a name in `${MODULES.name}`; raises `NotFoundError` for a name that has none."""


def expand(
    text: str, variables: Mapping[str, str], image_of: ImageOf, *, where: str = "template"
) -> dict[str, Any]:
    """The manifest that a template means.

    Raises:
        TemplateError: variables or images are missing, or a placeholder is none of this dialect.
        ContractError: what comes out is no JSON object.
    """
    expansion = _Expansion(variables, image_of)
    pieces: list[str] = []
    position = 0
    for string in _STRING.finditer(text):
        pieces.append(_PLACEHOLDER.sub(expansion.scalar, text[position : string.start()]))
        pieces.append(_PLACEHOLDER.sub(expansion.text, string[0]))
        position = string.end()
    pieces.append(_PLACEHOLDER.sub(expansion.scalar, text[position:]))
    expansion.refuse_missing(where)
    document = parse_object("".join(pieces), where=where, code="template")
    for key in DROPPED_KEYS:
        document.pop(key, None)
    _write_create_options(document)
    return document


class _Expansion:
    """What stands for each placeholder, and what was found to be missing."""

    def __init__(self, variables: Mapping[str, str], image_of: ImageOf) -> None:
        self._variables = variables
        self._image_of = image_of
        self._missing: dict[str, str] = {}

    def text(self, found: re.Match[str]) -> str:
        """The replacement inside a JSON string."""
        value = self._value(found)
        return found[0] if value is None else json.dumps(value, ensure_ascii=False)[1:-1]

    def scalar(self, found: re.Match[str]) -> str:
        """The replacement outside of strings."""
        value = self._value(found)
        if value is None:
            return found[0]
        try:
            if isinstance(json.loads(value), dict | list):
                raise ValueError
        except ValueError:
            self._missing[found[0]] = "must be a number, true, false or null where it is not within quotes"
        return value

    def refuse_missing(self, where: str) -> None:
        """Raise for everything that had no value."""
        if self._missing:
            reasons = "; ".join(f"{name} {reason}" for name, reason in self._missing.items())
            raise TemplateError(f"'{where}' cannot be expanded: {reasons}", where=where)

    def _value(self, found: re.Match[str]) -> str | None:
        name = found["braced"] if found["bare"] is None else found["bare"]
        if image := _IMAGE.fullmatch(name):
            return self._image(found[0], image)
        if not _VARIABLE.fullmatch(name):
            self._missing[found[0]] = "is neither a variable nor ${MODULES.name}"
            return None
        if name not in self._variables:
            self._missing[found[0]] = "is not set: add it to the .env file or to the environment"
            return None
        return self._variables[name]

    def _image(self, placeholder: str, image: re.Match[str]) -> str | None:
        if reason := UNSUPPORTED.get(image["platform"] or ""):
            self._missing[placeholder] = f"cannot be had: {reason}"
            return None
        try:
            return self._image_of(image["name"])
        except NotFoundError as error:
            hint = f" ({error.next_command})" if error.next_command else ""
            self._missing[placeholder] = f"has no image: {error.message}{hint}"
            return None


def read_env_file(text: str, *, where: str = ".env") -> dict[str, str]:
    """The variables of a `.env` file: `NAME=VALUE` lines, `#` comments, `export`, and quotes as a shell has them.

    Raises:
        TemplateError: a line is none of these; the message names it by number and never shows its value.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(stripped)
        value = None if assignment is None else _unquoted(assignment["value"])
        if assignment is None or value is None:
            raise TemplateError(
                f"'{where}' line {number} must be NAME=VALUE, with quotes closed", where=f"{where}:{number}"
            )
        found[assignment["name"]] = value
    return found


def _unquoted(text: str) -> str | None:
    """The value of one line; None for a quote that is not closed or that something follows."""
    if text[:1] not in ("'", '"'):
        return re.split(r"\s+#", text, maxsplit=1)[0].strip()
    quote = text[0]
    closed = re.fullmatch(rf"{quote}((?:\\.|[^{quote}\\])*){quote}\s*(?:#.*)?", text)
    if quote == "'":
        closed = re.fullmatch(r"'([^']*)'\s*(?:#.*)?", text)
    if closed is None:
        return None
    if quote == "'":
        return closed[1]
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), closed[1])


def _write_create_options(document: Any) -> None:
    """createOptions given as an object becomes the JSON text, in pieces, that a device reads."""
    if isinstance(document, list):
        for each in document:
            _write_create_options(each)
    if not isinstance(document, dict):
        return
    for name in [each for each in document if is_create_options_name(each)]:
        value = document[name]
        if isinstance(value, dict) and name.lower() == "createoptions":
            del document[name]
            try:
                document |= split_create_options(canonical_json(value))
            except ContractError as error:
                raise TemplateError(error.message, where=name) from error
        elif value is None or value == "":
            document[name] = "{}"
    for value in document.values():
        _write_create_options(value)
