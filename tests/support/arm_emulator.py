"""Azure Resource Manager on loopback, for Microsoft's own clients: TLS with an authority of the test's own, bearer tokens,
routes of resource providers, errors as ARM writes them, long operations that are polled.

A provider is a value with `namespace` and `routes`, one file each (`arm_registries.py`): a route's template begins after
`/providers/NAMESPACE/`, or, with `is_subscription_wide`, is looked for under the subscription alone. A handler takes an
`ArmRequest` and answers a document (200), an `ArmAnswer`, or raises `ArmError`.

    with ArmEmulator(folder, [registries]) as arm:
        client = ContainerRegistryManagementClient(arm.credential, SUBSCRIPTION, base_url=arm.url, …)

Faults: `deny(action)` answers 403 to whoever needs that action, `fail_next(...)` answers the next matching requests with
an error, `fail_operation_at(...)` lets the next long operation there be accepted and then fail.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

from azure.core.credentials import AccessToken

from iot_hub.pki import ensure_pki

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = "scoring"
TOKEN = "FAKE-ARM-TOKEN"
_SCOPE = re.compile(r"/subscriptions/([^/]+)(?:/resourcegroups/([^/]+))?(?:/providers/([^/]+)/(.*))?", re.I)


class ArmError(Exception):
    """An answer that is an error: `{"error": {"code", "message"}}`."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    @property
    def document(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


@dataclass(frozen=True)
class ArmRequest:
    """One request; `names` are the template's parts."""

    method: str
    base_url: str
    path: str
    group: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class ArmAnswer:
    """What is answered; with `apply` it is a long operation, done when it was polled."""

    document: Any = None
    status: int = 200
    apply: Callable[[], Any] | None = None


Handler = Callable[[ArmRequest], Any]


@dataclass(frozen=True)
class Route:
    """`action` is the right that it takes, without the namespace."""

    method: str
    template: str
    handler: Handler
    action: str
    is_subscription_wide: bool = False


class Provider(Protocol):
    namespace: str

    @property
    def routes(self) -> Sequence[Route]: ...


@dataclass
class _Operation:
    """A long operation: `polls` answers of InProgress, then what `apply` gives, or `error`."""

    polls: int
    apply: Callable[[], Any]
    error: ArmError | None
    document: Any = None
    is_done: bool = False


@dataclass
class _Fault:
    method: str
    path: re.Pattern[str]
    error: ArmError
    left: int


class FakeCredential:
    """A credential as `azure-identity` makes them, with a token of the test's own."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.scopes: list[str] = []

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(self.token, int(time.time()) + 3600)


@dataclass
class ArmEmulator:
    """See the module; `requests` are `METHOD path` of everything that was let in; `polls` are answers
    of InProgress before a long operation ends, a second of the SDK's each."""

    folder: Path
    providers: Sequence[Provider]
    groups: set[str] = field(default_factory=lambda: {GROUP})
    requests: list[str] = field(default_factory=list)
    polls: int = 0

    def __post_init__(self) -> None:
        self.credential = FakeCredential()
        self._denied: set[str] = set()
        self._faults: list[_Fault] = []
        self._operation_faults: list[_Fault] = []
        self._operations: dict[str, _Operation] = {}
        self._lock = threading.Lock()
        files = ensure_pki(self.folder / "arm-pki", ["127.0.0.1", "localhost"])
        self.ca_file = files.ca_cert
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.server_cert, files.server_key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # Faults.

    def deny(self, *actions: str) -> None:
        """Take rights away, as `registries/tokens/write`."""
        self._denied |= {action.lower() for action in actions}

    def fail_next(self, error: ArmError, *, method: str = "", path: str = "", times: int = 1) -> None:
        self._faults.append(_Fault(method, re.compile(path, re.I), error, times))

    def fail_operation_at(self, path: str, code: str, message: str) -> None:
        """The next long operation that is begun at a matching path ends as Failed."""
        self._operation_faults.append(_Fault("", re.compile(path, re.I), ArmError(0, code, message), 1))

    # Answering.

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and document."""
        parts = urlsplit(target)
        with self._lock:
            try:
                return self._answer(method, parts.path, parts.query, headers, body)
            except ArmError as error:
                return error.status, error.headers, error.document

    def _answer(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        self._check_token(headers)
        self.requests.append(f"{method} {path}")
        if error := _due(self._faults, method, path):
            raise error
        if path.startswith("/operations/"):
            return self._poll(path)
        values = {name: found[0] for name, found in parse_qs(query).items()}
        if "api-version" not in values:
            raise ArmError(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        return self._route(method, path, values, body)

    def _route(
        self, method: str, path: str, query: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        scope = _SCOPE.fullmatch(path)
        if scope is None or scope[1] != SUBSCRIPTION:
            raise ArmError(404, "SubscriptionNotFound", f"The subscription of '{path}' could not be found.")
        group, namespace, rest = scope[2], scope[3] or "", scope[4] or ""
        if group is not None and group.lower() not in self.groups:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
        for provider in self.providers:
            for route in provider.routes:
                names = _match(route.template, rest)
                if (
                    provider.namespace.lower() != namespace.lower()
                    or names is None
                    or route.method != method
                    or route.is_subscription_wide != (group is None)
                ):
                    continue
                self._check_right(f"{provider.namespace}/{route.action}", route.action, path)
                request = ArmRequest(method, self.url, path, group or "", names, query, _json(body))
                return self._finished(route.handler(request), path)
        raise ArmError(404, "InvalidResourceType", f"No resource type is registered for {method} {path}.")

    def _finished(self, answer: Any, path: str) -> tuple[int, dict[str, str], Any]:
        if not isinstance(answer, ArmAnswer):
            return 200, {}, answer
        if answer.apply is None:
            return answer.status, {}, answer.document
        name = uuid.uuid4().hex
        self._operations[name] = _Operation(self.polls, answer.apply, _due(self._operation_faults, "", path))
        address = f"{self.url}/operations/{name}"
        headers = {"Azure-AsyncOperation": f"{address}/status", "Retry-After": "0"}
        if answer.status == 202:
            headers["Location"] = f"{address}/result"
        return answer.status, headers, answer.document

    def _poll(self, path: str) -> tuple[int, dict[str, str], Any]:
        _, _, name, kind = path.split("/")
        operation = self._operations[name]
        if kind == "result":
            return (200, {}, operation.document) if operation.document is not None else (204, {}, None)
        if operation.polls > 0:
            operation.polls -= 1
            return 200, {"Retry-After": "0"}, {"name": name, "status": "InProgress"}
        if operation.error is not None:
            return 200, {}, {"name": name, "status": "Failed", **operation.error.document}
        if not operation.is_done:
            operation.document, operation.is_done = operation.apply(), True
        return 200, {}, {"name": name, "status": "Succeeded"}

    def _check_token(self, headers: Mapping[str, str]) -> None:
        given = headers.get("Authorization", "")
        challenge = {
            "WWW-Authenticate": 'Bearer authorization_uri="https://login.invalid/", error="invalid_token"'
        }
        if not given:
            text = "Authentication failed. The 'Authorization' header is missing."
            raise ArmError(401, "AuthenticationFailed", text, challenge)
        if given != f"Bearer {TOKEN}":
            text = "The access token is invalid."
            raise ArmError(401, "InvalidAuthenticationToken", text, challenge)

    def _check_right(self, full_action: str, action: str, path: str) -> None:
        if action.lower() in self._denied:
            raise ArmError(
                403,
                "AuthorizationFailed",
                "The client 'someone' with object id '0' does not have authorization to perform action "
                f"'{full_action}' over scope '{path}' or the scope is invalid. If access was recently granted, please "
                "refresh your credentials.",
            )


def _due(faults: list[_Fault], method: str, path: str) -> ArmError | None:
    for fault in faults:
        if fault.left and fault.method in ("", method) and fault.path.search(path):
            fault.left -= 1
            return fault.error
    return None


def not_found(request: ArmRequest, what: str) -> ArmError:
    """ARM's 404 for a resource that is not there."""
    return ArmError(
        404,
        "ResourceNotFound",
        f"The Resource '{what}' under resource group '{request.group}' was not found. For more details please go to "
        "https://aka.ms/ARMResourceNotFoundFix",
    )


def _match(template: str, path: str) -> dict[str, str] | None:
    """ARM's paths are the same in whatever case; names keep theirs."""
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template)
    found = re.fullmatch(pattern, path.strip("/"), re.I)
    return None if found is None else found.groupdict()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        raise ArmError(400, "InvalidRequestContent", "The request content was invalid.") from None


def _handler(arm: ArmEmulator) -> type[BaseHTTPRequestHandler]:
    class ArmHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, document = arm.answer(self.command, self.path, self.headers, body)
            data = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if data:
                self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ArmHandler
