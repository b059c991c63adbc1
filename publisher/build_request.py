"""What an image is to be built from, and the checks before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edge_containers.image_model import Platform
from publisher.builders.layer import LayerFile
from publisher.entry_script import check_entry_script
from publisher.environments import Environment, uv_platform
from publisher.errors import ScriptError, UsageError
from publisher.image_plan import APP_ROOT, DEFAULT_MESSAGES, MODELS_FOLDER, ImagePlan, PlannedModel
from publisher.models import Model

# One path part of an OCI repository name (distribution-spec), since the name is also the repository pushed to.
NAME_RULE = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
NAME_LIMIT = 128
BASES = ("none",)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One image to build.

    Attributes:
        models: at least one, none twice; each becomes a layer of its own.
        script: the entry script; None only for one model that is a single `.onnx` file.
        environment: the user's requirements; the runtime's are added.
        includes: files and folders that go beside the script. What lies below the script's folder keeps its path
            relative to it, anything else goes in under its own name.
        upgrade: resolve anew although the workspace has a lock for these requirements.
    """

    name: str
    models: tuple[Model, ...]
    script: Path | None
    environment: Environment
    includes: tuple[Path, ...] = ()
    platforms: tuple[Platform, ...] = ()
    base: str = "none"
    messages: str = DEFAULT_MESSAGES
    upgrade: bool = False
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
        return self.environment.for_scoring(bare_onnx=self.is_bare_onnx)

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
            base=self.base,
            messages=self.messages,
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
        return [LayerFile(f"{root}/{name}", source) for name, source in files.items()]


def check_request(request: BuildRequest) -> None:
    """Everything that can be known before work begins, in the order a user would look at it.

    Raises:
        UsageError: name, models, base or platform.
        ScriptError: the script or what is included.
    """
    check_image_name(request.name)
    _check_models(request)
    if request.script is None:
        _check_bare_onnx(request)
    else:
        check_entry_script(request.script)
    request.script_files()
    if request.base not in BASES:
        known = ", ".join(BASES)
        raise UsageError(f"base must be one of {known}, not {request.base!r}", where=request.base)
    if not request.platforms:
        raise UsageError("an image needs at least one platform")
    for platform in request.platforms:
        uv_platform(platform)


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
            f"model {model.id} ({model.base_name}) needs an entry script: only a single .onnx file scores without one; "
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
