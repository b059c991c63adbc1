"""Deployment manifests at a hub: what a device was given, and what every device of a condition is to get.

Rules (IoT Hub, "Deploy IoT Edge modules at scale"):
- The content of an automatic deployment is fixed when it is created; condition, priority, labels and metrics may change.
- Among base deployments that target a device, the highest priority holds; equal priorities: the newest.
- An id is 1 to 128 lower-case characters without space and `& ^ [ ] { } \\ | " < > /`.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge_contracts.documents import canonical_json
from edge_contracts.errors import PublishError
from edge_contracts.manifest import DeploymentManifest
from publisher.devices import EDGE_AGENT, NoDeploymentError
from publisher.errors import UsageError
from publisher.hub_client import Configuration, HubClient, HubNotFoundError

EDGE_HUB = "$edgeHub"
CONFIGURATION_ID = re.compile(r"[a-z0-9\-:+%_#*?!(),=@;$'.]{1,128}")
PRIORITY_MAXIMUM = 2**31 - 1
CONTENT = "modulesContent"
ADDED_BY_THE_HUB = "configuration"


class ContentChangedError(PublishError):
    """A hub does not take other content for an automatic deployment that exists."""

    code = "configuration-content"


def read_device_manifest(client: HubClient, device_id: str) -> DeploymentManifest:
    """The manifest that a device's twins amount to, with passwords.

    Raises:
        NoDeploymentError: it has none.
        HubClientError: of the hub.
        ContractError: what the twins hold is no manifest.
    """
    try:
        agent = client.get_twin(device_id, EDGE_AGENT).desired
    except HubNotFoundError:
        client.get_device(device_id)  # says which of the two is missing
        agent = {}
    desired = _own(agent)
    if not desired:
        raise NoDeploymentError(
            f"device {device_id!r} has no deployment",
            where=device_id,
            next_command=f"edgewright manifest apply FILE --device {device_id}",
        )
    modules = desired.get("modules")
    for module in modules.values() if isinstance(modules, dict) else ():
        module.pop(ADDED_BY_THE_HUB, None)
    content: dict[str, Any] = {
        EDGE_AGENT: desired,
        EDGE_HUB: _own(client.get_twin(device_id, EDGE_HUB).desired),
    }
    for name in modules if isinstance(modules, dict) else ():
        if twin := _module_desired(client, device_id, name):
            content[name] = twin
    return DeploymentManifest.parse(
        {CONTENT: {name: {"properties.desired": section} for name, section in content.items()}}
    )


def set_configuration(
    client: HubClient,
    configuration: Configuration,
) -> tuple[Configuration, bool]:
    """Create an automatic deployment, or update one of the same id and content; the flag says that it was created.

    Raises:
        ContentChangedError: there is one of this id with other content.
        HubConflictError: somebody changed it meanwhile.
    """
    found = client.get_configuration(configuration.configuration_id)
    if found is None:
        return client.put_configuration(configuration), True
    if found.content.get(CONTENT) != configuration.content.get(CONTENT):
        raise ContentChangedError(
            f"automatic deployment {configuration.configuration_id!r} exists with other content, which a hub never "
            f"changes: give another --id, and a priority above {found.priority}",
            where=configuration.configuration_id,
        )
    return client.put_configuration(replace(configuration, etag=found.etag, content=found.content)), False


def configuration_id(given: str | None, content: Mapping[str, Any]) -> str:
    """The id to use: the given one, else one that is always the same for the same content.

    Raises:
        UsageError: it could be no configuration's.
    """
    if given is None:
        return f"edgewright-{hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]}"
    if not CONFIGURATION_ID.fullmatch(given):
        raise UsageError(
            f"--id must be 1 to 128 of a-z 0-9 and -:+%_#*?!(),=@;$'., not {given!r}", where="--id"
        )
    return given


def _module_desired(client: HubClient, device_id: str, name: str) -> dict[str, Any]:
    try:
        return _own(client.get_twin(device_id, name).desired)
    except HubNotFoundError:  # its identity is made when a deployment is applied, by some hubs later
        return {}


def _own(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in section.items() if not key.startswith("$")}
