"""What the hub keeps, in one SQLite database: identities, twins, policies, subscriptions, credentials, telemetry.

- Every method that writes is one transaction and returns when it is on the disk (WAL, synchronous=FULL).
- Methods block. All writing ones are called by one thread at a time, `read_telemetry` by another one.
- A row of the telemetry log carries the bytes of all rows ever written up to and including it, so that the log's size is
  the difference of two rows. Offsets come from AUTOINCREMENT's counter: one that was deleted is not used again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from edge_contracts.redact import Secret
from edge_contracts.twin import TwinSection
from iot_hub.core import Change
from iot_hub.errors import HubStartError, HubStorageError
from iot_hub.identities import IdentityKey, IdentityRecord
from iot_hub.policies import RIGHTS_OF_POLICY, SharedAccessPolicy
from iot_hub.registry_credentials import RegistryCredentialRecord
from iot_hub.telemetry import StoredMessage, TelemetryMessage, TelemetryPage
from iot_hub.twins import TwinRecord

SCHEMA_VERSION = 1
# One answer of the telemetry log; a page ends at the first message that reaches it.
PAGE_BYTES = 4 * 1024 * 1024
# Rows that one transaction of the retention deletes, so that devices wait for it only briefly.
TRIM_ROWS = 2000

_SCHEMA = """
CREATE TABLE identities (
    device_id TEXT NOT NULL, module_id TEXT NOT NULL,
    generation_id TEXT NOT NULL, etag TEXT NOT NULL, primary_key TEXT NOT NULL, secondary_key TEXT NOT NULL,
    created REAL NOT NULL, enabled INTEGER NOT NULL, status_reason TEXT, status_updated_time TEXT NOT NULL,
    iot_edge INTEGER NOT NULL, managed_by TEXT,
    PRIMARY KEY (device_id, module_id)
) WITHOUT ROWID;
CREATE TABLE twins (
    device_id TEXT NOT NULL, module_id TEXT NOT NULL, version INTEGER NOT NULL, etag_version INTEGER NOT NULL,
    tags TEXT NOT NULL,
    desired TEXT NOT NULL, desired_metadata TEXT NOT NULL, desired_version INTEGER NOT NULL,
    reported TEXT NOT NULL, reported_metadata TEXT NOT NULL, reported_version INTEGER NOT NULL,
    PRIMARY KEY (device_id, module_id)
) WITHOUT ROWID;
CREATE TABLE subscriptions (
    device_id TEXT NOT NULL, module_id TEXT NOT NULL, topic_filter TEXT NOT NULL,
    PRIMARY KEY (device_id, module_id, topic_filter)
) WITHOUT ROWID;
CREATE TABLE policies (
    name TEXT PRIMARY KEY, primary_key TEXT NOT NULL, secondary_key TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE registry_credentials (
    username TEXT PRIMARY KEY, salt BLOB NOT NULL, password_hash BLOB NOT NULL, repository TEXT NOT NULL,
    actions TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE telemetry (
    "offset" INTEGER PRIMARY KEY AUTOINCREMENT, total_bytes INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    enqueued REAL NOT NULL,
    device_id TEXT NOT NULL, module_id TEXT, system_properties TEXT NOT NULL, properties TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX telemetry_of_device ON telemetry (device_id, "offset");
"""


class HubStore:
    """The database at `path`, made if it is missing.

    Raises:
        HubStartError: the file is no database of ours, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as opened:  # what was opened is closed when the rest fails
            try:
                self._writer = opened.enter_context(closing(_connect(path)))
                self._prepare()
                self._reader = opened.enter_context(closing(_connect(path)))
                self._next_offset, self._total_bytes = self._end_of_log()
            except sqlite3.Error as error:
                raise HubStartError(
                    f"cannot use the hub's database {path}: {error}", where=str(path)
                ) from error
            opened.pop_all()

    def close(self) -> None:
        """Close both connections; the WAL is folded into the database."""
        self._reader.close()
        self._writer.close()

    # Identities and twins.

    def load(self) -> Change:
        """Everything as one change, for `HubCore.apply`."""
        identities = self._rows("SELECT * FROM identities")
        twins = self._rows("SELECT * FROM twins")
        return Change(tuple(map(_identity, identities)), tuple(map(_twin, twins)))

    def commit(self, change: Change) -> None:
        """Write a change, whole or not at all."""
        gone = [_key_columns(key) for key in change.removed]
        with self._transaction() as database:
            _insert(database, "identities", [_identity_row(record) for record in change.identities])
            _insert(database, "twins", [_twin_row(twin) for twin in change.twins])
            for table in ("identities", "twins", "subscriptions"):
                database.executemany(f"DELETE FROM {table} WHERE device_id = ? AND module_id = ?", gone)

    # Subscriptions.

    def subscriptions(self, key: IdentityKey) -> tuple[str, ...]:
        query = "SELECT topic_filter FROM subscriptions WHERE device_id = ? AND module_id = ?"
        return tuple(row["topic_filter"] for row in self._rows(query, _key_columns(key)))

    def add_subscription(self, key: IdentityKey, topic_filter: str) -> None:
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO subscriptions VALUES (?, ?, ?)", (*_key_columns(key), topic_filter)
            )

    def remove_subscription(self, key: IdentityKey, topic_filter: str | None = None) -> None:
        """Drop one filter of an identity, or all of them."""
        only = "" if topic_filter is None else " AND topic_filter = ?"
        parameters = () if topic_filter is None else (topic_filter,)
        with self._transaction() as database:
            database.execute(
                f"DELETE FROM subscriptions WHERE device_id = ? AND module_id = ?{only}",
                (*_key_columns(key), *parameters),
            )

    # Policies and registry credentials.

    def policies(self, new_key: Callable[[], Secret]) -> dict[str, SharedAccessPolicy]:
        """All policies by name; those that are missing get keys from `new_key` first."""
        with self._transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO policies VALUES (?, ?, ?)",
                [(name, new_key().reveal(), new_key().reveal()) for name in RIGHTS_OF_POLICY],
            )
        return {
            row["name"]: SharedAccessPolicy(
                row["name"],
                RIGHTS_OF_POLICY[row["name"]],
                Secret(row["primary_key"]),
                Secret(row["secondary_key"]),
            )
            for row in self._rows("SELECT * FROM policies")
        }

    def registry_credentials(self) -> tuple[RegistryCredentialRecord, ...]:
        return tuple(
            RegistryCredentialRecord(
                **{each: row[each] for each in ("username", "salt", "password_hash", "created", "expires")},
                repositories=tuple(row["repository"].split()),  # names have no spaces
                actions=tuple(row["actions"].split()),
            )
            for row in self._rows("SELECT * FROM registry_credentials")
        )

    def add_registry_credential(self, record: RegistryCredentialRecord) -> None:
        row = (
            record.username,
            record.salt,
            record.password_hash,
            " ".join(record.repositories),
            " ".join(record.actions),
            record.created,
            record.expires,
        )
        with self._transaction() as database:
            _insert(database, "registry_credentials", [row])

    def remove_registry_credentials(self, usernames: Sequence[str]) -> None:
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM registry_credentials WHERE username = ?", [(name,) for name in usernames]
            )

    # Telemetry.

    def append_telemetry(self, messages: Sequence[TelemetryMessage]) -> None:
        """Add messages at the end of the log."""
        rows, total = [], self._total_bytes
        for offset, message in enumerate(messages, self._next_offset):
            total += message.size_bytes
            rows.append(_telemetry_row(offset, total, message))
        with self._transaction() as database:
            _insert(database, "telemetry", rows)
        self._next_offset, self._total_bytes = self._next_offset + len(rows), total

    def read_telemetry(self, device_id: str | None, start: int | None, limit: int) -> TelemetryPage:
        """At most `limit` messages from offset `start` on, None for the end of the log."""
        with self._transaction(self._reader, "BEGIN") as database:
            end = _end_offset(database)
            oldest = database.execute('SELECT min("offset") FROM telemetry').fetchone()[0]
            first = end if start is None else start
            messages = tuple(_page(database, device_id, first, limit))
        full = len(messages) == limit or sum(len(each.message.body) for each in messages) >= PAGE_BYTES
        return TelemetryPage(
            messages,
            next=messages[-1].offset + 1 if messages and full else max(end, first),
            oldest=end if oldest is None else oldest,
        )

    def trim_telemetry(self, *, max_bytes: int, oldest: float) -> bool:
        """Delete from the log's start what exceeds `max_bytes` or was enqueued before `oldest`.

        At most `TRIM_ROWS` at a time; returns whether there is more to delete.
        """
        with self._transaction() as database:
            first: int | None = database.execute('SELECT min("offset") FROM telemetry').fetchone()[0]
            if first is None:
                return False
            kept = database.execute(
                """SELECT "offset" FROM telemetry WHERE total_bytes - size_bytes >= ? AND enqueued >= ?
                ORDER BY "offset" LIMIT 1""",
                (self._total_bytes - max_bytes, oldest),
            ).fetchone()
            end: int = self._next_offset if kept is None else kept["offset"]
            database.execute('DELETE FROM telemetry WHERE "offset" < ?', (min(end, first + TRIM_ROWS),))
        return end > first + TRIM_ROWS

    # SQLite.

    def _prepare(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise HubStartError(
                f"{self._path} was written by a newer version: schema {version}, this version knows {SCHEMA_VERSION}",
                where=str(self._path),
            )
        if version == 0:
            # One transaction, so that a crash leaves either no table or all of them.
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _end_of_log(self) -> tuple[int, int]:
        last = self._writer.execute(
            'SELECT total_bytes FROM telemetry ORDER BY "offset" DESC LIMIT 1'
        ).fetchone()
        return _end_offset(self._writer), 0 if last is None else last["total_bytes"]

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        try:
            return self._writer.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise _storage_error(self._path, error) from error

    @contextmanager
    def _transaction(
        self, database: sqlite3.Connection | None = None, begin: str = "BEGIN IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        database = database or self._writer
        try:
            database.execute(begin)
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _storage_error(self._path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    # Threads take turns (see the module's rules), so the check that one thread does all is not wanted.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    database.row_factory = sqlite3.Row
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "temp_store = MEMORY"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database


def _storage_error(path: Path, error: sqlite3.Error) -> HubStorageError:
    return HubStorageError(f"the hub's database {path} failed: {error}", where=str(path))


def _insert(database: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)


def _key_columns(key: IdentityKey) -> tuple[str, str]:
    # A device has the empty module id: NULL does not count as equal in a primary key.
    return key.device_id, key.module_id or ""


def _key(row: sqlite3.Row) -> IdentityKey:
    return IdentityKey(row["device_id"], row["module_id"] or None)


def _identity_row(record: IdentityRecord) -> tuple[Any, ...]:
    return (
        *_key_columns(record.key),
        record.generation_id,
        record.etag,
        *record.keys,
        record.created,
        record.enabled,
        record.status_reason,
        record.status_updated_time,
        record.iot_edge,
        record.managed_by,
    )


def _identity(row: sqlite3.Row) -> IdentityRecord:
    return IdentityRecord(
        key=_key(row),
        generation_id=row["generation_id"],
        etag=row["etag"],
        primary_key=Secret(row["primary_key"]),
        secondary_key=Secret(row["secondary_key"]),
        created=row["created"],
        enabled=bool(row["enabled"]),
        status_reason=row["status_reason"],
        status_updated_time=row["status_updated_time"],
        iot_edge=bool(row["iot_edge"]),
        managed_by=row["managed_by"],
    )


def _twin_row(twin: TwinRecord) -> tuple[Any, ...]:
    return (
        *_key_columns(twin.key),
        twin.version,
        twin.etag_version,
        json.dumps(twin.tags),
        *_section_columns(twin.desired),
        *_section_columns(twin.reported),
    )


def _section_columns(section: TwinSection) -> tuple[str, str, int]:
    return json.dumps(section.values), json.dumps(section.metadata), section.version


def _twin(row: sqlite3.Row) -> TwinRecord:
    return TwinRecord(
        key=_key(row),
        tags=json.loads(row["tags"]),
        desired=_section(row, "desired"),
        reported=_section(row, "reported"),
        version=row["version"],
        etag_version=row["etag_version"],
    )


def _section(row: sqlite3.Row, name: str) -> TwinSection:
    return TwinSection(json.loads(row[name]), json.loads(row[f"{name}_metadata"]), row[f"{name}_version"])


def _telemetry_row(offset: int, total_bytes: int, message: TelemetryMessage) -> tuple[Any, ...]:
    return (
        offset,
        total_bytes,
        message.size_bytes,
        message.enqueued,
        message.device_id,
        message.module_id,
        json.dumps(message.system_properties),
        json.dumps(message.properties),
        message.body,
    )


def _stored_message(row: sqlite3.Row) -> StoredMessage:
    return StoredMessage(
        row["offset"],
        TelemetryMessage(
            row["device_id"],
            row["module_id"],
            row["enqueued"],
            json.loads(row["system_properties"]),
            json.loads(row["properties"]),
            row["body"],
        ),
    )


def _page(
    database: sqlite3.Connection, device_id: str | None, start: int, limit: int
) -> Iterator[StoredMessage]:
    of_device, parameters = ("", ()) if device_id is None else ("AND device_id = ?", (device_id,))
    rows = database.execute(
        f'SELECT * FROM telemetry WHERE "offset" >= ? {of_device} ORDER BY "offset" LIMIT ?',
        (start, *parameters, limit),
    )
    size_bytes = 0
    for row in rows:
        yield _stored_message(row)
        size_bytes += len(row["body"])
        if size_bytes >= PAGE_BYTES:
            return


def _end_offset(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'telemetry'").fetchone()
    return 1 if row is None else row["seq"] + 1
