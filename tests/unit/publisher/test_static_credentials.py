"""`registry.logins`: where the password is, read when it is needed, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_containers.registry_client import BasicCredentials
from edge_contracts.errors import ContractError
from edge_contracts.redact import Secret
from publisher.credentials import (
    NoCredentialsError,
    StaticCredentials,
    credentials_for,
    registry_credentials,
)
from publisher.errors import ConfigError, UsageError
from publisher.workspace import Workspace


def static(folder: Path, *logins: str, **environ: str) -> StaticCredentials:
    return StaticCredentials(logins, folder, environ)


def test_password_comes_from_where_the_line_says(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from file\n")
    source = static(
        tmp_path, "one.example a env:ONE", "Two.example:5000 b file:password", ONE="from variable"
    )
    found = [source.login(host) for host in ("ONE.example", "two.example:5000", "three.example")]
    assert [each and (each.username, each.password.reveal()) for each in found] == [
        ("a", "from variable"),
        ("b", "from file"),
        None,
    ]
    made = source.pull_credential("one.example", ("digits",))
    assert made is not None
    assert (made.registry, made.repositories, made.expires) == ("one.example", (), None)
    assert "from" not in repr(source.login("one.example"))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("one.example a", "'one.example'"),
        ("", "'nothing'"),
        ("one.example a s3cret-W0rd", "HOST USERNAME env:VARIABLE"),
        ("one.example a s3cret W0rd", "HOST USERNAME file:PATH"),
        ("one.example a vault:x", "HOST USERNAME"),
        ("one.example a env:", "HOST USERNAME"),
        ("one.example a env:MISSING", "variable MISSING is not set"),
        ("one.example a file:missing", "cannot be read"),
        ("one.example a file:empty", "file empty is empty"),
        ("one.example a file:binary", "it is not text"),
    ],
)
def test_line_or_password_that_is_not_there_is_an_error_without_it(
    tmp_path: Path, line: str, part: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"registry\.logins") as caught:
        static(tmp_path, line).login("one.example")
    assert part in caught.value.message
    assert "s3cret" not in caught.value.message


def test_workspaces_login_goes_before_dockers(tmp_path: Path) -> None:
    (tmp_path / "edgewright.toml").write_text('[registry]\nlogins = ["one.example me env:WORD"]\n')
    workspace = Workspace.open(tmp_path)
    (tmp_path / "config.json").write_text('{"auths": {"one.example": {"username": "d", "password": "d"}}}')
    environ = {"WORD": "mine", "DOCKER_CONFIG": str(tmp_path)}
    found = credentials_for("one.example", workspace=workspace, environ=environ)
    assert found == BasicCredentials("me", Secret("mine"))
    assert credentials_for("one.example", environ=environ) == BasicCredentials("d", Secret("d"))


def test_credentials_in_python_are_those_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("word")
    (tmp_path / "edgewright.toml").write_text('[registry]\nlogins = ["one.example me file:password"]\n')
    workspace = Workspace.open(tmp_path)
    made = registry_credentials(workspace, "one.example", ["digits"])
    assert (made.username, made.password, made.source) == ("me", Secret("word"), "given")
    with pytest.raises(NoCredentialsError, match="nothing here makes credentials") as caught:
        registry_credentials(workspace, "two.example", ["digits"])
    assert str(caught.value.next_command).endswith("two.example --source docker")
    with pytest.raises(NoCredentialsError, match="source static has no credentials"):
        registry_credentials(workspace, "two.example", ["digits"], source="static")
    with pytest.raises(UsageError, match="one of auto, static"):
        registry_credentials(workspace, "one.example", ["digits"], source="vault")
    with pytest.raises(UsageError, match="no image here"):
        registry_credentials(workspace, "one.example")
    with pytest.raises(ContractError, match="Upper"):
        registry_credentials(workspace, "one.example", ["Upper"])
