"""Debian's registry with the users of an emulated Azure registry: its tokens' scope maps say who may do what."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from arm_registries import EmulatedRegistry
from registry_tokens import TokenRegistry, TokenServer, token_registry

_ACTIONS = {"pull": "content/read", "push": "content/write"}


class AzureTokenServer(TokenServer):
    """Asks the emulated registry for every login, so that what is revoked or has ended gets no token."""

    def __init__(self, registry: EmulatedRegistry, *trust: Any) -> None:
        super().__init__(*trust)
        self._registry = registry
        self._rights: dict[str, list[str]] = {}

    def user_of(self, authorization: str, form: Mapping[str, list[str]]) -> str | None:
        _, _, encoded = authorization.partition(" ")
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        rights = self._registry.rights(name, password)
        if rights is None:
            return None
        self._rights[name] = rights
        return name

    def allowed(self, user: str, repository: str) -> set[str]:
        held = set(self._rights[user])
        return {
            action
            for action, right in _ACTIONS.items()
            if held & {f"repositories/{repository}/{right}", f"repositories/*/{right}"}
        }


@contextmanager
def azure_registry(folder: Path, registry: EmulatedRegistry) -> Iterator[TokenRegistry]:
    """The registry, at an address that becomes the login server."""
    with token_registry(folder, {}, partial(AzureTokenServer, registry)) as running:
        registry.login_server = running.address
        yield running
