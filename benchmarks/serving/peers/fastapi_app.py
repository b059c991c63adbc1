"""FastAPI as a careful user writes it: `async def` with a pydantic body for a short run, a thread for a long one."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["ORT_THREADS"])
session = ort.InferenceSession(
    Path(os.environ["AZUREML_MODEL_DIR"]) / os.environ["MODEL"],
    options,
    providers=["CPUExecutionProvider"],
)
app = FastAPI()


class Rows(BaseModel):
    data: list[list[float]]


def score_image(body):
    image = np.frombuffer(body, np.uint8).reshape(1, 224, 224, 3)
    label, score = session.run(["label", "score"], {"image": image})
    return {"label": label.tolist(), "score": score.tolist()}


if os.environ["MODEL"] == "tab.onnx":

    @app.post("/score")
    async def score(rows: Rows):
        label, probabilities = session.run(
            ["label", "probabilities"], {"input": np.array(rows.data, np.float32)}
        )
        return {"label": label.tolist(), "probabilities": probabilities.tolist()}

elif os.environ["MODEL"] == "img.onnx":

    @app.post("/score")
    async def score(request: Request):
        return score_image(await request.body())

else:

    @app.post("/score")
    async def score(request: Request):
        return await run_in_threadpool(score_image, await request.body())
