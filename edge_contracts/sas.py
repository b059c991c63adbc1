"""SAS tokens and connection strings.

Rules (IoT Hub, "Control access to IoT Hub with shared access signatures"):
- A token is `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`, its fields in any order.
- The signature is base64(HMAC-SHA256(base64-decoded key, sr + newline + se)) over `sr` exactly as the token spells it,
  because SDKs percent-encode differently.
- A token opens its resource and what lies below it: `host` opens `host/devices/d`, `host/devices/d` does not open
  `host/devices/d2`. Host names compare without case, ids with.
- Either key of an identity opens it; signatures are compared in constant time.

>>> token = make_sas("hub.example/devices/d", "a2V5", expiry=2_000_000_000)
>>> verify_sas(token, ["b3RoZXI=", "a2V5"], audience="hub.example/devices/d", now=1_900_000_000).resource
'hub.example/devices/d'
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from edge_contracts.errors import ContractError, SasError, shown
from edge_contracts.redact import Secret

_PREFIX = "SharedAccessSignature "


@dataclass(frozen=True, slots=True)
class SasToken:
    """A token that was read, not yet verified; `signed_resource` is `resource` as the token spells it."""

    resource: str
    signature: str = field(repr=False)
    expiry: int
    policy: str | None
    signed_resource: str


def make_sas(resource_uri: str, key_b64: str, *, expiry: int, policy: str | None = None) -> str:
    """A token for `resource_uri` that ends at `expiry` (seconds since the epoch).

    Raises:
        ContractError: the key is not base64.
    """
    resource = quote(resource_uri, safe="")
    signature = quote(sign(key_b64, f"{resource}\n{expiry}".encode()), safe="")
    name = "" if policy is None else f"&skn={quote(policy, safe='')}"
    return f"{_PREFIX}sr={resource}&sig={signature}&se={expiry}{name}"


def sign(key_b64: str, data: bytes) -> str:
    """base64(HMAC-SHA256(key, data)): what the workload API's `sign` answers, too.

    Raises:
        ContractError: the key is not base64.
    """
    return base64.b64encode(hmac.digest(_key_bytes(key_b64), data, "sha256")).decode()


def parse_sas(token: str) -> SasToken:
    """Read a token.

    Raises:
        SasError: code `sas-malformed`; the message never holds the signature.
    """
    if not token.startswith(_PREFIX):
        raise SasError("SAS token must begin with 'SharedAccessSignature sr='", code="sas-malformed")
    fields = dict(_pair(part, "&") for part in token.removeprefix(_PREFIX).strip().split("&"))
    missing = [name for name in ("sr", "sig", "se") if not fields.get(name)]
    if missing:
        raise SasError(
            f"SAS token must have the fields sr, sig and se: {', '.join(missing)} not found",
            code="sas-malformed",
        )
    if not (fields["se"].isascii() and fields["se"].isdigit() and len(fields["se"]) <= 19):
        raise SasError(
            f"SAS token field se must be seconds since the epoch, not {shown(fields['se'])}",
            code="sas-malformed",
        )
    policy = fields.get("skn")
    return SasToken(
        resource=unquote(fields["sr"]),
        signature=unquote(fields["sig"]),
        expiry=int(fields["se"]),
        policy=unquote(policy) if policy else None,
        signed_resource=fields["sr"],
    )


def verify_sas(token: str, keys_b64: Iterable[str], *, audience: str, now: float) -> SasToken:
    """Read `token` and hold it against `audience` (what is to be opened), the clock and the keys.

    Raises:
        SasError: code `sas-malformed`, `sas-audience`, `sas-expired` or `sas-signature`.
        ContractError: a key is not base64.
    """
    parsed = parse_sas(token)
    if not _opens(parsed.resource, audience):
        raise SasError(
            f"SAS token is for {shown(parsed.resource)}, which does not open {shown(audience)}",
            code="sas-audience",
        )
    if now >= parsed.expiry:
        raise SasError(
            f"SAS token for {shown(audience)} ended at {parsed.expiry}, now is {int(now)}", code="sas-expired"
        )
    signed = f"{parsed.signed_resource}\n{parsed.expiry}".encode()
    given = parsed.signature.encode()
    # Every key is tried, so that the time taken does not say which one came close.
    matches = [hmac.compare_digest(sign(key, signed).encode(), given) for key in keys_b64]
    if not any(matches):
        raise SasError(f"SAS token for {shown(audience)} is signed by none of its keys", code="sas-signature")
    return parsed


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """What a device, a module or a service presents: where the hub is, who it is and its key."""

    host_name: str
    shared_access_key: Secret
    port: int | None = None
    device_id: str | None = None
    module_id: str | None = None
    shared_access_key_name: str | None = None
    gateway_host_name: str | None = None

    @classmethod
    def parse(cls, text: str, *, where: str = "connection string") -> ConnectionString:
        """Read `Name=value;…`; names compare without case, a value may hold `=`.

        Raises:
            ContractError: code `connection-string`; the message names the field, never a key.
        """
        known = {name.lower(): field_name for name, field_name in _CONNECTION_FIELDS}
        values: dict[str, str] = {}
        for part in filter(None, text.strip().split(";")):
            name, value = _pair(part, ";")
            if name.lower() not in known:
                raise _connection_error(where, f"unknown field {shown(name)}; known are {_names_of_fields()}")
            if known[name.lower()] in values:
                raise _connection_error(where, f"field {name} appears twice")
            values[known[name.lower()]] = value
        for name, field_name in _CONNECTION_FIELDS:
            if name in ("HostName", "SharedAccessKey") and not values.get(field_name):
                raise _connection_error(where, f"field {name} is missing")
        if ("device_id" in values) == ("shared_access_key_name" in values):
            raise _connection_error(
                where, "expected DeviceId (a device) or SharedAccessKeyName (a service), not both"
            )
        _key_bytes(values["shared_access_key"])
        host, port = split_authority(values.pop("host_name"), where=where)
        key = Secret(values.pop("shared_access_key"))
        return cls(host_name=host, port=port, shared_access_key=key, **values)

    def format(self) -> str:
        """The text form, key included: for a file of mode 0600, never for a log."""
        values = {
            "host_name": self.authority,
            "device_id": self.device_id,
            "module_id": self.module_id,
            "shared_access_key_name": self.shared_access_key_name,
            "shared_access_key": self.shared_access_key.reveal(),
            "gateway_host_name": self.gateway_host_name,
        }
        return ";".join(
            f"{name}={values[key]}" for name, key in _CONNECTION_FIELDS if values[key] is not None
        )

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as SAS resources and URLs spell it."""
        return self.host_name if self.port is None else f"{self.host_name}:{self.port}"

    @property
    def resource_uri(self) -> str:
        """What this identity's tokens are for: `host[:port][/devices/d[/modules/m]]`."""
        device = "" if self.device_id is None else f"/devices/{self.device_id}"
        module = "" if self.module_id is None else f"/modules/{self.module_id}"
        return f"{self.authority}{device}{module}"


