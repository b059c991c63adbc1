"""`workspace.db`: SQLite in WAL mode, brought up to date by numbered migrations.

A migration is never changed once released: the next one is appended. The file's `schema_version` is the number of
migrations applied; a number above ours means a newer edgewright wrote it, and it is left alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from publisher.errors import BusyError, WorkspaceError

BUSY_TIMEOUT_S = 10.0

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE schema_version (version INTEGER NOT NULL)",
        "INSERT INTO schema_version VALUES (0)",
        "CREATE TABLE counters (kind TEXT, name TEXT, last INTEGER NOT NULL, PRIMARY KEY (kind, name))",
        """CREATE TABLE models (
            name TEXT NOT NULL, version INTEGER NOT NULL, created_time TEXT NOT NULL, description TEXT,
            tags TEXT NOT NULL, properties TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
            PRIMARY KEY (name, version)
        )""",
        """CREATE TABLE images (
            name TEXT NOT NULL, version INTEGER NOT NULL, created_time TEXT NOT NULL, description TEXT,
            tags TEXT NOT NULL, properties TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
            image_location TEXT, build_log TEXT NOT NULL, build_seconds REAL NOT NULL,
            PRIMARY KEY (name, version)
        )""",
        """CREATE TABLE image_models (
            image_name TEXT NOT NULL, image_version INTEGER NOT NULL,
            model_name TEXT NOT NULL, model_version INTEGER NOT NULL,
            PRIMARY KEY (image_name, image_version, model_name, model_version),
            FOREIGN KEY (image_name, image_version) REFERENCES images (name, version) ON DELETE CASCADE,
            FOREIGN KEY (model_name, model_version) REFERENCES models (name, version) ON DELETE RESTRICT
        )""",
        """CREATE TABLE audit (
            number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, action TEXT NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL
        )""",
    ),
    ("ALTER TABLE models ADD COLUMN details TEXT NOT NULL DEFAULT '{}'",),
    (
        # What this workspace last put, or found, under a name of a registry: how a tag that moved is noticed.
        """CREATE TABLE registry_tags (
            registry TEXT NOT NULL, repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
            image TEXT NOT NULL, time TEXT NOT NULL, PRIMARY KEY (registry, repository, tag)
        )""",
    ),
)


class Database:
    """One SQLite file; each transaction opens and closes its own connection, so any thread may hold one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def migrate(self) -> None:
        """Create the file, or bring it up to date, in one transaction; by one process at a time.

        Raises:
            WorkspaceError: no SQLite file, or one of a newer version.
        """
        with self.read() as db:
            version = _schema_version(db)
        if version > len(MIGRATIONS):
            raise WorkspaceError(
                f"{self.path} has schema version {version}, this edgewright knows up to {len(MIGRATIONS)}: "
                "it was written by a newer version; upgrade edgewright",
                where=str(self.path),
            )
        if version == len(MIGRATIONS):
            return
        with self.read() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with self.transaction() as db:
            for number in range(version, len(MIGRATIONS)):
                for statement in MIGRATIONS[number]:
                    db.execute(statement)
                db.execute("UPDATE schema_version SET version = ?", (number + 1,))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end, rolled back by any exception."""
        with self.read() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries, closed at the end."""
        db = None
        try:
            db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            yield db
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise BusyError(
                    f"{self.path} was held by another command for {BUSY_TIMEOUT_S:.0f} s; try again",
                    where=str(self.path),
                ) from error
            raise WorkspaceError(f"{self.path} cannot be used: {error}", where=str(self.path)) from error
        except sqlite3.DatabaseError as error:
            raise WorkspaceError(f"{self.path} is damaged: {error}", where=str(self.path)) from error
        finally:
            if db is not None:
                db.close()


def _schema_version(db: sqlite3.Connection) -> int:
    if db.execute("SELECT name FROM sqlite_schema WHERE name = 'schema_version'").fetchone() is None:
        return 0
    return int(db.execute("SELECT version FROM schema_version").fetchone()["version"])


def next_version(db: sqlite3.Connection, kind: str, name: str) -> int:
    """The next version of a name, from 1; a deleted version's number is never given again."""
    db.execute(
        "INSERT INTO counters VALUES (?, ?, 1) ON CONFLICT (kind, name) DO UPDATE SET last = last + 1",
        (kind, name),
    )
    row = db.execute("SELECT last FROM counters WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return int(row["last"])
