"""Train the demo's model on scikit-learn's digits (real 8x8 images): `python -m publisher.demo.training VERSION`.

Version 1 is a logistic regression, version 2 compares with the nearest neighbours and errs less. Both are written as ONNX with
input `image`: float32 [N, 64], outputs `digit`: int64 [N] and `probabilities`: float32 [N, 10]. The images held out
for testing are the same for both and are written as `held-out.json`. Nothing is random: the same files every time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELD_OUT = 0.2


def train(version: int, directory: Path) -> dict[str, Any]:
    """Write `digits.onnx` and `held-out.json`; returns the accuracy on the images held out and their number."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    train_images, test_images, train_digits, test_digits = train_test_split(
        images.astype("float32"), digits, test_size=HELD_OUT, random_state=0, stratify=digits
    )
    classifier = _classifier(version).fit(train_images, train_digits)
    model = to_onnx(
        classifier,
        initial_types=[("image", FloatTensorType([None, 64]))],
        final_types=[("digit", None), ("probabilities", None)],
        options={"zipmap": False},
        target_opset=17,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "digits.onnx").write_bytes(model.SerializeToString())
    held_out = {"data": test_images.astype(int).tolist(), "digits": test_digits.tolist()}
    (directory / "held-out.json").write_text(json.dumps(held_out))
    return {"accuracy": round(classifier.score(test_images, test_digits), 4), "images": len(test_digits)}


def _classifier(version: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    # A regression of few steps first, so that version 2 is visibly better.
    if version == 1:
        return make_pipeline(MaxAbsScaler(), LogisticRegression(C=0.05, max_iter=300))
    return KNeighborsClassifier(3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="publisher.demo.training", description=__doc__.split("\n", 1)[0])
    parser.add_argument("version", type=int, choices=(1, 2))
    parser.add_argument("--output-dir", type=Path, default=Path(), metavar="DIRECTORY")
    arguments = parser.parse_args()
    print(json.dumps(train(arguments.version, arguments.output_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
