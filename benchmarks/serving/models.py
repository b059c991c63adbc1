"""The three models that every server gets: tiny tabular, MobileNetV2-shaped, and a cheap one with an image body.

Weights are random with a fixed seed: timings do not depend on what a network has learnt, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE_SHAPE = (1, 224, 224, 3)
OPSETS = [helper.make_opsetid("", 17)]


def write_models(folder: Path) -> None:
    """`tab.onnx`, `cnn.onnx` and `img.onnx` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in (("tab", _tab), ("cnn", _cnn), ("img", _img)):
        (folder / f"{name}.onnx").write_bytes(build().SerializeToString())


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        value = (self.random.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(
        self, source: str, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1
    ) -> str:
        scale = (2 / (size * size * inputs / groups)) ** 0.5
        weight = self.weight(outputs, inputs // groups, size, size, scale=scale)
        pads = [size // 2] * 4
        bias = self.weight(outputs, scale=0.01)
        return self.add("Conv", source, weight, bias, strides=[stride, stride], pads=pads, group=groups)

    def relu6(self, source: str) -> str:
        return self.add("Clip", source, self.constant(0, np.float32), self.constant(6, np.float32))

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "benchmark", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


def _tab() -> onnx.ModelProto:
    """10 numbers → a label and 3 probabilities."""
    graph = _Graph()
    scores = graph.add("Gemm", "input", graph.weight(10, 3), graph.weight(3))
    graph.add("Softmax", scores, axis=1, name="probabilities")
    graph.add("ArgMax", scores, axis=1, keepdims=0, name="label")
    return graph.model(
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 10])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
        ],
    )


# Expansion, channels, repeats, first stride (MobileNetV2, arXiv 1801.04381, table 2).
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _cnn() -> onnx.ModelProto:
    """A raw image → 1000 scores, by MobileNetV2's layers."""
    graph = _Graph()
    value = graph.add("Cast", "image", to=TensorProto.FLOAT)
    value = graph.add("Mul", value, graph.constant(1 / 255, np.float32))
    value = graph.add("Transpose", value, perm=[0, 3, 1, 2])
    value = graph.relu6(graph.conv(value, 3, 32, 3, stride=2))
    channels = 32
    for expansion, outputs, repeats, first_stride in _BLOCKS:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            source, hidden = value, channels * expansion
            if expansion > 1:
                value = graph.relu6(graph.conv(value, channels, hidden, 1))
            value = graph.relu6(graph.conv(value, hidden, hidden, 3, stride=stride, groups=hidden))
            value = graph.conv(value, hidden, outputs, 1)
            if stride == 1 and channels == outputs:
                value = graph.add("Add", value, source)
            channels = outputs
    value = graph.relu6(graph.conv(value, channels, 1280, 1))
    value = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    graph.add(
        "Gemm", value, graph.weight(1280, 1000, scale=0.03), graph.weight(1000, scale=0.01), name="scores"
    )
    return _image_model(graph)


def _img() -> onnx.ModelProto:
    """The same raw image → 4 numbers of a small corner: the body is what costs."""
    graph = _Graph()
    starts, ends = graph.constant([0, 0], np.int64), graph.constant([8, 8], np.int64)
    corner = graph.add("Slice", "image", starts, ends, graph.constant([1, 2], np.int64))
    flat = graph.add(
        "Reshape", graph.add("Cast", corner, to=TensorProto.FLOAT), graph.constant([1, 192], np.int64)
    )
    graph.add("MatMul", flat, graph.weight(192, 4, scale=0.01), name="scores")
    return _image_model(graph)


def _image_model(graph: _Graph) -> onnx.ModelProto:
    """The best of the scores and its index come out: long answers would measure JSON."""
    graph.add("ArgMax", "scores", axis=1, keepdims=0, name="label")
    graph.add("ReduceMax", "scores", axes=[1], keepdims=0, name="score")
    return graph.model(
        [helper.make_tensor_value_info("image", TensorProto.UINT8, IMAGE_SHAPE)],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        ],
    )
