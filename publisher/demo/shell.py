"""The demo's hands: commands exactly as a user types them, in the demo's folder, timed; and plain HTTP requests."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_contracts.errors import PublishError

COMMAND_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 10.0
# The programs as modules of this very interpreter, so that the demo needs no PATH.
PROGRAMS = {
    "edgewright": ["publisher.cli"],
    "edge-agent": ["edge_agent"],
    "python": [],
}


class CommandFailedError(PublishError):
    """A command of the demo failed; the message is the command's own."""

    code = "demo-command"


@dataclass(slots=True)
class Shell:
    """Runs commands in `folder` and keeps what was typed, but for `quiet` ones: looks that a user need not take."""

    folder: Path
    typed: list[str] = field(default_factory=list)

    def run(self, line: str, *, allowed: tuple[int, ...] = (0,), quiet: bool = False) -> str:
        """Run one command line; returns what it printed.

        Raises:
            CommandFailedError: an exit code that is not `allowed`.
        """
        if not quiet:
            self.typed.append(line)
        words = shlex.split(line)
        done = subprocess.run(
            [*self._program(words), *words[1 + (words[0] == "python") * 2 :]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode not in allowed:
            said = [text for text in done.stderr.strip().splitlines() if not text.startswith("next:")]
            hint = [
                text.removeprefix("next: ") for text in done.stderr.splitlines() if text.startswith("next: ")
            ]
            raise CommandFailedError(
                f"`{line}` failed with exit code {done.returncode}: "
                + "\n".join(said[-5:]).removeprefix("error: "),
                next_command=hint[-1] if hint else line,
            )
        return done.stdout

    def json(self, line: str, *, allowed: tuple[int, ...] = (0,), quiet: bool = False) -> Any:
        """Run a command that prints JSON."""
        return json.loads(self.run(line, allowed=allowed, quiet=quiet))

    def _program(self, words: list[str]) -> list[str]:
        module = PROGRAMS[words[0]]
        return [sys.executable, "-m", *(module or [words[2]])]


@dataclass(frozen=True, slots=True)
class Score:
    """What scoring a set of images gave."""

    right: int
    images: int

    def __str__(self) -> str:
        return f"{self.right} of {self.images} digits right ({100 * self.right / self.images:.1f} %)"


def score(uri: str, held_out: dict[str, Any]) -> Score:
    """Score every held-out image in one request."""
    answer = post(uri, {"data": held_out["data"]})
    return count_right(answer, held_out)


def count_right(answer: dict[str, Any], held_out: dict[str, Any]) -> Score:
    """Compare an answer with the truth."""
    pairs = list(zip(answer["digits"], held_out["digits"], strict=True))
    return Score(sum(found == true for found, true in pairs), len(pairs))


def post(uri: str, document: object) -> Any:
    """POST JSON, on a connection of its own."""
    request = urllib.request.Request(  # noqa: S310 - the scheme is ours
        uri, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:  # noqa: S310
        return json.loads(response.read())


class SteadyClient:
    """Scores one image again and again in the background, as a caller would while the device is updated."""

    def __init__(self, uri: str, held_out: dict[str, Any]) -> None:
        self._uri, self._image = uri, {"data": held_out["data"][:1]}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.requests = 0
        self.failed: list[str] = []

    def __enter__(self) -> SteadyClient:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(REQUEST_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.requests += 1
            try:
                post(self._uri, self._image)
            except (OSError, ValueError) as error:
                self.failed.append(str(error))
            time.sleep(0.005)
