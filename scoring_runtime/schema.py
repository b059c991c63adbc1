"""What a model takes and gives, as JSON Schema, and the swagger documents made of it.

Versions as Azure ML's server names them: 2 (the default; 2.0), 3 (3.0) and 3.1. A `swagger.json` or
`swagger<version>.json` beside the script wins over the generated document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ScoringError
from .json_codec import decode

VERSIONS = {"2": "2.0", "2.0": "2.0", "3": "3.0", "3.0": "3.0", "3.1": "3.1"}
DEFAULT_VERSION = "2"
ALL_VERSIONS = ("2.0", "3.0", "3.1")
_OWN_FILES = {
    "2.0": ("swagger2.json", "swagger.json"),
    "3.0": ("swagger3.json",),
    "3.1": ("swagger3.1.json",),
}


class UnknownSwaggerVersionError(ScoringError):
    code = "unknown-swagger-version"


@dataclass(frozen=True, slots=True)
class Signature:
    """JSON Schemas of the request's and the reply's body; `nullable` in them is OpenAPI 3.0's.

    `media_types` are the content types a request may have; `versions` the swagger versions that can say this.
    """

    input: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    output: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    media_types: tuple[str, ...] = ("application/json",)
    versions: tuple[str, ...] = ALL_VERSIONS


@dataclass(frozen=True, slots=True)
class Service:
    """How the service calls itself in its documents (SERVICE_NAME, SERVICE_VERSION, SERVICE_PATH_PREFIX)."""

    name: str = "ML service"
    version: str = "1.0"
    path_prefix: str = ""

    def path(self, route: str) -> str:
        prefix = self.path_prefix.strip("/")
        return f"/{prefix}{route}" if prefix else route


class SwaggerDocuments:
    """The documents of one service, made on demand."""

    def __init__(self, signature: Signature, service: Service, own_folder: Path | None) -> None:
        self._signature = signature
        self._service = service
        self._own_folder = own_folder

    def get(self, asked: str | None) -> dict[str, Any]:
        """The document of a version as asked (`?version=`), 2 by default.

        Raises:
            UnknownSwaggerVersionError: no such version, or one that cannot describe this model.
        """
        version = VERSIONS.get(asked or DEFAULT_VERSION)
        offered = ", ".join(alias for alias, full in VERSIONS.items() if full in self._signature.versions)
        if version is None:
            raise UnknownSwaggerVersionError(
                f"swagger version '{asked}' does not exist; expected one of {offered}"
            )
        own = self._own(version)
        if own is not None:
            return own
        if version not in self._signature.versions:
            raise UnknownSwaggerVersionError(
                f"swagger {version} cannot describe this model; expected one of {offered}"
            )
        return _swagger_2(self._signature, self._service) if version == "2.0" else self._openapi(version)

    def _own(self, version: str) -> dict[str, Any] | None:
        if self._own_folder is None:
            return None
        files = (self._own_folder / name for name in _OWN_FILES[version])
        found = next((file for file in files if file.is_file()), None)
        return dict(decode(found.read_bytes())) if found else None

    def _openapi(self, version: str) -> dict[str, Any]:
        full = {"3.0": "3.0.3", "3.1": "3.1.0"}[version]
        return _openapi_3(self._signature, self._service, full)


def _swagger_2(signature: Signature, service: Service) -> dict[str, Any]:
    body = {"in": "body", "name": "serviceInputPayload", "required": True, "schema": _ref(2, "ServiceInput")}
    return {
        "swagger": "2.0",
        "info": _info(service),
        "schemes": ["http", "https"],
        "consumes": list(signature.media_types),
        "produces": ["application/json"],
        "paths": {
            service.path("/"): {"get": _health({"schema": {"type": "string"}}, produces=["text/plain"])},
            service.path("/score"): {
                "post": _score({"parameters": [body]}, {"schema": _ref(2, "ServiceOutput")}, _error_2())
            },
        },
        "definitions": _definitions(signature, "2.0"),
    }


def _openapi_3(signature: Signature, service: Service, version: str) -> dict[str, Any]:
    content = {kind: {"schema": _schema_of(kind)} for kind in signature.media_types}
    body = {"requestBody": {"required": True, "content": content}}
    reply = {"content": {"application/json": {"schema": _ref(3, "ServiceOutput")}}}
    error = {"content": {"application/json": {"schema": _ref(3, "ErrorResponse")}}}
    return {
        "openapi": version,
        "info": _info(service),
        "paths": {
            service.path("/"): {"get": _health({"content": {"text/plain": {"schema": {"type": "string"}}}})},
            service.path("/score"): {"post": _score(body, reply, error)},
        },
        "components": {"schemas": _definitions(signature, version[:3])},
    }


def _schema_of(media_type: str) -> dict[str, Any]:
    if media_type == "application/json":
        return _ref(3, "ServiceInput")
    return {"type": "string", "format": "binary"}


def _info(service: Service) -> dict[str, Any]:
    return {
        "title": service.name,
        "version": service.version,
        "description": f"API of the scoring service {service.name}",
    }


def _health(reply: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = "The service is healthy"
    return {"operationId": "ServiceHealthCheck", **more, "responses": {"200": {"description": text, **reply}}}


def _score(request: dict[str, Any], reply: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": "RunMLService",
        "description": "Score the model on the given input",
        **request,
        "responses": {
            "200": {"description": "The model's answer", **reply},
            "default": {"description": "The request was not scored", **error},
        },
    }


def _error_2() -> dict[str, Any]:
    return {"schema": _ref(2, "ErrorResponse")}


def _ref(major: int, name: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{name}" if major == 2 else f"#/components/schemas/{name}"}


def _definitions(signature: Signature, version: str) -> dict[str, Any]:
    error = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
    return {
        "ServiceInput": dict(signature.input),
        "ServiceOutput": _in_version(signature.output, version),
        "ErrorResponse": error,
    }


def _in_version(schema: Any, version: str) -> Any:
    """`nullable`, which is OpenAPI 3.0's, in the words of a version."""
    if isinstance(schema, list):
        return [_in_version(each, version) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _in_version(value, version) for key, value in schema.items()}
    if found.get("nullable") is True and version != "3.0":
        del found["nullable"]
        found |= {"x-nullable": True} if version == "2.0" else {"type": [found["type"], "null"]}
    return found
