"""The entry script that both Azure ML's server and ours are given, unchanged: a tiny model, JSON in and out."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort


def init():
    global session
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        Path(os.environ["AZUREML_MODEL_DIR"]) / "tab.onnx", options, providers=["CPUExecutionProvider"]
    )


def run(raw_data):
    rows = np.array(json.loads(raw_data)["data"], dtype=np.float32)
    label, probabilities = session.run(["label", "probabilities"], {"input": rows})
    return {"label": label.tolist(), "probabilities": probabilities.tolist()}
