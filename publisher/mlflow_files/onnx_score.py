"""Scores the ONNX model of an MLflow folder with ONNX Runtime and numpy alone.

Requests and answers are those of MLflow's scoring server, and `data` beside its formats; see `pyfunc_score.py`. A table is
one input of rows, or a column per input, and is answered with a record per row; tensors are answered by output.
"""

import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from azureml.contrib.services.aml_response import AMLResponse

FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances", "data")
TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.str_,
}

CONFIG = json.loads((Path(__file__).parent / "mlflow_model.json").read_text(encoding="utf-8"))
COLUMNS = CONFIG["columns"]
SESSION = None
INPUTS = OUTPUTS = ()


class BadInput(Exception):
    """The caller's mistake."""


def init():
    global SESSION, INPUTS, OUTPUTS
    path = Path(os.environ["AZUREML_MODEL_DIR"]) / CONFIG["model_path"]
    SESSION = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    INPUTS = {each.name: TYPES[each.type] for each in SESSION.get_inputs()}
    OUTPUTS = [each.name for each in SESSION.get_outputs()]


def run(raw_data):
    try:
        feed, is_table = _input(raw_data)
    except BadInput as error:
        return AMLResponse({"message": str(error)}, 400, json_str=True)
    try:
        outputs = SESSION.run(OUTPUTS, feed)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
        return AMLResponse({"message": f"the model does not take this input: {error}"}, 400, json_str=True)
    named = dict(zip(OUTPUTS, outputs, strict=True))
    return {
        "predictions": _records(named) if is_table else {name: _plain(each) for name, each in named.items()}
    }


def _input(raw_data):
    """The inputs by name, and whether they came as a table."""
    try:
        document = json.loads(raw_data)
    except ValueError as error:
        raise BadInput(f"the body is not JSON: {error}") from None
    given = [each for each in FORMATS if isinstance(document, dict) and each in document]
    if len(given) != 1:
        raise BadInput(f"expected a JSON object with one of {', '.join(FORMATS)}")
    name, value = given[0], document[given[0]]
    try:
        if name == "dataframe_split":
            return _split(value), True
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            rows = {each: [row[each] for row in value] for each in columns}
            is_table = name in ("dataframe_records", "data")
            return (
                _table(columns, list(zip(*rows.values(), strict=True))) if is_table else _tensors(rows)
            ), is_table
        if name == "dataframe_records":
            raise BadInput("dataframe_records must be a list of objects")
        return _tensors(value), False
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise BadInput(f"{name} cannot be read: {error!r}") from None


def _split(value):
    if not isinstance(value, dict) or "data" not in value or set(value) - {"columns", "data", "index"}:
        raise BadInput("dataframe_split must be an object with 'data', and 'columns' and 'index' if need be")
    return _table(value.get("columns"), value["data"])


def _table(columns, rows):
    """Rows for the one input, or a column for each of several."""
    wanted = [each["name"] for each in COLUMNS] if COLUMNS else None
    if columns is not None and wanted is not None:
        missing = [each for each in wanted if each not in columns]
        if missing:
            raise BadInput(f"columns are missing: {', '.join(missing)}")
        order = [list(columns).index(each) for each in wanted]
        rows, columns = [[row[each] for each in order] for row in rows], wanted
    if len(INPUTS) == 1:
        [(name, kind)] = INPUTS.items()
        return {name: _array(rows, kind)}
    if columns is None or set(INPUTS) - set(columns):
        raise BadInput(f"expected columns {', '.join(INPUTS)}")
    return {
        name: _array([row[list(columns).index(name)] for row in rows], kind) for name, kind in INPUTS.items()
    }


def _tensors(value):
    if not isinstance(value, dict):
        if len(INPUTS) != 1:
            raise BadInput(f"expected an object with {', '.join(INPUTS)}")
        value = {next(iter(INPUTS)): value}
    elif set(value) != set(INPUTS):
        raise BadInput(f"expected an object with {', '.join(INPUTS)}, found {', '.join(value)}")
    return {name: _array(value[name], kind) for name, kind in INPUTS.items()}


def _array(value, kind):
    array = np.array(value)
    if kind is np.str_ or array.dtype.kind in "fiub":
        return array.astype(kind)
    raise BadInput(f"expected numbers, found {array.dtype}")


def _records(named):
    """A record per row, as a data frame of all outputs would have it."""
    flat = {name: np.asarray(each).reshape(-1) for name, each in named.items()}
    if len({len(each) for each in flat.values()}) > 1:
        # Several values per row for one output: MLflow cannot answer; we do, by output.
        return {name: _plain(each) for name, each in named.items()}
    rows = zip(*(each.tolist() for each in flat.values()), strict=True)
    return [dict(zip(flat, row, strict=True)) for row in rows]


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value
