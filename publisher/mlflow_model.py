"""An MLflow model folder: what its `MLmodel` file says, checked before anything is done with it.

Rules:
- Only files of the folder are read, each bounded. A path in `MLmodel` is relative, stays inside, and is there.
- Environment files include no other file; requirements are read as everywhere (no URLs, paths or options).
- How it is scored is decided here, from the flavours and the signature:
    onnx      one model file, ONNX Runtime and numpy alone
    sklearn   a pickle of scikit-learn with plain named columns, or no signature: scikit-learn and pandas
    pyfunc    anything else: mlflow-skinny loads it as MLflow does
- Whoever registers a model trusts it: a pickle and the code beside it run inside the image, never on the publisher's side.

    model = read_mlflow({"MLmodel": path, "model.pkl": other})
    model.scoring, model.requirements      # Scoring.SKLEARN, ("cloudpickle==3.1.2", "scikit-learn==1.9.1", …)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_contracts.errors import PublishError
from publisher.conda_file import read_conda
from publisher.errors import MlflowModelError
from publisher.model_files import MLMODEL
from publisher.requirements import checked_requirement, logical_lines, read_text
from publisher.yaml_document import YamlDocument, read_yaml

COLUMN_LIMIT = 10_000
TYPES = frozenset({"boolean", "integer", "long", "float", "double", "string"})
"""Column types of a signature that need nothing of MLflow to be met."""

_MLFLOW_PACKAGES = frozenset({"mlflow", "mlflow-skinny"})
_PICKLES = frozenset({"pickle", "cloudpickle"})
_PREDICT = frozenset({"predict", "predict_proba", "predict_log_proba"})


class Scoring(StrEnum):
    """What loads and calls the model inside the image."""

    ONNX = "onnx"
    SKLEARN = "sklearn"
    PYFUNC = "pyfunc"


@dataclass(frozen=True, slots=True)
class Column:
    """A column or tensor of a signature; `type` as MLflow spells it, `tensor(float32)` for tensors."""

    name: str | None
    type: str
    required: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether it is a named column of numbers, texts or truth values."""
        return self.name is not None and self.type in TYPES


@dataclass(frozen=True, slots=True)
class MlflowModel:
    """What a folder's `MLmodel` says.

    Attributes:
        python: version it was saved with, empty when it does not say.
        inputs, outputs: of the signature; None when there is none.
        requirements: what it needs to be scored this way, as requirement strings.
        model_path: the model's file or folder inside, where the way of scoring reads it itself.
        predict: method that scores, of a scikit-learn model.
        notes: what a user should know of how it was read.
    """

    flavors: tuple[str, ...]
    scoring: Scoring
    mlflow_version: str
    python: str
    inputs: tuple[Column, ...] | None
    outputs: tuple[Column, ...] | None
    requirements: tuple[str, ...]
    model_path: str
    predict: str = "predict"
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """What `edgewright model show` prints of it."""
        return {
            "flavors": list(self.flavors),
            "mlflowVersion": self.mlflow_version,
            "python": self.python,
            "scoring": str(self.scoring),
            "inputs": _documents(self.inputs),
            "outputs": _documents(self.outputs),
        }

    def python_note(self, python: str) -> tuple[str, ...]:
        """A warning where the image's Python is not the one the model was saved with."""
        if not self.python or self.python == python or self.python.startswith(f"{python}."):
            return ()
        return (
            f"the MLflow model was saved with Python {self.python}, the image has Python {python}; pickles may not load "
            "(environment.python in edgewright.toml)",
        )


def read_mlflow(files: Mapping[str, Path], *, with_requirements: bool = True) -> MlflowModel:
    """Read a model folder: its files by their path inside.

    Without requirements it is what registering needs: a folder whose packages cannot be had still scores with a script.

    Raises:
        MlflowModelError: it cannot be scored, or says something that must not be; names the field and line.
    """
    try:
        return _Folder(files).model(with_requirements)
    except MlflowModelError:
        raise
    except PublishError as error:
        raise MlflowModelError(error.message, where=error.where) from error


