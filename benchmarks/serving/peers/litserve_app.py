"""A LitServe API with one worker."""

import os
import sys
from pathlib import Path

import litserve as ls
import numpy as np
import onnxruntime as ort


class Tab(ls.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["ORT_THREADS"])
        self._session = ort.InferenceSession(
            Path(os.environ["AZUREML_MODEL_DIR"]) / "tab.onnx", options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request: dict) -> np.ndarray:
        return np.array(request["data"], np.float32)

    def predict(self, rows: np.ndarray) -> list:
        return self._session.run(["label", "probabilities"], {"input": rows})

    def encode_response(self, result: list) -> dict:
        label, probabilities = result
        return {"label": label.tolist(), "probabilities": probabilities.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Tab(api_path="/score"), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
