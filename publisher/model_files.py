"""The files of a model: found on disk, checked, copied into the content store as one OCI artifact, and out again.

A model may be a file or a folder of plain files: links, pipes and devices are refused, byte-compiled Python is left out.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge_containers.image_model import OCI_MANIFEST, canonical_json
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest
from publisher.errors import ModelFileError, UsageError

ARTIFACT_TYPE = "application/vnd.edgewright.model.v1"
EMPTY_CONFIG_TYPE = "application/vnd.oci.empty.v1+json"  # image-spec 1.1, "Guidance for an Empty Descriptor"
FILE_TYPE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
EXECUTABLE = "edgewright.executable"
KIND = "edgewright.model-kind"
COPY_BYTES = 1 << 20

MLMODEL = "MLmodel"
"""The file that makes a folder an MLflow model."""
SKIPPED_FOLDER = "__pycache__"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; `path` is relative to the folder that holds the model's file or folder."""

    path: str
    digest: ImageDigest
    size: int
    executable: bool


def find_sources(path: Path, child_paths: Sequence[str] | None = None) -> list[tuple[str, Path]]:
    """Names inside the model and the files they come from, sorted; checks all of them before any is read.

    Raises:
        UsageError: `child_paths` of something that is no folder.
        ModelFileError: nothing there, or something that is no plain file or folder of plain files.
    """
    return _chosen(_sources(path), path, child_paths)


def _chosen(
    sources: list[tuple[str, Path]], path: Path, child_paths: Sequence[str] | None
) -> list[tuple[str, Path]]:
    """Those of the sources that are, or lie in, one of `child_paths`; all when there are none."""
    if child_paths is None:
        return sources
    if not path.is_dir() or isinstance(child_paths, str) or not child_paths:
        raise UsageError(
            f"child_paths must be a list of files or folders inside a folder, not {child_paths!r} of {path}",
            where="child_paths",
        )
    base = PurePosixPath(sources[0][0]).parts[0]
    found: dict[str, Path] = {}
    for child in child_paths:
        wanted = PurePosixPath(base, child)
        inside = {name: source for name, source in sources if PurePosixPath(name).is_relative_to(wanted)}
        if not inside or ".." in wanted.parts:
            raise ModelFileError(f"child path {child} doesn't exist in {path}", where=str(child))
        found |= inside
    return sorted(found.items())


def _sources(path: Path) -> list[tuple[str, Path]]:
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


def store_model(
    store: ContentStore, sources: Sequence[tuple[str, Path]], *, is_folder: bool
) -> tuple[ImageDigest, int]:
    """Copy the files into the store; the digest of the manifest that names them, and their bytes in all."""
    files = [_store_file(store, name, source) for name, source in sources]
    return _store_manifest(store, files, is_folder=is_folder), sum(file.size for file in files)


def files_of(manifest: Mapping[str, Any]) -> tuple[ModelFile, ...]:
    """The files a model's manifest names, sorted by path."""
    return tuple(_read_file(layer) for layer in manifest["layers"])


def _store_file(store: ContentStore, name: str, source: Path) -> ModelFile:
    try:
        with source.open("rb") as file, store.writer(size=source.stat().st_size) as writer:
            executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
            while chunk := file.read(COPY_BYTES):
                writer.write(chunk)
    except PermissionError as error:
        raise ModelFileError(f"{source} cannot be read: {error.strerror}", where=str(source)) from error
    return ModelFile(name, writer.blob.digest, writer.blob.size, executable)


def _store_manifest(store: ContentStore, files: list[ModelFile], *, is_folder: bool) -> ImageDigest:
    empty = store.put_bytes(b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": empty.describe(EMPTY_CONFIG_TYPE).to_dict(),
        "layers": [_file_descriptor(file) for file in files],
        "annotations": {
            TITLE: PurePosixPath(files[0].path).parts[0],
            KIND: "folder" if is_folder else "file",
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


def copy_out(store: ContentStore, file: ModelFile, target: Path) -> None:
    """Copy one file out of the store; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(store.path(file.digest), target)
    if file.executable:
        target.chmod(target.stat().st_mode | stat.S_IXUSR)
