"""HTTP to one OCI registry: authentication, redirects, retries, and errors that name whose answer it was.

Rules:

- Plain HTTP on loopback alone, TLS elsewhere; a redirect, token realm or upload address is held to the same rule.
- `Authorization` goes to the registry's own origin and nowhere else: cloud registries redirect blobs to object storage.
- A 401 is answered once, by Basic or by a token from the realm that the challenge names (distribution-spec; Docker's
  "Token Authentication"); a second 401 is final, since a token may simply carry fewer rights than were asked for.
- Temporary failures (no connection, cut short, 408, 429, 5xx) are tried four times in all, with growing random pauses of
  at most 10 s; a Retry-After is waited out instead, up to a limit (10 s on a device, a minute for a publisher).
- Threads that are refused together get one new token between them.
- No message holds a password, a token or a URL's query.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead, NewConnectionError, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from edge_contracts.redact import Secret, redact_text

from .errors import ContainerError, RegistryAuthError, RegistryError, RegistryUnavailableError
from .registry_answers import SUBJECTS, Answer, AskedFor, discard, refusal

MAX_TRIES = 4
MAX_PAUSE_S = 10.0
_FIRST_PAUSE_S = 0.5
_CONNECT_TIMEOUT_S = 10.0
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_WITH_BODY = frozenset({307, 308})
_MAX_TOKEN_BYTES = 1 << 20
CONNECTIONS = 8
IDENTITY_TOKEN_USER = "<token>"
"""User name under which Docker's logins carry an identity token as the password."""

_CHUNK_BYTES = 64 << 10
# "docker.io" is a name for people: its API is on this host, and its one-part names are in `library/`.
_DOCKER_HUB = ("docker.io", "registry-1.docker.io")
_START_COMMAND = "edgewright hub start"

Body = Callable[[], Any]
"""Gives the request's body anew for each sending: bytes, or an object with `read(size)`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """User name and password of a registry."""

    username: str
    password: Secret

    @property
    def header(self) -> Secret:
        pair = f"{self.username}:{self.password.reveal()}".encode()
        return Secret(f"Basic {base64.b64encode(pair).decode()}")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what is asked of which repository, and the statuses that answer it."""

    method: str
    url: str
    repository: str
    scopes: tuple[str, ...]
    expected: frozenset[int]
    headers: Mapping[str, str]
    body: Body | None = None

    @property
    def subject(self) -> str:
        """What the request is about, for messages."""
        kind, name = urlsplit(self.url).path.rstrip("/").split("/")[-2:]
        return f"{SUBJECTS.get(kind, 'upload')} {name}"


