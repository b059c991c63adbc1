"""Azure Container Registry's management API: every call of Microsoft's SDK that credentials need, with typed results.

Import this module only when Azure is meant: it imports the SDK (`edgewright[azure]`).

Rules:
- Whoever `azure-identity` finds signed in asks, unless a credential is given.
- A call is tried three times on 429 and 5xx, waiting at most 10 s each; a long operation is waited for five minutes.
- Foreign exceptions end here: see `ERRORS` and `_translated`.

AzureError
├── AzureNotFoundError       no such registry, resource group or subscription
├── AzureForbiddenError      signed in, without the right
├── AzureBusyError           429, 409, 5xx, no answer (temporary)
└── AzureOperationError      a long operation was begun and failed
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import RetryPolicy, SansIOHTTPPolicy
from azure.core.polling import LROPoller
from azure.mgmt import containerregistry
from azure.mgmt.containerregistry import models as sdk

from edge_contracts.errors import PublishError
from edge_contracts.redact import Secret, redact_text
from publisher.signed_in import TokenCredential, sign_in_error

PUBLIC_ENDPOINT = "https://management.azure.com"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
TRIES = 3
MAX_PAUSE_S = 10.0
POLL_INTERVAL_S = 1
OPERATION_TIMEOUT_S = 300.0
# Scope maps name one right each; these two are what a pull needs (Azure: "Repository-scoped permissions").
PULL_ACTIONS = ("content/read", "metadata/read")


class AzureError(PublishError):
    """Azure refused something, in a way that has no class of its own.

    Attributes:
        status: the HTTP status; None where there was no answer.
    """

    code = "azure"

    def __init__(self, message: str, *, status: int | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.status = status


class AzureNotFoundError(AzureError):
    """No such registry, resource group or subscription."""

    code = "azure-not-found"


class AzureForbiddenError(AzureError):
    """Whoever is signed in has not the right."""

    code = "azure-forbidden"


class AzureBusyError(AzureError):
    """Not now."""

    code = "azure-busy"
    temporary = True


class AzureOperationError(AzureError):
    """A long operation was accepted and then failed, or did not end in time."""

    code = "azure-operation"


ERRORS: Mapping[int, type[AzureError]] = {
    200: AzureOperationError,  # the answer of a long operation whose `status` is Failed
    403: AzureForbiddenError,
    404: AzureNotFoundError,
    409: AzureBusyError,
    429: AzureBusyError,
    500: AzureBusyError,
    502: AzureBusyError,
    503: AzureBusyError,
    504: AzureBusyError,
}


@dataclass(frozen=True, slots=True)
class AzureRegistry:
    """A registry as the management API describes it."""

    id: str
    name: str
    resource_group: str
    login_server: str
    admin_enabled: bool


@dataclass(frozen=True, slots=True)
class TokenPassword:
    """One of a token's two passwords; its value is known to whoever had it generated."""

    name: str
    created: datetime | None
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class RegistryToken:
    """A token: a user name with up to two passwords, bound to a scope map."""

    id: str
    name: str
    is_enabled: bool
    scope_map_id: str
    passwords: tuple[TokenPassword, ...]


@dataclass(frozen=True, slots=True)
class AdminCredentials:
    """The admin user and its two passwords."""

    username: str
    passwords: tuple[Secret, ...]


