"""Store and forward: messages wait on disk until their endpoint has acknowledged them.

Rules:

- `append` returns when the messages are durable (SQLite WAL, synchronous FULL): only then is a sender answered;
- a message leaves the store when it was acknowledged, when its time to live ran out, or when the store is full;
- the bodies and properties held never exceed `max_bytes`. What goes first when room is needed: expired messages,
  then the least urgent priority, and of that the oldest. A message larger than the whole store is refused;
- messages of one endpoint come out by priority, then in the order they came in; nothing is reordered by a restart.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from edge_agent.edge_hub.router import Delivery
from edge_contracts.errors import AgentError
from edge_contracts.messages import Message

_SCHEMA = """
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL,
    priority INTEGER NOT NULL,
    expires_at REAL,
    size_bytes INTEGER NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS message_order ON message (endpoint, priority, id);
"""
_SYSTEM_FIELDS = tuple(f.name for f in fields(Message) if f.name not in ("body", "properties"))


class StoreFullError(AgentError):
    """A message that does not fit into the store, even with everything else gone."""

    code = "edge-store-full"


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that waits; `id` grows with time and names it for `remove`."""

    id: int
    endpoint: str
    message: Message


class MessageStore:
    """One SQLite file. Not thread-safe: the edge hub calls it from one thread of its own."""

    def __init__(self, path: Path, max_bytes: int, *, now: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._now = now
        self.dropped: Counter[str] = Counter()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        path.chmod(0o600)
        self._used_bytes = self._db.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM message").fetchone()[0]

    def append(self, message: Message, deliveries: Sequence[Delivery]) -> None:
        """Keep `message` once per delivery, all or none, durably.

        Raises:
            StoreFullError: it is larger than the store may grow.
        """
        properties = _dump_properties(message)
        size = len(message.body) + len(properties)
        needed = size * len(deliveries)
        if needed > self._max_bytes:
            raise StoreFullError(
                f"message of {size} bytes for {len(deliveries)} endpoints does not fit the edge hub's store "
                f"of {self._max_bytes} bytes"
            )
        now = self._now()
        with _Transaction(self._db):
            freed = self._make_room(needed, now)
            self._db.executemany(
                "INSERT INTO message (endpoint, priority, expires_at, size_bytes, properties, body)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        d.endpoint,
                        d.priority,
                        None if d.ttl_s is None else now + d.ttl_s,
                        size,
                        properties,
                        message.body,
                    )
                    for d in deliveries
                ],
            )
        self._used_bytes += needed - freed

    def next_batch(self, endpoint: str, limit: int) -> list[StoredMessage]:
        """The first messages for `endpoint` that have not expired, most urgent first; expired ones are removed."""
        self._drop_expired(endpoint)
        rows = self._db.execute(
            "SELECT id, properties, body FROM message WHERE endpoint = ? ORDER BY priority, id LIMIT ?",
            (endpoint, limit),
        )
        return [StoredMessage(row[0], endpoint, _load_message(row[1], row[2])) for row in rows]

    def remove(self, ids: Sequence[int]) -> None:
        """Forget messages that were acknowledged."""
        marks = ",".join("?" * len(ids))
        with _Transaction(self._db):
            rows = self._db.execute(
                f"DELETE FROM message WHERE id IN ({marks}) RETURNING size_bytes", tuple(ids)
            )
            self._used_bytes -= sum(row[0] for row in rows.fetchall())

    def endpoints(self) -> list[str]:
        """Endpoints that have messages waiting."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT endpoint FROM message ORDER BY endpoint")]

    def counts(self) -> dict[str, int]:
        """Waiting messages by endpoint."""
        return dict(self._db.execute("SELECT endpoint, COUNT(*) FROM message GROUP BY endpoint").fetchall())

    @property
    def used_bytes(self) -> int:
        return int(self._used_bytes)

    def close(self) -> None:
        self._db.close()

    def _make_room(self, needed: int, now: float) -> int:
        freed = 0
        if self._used_bytes + needed > self._max_bytes:
            freed += self._drop("expires_at <= ?", (now,), "ttl_expiry")
        while self._used_bytes - freed + needed > self._max_bytes:
            victim = self._db.execute(
                "SELECT id FROM message ORDER BY priority DESC, id LIMIT 1",
            ).fetchone()
            freed += self._drop("id = ?", victim, "store_full")
        return freed

    def _drop_expired(self, endpoint: str) -> None:
        self._used_bytes -= self._drop(
            "endpoint = ? AND expires_at <= ?", (endpoint, self._now()), "ttl_expiry"
        )

    def _drop(self, condition: str, values: tuple[object, ...], reason: str) -> int:
        rows = self._db.execute(
            f"DELETE FROM message WHERE {condition} RETURNING size_bytes", values
        ).fetchall()
        if rows:
            self.dropped[reason] += len(rows)
        return sum(row[0] for row in rows)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _dump_properties(message: Message) -> str:
    system = {name: getattr(message, name) for name in _SYSTEM_FIELDS}
    kept = {name: value for name, value in system.items() if value is not None}
    return json.dumps([kept, dict(message.properties)], separators=(",", ":"), ensure_ascii=False)


def _load_message(properties: str, body: bytes) -> Message:
    system, application = json.loads(properties)
    return replace(Message(bytes(body), properties=application), **system)
