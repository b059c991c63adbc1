"""Images of a workspace: built, listed, pushed, exported, deleted.

`ContainerImage` and `Image` carry the names of Azure ML's SDK v1. An image is an OCI index in the workspace's store,
tagged `name:version`; every build of a name is its next version, and the same inputs give the same digest under each.

    config = ContainerImage.image_configuration(execution_script="score.py", runtime="python",
                                                requirements_file="requirements.txt")
    image = ContainerImage.create(workspace, "digits", [model], config)
    image.push("registry.example.com", credentials=credentials).location     # registry.example.com/digits@sha256:…
"""

from __future__ import annotations

import builtins
import json
import shutil
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edge_containers.image_archive import manifests_of, platform_manifest, read_manifest, read_platform
from edge_containers.image_model import Descriptor, ImageConfig, Platform, document_type
from edge_contracts.image_ref import ImageDigest, ImageRef
from publisher.build_request import DOCKER, OCI, BuildRequest, check_request
from publisher.builders.layer import ROLE_ANNOTATION
from publisher.builders.oci import BuildResult, OciBuilder
from publisher.database import next_version
from publisher.environments import read_environment
from publisher.errors import NotFoundError, UsageError
from publisher.garbage import STORE_LOCK, collect_garbage
from publisher.image_configuration import ContainerImageConfig, container_image_configuration
from publisher.image_transfer import (
    Access,
    AccessOf,
    PushedImage,
    RemoteTag,
    export_image,
    pull_image,
    push_image,
    remote_tags,
)
from publisher.models import Model
from publisher.records import Filter
from publisher.registered import Registered
from publisher.sbom import sbom_of
from publisher.steps import Steps, no_steps
from publisher.target_platforms import uv_platform
from publisher.uv_runner import BuildLog
from publisher.workspace import Workspace, now_text

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials

# Architectures as the original and Docker Hub name them.
ARCHITECTURES: Mapping[str, str] = {
    "amd64": "linux/amd64",
    "arm64": "linux/arm64",
    "arm64v8": "linux/arm64",
    "arm32v7": "linux/arm/v7",
}
MODEL_NAME_LIMIT = 30
"""Characters of a base name that become the name of a model given by its path, as in the original."""


@dataclass(frozen=True, slots=True)
class LayerSize:
    """One layer of one platform, as it travels."""

    role: str
    digest: ImageDigest
    size: int
    platforms: tuple[Platform, ...]


