"""From desired properties to a release: pure functions.

| desired properties of `$edgeAgent`   | lastDesiredStatus | release                          |
| ------------------------------------ | ----------------- | -------------------------------- |
| valid                                | by its outcome    | tried                            |
| empty                                | 417               | none: what runs is left alone    |
| schema version other than 1.0, 1.1   | 412               | none                             |
| anything else that is not valid      | 400               | none                             |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edge_agent.release import ModuleGoal, Release
from edge_contracts.documents import canonical_json
from edge_contracts.errors import ContractError
from edge_contracts.manifest import DeploymentManifest, DesiredStatus, ModuleSettings
from edge_contracts.release import release_digest
from edge_contracts.reported import DeploymentStatusCode

INSTANCE_DIGITS = 12
"""Of the SHA-256 over a module's settings: enough to tell the few versions of one module apart."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the desired properties ask for; without a release, `code` and `description` say why."""

    version: int
    release: Release | None
    code: DeploymentStatusCode = DeploymentStatusCode.SUCCESSFUL
    description: str = ""


def read_desired(values: Mapping[str, Any], version: int) -> Verdict:
    """Judge `$edgeAgent`'s desired properties."""
    try:
        manifest = DeploymentManifest.from_edge_agent_desired(values)
    except ContractError as error:
        return Verdict(version, None, DeploymentStatusCode.of_error(error), error.message)
    loose = [module for module in manifest.modules.values() if not module.image.is_pinned]
    if loose:
        text = ", ".join(f"'{module.image}' of module {module.name}" for module in loose)
        problem = f"images must be given by digest, which {text} is not"
        return Verdict(version, None, DeploymentStatusCode.CONFIG_FORMAT_ERROR, problem)
    return Verdict(version, _release(manifest, values, version))


def read_routes(values: Mapping[str, Any]) -> DeploymentManifest:
    """`$edgeHub`'s desired properties as the routes and time to live of a manifest without modules.

    Raises:
        ContractError: they are not valid; the message names the path.
    """
    if not values:
        raise ContractError("the desired properties are empty: no routes yet", code="manifest-empty")
    neutral = DeploymentManifest.assemble((), {}).dump()["modulesContent"]["$edgeAgent"]["properties.desired"]
    return DeploymentManifest.from_edge_agent_desired(neutral, values)


def manifest_of(release: Release) -> DeploymentManifest:
    """The manifest behind a release."""
    return _parsed(release.document)


@lru_cache(maxsize=8)
def _parsed(document: str) -> DeploymentManifest:
    return DeploymentManifest.from_edge_agent_desired(json.loads(document))


def _release(manifest: DeploymentManifest, values: Mapping[str, Any], version: int) -> Release:
    goals = tuple(_goal(settings) for _, settings in sorted(manifest.modules.items()))
    return Release(release_digest(manifest.modules), version, goals, canonical_json(dict(values)))


def _goal(settings: ModuleSettings) -> ModuleGoal:
    return ModuleGoal(
        name=settings.name,
        instance_id=instance_id(settings),
        image=str(settings.image),
        running=settings.status is DesiredStatus.RUNNING,
        restart_policy=settings.restart_policy.value,
        startup_order=settings.startup_order,
    )


def instance_id(settings: ModuleSettings) -> str:
    """The same for equal processes: another image, version, env or createOptions needs another process.

    A change of status, restartPolicy, startupOrder or imagePullPolicy does not (IoT Edge recreates for those too).
    """
    identity = {
        "image": str(settings.image),
        "version": settings.version,
        "env": dict(settings.env),
        "createOptions": dict(settings.create_options),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:INSTANCE_DIGITS]