class AzureRegistries:
    """The registries of one subscription."""

    def __init__(
        self,
        subscription_id: str,
        credential: TokenCredential,
        *,
        arm_endpoint: str = PUBLIC_ENDPOINT,
        ca_file: Path | None = None,
    ) -> None:
        self.subscription_id = subscription_id
        endpoint = arm_endpoint.rstrip("/")
        trust = {} if ca_file is None else {"connection_verify": str(ca_file)}
        self._client = containerregistry.ContainerRegistryManagementClient(
            credential,  # type: ignore[arg-type]
            subscription_id,
            base_url=endpoint,
            credential_scopes=[f"{endpoint}/.default"],
            retry_policy=_Retries(),
            polling_interval=POLL_INTERVAL_S,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            **trust,
        )

    def find(self, login_server: str, *, resource_group: str = "", name: str = "") -> AzureRegistry:
        """The registry whose images are at `login_server`; with both others given it is not searched for.

        Raises:
            AzureNotFoundError: there is none.
        """
        place = f"subscription {self.subscription_id}" + (
            f", resource group {resource_group}" if resource_group else ""
        )
        with self._translated("looking for the registry", login_server, "registries/read"):
            if resource_group and name:
                found = [_registry(self._client.registries.get(resource_group, name))]
            elif resource_group:
                found = list(map(_registry, self._client.registries.list_by_resource_group(resource_group)))
            else:
                found = list(map(_registry, self._client.registries.list()))
        for each in found:
            if each.login_server.lower() == login_server.lower():
                return each
        servers = ", ".join(sorted(each.login_server for each in found)) or "none"
        raise AzureNotFoundError(
            f"no registry {login_server} in {place}; there: {servers}",
            where=login_server,
            next_command=f"az acr list --subscription {self.subscription_id} --output table",
        )

    def admin_credentials(self, registry: AzureRegistry) -> AdminCredentials:
        with self._translated("reading the admin user", registry.id, "registries/listCredentials/action"):
            found = self._client.registries.list_credentials(registry.resource_group, registry.name)
        passwords = tuple(Secret(each.value or "") for each in found.passwords or ())
        return AdminCredentials(found.username or "", passwords)

    def put_scope_map(self, registry: AzureRegistry, name: str, repositories: tuple[str, ...]) -> str:
        """Make the scope map that pulls these repositories, or make it so; returns its id."""
        actions = [f"repositories/{each}/{action}" for each in repositories for action in PULL_ACTIONS]
        wanted = sdk.ScopeMap(
            properties=sdk.ScopeMapProperties(actions=actions, description="Made by Edgewright: pull only.")
        )
        what = f"making scope map {name}"
        with self._translated(what, registry.id, "registries/scopeMaps/write"):
            poller = self._client.scope_maps.begin_create(
                registry.resource_group, registry.name, name, wanted
            )
            return str(_wait(poller, what).id)

    def repositories(self, registry: AzureRegistry, scope_map_id: str) -> tuple[str, ...]:
        """What a scope map may read."""
        name = scope_map_id.rpartition("/")[2]
        with self._translated(f"reading scope map {name}", registry.id, "registries/scopeMaps/read"):
            found = self._client.scope_maps.get(registry.resource_group, registry.name, name)
        suffix = f"/{PULL_ACTIONS[0]}"
        actions = found.properties.actions if found.properties else []
        return tuple(
            each.removeprefix("repositories/").removesuffix(suffix)
            for each in actions
            if each.endswith(suffix)
        )

    def token(self, registry: AzureRegistry, name: str) -> RegistryToken | None:
        """A token by name, None when there is none."""
        try:
            with self._translated(f"reading token {name}", registry.id, "registries/tokens/read"):
                return _token(self._client.tokens.get(registry.resource_group, registry.name, name))
        except AzureNotFoundError:
            return None

    def tokens(self, registry: AzureRegistry) -> tuple[RegistryToken, ...]:
        with self._translated("listing tokens", registry.id, "registries/tokens/read"):
            return tuple(map(_token, self._client.tokens.list(registry.resource_group, registry.name)))

    def put_token(self, registry: AzureRegistry, name: str, scope_map_id: str) -> RegistryToken:
        """Make a token, enabled, or make it so; its passwords stay."""
        wanted = sdk.Token(properties=sdk.TokenProperties(scope_map_id=scope_map_id, status="enabled"))
        what = f"making token {name}"
        with self._translated(what, registry.id, "registries/tokens/write"):
            poller = self._client.tokens.begin_create(registry.resource_group, registry.name, name, wanted)
            return _token(_wait(poller, what))

    def generate_password(
        self, registry: AzureRegistry, token: RegistryToken, password: str, expires: datetime
    ) -> Secret:
        """A new value for one of the two passwords; the other one stays good."""
        wanted = sdk.GenerateCredentialsParameters(token_id=token.id, name=password, expiry=expires)
        what = f"generating {password} of token {token.name}"
        with self._translated(what, registry.id, "registries/generateCredentials/action"):
            poller = self._client.registries.begin_generate_credentials(
                registry.resource_group, registry.name, wanted
            )
            made = _wait(poller, what)
        for each in made.passwords or ():
            if each.name == password and each.value:
                return Secret(each.value)
        raise AzureOperationError(f"{what}: the answer holds no value for it", where=registry.id)

    def delete_token(self, registry: AzureRegistry, token: RegistryToken) -> None:
        """Delete a token and the scope map of the same name."""
        what, names = f"deleting token {token.name}", (registry.resource_group, registry.name, token.name)
        with self._translated(what, registry.id, "registries/tokens/delete"):
            _wait(self._client.tokens.begin_delete(*names), what)
        if token.scope_map_id.rpartition("/")[2] == token.name:
            with self._translated(what, registry.id, "registries/scopeMaps/delete"):
                _wait(self._client.scope_maps.begin_delete(*names), what)

    @contextmanager
    def _translated(self, what: str, where: str, action: str) -> Iterator[None]:
        try:
            yield
        except ClientAuthenticationError as error:
            raise sign_in_error(f"subscription {self.subscription_id}", error) from error
        except (ServiceRequestError, ServiceResponseError) as error:
            text = f"Azure cannot be reached, {what}: {_first_line(error)}"
            raise AzureBusyError(text, where=where) from error
        except HttpResponseError as error:
            raise _refusal(error, what, where, f"Microsoft.ContainerRegistry/{action}") from error