class Image(Registered):
    """A built image.

    Attributes:
        digest: of the OCI index; what deployments name.
        size: bytes of all distinct layers.
        model_ids: the models inside, as they were given.
        image_location: `registry/repository@sha256:…` of the last push, or None.
        image_build_log_uri: path of the build log.
        image_flavor, image_type, generated_dockerfile_uri: as of the original; no Dockerfile is generated here.
        build: what the build did, on the object that `build` returned; else None.
    """

    model_ids: builtins.list[str]
    image_location: str | None
    image_build_log_uri: str
    build_seconds: float
    build: BuildResult | None = None
    creation_state = "Succeeded"
    image_flavor, image_type = "WebApiContainer", "Docker"
    generated_dockerfile_uri: str | None = None

    QUERY = (
        "SELECT images.*, (SELECT json_group_array(id) FROM (SELECT model_name || ':' || model_version AS id "
        "FROM image_models WHERE image_name = name AND image_version = version ORDER BY image_models.rowid)) "
        "AS model_ids FROM images "
        "WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR version = ?2) ORDER BY name, version DESC"
    )
    TABLE, NOUN, DONE = "images", "image", "built"
    MAKE_COMMAND = "edgewright image build -m MODEL"

    @classmethod
    def list(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        cls,
        workspace: Workspace,
        image_name: str | None = None,
        model_name: str | None = None,
        model_id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
    ) -> builtins.list[Self]:
        """Images, newest version first within a name."""
        return [
            image
            for image in cls._all(workspace, image_name, tags, properties)
            if (model_id is None or model_id in image.model_ids)
            and (model_name is None or model_name in {each.split(":")[0] for each in image.model_ids})
        ]

    @property
    def descriptor(self) -> Descriptor:
        """Of the image's index (or its one manifest, where it was pulled as such) in the workspace's store."""
        data = self.workspace.store.read_bytes(self.digest)
        return Descriptor(document_type(data, self.id), self.digest, len(data))

    @property
    def models(self) -> builtins.list[Model]:
        """The models inside."""
        return [Model(self.workspace, id=each) for each in self.model_ids]

    @property
    def labels(self) -> Mapping[str, str]:
        """What its first platform's config says of it."""
        store = self.workspace.store
        manifest = read_manifest(store, next(iter(self._manifests().values())))
        return ImageConfig.from_bytes(store.read_bytes(manifest.config.digest)).labels

    @property
    def driver_program(self) -> str | None:
        """The entry script; None for a bare ONNX model."""
        return self.labels.get("edgewright.entry-script")

    @property
    def target_runtime(self) -> dict[str, Any]:
        """What it runs under, in the original's names."""
        return {
            "runtimeType": "Python",
            "targetArchitecture": [each.architecture for each in self.platforms],
            "properties": {"pythonVersion": self.labels.get("edgewright.python")},
        }

    @property
    def assets(self) -> builtins.list[dict[str, Any]]:
        """The models inside, in the original's form."""
        return [
            {"id": each.id, "mimeType": each.mime_type, "url": each.url, "unpack": each.unpack}
            for each in self.models
        ]

    def run(self, input_data: str | bytes) -> Any:
        """Start the image on this machine, post `input_data` to it, and remove it; see `local_run.run_once`."""
        from publisher.local_run import run_once

        return run_once(self, input_data)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """What it was built for."""
        return tuple(self._manifests())

    @property
    def layers(self) -> tuple[LayerSize, ...]:
        """Distinct layers with the platforms that have them, lowest first."""
        found: dict[ImageDigest, LayerSize] = {}
        for platform, manifest in self._manifests().items():
            for layer in read_manifest(self.workspace.store, manifest).layers:
                before = found[layer.digest].platforms if layer.digest in found else ()
                role = layer.annotations.get(ROLE_ANNOTATION, "")
                found[layer.digest] = LayerSize(role, layer.digest, layer.size, (*before, platform))
        return tuple(found.values())

    def wait_for_creation(self, show_output: bool = False) -> None:
        """Images are whole when `create` returns; there is nothing to wait for."""
        if show_output:
            print(f"image {self.id}: {self.creation_state}")

    @classmethod
    def pull(
        cls,
        workspace: Workspace,
        reference: str,
        *,
        name: str | None = None,
        credentials: BasicCredentials | None = None,
        ca_file: Path | None = None,
        steps: Steps = no_steps,
    ) -> Self:
        """Bring an image of a registry into the workspace as the next version of `name` (its repository's last part).

        Raises:
            RegistryError, DigestMismatchError, DiskFullError: nothing is listed; what came is not fetched again.
        """
        access = Access(credentials, ca_file)
        ref = ImageRef.parse(reference)
        return cls(workspace, id=pull_image(workspace, ref, access, name=name, steps=steps))

    def push(
        self,
        registry: str,
        *,
        repository: str | None = None,
        tag: str | None = None,
        force: bool = False,
        credentials: BasicCredentials | None = None,
        ca_file: Path | None = None,
        steps: Steps = no_steps,
    ) -> PushedImage:
        """Push to `registry` as `repository` (the image's name by default) and `tag` (the version by default).

        Raises:
            TagMovedError: the tag names something that this workspace did not put there; `force` moves it.
            RegistryError: what the registry refused; blobs already sent are found there next time.
        """
        target = ImageRef(registry, repository or self.name, tag or str(self.version))
        pushed = push_image(self, target, Access(credentials, ca_file), force=force, steps=steps)
        self.image_location = str(pushed.location)
        return pushed

    def remote_tags(self, access_of: AccessOf) -> builtins.list[RemoteTag]:
        """What the registries say now about each tag that was pushed or pulled as this image."""
        return remote_tags(self, access_of)

    def sbom(self, platform: str | None = None) -> bytes:
        """CycloneDX JSON of one platform's locked packages (by default this machine's, else the first).

        Raises:
            NoSbomError: the image carries none and has no lock to make one from.
            PlatformNotFoundError: the image is not built for `platform`.
        """
        manifests = self._manifests()
        if platform is not None:
            wanted = platform_manifest(self.workspace.store, self.descriptor, Platform.parse(platform))
        else:
            wanted = manifests.get(Platform.host(), next(iter(manifests.values())))
        return sbom_of(self.workspace.store, wanted)

    def export(self, output_file: Path, platform: str | None = None) -> int:
        """Write the image, or one platform of it, as a file for `docker load` and skopeo (`oci-archive:FILE`).

        Returns:
            Bytes written. The file appears whole or not at all.
        """
        return export_image(self, output_file, Platform.parse(platform) if platform else None)

    def delete(self) -> None:
        """Remove this version, its build log and the blobs that nothing else needs; copies in registries stay."""
        with self.workspace.database.transaction() as db:
            db.execute("DELETE FROM images WHERE name = ? AND version = ?", (self.name, self.version))
            self.workspace.store.untag(self.id)
        _build_log(self.workspace, self.name, self.version).unlink(missing_ok=True)
        self.workspace.audit("image delete", self.id)
        collect_garbage(self.workspace)

    def serialize(self) -> dict[str, Any]:
        """What `edgewright image show` prints."""
        return super().serialize() | {
            "creationState": self.creation_state,
            "imageFlavor": self.image_flavor,
            "imageType": self.image_type,
            "driverProgram": self.driver_program,
            "targetRuntime": self.target_runtime,
            "modelIds": self.model_ids,
            "imageLocation": self.image_location,
            "platforms": [str(each) for each in self.platforms],
            "layers": [
                {
                    "role": layer.role,
                    "digest": str(layer.digest),
                    "sizeBytes": layer.size,
                    "platforms": [str(each) for each in layer.platforms],
                }
                for layer in self.layers
            ],
            "buildSeconds": round(self.build_seconds, 3),
            "imageBuildLogUri": self.image_build_log_uri,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, digest={str(self.digest)!r})"

    def _fill(self, workspace: Workspace, row: sqlite3.Row) -> None:
        super()._fill(workspace, row)
        self.image_location, self.image_build_log_uri = row["image_location"], row["build_log"]
        self.build_seconds = row["build_seconds"]
        self.model_ids = json.loads(row["model_ids"])

    def _manifests(self) -> dict[Platform, Descriptor]:
        """Each platform's manifest; attestations, listed as platform `unknown`, are none."""
        store = self.workspace.store
        found = {}
        for manifest in manifests_of(store, self.descriptor):
            platform = manifest.platform or read_platform(store, manifest)
            if platform.os != "unknown":
                found[platform] = manifest
        return found


