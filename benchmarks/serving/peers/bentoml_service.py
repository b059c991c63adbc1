"""A BentoML service with one worker."""

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Tab:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["ORT_THREADS"])
        self._session = ort.InferenceSession(
            Path(os.environ["AZUREML_MODEL_DIR"]) / "tab.onnx", options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(route="/score")
    def score(self, data: list[list[float]]) -> dict:
        label, probabilities = self._session.run(
            ["label", "probabilities"], {"input": np.array(data, np.float32)}
        )
        return {"label": label.tolist(), "probabilities": probabilities.tolist()}