class ContainerRegistryManagementClient(containerregistry.ContainerRegistryManagementClient):
    """Microsoft's client, called as scripts of 2019 call it: `list_credentials(group, name, custom_headers=None, raw=False)`.

    Those two options were of the SDK's former generation; today's passes them on to where they are unknown.
    """

    def __init__(
        self, credential: Any, subscription_id: str, base_url: str | None = None, **options: Any
    ) -> None:
        super().__init__(
            credential, subscription_id, base_url, per_call_policies=[_FormerOptions()], **options
        )


class _FormerOptions(SansIOHTTPPolicy[Any, Any]):
    def on_request(self, request: PipelineRequest[Any]) -> None:
        options = request.context.options
        if options.pop("raw", False):
            raise ValueError("raw=True is of the SDK's former generation: give raw_response_hook a function")
        request.http_request.headers.update(options.pop("custom_headers", None) or {})


class _Retries(RetryPolicy):
    """The SDK's retries with a bound on what Retry-After may ask for, and with jitter."""

    def __init__(self) -> None:
        super().__init__(retry_total=TRIES - 1, retry_backoff_factor=0.5, retry_backoff_max=MAX_PAUSE_S)

    def get_retry_after(self, response: Any) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, MAX_PAUSE_S)

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        return super().get_backoff_time(settings) * (0.5 + random.random() / 2)


def _wait(poller: LROPoller[Any], what: str) -> Any:
    """The result of a long operation.

    In steps of a second, because a thread that is joined without a timeout cannot be interrupted.
    """
    deadline = time.monotonic() + OPERATION_TIMEOUT_S
    while not poller.done():
        if time.monotonic() > deadline:
            raise AzureOperationError(f"{what} has not ended after {OPERATION_TIMEOUT_S:.0f} s")
        poller.wait(1.0)
    return poller.result()


def _refusal(error: HttpResponseError, what: str, where: str, action: str) -> AzureError:
    status = error.status_code
    said = error.error.message if error.error and error.error.message else error.message
    code = f" ({error.error.code})" if error.error and error.error.code else ""
    kind = ERRORS.get(status or 0, AzureError)
    text = redact_text(f"Azure refused {what}{code}: {said}")
    if kind is AzureForbiddenError:
        return kind(
            f"{text} Needed on the registry: Contributor, or a role with {action}",
            status=status,
            where=where,
            next_command=f'az role assignment create --assignee USER --role Contributor --scope "{where}"',
        )
    if kind is AzureNotFoundError:
        return kind(text, status=status, where=where, next_command="az acr list --output table")
    if status == 429 and error.response is not None:
        after = error.response.headers.get("Retry-After")
        text += f" Try again after {after} s." if after else ""
    return kind(text, status=status, where=where)


def _registry(found: sdk.Registry) -> AzureRegistry:
    properties = found.properties
    identifier = str(found.id)
    return AzureRegistry(
        id=identifier,
        name=str(found.name),
        resource_group=identifier.split("/")[4],  # /subscriptions/S/resourceGroups/G/providers/…
        login_server=(properties.login_server if properties else None) or "",
        admin_enabled=bool(properties and properties.admin_user_enabled),
    )


def _token(found: sdk.Token) -> RegistryToken:
    properties = found.properties or sdk.TokenProperties()
    passwords = properties.credentials.passwords if properties.credentials else None
    return RegistryToken(
        id=str(found.id),
        name=str(found.name),
        is_enabled=properties.status == "enabled",
        scope_map_id=properties.scope_map_id or "",
        passwords=tuple(
            TokenPassword(str(getattr(each.name, "value", each.name)), each.creation_time, each.expiry)
            for each in passwords or ()
        ),
    )


def _first_line(error: BaseException) -> str:
    return redact_text((str(error).strip().splitlines() or [type(error).__name__])[0])
