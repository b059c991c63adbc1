"""Who is speaking: SAS tokens of policies, devices and modules held against the hub's keys.

- A token with `skn` is a policy's and opens what the policy has the right to, on the resource it is for and below.
- Any other token is an identity's own, signed with its primary or secondary key.
- A refusal says the same to a client whatever was wrong; the reason goes to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from edge_contracts.errors import ContractError
from edge_contracts.sas import SasToken, parse_sas, verify_sas
from iot_hub.core import HubCore
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey
from iot_hub.policies import Right, SharedAccessPolicy

log = logging.getLogger(__name__)


class Authenticator:
    """Checks tokens.

    Args:
        now: seconds since the epoch.
    """

    def __init__(
        self, core: HubCore, policies: Mapping[str, SharedAccessPolicy], now: Callable[[], float]
    ) -> None:
        self._core = core
        self._policies = policies
        self._now = now

    def check_service(self, token: str, audiences: Iterable[str], right: Right) -> SasToken:
        """A service client's token, for one of `audiences` (`host/path`), by a policy with `right`.

        Raises:
            HubRequestError: IotHubUnauthorizedAccess.
        """
        parsed = self._parse(token)
        policy = self._policies.get(parsed.policy or "")
        if policy is None or right not in policy.rights:
            raise _refuse(f"policy {parsed.policy!r} has not the right {right.name}")
        return self._verify(token, policy.keys, audiences)

    def check_identity(self, token: str, key: IdentityKey, audiences: Iterable[str]) -> SasToken:
        """An identity's own token, or one of a policy with the right to connect devices.

        Raises:
            HubRequestError: IotHubUnauthorizedAccess, also for identities that are unknown or disabled.
        """
        record = self._core.find(key)
        if record is None or not self._core.is_enabled(key):
            raise _refuse(f"{str(key)!r} is {'unknown' if record is None else 'disabled'}")
        if self._parse(token).policy is not None:
            return self.check_service(token, audiences, Right.DEVICE_CONNECT)
        return self._verify(token, record.keys, audiences)

    def _parse(self, token: str) -> SasToken:
        try:
            return parse_sas(token)
        except ContractError as error:
            raise _refuse(error.message) from error

    def _verify(self, token: str, keys: Iterable[str], audiences: Iterable[str]) -> SasToken:
        mistake: ContractError | None = None
        for audience in audiences:
            try:
                return verify_sas(token, keys, audience=audience, now=self._now())
            except ContractError as error:
                mistake = error
        raise _refuse(mistake.message if mistake else "no audience") from mistake


def token_host(token: SasToken) -> str:
    """The host that a token is for, where the protocol at hand says no other name of the hub."""
    return token.resource.partition("/")[0]


def _refuse(reason: str) -> HubRequestError:
    log.info("refused: %s", reason)
    return HubRequestError("IotHubUnauthorizedAccess", "Unauthorized")
