"""Layered deployments: manifests that add modules, routes and properties to those of a base deployment.

Rules (IoT Hub, "Deploy IoT Edge modules at scale"):
- A layer names members by path: `properties.desired.modules.NAME` and
  `properties.desired.runtime.settings.registryCredentials.ID` of `$edgeAgent`, `properties.desired.routes.NAME` of
  `$edgeHub`; of a module's own twin `properties.desired.PATH`, which is merged in, or a whole `properties.desired`, which
  replaces what lower layers set.
- A layer has no system modules: the base has them, and its priority is lower than every layer's.
- Where two layers name the same module or route, that of the higher priority holds wholly.

>>> layer = Layer.assemble([], {"up": "FROM /messages/* INTO $upstream"})
>>> list(layer.dump()["modulesContent"]["$edgeHub"])
['properties.desired.routes.up']
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_contracts.documents import member
from edge_contracts.errors import ContractError, unexpected
from edge_contracts.manifest import (
    DeploymentManifest,
    Finding,
    RegistryCredential,
    Severity,
    content_of,
    dump_routes,
)
from edge_contracts.module_settings import CODE, ModuleSettings, RestartPolicy, check_module_name
from edge_contracts.routes import Route
from edge_contracts.twin import validate_section

_CONTENT = "modulesContent"
_DESIRED = "properties.desired"
_MODULES = f"{_DESIRED}.modules."
_CREDENTIALS = f"{_DESIRED}.runtime.settings.registryCredentials."
_ROUTES = f"{_DESIRED}.routes."
_UNLIMITED = 2**63
"""Sizes are the business of the merged manifest."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layered manifest that was read strictly. `document` is the whole of it, with passwords: never print it."""

    document: dict[str, Any] = field(repr=False)
    modules: dict[str, ModuleSettings]
    routes: tuple[Route, ...]
    credentials: tuple[RegistryCredential, ...]

    @classmethod
    def assemble(
        cls,
        modules: Iterable[ModuleSettings],
        routes: Iterable[Route] | Mapping[str, str | Mapping[str, Any]],
        credentials: Iterable[RegistryCredential] = (),
    ) -> Layer:
        """Write a layer and read it back.

        Raises:
            ContractError: as `parse`.
        """
        listed = list(modules)
        agent = {f"{_MODULES}{module.name}": module.dump() for module in listed}
        agent |= {f"{_CREDENTIALS}{each.id}": each.dump() for each in credentials}
        hub = {f"{_ROUTES}{name}": route for name, route in dump_routes(routes).items()}
        twins = {module.name: {_DESIRED: module.desired} for module in listed if module.desired is not None}
        content = {"$edgeAgent": agent, "$edgeHub": hub, **twins}
        return cls.parse({_CONTENT: {name: twin for name, twin in content.items() if twin}})

    @classmethod
    def parse(cls, document: Mapping[str, Any] | str | bytes) -> Layer:
        """Read a layer strictly.

        Raises:
            ContractError: codes `manifest`, `route`, `image-reference`, `image-digest`, `create-options`, `twin`; every
                message names the path inside the document.
        """
        whole = content_of(document)
        content = member(whole, _CONTENT, "", dict, "a JSON object of layers", code=CODE)
        if not content:
            raise unexpected(_CONTENT, "a JSON object with at least one layer", content, code=CODE)
        modules: dict[str, ModuleSettings] = {}
        routes: list[Route] = []
        credentials: list[RegistryCredential] = []
        for twin_name, twin in content.items():
            where = f"{_CONTENT}.{twin_name}"
            if not isinstance(twin, dict):
                raise unexpected(where, f"a JSON object of '{_DESIRED}.…'", twin, code=CODE)
            for key, value in twin.items():
                path = f"{where}.{key}"
                if twin_name == "$edgeAgent" and key.startswith(_MODULES):
                    name = key.removeprefix(_MODULES)
                    modules[name] = ModuleSettings.parse(name, value, where=path)
                elif twin_name == "$edgeAgent" and key.startswith(_CREDENTIALS):
                    name = key.removeprefix(_CREDENTIALS)
                    credentials.append(RegistryCredential.parse(name, value, where=path))
                elif twin_name == "$edgeHub" and key.startswith(_ROUTES):
                    routes.append(Route.parse(key.removeprefix(_ROUTES), value, where=path))
                else:
                    _check_twin_member(twin_name, key, value, path)
        return cls(whole, modules, tuple(routes), tuple(credentials))

    def dump(self) -> dict[str, Any]:
        """The document, with passwords, as a copy."""
        return copy.deepcopy(self.document)

    def check(self) -> list[Finding]:
        """What is worth a word about this layer alone; whether its routes fit is for `merge` to say."""
        where = f"{_CONTENT}.$edgeAgent.{_MODULES}"
        loose = [
            Finding(
                "image-unpinned",
                Severity.WARNING,
                f"{where}{name}.settings.image",
                f"'{where}{name}.settings.image' is {str(module.image)!r}, not given by digest: it may move",
            )
            for name, module in self.modules.items()
            if not module.image.is_pinned
        ]
        policies = [
            Finding(
                "restart-policy",
                Severity.WARNING,
                f"{where}{name}.restartPolicy",
                f"'{where}{name}.restartPolicy' is on-unhealthy, which IoT Edge treats as on-failure",
            )
            for name, module in self.modules.items()
            if module.restart_policy is RestartPolicy.ON_UNHEALTHY
        ]
        return [*loose, *policies]


