"""Bulk registry operations: `POST /devices` with up to 100 devices or modules, one transaction.

What fails is listed and everything else is done, as on Azure, which answers 400 with the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iot_hub.core import Change, HubCore
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey, IdentityRequest

BULK_LIMIT = 100


class BulkOperation:
    """The entries of one request."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries
        self.errors: list[dict[str, Any]] = []

    @classmethod
    def parse(cls, body: object) -> BulkOperation:
        if not isinstance(body, list) or not 1 <= len(body) <= BULK_LIMIT:
            found = f"{len(body)} entries" if isinstance(body, list) else type(body).__name__
            raise HubRequestError(
                "ArgumentInvalid", f"the body must be a list of 1 to {BULK_LIMIT} entries, not {found}"
            )
        return cls(body)

    def plan(self, core: HubCore) -> Change:
        """One change of all entries that can be done; `errors` holds the others."""
        self.errors = []
        changes: dict[str, Change] = {}
        for entry in self._entries:
            device_id = entry.get("id") if isinstance(entry, Mapping) else None
            try:
                change = _plan_entry(core, entry, changes)
                changes[str(device_id)] = change
            except HubRequestError as error:
                self.errors.append(_error_document(entry, error))
        return Change.together(changes.values())

    def document(self) -> dict[str, Any]:
        """A `BulkRegistryOperationResult`."""
        return {"isSuccessful": not self.errors, "errors": self.errors, "warnings": []}


def _plan_entry(core: HubCore, entry: object, done: Mapping[str, Change]) -> Change:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
        raise HubRequestError("ArgumentInvalid", "an entry must be a JSON object with an id")
    if entry["id"] in done:
        # The entries are planned on one state, so each device can appear once.
        raise HubRequestError("ArgumentInvalid", f"device {entry['id']!r} appears twice", where=entry["id"])
    mode = entry.get("importMode") or "createOrUpdate"
    operate = _MODES.get(mode)
    if operate is None:
        raise HubRequestError(
            "ArgumentInvalid",
            f"importMode must be one of {', '.join(_MODES)}, not {mode!r}",
            where=entry["id"],
        )
    key = IdentityKey(entry["id"], entry.get("moduleId") or None)
    return operate(core, key, entry)


def _put(core: HubCore, key: IdentityKey, entry: Mapping[str, Any], if_match: str | None) -> Change:
    return core.put_identity(key, IdentityRequest.parse(entry, key), if_match)


def _create_or_update(core: HubCore, key: IdentityKey, entry: Mapping[str, Any]) -> Change:
    return _put(core, key, entry, None if core.find(key) is None else "*")


_MODES: dict[str, Callable[[HubCore, IdentityKey, Mapping[str, Any]], Change]] = {
    "create": lambda core, key, entry: _put(core, key, entry, None),
    "createOrUpdate": _create_or_update,
    "update": lambda core, key, entry: _put(core, key, entry, "*"),
    "updateIfMatchETag": lambda core, key, entry: _put(core, key, entry, entry.get("eTag") or ""),
    "delete": lambda core, key, entry: core.delete_identity(key, "*"),
    "deleteIfMatchETag": lambda core, key, entry: core.delete_identity(key, entry.get("eTag") or ""),
}


def _error_document(entry: object, error: HubRequestError) -> dict[str, Any]:
    values = entry if isinstance(entry, Mapping) else {}
    return {
        "deviceId": values.get("id"),
        "moduleId": values.get("moduleId"),
        "errorCode": error.code,
        "errorStatus": error.message,
        "operation": values.get("importMode"),
    }
