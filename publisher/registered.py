"""What models and images have in common: a name, a version, a row of the workspace's database, and how one is got."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, ClassVar, Self

from edge_contracts.image_ref import ImageDigest
from publisher.errors import NotFoundError, UsageError
from publisher.records import Filter, matches, split_id
from publisher.workspace import Workspace


class Registered:
    """One version of something in a workspace; getting one by its constructor is Azure ML's SDK v1's way.

    Attributes:
        workspace: where it is kept.
        name, version, id: `id` is `name:version`.
        created_time: UTC, RFC 3339.
        description, tags, properties: as given when it was made.
        digest: of the content.
        size: bytes of the content.
    """

    workspace: Workspace
    name: str
    version: int
    created_time: str
    description: str | None
    tags: dict[str, str]
    properties: dict[str, str]
    digest: ImageDigest
    size: int

    QUERY: ClassVar[str]
    """Rows of a name (?1) and version (?2), both optional, newest first within a name."""

    NOUN: ClassVar[str]
    DONE: ClassVar[str]
    """How such a thing comes to be: "registered", "built"."""

    MAKE_COMMAND: ClassVar[str]

    def __init__(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        self,
        workspace: Workspace,
        name: str | None = None,
        id: str | None = None,
        tags: Filter | None = None,
        properties: Filter | None = None,
        version: int | None = None,
    ) -> None:
        """Get the newest one that fits, by name (and version) or by id.

        Raises:
            NotFoundError: there is none; the message starts with `ModelNotFound` or `ImageNotFound`.
        """
        article = "an" if self.NOUN[0] in "aeiou" else "a"
        if name is None and id is None:
            raise UsageError(f"one of id or name must be provided to get {article} {self.NOUN}")
        wanted = (name, version) if id is None else split_id(id, f"{article} {self.NOUN}")
        for row in self._rows(workspace, *wanted):
            if matches(json.loads(row["tags"]), tags) and matches(json.loads(row["properties"]), properties):
                self._fill(workspace, row)
                return
        raise self._not_found(workspace, id or f"{name}{f':{version}' if version else ''}")

    @property
    def id(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    def serialize(self) -> dict[str, Any]:
        """What every `show` command prints first."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.version,
            "createdTime": self.created_time,
            "description": self.description,
            "tags": self.tags,
            "properties": self.properties,
            "digest": str(self.digest),
            "sizeBytes": self.size,
        }

    @classmethod
    def _all(cls, workspace: Workspace, name: str | None) -> list[Self]:
        found = []
        for row in cls._rows(workspace, name, None):
            one = cls.__new__(cls)
            one._fill(workspace, row)
            found.append(one)
        return found

    @classmethod
    def _rows(cls, workspace: Workspace, name: str | None, version: int | None) -> list[sqlite3.Row]:
        with workspace.database.read() as db:
            return db.execute(cls.QUERY, (name, version)).fetchall()

    def _fill(self, workspace: Workspace, row: sqlite3.Row) -> None:
        self.workspace = workspace
        self.name, self.version = row["name"], row["version"]
        self.created_time, self.description = row["created_time"], row["description"]
        self.tags, self.properties = json.loads(row["tags"]), json.loads(row["properties"])
        self.digest, self.size = ImageDigest.parse(row["digest"]), row["size"]

    @classmethod
    def _not_found(cls, workspace: Workspace, wanted: str) -> NotFoundError:
        names = sorted({row["name"] for row in cls._rows(workspace, None, None)})
        known = f"{cls.DONE} are {', '.join(names)}" if names else f"no {cls.NOUN} is {cls.DONE} yet"
        return NotFoundError(
            f"{cls.NOUN.capitalize()}NotFound: no {cls.NOUN} {wanted!r} that fits in workspace "
            f"{workspace.name!r}; {known}",
            where=wanted,
            next_command=f"edgewright {cls.NOUN} list" if names else cls.MAKE_COMMAND,
        )