def is_layered(document: Mapping[str, Any]) -> bool:
    """Whether some twin of a manifest is given by path, which is how IoT Hub tells a layer."""
    content = document.get(_CONTENT)
    twins = content.values() if isinstance(content, Mapping) else ()
    keys = (key for twin in twins if isinstance(twin, Mapping) for key in twin)
    return any(isinstance(key, str) and key.startswith(f"{_DESIRED}.") for key in keys)


def read_manifest(document: Mapping[str, Any] | str | bytes) -> DeploymentManifest | Layer:
    """A manifest of either kind.

    Raises:
        ContractError: as `DeploymentManifest.parse` or `Layer.parse`.
    """
    whole = content_of(document)
    return Layer.parse(whole) if is_layered(whole) else DeploymentManifest.parse(whole)


def merge(base: DeploymentManifest, layers: Sequence[Layer]) -> DeploymentManifest:
    """What a device gets that `base` and `layers` target, given in ascending priority.

    Raises:
        ContractError: the merged manifest is no manifest, most often because it is over the twin budget.
    """
    document = base.dump()
    content = document[_CONTENT]
    for layer in layers:
        for twin_name, twin in layer.dump()[_CONTENT].items():
            target = content.setdefault(twin_name, {})
            for key, value in twin.items():
                if key == _DESIRED:
                    target[_DESIRED] = value
                else:
                    _place(target.setdefault(_DESIRED, {}), key.removeprefix(f"{_DESIRED}."), value)
    return DeploymentManifest.parse(document)


def _place(section: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            below = section[parent] = {}
        section = below
    section[last] = value


def _check_twin_member(twin_name: str, key: str, value: Any, path: str) -> None:
    """A member that is no module, credential or route: of a module's own twin, else refused."""
    expected = {
        "$edgeAgent": f"'{_MODULES}NAME' or '{_CREDENTIALS}ID' (system modules belong to the base deployment)",
        "$edgeHub": f"'{_ROUTES}NAME'",
    }
    if twin_name in expected:
        raise ContractError(
            f"'{path}' must be {expected[twin_name]} in a layered manifest", code=CODE, where=path
        )
    check_module_name(twin_name, f"{_CONTENT}.{twin_name}")
    if key == _DESIRED:
        if not isinstance(value, Mapping):
            raise unexpected(path, "a JSON object", value, code=CODE)
        validate_section(value, limit_bytes=_UNLIMITED, where=path)
    elif key.startswith(f"{_DESIRED}."):
        nested: dict[str, Any] = {}
        _place(nested, key.removeprefix(f"{_DESIRED}."), value)
        validate_section(nested, limit_bytes=_UNLIMITED, where=path)
    else:
        raise ContractError(f"'{path}' must begin with '{_DESIRED}'", code=CODE, where=path)
