"""The hub's rules without I/O: identities, twins, and what a change of them causes.

- An operation reads the state and returns a `Change`, or raises; it never writes. The caller makes the change durable,
  then hands it to `apply`, then carries out its effects. So an operation is all or nothing, and a crash between the two
  loses only what was never answered.
- Operations must not interleave: plan, store and apply one change before planning the next (`iot_hub/hub.py` does).
- Clock and random source are given, so that equal inputs give equal outputs.

Example::

    change = core.put_identity(IdentityKey("d"), IdentityRequest(iot_edge=True), if_match=None)
    store.commit(change)      # durable
    core.apply(change)        # visible
    for effect in change.effects: ...
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from edge_contracts.redact import Secret
from edge_contracts.twin import format_time
from iot_hub.deployment_content import DeploymentContent
from iot_hub.errors import HubRequestError
from iot_hub.identities import (
    SYSTEM_MODULES,
    IdentityKey,
    IdentityRecord,
    IdentityRequest,
    check_identity_key,
    identity_not_found,
)
from iot_hub.twins import TwinRecord, TwinRequest, difference

# Azure, "IoT Hub quotas": modules per device, besides the two of the edge runtime.
MODULES_PER_DEVICE = 50
# A service client that lost its answer in a crash of the hub asks again within its own retries, well inside this.
RETRY_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class PushDesired:
    """Effect: tell the identity, if it is connected and listens, of new desired properties."""

    key: IdentityKey
    patch: Mapping[str, Any]
    version: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Effect: close the identity's connection; `forget` drops its subscriptions, too."""

    key: IdentityKey
    forget: bool = False


Effect = PushDesired | Disconnect


@dataclass(frozen=True, slots=True)
class Change:
    """What an operation does: records to write and to remove, in one transaction, and effects to follow."""

    identities: tuple[IdentityRecord, ...] = ()
    twins: tuple[TwinRecord, ...] = ()
    removed: tuple[IdentityKey, ...] = ()
    effects: tuple[Effect, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.identities or self.twins or self.removed)

    @classmethod
    def together(cls, changes: Iterable[Change]) -> Change:
        """One change of several that touch different identities."""
        parts = tuple(changes)
        return cls(
            tuple(record for part in parts for record in part.identities),
            tuple(twin for part in parts for twin in part.twins),
            tuple(key for part in parts for key in part.removed),
            tuple(effect for part in parts for effect in part.effects),
        )


