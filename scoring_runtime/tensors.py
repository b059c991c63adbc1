"""A model's inputs as numpy arrays: what a request gives, checked against what the graph declares.

Nothing is converted silently: 1.5 into an integer, text or true into a number, null, or a number that the type cannot hold is
refused with the input's name, what it expects and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BadInputError, ContentTypeError

UNNAMED = "?"  # a free dimension to which the graph gives no name

# onnxruntime's names of tensor element types → numpy. bfloat16, float8 and 4-bit types have no JSON form.
DTYPES: Mapping[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(object),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as the graph declares it; a free dimension of `shape` is its name, or "?"."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        kind = "string" if self.dtype == object else self.dtype.name
        return f"{kind} [{', '.join(map(str, self.shape))}]"

    @property
    def free_dimensions(self) -> int:
        return sum(isinstance(size, str) for size in self.shape)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(
            isinstance(expected, str) or expected == found
            for expected, found in zip(self.shape, shape, strict=True)
        )

    def wrong(self, found: str) -> BadInputError:
        return BadInputError(f"input '{self.name}' expects {self}, found {found}")


class OctetReader:
    """Bodies of octets as an input's own memory, without a copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._step = tensor.dtype.itemsize * math.prod(size for size in tensor.shape if isinstance(size, int))
        self._is_fixed = tensor.free_dimensions == 0
        self._shape = [-1 if isinstance(size, str) else size for size in tensor.shape]
        self._dtype = tensor.dtype.newbyteorder("<")

    def read(self, body: bytes) -> np.ndarray:
        """Raises RequestError when the input takes no octets, or not so many."""
        tensor, step = self._tensor, self._step
        if tensor.dtype == object:
            raise ContentTypeError(
                f"input '{tensor.name}' is {tensor}: strings have no fixed size, send 'application/json'"
            )
        if tensor.free_dimensions > 1:
            raise ContentTypeError(
                f"input '{tensor.name}' is {tensor}: octets cannot say {tensor.free_dimensions} free dimensions, send 'application/json'"
            )
        if self._is_fixed and len(body) != step:
            raise tensor.wrong(f"{len(body)} bytes instead of {step}")
        if not body or not step or len(body) % step:
            raise tensor.wrong(f"{len(body)} bytes, which is no multiple of {step}")
        return np.frombuffer(body, self._dtype).reshape(self._shape)


def may_hold_booleans(body: bytes) -> bool:
    """Whether a JSON text could have true or false among its values."""
    return b"true" in body or b"false" in body


def from_value(tensor: Tensor, value: Any, *, booleans: bool) -> np.ndarray:
    """The value of an input; `booleans` as `may_hold_booleans` says of the text that it comes from."""
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        raise tensor.wrong(ragged(value)) from None
    if not tensor.fits(found.shape):
        raise tensor.wrong(f"shape {list(found.shape)}")
    return converted(tensor, found, value, booleans=booleans)


def check_shared_dimensions(inputs: Mapping[str, Tensor], arguments: Mapping[str, np.ndarray]) -> None:
    """A free dimension with a name has one size in all inputs; onnxruntime fails somewhere inside without that."""
    seen: dict[str, tuple[str, int]] = {}
    for name, tensor in inputs.items():
        for dimension, size in zip(tensor.shape, arguments[name].shape, strict=True):
            if isinstance(dimension, str) and dimension != UNNAMED:
                first, expected = seen.setdefault(dimension, (name, size))
                if size != expected:
                    raise tensor.wrong(
                        f"{dimension} = {size}, but {dimension} = {expected} in input '{first}'"
                    )


def converted(tensor: Tensor, found: np.ndarray, value: Any, *, booleans: bool) -> np.ndarray:
    kind = tensor.dtype.kind
    # numpy takes [true, 2] for numbers; only a list that can hold both is looked through.
    if booleans and kind in "iuf" and found.dtype.kind in "iuf" and _any_boolean(value):
        raise tensor.wrong(_KINDS["b"])
    if kind == "O":
        if found.size and not _all_strings(value):
            raise tensor.wrong("values that are not strings")
        return found.astype(object)
    if found.size == 0:
        return found.astype(tensor.dtype)
    if kind == "b" and found.dtype.kind != "b":
        raise tensor.wrong(f"{_KINDS[found.dtype.kind]} where true or false is expected")
    if kind != "b" and found.dtype.kind not in "iuf":
        raise tensor.wrong(_KINDS[found.dtype.kind])
    if kind in "iu":
        found = _integers(tensor, found, value)
    try:
        with np.errstate(over="raise"):
            return found.astype(tensor.dtype, copy=False)
    except FloatingPointError:
        raise tensor.wrong(f"a number too large for {tensor.dtype.name}") from None


# From here on float64 skips integers. numpy takes it for [0, 2**63], which is neither int64 nor uint64 as a whole.
_EXACT = 2**53


def _integers(tensor: Tensor, found: np.ndarray, value: Any) -> np.ndarray:
    """`found`, or the same as Python's numbers where a float would not say them all; within the type's range."""
    if found.dtype.kind == "f":
        if not (found == np.trunc(found)).all():
            raise tensor.wrong(f"the number {found[found != np.trunc(found)].flat[0]:g}, which is no integer")
        if np.abs(found).max() >= _EXACT:
            found = np.array(value, dtype=object)
    limits = np.iinfo(tensor.dtype)
    if found.min() < limits.min or found.max() > limits.max or _hides_an_integer(found):
        raise tensor.wrong(f"a number outside {limits.min} to {limits.max}")
    return found


def _hides_an_integer(found: np.ndarray) -> bool:
    """Whether a number is -2**63 because the JSON parser makes floats of integers below it."""
    return found.dtype == object and any(
        type(number) is float and number <= -(2**63) for number in found.flat
    )


_KINDS = {
    "U": "text",
    "b": "true or false",
    "O": "null, an object, or mixed values",
    "i": "integers",
    "u": "integers",
    "f": "numbers",
}


def _any_boolean(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_any_boolean, value))
    return isinstance(value, bool)


def _all_strings(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_strings, value))
    return isinstance(value, str)


def ragged(value: Any) -> str:
    """Why a nested list is no array: the first member that differs from its first sibling, with its path."""
    path = _first_difference(value, "")
    return (
        f"rows of different lengths (first at {path})"
        if path
        else "lists nested too deeply or numbers too large"
    )


def _first_difference(value: Any, path: str) -> str:
    if not isinstance(value, list) or not value or len(path) > 200:
        return ""
    expected = len(value[0]) if isinstance(value[0], list) else None
    for index, member in enumerate(value):
        if (len(member) if isinstance(member, list) else None) != expected:
            return f"{path}[{index}]"
    return next(
        (found for index, m in enumerate(value) if (found := _first_difference(m, f"{path}[{index}]"))), ""
    )
