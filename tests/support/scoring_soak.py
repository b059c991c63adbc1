"""Many requests of all kinds against a real scoring server, each answer checked, and the server's memory watched.

The client is one thread that writes bursts of pipelined requests to several connections before it reads: the server is
busy all the time, and the count, not the clock, says how much was asked.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import scoring_models as models
from scoring_server import TIMEOUT_S, ScoringServer

CONNECTIONS = 8
BURST = 16
FRESH = 4  # connections for one request each, in every round
GROWTH_LIMIT_BYTES = 5_000_000
_HEAD_LIMIT = 64 * 1024

SCRIPT = """
import json
def init(): pass
def run(data):
    return {"y": [[value * 2 for value in row] for row in json.loads(data)["data"]]}
"""


class WrongAnswerError(AssertionError):
    """What came is not what must come."""


@dataclass(slots=True)
class Report:
    """What one server was asked, and its resident memory after the first round, a tenth, and all of it."""

    server: str
    answered: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    rss_bytes: list[int] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.answered.total()

    @property
    def growth_bytes(self) -> int:
        return self.rss_bytes[-1] - self.rss_bytes[0]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))
        rss = " / ".join(f"{each / 1e6:.1f}" for each in self.rss_bytes)
        return (
            f"{self.server}: {self.requests} requests in {self.seconds:.1f} s "
            f"({self.requests / self.seconds:.0f}/s), 0 wrong answers; {kinds}; "
            f"RSS at start / 10 % / end {rss} MB, growth {self.growth_bytes / 1e6:+.1f} MB"
        )


class Connection:
    """A raw connection that reads whole answers, several of which may come in one piece."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head, body."""
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            self._more()
        head = self._data[:end]
        found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 ") or found is None:
            raise WrongAnswerError(f"no HTTP answer with a length: {head!r}")
        following = end + 4 + int(found[1])
        while len(self._data) < following:
            self._more()
        body, self._data = self._data[end + 4 : following], self._data[following:]
        return int(head[9:12]), head, body

    def is_closed(self) -> bool:
        """Whether the server closes it, with nothing left unread."""
        try:
            return self._data == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:  # it had not read all that we sent
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise WrongAnswerError(f"closed before the answer's end: {self._data!r}")
        self._data += data


