"""Microsoft.ContainerRegistry in the ARM emulator: registries, the admin user, scope maps, tokens and their passwords."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from arm_emulator import SUBSCRIPTION, ArmAnswer, ArmError, ArmRequest, Route, not_found

NAMESPACE = "Microsoft.ContainerRegistry"
_ONE = "registries/{registry}"
_TOKEN = f"{_ONE}/tokens/{{name}}"
_SCOPE_MAP = f"{_ONE}/scopeMaps/{{name}}"


@dataclass
class TokenSecret:
    value: str
    created: datetime
    expires: datetime | None


@dataclass
class EmulatedToken:
    scope_map_id: str
    status: str
    passwords: dict[str, TokenSecret] = field(default_factory=dict)


@dataclass
class EmulatedRegistry:
    """One registry; `login_server` may be that of a real one beside the emulator."""

    name: str
    group: str
    login_server: str
    admin_enabled: bool = False
    admin_passwords: tuple[str, str] = ("admin-pass-1", "admin-pass-2")
    scope_maps: dict[str, list[str]] = field(default_factory=dict)
    tokens: dict[str, EmulatedToken] = field(default_factory=dict)

    @property
    def id(self) -> str:
        group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{self.group}"
        return f"{group}/providers/{NAMESPACE}/registries/{self.name}"

    def rights(self, username: str, password: str, now: datetime | None = None) -> list[str] | None:
        """Actions that a login has, as `repositories/NAME/content/read`; None when it is not good."""
        if self.admin_enabled and username == self.name and password in self.admin_passwords:
            return [f"repositories/*/content/{right}" for right in ("read", "write", "delete")]
        token = self.tokens.get(username)
        if token is None or token.status != "enabled":
            return None
        now = now or datetime.now(UTC)
        good = (
            secret.value == password and (secret.expires is None or now < secret.expires)
            for secret in token.passwords.values()
        )
        return self.scope_maps.get(token.scope_map_id.rpartition("/")[2], []) if any(good) else None


class ContainerRegistries:
    """The provider; `page` registries a page, so that a client must follow `nextLink`."""

    namespace = NAMESPACE

    def __init__(self, *registries: EmulatedRegistry, page: int = 2) -> None:
        self.registries = {registry.name: registry for registry in registries}
        self._page = page

    @property
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "registries", self._list, "registries/read", is_subscription_wide=True),
            Route("GET", "registries", self._list, "registries/read"),
            Route("GET", _ONE, self._get, "registries/read"),
            Route(
                "POST", f"{_ONE}/listCredentials", self._list_credentials, "registries/listCredentials/action"
            ),
            Route(
                "POST", f"{_ONE}/generateCredentials", self._generate, "registries/generateCredentials/action"
            ),
            Route("PUT", _SCOPE_MAP, self._put_scope_map, "registries/scopeMaps/write"),
            Route("GET", _SCOPE_MAP, self._get_scope_map, "registries/scopeMaps/read"),
            Route("DELETE", _SCOPE_MAP, self._delete_scope_map, "registries/scopeMaps/delete"),
            Route("PUT", _TOKEN, self._put_token, "registries/tokens/write"),
            Route("GET", _TOKEN, self._get_token, "registries/tokens/read"),
            Route("GET", f"{_ONE}/tokens", self._list_tokens, "registries/tokens/read"),
            Route("DELETE", _TOKEN, self._delete_token, "registries/tokens/delete"),
        )

    # Registries.

    def _list(self, request: ArmRequest) -> Any:
        found = [
            each for each in self.registries.values() if request.group.lower() in ("", each.group.lower())
        ]
        start = int(request.query.get("$skiptoken", "0"))
        document: dict[str, Any] = {"value": [_registry(each) for each in found[start : start + self._page]]}
        if start + self._page < len(found):
            version = request.query["api-version"]
            document["nextLink"] = (
                f"{request.base_url}{request.path}?api-version={version}&$skiptoken={start + self._page}"
            )
        return document

    def _get(self, request: ArmRequest) -> Any:
        return _registry(self._registry(request))

    def _list_credentials(self, request: ArmRequest) -> Any:
        registry = self._registry(request)
        if not registry.admin_enabled:
            text = f"Admin user is disabled for registry '{registry.name}'."
            raise ArmError(400, "UnAuthorizedForCredentialOperations", text)
        passwords = zip(("password", "password2"), registry.admin_passwords, strict=True)
        return {
            "username": registry.name,
            "passwords": [{"name": name, "value": value} for name, value in passwords],
        }

    def _generate(self, request: ArmRequest) -> ArmAnswer:
        registry, body = self._registry(request), request.body or {}
        prefix, _, name = str(body.get("tokenId", "")).rpartition("/")
        token = registry.tokens.get(name)
        if token is None or prefix.lower() != f"{registry.id}/tokens".lower():
            raise ArmError(400, "InvalidTokenId", "The token resource id is not one of this registry.")
        names = [body["name"]] if body.get("name") else ["password1", "password2"]
        if not set(names) <= {"password1", "password2"}:
            raise ArmError(400, "InvalidPasswordName", "The password name must be password1 or password2.")
        expires = datetime.fromisoformat(body["expiry"]) if body.get("expiry") else None
        if expires is not None and expires <= datetime.now(UTC):
            raise ArmError(400, "InvalidExpiry", "The expiry must be in the future.")

        def apply() -> Any:
            for each in names:
                token.passwords[each] = TokenSecret(secrets.token_hex(26), datetime.now(UTC), expires)
            shown = [_password(each, secret, shows=each in names) for each, secret in token.passwords.items()]
            return {"username": name, "passwords": shown}

        return ArmAnswer(status=202, apply=apply)

    # Scope maps.

    def _put_scope_map(self, request: ArmRequest) -> ArmAnswer:
        registry, name = self._registry(request), request.names["name"]
        _check_name(name, r"[A-Za-z0-9_-]{5,50}")
        actions = request.body["properties"]["actions"]
        for action in actions:
            if not re.fullmatch(
                r"repositories/[a-z0-9._/*-]+/(content|metadata)/(read|write|delete)", action
            ):
                raise ArmError(400, "InvalidScopeMapAction", f"The action '{action}' is not one.")

        def apply() -> Any:
            registry.scope_maps[name] = list(actions)
            return _scope_map(registry, name)

        return self._long_put(apply, lambda: _scope_map(registry, name, actions))

    def _get_scope_map(self, request: ArmRequest) -> Any:
        registry, name = self._registry(request), request.names["name"]
        if name not in registry.scope_maps:
            raise not_found(request, f"{NAMESPACE}/registries/{registry.name}/scopeMaps/{name}")
        return _scope_map(registry, name)

    def _delete_scope_map(self, request: ArmRequest) -> ArmAnswer:
        registry, name = self._registry(request), request.names["name"]
        users = [each for each, token in registry.tokens.items() if token.scope_map_id.endswith(f"/{name}")]
        if users:
            text = f"Scope map '{name}' is associated with tokens {users}."
            raise ArmError(409, "ScopeMapInUse", text)
        return ArmAnswer(status=202, apply=lambda: registry.scope_maps.pop(name, None) and None)

    # Tokens.

    def _put_token(self, request: ArmRequest) -> ArmAnswer:
        registry, name = self._registry(request), request.names["name"]
        _check_name(name, r"[A-Za-z0-9-]{5,50}")
        wanted = request.body["properties"]
        if str(wanted.get("scopeMapId", "")).rpartition("/")[2] not in registry.scope_maps:
            raise ArmError(400, "ScopeMapNotFound", "The scope map of the token does not exist.")

        def apply() -> Any:
            passwords = registry.tokens[name].passwords if name in registry.tokens else {}
            registry.tokens[name] = EmulatedToken(
                wanted["scopeMapId"], wanted.get("status", "enabled"), passwords
            )
            return _token(registry, name)

        pending = EmulatedToken(wanted["scopeMapId"], wanted.get("status", "enabled"))
        return self._long_put(apply, lambda: _token(registry, name, pending))

    def _get_token(self, request: ArmRequest) -> Any:
        registry, name = self._registry(request), request.names["name"]
        if name not in registry.tokens:
            raise not_found(request, f"{NAMESPACE}/registries/{registry.name}/tokens/{name}")
        return _token(registry, name)

    def _list_tokens(self, request: ArmRequest) -> Any:
        registry = self._registry(request)
        return {"value": [_token(registry, name) for name in registry.tokens]}

    def _delete_token(self, request: ArmRequest) -> ArmAnswer:
        registry, name = self._registry(request), request.names["name"]
        if name not in registry.tokens:
            return ArmAnswer(status=204)
        return ArmAnswer(status=202, apply=lambda: registry.tokens.pop(name) and None)

    @staticmethod
    def _long_put(apply: Any, pending: Any) -> ArmAnswer:
        document = pending()
        document["properties"]["provisioningState"] = "Creating"
        return ArmAnswer(document, 201, apply=apply)

    def _registry(self, request: ArmRequest) -> EmulatedRegistry:
        name = request.names["registry"].lower()
        found = self.registries.get(name)
        if found is None or found.group.lower() != request.group.lower():
            raise not_found(request, f"{NAMESPACE}/registries/{name}")
        return found


def _registry(registry: EmulatedRegistry) -> dict[str, Any]:
    return {
        "id": registry.id,
        "name": registry.name,
        "type": f"{NAMESPACE}/registries",
        "location": "westeurope",
        "sku": {"name": "Standard", "tier": "Standard"},
        "properties": {
            "loginServer": registry.login_server,
            "adminUserEnabled": registry.admin_enabled,
            "provisioningState": "Succeeded",
            "creationDate": "2026-01-01T00:00:00.000000Z",
        },
    }


def _scope_map(registry: EmulatedRegistry, name: str, actions: list[str] | None = None) -> dict[str, Any]:
    found = registry.scope_maps[name] if actions is None else actions
    return {
        "id": f"{registry.id}/scopeMaps/{name}",
        "name": name,
        "type": f"{NAMESPACE}/registries/scopeMaps",
        "properties": {"actions": found, "type": "UserDefined", "provisioningState": "Succeeded"},
    }


def _token(registry: EmulatedRegistry, name: str, token: EmulatedToken | None = None) -> dict[str, Any]:
    token = token or registry.tokens[name]
    passwords = [_password(each, secret, shows=False) for each, secret in token.passwords.items()]
    return {
        "id": f"{registry.id}/tokens/{name}",
        "name": name,
        "type": f"{NAMESPACE}/registries/tokens",
        "properties": {
            "scopeMapId": token.scope_map_id,
            "status": token.status,
            "credentials": {"passwords": passwords},
            "provisioningState": "Succeeded",
        },
    }


def _password(name: str, secret: TokenSecret, *, shows: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "creationTime": secret.created.isoformat()}
    if secret.expires is not None:
        document["expiry"] = secret.expires.isoformat()
    if shows:
        document["value"] = secret.value
    return document


def _check_name(name: str, pattern: str) -> None:
    if not re.fullmatch(pattern, name):
        raise ArmError(400, "InvalidResourceName", f"The resource name '{name}' must match {pattern}.")
