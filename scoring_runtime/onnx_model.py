"""A bare ONNX model as a scorer: no script, the graph says what goes in and out.

1. In: `{"<input>": …}` with every input, or `{"data": …}` when there is one. Nothing else may be in the object.
2. In, for a model with one input of fixed-size numbers and at most one free dimension: its bytes, little-endian,
   as `application/octet-stream`.
3. Out: `{"<output>": …}`, always all outputs. ZipMap gives a list of maps. NaN and infinities are null, counted.
4. Nothing is converted silently: 1.5 into an integer, text or true into a number, null, or a number that the
   type cannot hold is refused with the input's name, what it expects and what was found.

Example: an input `pixels` of float32 [N, 64] takes `{"data": [[0, 16, …]]}`, `{"pixels": [[0, 16, …]]}` or n * 256
bytes, and answers `{"label": [7], "probabilities": [{"0": 0.0, …}]}`.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .calibration import Calibration, calibrate
from .data_plane import ScoringRequest
from .errors import BadInputError, ContentTypeError, ModelError, ResultError
from .json_codec import decode, encode
from .onnx_sessions import OnnxSessions, RunStops
from .providers import CPU, check_used, nodes_by_provider, sessions_providers, used_providers
from .schema import Signature
from .tensors import (
    DTYPES,
    UNNAMED,
    OctetReader,
    Tensor,
    check_shared_dimensions,
    from_value,
    may_hold_booleans,
)

if TYPE_CHECKING:
    import onnxruntime as ort

JSON = "application/json"
OCTETS = "application/octet-stream"
ANY_INPUT = "data"
_JSON_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "O": "string"}


class OnnxModel:
    """A model file and its sessions; `run` may be called from several threads."""

    def __init__(self, sessions: OnnxSessions, count_non_finite: Callable[[int], None]) -> None:
        self._sessions = sessions
        session = sessions.first
        self.nodes_by_provider = nodes_by_provider(session)
        self.providers = used_providers(session, self.nodes_by_provider)
        self.calibration = Calibration(None)
        self._count_non_finite = count_non_finite
        self.inputs = {node.name: _tensor(node) for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]
        self._only = next(iter(self.inputs.values())) if len(self.inputs) == 1 else None
        self._packer = RowPacker.of(self._only) if self._only is not None else None
        self._octets = OctetReader(self._only) if self._only is not None else None
        self.output_nodes = session.get_outputs()
        self.signature = _signature(self.inputs, session.get_outputs(), self._only)

    @classmethod
    def load(
        cls,
        file: Path,
        *,
        threads: int,
        count_non_finite: Callable[[int], None],
        providers: Sequence[str] = (CPU,),
        required: Sequence[str] = (),
    ) -> OnnxModel:
        """Open a model file.

        Args:
            file: the model; external data is looked for beside it.
            threads: for one run; the caller knows the processor budget, onnxruntime sees only the machine.
            count_non_finite: told how many numbers of an answer became null.
            providers: execution providers, the preferred one first.
            required: those of them without which there is no start.

        Raises:
            ModelError: no such file, not a model that this onnxruntime can run, or inputs JSON cannot say.
            SettingsError: there is no such provider.
            ProviderError: a required one runs no part of the model.
        """
        if not file.is_file():
            raise ModelError(f"the model file does not exist: {file}")
        asked = [*(name for name in required if name not in providers), *providers]
        model = cls(OnnxSessions(file, sessions_providers(asked)), count_non_finite)
        check_used(model._sessions.first, model.providers, asked, required)
        model.calibration = calibrate(model)
        if model.providers == (CPU,):
            model._sessions.use_processors(threads, model.calibration.run_s)
        return model

    @property
    def parallel_runs(self) -> int:
        """How many runs at once are worth it."""
        return self._sessions.parallel_runs

    def parse(self, request: ScoringRequest) -> dict[str, np.ndarray]:
        if request.content_type in (JSON, ""):
            packed = self._packer.read(request.body) if self._packer is not None else None
            if packed is not None:
                return self._packer.array(packed)
            return self._from_json(decode(request.body), may_hold_booleans(request.body))
        if request.content_type == OCTETS and self._only is not None and self._octets is not None:
            return {self._only.name: self._octets.read(request.body)}
        expected = " or ".join(f"'{kind}'" for kind in self.signature.media_types)
        raise ContentTypeError(f"expected content type {expected}, found '{request.content_type}'")

    @property
    def stops(self) -> RunStops:
        """How a run in another thread is ended."""
        return self._sessions.stops

    def run(self, arguments: dict[str, np.ndarray]) -> list[Any]:
        return self._sessions.run(self._outputs, arguments)

    def render(self, result: list[Any]) -> bytes:
        body = encode({name: _plain(value) for name, value in zip(self._outputs, result, strict=True)})
        # Numbers that JSON cannot say are written as null; to look for that is cheaper than to look at the numbers.
        if b"null" in body:
            self._count_non_finite(_non_finite(result))
        return body

    # ---- several requests in one run (turn_batch, calibration) ----

    def read_rows(self, request: Any) -> tuple[Any, int]:
        """One request's rows, for `join`, and how many they are.

        Raises:
            RequestError: as `parse` does.
        """
        packer = self._packer
        if packer is None:
            arguments = self.parse(request)
            return arguments, len(next(iter(arguments.values())))
        packed = packer.read(request.body) if request.content_type == JSON else None
        if packed is None:
            packed = self.parse(request)[packer.name].tobytes()
        return packed, len(packed) // packer.row_bytes

    def join(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        if self._packer is not None:
            return self._packer.array(b"".join(rows))
        return {name: np.concatenate([given[name] for given in rows]) for name in self.inputs}

    def row(self, arguments: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        return {name: value[index : index + 1] for name, value in arguments.items()}

    def render_rows(self, result: Sequence[Any], rows: Sequence[int]) -> list[bytes]:
        """The result's rows as one answer for each of `rows`, in order.

        Raises:
            ResultError: an output has other rows than went in.
        """
        total = sum(rows)
        if any(len(value) != total for value in result):
            raise ResultError(f"an output has no {total} rows")
        ends = list(itertools.accumulate(rows))
        if not all(map(_is_plain, result)):
            return [
                self.render([v[end - n : end] for v in result]) for n, end in zip(rows, ends, strict=True)
            ]
        names = self._outputs
        return [
            encode({name: value[end - n : end] for name, value in zip(names, result, strict=True)})
            for n, end in zip(rows, ends, strict=True)
        ]

    def joins_rows(self) -> bool:
        """Whether the first dimension, and no other, is free in every input, and rows come out again."""
        return all(
            tensor.free_dimensions == 1 and isinstance(tensor.shape[0], str) and tensor.dtype != object
            for tensor in self.inputs.values()
        ) and all(_has_rows(node) for node in self.output_nodes)

    def example(self, rows: int) -> dict[str, np.ndarray] | None:
        """Made-up arguments, the same at every call; None when something beside the rows is free, or for text."""
        if any(
            tensor.dtype == object or any(isinstance(size, str) for size in tensor.shape[1:])
            for tensor in self.inputs.values()
        ):
            return None
        return {name: _made_up(tensor, rows) for name, tensor in self.inputs.items()}

    def same_rows(self, joined: Sequence[Any], singles: Sequence[Sequence[Any]]) -> bool:
        """Equal but for the last digits: a kernel for many rows may add up in another order."""
        return all(
            len(value) == len(singles) and _same(value, [single[number] for single in singles])
            for number, value in enumerate(joined)
        )

    def _from_json(self, document: Any, booleans: bool) -> dict[str, np.ndarray]:
        if not isinstance(document, dict):
            raise BadInputError(f"expected a JSON object {self._expected()}, found {_kind(document)}")
        if self._only is not None and ANY_INPUT in document and len(document) == 1:
            return {self._only.name: from_value(self._only, document[ANY_INPUT], booleans=booleans)}
        for name in document:
            if name not in self.inputs:
                raise BadInputError(f"the model has no input '{name}'; expected {self._expected()}")
        missing = [name for name in self.inputs if name not in document]
        if missing:
            tensor = self.inputs[missing[0]]
            raise BadInputError(f"input '{tensor.name}' ({tensor}) is missing; expected {self._expected()}")
        arguments = {
            name: from_value(tensor, document[name], booleans=booleans)
            for name, tensor in self.inputs.items()
        }
        check_shared_dimensions(self.inputs, arguments)
        return arguments

    def _expected(self) -> str:
        if self._only is not None:
            return f'{{"{ANY_INPUT}": …}} or {{"{self._only.name}": …}}'
        return "{" + ", ".join(f'"{name}": …' for name in self.inputs) + "}"


class RowPacker:
    """Plain rows of numbers → the input's own memory, for an input of numbers [rows, fixed].

    What it does not take (another shape, true, text, null, a number too large) is no error: the general conversion
    then says what is wrong, or does what is rare.
    """

    # Each number of a row is an argument of one call; longer rows are quicker by way of numpy.
    MOST_COLUMNS = 256

    def __init__(self, tensor: Tensor, columns: int) -> None:
        self.name = tensor.name
        self._names = (ANY_INPUT, tensor.name)
        self._columns = columns
        self._dtype = tensor.dtype
        row = struct.Struct(f"={columns}{_STRUCT[tensor.dtype.name]}")
        self._pack = row.pack
        self.row_bytes = row.size

    @classmethod
    def of(cls, tensor: Tensor) -> RowPacker | None:
        if len(tensor.shape) != 2 or tensor.dtype.name not in _STRUCT:
            return None
        columns = tensor.shape[1]
        if (
            isinstance(tensor.shape[0], int)
            or isinstance(columns, str)
            or not 0 < columns <= cls.MOST_COLUMNS
        ):
            return None
        return cls(tensor, columns)

    def read(self, body: bytes) -> bytes | None:
        """The rows of a JSON body as the tensor's bytes."""
        # `pack` would take true for 1. Numbers have no such letters, and names that have them are rare.
        if may_hold_booleans(body):
            return None
        try:
            document = orjson.loads(body)
            [(name, rows)] = document.items()
            if name not in self._names or type(rows) is not list:
                return None
            if len(rows) == 1:
                return self._pack(*rows[0])
            return b"".join([self._pack(*row) for row in rows]) or None
        except (struct.error, ValueError, TypeError, AttributeError, OverflowError):
            return None

    def array(self, packed: bytes) -> dict[str, np.ndarray]:
        return {self.name: np.frombuffer(packed, self._dtype).reshape(-1, self._columns)}


