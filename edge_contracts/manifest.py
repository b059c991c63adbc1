"""Deployment manifests: the document that sets a device's modules, routes and registry credentials.

Rules (IoT Edge deployment schemas `$edgeAgent` 1.1 and `$edgeHub` 1.1; facts about the readers: `EdgeAgentConnection.cs`,
`EdgeHubConfigParser.cs`):
- `{"modulesContent": {"$edgeAgent": …, "$edgeHub": …, "{module}": …}}`, each with `properties.desired`; the same within
  `{"content": …}` of a configuration is read, too. Layered manifests (`properties.desired.…`) are in `layers.py`.
- `schemaVersion` is exactly "1.0" or "1.1"; written manifests say "1.1" twice.
- `storeAndForwardConfiguration.timeToLiveSecs` is always there: the reader of 1.1 fails without it.
- Names of routes and of registry credentials have no `.`, `$`, `#` and space; addresses have no white space.
- `$edgeAgent`'s, `$edgeHub`'s and each module's desired properties take at most 32768 bytes by IoT Hub's rule, and so
  will what `$edgeAgent` reports about them.
- Members that nobody here knows survive: `dump` gives what `parse` was given.

>>> scorer = ModuleSettings("scorer", ImageRef.parse("registry.example/digits@sha256:" + "0" * 64))
>>> manifest = DeploymentManifest.assemble([scorer], {"up": "FROM /messages/modules/scorer/* INTO $upstream"})
>>> DeploymentManifest.parse(manifest.dump()) == manifest, manifest.check()
(True, [])
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from edge_contracts.create_options import CreateOptions
from edge_contracts.documents import member, parse_object
from edge_contracts.errors import ContractError, shown, unexpected
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest_members import AGENT_MEMBERS, HUB_MEMBERS, unknown_members
from edge_contracts.module_settings import (
    CODE,
    SYSTEM_MODULES,
    DesiredStatus,
    ImagePullPolicy,
    ModuleSettings,
    RestartPolicy,
    check_module_name,
)
from edge_contracts.redact import Secret
from edge_contracts.release import ErrorClass, ReleaseResult
from edge_contracts.reported import (
    DEPLOYMENT_DESCRIPTION_BYTES,
    SOURCE_BYTES,
    STATUS_DESCRIPTION_BYTES,
    VERSION_BYTES,
    DeploymentStatusCode,
    Health,
    ModuleReport,
    ReleaseReport,
    RuntimeInfo,
    RuntimeStatus,
    edge_agent_reported,
)
from edge_contracts.routes import BrokeredEndpoint, Route
from edge_contracts.twin import (
    DESIRED_LIMIT_BYTES,
    REPORTED_LIMIT_BYTES,
    largest_members,
    twin_size_bytes,
    validate_section,
)

__all__ = [
    "DeploymentManifest",
    "DesiredStatus",
    "Finding",
    "ImagePullPolicy",
    "ImageRef",
    "ModuleSettings",
    "RegistryCredential",
    "RestartPolicy",
    "Severity",
]

SCHEMA_VERSION = "1.1"
SCHEMA_VERSIONS = ("1.0", "1.1")
EDGE_AGENT_IMAGE = "mcr.microsoft.com/azureiotedge-agent:1.6"
EDGE_HUB_IMAGE = "mcr.microsoft.com/azureiotedge-hub:1.6"
STORE_AND_FORWARD_TTL_S = 7200
"""What Azure's portal writes."""
BUDGET_WARNING = 0.8
TTL_MINIMUM_S, TTL_MAXIMUM_S = -(2**31), 2**31 - 1

_CONTENT = "modulesContent"
_DESIRED = "properties.desired"
_AGENT = f"{_CONTENT}.$edgeAgent.{_DESIRED}"
_HUB = f"{_CONTENT}.$edgeHub.{_DESIRED}"
_CREDENTIAL_ID = re.compile(r"[^.$# ]+")


