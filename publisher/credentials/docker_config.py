"""What `docker login` left: `config.json` and the credential helpers it names.

Rules (docker/cli, `cli/config`; docker/docker-credential-helpers, "Development"):
- The file is `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
- A helper of `credHelpers` for the registry is asked first, else that of `credsStore`, else `auths` is read.
- A helper is the program `docker-credential-NAME`; `get` with the server on stdin answers
  `{"ServerURL", "Username", "Secret"}`, or exits 1 with a message on stdout.
- A login's `auth` is base64 of `user:password`. An identity token (`identitytoken`, or a helper's user `<token>`) stands
  in the place of a password and is exchanged for access tokens: user `<token>`, as Docker calls it.
- Docker Hub is `https://index.docker.io/v1/` there; other keys may carry a scheme and a path, which do not count.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_containers.registry_transport import IDENTITY_TOKEN_USER, BasicCredentials
from edge_contracts.errors import PublishError
from edge_contracts.redact import Secret, redact_text
from publisher.credentials.source import NoCredentialsError, PullCredential

HELPER_TIMEOUT_S = 30.0  # a key ring may ask its owner first
MAX_CONFIG_BYTES = 1 << 20
MAX_ANSWER_BYTES = 64 << 10
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND = "credentials not found in native keychain"  # the words of every helper of Docker's


class DockerConfigError(PublishError):
    """Docker's configuration, or a credential helper it names, cannot be used."""

    code = "docker-config"


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """Docker's configuration of one user.

    Attributes:
        path: its `config.json`; it need not be there.
        environ: what helpers run with.
    """

    path: Path
    environ: Mapping[str, str]

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> DockerConfig:
        """That of whoever has this environment."""
        folder = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME") or Path.home()) / ".docker")
        return cls(Path(folder) / "config.json", environ)

    def login(self, registry: str) -> BasicCredentials | None:
        """The login for a registry; None when Docker has none.

        Raises:
            DockerConfigError: the file or a helper is broken; the message holds no secret.
        """
        document = self._read()
        helper = _helper(document, registry, self.path)
        return self._ask(helper, registry) if helper else _from_auths(document, registry, self.path)

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        """The user's own login, for devices.

        Raises:
            NoCredentialsError: it is an identity token, which a device cannot use.
        """
        login = self.login(registry)
        if login is None:
            return None
        if login.username == IDENTITY_TOKEN_USER:
            raise NoCredentialsError(
                f"Docker's login at {registry} is an identity token: it ends in hours and manifests have no place for "
                "one; devices need a user name and a password of their own",
                where=str(self.path),
                next_command=f"edgewright registry credentials {registry} --source acr",
            )
        warning = f"these are your own credentials for {registry}: they may do more than pull, until you change them"
        return PullCredential(registry, login.username, login.password, "Docker config", warning=warning)

    def _read(self) -> Mapping[str, Any]:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _broken(self.path, f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_CONFIG_BYTES:
            raise _broken(self.path, f"is larger than {MAX_CONFIG_BYTES} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _broken(self.path, "is not JSON") from error
        return _mapping(document, "the whole", self.path)

    def _ask(self, helper: str, registry: str) -> BasicCredentials | None:
        program = f"docker-credential-{helper}"
        path = shutil.which(program, path=self.environ.get("PATH", os.defpath))
        if path is None:
            raise _broken(self.path, f"names the helper {program}, which is not on PATH")
        try:
            done = subprocess.run(
                [path, "get"],
                input=_server(registry).encode(),
                capture_output=True,
                timeout=HELPER_TIMEOUT_S,
                env=dict(self.environ),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _broken(self.path, f"{program} gave no answer in {HELPER_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise _broken(self.path, f"{program} cannot be started: {error.strerror}") from error
        answer = done.stdout[:MAX_ANSWER_BYTES].decode(errors="replace").strip()
        if done.returncode != 0:
            if _NOT_FOUND in answer:
                return None
            said = answer or done.stderr[:MAX_ANSWER_BYTES].decode(errors="replace").strip()
            first = redact_text(said.splitlines()[0][:200]) if said else f"exit code {done.returncode}"
            raise _broken(self.path, f"{program} failed for {registry}: {first}")
        return _from_helper(answer, program, self.path)


def _helper(document: Mapping[str, Any], registry: str, path: Path) -> str | None:
    helpers = _mapping(document.get("credHelpers") or {}, "credHelpers", path)
    name = _lookup(helpers, registry) or document.get("credsStore") or None
    if name is not None and (not isinstance(name, str) or not _HELPER_NAME.fullmatch(name)):
        raise _broken(path, "names a credential helper that cannot be a program's name")
    return name


def _from_auths(document: Mapping[str, Any], registry: str, path: Path) -> BasicCredentials | None:
    auths = _mapping(document.get("auths") or {}, "auths", path)
    entry = _lookup(auths, registry)
    where = f"auths.{registry}"
    login = _mapping(entry or {}, where, path)
    username, password = login.get("username"), login.get("password")
    if login.get("auth"):
        username, password = _decoded(login["auth"], where, path)
    if login.get("identitytoken"):
        username, password = IDENTITY_TOKEN_USER, login["identitytoken"]
    if not username and not password:
        return None
    return _basic(username, password, where, path)


def _decoded(auth: object, where: str, path: Path) -> tuple[str, str]:
    try:
        # Docker's own files are padded; those written by hand often are not.
        text = base64.b64decode(str(auth).strip() + "==", validate=False).decode()
    except (binascii.Error, ValueError) as error:
        raise _broken(path, f"has no base64 in '{where}.auth'") from error
    username, colon, password = text.partition(":")
    if not colon:
        raise _broken(path, f"has no 'user:password' in '{where}.auth'")
    return username, password.strip("\x00")


def _from_helper(answer: str, program: str, path: Path) -> BasicCredentials:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"{program} answered something that is not JSON") from error
    login = _mapping(document, f"{program}'s answer", path)
    return _basic(login.get("Username"), login.get("Secret"), f"{program}'s answer", path)


def _basic(username: object, password: object, where: str, path: Path) -> BasicCredentials:
    if not isinstance(username, str) or not isinstance(password, str) or not username or not password:
        raise _broken(path, f"has no user name and password in '{where}'")
    return BasicCredentials(username, Secret(password))


def _lookup(entries: Mapping[str, Any], registry: str) -> Any:
    for key in (_server(registry), registry):
        if key in entries:
            return entries[key]
    wanted = _host(registry)
    return next((value for key, value in entries.items() if _host(key) == wanted), None)


def _server(registry: str) -> str:
    return _DOCKER_HUB_KEY if registry.lower() in _DOCKER_HUB else registry


def _host(key: str) -> str:
    host = re.sub(r"^https?://", "", key.lower()).partition("/")[0]
    return _DOCKER_HUB[0] if host in _DOCKER_HUB else host


def _mapping(value: object, where: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _broken(path, f"has no JSON object in '{where}'")
    return value


def _broken(path: Path, why: str) -> DockerConfigError:
    return DockerConfigError(
        f"Docker's configuration {path} {why}", where=str(path), next_command="docker login"
    )
