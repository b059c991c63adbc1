"""What `applyConfigurationContent` sets on one edge device.

The body is `{"modulesContent": {module: {"properties.desired": {…}}}}`. Each `properties.desired` replaces the desired
properties of that module's twin. Besides the modules with content of their own, those listed under
`$edgeAgent` → `modules` need identities. What the documents inside mean is the device's to judge: it reports 400 or 412 for
what it cannot use, as it does on Azure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iot_hub.errors import HubRequestError
from iot_hub.identities import EDGE_AGENT, IdentityKey, check_identity_key

_DESIRED = "properties.desired"


@dataclass(frozen=True, slots=True)
class DeploymentContent:
    """Desired properties by module, and every module that must exist."""

    desired: Mapping[str, Mapping[str, Any]]
    modules: tuple[str, ...]

    @classmethod
    def parse(cls, body: object, device: IdentityKey) -> DeploymentContent:
        """Read a request body for `device`.

        Raises:
            HubRequestError: the path, what was expected there and what was found.
        """
        document = _object(body, "the body")
        unknown = sorted(set(document) - {"modulesContent", "deviceContent", "moduleContent"})
        if unknown:
            raise _invalid(unknown[0], "absent: only modulesContent is known", document[unknown[0]])
        for name in ("deviceContent", "moduleContent"):
            if document.get(name):
                raise _invalid(name, "absent: one edge device takes modulesContent only", document[name])
        content = _object(document.get("modulesContent"), "modulesContent")
        if not content:
            raise _invalid("modulesContent", "an object with at least one module", content)
        desired = {name: _desired(name, value) for name, value in content.items()}
        modules = tuple(dict.fromkeys((*desired, *_listed_modules(desired.get(EDGE_AGENT, {})))))
        for name in modules:
            check_identity_key(device.module(name))
        return cls(desired, modules)


def _desired(module: str, value: object) -> Mapping[str, Any]:
    where = f"modulesContent.{module}"
    members = _object(value, where)
    for name, section in members.items():
        if name != _DESIRED:
            raise _invalid(f"{where}.{name}", f"absent: only {_DESIRED!r} can be set on one device", section)
    return _object(members.get(_DESIRED), f"{where}.{_DESIRED}")


def _listed_modules(edge_agent: Mapping[str, Any]) -> tuple[str, ...]:
    modules = edge_agent.get("modules")
    if modules is None:
        return ()
    return tuple(_object(modules, f"modulesContent.{EDGE_AGENT}.{_DESIRED}.modules"))


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(where, "a JSON object", value)
    return value


def _invalid(where: str, expected: str, found: object) -> HubRequestError:
    shown = "nothing" if found is None else type(found).__name__
    return HubRequestError("ArgumentInvalid", f"{where} must be {expected}, found {shown}", where=where)
