"""Score handwritten digits: 64 brightness values of an 8x8 image in, the digit and how sure we are out."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime

session = None


def init():
    """Load the model once, when the image starts."""
    global session
    model = Path(os.environ["AZUREML_MODEL_DIR"]) / "digits.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(data):
    """Score one request: {"data": [[64 numbers], …]}."""
    images = np.array(json.loads(data)["data"], dtype=np.float32)
    digits, probabilities = session.run(None, {"image": images})
    return {"digits": digits.tolist(), "confidence": probabilities.max(axis=1).round(4).tolist()}
