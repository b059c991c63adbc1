"""`from azureml.core.model import Model` inside an image: `get_model_path` alone, as entry scripts use it."""

from __future__ import annotations

import os
from pathlib import Path


class ModelNotFoundException(Exception):
    """No such model in the image."""


class Model:
    """Where a model of this image lies; nothing else of the SDK's class has a meaning inside an image."""

    @staticmethod
    def get_model_path(model_name: str, version: int | None = None, _workspace: object = None) -> str:
        """Path of the single file or folder of a model version, the highest version when none is given.

        Raises:
            ModelNotFoundException: no such name or version; the message lists where was looked.
        """
        if version is not None and not isinstance(version, int):
            raise ValueError(f"version should be an int, not {version!r}")
        roots = _model_roots()
        for root in roots:
            folder = _version_folder(root / model_name, version)
            if folder is not None:
                return str(_single_entry(folder))
        if Path(model_name).exists():
            return model_name
        wanted = model_name if version is None else f"{model_name} version {version}"
        raise ModelNotFoundException(
            f"model {wanted} is not in this image; looked in {', '.join(map(str, roots))}"
        )


def _model_roots() -> list[Path]:
    """`azureml-models` folders: around AZUREML_MODEL_DIR (one model: <root>/<name>/<version>; several: <root>)."""
    roots = [Path("azureml-models").absolute()]
    model_dir = os.environ.get("AZUREML_MODEL_DIR")
    if model_dir:
        folder = Path(model_dir)
        roots.append(folder.parent.parent if folder.name.isdigit() else folder)
    return list(dict.fromkeys(roots))


def _version_folder(model: Path, version: int | None) -> Path | None:
    versions = sorted((int(entry.name) for entry in model.glob("*") if entry.name.isdigit()), reverse=True)
    chosen = version if version is not None else next(iter(versions), None)
    return model / str(chosen) if chosen in versions else None


def _single_entry(folder: Path) -> Path:
    entries = list(folder.iterdir())
    if len(entries) != 1:
        raise ModelNotFoundException(f"expected exactly one file or folder in {folder}, found {len(entries)}")
    return entries[0]
