"""From an Azure ML v2 deployment file to a request for an image: models registered, what it says put in place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from publisher.build_request import BuildRequest
from publisher.deployment_file import DeploymentFile, FileModel
from publisher.environments import Environment
from publisher.garbage import STORE_LOCK
from publisher.model_files import find_sources, store_model
from publisher.models import NAME_RULE, Model
from publisher.steps import Steps
from publisher.workspace import Workspace

MODEL_NAME_LIMIT = 30
"""Characters of a base name that become a model's name, as in the original."""


def deployment_model(workspace: Workspace, deployment: DeploymentFile, steps: Steps) -> Model:
    """The registered model; a file is registered unless the same content is, under the same name."""
    given = deployment.model
    if not isinstance(given, FileModel):
        return Model(workspace, id=given)
    name = given.name or _model_name(given.path)
    sources = find_sources(given.path)
    with workspace.lock(STORE_LOCK, shared=True), steps(f"reading {given.path.name}"):
        digest, _ = store_model(workspace.store, sources, is_folder=given.path.is_dir())
    same = [each for each in Model.list(workspace, name=name) if each.digest == digest]
    return same[0] if same else Model.register(workspace, given.path, name, steps=steps)


def deployment_request(request: BuildRequest, deployment: DeploymentFile, file: Path) -> BuildRequest:
    """`request` with what the file says; it has the model already, and its own base and tags win."""
    environment = request.environment
    if deployment.conda is not None:
        environment = environment.joined(Environment.from_conda(deployment.conda, environment.python))
    return replace(
        request,
        script=deployment.script,
        includes=_beside(deployment, file),
        environment=replace(environment, notes=(*deployment.notes, *environment.notes)),
        base=deployment.base or request.base,
        variables=deployment.variables,
        tags={**deployment.tags, **request.tags},
        properties={**deployment.properties, **request.properties},
        description=request.description or deployment.description,
    )


def _beside(deployment: DeploymentFile, file: Path) -> tuple[Path, ...]:
    """What the code folder holds for the script: not the script, the model, the deployment file or hidden files."""
    if deployment.code is None:
        return ()
    left_out = {file.resolve()}
    if deployment.script is not None:
        left_out.add(deployment.script.resolve())
    if isinstance(deployment.model, FileModel):
        left_out.add(deployment.model.path.resolve())
    return tuple(
        each
        for each in sorted(deployment.code.iterdir())
        if each.resolve() not in left_out and not each.name.startswith(".")
    )


def _model_name(path: Path) -> str:
    name = path.resolve().name[:MODEL_NAME_LIMIT].rstrip(".-")
    kept = "".join(each if re.fullmatch(r"[A-Za-z0-9_.-]", each) else "-" for each in name)
    return kept if re.fullmatch(NAME_RULE, kept) else "model"
