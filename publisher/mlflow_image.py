"""How an image of an MLflow model scores without a script of its own: the script, its settings and requirements.

The three scripts are in `mlflow_files`; what they need to know of the folder is a JSON file beside them, so that the image
needs no YAML reader and trusts nothing of `MLmodel` that was not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from edge_containers.image_model import canonical_json
from publisher.environments import Environment
from publisher.mlflow_model import MlflowModel, Scoring

SCRIPTS = Path(__file__).parent / "mlflow_files"
SETTINGS_NAME = "mlflow_model.json"


def mlflow_script(model: MlflowModel) -> Path:
    """The entry script that scores it."""
    return SCRIPTS / f"{model.scoring}_score.py"


def mlflow_settings(model: MlflowModel, folder: str) -> Mapping[str, bytes]:
    """What goes beside the script; `folder` is the model's name below `AZUREML_MODEL_DIR`."""
    if model.scoring is Scoring.PYFUNC:
        return {}
    columns = None if model.inputs is None else [asdict(each) for each in model.inputs if each.is_plain]
    document = {
        "model_path": f"{folder}/{model.model_path}",
        "predict": model.predict,
        "columns": columns or None,
    }
    return {SETTINGS_NAME: canonical_json(document)}


def mlflow_environment(model: MlflowModel, python: str) -> Environment:
    """What it needs installed, with notes on how it will score."""
    found = Environment.from_list(model.requirements, python, "requirements of the MLflow model")
    notes = (*model.notes, *model.python_note(python))
    return Environment(found.requirements, python, (*notes, *found.notes))
