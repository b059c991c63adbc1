"""Builds what lies below an image's own layers with a Docker engine: where steps must be run, only an engine can.

    the user's Dockerfile      whole, or steps alone (no FROM), which then start from the base
    a conda environment        a generated Dockerfile that creates it with micromamba
    neither                    the base, by way of the engine

The result is taken out of the engine (`docker save`) into the workspace's store as a base, looked into like any other,
and the dependencies, runtime, model and script layers go on top as the in-process builder makes them. So images of both
builders are listed, pushed and deleted alike, and a new model sends a model layer. What the engine made is not
reproducible; its own cache makes a second build quick, so the images it is left with are named `edgewright-build/…`.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_containers.image_archive import add_images
from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_MANIFEST,
    ImageConfig,
    ImageManifest,
    Platform,
)
from publisher.bases.base import BaseImage, check_fits
from publisher.bases.look import look_into
from publisher.bases.sources import from_docker_archive
from publisher.build_request import BuildRequest
from publisher.builders.oci import OciBuilder
from publisher.conda_file import CondaEnvironment
from publisher.errors import EngineError, UsageError

if TYPE_CHECKING:
    import docker

MICROMAMBA = "docker.io/mambaorg/micromamba:2"
CONDA_PREFIX = "/opt/edgewright/conda"
CONDA_FILE = ".edgewright-environment.yml"
DOCKERFILE = ".edgewright-Dockerfile"
REPOSITORY = "edgewright-build"
TIMEOUT_S = 1800
SHOWN_LINES = 3

_FROM = re.compile(r"(?im)^\s*FROM\s")


class DockerBuilder(OciBuilder):
    """Like `OciBuilder`, on bases that an engine builds; the engine is that of DOCKER_HOST, or this machine's."""

    def _bases(self, request: BuildRequest, work: Path) -> Mapping[Platform, BaseImage]:
        steps = base_steps(request)
        below = {} if _FROM.search(steps) else super()._bases(request, work)
        if not below and not _FROM.search(steps):
            raise UsageError(
                "builder docker needs something to start from: a base (--base), or a Dockerfile with FROM",
                where=request.base,
            )
        with engine_client() as client:
            return {
                platform: self._built(client, request, platform, work, below=below.get(platform), steps=steps)
                for platform in request.platforms
            }

    def _built(
        self,
        client: docker.DockerClient,
        request: BuildRequest,
        platform: Platform,
        work: Path,
        *,
        below: BaseImage | None,
        steps: str,
    ) -> BaseImage:
        context, saved = work / "context.tar", work / "saved.tar"
        if below is not None:
            steps = f"FROM {self._loaded(client, below, work)}\n{steps}"
        with self._steps(f"building {request.name} for {platform} with Docker"):
            write_context(context, steps, request)
            tag = f"{REPOSITORY}/{request.name}:{str(platform).replace('/', '-')}"
            digest = self._run(client, context, platform, tag)
        with self._steps(f"taking {request.name} for {platform} out of Docker"):
            with saved.open("wb") as file:
                for chunk in client.api.get_image(digest):
                    file.write(chunk)
            known = {diff_id: layer for layer, diff_id in below.brought.layers} if below else {}
            level = self._workspace.settings.image.dependencies_compression
            brought = from_docker_archive(saved, self._store, platform, level, known)
            base = BaseImage(platform, brought, look_into(self._store, brought, request.name))
        check_fits(base, request.environment.python)
        return base

    def _loaded(self, client: docker.DockerClient, base: BaseImage, work: Path) -> str:
        """The base in the engine, under a name that stands for its content."""
        config = ImageConfig(
            base.platform, tuple(diff_id for _, diff_id in base.brought.layers), env=base.brought.env
        )
        layers = tuple(layer for layer, _ in base.brought.layers)
        manifest = ImageManifest(self._store.put_bytes(config.to_bytes()).describe(OCI_CONFIG), layers)
        described = self._store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=base.platform)
        name = f"{REPOSITORY}/base:{described.digest.hex[:32]}"
        if not client.images.list(name):
            archive = work / "base.tar"
            with archive.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
                add_images(tar, self._store, {name: described})
            with archive.open("rb") as written:
                client.images.load(written)
        return name

    def _run(self, client: docker.DockerClient, context: Path, platform: Platform, tag: str) -> str:
        """Build; what the engine says goes to the log as it comes, and its errors are in what it says."""
        with context.open("rb") as file:
            stream = client.api.build(
                fileobj=file,
                custom_context=True,
                dockerfile=DOCKERFILE,
                tag=tag,
                platform=str(platform),
                rm=True,
                forcerm=True,
                decode=True,
                timeout=TIMEOUT_S,
            )
            try:
                for line in stream_lines(stream):
                    self._log.write_line(line)
            finally:
                # An engine ends the build when nobody listens any more.
                stream.close()
        return str(client.images.get(tag).id)


