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
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library loads, so before the import below

import numpy as np
import onnxruntime as ort
import orjson

from .calibration import Calibration, calibrate
from .data_plane import ScoringRequest
from .errors import BadInputError, ContentTypeError, ModelError, ResultError
from .json_codec import decode, encode
from .providers import CPU, RECORD, check_used, nodes_by_provider, sessions_providers, used_providers
from .schema import Signature
from .tensors import DTYPES, UNNAMED, Tensor, check_shared_dimensions, from_octets, from_value

ort.disable_telemetry_events()

JSON = "application/json"
OCTETS = "application/octet-stream"
ANY_INPUT = "data"
_JSON_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "O": "string"}


# A run this long gains from all processors while it is alone; below it, waking the other threads costs as much.
_LONG_S = 1e-3
# Two sessions hold the weights twice; a larger model has one, with all processors, and runs one at a time.
_MOST_TWICE_BYTES = 64 * 1024 * 1024


class OnnxModel:
    """`run` may be called from several threads.

    A long run has all processors while it is alone, and one processor while others run beside it: threads inside a
    run and runs beside each other are worth about the same, and together they fight (benchmarks/serving, cnn). So a
    model with long runs has two sessions, and `parallel_runs` says how many runs at once are worth it.
    """

    def __init__(self, session: ort.InferenceSession, count_non_finite: Callable[[int], None]) -> None:
        self._session = session
        self.nodes_by_provider = nodes_by_provider(session)
        self.providers = used_providers(session, self.nodes_by_provider)
        self._lone: ort.InferenceSession | None = None
        self._running = 0
        self._lock = threading.Lock()
        self.parallel_runs = 1
        self.calibration = Calibration(None)
        self._count_non_finite = count_non_finite
        self.inputs = {node.name: _tensor(node) for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]
        self._only = next(iter(self.inputs.values())) if len(self.inputs) == 1 else None
        self._packer = RowPacker.of(self._only) if self._only is not None else None
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
        model = cls(_session(file, 1, sessions_providers(asked)), count_non_finite)
        check_used(model._session, model.providers, asked, required)
        model.calibration = calibrate(model)
        run_s = model.calibration.run_s
        if model.providers == (CPU,) and threads > 1 and (run_s is None or run_s > _LONG_S):
            model._use_processors(file, threads, shared=run_s is not None)
        return model

    def _use_processors(self, file: Path, threads: int, *, shared: bool) -> None:
        whole = _session(file, threads, sessions_providers(()))
        if shared and file.stat().st_size <= _MOST_TWICE_BYTES:
            self._lone = whole
            self.parallel_runs = threads
        else:
            self._session = whole

    def parse(self, request: ScoringRequest) -> dict[str, np.ndarray]:
        if request.content_type in (JSON, ""):
            packed = self._packer.read(request.body) if self._packer is not None else None
            if packed is not None:
                return self._packer.array(packed)
            return self._from_json(decode(request.body))
        if request.content_type == OCTETS and self._only is not None:
            return {self._only.name: from_octets(self._only, request.body)}
        expected = " or ".join(f"'{kind}'" for kind in self.signature.media_types)
        raise ContentTypeError(f"expected content type {expected}, found '{request.content_type}'")

    def run(self, arguments: dict[str, np.ndarray]) -> list[Any]:
        try:
            if self._lone is None:
                return list(self._session.run(self._outputs, arguments))
            return self._run_beside_others(self._lone, arguments)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise BadInputError(f"the model refuses the input: {_first_line(error)}") from error

    def _run_beside_others(self, lone: ort.InferenceSession, arguments: dict[str, np.ndarray]) -> list[Any]:
        with self._lock:
            self._running += 1
            session = lone if self._running == 1 else self._session
        try:
            return list(session.run(self._outputs, arguments))
        finally:
            with self._lock:
                self._running -= 1

    def render(self, result: list[Any]) -> bytes:
        counter = _NonFinite()
        body = encode(
            {name: _plain(value, counter) for name, value in zip(self._outputs, result, strict=True)}
        )
        if counter.values:
            self._count_non_finite(counter.values)
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
        generator = np.random.default_rng(0)
        return {name: _made_up(tensor, rows, generator) for name, tensor in self.inputs.items()}

    def same_rows(self, joined: Sequence[Any], singles: Sequence[Sequence[Any]]) -> bool:
        """Equal but for the last digits: a kernel for many rows may add up in another order."""
        return all(
            len(value) == len(singles) and _same(value, [single[number] for single in singles])
            for number, value in enumerate(joined)
        )

    def _from_json(self, document: Any) -> dict[str, np.ndarray]:
        if not isinstance(document, dict):
            raise BadInputError(f"expected a JSON object {self._expected()}, found {_kind(document)}")
        if self._only is not None and ANY_INPUT in document and len(document) == 1:
            return {self._only.name: from_value(self._only, document[ANY_INPUT])}
        for name in document:
            if name not in self.inputs:
                raise BadInputError(f"the model has no input '{name}'; expected {self._expected()}")
        missing = [name for name in self.inputs if name not in document]
        if missing:
            tensor = self.inputs[missing[0]]
            raise BadInputError(f"input '{tensor.name}' ({tensor}) is missing; expected {self._expected()}")
        arguments = {name: from_value(tensor, document[name]) for name, tensor in self.inputs.items()}
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
        if b"true" in body or b"false" in body:
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