class Severity(StrEnum):
    """Whether a finding stops a deployment."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What `DeploymentManifest.check` has to say about one place of a manifest."""

    code: str
    severity: Severity
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class RegistryCredential:
    """What a device logs in with at the registry `address` (host and port)."""

    id: str
    address: str
    username: str
    password: Secret

    @classmethod
    def parse(cls, identifier: str, document: Any, *, where: str) -> RegistryCredential:
        """Read a member of `registryCredentials`.

        Raises:
            ContractError: code `manifest`; the message never holds the password.
        """
        if not _CREDENTIAL_ID.fullmatch(identifier):
            raise unexpected(where, "named without '.', '$', '#' and space", identifier, code=CODE)
        if not isinstance(document, Mapping):
            raise ContractError(
                f"'{where}' must be an object with username, password and address", code=CODE, where=where
            )
        values = {name: document.get(name) for name in ("address", "username", "password")}
        for name, value in values.items():
            if not isinstance(value, str) or not value.strip():
                raise ContractError(
                    f"'{where}.{name}' must be text that is not blank", code=CODE, where=f"{where}.{name}"
                )
        address = str(values["address"])
        if re.search(r"\s", address):
            raise unexpected(f"{where}.address", "a host and port without white space", address, code=CODE)
        return cls(identifier, address, str(values["username"]), Secret(str(values["password"])))

    def dump(self) -> dict[str, str]:
        """The member of `registryCredentials`, with the password."""
        return {"username": self.username, "password": self.password.reveal(), "address": self.address}