def post(body: bytes, *lines: bytes, target: bytes = b"/score") -> bytes:
    head = [b"POST %b HTTP/1.1" % target, b"Host: x", b"Content-Type: application/json", *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that must be refused; `script_status` where a script, which reads the body itself, answers otherwise."""

    request: bytes
    status: int
    script_status: int | None = None
    closes: bool = False


MALFORMED = (
    Malformed(post(b'{"data": [[1, 2'), 400, 500),
    Malformed(post(b"\xff\xfe"), 400),
    Malformed(post(b'{"data": [1, 2, 3]}'), 400, 500),
    Malformed(post(b'{"data": [[1, 2, "x"]]}'), 400, 200),
    Malformed(post(b"[" * 5000), 400, 500),
    Malformed(post(b"a=1").replace(b"application/json", b"application/x-www-form-urlencoded"), 415),
    Malformed(post(b"{}", b"x-request-id: " + b"x" * 101), 431),
    Malformed(post(b"{}", target=b"/nothing"), 404),
    Malformed(b"PUT /score HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
    Malformed(b"no request at all\r\n\r\n", 400, closes=True),
    Malformed(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400, closes=True),
    Malformed(
        b"GET / HTTP/1.1\r\nHost: x\r\nx-bomb: " + b"x" * (_HEAD_LIMIT + 9) + b"\r\n\r\n", 431, closes=True
    ),
)


class Soak:
    """Rounds of requests; each kind counts what it had answered."""

    def __init__(self, server: ScoringServer, report: Report, *, is_script: bool) -> None:
        self._server = server
        self._report = report
        self._is_script = is_script
        self._numbers = itertools.count(1)
        self._malformed = itertools.cycle(MALFORMED)
        self._general: Iterator[Callable[[], None]] = itertools.cycle((self._chunked, self._routes))
        self._kept = [Connection(server.address) for _ in range(CONNECTIONS)]

    def close(self) -> None:
        for each in self._kept:
            each.socket.close()

    def round(self) -> None:
        bursts = [[next(self._numbers) for _ in range(BURST)] for _ in self._kept]
        for connection, numbers in zip(self._kept, bursts, strict=True):
            connection.send(b"".join(map(self._request, numbers)))
        for connection, numbers in zip(self._kept, bursts, strict=True):
            for number in numbers:
                self._check(connection, number)
        self._report.answered["kept alive"] += BURST * CONNECTIONS
        for _ in range(FRESH):
            self._fresh()
        next(self._general)()
        self._refused(next(self._malformed))
        self._given_up()

    @staticmethod
    def _request(number: int) -> bytes:
        # Every other head is unlike any before, as clients that send ids make them.
        lines = (b"x-request-id: soak-%d" % number,) if number % 2 else ()
        return post(b'{"data": [[%d, 0.5, -1]]}' % (number % 100_000), *lines)

    @staticmethod
    def _check(connection: Connection, number: int) -> bytes:
        status, head, body = connection.answer()
        wanted = {"y": [[number % 100_000 * 2, 1.0, -2]]}
        if status != 200 or json.loads(body) != wanted:
            raise WrongAnswerError(f"request {number}: expected {wanted}, found {status} {body!r}")
        if number % 2 and b"x-request-id: soak-%d\r\n" % number not in head + b"\r\n":
            raise WrongAnswerError(f"request {number}: its id is not in {head!r}")
        return head

    def _fresh(self) -> None:
        number = next(self._numbers)
        with Connection(self._server.address) as connection:
            connection.send(self._request(number).replace(b"Host: x", b"Host: x\r\nConnection: close"))
            self._check(connection, number)
            if not connection.is_closed():
                raise WrongAnswerError(f"request {number}: the connection was to be closed")
        self._report.answered["on a connection of its own"] += 1

    def _chunked(self) -> None:
        number = next(self._numbers)
        body = b'{"data": [[%d, 0.5, -1]]}' % (number % 100_000)
        lines = [b"POST /score HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked"]
        lines += [b"x-request-id: soak-%d" % number, b"", b"%x" % len(body), body, b"0", b"", b""]
        self._kept[0].send(b"\r\n".join(lines))
        self._check(self._kept[0], number)
        self._report.answered["chunked"] += 1

    def _routes(self) -> None:
        for target in (b"/", b"/ready", b"/metrics", b"/swagger.json"):
            self._kept[1].send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
            status, _, body = self._kept[1].answer()
            if status != 200 or not body:
                raise WrongAnswerError(f"GET {target.decode()}: {status} {body!r}")
            self._report.answered["other routes"] += 1

    def _refused(self, malformed: Malformed) -> None:
        wanted = malformed.script_status if self._is_script else None
        with Connection(self._server.address) as connection:
            connection.send(malformed.request)
            status, _, body = connection.answer()
            if status != (wanted or malformed.status):
                raise WrongAnswerError(
                    f"{malformed.request[:80]!r}: expected {malformed}, found {status} {body!r}"
                )
            if malformed.closes and not connection.is_closed():
                raise WrongAnswerError(f"{malformed.request[:80]!r}: the connection was to be closed")
        self._report.answered["malformed"] += 1

    def _given_up(self) -> None:
        """A client that goes away in the middle of its body; nobody is there to be answered."""
        with Connection(self._server.address) as connection:
            connection.send(post(b"x" * 1000)[:-500])


def soak(folder: Path, requests: int, *, is_script: bool, limit_s: float) -> Report:
    """Ask a new server that many requests.

    Raises:
        WrongAnswerError: an answer is not what it must be, the server is gone, or `limit_s` is over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_script:
        (folder / "score.py").write_text(SCRIPT)
    else:
        models.doubler(folder)
    arguments = ("--entry-script", "score.py") if is_script else ("--model", "model.onnx")
    report = Report("script" if is_script else "model")
    # A script that fails logs its traceback, thousands of times here; the disk is not what is tried.
    with ScoringServer(folder, *arguments, AZUREML_LOG_LEVEL="CRITICAL") as server:
        _ask(server, report, requests, is_script=is_script, limit_s=limit_s)
        if (code := server.stop()) != 0:
            raise WrongAnswerError(f"the server ended with {code}: {server.log}")
        if "supervisor" in server.log:
            raise WrongAnswerError(f"a worker was replaced: {server.log}")
    return report


def _ask(server: ScoringServer, report: Report, requests: int, *, is_script: bool, limit_s: float) -> None:
    started = time.monotonic()
    soaking = Soak(server, report, is_script=is_script)
    try:
        # Every kind once: what is loaded on first use is no growth.
        for _ in range(len(MALFORMED)):
            soaking.round()
        marks = [requests // 10, requests]
        report.rss_bytes.append(rss_bytes(server.process.pid))
        for mark in marks:
            while report.requests < mark:
                if time.monotonic() - started > limit_s:
                    raise WrongAnswerError(f"only {report.requests} of {requests} requests in {limit_s:g} s")
                soaking.round()
            report.rss_bytes.append(rss_bytes(server.process.pid))
    finally:
        soaking.close()
        report.seconds = time.monotonic() - started


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and of those it has started."""
    own = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(own[1]) * 1024 if own else 0) + sum(rss_bytes(int(child)) for child in children)
