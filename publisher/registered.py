"""What models and images have in common: a name, a version, a row of the workspace's database, and how one is got."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from edge_contracts.image_ref import ImageDigest
from publisher.errors import NotFoundError, UsageError
from publisher.records import (
    Filter,
    check_filter,
    check_labels,
    matches,
    split_id,
    with_properties,
    without_tags,
)
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

    TABLE: ClassVar[str]
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
        labels = {"tags": check_filter("tags", tags), "properties": check_filter("properties", properties)}
        for row in self._rows(workspace, *wanted):
            if all(matches(json.loads(row[kind]), each) for kind, each in labels.items()):
                self._fill(workspace, row)
                return
        asked = "".join(f" with {kind} {list(each)}" for kind, each in labels.items() if each)
        raise self._not_found(workspace, id or f"{name}{f':{version}' if version else ''}", asked)

    @property
    def id(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags beside those there are; one that is there gets the new value."""
        self.update_tags_properties(add_tags=tags)

    def remove_tags(self, tags: Sequence[str]) -> None:
        """Remove tags by key; those that are not there stay so."""
        self.update_tags_properties(remove_tags=tags)

    def add_properties(self, properties: Mapping[str, str]) -> None:
        """Add properties.

        Raises:
            UsageError: one is there with another value; none is added then.
        """
        self.update_tags_properties(add_properties=properties)

    def update(self, tags: Mapping[str, str] | None = None, description: str | None = None) -> None:
        """Put `tags` in the place of all there are, and a description in the place of the one there is.

        Raises:
            UsageError: neither is given.
        """
        if tags is None and description is None:
            raise UsageError("No parameters provided to update.")
        self._change(tags=tags, description=description)

    def update_tags_properties(
        self,
        add_tags: Mapping[str, str] | None = None,
        remove_tags: Sequence[str] | None = None,
        add_properties: Mapping[str, str] | None = None,
    ) -> None:
        """`add_tags`, `remove_tags` and `add_properties` at once: all of it, or nothing."""
        self._change(add_tags=add_tags, remove_tags=remove_tags, add_properties=add_properties)

    def _change(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        add_tags: Mapping[str, str] | None = None,
        remove_tags: Sequence[str] | None = None,
        add_properties: Mapping[str, str] | None = None,
    ) -> None:
        """Apply to what the database has now, which another process may have changed since this was got."""
        new_tags, more_tags = check_labels("tags", tags), check_labels("tags", add_tags)
        more_properties = check_labels("properties", add_properties)
        with self.workspace.database.transaction() as db:
            row = db.execute(self.QUERY, (self.name, self.version)).fetchone()
            if row is None:
                raise self._not_found(self.workspace, self.id)
            kept = json.loads(row["tags"]) if tags is None else new_tags
            changed = (
                json.dumps(without_tags({**kept, **more_tags}, remove_tags), sort_keys=True),
                json.dumps(
                    with_properties(json.loads(row["properties"]), more_properties, self.id), sort_keys=True
                ),
                row["description"] if description is None else description,
            )
            db.execute(
                f"UPDATE {self.TABLE} SET tags = ?, properties = ?, description = ? "
                "WHERE name = ? AND version = ?",
                (*changed, self.name, self.version),
            )
            self._fill(self.workspace, db.execute(self.QUERY, (self.name, self.version)).fetchone())
        self.workspace.audit(f"{self.NOUN} update", self.id)

    @classmethod
    def deserialize(cls, workspace: Workspace, payload: Mapping[str, Any]) -> Self:
        """The one that `serialize` described, as it is now in `workspace`.

        Raises:
            UsageError: the payload is none of `serialize`.
            NotFoundError: there is no such one, or the one of that id has another content.
        """
        if not isinstance(payload, Mapping) or not {"id", "digest"} <= payload.keys():
            raise UsageError(
                f"expected what {cls.NOUN}.serialize() gives, with id and digest, not {payload!r}"
            )
        found = cls(workspace, id=str(payload["id"]))
        if str(found.digest) != payload["digest"]:
            raise cls._not_found(workspace, found.id, f" with digest {payload['digest']}")
        return found

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
    def _all(
        cls,
        workspace: Workspace,
        name: str | None,
        tags: Filter | None = None,
        properties: Filter | None = None,
    ) -> list[Self]:
        """Newest version first within a name."""
        by_tags, by_properties = check_filter("tags", tags), check_filter("properties", properties)
        found = []
        for row in cls._rows(workspace, name, None):
            one = cls.__new__(cls)
            one._fill(workspace, row)
            if matches(one.tags, by_tags) and matches(one.properties, by_properties):
                found.append(one)
        return found

    @classmethod
    def newest(cls, workspace: Workspace) -> dict[str, Self]:
        """The newest version of every name."""
        found: dict[str, Self] = {}
        for one in cls._all(workspace, None):
            found.setdefault(one.name, one)
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
    def _not_found(cls, workspace: Workspace, wanted: str, asked: str = "") -> NotFoundError:
        names = sorted({row["name"] for row in cls._rows(workspace, None, None)})
        known = f"{cls.DONE} are {', '.join(names)}" if names else f"no {cls.NOUN} is {cls.DONE} yet"
        return NotFoundError(
            f"{cls.NOUN.capitalize()}NotFound: no {cls.NOUN} {wanted!r}{asked} in workspace "
            f"{workspace.name!r}; {known}",
            where=wanted,
            next_command=f"edgewright {cls.NOUN} list" if names else cls.MAKE_COMMAND,
        )