class ContainerImage(Image):
    """An image that scores over HTTP and messages."""

    image_configuration = staticmethod(container_image_configuration)

    @classmethod
    def create(
        cls,
        workspace: Workspace,
        name: str,
        models: Sequence[Model | str],
        image_config: ContainerImageConfig,
        *,
        steps: Steps = no_steps,
    ) -> Self:
        """Build the image, and push it to the workspace's registry if it has one; returns when that is done.

        The registry is the one of `[azure]`, else that of the embedded hub where it runs; without one `image_location`
        is None until `push`.

        A model may be given by its id, or as the path of a file or folder, which is registered under its own name.

        Raises:
            UsageError: no model, one of them twice, or something that is none.
            PublishError: what stopped the build; no image is listed then.
            RegistryError: what the registry refused; the image is listed, and can be pushed later.
        """
        settings = workspace.settings
        python = settings.environment.python
        environment = read_environment(image_config.requirements_file, image_config.conda_file, python)
        for each in environment.notes:
            warnings.warn(each, stacklevel=2)
        request = BuildRequest(
            name=name,
            models=tuple(_model(workspace, each) for each in models),
            script=image_config.execution_script,
            environment=environment,
            includes=image_config.dependencies,
            platforms=image_config.platforms or default_platforms(workspace),
            base=image_config.base_image or settings.image.default_base,
            base_credentials=image_config.credentials_of_base,
            runtime=image_config.runtime,
            builder=DOCKER if image_config.docker_file else OCI,
            docker_file=image_config.docker_file,
            tags=image_config.tags,
            properties=image_config.properties,
            description=image_config.description,
        )
        image = cls.from_request(workspace, request, steps=steps)
        if (registry := workspace.registry) is not None:
            from publisher.credentials import credentials_for

            image.push(registry, credentials=credentials_for(registry, workspace=workspace), steps=steps)
        return image

    @classmethod
    def from_request(cls, workspace: Workspace, request: BuildRequest, *, steps: Steps = no_steps) -> Self:
        """Build what a request describes, as `edgewright image build` does; see `create`."""
        request = request.with_own_script()
        check_request(request)
        log = BuildLog(workspace.logs / f"image-{request.name}.log")
        for line in request.environment.notes:
            log.write("environment", line)
        # Always in this order, image name before store, so that two commands cannot wait for each other.
        with workspace.lock(f"image-{request.name}"), workspace.lock(STORE_LOCK, shared=True):
            packages = request.package_sources(workspace.settings.environment)
            builder = _builder(request)(workspace, log, steps, packages, offline=request.locked)
            result = builder.build(request)
            log.write("layers", _layers_text(result))
            version = _record(workspace, request, result, log)
        workspace.audit("image build", f"{request.name}:{version}", digest=str(result.index.digest))
        image = cls(workspace, name=request.name, version=version)
        image.build = result
        return image


