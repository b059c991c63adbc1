"""What the agent sees of its modules: the runtime's list, `/ready`, and what a module said before it died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from edge_agent.executors import goal_id
from edge_agent.planner import Health
from edge_containers.runtime import ModuleRuntime, ModuleStatus, RunningModule
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageRef
from edge_contracts.redact import redact_text

PROBE_TIMEOUT_S = 2.0
LAST_WORDS_LINES = 60
LAST_WORDS_LIMIT = 300

Probe = Callable[[RunningModule], Awaitable[Health]]


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at the runtime."""

    modules: tuple[RunningModule, ...]
    images: frozenset[str]
    last_words: dict[tuple[str, str], str]


def look(runtime: ModuleRuntime, images: Iterable[str], heard: Iterable[tuple[str, str]]) -> Sight:
    """List the modules, which of `images` are here, and the last words of ended starts not `heard` before."""
    modules = tuple(runtime.list())
    known = frozenset(heard)
    words = {
        (module.name, module.instance_id): last_words(_logs(runtime, module.name))
        for module in modules
        if module.status is ModuleStatus.EXITED and (module.name, module.instance_id) not in known
    }
    here = frozenset(image for image in images if runtime.has_image(ImageRef.parse(image)))
    return Sight(modules, here, words)


def goal_key(module: RunningModule) -> tuple[str, str]:
    """Name and goal instance id of a start."""
    return (module.name, goal_id(module.instance_id))


async def probe(module: RunningModule) -> Health:
    """Ask the module's health address whether it is ready."""
    if module.health_address is None:
        return Health.NONE
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return Health.READY if await _status(*module.health_address) == 200 else Health.NOT_READY
    except (OSError, TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError):
        return Health.NOT_READY


async def _status(host: str, port: int) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=4096)
    try:
        writer.write(f"GET /ready HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def last_words(log: str) -> str:
    """The line that says best why a module died: its last traceback's exception, else its last line.

    >>> last_words('Traceback (most recent call last):\\n  File "score.py", line 3, in init\\nValueError: no weights\\n')
    'ValueError: no weights (score.py line 3)'
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if not starts:
        return _clipped(lines[-1]) if lines else ""
    place = ""
    for line in lines[starts[-1] + 1 :]:
        if line.lstrip().startswith('File "'):
            place = _place(line)
        elif not line.startswith((" ", "\t")):
            return _clipped(f"{line} ({place})" if place else line)
    return _clipped(lines[-1])


def _place(line: str) -> str:
    file, _, rest = line.strip().removeprefix('File "').partition('"')
    number = rest.removeprefix(", line ").partition(",")[0]
    return f"{file.rpartition('/')[2]} line {number}"


def _clipped(text: str) -> str:
    safe = redact_text(text.strip())
    return safe if len(safe) <= LAST_WORDS_LIMIT else safe[: LAST_WORDS_LIMIT - 1] + "…"


def _logs(runtime: ModuleRuntime, name: str) -> str:
    try:
        return runtime.logs(name, LAST_WORDS_LINES)
    except (EdgewrightError, OSError):
        return ""