class _Folder:
    """One folder while it is read."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._document: YamlDocument = read_yaml(files[MLMODEL], MLMODEL)

    def model(self, with_requirements: bool) -> MlflowModel:
        top = self._mapping(self._document.value, "must be a mapping with 'flavors'")
        flavors = self._mapping(top.get("flavors"), "must name its flavours", "flavors")
        for name in flavors:
            self._mapping(flavors[name], "must be a mapping", "flavors", name)
        self._check_paths(flavors)
        function = flavors.get("python_function")
        if function is None and "onnx" not in flavors:
            names = ", ".join(flavors) or "none"
            raise self._error(f"has no flavour python_function or onnx: found {names}", "flavors")
        signature = self._mapping(top.get("signature") or {}, "must be a mapping", "signature")
        inputs, outputs = self._columns(signature, "inputs"), self._columns(signature, "outputs")
        scoring = _scoring(flavors, inputs, takes_params=bool(_listed(signature.get("params"))))
        version = str(top.get("mlflow_version") or "")
        listed = self._listed_requirements(flavors) if with_requirements else []
        requirements, notes = _requirements(scoring, listed, version, _sklearn_version(flavors))
        return MlflowModel(
            flavors=tuple(flavors),
            scoring=scoring,
            mlflow_version=version,
            python=str((function or {}).get("python_version") or ""),
            inputs=inputs,
            outputs=outputs,
            requirements=requirements,
            model_path=_model_path(flavors, scoring),
            predict=str((function or {}).get("predict_fn") or "predict"),
            notes=notes,
        )

    def _check_paths(self, flavors: Mapping[str, Any]) -> None:
        for flavor, field in _PATH_FIELDS:
            value = flavors.get(flavor, {}).get(field)
            if value is not None:
                self._inside(value, "flavors", flavor, field)
        environment = flavors.get("python_function", {}).get("env")
        for field, value in environment.items() if isinstance(environment, dict) else ():
            self._inside(value, "flavors", "python_function", "env", field)
        if environment is not None and not isinstance(environment, dict):
            self._inside(environment, "flavors", "python_function", "env")

    def _inside(self, value: object, *keys: str) -> None:
        """Refuse a path that is none of the folder's files or folders."""
        field = ".".join(keys)
        path = PurePosixPath(value) if isinstance(value, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or "\\" in path.name or "\0" in str(path):
            raise self._error(
                f"must have a path inside the folder in {field}, not {str(value)[:120]!r}", *keys
            )
        name = path.as_posix()
        if name not in self._files and not any(each.startswith(f"{name}/") for each in self._files):
            raise self._error(f"names {name[:120]!r} in {field}, which the folder does not hold", *keys)

    def _listed_requirements(self, flavors: Mapping[str, Any]) -> list[str]:
        """What the folder's own files ask for: `requirements.txt`, else the conda environment's pip list."""
        if "requirements.txt" in self._files:
            text = read_text(self._files["requirements.txt"], "requirements file", "requirements.txt")
            return [checked_requirement(line, f"requirements.txt:{n}") for n, line in logical_lines(text)]
        environment = flavors.get("python_function", {}).get("env")
        conda = environment.get("conda") if isinstance(environment, dict) else environment
        if conda is None:
            return []
        found = read_conda(self._files[PurePosixPath(conda).as_posix()], str(conda))
        found.check_wheels()
        return list(found.requirements)

    def _columns(self, signature: Mapping[str, Any], side: str) -> tuple[Column, ...] | None:
        text = signature.get(side)
        if text is None:
            return None
        try:
            columns = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._error(f"has no JSON in signature.{side}", "signature", side) from error
        if not isinstance(columns, list) or len(columns) > COLUMN_LIMIT:
            raise self._error(
                f"must have a list of up to {COLUMN_LIMIT} columns in signature.{side}", "signature", side
            )
        return tuple(self._column(each, side) for each in columns)

    def _column(self, column: object, side: str) -> Column:
        name = column.get("name") if isinstance(column, dict) else 0
        if not isinstance(column, dict) or not isinstance(name, str | None):
            raise self._error(f"has a column that is none in signature.{side}", "signature", side)
        kind = column.get("type")
        if kind == "tensor":
            spec = column.get("tensor-spec")
            kind = f"tensor({spec.get('dtype') if isinstance(spec, dict) else ''})"
        return Column(
            name, str(kind), required=bool(column.get("required", not column.get("optional", False)))
        )

    def _mapping(self, value: object, what: str, *keys: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(what, *keys)
        return value

    def _error(self, what: str, *keys: str) -> MlflowModelError:
        where = self._document.where(*keys)
        return MlflowModelError(f"{where} {what}", where=where)


_PATH_FIELDS: Sequence[tuple[str, str]] = (
    ("python_function", "model_path"),
    ("python_function", "data"),
    ("python_function", "code"),
    ("onnx", "data"),
    ("onnx", "code"),
    ("sklearn", "pickled_model"),
    ("sklearn", "code"),
)
"""Where `MLmodel` names files. Other flavours' paths are read by MLflow, inside the image."""


def _scoring(flavors: Mapping[str, Any], inputs: Iterable[Column] | None, *, takes_params: bool) -> Scoring:
    if "onnx" in flavors and _model_path(flavors, Scoring.ONNX).endswith(".onnx"):
        return Scoring.ONNX
    sklearn, function = flavors.get("sklearn"), flavors.get("python_function", {})
    if (
        sklearn is not None
        and function.get("loader_module") == "mlflow.sklearn"
        and sklearn.get("serialization_format") in _PICKLES
        and sklearn.get("pickled_model") is not None
        and not sklearn.get("code")
        and not function.get("code")
        and str(function.get("predict_fn") or "predict") in _PREDICT
        and not takes_params
        and all(each.is_plain for each in inputs or ())
    ):
        return Scoring.SKLEARN
    return Scoring.PYFUNC


def _model_path(flavors: Mapping[str, Any], scoring: Scoring) -> str:
    fields = {Scoring.ONNX: ("onnx", "data"), Scoring.SKLEARN: ("sklearn", "pickled_model")}
    if scoring not in fields:
        return ""
    flavor, field = fields[scoring]
    return str(flavors[flavor].get(field) or "")


def _sklearn_version(flavors: Mapping[str, Any]) -> str:
    version = str(flavors.get("sklearn", {}).get("sklearn_version") or "")
    return version if re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) else ""


_ADDED: Mapping[Scoring, tuple[str, ...]] = {
    Scoring.ONNX: ("numpy", "onnxruntime"),
    Scoring.SKLEARN: ("numpy", "pandas"),
    Scoring.PYFUNC: ("numpy", "pandas"),
}
_ONNX_KEEPS = frozenset({"numpy", "onnxruntime"})


def _requirements(
    scoring: Scoring, listed: Iterable[str], mlflow_version: str, sklearn_version: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What this way of scoring needs of what the folder lists, and notes."""
    kept: dict[str, str] = {}
    notes: list[str] = []
    for text in listed:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in _MLFLOW_PACKAGES:
            marker = f"; {requirement.marker}" if requirement.marker else ""
            kept["mlflow-skinny"] = f"mlflow-skinny{requirement.specifier}{marker}"
        elif scoring is not Scoring.ONNX or name in _ONNX_KEEPS:
            kept[name] = text
    if scoring is not Scoring.PYFUNC:
        kept.pop("mlflow-skinny", None)
    elif "mlflow-skinny" not in kept:
        version = f"=={mlflow_version}" if re.fullmatch(r"[0-9]+(\.[0-9]+)*", mlflow_version) else ""
        kept["mlflow-skinny"] = f"mlflow-skinny{version}"
    if scoring is Scoring.PYFUNC:
        notes.append("MLflow itself goes in as mlflow-skinny, which loads and scores models and nothing else")
    if scoring is Scoring.SKLEARN and "scikit-learn" not in kept:
        kept["scikit-learn"] = f"scikit-learn=={sklearn_version}" if sklearn_version else "scikit-learn"
    for name in _ADDED[scoring]:
        kept.setdefault(name, name)
    return tuple(kept.values()), tuple(notes)


def _documents(columns: Iterable[Column] | None) -> list[dict[str, Any]] | None:
    return None if columns is None else [asdict(each) for each in columns]


def _listed(value: object) -> object:
    """What a JSON text holds; the value itself where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
