"""Train the demo's models on scikit-learn's digits (real 8x8 images): `python -m publisher.demo.training`.

`model-1/digits.onnx` is a logistic regression, `model-2/digits.onnx` a neural network with one hidden layer, which errs
less. Both have input `image`: float32 [N, 64], outputs `digit`: int64 [N] and `probabilities`: float32 [N, 10]. The images held out for
testing and their digits are written as `held-out.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HELD_OUT = 0.2
BRIGHTEST = 16.0  # of a pixel in this data set
OPSET = 17


def train(directory: Path) -> dict[str, Any]:
    """Write both models and the images held out; returns the accuracy of each on those, and their number."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    train_images, test_images, train_digits, test_digits = train_test_split(
        images, digits, test_size=HELD_OUT, random_state=0, stratify=digits
    )
    accuracy = {}
    for name, classifier in _classifiers().items():
        classifier.fit(train_images / BRIGHTEST, train_digits)
        accuracy[name] = round(classifier.score(test_images / BRIGHTEST, test_digits), 4)
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name / "digits.onnx").write_bytes(_to_onnx(_layers(classifier)))
    held_out = {"data": test_images.astype(int).tolist(), "digits": test_digits.tolist()}
    (directory / "held-out.json").write_text(json.dumps(held_out))
    return {"accuracy": accuracy, "images": len(test_digits)}


def _classifiers() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    return {
        # Held back on purpose, so that version 2 is visibly better.
        "model-1": LogisticRegression(C=0.05, max_iter=300),
        "model-2": MLPClassifier((256,), random_state=0, learning_rate_init=0.003, max_iter=300),
    }


def _layers(classifier: Any) -> list[tuple[Any, Any]]:
    """Weights [inputs, outputs] and bias [outputs] of each layer."""
    if hasattr(classifier, "coefs_"):
        return list(zip(classifier.coefs_, classifier.intercepts_, strict=True))
    return [(classifier.coef_.T, classifier.intercept_)]


def _to_onnx(layers: list[tuple[Any, Any]]) -> bytes:
    """Scale, then Gemm (and Relu between layers), Softmax, ArgMax: what both classifiers compute."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = [numpy_helper.from_array(np.array(BRIGHTEST, np.float32), "brightest")]
    nodes = [helper.make_node("Div", ["image", "brightest"], ["x0"])]
    for number, (weights, bias) in enumerate(layers):
        constants.append(numpy_helper.from_array(weights.astype(np.float32), f"w{number}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"b{number}"))
        is_last = number == len(layers) - 1
        output = "scores" if is_last else f"y{number}"
        nodes.append(helper.make_node("Gemm", [f"x{number}", f"w{number}", f"b{number}"], [output]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [output], [f"x{number + 1}"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["scores"], ["digit"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
        [
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
        ],
        constants,
    )
    # The IR version that goes with the opset, so that older runtimes read it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def main() -> int:
    parser = argparse.ArgumentParser(prog="publisher.demo.training", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIRECTORY")
    arguments = parser.parse_args()
    # On matrices this small more threads only wait for each other.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    print(json.dumps(train(arguments.output_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