_STRUCT = {"float32": "f", "float64": "d", "int32": "i", "int64": "q"}


def _has_rows(node: ort.NodeArg) -> bool:
    if node.type.startswith("seq(map("):
        return True
    return bool(node.shape) and not isinstance(node.shape[0], int)


def _made_up(tensor: Tensor, rows: int) -> np.ndarray:
    shape = [rows if isinstance(size, str) else size for size in tensor.shape]
    # Uneven, of both signs, within 1; numpy.random would be a twentieth of a cold start.
    values = np.sin(np.arange(1, math.prod(shape) + 1, dtype=np.float64) ** 2).reshape(shape)
    return (values if tensor.dtype.kind == "f" else values > 0).astype(tensor.dtype)


def _same(joined: Any, singles: Sequence[Any]) -> bool:
    if isinstance(joined, np.ndarray):
        return all(
            np.allclose(row, single[0], rtol=1e-4, atol=1e-6)
            for row, single in zip(joined, singles, strict=True)
        )
    return all(
        row.keys() == single[0].keys()
        and all(math.isclose(row[key], single[0][key], rel_tol=1e-4, abs_tol=1e-6) for key in row)
        for row, single in zip(joined, singles, strict=True)
    )


def _is_plain(value: Any) -> bool:
    """Whether every part of it is written as it is: no maps, no text, no half floats, nothing that is null."""
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
        return False
    kind = value.dtype.kind
    return kind in "iub" or (kind == "f" and value.dtype.itemsize > 2 and bool(np.isfinite(value).all()))


