"""Credentials of an Azure Container Registry: a pull-only token, or the admin user where nothing else will do.

Rules:
- A token is for one set of repositories, of a deployment or of one device: its name says which, so the same request
  finds the same token. Its scope map reads these repositories and nothing else.
- A token has two passwords. A new one goes into the slot of the older, so what devices have stays good until the next
  rotation after that.
- Azure shows a password once. It is kept in `.edgewright/secrets/` (0600) and given again until 14 days before its end;
  on a machine that has not kept it, a new one is generated.
- The admin user may do everything, for all repositories, for ever: taken only when it is asked for by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_contracts.redact import Secret
from publisher.config import AzureSettings
from publisher.credentials.source import (
    WARN_BEFORE_S,
    IssuedUser,
    NoCredentialsError,
    PullCredential,
    Wish,
)
from publisher.errors import ConfigError, NotFoundError
from publisher.signed_in import SignInError, TokenCredential, default_credential
from publisher.workspace import Workspace

if TYPE_CHECKING:
    from publisher.azure_registry import AzureRegistries, AzureRegistry, RegistryToken

AZURE_SUFFIXES = (".azurecr.io", ".azurecr.cn", ".azurecr.us")
TOKEN_PREFIX = "edgewright-"
SLOTS = ("password1", "password2")
# A token's name has 5 to 50 letters, digits and hyphens.
_STEM_CHARS = 24


class AdminUserDisabledError(NoCredentialsError):
    """The registry's admin user is switched off, as it should be."""

    code = "admin-user-disabled"


@dataclass(frozen=True, slots=True)
class AcrRegistries:
    """The Azure registries that a workspace's `[azure]` names; the SDK is imported when one is asked for."""

    settings: AzureSettings
    root: Path
    credential: TokenCredential | None = None

    def covers(self, registry: str) -> bool:
        """Whether the host's name says that it is Azure's."""
        return registry.lower().endswith(AZURE_SUFFIXES)

    def open(self, registry: str) -> tuple[AzureRegistries, AzureRegistry]:
        """The API, and the registry in it.

        Raises:
            ConfigError: `[azure]` does not name a subscription.
            SignInError: nobody is signed in, or the SDK is not installed.
            AzureError: whatever Azure answered.
        """
        settings = self.settings
        if not settings.subscription_id:
            raise ConfigError(
                f"registry {registry} is looked for in a subscription, and azure.subscription_id is not set",
                where="azure.subscription_id",
                next_command="az account show --query id",
            )
        try:
            from publisher.azure_registry import AzureRegistries
        except ImportError as error:
            raise SignInError(
                f"credentials of registry {registry} need Azure's SDK, which is not installed",
                next_command='pip install "edgewright[azure]"',
            ) from error
        azure = AzureRegistries(
            settings.subscription_id,
            self.credential or default_credential(),
            arm_endpoint=settings.arm_endpoint,
            ca_file=self.root / settings.ca_file if settings.ca_file else None,
        )
        found = azure.find(registry, resource_group=settings.resource_group, name=settings.container_registry)
        return azure, found


