"""Real MLflow models, and what MLflow's own scoring server answers for them.

Run as a program, in a process of its own: MLflow warns, patches and takes seconds to import.

    python mlflow_models.py FOLDER     # FOLDER/NAME/… per model, FOLDER/answers.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

TABLE = {"columns": ["age", "income"], "data": [[21, 1.5], [64, 0.25], [40, 3.0]]}
RECORDS = [dict(zip(TABLE["columns"], row, strict=True)) for row in TABLE["data"]]
COLUMNS = {name: [row[index] for row in TABLE["data"]] for index, name in enumerate(TABLE["columns"])}
ROWS = [[1.0, 2.0], [3.0, 0.5], [-1.0, 4.0]]

NAMED: dict[str, Any] = {
    "split": {"dataframe_split": TABLE},
    "split in another order, with an index and more": {
        "dataframe_split": {
            "columns": ["more", "income", "age"],
            "index": [7, 8],
            "data": [["x", 2, 30], ["y", 0.5, 50]],
        }
    },
    "records": {"dataframe_records": RECORDS},
    "inputs by column": {"inputs": COLUMNS},
    "instances": {"instances": RECORDS},
    "one record": {"dataframe_records": RECORDS[:1]},
    "a column is missing": {"dataframe_records": [{"age": 3}]},
    "text for a number": {"dataframe_records": [{"age": 3, "income": "x"}]},
    "two formats": {"inputs": COLUMNS, "instances": RECORDS},
    "no format": {"rows": RECORDS},
    "no table": {"dataframe_split": 3},
}
PLAIN: dict[str, Any] = {
    "inputs": {"inputs": ROWS},
    "instances": {"instances": ROWS},
    "split": {"dataframe_split": {"data": ROWS}},
    "no format": {"rows": ROWS},
}
ONNX: dict[str, Any] = {
    "inputs": {"inputs": ROWS},
    "inputs by name": {"inputs": {"X": ROWS}},
    "instances": {"instances": ROWS},
    "instances by name": {"instances": [{"X": row} for row in ROWS]},
    "split": {"dataframe_split": {"columns": ["a", "b"], "data": ROWS}},
    "records": {"dataframe_records": [{"a": a, "b": b} for a, b in ROWS]},
    "no format": {"rows": ROWS},
    "wrong width": {"inputs": [[1.0, 2.0, 3.0]]},
}
FREE: dict[str, Any] = {
    "split": {"dataframe_split": TABLE},
    "with params": {"dataframe_records": RECORDS, "params": {"factor": 3}},
    "a param of another type": {"dataframe_records": RECORDS, "params": {"factor": "x"}},
    "inputs": {"inputs": COLUMNS},
}
REQUESTS = {
    "probabilities": NAMED,
    "pipeline": NAMED,
    "unsigned": PLAIN,
    "onnx": ONNX,
    "free": FREE,
}


def save_models(folder: Path) -> None:
    """One model of each kind; the requirements are given, since finding them takes MLflow minutes."""
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from skl2onnx import to_onnx
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pip = [f"mlflow=={mlflow.__version__}", "scikit-learn", "cloudpickle", "numpy", "pandas"]
    frame = pd.DataFrame({"age": np.arange(20, 60, 2), "income": np.linspace(0.0, 4.0, 20)})
    wanted = (frame.income + frame.age / 30 > 3).astype(int)
    schema = Schema([ColSpec("long", "age"), ColSpec("double", "income")])
    named = ModelSignature(inputs=schema, outputs=Schema([ColSpec("long")]))
    classifier = LogisticRegression().fit(frame, wanted)
    regression = LinearRegression().fit(np.array(ROWS), [1.0, 2.0, 3.0])
    scaled = ColumnTransformer([("scale", StandardScaler(), ["income"])], remainder="passthrough")
    pipeline = make_pipeline(scaled, LogisticRegression()).fit(frame, np.where(wanted, "yes", "no"))

    def save(name: str, model: Any, **options: Any) -> None:
        options = {"serialization_format": "cloudpickle", "pip_requirements": pip} | options
        mlflow.sklearn.save_model(model, folder / name, **options)

    save(
        "probabilities",
        classifier,
        signature=named,
        pyfunc_predict_fn="predict_proba",
        serialization_format="pickle",
    )
    save("pipeline", pipeline, signature=named)
    save("unsigned", regression)
    onnx_model = to_onnx(regression, np.array(ROWS, dtype=np.float32))
    mlflow.onnx.save_model(onnx_model, folder / "onnx", pip_requirements=["mlflow", "onnx", "onnxruntime"])

    class Free(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input["age"] * (params or {}).get("factor", 1)

    with_params = ModelSignature(
        inputs=schema, outputs=named.outputs, params=ParamSchema([ParamSpec("factor", "long", 2)])
    )
    mlflow.pyfunc.save_model(
        folder / "free", python_model=Free(), signature=with_params, pip_requirements=pip
    )


def answers(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Status and document by model and request, from MLflow's scoring server."""
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    found: dict[str, dict[str, list[Any]]] = {}
    for name, requests in REQUESTS.items():
        model = mlflow.pyfunc.load_model(str(folder / name))
        found[name] = {}
        for title, body in requests.items():
            try:
                schema = model.metadata.get_input_schema()
                reply = invocations(json.dumps(body), "application/json", model, schema)
                found[name][title] = [reply.status, json.loads(reply.response)]
            except MlflowException as error:
                found[name][title] = [error.get_http_status_code(), error.message]
    return found


def main() -> None:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    folder = Path(sys.argv[1])
    save_models(folder)
    (folder / "answers.json").write_text(json.dumps(answers(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
