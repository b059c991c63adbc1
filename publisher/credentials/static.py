"""User names and passwords that the user has from elsewhere, passed on as they are.

A line of `registry.logins` in `edgewright.toml` is `HOST USERNAME env:VARIABLE` or `HOST USERNAME file:PATH`: it says
where the password is, never what it is. A path is relative to the workspace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_contracts.redact import Secret
from publisher.credentials.source import PullCredential
from publisher.errors import ConfigError

SETTING = "registry.logins"
MAX_PASSWORD_BYTES = 64 << 10
_FORM = "'HOST USERNAME env:VARIABLE' or 'HOST USERNAME file:PATH'"


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """One registry's user name and password as the user gave them: for all of its repositories."""

    registry: str
    username: str
    password: Secret

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        if registry.lower() != self.registry.lower():
            return None
        return PullCredential(registry, self.username, self.password, "given")


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """The logins of `edgewright.toml`; a password is read when it is needed."""

    logins: Sequence[str]
    folder: Path
    environ: Mapping[str, str]

    def login(self, registry: str) -> GivenCredentials | None:
        """That of a registry, None when no line names it.

        Raises:
            ConfigError: a line is not as it must be, or its password is not where it says.
        """
        for line in self.logins:
            host, username, kind, place = _parse(line)
            if host.lower() == registry.lower():
                return GivenCredentials(host, username, self._password(host, kind, place))
        return None

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        login = self.login(registry)
        return None if login is None else login.pull_credential(registry, repositories)

    def _password(self, host: str, kind: str, place: str) -> Secret:
        text = self._from_file(host, place) if kind == "file" else self.environ.get(place, "")
        if not text:
            found = f"file {place} is empty" if kind == "file" else f"variable {place} is not set"
            raise ConfigError(f"{SETTING}: no password for registry {host}: {found}", where=SETTING)
        return Secret(text)

    def _from_file(self, host: str, place: str) -> str:
        path = self.folder / Path(place).expanduser()
        try:
            with path.open("rb") as file:
                return file.read(MAX_PASSWORD_BYTES).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(
                f"{SETTING}: the password for registry {host} cannot be read from {path}: {reason}",
                where=os.fspath(path),
            ) from error


def _parse(line: str) -> tuple[str, str, str, str]:
    words = line.split()
    kind, colon, place = words[2].partition(":") if len(words) == 3 else ("", "", "")
    if kind not in ("env", "file") or not colon or not place:
        # The line itself is not shown: a password typed into it by mistake would be.
        host = words[0] if words else "nothing"
        raise ConfigError(f"{SETTING} must have lines {_FORM}; the one for {host!r} is not", where=SETTING)
    return words[0], words[1], kind, place
