"""MLServer's way to serve a model of one's own: a runtime with `load` and `predict`, Open Inference Protocol in and out."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Tab(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["ORT_THREADS"])
        self._session = ort.InferenceSession(
            Path(os.environ["AZUREML_MODEL_DIR"]) / "tab.onnx", options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        label, probabilities = self._session.run(["label", "probabilities"], {"input": rows})
        outputs = [
            NumpyCodec.encode_output("label", label),
            NumpyCodec.encode_output("probabilities", probabilities),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