@dataclass(frozen=True, slots=True)
class DeploymentManifest:
    """A manifest that was read strictly. `document` is the whole of it, with passwords: `dump`, never print it."""

    document: dict[str, Any] = field(repr=False)
    modules: dict[str, ModuleSettings]
    edge_agent: ModuleSettings
    edge_hub: ModuleSettings
    routes: tuple[Route, ...]
    credentials: tuple[RegistryCredential, ...]
    store_and_forward_ttl_s: int

    @classmethod
    def assemble(
        cls,
        modules: Iterable[ModuleSettings],
        routes: Iterable[Route] | Mapping[str, str | Mapping[str, Any]],
        credentials: Iterable[RegistryCredential] = (),
        *,
        store_and_forward_ttl_s: int = STORE_AND_FORWARD_TTL_S,
        edge_agent_image: str | ImageRef = EDGE_AGENT_IMAGE,
        edge_hub_image: str | ImageRef = EDGE_HUB_IMAGE,
    ) -> DeploymentManifest:
        """Write a manifest for `$edgeAgent` 1.1 and `$edgeHub` 1.1 and read it back.

        Raises:
            ContractError: as `parse`; also for two modules of one name, and for the restart policy on-unhealthy, whose
                meaning depends on the agent.
        """
        listed = list(modules)
        for index, module in enumerate(listed):
            where = f"{_AGENT}.modules.{module.name}"
            if any(other.name == module.name for other in listed[:index]):
                raise ContractError(
                    f"'{where}' must be one module, found two of this name", code=CODE, where=where
                )
            if module.restart_policy is RestartPolicy.ON_UNHEALTHY:
                raise unexpected(
                    f"{where}.restartPolicy", "never, on-failure or always", "on-unhealthy", code=CODE
                )
        edge_agent = {
            "schemaVersion": SCHEMA_VERSION,
            "runtime": {"type": "docker", "settings": _runtime_settings(credentials)},
            "systemModules": _system_modules(str(edge_agent_image), str(edge_hub_image)),
            "modules": {module.name: module.dump() for module in listed},
        }
        edge_hub = {
            "schemaVersion": SCHEMA_VERSION,
            "routes": dump_routes(routes),
            "storeAndForwardConfiguration": {"timeToLiveSecs": store_and_forward_ttl_s},
        }
        twins = {module.name: {_DESIRED: module.desired} for module in listed if module.desired is not None}
        content = {"$edgeAgent": {_DESIRED: edge_agent}, "$edgeHub": {_DESIRED: edge_hub}, **twins}
        return cls.parse({_CONTENT: content})

    @classmethod
    def parse(cls, document: Mapping[str, Any] | str | bytes) -> DeploymentManifest:
        """Read a manifest strictly, its size included.

        Raises:
            ContractError: every message names the path inside the document, what was expected and what was found. Codes:
                `manifest`, `manifest-schema-version`, `manifest-size`, `route`, `image-reference`, `image-digest`,
                `create-options`, `twin`, `twin-size`.
        """
        manifest = _parse(content_of(document), needs_edge_hub=True)
        manifest._refuse_over_budget()
        return manifest

    @classmethod
    def from_edge_agent_desired(
        cls, desired: Mapping[str, Any], edge_hub_desired: Mapping[str, Any] | None = None
    ) -> DeploymentManifest:
        """What a device makes of the two twins it receives; size is the hub's business by then.

        Raises:
            ContractError: as `parse`; also code `manifest-empty` for a twin that no deployment has set.
        """
        content = {"$edgeAgent": {_DESIRED: _without_metadata(desired)}}
        if not content["$edgeAgent"][_DESIRED]:
            raise ContractError(
                f"'{_AGENT}' must hold a deployment, but is empty", code="manifest-empty", where=_AGENT
            )
        if edge_hub_desired is not None:
            content["$edgeHub"] = {_DESIRED: _without_metadata(edge_hub_desired)}
        return _parse({_CONTENT: content}, needs_edge_hub=False)

    def dump(self) -> dict[str, Any]:
        """The document, with passwords, as a copy."""
        return copy.deepcopy(self.document)

    @property
    def module_twins(self) -> dict[str, dict[str, Any]]:
        """The desired properties that the manifest sets in twins of modules, by module, unknown modules included."""
        content: dict[str, Any] = self.document[_CONTENT]
        return {
            name: copy.deepcopy(twin[_DESIRED])
            for name, twin in content.items()
            if not name.startswith("$") and _DESIRED in twin
        }

    def desired_size_bytes(self) -> int:
        """Size of `$edgeAgent`'s desired properties by IoT Hub's rule; the limit is 32768."""
        return twin_size_bytes(self.document[_CONTENT]["$edgeAgent"][_DESIRED])

    def predicted_reported_size_bytes(self) -> int:
        """Most bytes that `$edgeAgent` will report about this manifest, by IoT Hub's rule; the limit is 32768."""
        return twin_size_bytes(self._predicted_reported())

    def check(self) -> list[Finding]:
        """What is allowed and yet worth a word before publishing, worst first."""
        findings = [
            *self._check_routes(),
            *self._check_images(),
            *self._check_policies(),
            *self._check_create_options(),
            *self._check_members(),
            *self._check_twins(),
            *self._check_credentials(),
            *self._check_budget(),
        ]
        return sorted(findings, key=lambda finding: (finding.severity is not Severity.ERROR, finding.where))

    def _check_routes(self) -> Iterable[Finding]:
        names = {name.lower() for name in self.modules}
        for route in self.routes:
            where = f"{_HUB}.routes.{route.name}"
            source = route.source_module
            if source is not None and source.lower() not in names:
                yield _finding(
                    "route-unknown-module",
                    where,
                    f"takes messages of {shown(source)}, which is no module here",
                )
            elif "*" in route.source.rstrip("*/"):
                yield _finding(
                    "route-never-matches", where, f"has a '*' inside the source {shown(route.source)}"
                )
            if isinstance(route.sink, BrokeredEndpoint) and route.sink.module not in self.modules:
                yield _finding(
                    "route-unknown-module",
                    where,
                    f"sends to {shown(route.sink.module)}, which is no module here",
                )

    def _check_images(self) -> Iterable[Finding]:
        for name, module in self.modules.items():
            if not module.image.is_pinned:
                where = f"{_AGENT}.modules.{name}.settings.image"
                yield _warning(
                    "image-unpinned",
                    where,
                    f"is {shown(str(module.image))}, not given by digest: it may move",
                )

    def _check_policies(self) -> Iterable[Finding]:
        for name, module in self.modules.items():
            if module.restart_policy is RestartPolicy.ON_UNHEALTHY:
                where = f"{_AGENT}.modules.{name}.restartPolicy"
                yield _warning(
                    "restart-policy", where, "is on-unhealthy, which IoT Edge treats as on-failure"
                )

    def _check_create_options(self) -> Iterable[Finding]:
        bound: dict[tuple[int, str], str] = {}
        for name, module in self.modules.items():
            where = f"{_AGENT}.modules.{name}.settings.createOptions"
            options = CreateOptions(module.create_options)
            for path, right in options.elevated_rights():
                yield _warning("elevated-rights", f"{where}.{path}", f"gives the module {right}")
            for port, protocol in options.fixed_host_ports():
                if other := bound.get((port, protocol)):
                    text = f"takes port {port}/{protocol} of the device, which module {shown(other)} takes"
                    yield _finding("port-clash", where, text)
                    continue
                bound[port, protocol] = name
                text = (
                    f"fixes port {port}/{protocol} of the device: under Docker an update stops the old module "
                    "before the new one can start"
                )
                yield _warning("port-fixed", where, text)

    def _check_members(self) -> Iterable[Finding]:
        content = self.document[_CONTENT]
        tables = (("$edgeAgent", _AGENT, AGENT_MEMBERS), ("$edgeHub", _HUB, HUB_MEMBERS))
        for twin, path, known in tables:
            for below, is_extension in unknown_members(content.get(twin, {}).get(_DESIRED, {}), known):
                where = f"{path}.{below}"
                if is_extension:
                    text = "is refused by 'az iot edge' without --no-validation, though devices read it"
                    yield _warning("member-extension", where, text)
                else:
                    yield _finding("member-unknown", where, "is no member of a deployment manifest")

    def _check_twins(self) -> Iterable[Finding]:
        for name in self.module_twins:
            if name not in self.modules:
                yield _warning(
                    "twin-unknown-module", f"{_CONTENT}.{name}", "sets the twin of a module that is not here"
                )

    def _check_credentials(self) -> Iterable[Finding]:
        images = [module.image for module in (*self.modules.values(), self.edge_agent, self.edge_hub)]
        hosts = {image.credentials_host for image in images}
        for credential in self.credentials:
            if credential.address.lower() not in hosts:
                where = f"{_AGENT}.runtime.settings.registryCredentials.{credential.id}"
                yield _warning(
                    "credential-unused",
                    where,
                    f"is for {shown(credential.address)}, where no image comes from",
                )

    def _check_budget(self) -> Iterable[Finding]:
        for where, size_bytes, limit_bytes, _ in self._budget():
            if size_bytes >= limit_bytes * BUDGET_WARNING:
                share = 100 * size_bytes // limit_bytes
                yield _warning("twin-budget", where, f"takes {size_bytes} of {limit_bytes} bytes ({share} %)")

    def _refuse_over_budget(self) -> None:
        for where, size_bytes, limit_bytes, members in self._budget():
            if size_bytes > limit_bytes:
                raise ContractError(
                    f"'{where}' must be at most {limit_bytes} bytes by IoT Hub's rule, not {size_bytes}; "
                    f"largest: {largest_members(members)}",
                    code="manifest-size",
                    where=where,
                )

    def _budget(self) -> Iterable[tuple[str, int, int, Mapping[str, Any]]]:
        """Each twin section that has a limit: path, size, limit, and the members to name when it is too large."""
        content = self.document[_CONTENT]
        agent = content["$edgeAgent"][_DESIRED]
        yield _AGENT, self.desired_size_bytes(), DESIRED_LIMIT_BYTES, _all_modules(agent)
        reported = self._predicted_reported()
        path = f"{_CONTENT}.$edgeAgent.properties.reported (predicted)"
        yield path, twin_size_bytes(reported), REPORTED_LIMIT_BYTES, _all_modules(reported)
        if "$edgeHub" in content:
            hub = content["$edgeHub"][_DESIRED]
            yield _HUB, twin_size_bytes(hub), DESIRED_LIMIT_BYTES, hub["routes"]
        for name, twin in self.module_twins.items():
            yield f"{_CONTENT}.{name}.{_DESIRED}", twin_size_bytes(twin), DESIRED_LIMIT_BYTES, twin

    def _predicted_reported(self) -> dict[str, Any]:
        """Reported properties with every optional member there and every description as long as it gets."""
        digest = str(ImageDigest.of(b""))
        reports = {name: _largest_report(module) for name, module in self.modules.items()}
        text = "d" * DEPLOYMENT_DESCRIPTION_BYTES
        return edge_agent_reported(
            desired_version=0,
            code=DeploymentStatusCode.FAILED,
            description=text,
            runtime=RuntimeInfo(
                "linux",
                "x86_64",
                "0" * VERSION_BYTES,
                "process",
                "unisolated",
                "r" * STATUS_DESCRIPTION_BYTES,
            ),
            edge_agent=_largest_report(self.edge_agent),
            edge_hub=_largest_report(self.edge_hub),
            modules=reports,
            release=ReleaseReport(
                digest,
                "p" * 32,
                max(ReleaseResult, key=len),
                error_class=max(ErrorClass, key=len),
                description=text,
                previous_digest=digest,
                next_attempt=_ANY_TIME,
            ),
            local_release={
                "digest": digest,
                "source": "s" * SOURCE_BYTES,
                "appliedAt": "2000-01-01T00:00:00Z",
                "active": True,
            },
            agent_version="0" * 16,
        )