class IotContainerImage(ContainerImage):
    """An image for a device, by pip requirements, as the original's IoT package asks for it."""

    @staticmethod
    def image_configuration(  # type: ignore[override]  # noqa: PLR0917 - the original's, different as it is
        execution_script: str,
        architecture: str,
        requirements: str | None = None,
        docker_file: str | None = None,
        dependencies: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> ContainerImageConfig:
        """Check and hold how an image is to be made; `architecture` is amd64 or arm64v8.

        Raises:
            ScriptError, UsageError: as `ContainerImage.image_configuration`; an architecture images are not built for.
        """
        platform = Platform.parse(ARCHITECTURES.get(architecture.lower(), architecture))
        uv_platform(platform)
        return container_image_configuration(
            execution_script,
            "python",
            docker_file=docker_file,
            dependencies=dependencies,
            tags=tags,
            properties=properties,
            description=description,
            requirements_file=requirements,
            platforms=[str(platform)],
        )


def _builder(request: BuildRequest) -> type[OciBuilder]:
    if request.builder != DOCKER:
        return OciBuilder
    from publisher.builders.docker import DockerBuilder

    return DockerBuilder


def _model(workspace: Workspace, given: object) -> Model:
    """What the original takes for a model: one, its id, or a path, which is registered under its base name."""
    if isinstance(given, Model):
        return given
    if not isinstance(given, str):
        raise UsageError(
            f"a model must be a Model, the id of one, or a path, not {type(given).__name__}", where="models"
        )
    if "://" in given:
        raise UsageError(f"model {given} is a URL: download it, and register the file", where=given)
    try:
        return Model(workspace, id=given)
    except (NotFoundError, UsageError):
        path = Path(given)
        if not path.exists():
            raise
    return Model.register(workspace, path, path.absolute().name[:MODEL_NAME_LIMIT].rstrip(".-"))


def default_platforms(workspace: Workspace) -> tuple[Platform, ...]:
    """The platforms of `edgewright.toml`."""
    return tuple(Platform.parse(each) for each in workspace.settings.image.platforms)


def _build_log(workspace: Workspace, name: str, version: int) -> Path:
    return workspace.logs / "images" / name / f"{version}.log"


def _kept_log(workspace: Workspace, name: str, version: int, log: BuildLog) -> Path:
    """The log of the last build of a name, kept for the version it became."""
    kept = _build_log(workspace, name, version)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log.path, kept)
    return kept


def _layers_text(result: BuildResult) -> str:
    return "\n".join(
        f"{each.platform} {layer.role} {layer.descriptor.digest} {layer.descriptor.size} bytes, "
        f"{'reused' if layer.reused else f'made in {layer.seconds:.1f} s'}"
        for each in result.platforms
        for layer in each.layers
    )


def _record(workspace: Workspace, request: BuildRequest, result: BuildResult, log: BuildLog) -> int:
    """Name a built image: its row and its tag appear together."""
    with workspace.database.transaction() as db:
        for model in request.models:
            found = db.execute(
                "SELECT 1 FROM models WHERE name = ? AND version = ?", (model.name, model.version)
            ).fetchone()
            if found is None:
                raise NotFoundError(f"model {model.id} was deleted while the image was built", where=model.id)
        version = next_version(db, "image", request.name)
        row = (
            now_text(),
            request.description,
            json.dumps(dict(request.tags), sort_keys=True),
            json.dumps(dict(request.properties), sort_keys=True),
            str(result.index.digest),
            result.size_bytes,
            None,
            str(_kept_log(workspace, request.name, version, log)),
            result.seconds,
        )
        db.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (request.name, version, *row)
        )
        db.executemany(
            "INSERT INTO image_models VALUES (?, ?, ?, ?)",
            [(request.name, version, model.name, model.version) for model in request.models],
        )
        workspace.store.tag(f"{request.name}:{version}", result.index)
    return version
