"""What an image is to be built from, and the checks before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import urlsplit

from edge_containers.image_model import Platform
from edge_containers.module_view import is_own_variable
from publisher.bases.sources import BaseCredentials
from publisher.builders.layer import LayerFile
from publisher.config import EnvironmentSettings
from publisher.entry_script import check_entry_script
from publisher.environments import Environment
from publisher.errors import GoldenError, ScriptError, UsageError
from publisher.golden import SCHEMA, read_golden, recording_platform, recording_python
from publisher.image_plan import (
    APP_ROOT,
    DEFAULT_MESSAGES,
    GOLDEN_FOLDER,
    MODELS_FOLDER,
    NO_BASE,
    PYTHON,
    RUNTIMES,
    SPARK,
    ImagePlan,
    PlannedModel,
)
from publisher.models import Model
from publisher.target_platforms import uv_platform

# One path part of an OCI repository name (distribution-spec), since the name is also the repository pushed to.
NAME_RULE = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
NAME_LIMIT = 128
OCI, DOCKER = BUILDERS = ("oci", "docker")
INDEX_SCHEMES = ("https", "http", "file")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One image to build.

    Attributes:
        models: at least one, none twice; each becomes a layer of its own.
        script: the entry script; None only for one model that is a single `.onnx` file or an MLflow folder.
        environment: the user's requirements; the runtime's are added.
        includes: files and folders that go beside the script. What lies below the script's folder keeps its path
            relative to it, anything else goes in under its own name.
        settings_files: generated files beside the script.
        variables: environment variables of the script's own.
        runtime: `python`, or `spark-py`: the base has a Java runtime, and PySpark or it is installed.
        builder: `oci` (in process) or `docker`, for steps that must be run below the image's own layers.
        docker_file: those steps, for builder docker.
        base: what it stands on, as `publisher.bases.base` says; `none` for nothing.
        base_credentials: of the registry the base is taken from; Docker's own login without.
        golden: file or folder of golden requests, or `schema` for the script's own sample.
        upgrade: resolve anew although the workspace has a lock for these requirements, and the tag of the base.
        locked: build from the workspace's locks and what is on this machine, or not at all.
        index, extra_index: package indexes in place of the workspace's; they may hold credentials.
    """

    name: str
    models: tuple[Model, ...]
    script: Path | None
    environment: Environment
    includes: tuple[Path, ...] = ()
    settings_files: Mapping[str, bytes] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    base: str = NO_BASE
    base_credentials: BaseCredentials | None = field(default=None, repr=False)
    messages: str = DEFAULT_MESSAGES
    golden: Path | None = None
    runtime: str = PYTHON
    builder: str = OCI
    docker_file: Path | None = None
    upgrade: bool = False
    locked: bool = False
    index: str = field(default="", repr=False)
    extra_index: tuple[str, ...] = field(default=(), repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None

    @property
    def is_bare_onnx(self) -> bool:
        """Whether the model itself says how to score it."""
        return self.script is None

    @property
    def scoring_environment(self) -> Environment:
        """The requirements with the runtime's own."""
        environment = self.environment
        if environment.conda is not None and self.builder == DOCKER:
            # The engine installs the conda file whole; what else is asked for goes on top.
            own = tuple(
                each for each in environment.requirements if each not in environment.conda.requirements
            )
            environment = replace(environment, requirements=own)
        return environment.for_scoring(bare_onnx=self.is_bare_onnx)

    def package_sources(self, settings: EnvironmentSettings) -> EnvironmentSettings:
        """The workspace's index settings, with those of this build in their place."""
        if not self.index and not self.extra_index:
            return settings
        return replace(
            settings,
            index=self.index or settings.index,
            extra_index=self.extra_index or settings.extra_index,
            no_index=False,
        )

    @property
    def own_variables(self) -> Mapping[str, str]:
        """The script's own environment variables, with those that activating its conda environment would set."""
        conda = self.environment.conda
        return {**(conda.variables if conda else {}), **self.variables}

    def with_own_script(self) -> Self:
        """The request with the script and the requirements that an MLflow model brings, where none is given.

        Raises:
            MlflowModelError: the folder cannot be scored as it is.
        """
        if self.script is not None or len(self.models) != 1 or (model := self.models[0].as_mlflow()) is None:
            return self
        from publisher.mlflow_image import mlflow_environment, mlflow_script, mlflow_settings

        python = self.environment.python
        return replace(
            self,
            script=mlflow_script(model),
            settings_files=mlflow_settings(model, self.models[0].base_name),
            environment=mlflow_environment(model, python).joined(self.environment),
        )

    def plan(self) -> ImagePlan:
        """What the image consists of."""
        return ImagePlan(
            models=tuple(
                PlannedModel(model.name, model.version, model.base_name if model.is_file else None)
                for model in self.models
            ),
            entry_script=self.script.name if self.script else None,
            python=self.environment.python,
            platforms=self.platforms,
            messages=self.messages,
            variables=self.own_variables,
            golden=self.golden is not None,
            runtime=self.runtime,
        )

    def script_files(self) -> list[LayerFile]:
        """The script layer's files.

        Raises:
            ScriptError: an included file is missing, or two would have the same path.
        """
        if self.script is None:
            return []
        files = {self.script.name: self.script}
        for include in self.includes:
            for name, source in _included(include, self.script.parent):
                if name.split("/")[0] == MODELS_FOLDER:
                    raise ScriptError(
                        f"{source} would be {name} in the image, where models are; rename it",
                        where=str(source),
                    )
                if files.setdefault(name, source).resolve() != source.resolve():
                    raise ScriptError(
                        f"{source} and {files[name]} would both be {name} in the image", where=str(source)
                    )
        root = APP_ROOT.strip("/")
        generated = [LayerFile(f"{root}/{name}", data) for name, data in self.settings_files.items()]
        return [*(LayerFile(f"{root}/{name}", source) for name, source in files.items()), *generated]


def check_request(request: BuildRequest) -> None:
    """Everything that can be known before work begins, in the order a user would look at it.

    Raises:
        UsageError: name, models, platform or package index.
        CondaPackageError: packages that only conda has.
        ScriptError: the script or what is included.
    """
    check_image_name(request.name)
    _check_models(request)
    if request.script is None:
        _check_bare_onnx(request)
    else:
        check_entry_script(request.script)
    request.script_files()
    if not request.platforms:
        raise UsageError("an image needs at least one platform")
    for platform in request.platforms:
        uv_platform(platform)
    _check_runtime(request)
    _check_builder(request)
    _check_environment(request)
    for name in request.own_variables:
        if not is_own_variable(name):
            raise UsageError(
                f"environment variable {name!r} cannot be set by an image: it is none, or the runtime's own",
                where=name,
            )
    _check_golden(request)


def _check_golden(request: BuildRequest) -> None:
    if request.golden is None:
        return
    recording_platform(request.platforms)
    recording_python(request.environment.python)
    if str(request.golden) != SCHEMA:
        read_golden(request.golden)
    taken = f"{APP_ROOT.strip('/')}/{GOLDEN_FOLDER}/"
    if any(file.path.startswith(taken) for file in request.script_files()):
        raise GoldenError(
            f"an included file would be in {GOLDEN_FOLDER}/, where golden cases go; rename its folder"
        )


def _check_runtime(request: BuildRequest) -> None:
    if request.runtime not in RUNTIMES:
        raise UsageError(
            f"runtime must be {' or '.join(RUNTIMES)}, not {request.runtime!r}", where=request.runtime
        )
    if request.runtime == SPARK and (request.base, request.builder) == (NO_BASE, OCI):
        raise UsageError(
            "runtime spark-py needs a base with a Java runtime, and this image has base 'none'; give one with --base",
            where=request.runtime,
            next_command="edgewright image base create --with-jre",
        )


def _check_builder(request: BuildRequest) -> None:
    if request.builder not in BUILDERS:
        raise UsageError(
            f"builder must be {' or '.join(BUILDERS)}, not {request.builder!r}", where=request.builder
        )
    if request.docker_file is None:
        return
    if request.builder != DOCKER:
        raise UsageError("a Dockerfile's steps need an engine: add --builder docker", where="--docker-file")
    if not request.docker_file.is_file():
        raise UsageError(f"Dockerfile {request.docker_file} does not exist", where=str(request.docker_file))


def _check_environment(request: BuildRequest) -> None:
    if request.locked and request.upgrade:
        raise UsageError("--locked keeps the lock and --upgrade makes a new one: give one of them")
    for url in (request.index, *request.extra_index):
        # The value may hold a password, so the message does not show it. uv splits its list at blanks.
        if url and (urlsplit(url).scheme not in INDEX_SCHEMES or any(each.isspace() for each in url)):
            known = ", ".join(f"{each}://" for each in INDEX_SCHEMES)
            raise UsageError(f"a package index must be a URL beginning with {known}", where="--index")
    if request.environment.conda is not None and request.builder != DOCKER:
        request.environment.conda.check_wheels()


def check_image_name(name: str) -> None:
    """Refuse what could not be pushed under that name."""
    if len(name) > NAME_LIMIT or not re.fullmatch(NAME_RULE, name):
        raise UsageError(
            f"an image's name must be up to {NAME_LIMIT} lower-case letters and digits joined by '.', '_' or '-', "
            f"not {name!r}; give another with -t NAME",
            where=name,
        )


def _check_models(request: BuildRequest) -> None:
    ids = [model.id for model in request.models]
    if not ids:
        raise UsageError(f"image {request.name} needs at least one model", where=request.name)
    twice = next((each for each in ids if ids.count(each) > 1), None)
    if twice is not None:
        raise UsageError(f"model {twice} is given twice for image {request.name}", where=twice)


def _check_bare_onnx(request: BuildRequest) -> None:
    model = request.models[0]
    if request.includes:
        raise ScriptError("files can be included only beside an entry script; give one with -s SCRIPT")
    if len(request.models) > 1:
        raise ScriptError(
            f"an image of {len(request.models)} models needs an entry script that says which is asked what; "
            "give one with -s SCRIPT",
            where=request.name,
        )
    if not (model.is_file and PurePosixPath(model.base_name).suffix == ".onnx"):
        raise ScriptError(
            f"model {model.id} ({model.base_name}) needs an entry script: only a single .onnx file and an MLflow folder score without one; "
            "give one with -s SCRIPT",
            where=model.id,
        )


def _included(include: Path, root: Path) -> Iterator[tuple[str, Path]]:
    if include.is_dir():
        sources = [Path(folder, name) for folder, _, names in os.walk(include) for name in sorted(names)]
    elif include.is_file():
        sources = [include]
    else:
        raise ScriptError(f"included file {include} does not exist", where=str(include))
    below = include.absolute().is_relative_to(root.absolute())
    start = root.absolute() if below else include.absolute().parent
    for source in sources:
        if "__pycache__" not in source.parts and source.suffix != ".pyc":
            yield source.absolute().relative_to(start).as_posix(), source