def _tensor(node: ort.NodeArg) -> Tensor:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise ModelError(
            f"input '{node.name}' is a {node.type}, which cannot be sent as JSON;"
            f" expected one of {', '.join(DTYPES)}. Serve this model with an entry script"
        )
    shape = tuple(size if isinstance(size, int) else (size or UNNAMED) for size in node.shape)
    return Tensor(node.name, dtype, shape)


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# ---- out ----


def _plain(value: Any) -> Any:
    """An output value as what the JSON codec writes: arrays stay arrays, maps get string keys."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUS":
            return value.tolist()
        return value.astype(np.float32) if value.dtype == np.float16 else value
    if isinstance(value, list):  # sequence: of maps (ZipMap) or of tensors
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {str(key): _plain(member) for key, member in value.items()}
    if value is None or isinstance(value, int | float | str | bool):
        return value
    raise ResultError(f"an output of type {type(value).__name__} has no JSON form")


def _non_finite(value: Any) -> int:
    """How many numbers of an output are NaN or infinite."""
    if isinstance(value, np.ndarray):
        is_number = value.dtype.kind == "f"
        return int(value.size - np.count_nonzero(np.isfinite(value))) if is_number else 0
    if isinstance(value, list):
        return sum(map(_non_finite, value))
    if isinstance(value, dict):
        return sum(map(_non_finite, value.values()))
    return int(isinstance(value, float) and not math.isfinite(value))


# ---- what swagger says ----


def _signature(
    inputs: Mapping[str, Tensor], outputs: Sequence[ort.NodeArg], only: Tensor | None
) -> Signature:
    octets = only is not None and only.dtype != object and only.free_dimensions <= 1
    given = {ANY_INPUT: only} if only is not None else inputs
    return Signature(
        input={
            "type": "object",
            "required": list(given),
            "properties": {
                name: {"description": str(tensor), **_input_schema(tensor)} for name, tensor in given.items()
            },
            "additionalProperties": False,
        },
        output={"type": "object", "properties": {node.name: _output_schema(node) for node in outputs}},
        media_types=(JSON, OCTETS) if octets else (JSON,),
    )


def _output_schema(node: ort.NodeArg) -> dict[str, Any]:
    if node.type.startswith("seq(map("):
        return {"type": "array", "items": {"type": "object", "additionalProperties": _NUMBER_OR_NULL}}
    if node.type.startswith("map("):
        return {"type": "object", "additionalProperties": _NUMBER_OR_NULL}
    dtype = DTYPES.get(node.type)
    if dtype is None:
        return {"description": node.type}
    element = _NUMBER_OR_NULL if dtype.kind == "f" else {"type": _JSON_TYPES[dtype.kind]}
    return {"description": f"{node.type} {list(node.shape)}", **_tensor_schema(element, node.shape)}


# NaN and infinities are written as null; OpenAPI 3.0's word, which `schema` says in the other versions' own.
_NUMBER_OR_NULL = {"type": "number", "nullable": True}


def _input_schema(tensor: Tensor) -> dict[str, Any]:
    """As the outputs', and with what a request must keep to: the type's range, and no empty list that hides a rank."""
    schema = _tensor_schema({"type": _JSON_TYPES[tensor.dtype.kind]}, tensor.shape)
    inner = schema
    while inner["type"] == "array":
        if inner["items"]["type"] == "array":
            inner.setdefault("minItems", 1)
        inner = inner["items"]
    if tensor.dtype.kind in "iu":
        limits = np.iinfo(tensor.dtype)
        inner |= {"minimum": int(limits.min), "maximum": int(limits.max)}
    elif tensor.dtype.kind == "f" and tensor.dtype.itemsize < 8:  # of what JSON can say, a double holds all
        largest = _largest(tensor.dtype)
        inner |= {"minimum": -largest, "maximum": largest}
    return schema


def _largest(dtype: np.dtype) -> float:
    """The largest double that is rounded to a number of the type: the next one is rounded to infinity."""
    top = np.finfo(dtype).max
    half_a_step = (float(top) - float(np.nextafter(top, dtype.type(0)))) / 2
    return float(np.nextafter(float(top) + half_a_step, 0.0))


def _tensor_schema(element: Mapping[str, Any], shape: Sequence[Any]) -> dict[str, Any]:
    schema = dict(element)
    for size in reversed(shape):
        schema = {"type": "array", "items": schema}
        if isinstance(size, int):
            schema |= {"minItems": size, "maxItems": size}
    return schema