_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def _largest_report(module: ModuleSettings) -> ModuleReport:
    return ModuleReport(
        module,
        RuntimeStatus.UNHEALTHY,
        status_description="d" * STATUS_DESCRIPTION_BYTES,
        image_hash=str(ImageDigest.of(b"")),
        last_start=_ANY_TIME,
        last_exit=_ANY_TIME,
        last_restart=_ANY_TIME,
        next_attempt=_ANY_TIME,
        health=Health.UNHEALTHY,
        error_class=max(ErrorClass, key=len),
    )


def _finding(code: str, where: str, problem: str) -> Finding:
    return Finding(code, Severity.ERROR, where, f"'{where}' {problem}")


def _warning(code: str, where: str, problem: str) -> Finding:
    return Finding(code, Severity.WARNING, where, f"'{where}' {problem}")


def _all_modules(section: Mapping[str, Any]) -> dict[str, Any]:
    return {**section["systemModules"], **section["modules"]}


def _without_metadata(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in copy.deepcopy(dict(section)).items() if not key.startswith("$")}


# ---- writing


def _runtime_settings(credentials: Iterable[RegistryCredential]) -> dict[str, Any]:
    listed = {credential.id: credential.dump() for credential in credentials}
    settings: dict[str, Any] = {"minDockerVersion": "v1.25", "loggingOptions": ""}
    return {**settings, "registryCredentials": listed} if listed else settings


