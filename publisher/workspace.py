"""A workspace: one folder with `edgewright.toml` and, beside it, `.edgewright/` with everything else.

edgewright.toml        settings, written by the user
.edgewright/
  workspace.db         models, images, audit (SQLite, WAL)
  oci/                 one OCI layout: models and images as blobs
  cache/               locks, built layers, work in progress; may be deleted at any time
  logs/                one build log per image name
  run/                 lock files, sockets and process ids
  hub/                 the embedded hub's own data
  secrets/             0700; files 0600
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from edge_containers.store import ContentStore
from edge_contracts.redact import Secret
from publisher.config import CONFIG_NAME, Settings, initial_config, load_settings
from publisher.database import Database
from publisher.errors import BusyError, NotFoundError, UsageError, WorkspaceError
from publisher.named_workspaces import NamedWorkspaces

STATE_NAME = ".edgewright"
STATE_FOLDERS = ("oci", "cache", "logs", "run", "hub", "secrets")
LOCK_TIMEOUT_S = 600.0
LOCK_POLL_S = 0.05
WORK_LOCK = ".lock"


class Workspace(NamedWorkspaces):
    """Where models and images are kept; opened by `init` or `open`, or as Azure ML's SDK v1 does.

    Attributes:
        root: the folder with `edgewright.toml`.
        state: its `.edgewright`.
        settings: what `edgewright.toml` says.
        store: the OCI layout with every blob.
        database: `workspace.db`.
    """

    @classmethod
    def at(cls, root: Path, environ: Mapping[str, str] | None = None) -> Workspace:
        """The workspace in `root`, whose `edgewright.toml` is there; `environ` overrides its settings."""
        workspace = cls.__new__(cls)
        workspace._open(root, environ)
        return workspace

    def _open(self, root: Path, environ: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.state = root / STATE_NAME
        self.settings: Settings = load_settings(
            root / CONFIG_NAME, os.environ if environ is None else environ
        )
        self._make_folders()
        self.store = ContentStore(self.state / "oci")
        self.database = Database(self.state / "workspace.db")
        # SQLite answers "busy" at once, without waiting, when two connections switch to WAL mode together.
        with self.lock("database"):
            self.database.migrate()

    @classmethod
    def init(
        cls, path: Path | str = ".", *, name: str | None = None, azure: Mapping[str, str] | None = None
    ) -> Workspace:
        """Make a workspace in `path` (created if absent), or complete the one that is there; nothing is overwritten.

        `name` is the folder's by default; `azure` are fields of `[azure]`.
        """
        root = Path(path).expanduser().absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            _write_config(root, name, azure or {})
            return cls.at(root)
        except OSError as error:
            raise WorkspaceError(f"no workspace can be made in {root}: {error}", where=str(root)) from error

    @classmethod
    def open(cls, path: Path | str | None = None) -> Workspace:
        """The workspace at `path`, or the nearest one at or above the current directory.

        Raises:
            WorkspaceError: there is none.
            ConfigError: its `edgewright.toml` is not as it must be.
        """
        if path is not None:
            root = Path(path).expanduser().absolute()
            candidates = [root]
        else:
            root = Path.cwd()
            candidates = [root, *root.parents]
        for candidate in candidates:
            if (candidate / CONFIG_NAME).is_file():
                return cls.at(candidate)
        above = "" if path is not None else " or above it"
        raise WorkspaceError(
            f"no workspace in {root}{above}: expected a file {CONFIG_NAME}",
            where=str(root),
            next_command="edgewright init",
        )

    @property
    def cache(self) -> Path:
        """Folder of what can be made again."""
        return self.state / "cache"

    @property
    def logs(self) -> Path:
        """Folder of build logs."""
        return self.state / "logs"

    @property
    def run(self) -> Path:
        """Folder of locks, sockets and process ids."""
        return self.state / "run"

    @property
    def hub(self) -> Path:
        """Folder of the embedded hub's data."""
        return self.state / "hub"

    def write_secret(self, name: str, value: Secret) -> Path:
        """Keep a secret in a file of mode 0600; returns the file."""
        path = self._secret_path(name)
        part = path.with_name(f".{name}.part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(value.reveal())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return path

    def read_secret(self, name: str) -> Secret:
        """A secret kept by `write_secret`.

        Raises:
            NotFoundError: there is none of that name.
        """
        path = self._secret_path(name)
        try:
            return Secret(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFoundError(f"no secret {name!r} in this workspace", where=str(path)) from None

    def forget_secret(self, name: str) -> None:
        """Remove a secret, if there is one of that name."""
        self._secret_path(name).unlink(missing_ok=True)

    def audit(self, action: str, subject: str, **detail: object) -> None:
        """Note who did what in the audit table; `detail` must hold no secret."""
        with self.database.transaction() as db:
            db.execute(
                "INSERT INTO audit (time, action, subject, detail) VALUES (?, ?, ?, ?)",
                (now_text(), action, subject, json.dumps(detail, sort_keys=True)),
            )

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the lock `name` against other processes and threads; freed by the kernel if this process dies.

        Raises:
            BusyError: another command held it for `timeout_s`.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        path = self.run / f"{name}.lock"
        deadline = time.monotonic() + timeout_s
        with path.open("a") as file:
            while True:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise BusyError(
                            f"another command held {path} for {timeout_s:.0f} s; wait for it to end, then try again",
                            where=str(path),
                        ) from None
                    time.sleep(LOCK_POLL_S)
            yield

    @contextlib.contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder for work in progress, removed at the end; those of killed commands are removed on the way."""
        parent = self.cache / "work"
        parent.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            with self.lock("work"):
                _remove_abandoned(parent)
                folder = Path(tempfile.mkdtemp(dir=parent))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                held = stack.enter_context((folder / WORK_LOCK).open("w"))
                fcntl.flock(held, fcntl.LOCK_EX)
            yield folder

    def _secret_path(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageError(f"a secret's name must be of [A-Za-z0-9._-], not {name!r}")
        return self.state / "secrets" / name

    def _make_folders(self) -> None:
        for name in STATE_FOLDERS:
            (self.state / name).mkdir(mode=0o700 if name == "secrets" else 0o777, parents=True, exist_ok=True)
        (self.state / "secrets").chmod(0o700)
        ignore = self.state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")


def _write_config(root: Path, given: str | None, azure: Mapping[str, str]) -> None:
    path = root / CONFIG_NAME
    if path.exists():
        return
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = given or re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-") or "workspace"
    part = path.with_name(f".{CONFIG_NAME}.part")
    part.write_text(initial_config(name, python, azure), encoding="utf-8")
    part.replace(path)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.iterdir():
        try:
            with (folder / WORK_LOCK).open() as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            pass
        shutil.rmtree(folder, ignore_errors=True)


def now_text() -> str:
    """The time as rows and documents hold it: UTC, seconds, RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
