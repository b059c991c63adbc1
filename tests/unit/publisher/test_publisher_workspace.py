"""Workspaces: made, found, locked, migrated."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from edge_contracts.redact import Secret
from publisher.database import MIGRATIONS
from publisher.errors import BusyError, ConfigError, NotFoundError, UsageError, WorkspaceError
from publisher.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.init(tmp_path / "w")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_the_layout_and_hides_it_from_git(workspace: Workspace) -> None:
    assert {path.name for path in workspace.root.iterdir()} == {"edgewright.toml", ".edgewright"}
    assert (workspace.state / "oci" / "oci-layout").is_file()
    assert (workspace.state / ".gitignore").read_text() == "*\n"
    assert mode(workspace.state / "secrets") == 0o700


def test_init_again_keeps_what_is_there(workspace: Workspace) -> None:
    config = workspace.root / "edgewright.toml"
    config.write_text('[workspace]\nname = "mine"\n')
    assert Workspace.init(workspace.root).name == "mine"


def test_init_where_a_file_is_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=str(tmp_path / "file")):
        Workspace.init(tmp_path / "file")


def test_open_finds_the_workspace_above(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    below = workspace.root / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Workspace.open().root == workspace.root


def test_open_without_a_workspace_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError) as caught:
        Workspace.open()
    assert str(tmp_path) in caught.value.message
    assert caught.value.next_command == "edgewright init"
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_stops_open_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "edgewright.toml").write_text("[image]\nbase = 'none'\n")
    with pytest.raises(ConfigError, match="unknown key 'base'"):
        Workspace.open(tmp_path)
    assert not (tmp_path / ".edgewright").exists()


def test_the_database_is_in_wal_mode_with_every_table(workspace: Workspace) -> None:
    with workspace.database.read() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("SELECT version FROM schema_version").fetchone()[0] == len(MIGRATIONS)
        names = {row["name"] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {"models", "images", "image_models", "audit"} <= names


def test_a_database_of_a_newer_version_is_left_alone(workspace: Workspace) -> None:
    with workspace.database.transaction() as db:
        db.execute("UPDATE schema_version SET version = 999")
    with pytest.raises(WorkspaceError, match=r"schema version 999.*upgrade edgewright"):
        Workspace.open(workspace.root)


def test_a_damaged_database_is_named(workspace: Workspace) -> None:
    path = workspace.state / "workspace.db"
    path.write_bytes(b"not a database, long enough to be looked at as one" * 100)
    with pytest.raises(WorkspaceError, match=r"workspace\.db is damaged"):
        Workspace.open(workspace.root)


def test_a_failed_transaction_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), workspace.database.transaction() as db:
        db.execute("INSERT INTO counters VALUES ('model', 'm', 1)")
        raise ZeroDivisionError
    with workspace.database.read() as db:
        assert db.execute("SELECT count(*) FROM counters").fetchone()[0] == 0


def test_two_workspaces_opened_at_once_migrate_once(tmp_path: Path) -> None:
    (tmp_path / "edgewright.toml").write_text("")
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            Workspace.open(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    with sqlite3.connect(tmp_path / ".edgewright" / "workspace.db") as db:
        assert db.execute("SELECT count(*) FROM schema_version").fetchone()[0] == 1
    db.close()


def test_secrets_are_files_of_their_owner_alone_whatever_the_umask(workspace: Workspace) -> None:
    before = os.umask(0)
    try:
        path = workspace.write_secret("registry-password", Secret("s3cret"))
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert workspace.read_secret("registry-password").reveal() == "s3cret"


def test_an_absent_secret_and_a_path_as_its_name_are_refused(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match="no secret 'none'"):
        workspace.read_secret("none")
    with pytest.raises(UsageError):
        workspace.write_secret("../escape", Secret("x"))


def test_a_held_lock_is_named_after_the_timeout(workspace: Workspace) -> None:
    with (
        workspace.lock("image-digits"),
        pytest.raises(BusyError, match=r"image-digits\.lock"),
        workspace.lock("image-digits", timeout_s=0.1),
    ):
        pass
    with workspace.lock("image-digits", timeout_s=0):
        pass


def test_shared_locks_go_together_and_keep_an_exclusive_one_out(workspace: Workspace) -> None:
    with (
        workspace.lock("store", shared=True),
        workspace.lock("store", shared=True),
        pytest.raises(BusyError),
        workspace.lock("store", timeout_s=0),
    ):
        pass


def test_work_folders_go_away_and_those_of_dead_commands_too(workspace: Workspace) -> None:
    left = workspace.cache / "work" / "left-by-a-kill"
    left.mkdir(parents=True)
    (left / ".lock").touch()
    with workspace.work_folder() as first, workspace.work_folder() as second:
        assert not left.exists()
        assert first.is_dir() and second.is_dir()
    assert list((workspace.cache / "work").iterdir()) == []


def test_audit_notes_action_and_subject(workspace: Workspace) -> None:
    workspace.audit("model register", "digits:1", digest="sha256:0")
    with workspace.database.read() as db:
        row = db.execute("SELECT * FROM audit").fetchone()
    assert (row["action"], row["subject"], row["detail"]) == (
        "model register",
        "digits:1",
        '{"digest": "sha256:0"}',
    )