@dataclass(frozen=True, slots=True)
class AcrTokens:
    """Pull-only tokens.

    Attributes:
        only_azure_hosts: leave registries alone whose host does not say that they are Azure's.
        now: an aware time.
    """

    registries: AcrRegistries
    workspace: Workspace
    wish: Wish = field(default_factory=Wish)
    only_azure_hosts: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        if self.only_azure_hosts and not self.registries.covers(registry):
            return None
        azure, found = self.registries.open(registry)
        name = token_name(self.wish.device or self.workspace.name, registry, repositories)
        with self.workspace.lock(f"registry-{name}"):
            token = azure.token(found, name)
            kept = None if self.wish.rotate else self._kept(name, token)
            if kept is None:
                kept = self._generate(azure, found, name, repositories)
        return PullCredential(registry, name, kept.password, "Azure token", repositories, kept.expires)

    def users(self, registry: str) -> tuple[IssuedUser, ...]:
        azure, found = self.registries.open(registry)
        ours = (token for token in azure.tokens(found) if token.name.startswith(TOKEN_PREFIX))
        return tuple(
            IssuedUser(token.name, azure.repositories(found, token.scope_map_id), _last_end(token))
            for token in ours
        )

    def revoke(self, registry: str, username: str) -> None:
        azure, found = self.registries.open(registry)
        token = azure.token(found, username)
        if token is None:
            raise NotFoundError(
                f"registry {registry} has no token {username!r}",
                where=registry,
                next_command=f"edgewright registry list {registry}",
            )
        azure.delete_token(found, token)
        self.workspace.forget_secret(_secret_name(username))

    def _generate(
        self, azure: AzureRegistries, found: AzureRegistry, name: str, repositories: tuple[str, ...]
    ) -> KeptPassword:
        scope_map = azure.put_scope_map(found, name, repositories)
        token = azure.put_token(found, name, scope_map)
        slot = next_slot(token)
        expires = (self.now() + timedelta(seconds=self.wish.life_s)).replace(microsecond=0)
        kept = KeptPassword(slot, azure.generate_password(found, token, slot, expires), expires)
        self.workspace.write_secret(_secret_name(name), kept.dump())
        return kept

    def _kept(self, name: str, token: RegistryToken | None) -> KeptPassword | None:
        """What was generated here before, if it is still that token's and good for a while."""
        try:
            kept = KeptPassword.parse(self.workspace.read_secret(_secret_name(name)))
        except (NotFoundError, ValueError, KeyError):
            return None
        good_until = self.now() + timedelta(seconds=min(WARN_BEFORE_S, self.wish.life_s / 2))
        known = {} if token is None or not token.is_enabled else {each.name: each for each in token.passwords}
        still = kept.slot in known and known[kept.slot].expires == kept.expires
        return kept if still and kept.expires > good_until else None


@dataclass(frozen=True, slots=True)
class AcrAdmin:
    """The admin user: what the first scripts for this did (`list_credentials`)."""

    registries: AcrRegistries

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        azure, found = self.registries.open(registry)
        if not found.admin_enabled:
            raise AdminUserDisabledError(
                f"the admin user of registry {found.name} is disabled; a token that may only pull is the better way",
                where=found.id,
                next_command=f"edgewright registry credentials {registry} --source acr",
            )
        admin = azure.admin_credentials(found)
        if not admin.username or not any(admin.passwords):
            raise NoCredentialsError(
                f"Azure answered without the admin user's password for {registry}", where=found.id
            )
        warning = (
            f"this is the admin user of {registry}: it may push and delete everything there and does not end; "
            "use it to try something out, and --source acr for devices"
        )
        password = next(each for each in admin.passwords if each)
        return PullCredential(registry, admin.username, password, "Azure admin user", warning=warning)


@dataclass(frozen=True, slots=True)
class KeptPassword:
    """A generated password and the slot that it is in."""

    slot: str
    password: Secret
    expires: datetime

    @classmethod
    def parse(cls, text: Secret) -> KeptPassword:
        document: Mapping[str, Any] = json.loads(text.reveal())
        return cls(
            document["slot"], Secret(document["password"]), datetime.fromisoformat(document["expires"])
        )

    def dump(self) -> Secret:
        values = {
            "slot": self.slot,
            "password": self.password.reveal(),
            "expires": self.expires.isoformat(),
        }
        return Secret(json.dumps(values))


def token_name(owner: str, registry: str, repositories: tuple[str, ...]) -> str:
    """`edgewright-OWNER-HASH`: the same for the same owner, registry and repositories, in whatever order."""
    stem = re.sub(r"[^a-z0-9]+", "-", owner.lower()).strip("-")[:_STEM_CHARS].rstrip("-") or "workspace"
    request = json.dumps([owner, registry.lower(), sorted(repositories)])
    return f"{TOKEN_PREFIX}{stem}-{hashlib.sha256(request.encode()).hexdigest()[:12]}"


def next_slot(token: RegistryToken) -> str:
    """The slot to generate: one that is empty, else that of the older password."""
    earliest = datetime.min.replace(tzinfo=UTC)
    created = {each.name: each.created or earliest for each in token.passwords}
    empty = [slot for slot in SLOTS if slot not in created]
    return empty[0] if empty else min(SLOTS, key=lambda slot: created[slot])


def _last_end(token: RegistryToken) -> datetime | None:
    ends = [each.expires for each in token.passwords if each.expires is not None]
    return max(ends) if ends and token.is_enabled else None


def _secret_name(token: str) -> str:
    return f"registry-{token}.json"