def _made_up(tensor: Tensor, rows: int, generator: np.random.Generator) -> np.ndarray:
    shape = [rows if isinstance(size, str) else size for size in tensor.shape]
    if tensor.dtype.kind == "f":
        return generator.standard_normal(shape).astype(tensor.dtype)
    return generator.integers(0, 2, shape).astype(tensor.dtype)


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


def _session(file: Path, threads: int, providers: Sequence[str]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(file), _options(threads), providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime {ort.__version__} cannot load {file}: {_first_line(error)}") from error


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads take a shared edge device's processors between requests (facts/serving.md §2, cnn table).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*RECORD)
    # Fatal alone: what fails a run comes as an exception, and its own line would let callers fill the log.
    options.log_severity_level = 4
    return options


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


class _NonFinite:
    """How many numbers of one answer are NaN or infinite."""

    def __init__(self) -> None:
        self.values = 0

    def see(self, array: np.ndarray) -> np.ndarray:
        finite = np.isfinite(array)
        if not finite.all():
            self.values += int(array.size - np.count_nonzero(finite))
        return array


def _plain(value: Any, counter: _NonFinite) -> Any:
    """An output value as what the JSON codec writes: arrays stay arrays, maps get string keys."""
    if isinstance(value, np.ndarray):
        return _plain_array(value, counter)
    if isinstance(value, list):  # sequence: of maps (ZipMap) or of tensors
        return [_plain(member, counter) for member in value]
    if isinstance(value, dict):
        return {str(key): _plain(member, counter) for key, member in value.items()}
    if isinstance(value, float):
        if not math.isfinite(value):
            counter.values += 1
        return value
    if value is None or isinstance(value, int | str | bool):
        return value
    raise ResultError(f"an output of type {type(value).__name__} has no JSON form")


def _plain_array(array: np.ndarray, counter: _NonFinite) -> Any:
    kind = array.dtype.kind
    if kind == "f":
        counter.see(array)
        array = array.astype(np.float32) if array.dtype.itemsize == 2 else array
    if kind in "OUS" or array.ndim == 0:
        return array.tolist()
    return np.ascontiguousarray(array)


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
                name: _tensor_schema(tensor.dtype, tensor.shape, str(tensor))
                for name, tensor in given.items()
            },
        },
        output={"type": "object", "properties": {node.name: _output_schema(node) for node in outputs}},
        media_types=(JSON, OCTETS) if octets else (JSON,),
    )


def _output_schema(node: ort.NodeArg) -> dict[str, Any]:
    if node.type.startswith("seq(map("):
        return {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "number"}}}
    if node.type.startswith("map("):
        return {"type": "object", "additionalProperties": {"type": "number"}}
    dtype = DTYPES.get(node.type)
    if dtype is None:
        return {"description": node.type}
    return _tensor_schema(dtype, node.shape, f"{node.type} {list(node.shape)}")


def _tensor_schema(dtype: np.dtype, shape: Sequence[Any], description: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _JSON_TYPES[dtype.kind]}
    for size in reversed(shape):
        schema = {"type": "array", "items": schema}
        if isinstance(size, int):
            schema |= {"minItems": size, "maxItems": size}
    return {"description": description, **schema}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
