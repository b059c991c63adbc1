"""An entry script for a raw image body, for Azure ML's server: `IMAGE_MODEL` names the file, `ORT_THREADS` its threads."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse


def init():
    global session
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["ORT_THREADS"])
    session = ort.InferenceSession(
        Path(os.environ["AZUREML_MODEL_DIR"]) / os.environ["IMAGE_MODEL"],
        options,
        providers=["CPUExecutionProvider"],
    )


@rawhttp
def run(request: AMLRequest):
    image = np.frombuffer(request.get_data(False), np.uint8).reshape(1, 224, 224, 3)
    label, score = session.run(["label", "score"], {"image": image})
    return AMLResponse(json.dumps({"label": label.tolist(), "score": score.tolist()}), 200)