def base_steps(request: BuildRequest) -> str:
    """The Dockerfile's text, without FROM where it starts from the base."""
    conda = request.environment.conda
    steps = ""
    if request.docker_file is not None:
        steps = request.docker_file.read_text(encoding="utf-8")
    if conda is None:
        return steps
    return f"{conda_dockerfile(conda, request.environment.python)}{_without_from(steps)}"


def _without_from(steps: str) -> str:
    if _FROM.search(steps):
        raise UsageError(
            "a conda environment is created from micromamba's image; leave FROM out of the Dockerfile to add steps to it",
            where="docker_file",
        )
    return steps


def conda_dockerfile(conda: CondaEnvironment, python: str) -> str:
    """A Dockerfile that creates a conda environment whole, its `pip:` list too, with the image's Python."""
    variables = "".join(f'ENV {name}="{_quoted(value)}"\n' for name, value in sorted(conda.variables.items()))
    return (
        f"FROM {MICROMAMBA}\n"
        "USER root\n"
        f"COPY {CONDA_FILE} /tmp/environment.yml\n"
        f"RUN micromamba create --yes --prefix {CONDA_PREFIX} --file /tmp/environment.yml python={python} \\\n"
        "    && micromamba clean --all --yes\n"
        f"ENV PATH={CONDA_PREFIX}/bin:$PATH\n"
        f"{variables}"
    )


def _quoted(value: str) -> str:
    return re.sub(r'(["\\$])', r"\\\1", value).replace("\n", " ")


def write_context(path: Path, steps: str, request: BuildRequest) -> None:
    """What the engine gets: the Dockerfile's folder as `.dockerignore` leaves it, the steps, the conda file."""
    own = {DOCKERFILE: steps.encode()}
    if request.environment.conda is not None:
        own[CONDA_FILE] = request.environment.conda.text
    with tarfile.open(path, "w") as tar:
        if request.docker_file is not None:
            folder = request.docker_file.absolute().parent
            for name in sorted(_taken(folder)):
                tar.add(folder / name, name, recursive=False)
        for name, data in own.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _taken(folder: Path) -> Iterable[str]:
    from docker.utils import exclude_paths

    ignore = folder / ".dockerignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return list(exclude_paths(str(folder), patterns))


def stream_lines(stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of an engine's progress stream.

    Raises:
        EngineError: the stream has an error in it, which the engine's status code did not tell.
    """
    last: list[str] = []
    for item in stream:
        error = item.get("errorDetail", {}).get("message") or item.get("error")
        if error:
            before = " / ".join(last[-SHOWN_LINES:])
            raise EngineError(
                f"Docker's build failed: {error.strip()}" + (f" (after: {before})" if before else "")
            )
        text = str(item.get("stream") or item.get("status") or "").rstrip()
        if text:
            last = [*last[-SHOWN_LINES:], text]
            yield text


@contextmanager
def engine_client() -> Iterator[docker.DockerClient]:
    """A client of the engine.

    Raises:
        EngineError: the SDK is not installed, no engine answers, or it refuses.
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError as error:
        raise EngineError(
            f"builder docker needs Docker's SDK, which is not installed: {error}",
            next_command="pip install 'edgewright[docker]'",
        ) from error
    try:
        client = docker.DockerClient.from_env(timeout=TIMEOUT_S)
        client.ping()
    except DockerException as error:
        host = os.environ.get("DOCKER_HOST", "its usual socket")
        raise EngineError(
            f"no Docker engine answers at {host}: {error}; start it, or build without --builder docker",
            where=host,
        ) from error
    try:
        yield client
    except DockerException as error:
        raise EngineError(f"Docker refused: {error}") from error
    finally:
        client.close()
