"""Scores a pickled scikit-learn model of an MLflow folder with scikit-learn and pandas alone.

Requests and answers are those of MLflow's scoring server, and `data` beside its formats; see `pyfunc_score.py`. Columns are
put in the signature's order and cast to its types.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
from azureml.contrib.services.aml_response import AMLResponse

FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances", "data")
TYPES = {
    "boolean": np.dtype("bool"),
    "integer": np.dtype("int32"),
    "long": np.dtype("int64"),
    "float": np.dtype("float32"),
    "double": np.dtype("float64"),
    "string": np.dtype("object"),
}

CONFIG = json.loads((Path(__file__).parent / "mlflow_model.json").read_text(encoding="utf-8"))
COLUMNS = CONFIG["columns"]
PREDICT = None


class BadInput(Exception):
    """The caller's mistake."""


def init():
    global PREDICT
    with (Path(os.environ["AZUREML_MODEL_DIR"]) / CONFIG["model_path"]).open("rb") as file:
        PREDICT = getattr(pickle.load(file), CONFIG["predict"])  # noqa: S301 - who registered the model trusts it


def run(raw_data):
    try:
        data = _input(raw_data)
    except BadInput as error:
        return AMLResponse({"message": str(error)}, 400, json_str=True)
    return {"predictions": _plain(PREDICT(data))}


def _input(raw_data):
    try:
        document = json.loads(raw_data)
    except ValueError as error:
        raise BadInput(f"the body is not JSON: {error}") from None
    given = [each for each in FORMATS if isinstance(document, dict) and each in document]
    if len(given) != 1:
        raise BadInput(f"expected a JSON object with one of {', '.join(FORMATS)}")
    value = document[given[0]]
    try:
        if COLUMNS is None and given[0] in ("inputs", "instances", "data") and _is_array(value):
            return np.array(value)
        return _in_order(_frame(given[0], value))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{given[0]} is no table: {error}") from None


def _is_array(value):
    return isinstance(value, list) and not (value and isinstance(value[0], dict))


def _frame(name, value):
    if name == "dataframe_split":
        if not isinstance(value, dict) or "data" not in value or set(value) - {"columns", "data", "index"}:
            raise BadInput(
                "dataframe_split must be an object with 'data', and 'columns' and 'index' if need be"
            )
        return pd.DataFrame(index=value.get("index"), columns=value.get("columns"), data=value["data"])
    if name == "dataframe_records" and not isinstance(value, list):
        raise BadInput("dataframe_records must be a list of objects")
    if _is_array(value) and COLUMNS is not None:
        if len(COLUMNS) == 1 and value and not isinstance(value[0], list):
            value = [[each] for each in value]
        return pd.DataFrame(value, columns=[each["name"] for each in COLUMNS])
    if isinstance(value, dict) and not all(isinstance(each, list) for each in value.values()):
        value = [value]
    return pd.DataFrame(value)


def _in_order(frame):
    if COLUMNS is None:
        return frame
    missing = [each["name"] for each in COLUMNS if each["required"] and each["name"] not in frame]
    if missing:
        raise BadInput(f"columns are missing: {', '.join(missing)}")
    present = [each for each in COLUMNS if each["name"] in frame]
    return pd.DataFrame({each["name"]: _cast(frame[each["name"]], each) for each in present})


def _cast(column, wanted):
    kind = TYPES[wanted["type"]]
    if kind.kind == "O":
        return column
    if column.dtype.kind == "O" or isinstance(column.dtype, pd.StringDtype):
        raise BadInput(f"column {wanted['name']} must be of type {wanted['type']}")
    # A fraction, a missing value or a number beyond the type must not become another number in silence.
    cast = column.astype(kind)
    if kind.kind in "iub" and not (cast == column).all():
        raise BadInput(f"column {wanted['name']} must be of type {wanted['type']}")
    return cast


def _plain(result):
    if isinstance(result, np.ndarray):
        return result.tolist()
    if isinstance(result, pd.Series):
        result = pd.DataFrame(result)
    if isinstance(result, pd.DataFrame):
        return result.to_dict(orient="records")
    return [_plain(each) for each in result] if isinstance(result, list) else result
