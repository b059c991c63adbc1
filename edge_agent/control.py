"""The agent's control socket: one JSON line in, one JSON line out, on a Unix socket of mode 0600 in the state folder.

Request: `{"op": NAME, …}`. Answer: `{"ok": true, "result": …}` or
`{"ok": false, "error": {"code", "message", "next"}}`. The operations are the agent's; the CLI is the client.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_contracts.errors import AgentError, EdgewrightError
from edge_contracts.redact import redact_text

SOCKET = "control.sock"
LINE_LIMIT = 1024 * 1024
TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 1.0
PARALLEL_CALLS = 8

Operation = Callable[[Mapping[str, Any]], Awaitable[Any]]


class AgentNotRunningError(AgentError):
    """Nobody answers on the control socket."""

    code = "agent-not-running"


class ControlError(AgentError):
    """The agent refused a request."""

    code = "control"


class ControlServer:
    """Serves operations to the CLI."""

    def __init__(self, state_dir: Path, operations: Mapping[str, Operation]) -> None:
        self._state_dir = state_dir
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._slots = asyncio.Semaphore(PARALLEL_CALLS)
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket left by an agent that was killed is replaced (the folder's lock is ours)."""
        with _short_path(self._state_dir) as path:
            with suppress(FileNotFoundError):
                Path(path).unlink()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            previous = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(previous)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_LIMIT)

    async def stop(self) -> None:
        """Stop listening, let calls that are being answered end, and take the socket away."""
        if self._server is not None:
            self._server.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=STOP_TIMEOUT_S)
        with suppress(OSError):
            (self._state_dir / SOCKET).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            async with self._slots, asyncio.timeout(TIMEOUT_S):
                answer = await self._answer(await reader.readline())
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # the caller went away, or sent no line
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            operation = self._operations.get(str(request.get("op")))
            if operation is None:
                raise ControlError(f"unknown operation '{request.get('op')}'")
            return {"ok": True, "result": await operation(request)}
        except EdgewrightError as error:
            return {"ok": False, "error": _document(error)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return {
                "ok": False,
                "error": {"code": "control", "message": f"not a request: {error!r}", "next": None},
            }


def _document(error: EdgewrightError) -> dict[str, Any]:
    return {"code": error.code, "message": redact_text(error.message), "next": error.next_command}


def call(state_dir: Path, op: str, **arguments: Any) -> Any:
    """Ask the running agent.

    Raises:
        AgentNotRunningError: no agent answers.
        ControlError: it refused; the message is its own.
    """
    try:
        with _short_path(state_dir) as path, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as file:
                line = file.readline()
    except OSError as error:
        raise AgentNotRunningError(
            f"no edge-agent answers in {state_dir}: {error.strerror or error}",
            where=str(state_dir),
            next_command="edge-agent run",
        ) from error
    return _result(line, state_dir)


def _result(line: bytes, state_dir: Path) -> Any:
    if not line:
        raise AgentNotRunningError(
            f"the edge-agent in {state_dir} closed the connection", next_command="edge-agent status"
        )
    answer = json.loads(line)
    if answer["ok"]:
        return answer["result"]
    error = answer["error"]
    raise ControlError(error["message"], code=error["code"], next_command=error["next"])


@contextmanager
def _short_path(state_dir: Path) -> Iterator[str]:
    """A path to the socket that fits a socket address (107 bytes) however deep the state folder lies."""
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
