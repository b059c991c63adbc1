"""How two deployment manifests differ, by what a device would notice.

Rules:
- createOptions is compared as the document it is, however it was cut; env values as the text a module gets.
- `version` of a schema, order of members and defaults written out are no differences; `configuration`, which the hub adds,
  is left out.
- Values under secret keys are masked; that they differ is still said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge_contracts.manifest import DeploymentManifest
from edge_contracts.module_settings import ModuleSettings
from edge_contracts.redact import redact_document

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place that differs; `before` or `after` is None where there is nothing."""

    path: str
    change: str
    before: Any
    after: Any


def differences(before: DeploymentManifest, after: DeploymentManifest) -> list[Difference]:
    """All of them, by path; empty for manifests that mean the same."""
    return sorted(_walk(_meaning(before), _meaning(after), ""), key=lambda each: each.path)


def _meaning(manifest: DeploymentManifest) -> dict[str, Any]:
    system = {"edgeAgent": manifest.edge_agent, "edgeHub": manifest.edge_hub}
    return {
        "modules": {name: _module(module) for name, module in manifest.modules.items()},
        "systemModules": {name: _module(module) for name, module in system.items()},
        "routes": {
            route.name: {"route": route.text, "priority": route.priority, "timeToLiveSecs": route.ttl_s or 0}
            for route in manifest.routes
        },
        "registryCredentials": {
            each.address.lower(): {"username": each.username, "password": each.password.reveal()}
            for each in manifest.credentials
        },
        "storeAndForwardConfiguration": {"timeToLiveSecs": manifest.store_and_forward_ttl_s},
        "twins": manifest.module_twins,
    }


def _module(module: ModuleSettings) -> dict[str, Any]:
    return {
        "image": str(module.image),
        "version": module.version,
        "status": module.status.value,
        "restartPolicy": module.restart_policy.value,
        "imagePullPolicy": module.image_pull_policy.value,
        "startupOrder": module.startup_order,
        "env": module.env,
        "createOptions": module.create_options,
    }


def _walk(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in {**before, **after}:
            here = f"{path}.{key}" if path else str(key)
            yield from _walk(before.get(key, ABSENT), after.get(key, ABSENT), here)
    elif before is ABSENT:
        yield Difference(path, "added", None, _shown(path, after))
    elif after is ABSENT:
        yield Difference(path, "removed", _shown(path, before), None)
    elif before != after or type(before) is not type(after):
        yield Difference(path, "changed", _shown(path, before), _shown(path, after))


def _shown(path: str, value: Any) -> Any:
    key = path.rpartition(".")[2]
    shown = redact_document({key: value})
    assert isinstance(shown, dict)
    return shown[key]
