"""Scores an MLflow model as MLflow does: the generic loader, and the formats of its scoring server.

A request is a JSON object with one of `dataframe_split`, `dataframe_records`, `inputs` and `instances`, and `params` where
the model takes them; or with `data`, which is rows or named columns. The answer is `{"predictions": …}`.
"""

import inspect
import json
import os
from pathlib import Path

os.environ.setdefault(
    "MLFLOW_DISABLE_TELEMETRY", "true"
)  # MLflow reports usage to its maker unless told not to
os.environ.setdefault("DO_NOT_TRACK", "true")

import mlflow.pyfunc
from azureml.contrib.services.aml_response import AMLResponse
from mlflow.exceptions import MlflowException
from mlflow.utils.proto_json_utils import (
    NumpyEncoder,
    _get_jsonable_obj,
    dataframe_from_parsed_json,
    parse_tf_serving_input,
)

FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances", "data")

MODEL = SCHEMA = None
TAKES_PARAMS = False


def init():
    global MODEL, SCHEMA, TAKES_PARAMS
    [file] = Path(os.environ["AZUREML_MODEL_DIR"]).glob("*/MLmodel")
    MODEL = mlflow.pyfunc.load_model(str(file.parent))
    SCHEMA = MODEL.metadata.get_input_schema()
    TAKES_PARAMS = "params" in inspect.signature(MODEL.predict).parameters


def run(raw_data):
    try:
        document = json.loads(raw_data)
    except ValueError as error:
        return AMLResponse({"message": f"the body is not JSON: {error}"}, 400, json_str=True)
    given = [each for each in FORMATS if isinstance(document, dict) and each in document]
    if len(given) != 1:
        message = f"expected a JSON object with one of {', '.join(FORMATS)}"
        return AMLResponse({"message": message}, 400, json_str=True)
    try:
        data = _parse(given[0], document[given[0]])
        params = document.get("params")
        predictions = MODEL.predict(data, params=params) if TAKES_PARAMS else MODEL.predict(data)
    except MlflowException as error:
        return AMLResponse({"message": error.message}, error.get_http_status_code(), json_str=True)
    plain = _get_jsonable_obj(predictions, pandas_orient="records")
    return {"predictions": json.loads(json.dumps(plain, cls=NumpyEncoder))}


def _parse(name, value):
    if name.startswith("dataframe_"):
        return dataframe_from_parsed_json(value, pandas_orient=name.removeprefix("dataframe_"), schema=SCHEMA)
    if name != "data":
        return parse_tf_serving_input({name: value}, schema=SCHEMA)
    named = SCHEMA is not None and SCHEMA.has_input_names() and not SCHEMA.is_tensor_spec()
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return dataframe_from_parsed_json(value, pandas_orient="records", schema=SCHEMA)
    if named and isinstance(value, list):
        rows = {"columns": SCHEMA.input_names(), "data": value}
        return dataframe_from_parsed_json(rows, pandas_orient="split", schema=SCHEMA)
    return parse_tf_serving_input({"inputs": value}, schema=SCHEMA)
