"""Access to a hub as whoever is signed in to Azure, in place of a policy's key: `azure-identity`'s tokens.

Set `EDGEWRIGHT_HUB_HOST=NAME.azure-devices.net`, and sign in (`az login`, a managed identity, environment variables):
`DefaultAzureCredential` finds it. Shown with a credential of a test's own, never with the live service.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_contracts.errors import PublishError

# The audience of IoT Hub's service API (azure-iot-hub asks for the same).
SCOPE = "https://iothubs.azure.net/.default"
_SILENCE = logging.NullHandler()


class TokenCredential(Protocol):
    """What `azure-identity` makes; its tokens are cached by it."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        """An access token: `.token` and `.expires_on`."""


class SignInError(PublishError):
    """Nobody is signed in, or `azure-identity` is not installed."""

    code = "sign-in"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A hub by its name (`host` or `host:port`), and who asks."""

    host: str
    credential: TokenCredential = field(repr=False)

    def authorization(self) -> str:
        """The header's value.

        Raises:
            SignInError: no token could be had.
        """
        try:
            return f"Bearer {self.credential.get_token(SCOPE).token}"
        except Exception as error:  # azure-identity's own tree, which is not imported for this
            raise sign_in_error(f"hub {self.host}", error) from error


def sign_in(host: str) -> SignedIn:
    """Whoever `azure-identity` finds signed in; asked for a token only when one is needed.

    Raises:
        SignInError: the package is not installed.
    """
    return SignedIn(host, default_credential())


def default_credential() -> TokenCredential:
    """Whoever `azure-identity` finds: environment variables, a managed identity, `az login`, …

    Raises:
        SignInError: the package is not installed.
    """
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise SignInError(
            "signing in needs the package azure-identity, which is not installed",
            next_command='pip install "edgewright[cloud]"',
        ) from error
    # It logs a page about every way it tried, which without a handler goes to stderr; the error says what counts.
    logging.getLogger("azure.identity").addHandler(_SILENCE)
    return DefaultAzureCredential()


def sign_in_error(peer: str, error: BaseException) -> SignInError:
    """Why nobody could be signed in: the first line of the SDK's own words, and what it says of `az login`."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    attempt = next((line.strip() for line in said[1:] if line.startswith("\tAzureCliCredential")), "")
    return SignInError(
        f"nobody is signed in to Azure for {peer}: {said[0]} {attempt}".rstrip(),
        where=peer,
        next_command="az login",
    )