class HubCore:
    """The state of the hub in memory, and the operations on it.

    Args:
        now: the time, aware.
        random_bytes: as `os.urandom`: keys, generation ids and etags come from it.
    """

    def __init__(self, *, now: Callable[[], datetime], random_bytes: Callable[[int], bytes]) -> None:
        self._now = now
        self._random_bytes = random_bytes
        self._started = now().timestamp()
        self._identities: dict[IdentityKey, IdentityRecord] = {}
        self._twins: dict[IdentityKey, TwinRecord] = {}
        self._modules: dict[str, set[str]] = {}

    # Reading.

    def identity(self, key: IdentityKey) -> IdentityRecord:
        """The identity `key` names; raises `HubRequestError` DeviceNotFound or ModuleNotFound."""
        record = self._identities.get(key)
        if record is None:
            raise identity_not_found(key if key.device in self._identities else key.device)
        return record

    def find(self, key: IdentityKey) -> IdentityRecord | None:
        return self._identities.get(key)

    def twin(self, key: IdentityKey) -> TwinRecord:
        self.identity(key)
        return self._twins[key]

    def is_enabled(self, key: IdentityKey) -> bool:
        """Whether the identity may connect; a module is as enabled as its device."""
        device = self.find(key.device)
        return device is not None and device.enabled

    def devices(self) -> Iterator[IdentityRecord]:
        """All devices in the order of their ids."""
        return (self._identities[IdentityKey(device_id)] for device_id in sorted(self._modules))

    def modules(self, device: IdentityKey) -> tuple[IdentityRecord, ...]:
        """The modules of a device in the order of their ids."""
        self.identity(device.device)
        return tuple(
            self._identities[device.module(module_id)]
            for module_id in sorted(self._modules[device.device_id])
        )

    # Operations.

    def put_identity(self, key: IdentityKey, request: IdentityRequest, if_match: str | None) -> Change:
        """Create an identity, or with `if_match` ("*" or an etag) update it.

        Raises:
            HubRequestError: exists (409), etag differs (412), no such device or nothing to update (404), bad id (400).
        """
        check_identity_key(key)
        if key.module_id is not None:
            self.identity(key.device)
        record = self.find(key)
        if record is None:
            if if_match is not None:
                raise identity_not_found(key)
            return self._create(key, request)
        if if_match is None:
            return self._repeated_create(record, request)
        _check_etag(key, if_match, record.etag)
        return self._update(record, request)

    def delete_identity(self, key: IdentityKey, if_match: str | None) -> Change:
        """Remove an identity; a device goes with its modules."""
        record = self.identity(key)
        _check_etag(key, if_match, record.etag)
        if key.module_id in SYSTEM_MODULES:
            raise HubRequestError(
                "OperationNotAllowed",
                f"{key.module_id} belongs to the edge device {key.device_id!r} and is removed with it",
                where=str(key),
            )
        modules = () if key.module_id is not None else tuple(module.key for module in self.modules(key))
        gone = (*modules, key)
        return Change(removed=gone, effects=tuple(Disconnect(each, forget=True) for each in gone))

    def write_twin(self, key: IdentityKey, request: TwinRequest, if_match: str | None) -> Change:
        """Merge into, or replace, tags and desired properties."""
        twin = self.twin(key)
        _check_etag(key, if_match, twin.etag)
        changed = twin.with_request(request, self._now())
        if changed is twin:
            return Change()
        return Change(twins=(changed,), effects=_desired_effects(twin, changed, request))

    def report(self, key: IdentityKey, patch: object) -> Change:
        """Merge a device's reported patch."""
        if not isinstance(patch, Mapping):
            raise HubRequestError(
                "ArgumentInvalid", f"a reported patch must be a JSON object, not {type(patch).__name__}"
            )
        return Change(twins=(self.twin(key).with_reported(patch, self._now()),))

    def apply_content(self, device: IdentityKey, content: DeploymentContent) -> Change:
        """Create the modules of a deployment and replace their desired properties: all of it, or an error."""
        record = self.identity(device)
        if not record.iot_edge:
            raise HubRequestError(
                "ArgumentInvalid",
                f"device {device.device_id!r} must be an edge device (capabilities.iotEdge) to take modules",
                where="capabilities.iotEdge",
            )
        missing = [name for name in content.modules if device.module(name) not in self._identities]
        self._check_room(device, missing)
        created = [self._new_module(device.module(name), managed_by="IotEdge") for name in missing]
        writes = [
            self._content_write(device.module(name), desired) for name, desired in content.desired.items()
        ]
        written = {twin.key for write in writes for twin in write.twins}
        untouched = tuple(
            TwinRecord.new(record.key, self._now()) for record in created if record.key not in written
        )
        return Change.together((Change(identities=tuple(created), twins=untouched), *writes))

    def apply(self, change: Change) -> None:
        """Make a durable change visible."""
        for record in change.identities:
            self._identities[record.key] = record
            modules = self._modules.setdefault(record.key.device_id, set())
            if record.key.module_id is not None:
                modules.add(record.key.module_id)
        for twin in change.twins:
            self._twins[twin.key] = twin
        for key in change.removed:
            del self._identities[key]
            del self._twins[key]
            if key.module_id is None:
                del self._modules[key.device_id]
            else:
                self._modules[key.device_id].discard(key.module_id)

    # Parts of operations.

    def _create(self, key: IdentityKey, request: IdentityRequest) -> Change:
        if key.module_id is not None:
            self._check_room(key, [key.module_id])
        if request.device_scope is not None:
            raise _no_parents(request.device_scope)
        record = replace(
            self._new_record(key),
            enabled=request.enabled is not False,
            status_reason=request.status_reason,
            iot_edge=bool(request.iot_edge),
            managed_by=request.managed_by,
        )
        record = _with_keys(record, request)
        records = [record, *(self._system_modules(key) if record.iot_edge else ())]
        now = self._now()
        return Change(tuple(records), tuple(TwinRecord.new(each.key, now) for each in records))

    def _repeated_create(self, record: IdentityRecord, request: IdentityRequest) -> Change:
        """A create of what exists is an error, but not the retry of one whose answer was lost.

        It is the same request when it brings the very keys; or, without keys, when it agrees with an identity that an
        earlier process of this hub made moments ago.
        """
        age_s = self._now().timestamp() - record.created
        made_before_crash = record.created < self._started and age_s < RETRY_WINDOW_S
        if request.agrees_with(record) and (request.brings_keys or made_before_crash):
            return Change()
        if record.key.module_id is None:
            raise HubRequestError(
                "DeviceAlreadyExists",
                f"device {record.key.device_id!r} exists; an update needs If-Match",
                where=str(record.key),
            )
        raise HubRequestError(
            "ModuleAlreadyExistsOnDevice",
            f"module {record.key.module_id!r} exists on device {record.key.device_id!r}; an update needs If-Match",
            where=str(record.key),
        )

    def _update(self, record: IdentityRecord, request: IdentityRequest) -> Change:
        key = record.key
        if record.iot_edge and request.iot_edge is False:
            raise HubRequestError(
                "ArgumentInvalid",
                f"device {key.device_id!r} is an edge device and stays one: delete and create it anew",
                where="capabilities.iotEdge",
            )
        if request.device_scope not in (None, record.device_scope):
            raise _no_parents(request.device_scope)
        enabled = record.enabled if request.enabled is None else request.enabled
        changed = _with_keys(
            replace(
                record,
                etag=self._etag(),
                enabled=enabled,
                status_reason=request.status_reason,
                status_updated_time=record.status_updated_time
                if enabled == record.enabled
                else format_time(self._now()),
                iot_edge=record.iot_edge or bool(request.iot_edge),
                managed_by=record.managed_by if request.managed_by is None else request.managed_by,
            ),
            request,
        )
        added = self._system_modules(key) if changed.iot_edge and not record.iot_edge else ()
        twins = tuple(TwinRecord.new(each.key, self._now()) for each in added)
        return Change((changed, *added), twins, effects=self._update_effects(record, changed))

    def _update_effects(self, old: IdentityRecord, new: IdentityRecord) -> tuple[Effect, ...]:
        """A disabled device and its modules lose their connections, as does one whose keys were changed."""
        if old.enabled and not new.enabled:
            return tuple(Disconnect(key) for key in (new.key, *(each.key for each in self.modules(new.key))))
        return (Disconnect(new.key),) if old.keys != new.keys else ()

    def _content_write(self, key: IdentityKey, desired: Mapping[str, Any]) -> Change:
        twin = self._twins.get(key)
        is_new = twin is None
        twin = twin or TwinRecord.new(key, self._now())
        request = TwinRequest(tags=twin.tags, desired=desired, replaces=True)
        try:
            changed = twin.with_request(request, self._now())
        except HubRequestError as error:
            where = (error.where or "").removeprefix("properties.desired")
            raise HubRequestError(
                error.code,
                f"modulesContent.{key.module_id}: {error.message}",
                where=f"modulesContent.{key.module_id}.properties.desired{where}",
            ) from error
        if changed is twin and not is_new:
            return Change()
        return Change(twins=(changed,), effects=_desired_effects(twin, changed, request))

    def _check_room(self, device: IdentityKey, new: Iterable[str]) -> None:
        present = self._modules.get(device.device_id, set())
        count = len((present | set(new)) - set(SYSTEM_MODULES))
        if count > MODULES_PER_DEVICE:
            raise HubRequestError(
                "TooManyModulesOnDevice",
                f"device {device.device_id!r} may have at most {MODULES_PER_DEVICE} modules, not {count}",
                where=device.device_id,
            )

    def _system_modules(self, device: IdentityKey) -> tuple[IdentityRecord, ...]:
        keys = (device.module(name) for name in SYSTEM_MODULES)
        return tuple(self._new_module(key, "iotEdge") for key in keys if key not in self._identities)

    def _new_module(self, key: IdentityKey, managed_by: str) -> IdentityRecord:
        return replace(self._new_record(key), managed_by=managed_by)

    def _new_record(self, key: IdentityKey) -> IdentityRecord:
        return IdentityRecord(
            key=key,
            # Azure's generation ids are 18 decimal digits.
            generation_id=f"{int.from_bytes(self._random_bytes(8), 'big') % 10**18:018}",
            etag=self._etag(),
            primary_key=self._new_key(),
            secondary_key=self._new_key(),
            created=self._now().timestamp(),
        )

    def _new_key(self) -> Secret:
        return Secret(base64.b64encode(self._random_bytes(32)).decode())

    def _etag(self) -> str:
        return base64.b64encode(self._random_bytes(6)).decode()


def _with_keys(record: IdentityRecord, request: IdentityRequest) -> IdentityRecord:
    return replace(
        record,
        primary_key=request.primary_key or record.primary_key,
        secondary_key=request.secondary_key or record.secondary_key,
    )


def _desired_effects(old: TwinRecord, new: TwinRecord, request: TwinRequest) -> tuple[Effect, ...]:
    if new.desired is old.desired:
        return ()
    patch = difference(old.desired.values, new.desired.values) if request.replaces else request.desired
    return (PushDesired(new.key, patch, new.desired.version),)


def _check_etag(key: IdentityKey, if_match: str | None, etag: str) -> None:
    if if_match not in (None, "*", etag):
        raise _precondition(key, if_match, f"has etag {etag!r}")


def _precondition(key: IdentityKey, if_match: str | None, found: str) -> HubRequestError:
    return HubRequestError(
        "PreconditionFailed", f"{str(key)!r} {found}, not {if_match!r} as If-Match asks", where=str(key)
    )


def _no_parents(scope: str | None) -> HubRequestError:
    return HubRequestError(
        "ArgumentInvalid",
        f"deviceScope must be absent or the edge device's own, not {scope!r}: this hub knows no parent devices",
        where="deviceScope",
    )