class RegistryTransport:
    """See the module. Safe to use from several threads."""

    def __init__(
        self,
        registry: str,
        *,
        credentials: BasicCredentials | None,
        ca_file: Path | None,
        timeout_s: float,
        tls: bool | None,
        max_pause_s: float = MAX_PAUSE_S,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.registry = registry
        host, is_loopback = _host(registry)
        if tls is False and not is_loopback:
            raise ValueError(f"plain HTTP is for loopback registries alone, not {registry!r}")
        scheme = "http" if (is_loopback if tls is None else not tls) else "https"
        self._is_docker_hub = host == _DOCKER_HUB[0]
        self.base_url = f"{scheme}://{_DOCKER_HUB[1] if self._is_docker_hub else registry}"
        self._credentials = credentials
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._max_pause_s = max_pause_s
        self._sleep = sleep
        self._jitter = jitter
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._authorizations: dict[tuple[str, ...], Secret] = {}
        self._basic: Secret | None = None
        self._renewing = threading.Lock()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def url(self, repository: str, tail: str) -> str:
        """Address of something of a repository, `tail` being such as `blobs/sha256:…`."""
        library = "library/" if self._is_docker_hub and "/" not in repository else ""
        return f"{self.base_url}/v2/{library}{repository}/{tail}"

    def send(self, call: Call) -> urllib3.BaseHTTPResponse:
        """Send, authenticate if asked to, and return an answer of an expected status, its body unread.

        Raises:
            RegistryError: of the kind the failure is.
        """
        used = self._authorization(call)
        response = self._follow(call, used)
        for _ in range(2):
            if response.status != HTTPStatus.UNAUTHORIZED:
                break
            used, is_new = self._authenticate(call, used, response)
            response = self._follow(call, used)
            if is_new:
                break
        if response.status not in call.expected:
            raise self._refusal(call, response)
        return response

    def read(self, response: urllib3.BaseHTTPResponse, repository: str, limit_bytes: int) -> bytes:
        """The answer's body; more than `limit_bytes` is refused."""
        data = b""
        with response:
            for chunk in self.stream(response, repository):
                data += chunk
                if len(data) > limit_bytes:
                    raise self.error(
                        RegistryError, f"answered with more than {limit_bytes} bytes", repository
                    )
        return data

    def stream(self, response: urllib3.BaseHTTPResponse, repository: str) -> Iterator[bytes]:
        """The answer's body in chunks, undecoded."""
        try:
            yield from response.stream(_CHUNK_BYTES, decode_content=False)
        except HTTPError as error:
            raise self._unreachable(error, repository) from error

    def retrying(self, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good, or was tried `MAX_TRIES` times."""
        for tried in range(1, MAX_TRIES):
            try:
                return attempt()
            except ContainerError as error:
                if not error.temporary:
                    raise
                self._sleep(self._pause_s(tried, getattr(error, "retry_after_s", None)))
        return attempt()

    def error(
        self, kind: type[RegistryError], text: str, repository: str, *, temporary: bool | None = None
    ) -> RegistryError:
        """An error of ours about what the registry did."""
        message = f"registry {self.registry} {text} (repository '{repository}')"
        return kind(message, registry=self.registry, repository=repository, temporary=temporary)

    def _pause_s(self, tried: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            # Never earlier than asked; later by up to a tenth, so that a fleet does not come back as one.
            return min(retry_after_s, self._max_pause_s) * (1 + self._jitter() / 10)
        longest_s = min(_FIRST_PAUSE_S * 4.0 ** (tried - 1), MAX_PAUSE_S)
        return longest_s * (0.5 + self._jitter() / 2)

    @property
    def _user(self) -> str | None:
        return self._credentials.username if self._credentials is not None else None

    def _authorization(self, call: Call) -> Secret | None:
        return self._authorizations.get(call.scopes, self._basic)

    def _follow(self, call: Call, authorization: Secret | None) -> urllib3.BaseHTTPResponse:
        """Send to where the redirects lead; a body goes along only where the status says that it must (RFC 9110)."""
        url = call.url
        followed = _REDIRECTS if call.method in ("GET", "HEAD") else _REDIRECTS_WITH_BODY
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send_once(call, url, authorization)
            location = response.headers.get("Location")
            if response.status not in followed or location is None:
                return response
            discard(response)
            url = urljoin(url, location)
        raise self.error(RegistryError, f"redirected more than {_MAX_REDIRECTS} times", call.repository)

    def _send_once(self, call: Call, url: str, authorization: Secret | None) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": "edgewright", "Accept-Encoding": "identity", **call.headers}
        if authorization is not None and _origin(url) == _origin(self.base_url):
            headers["Authorization"] = authorization.reveal()
        return self._exchange(call.method, url, headers, call.repository, call.body)

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], repository: str, body: Body | None = None
    ) -> urllib3.BaseHTTPResponse:
        pool = self._pool(url, repository)
        try:
            return pool.request(
                method,
                url,
                headers=headers,
                body=body() if body is not None else None,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            raise self._unreachable(error, repository, url) from error

    def _pool(self, url: str, repository: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        plain_allowed = _origin(url) == _origin(self.base_url) or _is_loopback(parts.hostname or "")
        if parts.scheme not in ("http", "https") or (parts.scheme == "http" and not plain_allowed):
            shown = f"{parts.scheme}://{parts.hostname}"
            raise self.error(
                RegistryError, f"sends us to {shown}, and only https is followed there", repository
            )
        if parts.scheme not in self._pools:
            self._pools[parts.scheme] = self._make_pool(parts.scheme)
        return self._pools[parts.scheme]

    def _make_pool(self, scheme: str) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=min(_CONNECT_TIMEOUT_S, self._timeout_s), read=self._timeout_s)
        context = self._ssl_context() if scheme == "https" else None
        return urllib3.PoolManager(
            retries=False,
            timeout=timeout,
            blocksize=_CHUNK_BYTES,
            maxsize=CONNECTIONS,
            ssl_context=context,
        )

    def _ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._ca_file is not None:
            # Beside the system's authorities, not instead: blobs of a private registry may lie in public storage.
            try:
                context.load_verify_locations(cafile=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ContainerError(
                    f"CA file {self._ca_file} of registry {self.registry} cannot be read: {error}",
                    where=str(self._ca_file),
                ) from error
        return context

    def _authenticate(
        self, call: Call, used: Secret | None, response: urllib3.BaseHTTPResponse
    ) -> tuple[Secret, bool]:
        """What to send instead of `used`, which the registry refused, and whether it was got just now.

        However many threads were refused, it is got once; one that another thread got may have expired since.
        """
        scheme, fields = _parse_challenge(response.headers.get("WWW-Authenticate", ""))
        refused = self._refusal(call, response)
        with self._renewing:
            present = self._authorization(call)
            if present is not None and present is not used:
                return present, False
            if scheme == "basic" and self._credentials is not None:
                self._basic = self._credentials.header
                return self._basic, True
            if scheme == "bearer" and "realm" in fields:
                self._authorizations[call.scopes] = token = self._token(call, fields)
                return token, True
        raise refused

    def _token(self, call: Call, challenge: Mapping[str, str]) -> Secret:
        query = [("scope", scope) for scope in _united(call.scopes, challenge.get("scope", ""))]
        if "service" in challenge:
            query.insert(0, ("service", challenge["service"]))
        realm = challenge["realm"]
        headers = {"User-Agent": "edgewright", "Accept-Encoding": "identity"}
        if self._user == IDENTITY_TOKEN_USER:
            response = self._exchange_identity_token(realm, query, headers, call)
        else:
            if self._credentials is not None:
                headers["Authorization"] = self._credentials.header.reveal()
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            response = self._exchange("GET", url, headers, call.repository)
        if response.status != HTTPStatus.OK:
            raise self._refusal(call, response)
        return self._read_token(self.read(response, call.repository, _MAX_TOKEN_BYTES), call.repository)

    def _exchange_identity_token(
        self, realm: str, query: list[tuple[str, str]], headers: Mapping[str, str], call: Call
    ) -> urllib3.BaseHTTPResponse:
        """Docker's "OAuth2 Token Authentication": the password is a refresh token."""
        assert self._credentials is not None
        names = [value for name, value in query if name == "scope"]
        form = [each for each in query if each[0] != "scope"] + [
            ("scope", " ".join(names)),
            ("grant_type", "refresh_token"),
            ("client_id", "edgewright"),
            ("refresh_token", self._credentials.password.reveal()),
        ]
        body = urlencode(form).encode()
        sent = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        return self._exchange("POST", realm, sent, call.repository, lambda: body)

    def _read_token(self, data: bytes, repository: str) -> Secret:
        try:
            document = json.loads(data)
            token = document.get("token") or document["access_token"]
        except (ValueError, KeyError, AttributeError) as error:
            raise self.error(
                RegistryAuthError, "answered a token request without a token", repository
            ) from error
        return Secret(f"Bearer {token}")

    def _refusal(self, call: Call, response: urllib3.BaseHTTPResponse) -> RegistryError:
        """The error an unexpected status stands for."""
        request = AskedFor(self.registry, call.repository, call.method, call.subject, self._user)
        return refusal(request, Answer.of(response))

    def _unreachable(
        self, error: HTTPError, repository: str, url: str | None = None
    ) -> RegistryUnavailableError:
        parts = urlsplit(url or self.base_url)
        peer = (
            ""
            if _origin(parts.geturl()) == _origin(self.base_url)
            else f" (at {parts.netloc.rpartition('@')[2]})"
        )
        is_trust = isinstance(error, SSLError)
        # On loopback it can only be the registry of the embedded hub, or one that the user started himself.
        next_command = _START_COMMAND if _is_loopback(parts.hostname or "") and not is_trust else None
        what = "has no certificate that is trusted here" if is_trust else "is not reachable"
        return RegistryUnavailableError(
            f"registry {self.registry} {what}{peer} for repository '{repository}': {self._reason(error)}",
            registry=self.registry,
            repository=repository,
            temporary=not is_trust,
            next_command=next_command,
        )

    def _reason(self, error: HTTPError) -> str:
        """The cause in a few words, without urllib3's object names."""
        incomplete = next((each for each in _causes(error) if isinstance(each, IncompleteRead)), None)
        if incomplete is not None:
            return f"connection closed with {incomplete.expected} bytes still to come"
        system = next((each for each in _causes(error) if isinstance(each, OSError)), None)
        if isinstance(error, Urllib3TimeoutError) and not isinstance(error, NewConnectionError):
            return f"no answer in {self._timeout_s:g} s"
        if system is not None:
            return system.strerror or str(system) or type(system).__name__
        if isinstance(error, ProtocolError):
            return "connection closed in the middle of an answer"
        return redact_text(str(error))


def _host(registry: str) -> tuple[str, bool]:
    parts = urlsplit(f"//{registry}")
    try:
        valid = bool(parts.hostname) and parts.netloc == registry and "@" not in registry and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.hostname is None:
        raise ContainerError(
            f"registry must be HOST or HOST:PORT, not {redact_text(registry)!r}", where="registry"
        )
    return parts.hostname, _is_loopback(parts.hostname)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts: SplitResult = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Scheme (lower case) and fields of `WWW-Authenticate`; of several challenges, Bearer."""
    match = re.search(r"\bBearer\b(.*)", header, re.IGNORECASE) or re.search(
        r"\bBasic\b(.*)", header, re.IGNORECASE
    )
    if match is None:
        return "", {}
    fields = re.findall(r'(\w+)="([^"]*)"', match[1])
    return match[0].split(None, 1)[0].lower(), {name.lower(): value for name, value in fields}


def _united(wanted: tuple[str, ...], challenged: str) -> tuple[str, ...]:
    """Our scopes and those the challenge names for other resources; ours already hold its actions on the same one."""
    resources = {scope.rpartition(":")[0] for scope in wanted}
    further = (scope for scope in challenged.split() if scope.rpartition(":")[0] not in resources)
    return (*wanted, *further)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, those it wraps as arguments (urllib3's habit) and those it came from."""
    while error is not None:
        yield error
        yield from (each for each in error.args if isinstance(each, BaseException))
        error = error.__cause__ or error.__context__
