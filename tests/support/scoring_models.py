"""Small ONNX models, built in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
FLOAT, INT64, UINT64 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT64
STRING, BOOL = TensorProto.STRING, TensorProto.BOOL


def tensor(name: str, kind: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: Sequence[Any] = ()
) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def doubler(folder: Path, kind: int = FLOAT, shape: Sequence[int | str | None] = ("N", 3)) -> Path:
    """`y = x + x`."""
    return save(
        folder,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [tensor("x", kind, shape)],
        [tensor("y", kind, shape)],
    )


def copier(folder: Path, kind: int, shape: Sequence[int | str | None] = ("N",)) -> Path:
    """`y = x`, for any type."""
    return save(
        folder,
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", kind, shape)],
        [tensor("y", kind, shape)],
    )


def adder(folder: Path) -> Path:
    """`sum = left + right`: two inputs."""
    return save(
        folder,
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        [tensor("left", FLOAT, ["N", 2]), tensor("right", FLOAT, [2])],
        [tensor("sum", FLOAT, ["N", 2])],
    )


def logarithm(folder: Path) -> Path:
    """`y = log(x)`: NaN below zero, -infinity at zero."""
    return save(
        folder,
        [helper.make_node("Log", ["x"], ["y"])],
        [tensor("x", FLOAT, ["N"])],
        [tensor("y", FLOAT, ["N"])],
    )


def classifier(folder: Path) -> Path:
    """What skl2onnx makes of a classifier's end: labels, and probabilities through ZipMap."""
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, None))
    )
    return save(
        folder,
        [
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
            helper.make_node("Softmax", ["scores"], ["soft"], axis=1),
            helper.make_node(
                "ZipMap", ["soft"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[4, 5]
            ),
        ],
        [tensor("scores", FLOAT, ["N", 2])],
        [tensor("label", INT64, ["N"]), helper.make_value_info("probabilities", maps)],
    )


def looper(folder: Path) -> Path:
    """`y = x`, after as many turns of a loop as the largest number of `x` says: short, or as long as one likes."""
    value = [tensor("i", INT64, []), tensor("go", BOOL, []), tensor("v", FLOAT, ["N", 1])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Identity", ["v"], ["w"])],
        "turn",
        value,
        [tensor("again", BOOL, []), tensor("w", FLOAT, ["N", 1])],
    )
    return save(
        folder,
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["turns"], to=INT64),
            helper.make_node("Loop", ["turns", "", "x"], ["last"], body=body),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        [tensor("x", FLOAT, ["N", 1])],
        [tensor("y", FLOAT, ["N", 1]), tensor("last", FLOAT, ["N", 1])],
    )
