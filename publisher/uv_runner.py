"""The one place that runs uv: found in the installed `uv` package, bounded in time, killed with its caller.

Index settings travel in the environment, not in the arguments, because an index URL may hold a password and arguments
are public to every user of the machine. What uv prints goes to the build log, redacted, and is returned for reading.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edge_contracts.redact import redact_text
from publisher.config import EnvironmentSettings
from publisher.errors import BuildCancelledError, EnvironmentResolveError, IndexUnreachableError

KILL_GRACE_S = 2.0


class BuildLog:
    """A text file that every step of one build appends to, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.write_text("", encoding="utf-8")

    def write(self, title: str, text: str) -> None:
        """Append `text` under `title`, without secrets."""
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"== {title}\n{redact_text(text).rstrip()}\n")

    def write_line(self, text: str) -> None:
        """Append one line of what runs, as it comes, without secrets."""
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(f"{redact_text(text)}\n")


@dataclass(frozen=True, slots=True)
class UvResult:
    """How one run of uv ended; `output` is what it wrote to stderr."""

    exit_code: int
    output: str


class UvRunner:
    """Runs uv for one build; `cancel` ends what runs and refuses what would come."""

    def __init__(
        self, settings: EnvironmentSettings, root: Path, log: BuildLog, *, offline: bool = False
    ) -> None:
        # Found here, not in the threads that run it: sysconfig, which finding asks, fills itself without a lock.
        self._uv = _find_uv()
        self._environ = {**os.environ, **uv_environ(settings, root)}
        if offline:
            self._environ["UV_OFFLINE"] = "1"
        self.package_sources = tuple(
            map(_without_user, filter(None, (settings.index, *settings.extra_index)))
        )
        """Index URLs asked for, without credentials: the same requirements may resolve to other files elsewhere."""
        self._options = ("--no-index",) if settings.no_index else ()  # uv has no variable for it
        self._log = log
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._cancelled = False

    @property
    def log_path(self) -> Path:
        """Where the whole output is."""
        return self._log.path

    def run(self, arguments: Sequence[str], *, timeout_s: float) -> UvResult:
        """Run uv to its end.

        Raises:
            IndexUnreachableError: it took longer than `timeout_s`.
            BuildCancelledError: `cancel` was called.
        """
        command = [self._uv, *arguments, *self._options]
        process = self._start(command)
        try:
            _, output = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise IndexUnreachableError(
                f"uv {' '.join(arguments[:2])} did not end within {timeout_s:.0f} s; the package index may be slow or "
                f"unreachable (log: {self.log_path})",
                where=str(self.log_path),
            ) from None
        finally:
            self._end(process)
        if self._cancelled:
            raise BuildCancelledError("the build was cancelled")
        self._log.write(f"uv {' '.join(arguments)} (exit {process.returncode})", output)
        return UvResult(process.returncode, redact_text(output))

    def cancel(self) -> None:
        """Kill every uv of this build."""
        with self._lock:
            self._cancelled = True
            for process in self._running:
                process.kill()

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise BuildCancelledError("the build was cancelled")
            process = subprocess.Popen(
                command,
                cwd="/",  # below no project whose uv settings would become a hidden input
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
            return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._running.discard(process)
        if process.poll() is None:
            process.kill()
            process.wait(timeout=KILL_GRACE_S)
        if process.stderr is not None:
            process.stderr.close()


def uv_environ(settings: EnvironmentSettings, root: Path) -> Mapping[str, str]:
    """The variables that make uv use the workspace's index settings.

    Without any in `edgewright.toml`, uv keeps its own configuration: a company's mirror set there goes on working.
    """
    environ = {
        "UV_PYTHON": sys.executable,
        "UV_PYTHON_DOWNLOADS": "never",
        "NO_COLOR": "1",
        "UV_NO_PROGRESS": "1",
    }
    if settings.index:
        environ["UV_DEFAULT_INDEX"] = settings.index
    if settings.extra_index:
        environ["UV_INDEX"] = " ".join(settings.extra_index)
    if settings.find_links:
        environ["UV_FIND_LINKS"] = ",".join(_link(each, root) for each in settings.find_links)
    return environ


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _link(link: str, root: Path) -> str:
    return link if urlsplit(link).scheme else str((root / link).absolute())


def _find_uv() -> str:
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise EnvironmentResolveError(
            f"uv, which resolves environments, is not installed: {error}",
            next_command="pip install 'edgewright[publisher]'",
        ) from error
