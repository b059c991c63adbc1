"""Docker's logins: its file, credential helpers as real programs, and what is broken in either."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_containers.registry_client import BasicCredentials
from edge_contracts.errors import EdgewrightError
from edge_contracts.redact import Secret
from publisher.credentials import NoCredentialsError, credentials_for
from publisher.credentials.docker_config import DockerConfig, DockerConfigError

SECRET = "s3cret-W0rd"
HELPER = """\
#!/bin/sh
[ "$1" = get ] || exit 2
read -r server
case "$server" in
vault.example) printf '{"ServerURL":"%s","Username":"robot","Secret":"s3cret-W0rd"}' "$server";;
token.example) printf '{"ServerURL":"%s","Username":"<token>","Secret":"s3cret-W0rd"}' "$server";;
https://index.docker.io/v1/) printf '{"ServerURL":"%s","Username":"hub","Secret":"s3cret-W0rd"}' "$server";;
junk.example) echo 'no JSON, password=s3cret-W0rd';;
half.example) echo '{"Username":"robot"}';;
locked.example) echo 'error: the key ring is locked'; exit 1;;
*) echo 'credentials not found in native keychain'; exit 1;;
esac
"""


def config(folder: Path, document: Any) -> DockerConfig:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "config.json").write_text(text)
    helper = folder / "docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o700)
    environ = {"DOCKER_CONFIG": str(folder), "PATH": f"{folder}:{os.environ['PATH']}"}
    return DockerConfig.of(environ)


def auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def found(username: str, password: str = SECRET) -> BasicCredentials:
    return BasicCredentials(username, Secret(password))


@pytest.mark.parametrize(
    ("auths", "registry", "expected"),
    [
        ({"one.example": {"auth": auth("me:a:b")}}, "one.example", found("me", "a:b")),
        ({"https://one.example/v2/": {"auth": auth("me:x")}}, "One.Example", found("me", "x")),
        ({"one.example:5000": {"auth": auth("me:x")}}, "one.example", None),
        ({"one.example": {"auth": auth("me:x").rstrip("=")}}, "one.example", found("me", "x")),
        ({"one.example": {"username": "me", "password": "x"}}, "one.example", found("me", "x")),
        ({"https://index.docker.io/v1/": {"auth": auth("me:x")}}, "docker.io", found("me", "x")),
        ({"one.example": {}}, "one.example", None),
        (
            {"a.example": {"auth": auth("00000000-0000-0000-0000-000000000000:"), "identitytoken": "t"}},
            "a.example",
            found("<token>", "t"),
        ),
    ],
)
def test_login_of_the_file_is_found_as_docker_finds_it(
    tmp_path: Path, auths: object, registry: str, expected: BasicCredentials | None
) -> None:
    assert config(tmp_path, {"auths": auths}).login(registry) == expected


@pytest.mark.parametrize(
    ("document", "registry", "expected"),
    [
        ({"credsStore": "test"}, "vault.example", found("robot")),
        ({"credHelpers": {"vault.example": "test"}}, "vault.example", found("robot")),
        ({"credHelpers": {"vault.example": "test"}}, "other.example", None),
        ({"credHelpers": {"vault.example": "test"}, "credsStore": "absent"}, "vault.example", found("robot")),
        ({"credsStore": "test"}, "token.example", found("<token>")),
        ({"credsStore": "test"}, "docker.io", found("hub")),
        ({"credsStore": "test"}, "other.example", None),
    ],
)
def test_helper_is_asked_as_docker_asks_it(
    tmp_path: Path, document: object, registry: str, expected: BasicCredentials | None
) -> None:
    assert config(tmp_path, document).login(registry) == expected


@pytest.mark.parametrize(
    ("document", "registry", "part"),
    [
        ({"credsStore": "absent"}, "a.example", "docker-credential-absent, which is not on PATH"),
        ({"credsStore": "../bad"}, "a.example", "cannot be a program's name"),
        ({"credsStore": 7}, "a.example", "cannot be a program's name"),
        ({"credsStore": "test"}, "locked.example", "the key ring is locked"),
        ({"credsStore": "test"}, "junk.example", "not JSON"),
        ({"credsStore": "test"}, "half.example", "no user name and password"),
        ("{", "a.example", "is not JSON"),
        ("[" * 100_000, "a.example", "is not JSON"),
        ("[]", "a.example", "no JSON object"),
        ({"auths": []}, "a.example", None),
        ({"auths": [1]}, "a.example", "no JSON object in 'auths'"),
        ({"auths": {"a.example": "x"}}, "a.example", "no JSON object in 'auths.a.example'"),
        ({"auths": {"a.example": {"auth": auth("nocolon")}}}, "a.example", "no 'user:password'"),
        ({"auths": {"a.example": {"username": "me"}}}, "a.example", "no user name and password"),
        (" " * (1 << 20) + "{}", "a.example", "larger than"),
    ],
)
def test_broken_configuration_is_named_and_no_secret_shown(
    tmp_path: Path, document: object, registry: str, part: str | None
) -> None:
    docker = config(tmp_path, document)
    if part is None:
        assert docker.login(registry) is None
        return
    with pytest.raises(DockerConfigError, match=r"config\.json") as caught:
        docker.login(registry)
    assert part in caught.value.message
    assert SECRET not in caught.value.message


def test_no_file_is_no_login(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert DockerConfig.of(environ).path == tmp_path / ".docker" / "config.json"
    assert credentials_for("one.example", environ=environ) is None


def test_unreadable_file_is_no_silent_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DockerConfigError, match="cannot be read"):
        DockerConfig.of({"DOCKER_CONFIG": str(tmp_path)}).login("one.example")


def test_ones_own_login_for_devices_is_said_to_be_that(tmp_path: Path) -> None:
    docker = config(tmp_path, {"auths": {"one.example": {"auth": auth(f"me:{SECRET}")}}})
    made = docker.pull_credential("one.example", ("digits",))
    assert made is not None
    assert (made.username, made.expires) == ("me", None)
    assert "your own" in str(made.warning)
    assert docker.pull_credential("two.example", ("digits",)) is None


def test_identity_token_is_not_for_devices(tmp_path: Path) -> None:
    docker = config(tmp_path, {"credsStore": "test"})
    with pytest.raises(NoCredentialsError, match="identity token") as caught:
        docker.pull_credential("token.example", ("digits",))
    assert SECRET not in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["auths", "credHelpers", "a.example", "auth", "username", "password", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(document=JSON)
def test_any_json_is_a_login_none_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    docker = config(tmp_path_factory.getbasetemp(), document)
    try:
        login = docker.login("a.example")
    except EdgewrightError as error:
        assert "config.json" in error.message
    else:
        assert login is None or (login.username and login.password)
