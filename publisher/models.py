"""Registered models: content-addressed, versioned, shared by every image that uses them.

A model is stored as an OCI artifact manifest whose layers are its files, one blob per file, titled with its path.
So the same file in two models, or in two versions of one, is on disk once, and nothing else knows how to find it.
The manifest's digest identifies the content; `name:version` is a row of the workspace's database.

    model = Model.register(workspace, model_path="digits.onnx", model_name="digits")
    Model(workspace, name="digits").id      # "digits:1"
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from publisher.database import next_version
from publisher.errors import InUseError, ModelFileError, NotFoundError, UsageError
from publisher.garbage import STORE_LOCK, collect_garbage
from publisher.image_plan import MODELS_FOLDER
from publisher.model_details import Framework as Frameworks
from publisher.model_details import ModelDetails, ResourceConfiguration, refuse_datasets
from publisher.model_files import (
    KIND,
    MLMODEL,
    TITLE,
    ModelFile,
    copy_out,
    files_of,
    find_sources,
    store_model,
)
from publisher.records import Filter, check_labels
from publisher.registered import Registered
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace, now_text

if TYPE_CHECKING:
    from publisher.mlflow_model import MlflowModel

# The path of a model inside an image holds its name, so it is one safe path part on every file system.
NAME_RULE = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?"


class Model(Registered):
    """A registered model; two versions of the same content have the same digest.

    Attributes:
        details: what was told of it at registration.
        mime_type, unpack: as of the original, where a model was an archive; here it is its files.
    """

    Framework = Frameworks
    details: ModelDetails
    mime_type, unpack = "application/json", True

    QUERY = (
        "SELECT * FROM models WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR version = ?2) "
        "ORDER BY name, version DESC"
    )
    TABLE, NOUN, DONE = "models", "model", "registered"
    MAKE_COMMAND = "edgewright model register PATH --name NAME"

    @classmethod
    def register(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        cls,
        workspace: Workspace,
        model_path: str | Path,
        model_name: str,
        tags: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        description: str | None = None,
        datasets: object | None = None,
        model_framework: str | None = None,
        model_framework_version: str | None = None,
        child_paths: Sequence[str] | None = None,
        sample_input_dataset: object | None = None,
        sample_output_dataset: object | None = None,
        resource_configuration: ResourceConfiguration | None = None,
        *,
        steps: Steps = no_steps,
    ) -> Self:
        """Copy a file or folder into the workspace as the next version of `model_name`.

        The same content registered again is a new version that shares the stored blobs. Byte-compiled Python is left
        out of a folder. When anything fails no version exists; blobs already copied are found again next time.

        Args:
            child_paths: files and folders inside the folder `model_path`: these alone are taken.

        Raises:
            UsageError: a name, tag or property that cannot be, or a parameter that is refused.
            ModelFileError: nothing there, or something that is no plain file or folder of plain files.
            MlflowModelError: an MLflow folder that says something that must not be.
        """
        _check_name(model_name)
        tag_row, property_row = check_labels("tags", tags), check_labels("properties", properties)
        refuse_datasets(
            {
                "datasets": datasets,
                "sample_input_dataset": sample_input_dataset,
                "sample_output_dataset": sample_output_dataset,
            }
        )
        details = ModelDetails(model_framework, model_framework_version, resource_configuration)
        path = Path(model_path).expanduser()
        sources = find_sources(path, child_paths)
        _mlflow(dict(sources), with_requirements=False)
        with workspace.lock(STORE_LOCK, shared=True):
            with steps(f"copying {path.name}"):
                manifest, size = store_model(workspace.store, sources, is_folder=path.is_dir())
            row = (
                now_text(),
                description,
                json.dumps(tag_row, sort_keys=True),
                json.dumps(property_row, sort_keys=True),
                str(manifest),
                size,
                json.dumps(details.to_dict(), sort_keys=True),
            )
            with workspace.database.transaction() as db:
                version = next_version(db, "model", model_name)
                db.execute(
                    "INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (model_name, version, *row)
                )
        workspace.audit("model register", f"{model_name}:{version}", digest=str(manifest))
        return cls(workspace, name=model_name, version=version)

    @classmethod
    def list(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        cls,
        workspace: Workspace,
        name: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        latest: bool | None = None,
        model_framework: str | None = None,
    ) -> list[Self]:
        """Registered models, newest version first within a name; with `latest` only the newest that fits."""
        found = [
            model
            for model in cls._all(workspace, name, tags, properties)
            if model_framework is None or model.details.framework == model_framework
        ]
        newest = {model.name: model for model in reversed(found)}
        return [model for model in found if not latest or newest[model.name] is model]

    @classmethod
    def get_model_path(
        cls, model_name: str, version: int | None = None, _workspace: Workspace | None = None
    ) -> str:
        """Path of a model's file or folder, as a script asks for it.

        With a workspace the model is copied to `azureml-models/NAME/VERSION/` in the current directory; without one it
        is looked for there, the highest version when none is given, and then as `./NAME`.

        Raises:
            UsageError: a version that is no number.
            NotFoundError: there is no such model.
        """
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            raise UsageError(f"version should be an int, not {version!r}")
        if _workspace is not None:
            model = cls(_workspace, name=model_name, version=version)
            return model.download(Path(MODELS_FOLDER, model.name, str(model.version)), exist_ok=True)
        return _local_path(model_name, version)

    @property
    def model_framework(self) -> str | None:
        """As told at registration."""
        return self.details.framework

    @property
    def model_framework_version(self) -> str | None:
        """As told at registration."""
        return self.details.framework_version

    @property
    def resource_configuration(self) -> ResourceConfiguration | None:
        """As told at registration."""
        return self.details.resources

    @property
    def url(self) -> str:
        """Identifies the content, as the original's asset URL does."""
        return f"aml://asset/{self.digest}"

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files, sorted by path; every path starts with `base_name`."""
        return files_of(self._manifest())

    @property
    def base_name(self) -> str:
        """Name of the registered file or folder."""
        return str(self._manifest()["annotations"][TITLE])

    @property
    def is_file(self) -> bool:
        """Whether a single file was registered, not a folder."""
        return bool(self._manifest()["annotations"][KIND] == "file")

    def as_mlflow(self, *, with_requirements: bool = True) -> MlflowModel | None:
        """What a registered MLflow folder says of itself; None for every other model.

        Raises:
            MlflowModelError: it cannot be scored as it is.
        """
        store = self.workspace.store
        sources = {file.path: store.path(file.digest) for file in self.files}
        return _mlflow(sources, with_requirements=with_requirements)

    def download(self, target_dir: str | Path = ".", exist_ok: bool = False) -> str:
        """Copy the file or folder into `target_dir`; returns its path.

        Raises:
            ModelFileError: it exists and `exist_ok` is false; nothing is written then.
        """
        folder = Path(target_dir)
        target = folder / self.base_name
        if target.exists() and not exist_ok:
            raise ModelFileError(
                f"{target} already exists; to overwrite it, set exist_ok to True", where=str(target)
            )
        part = folder / f".{self.base_name}.{secrets.token_hex(4)}.part"
        try:
            for file in self.files:
                copy_out(self.workspace.store, file, part / file.path)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            (part / self.base_name).replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return str(target)

    def delete(self) -> None:
        """Remove this version and the blobs that nothing else needs.

        Raises:
            InUseError: an image was built from it; the message names the image.
        """
        with self.workspace.database.transaction() as db:
            users = db.execute(
                "SELECT image_name, image_version FROM image_models WHERE model_name = ? AND model_version = ? "
                "ORDER BY image_name, image_version",
                (self.name, self.version),
            ).fetchall()
            if users:
                images = [f"{row['image_name']}:{row['image_version']}" for row in users]
                raise InUseError(
                    f"model {self.id} cannot be deleted: it is used by image {', '.join(images)}",
                    where=self.id,
                    next_command=f"edgewright image delete {images[0]}",
                )
            db.execute("DELETE FROM models WHERE name = ? AND version = ?", (self.name, self.version))
        self.workspace.audit("model delete", self.id)
        collect_garbage(self.workspace)

    def serialize(self) -> dict[str, Any]:
        """What `edgewright model show` prints."""
        return super().serialize() | {
            "file": self.base_name,
            **self.details.to_dict(),
            "mimeType": self.mime_type,
            "unpack": self.unpack,
            "url": self.url,
        }

    def __repr__(self) -> str:
        return f"Model(id={self.id!r}, workspace={self.workspace.name!r})"

    def _fill(self, workspace: Workspace, row: sqlite3.Row) -> None:
        super()._fill(workspace, row)
        self.details = ModelDetails.from_dict(json.loads(row["details"]))

    def _manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = self.workspace.store.read_json(self.digest)
        return document


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_RULE, name):
        raise UsageError(
            "a model's name must be up to 255 letters, digits, '_', '.' or '-', beginning with a letter or digit "
            f"and not ending in '.' or '-', not {name!r}"
        )


def _mlflow(sources: Mapping[str, Path], *, with_requirements: bool) -> MlflowModel | None:
    """The MLflow model that a folder's files are, if they are one."""
    inside = {name.partition("/")[2]: path for name, path in sources.items()}
    if MLMODEL not in inside:
        return None
    from publisher.mlflow_model import read_mlflow

    return read_mlflow(inside, with_requirements=with_requirements)


def _local_path(name: str, version: int | None) -> str:
    folder = Path(MODELS_FOLDER, name)
    versions = sorted(int(each.name) for each in folder.glob("*") if each.name.isdecimal())
    chosen = version if version is not None else next(reversed(versions), None)
    if chosen in versions:
        entries = sorted((folder / str(chosen)).iterdir())
        if len(entries) == 1:
            return str(entries[0])
        raise ModelFileError(
            f"expected exactly one file or folder in {folder / str(chosen)}, found {len(entries)}",
            where=str(folder / str(chosen)),
        )
    if Path(name).exists():
        return str(Path(name))
    wanted = name if version is None else f"{name} version {version}"
    raise NotFoundError(
        f"ModelNotFound: no model {wanted} in {folder.absolute()}, and no {Path(name).absolute()}; give a workspace, "
        "as _workspace, to take it from there",
        where=name,
        next_command="edgewright model list",
    )