_CONNECTION_FIELDS: tuple[tuple[str, str], ...] = (
    ("HostName", "host_name"),
    ("DeviceId", "device_id"),
    ("ModuleId", "module_id"),
    ("SharedAccessKeyName", "shared_access_key_name"),
    ("SharedAccessKey", "shared_access_key"),
    ("GatewayHostName", "gateway_host_name"),
)


def _names_of_fields() -> str:
    return ", ".join(name for name, _ in _CONNECTION_FIELDS)


def _pair(part: str, separator: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip()


def split_authority(host: str, *, where: str = "host") -> tuple[str, int | None]:
    """`host` or `host:port` in its parts; an IPv6 address is in brackets.

    Raises:
        ContractError: code `connection-string`: the port is none.
    """
    name, colon, digits = host.rpartition(":")
    if not colon or host.endswith("]") or (":" in name and not name.endswith("]")):
        return host, None
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) <= 65535):
        raise _connection_error(where, f"port of HostName must be 1 to 65535, not {shown(digits)}")
    return name, int(digits)


def _opens(resource: str, audience: str) -> bool:
    wanted, given = audience.split("/"), resource.rstrip("/").split("/")
    return given[0].lower() == wanted[0].lower() and bool(given[0]) and given[1:] == wanted[1 : len(given)]


def _key_bytes(key_b64: str) -> bytes:
    try:
        return base64.b64decode(key_b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ContractError("Shared access key must be base64", code="shared-access-key") from error


def _connection_error(where: str, problem: str) -> ContractError:
    return ContractError(f"Bad {where}: {problem}", code="connection-string", where=where)
