"""The Open Inference Protocol, version 2, over HTTP for a bare ONNX model; Triton's and KServe's clients speak it.

1. `GET /v2`, `/v2/health/live`, `/v2/health/ready`, `/v2/models/M[/versions/V]`, `…/ready`; `POST …/infer`.
2. Tensors are JSON (`data`, nested or flat in row-major order), or bytes after the JSON by the binary tensor extension:
   `Inference-Header-Content-Length` says where they begin, each tensor's `binary_data_size` how many are its own.
   Little-endian; an element of BYTES is its length in four bytes and then itself.
3. Outputs are JSON unless asked for as binary (`binary_data`, or `binary_data_output` for all).
4. Nothing is converted silently: a tensor's name, datatype, shape and size must be the model's. The error names the
   tensor, what is expected and what was found, as `{"error": …}`.
5. An output that is no tensor (the maps of ZipMap) comes as BYTES, one JSON text for each row.

Example: `{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}` to `/v2/models/digits/infer`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .data_plane import DataPlane, Outcome, Rendered, ScoringReply, ScoringRequest
from .errors import BadInputError, ContentTypeError
from .json_codec import decode, encode
from .onnx_model import OnnxModel
from .readiness import Readiness
from .schema import Signature
from .tensors import DTYPES, Tensor, check_shared_dimensions, converted, may_hold_booleans, ragged

JSON, OCTETS = "application/json", "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "onnxruntime_onnx"

# The protocol's names of element types (§ Tensor Data Types) by numpy's.
DATATYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LARGEST_DIMENSION = 1 << 40


@dataclass(frozen=True, slots=True)
class WantedOutput:
    name: str
    is_binary: bool


@dataclass(frozen=True, slots=True)
class Inference:
    """One checked request."""

    identifier: str | None
    inputs: dict[str, np.ndarray]
    outputs: tuple[WantedOutput, ...]


@dataclass(frozen=True, slots=True)
class Inferred:
    inference: Inference
    values: list[Any]


class V2Scorer:
    """A scorer of the protocol's bodies; the model's own checks and runs are behind it."""

    def __init__(
        self, model: OnnxModel, name: str, version: str, count_non_finite: Callable[[int], None]
    ) -> None:
        self._model = model
        self.name = name
        self.version = version
        self._count_non_finite = count_non_finite
        self._inputs = model.inputs
        self._outputs = {node.name: node for node in model.output_nodes}
        self.signature = Signature()

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [
                {"name": t.name, "datatype": _NAMES[t.dtype], "shape": _free_as_minus_one(t.shape)}
                for t in self._inputs.values()
            ],
            "outputs": [_output_metadata(node) for node in self._outputs.values()],
            # The protocol has no place for it; other servers put what is their own under this name too.
            "parameters": {"providers": ",".join(self._model.providers)},
        }

    def parse(self, request: ScoringRequest) -> Inference:
        document, binary = _split(request)
        if not isinstance(document, dict):
            raise BadInputError('expected a JSON object {"inputs": […]}')
        identifier = document.get("id")
        if identifier is not None and not isinstance(identifier, str):
            raise BadInputError("'id' must be a string")
        inputs = self._read_inputs(document.get("inputs"), binary, may_hold_booleans(request.body))
        return Inference(identifier, inputs, self._wanted(document))

    def run(self, inference: Inference) -> Inferred:
        return Inferred(inference, self._model.run(inference.inputs))

    def render(self, result: Inferred) -> bytes | Rendered:
        values = dict(zip(self._outputs, result.values, strict=True))
        tensors, tail = [], []
        for wanted in result.inference.outputs:
            array = _as_array(values[wanted.name])
            tensor: dict[str, Any] = {
                "name": wanted.name,
                "datatype": _NAMES[array.dtype],
                "shape": list(array.shape),
            }
            if wanted.is_binary:
                tail.append(_to_bytes(array))
                tensor["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                tensor["data"] = self._to_json(array)
            tensors.append(tensor)
        head = encode(self._document(result.inference.identifier, tensors))
        if not tail:
            return head
        headers = (("content-type", OCTETS), (HEADER_LENGTH, str(len(head))))
        return Rendered(head + b"".join(tail), 200, headers)

    def _document(self, identifier: str | None, tensors: list[dict[str, Any]]) -> dict[str, Any]:
        named = {"model_name": self.name, "model_version": self.version, "outputs": tensors}
        return {**named, "id": identifier} if identifier is not None else named

    def _read_inputs(self, given: Any, binary: memoryview, booleans: bool) -> dict[str, np.ndarray]:
        if not isinstance(given, list) or not all(isinstance(tensor, dict) for tensor in given):
            raise BadInputError("'inputs' must be an array of tensors {name, shape, datatype, data}")
        arguments: dict[str, np.ndarray] = {}
        for number, entry in enumerate(given):
            tensor = self._input(entry, number)
            if tensor.name in arguments:
                raise BadInputError(f"input '{tensor.name}' is given twice")
            arguments[tensor.name], binary = _read_tensor(tensor, entry, binary, booleans)
        if binary:
            raise BadInputError(f"{len(binary)} bytes follow the last tensor; expected none")
        missing = [tensor for name, tensor in self._inputs.items() if name not in arguments]
        if missing:
            raise BadInputError(f"input '{missing[0].name}' ({_expected(missing[0])}) is missing")
        check_shared_dimensions(self._inputs, arguments)
        return arguments

    def _input(self, entry: Mapping[str, Any], number: int) -> Tensor:
        name = entry.get("name")
        if not isinstance(name, str) or name not in self._inputs:
            known = ", ".join(f"'{name}'" for name in self._inputs)
            found = f"'{name}'" if isinstance(name, str) else "no name"
            raise BadInputError(
                f"inputs[{number}]: the model has no such input; expected {known}, found {found}"
            )
        return self._inputs[name]

    def _wanted(self, document: Mapping[str, Any]) -> tuple[WantedOutput, ...]:
        binary = _flag(document, "binary_data_output", "the request")
        asked = document.get("outputs")
        if asked is None:
            return tuple(WantedOutput(name, binary) for name in self._outputs)
        if not isinstance(asked, list) or not all(isinstance(tensor, dict) for tensor in asked):
            raise BadInputError("'outputs' must be an array of {name}")
        wanted = []
        for number, entry in enumerate(asked):
            name = entry.get("name")
            if not isinstance(name, str) or name not in self._outputs:
                known = ", ".join(f"'{name}'" for name in self._outputs)
                raise BadInputError(f"outputs[{number}]: the model has no such output; expected {known}")
            if "classification" in _parameters(entry, f"output '{name}'"):
                raise BadInputError(f"output '{name}': the classification extension is not offered")
            wanted.append(WantedOutput(name, _flag(entry, "binary_data", f"output '{name}'", binary)))
        return tuple(wanted)

    def _to_json(self, array: np.ndarray) -> Any:
        if array.dtype.kind == "f":
            bad = array.size - int(np.count_nonzero(np.isfinite(array)))
            if bad:
                self._count_non_finite(bad)
            array = array.astype(np.float32) if array.dtype.itemsize == 2 else array
        if array.dtype == object:
            return [
                text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
                for text in array.flat
            ]
        return np.ascontiguousarray(array).reshape(-1)


Answer = Callable[..., Awaitable[Response]]


class InferenceV2:
    """The protocol's routes of one model."""

    def __init__(self, scorer: V2Scorer, plane: DataPlane, readiness: Readiness) -> None:
        self._scorer = scorer
        self._plane = plane
        self._readiness = readiness

    def routes(self, answer: Answer) -> list[BaseRoute]:
        """`answer(request, plane, done, refuse)` reads a body and scores it as `/score` does."""

        async def infer(request: Request) -> Response:
            refused = self._unknown(request)
            if refused is not None:
                return refused
            return await answer(request, self._plane, _inferred, _error)

        paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [
            Route("/v2", self._server, methods=["GET"]),
            Route("/v2/health/live", self._live, methods=["GET"]),
            Route("/v2/health/ready", self._ready, methods=["GET"]),
            *(Route(path, self._metadata, methods=["GET"]) for path in paths),
            *(Route(f"{path}/ready", self._model_ready, methods=["GET"]) for path in paths),
            *(Route(f"{path}/infer", infer, methods=["POST"]) for path in paths),
        ]

    async def _server(self, request: Request) -> Response:
        return _json(200, {"name": "edgewright", "version": "2", "extensions": list(EXTENSIONS)})

    async def _live(self, request: Request) -> Response:
        return _json(200, {"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._readiness.is_ready
        return _json(200 if ready else 503, {"ready": ready})

    async def _metadata(self, request: Request) -> Response:
        return self._unknown(request) or _json(200, self._scorer.metadata())

    async def _model_ready(self, request: Request) -> Response:
        ready = self._readiness.is_ready
        return self._unknown(request) or _json(
            200 if ready else 503, {"name": self._scorer.name, "ready": ready}
        )

    def _unknown(self, request: Request) -> Response | None:
        name, version = request.path_params["model"], request.path_params.get("version")
        if name != self._scorer.name:
            return _error(404, f"there is no model '{name}'; this server has '{self._scorer.name}'")
        if version is not None and version != self._scorer.version:
            expected = self._scorer.version
            return _error(404, f"model '{name}' has no version '{version}'; this server has '{expected}'")
        return None


def _inferred(reply: ScoringReply, status: int) -> Response:
    if reply.outcome is not Outcome.OK:
        return _error(status, decode(reply.body)["message"])
    if reply.rendered is None:
        return Response(reply.body, media_type=JSON)
    return Response(reply.body, headers=dict(reply.rendered.headers))


def _json(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(document), status, dict(headers or {}), JSON)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, {"error": message}, headers)


# ---- in ----


def _split(request: ScoringRequest) -> tuple[Any, memoryview]:
    """The JSON and what follows it."""
    declared = request.headers.get(HEADER_LENGTH)
    body = request.body
    if declared is None:
        if request.content_type not in (JSON, ""):
            raise ContentTypeError(
                f"expected content type '{JSON}', or '{OCTETS}' with {HEADER_LENGTH}, found '{request.content_type}'"
            )
        return decode(body), memoryview(b"")
    if not declared.isascii() or not declared.isdigit() or len(declared) > 12 or int(declared) > len(body):
        raise BadInputError(
            f"{HEADER_LENGTH} must be a number from 0 to the body's {len(body)} bytes, not '{declared}'"
        )
    return decode(body[: int(declared)]), memoryview(body)[int(declared) :]


def _read_tensor(
    tensor: Tensor, entry: Mapping[str, Any], binary: memoryview, booleans: bool
) -> tuple[np.ndarray, memoryview]:
    """The tensor's value, and the bytes that are left for the next ones."""
    datatype = entry.get("datatype")
    if datatype != _NAMES[tensor.dtype]:
        raise _wrong(tensor, f"datatype '{datatype}'" if isinstance(datatype, str) else "no datatype")
    shape = _shape(tensor, entry.get("shape"))
    size = _parameters(entry, f"input '{tensor.name}'").get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise _wrong(tensor, "neither 'data' nor 'binary_data_size'")
        return _from_json(tensor, shape, entry["data"], booleans), binary
    if "data" in entry:
        raise _wrong(tensor, "both 'data' and 'binary_data_size'")
    if type(size) is not int or not 0 <= size <= len(binary):
        raise _wrong(tensor, f"binary_data_size {size!r} where {len(binary)} bytes are left")
    return _from_bytes(tensor, shape, binary[:size]), binary[size:]


def _shape(tensor: Tensor, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(
        type(size) is int and 0 <= size <= _LARGEST_DIMENSION for size in given
    ):
        raise _wrong(tensor, "a shape that is no array of sizes")
    if not tensor.fits(given):
        raise _wrong(tensor, f"shape {given}")
    return tuple(given)


def _from_json(tensor: Tensor, shape: tuple[int, ...], data: Any, booleans: bool) -> np.ndarray:
    try:
        given = np.array(data)
    except (ValueError, OverflowError):
        raise _wrong(tensor, ragged(data)) from None
    found = converted(tensor, given, data, booleans=booleans)
    if found.shape != shape and found.ndim != 1:
        raise _wrong(tensor, f"'data' of shape {list(found.shape)} under shape {list(shape)}")
    if found.size != math.prod(shape):
        raise _wrong(tensor, f"{found.size} elements under shape {list(shape)}, which has {math.prod(shape)}")
    return found.reshape(shape)


def _from_bytes(tensor: Tensor, shape: tuple[int, ...], binary: memoryview) -> np.ndarray:
    count = math.prod(shape)
    if tensor.dtype == object:
        return _texts(tensor, count, binary).reshape(shape)
    size = count * tensor.dtype.itemsize
    if len(binary) != size:
        raise _wrong(tensor, f"{len(binary)} bytes under shape {list(shape)}, which has {size}")
    found = np.frombuffer(binary, tensor.dtype.newbyteorder("<")).reshape(shape)
    if tensor.dtype.kind == "b" and found.size and found.view(np.uint8).max() > 1:
        raise _wrong(tensor, "a byte that is neither 0 nor 1")
    return found


def _texts(tensor: Tensor, count: int, binary: memoryview) -> np.ndarray:
    texts: list[str] = []
    at = 0
    while at < len(binary) and len(texts) <= count:
        if at + 4 > len(binary):
            raise _wrong(tensor, f"{len(binary) - at} bytes where an element's length is expected")
        (size,) = struct.unpack_from("<I", binary, at)
        element = bytes(binary[at + 4 : at + 4 + size])
        if len(element) != size:
            raise _wrong(tensor, f"an element of {size} bytes where {len(element)} are left")
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            raise _wrong(tensor, "an element that is not UTF-8 text") from None
        at += 4 + size
    if len(texts) != count:
        raise _wrong(tensor, f"{len(texts)} elements where {count} are expected")
    return np.array(texts, dtype=object)


def _flag(holder: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = _parameters(holder, where).get(name, default)
    if not isinstance(value, bool):
        raise BadInputError(f"{where}: '{name}' must be true or false")
    return value


def _parameters(holder: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = holder.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise BadInputError(f"{where}: 'parameters' must be an object")
    return found or {}


def _expected(tensor: Tensor) -> str:
    return f"{_NAMES[tensor.dtype]} [{', '.join(map(str, tensor.shape))}]"


def _wrong(tensor: Tensor, found: str) -> BadInputError:
    return BadInputError(f"input '{tensor.name}' expects {_expected(tensor)}, found {found}")


# ---- out ----


def _as_array(value: Any) -> np.ndarray:
    """An output as one of the protocol's tensors."""
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind not in "US" else value.astype(object)
    rows = value if isinstance(value, list) else [value]
    texts = [
        encode({str(k): v for k, v in row.items()} if isinstance(row, dict) else row).decode() for row in rows
    ]
    return np.array(texts, dtype=object)


def _to_bytes(array: np.ndarray) -> bytes:
    if array.dtype != object:
        return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.flat]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _output_metadata(node: ort.NodeArg) -> dict[str, Any]:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        return {"name": node.name, "datatype": "BYTES", "shape": [-1]}
    return {"name": node.name, "datatype": _NAMES[dtype], "shape": _free_as_minus_one(node.shape)}


def _free_as_minus_one(shape: Sequence[Any]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]