def _system_modules(edge_agent_image: str, edge_hub_image: str) -> dict[str, Any]:
    return {
        "edgeAgent": {"type": "docker", "settings": {"image": edge_agent_image, "createOptions": "{}"}},
        "edgeHub": {
            "type": "docker",
            "status": DesiredStatus.RUNNING.value,
            "restartPolicy": RestartPolicy.ALWAYS.value,
            "startupOrder": 0,
            "settings": {"image": edge_hub_image, "createOptions": "{}"},
        },
    }


def dump_routes(routes: Iterable[Route] | Mapping[str, str | Mapping[str, Any]]) -> dict[str, Any]:
    """The member `routes`."""
    if isinstance(routes, Mapping):
        return dict(routes)
    return {route.name: route.dump() for route in routes}


# ---- reading


def content_of(document: Mapping[str, Any] | str | bytes) -> dict[str, Any]:
    """A manifest's document with `modulesContent` at its top, as a copy.

    A configuration (`{"content": …}`) and the old spelling `moduleContent` are read, too.

    Raises:
        ContractError: no JSON object.
    """
    if isinstance(document, str | bytes):
        whole = parse_object(document, where="deployment manifest", code=CODE)
    elif isinstance(document, Mapping):
        whole = copy.deepcopy(dict(document))
    else:
        raise unexpected("deployment manifest", "a JSON object", document, code=CODE)
    if _CONTENT not in whole and isinstance(whole.get("content"), dict):
        whole = whole["content"]
    if _CONTENT not in whole and "moduleContent" in whole:
        whole = {_CONTENT if key == "moduleContent" else key: value for key, value in whole.items()}
    return whole


def _parse(document: dict[str, Any], *, needs_edge_hub: bool) -> DeploymentManifest:
    content = member(document, _CONTENT, "", dict, "a JSON object with $edgeAgent and $edgeHub", code=CODE)
    agent = _parse_desired(content, "$edgeAgent")
    _check_schema_version(agent, _AGENT)
    routes: tuple[Route, ...] = ()
    ttl_s = STORE_AND_FORWARD_TTL_S
    if needs_edge_hub or "$edgeHub" in content:
        routes, ttl_s = _parse_edge_hub(_parse_desired(content, "$edgeHub"))
    twins = {
        name: _parse_module_twin(name, twin) for name, twin in content.items() if not name.startswith("$")
    }
    credentials = _parse_runtime(agent)
    edge_agent, edge_hub = _parse_system_modules(agent)
    modules = member(agent, "modules", _AGENT, dict, "a JSON object of modules", code=CODE)
    parsed = {
        name: ModuleSettings.parse(name, module, where=f"{_AGENT}.modules.{name}", desired=twins.get(name))
        for name, module in modules.items()
    }
    validate_section(agent, limit_bytes=_UNLIMITED, where=_AGENT)
    return DeploymentManifest(document, parsed, edge_agent, edge_hub, routes, credentials, ttl_s)


