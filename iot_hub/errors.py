"""What the hub refuses and how Azure names it.

HubError (edge_contracts)
├── HubRequestError   a request of a service client or a device; `code` is Azure's error name
├── HubStartError     the hub cannot start: port in use, data folder in use or damaged
└── HubStorageError   the hub's database refused a write; temporary
"""

from __future__ import annotations

from edge_contracts.errors import HubError

# Azure's error names (header `iothub-errorcode`) and the HTTP status each travels with.
STATUS_OF_CODE: dict[str, int] = {
    "ArgumentInvalid": 400,
    "IotHubFormatError": 400,
    "BulkRegistryOperationFailure": 400,
    "IotHubUnauthorizedAccess": 401,
    "IotHubQuotaExceeded": 403,
    "OperationNotAllowed": 403,
    "DeviceNotFound": 404,
    "ModuleNotFound": 404,
    "DeviceNotOnline": 404,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "RequestTimeout": 408,
    "DeviceAlreadyExists": 409,
    "ModuleAlreadyExistsOnDevice": 409,
    "TooManyModulesOnDevice": 409,
    "PreconditionFailed": 412,
    "RequestEntityTooLarge": 413,
    "ServerError": 500,
    "ServiceUnavailable": 503,
    "GatewayTimeout": 504,
}


class HubRequestError(HubError):
    """A request refused by the hub.

    Args:
        code: one of `STATUS_OF_CODE`, Azure's name of the error.
        message: what, where, expected, found.
    """

    def __init__(self, code: str, message: str, *, where: str | None = None) -> None:
        super().__init__(message, code=code, where=where, temporary=STATUS_OF_CODE[code] >= 500)

    @property
    def status(self) -> int:
        """HTTP status of the answer."""
        return STATUS_OF_CODE[self.code]


class HubStartError(HubError):
    """The hub cannot start; nothing was left half written."""

    code = "hub-start"


class HubStorageError(HubError):
    """The database refused a write; the request changed nothing."""

    code = "hub-storage"
    temporary = True
