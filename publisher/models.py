"""Registered models: content-addressed, versioned, shared by every image that uses them.

A model is stored as an OCI artifact manifest whose layers are its files, one blob per file, titled with its path.
So the same file in two models, or in two versions of one, is on disk once, and nothing else knows how to find it.
The manifest's digest identifies the content; `name:version` is a row of the workspace's database.

    model = Model.register(workspace, model_path="digits.onnx", model_name="digits")
    Model(workspace, name="digits").id      # "digits:1"
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from edge_containers.image_model import OCI_MANIFEST, canonical_json
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest
from publisher.database import next_version
from publisher.errors import InUseError, ModelFileError, UsageError
from publisher.garbage import STORE_LOCK, collect_garbage
from publisher.records import Filter, check_labels, matches
from publisher.registered import Registered
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace, now_text

# The path of a model inside an image holds its name, so it is one safe path part on every file system.
NAME_RULE = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?"
ARTIFACT_TYPE = "application/vnd.edgewright.model.v1"
EMPTY_CONFIG_TYPE = "application/vnd.oci.empty.v1+json"  # image-spec 1.1, "Guidance for an Empty Descriptor"
FILE_TYPE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
EXECUTABLE = "edgewright.executable"
KIND = "edgewright.model-kind"
COPY_BYTES = 1 << 20
SKIPPED_FOLDER = "__pycache__"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; `path` is relative to the folder that holds the model's file or folder."""

    path: str
    digest: ImageDigest
    size: int
    executable: bool


class Model(Registered):
    """A registered model; two versions of the same content have the same digest."""

    QUERY = (
        "SELECT * FROM models WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR version = ?2) "
        "ORDER BY name, version DESC"
    )
    NOUN, DONE = "model", "registered"
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
        *,
        steps: Steps = no_steps,
    ) -> Self:
        """Copy a file or folder into the workspace as the next version of `model_name`.

        The same content registered again is a new version that shares the stored blobs. Byte-compiled Python is left
        out of a folder. When anything fails no version exists; blobs already copied are found again next time.

        Raises:
            UsageError: a name, tag or property that cannot be.
            ModelFileError: nothing there, or something that is no plain file or folder of plain files.
        """
        _check_name(model_name)
        tag_row, property_row = check_labels("tags", tags), check_labels("properties", properties)
        path = Path(model_path).expanduser()
        sources = _sources(path)
        with workspace.lock(STORE_LOCK, shared=True):
            with steps(f"copying {path.name}"):
                files = [_store_file(workspace.store, name, source) for name, source in sources]
            manifest = _store_manifest(workspace.store, path, files)
            row = (
                now_text(),
                description,
                json.dumps(tag_row, sort_keys=True),
                json.dumps(property_row, sort_keys=True),
                str(manifest),
                sum(file.size for file in files),
            )
            with workspace.database.transaction() as db:
                version = next_version(db, "model", model_name)
                db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (model_name, version, *row))
        workspace.audit("model register", f"{model_name}:{version}", digest=str(manifest))
        return cls(workspace, name=model_name, version=version)

    @classmethod
    def list(
        cls,
        workspace: Workspace,
        name: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
    ) -> list[Self]:
        """Registered models, newest version first within a name."""
        return [
            model
            for model in cls._all(workspace, name)
            if matches(model.tags, tags) and matches(model.properties, properties)
        ]

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files, sorted by path; every path starts with `base_name`."""
        return tuple(_read_file(layer) for layer in self._manifest()["layers"])

    @property
    def base_name(self) -> str:
        """Name of the registered file or folder."""
        return str(self._manifest()["annotations"][TITLE])

    @property
    def is_file(self) -> bool:
        """Whether a single file was registered, not a folder."""
        return bool(self._manifest()["annotations"][KIND] == "file")

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
                _copy_out(self.workspace.store, file, part / file.path)
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
        return super().serialize() | {"file": self.base_name}

    def __repr__(self) -> str:
        return f"Model(id={self.id!r}, workspace={self.workspace.name!r})"

    def _manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = self.workspace.store.read_json(self.digest)
        return document


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_RULE, name):
        raise UsageError(
            "a model's name must be up to 255 letters, digits, '_', '.' or '-', beginning with a letter or digit "
            f"and not ending in '.' or '-', not {name!r}"
        )


def _sources(path: Path) -> list[tuple[str, Path]]:
    """Names inside the model and the files they come from, sorted; checks all of them before any is read."""
    if not path.exists():
        raise ModelFileError(f"no model at {path}: expected a file or a folder", where=str(path))
    base = path.resolve().name if path.name in ("", ".", "..") else path.name
    if path.is_file():
        return [(_text(base, path), path)]
    if not path.is_dir():
        raise ModelFileError(f"{path} is neither a file nor a folder", where=str(path))
    found: list[tuple[str, Path]] = []
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if name != SKIPPED_FOLDER]
        for name in [*names, *files]:
            source = Path(folder, name)
            _refuse_special(source)
            if name in files and not name.endswith(".pyc"):
                inside = PurePosixPath(base, *source.relative_to(path).parts)
                found.append((_text(str(inside), source), source))
    if not found:
        raise ModelFileError(f"folder {path} holds no file: expected a model", where=str(path))
    return sorted(found)


def _refuse_special(source: Path) -> None:
    # A link in a folder from elsewhere could publish any file of this machine, so links are not followed.
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise ModelFileError(
            f"{source} is a symbolic link; a model folder must hold plain files (copy it with 'cp -rL' first)",
            where=str(source),
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ModelFileError(
            f"{source} is no plain file; a model folder must hold plain files", where=str(source)
        )


def _text(name: str, source: Path) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelFileError(
            f"the name of {os.fsencode(source)!r} is not UTF-8; rename it", where=ascii(name)
        ) from error
    return name


def _store_file(store: ContentStore, name: str, source: Path) -> ModelFile:
    try:
        with source.open("rb") as file, store.writer(size=source.stat().st_size) as writer:
            executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
            while chunk := file.read(COPY_BYTES):
                writer.write(chunk)
    except PermissionError as error:
        raise ModelFileError(f"{source} cannot be read: {error.strerror}", where=str(source)) from error
    return ModelFile(name, writer.blob.digest, writer.blob.size, executable)


def _store_manifest(store: ContentStore, path: Path, files: list[ModelFile]) -> ImageDigest:
    empty = store.put_bytes(b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": empty.describe(EMPTY_CONFIG_TYPE).to_dict(),
        "layers": [_file_descriptor(file) for file in files],
        "annotations": {
            TITLE: PurePosixPath(files[0].path).parts[0],
            KIND: "folder" if path.is_dir() else "file",
        },
    }
    return store.put_bytes(canonical_json(document)).digest


def _file_descriptor(file: ModelFile) -> dict[str, Any]:
    annotations = {TITLE: file.path} | ({EXECUTABLE: "true"} if file.executable else {})
    return {"mediaType": FILE_TYPE, "digest": str(file.digest), "size": file.size, "annotations": annotations}


def _read_file(layer: Mapping[str, Any]) -> ModelFile:
    annotations = layer["annotations"]
    digest = ImageDigest.parse(layer["digest"])
    return ModelFile(annotations[TITLE], digest, layer["size"], annotations.get(EXECUTABLE) == "true")


def _copy_out(store: ContentStore, file: ModelFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(store.path(file.digest), target)
    if file.executable:
        target.chmod(target.stat().st_mode | stat.S_IXUSR)