_UNLIMITED = 2**63
"""Sizes are held against their limits apart, where the message can name modules."""


def _parse_desired(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    where = f"{_CONTENT}.{name}"
    twin = member(content, name, _CONTENT, dict, f"a JSON object with '{_DESIRED}'", code=CODE)
    _refuse_layers(twin, where)
    return member(twin, _DESIRED, where, dict, "a JSON object", code=CODE)


def _parse_module_twin(name: str, twin: Any) -> dict[str, Any] | None:
    where = f"{_CONTENT}.{name}"
    check_module_name(name, where)
    if not isinstance(twin, dict):
        raise unexpected(where, f"a JSON object with '{_DESIRED}'", twin, code=CODE)
    _refuse_layers(twin, where)
    if _DESIRED not in twin:
        return None
    desired = member(twin, _DESIRED, where, dict, "a JSON object", code=CODE)
    validate_section(desired, limit_bytes=_UNLIMITED, where=f"{where}.{_DESIRED}")
    return desired


def _refuse_layers(twin: Mapping[str, Any], where: str) -> None:
    for key in twin:
        if key.startswith(f"{_DESIRED}."):
            raise ContractError(
                f"'{where}' must have a whole '{_DESIRED}', not '{key}' of a layered manifest",
                code=CODE,
                where=where,
            )


def _check_schema_version(section: Mapping[str, Any], where: str) -> None:
    expected = " or ".join(f"'{version}'" for version in SCHEMA_VERSIONS)
    version = section.get("schemaVersion")
    if version not in SCHEMA_VERSIONS:
        raise unexpected(f"{where}.schemaVersion", expected, version, code="manifest-schema-version")


def _parse_runtime(agent: Mapping[str, Any]) -> tuple[RegistryCredential, ...]:
    where = f"{_AGENT}.runtime"
    runtime = member(agent, "runtime", _AGENT, dict, "a JSON object with type and settings", code=CODE)
    kind = member(runtime, "type", where, str, "'docker'", code=CODE)
    if kind != "docker":
        raise unexpected(f"{where}.type", "'docker'", kind, code=CODE)
    settings = member(runtime, "settings", where, dict, "a JSON object", code=CODE)
    path = f"{where}.settings.registryCredentials"
    listed = member(
        settings,
        "registryCredentials",
        f"{where}.settings",
        dict,
        "a JSON object of credentials",
        default={},
        code=CODE,
    )
    return tuple(
        RegistryCredential.parse(name, entry, where=f"{path}.{name}") for name, entry in listed.items()
    )


def _parse_system_modules(agent: Mapping[str, Any]) -> tuple[ModuleSettings, ModuleSettings]:
    where = f"{_AGENT}.systemModules"
    listed = member(
        agent, "systemModules", _AGENT, dict, "a JSON object with edgeAgent and edgeHub", code=CODE
    )
    edge_agent, edge_hub = (
        ModuleSettings.parse(
            name,
            member(listed, name, where, dict, "a JSON object with type and settings", code=CODE),
            where=f"{where}.{name}",
            system=True,
        )
        for name in SYSTEM_MODULES
    )
    return edge_agent, edge_hub


def _parse_edge_hub(hub: dict[str, Any]) -> tuple[tuple[Route, ...], int]:
    _check_schema_version(hub, _HUB)
    listed = member(hub, "routes", _HUB, dict, "a JSON object of routes", code=CODE)
    routes = tuple(
        Route.parse(name, document, where=f"{_HUB}.routes.{name}") for name, document in listed.items()
    )
    where = f"{_HUB}.storeAndForwardConfiguration"
    store = member(
        hub, "storeAndForwardConfiguration", _HUB, dict, "a JSON object with timeToLiveSecs", code=CODE
    )
    ttl_s = member(store, "timeToLiveSecs", where, int, "an integer of seconds", code=CODE)
    if not TTL_MINIMUM_S <= ttl_s <= TTL_MAXIMUM_S:
        raise unexpected(
            f"{where}.timeToLiveSecs", f"an integer from {TTL_MINIMUM_S} to {TTL_MAXIMUM_S}", ttl_s, code=CODE
        )
    validate_section(hub, limit_bytes=_UNLIMITED, where=_HUB)
    return routes, ttl_s
