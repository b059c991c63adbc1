"""Azure's registries: Microsoft's own client against the ARM emulator, over TLS, errors included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from arm_emulator import GROUP, SUBSCRIPTION, ArmEmulator, ArmError, FakeCredential
from arm_registries import ContainerRegistries, EmulatedRegistry

from edge_contracts.errors import EdgewrightError
from publisher.azure_registry import (
    AzureBusyError,
    AzureError,
    AzureForbiddenError,
    AzureNotFoundError,
    AzureOperationError,
    AzureRegistries,
    RegistryToken,
    TokenPassword,
)
from publisher.config import AzureSettings
from publisher.credentials import NoCredentialsError
from publisher.credentials.acr import (
    AcrAdmin,
    AcrRegistries,
    AcrTokens,
    AdminUserDisabledError,
    next_slot,
    token_name,
)
from publisher.credentials.source import DAY_S, PullCredential, Wish
from publisher.errors import ConfigError, NotFoundError
from publisher.signed_in import SignInError
from publisher.workspace import Workspace

HOST = "mine.azurecr.io"
REPOSITORIES = ("digits", "team/faces")


@pytest.fixture
def registry() -> EmulatedRegistry:
    return EmulatedRegistry("mine", GROUP, HOST)


@pytest.fixture
def arm(tmp_path: Path, registry: EmulatedRegistry) -> Iterator[ArmEmulator]:
    others = [EmulatedRegistry(f"other{n}", "elsewhere", f"other{n}.azurecr.io") for n in range(3)]
    provider = ContainerRegistries(*others, registry)
    with ArmEmulator(tmp_path, [provider], groups={GROUP, "elsewhere"}) as emulator:
        yield emulator


@pytest.fixture
def workspace(tmp_path: Path, arm: ArmEmulator) -> Workspace:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "edgewright.toml").write_text(
        f'[azure]\nsubscription_id = "{SUBSCRIPTION}"\narm_endpoint = "{arm.url}"\nca_file = "{arm.ca_file}"\n'
    )
    return Workspace.open(folder)


@pytest.fixture
def azure(workspace: Workspace, arm: ArmEmulator) -> AcrRegistries:
    return AcrRegistries(workspace.settings.azure, workspace.root, arm.credential)


@pytest.fixture
def tokens(azure: AcrRegistries, workspace: Workspace) -> AcrTokens:
    return AcrTokens(azure, workspace)


def pulled(tokens: AcrTokens, repositories: tuple[str, ...] = REPOSITORIES) -> PullCredential:
    made = tokens.pull_credential(HOST, repositories)
    assert made is not None
    return made


def days_left(made: PullCredential) -> float:
    assert made.expires is not None
    return (made.expires - datetime.now(UTC)) / timedelta(days=1)


# Tokens.


def test_token_may_pull_its_repositories_and_nothing_else(
    tokens: AcrTokens, registry: EmulatedRegistry, arm: ArmEmulator
) -> None:
    made = pulled(tokens)
    assert registry.rights(made.username, made.password.reveal()) == [
        "repositories/digits/content/read",
        "repositories/digits/metadata/read",
        "repositories/team/faces/content/read",
        "repositories/team/faces/metadata/read",
    ]
    assert (made.source, made.repositories, made.warning) == ("Azure token", REPOSITORIES, None)
    assert 89.9 < days_left(made) <= 90
    assert arm.credential.scopes[0] == f"{arm.url}/.default"


def test_same_request_gives_the_same_password_and_makes_nothing(
    tokens: AcrTokens, arm: ArmEmulator, workspace: Workspace
) -> None:
    made = pulled(tokens)
    before = len(arm.requests)
    assert pulled(tokens) == made
    assert pulled(tokens, REPOSITORIES[::-1]).password == made.password
    assert all(request.startswith("GET ") for request in arm.requests[before:])
    [kept] = (workspace.state / "secrets").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_rotation_leaves_the_password_that_devices_have(
    tokens: AcrTokens, registry: EmulatedRegistry
) -> None:
    rotating = replace(tokens, wish=Wish(rotate=True))
    first, second, third = pulled(tokens), pulled(rotating), pulled(rotating)
    assert first.username == second.username == third.username
    good = [registry.rights(each.username, each.password.reveal()) for each in (first, second, third)]
    assert good[0] is None
    assert good[1] == good[2] != None  # noqa: E711 - a list, and the same


def test_password_near_its_end_is_made_anew_in_the_other_slot(
    tokens: AcrTokens, registry: EmulatedRegistry
) -> None:
    first = pulled(tokens)
    later = replace(tokens, now=lambda: datetime.now(UTC) + timedelta(days=75))
    still = replace(tokens, now=lambda: datetime.now(UTC) + timedelta(days=77))
    assert pulled(later) == first
    second = pulled(still)
    assert second.password != first.password
    assert registry.rights(first.username, first.password.reveal())
    assert set(registry.tokens[first.username].passwords) == {"password1", "password2"}


def test_short_life_is_not_renewed_at_every_call(tokens: AcrTokens) -> None:
    short = replace(tokens, wish=Wish(life_s=DAY_S))
    assert pulled(short) == pulled(short)


@pytest.mark.parametrize("loss", ["kept", "garbled", "token", "disabled", "regenerated"])
def test_what_is_kept_is_given_only_while_it_is_good(
    tokens: AcrTokens, registry: EmulatedRegistry, workspace: Workspace, loss: str
) -> None:
    first = pulled(tokens)
    [kept] = (workspace.state / "secrets").iterdir()
    token = registry.tokens[first.username]
    if loss == "kept":
        kept.unlink()
    elif loss == "garbled":
        kept.write_text("{")
    elif loss == "token":
        registry.tokens.clear()
    elif loss == "disabled":
        token.status = "disabled"
    else:
        secret = token.passwords["password1"]
        token.passwords["password1"] = replace(secret, expires=datetime.now(UTC) + timedelta(days=50))
    second = pulled(tokens)
    assert second.password != first.password
    assert registry.rights(second.username, second.password.reveal())


def test_device_has_a_token_of_its_own(tokens: AcrTokens, registry: EmulatedRegistry) -> None:
    shared = pulled(tokens)
    mine, yours = (pulled(replace(tokens, wish=Wish(device=name))) for name in ("Press 4!", "press-5"))
    assert len({shared.username, mine.username, yours.username}) == 3
    assert mine.username.startswith("edgewright-press-4-")
    tokens.revoke(HOST, mine.username)
    assert set(registry.tokens) == set(registry.scope_maps) == {shared.username, yours.username}


def test_revoked_token_is_gone_and_so_is_what_was_kept(
    tokens: AcrTokens, registry: EmulatedRegistry, workspace: Workspace
) -> None:
    made = pulled(tokens)
    [user] = tokens.users(HOST)
    assert (user.username, user.repositories, user.expires) == (made.username, REPOSITORIES, made.expires)
    tokens.revoke(HOST, made.username)
    assert registry.rights(made.username, made.password.reveal()) is None
    assert (registry.scope_maps, tokens.users(HOST)) == ({}, ())
    assert list((workspace.state / "secrets").iterdir()) == []
    with pytest.raises(NotFoundError, match="no token"):
        tokens.revoke(HOST, made.username)


def test_other_peoples_tokens_are_left_alone(tokens: AcrTokens, registry: EmulatedRegistry) -> None:
    registry.scope_maps["theirs"] = ["repositories/x/content/read"]
    pulled(tokens)
    api, found = tokens.registries.open(HOST)
    api.put_token(found, "their-token", f"{found.id}/scopeMaps/theirs")
    assert "their-token" not in {user.username for user in tokens.users(HOST)}


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ({}, "password1"),
        ({"password1": 1}, "password2"),
        ({"password2": 1}, "password1"),
        ({"password1": 1, "password2": 2}, "password1"),
        ({"password1": 2, "password2": 1}, "password2"),
    ],
)
def test_older_of_the_two_passwords_goes_first(created: dict[str, int], expected: str) -> None:
    moments = {name: datetime(2026, 1, day, tzinfo=UTC) for name, day in created.items()}
    passwords = tuple(TokenPassword(name, moment, None) for name, moment in moments.items())
    assert next_slot(RegistryToken("id", "name", True, "map", passwords)) == expected


@pytest.mark.parametrize("owner", ["press", "Ä", "x" * 200, "a--b_c.d", "-"])
def test_token_name_is_one_that_azure_takes(owner: str) -> None:
    name = token_name(owner, HOST, REPOSITORIES)
    assert 5 <= len(name) <= 50
    assert name == name.strip("-")
    assert all(char.isascii() and (char.isalnum() or char == "-") for char in name)
    assert name != token_name(owner, HOST, ("digits",))


# The admin user.


def test_admin_user_is_given_by_name_with_a_warning(azure: AcrRegistries, registry: EmulatedRegistry) -> None:
    registry.admin_enabled = True
    made = AcrAdmin(azure).pull_credential(HOST, REPOSITORIES)
    assert made is not None
    assert (made.username, made.password.reveal()) == ("mine", "admin-pass-1")
    assert "may push and delete everything" in str(made.warning)


def test_disabled_admin_user_is_said_to_be_that(azure: AcrRegistries) -> None:
    with pytest.raises(AdminUserDisabledError, match="disabled") as caught:
        AcrAdmin(azure).pull_credential(HOST, REPOSITORIES)
    assert "--source acr" in str(caught.value.next_command)


# Which registry.


@pytest.mark.parametrize(("group", "name"), [("", ""), (GROUP, ""), (GROUP, "mine"), ("", "mine")])
def test_registry_is_found_by_its_login_server(tokens: AcrTokens, group: str, name: str) -> None:
    settings = replace(tokens.registries.settings, resource_group=group, container_registry=name)
    _, found = replace(tokens.registries, settings=settings).open(HOST.upper())
    assert (found.name, found.resource_group, found.login_server) == ("mine", GROUP, HOST)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"resource_group": "elsewhere"}, (HOST, "elsewhere", "other0.azurecr.io")),
        ({"resource_group": "nowhere"}, ("ResourceGroupNotFound",)),
        (
            {"resource_group": GROUP, "container_registry": "absent"},
            ("ResourceNotFound", "registries/absent"),
        ),
        ({"subscription_id": "99999999-2222-3333-4444-555555555555"}, ("SubscriptionNotFound",)),
    ],
)
def test_absent_registry_is_named_with_the_way_to_see_them(
    tokens: AcrTokens, changes: dict[str, str], parts: tuple[str, ...]
) -> None:
    settings = replace(tokens.registries.settings, **changes)
    with pytest.raises(AzureNotFoundError) as caught:
        replace(tokens.registries, settings=settings).open(HOST)
    for part in parts:
        assert part in caught.value.message
    assert str(caught.value.next_command).startswith("az acr list")


def test_without_a_subscription_nothing_is_asked(tokens: AcrTokens, arm: ArmEmulator) -> None:
    nowhere = replace(tokens.registries, settings=AzureSettings())
    with pytest.raises(ConfigError, match=r"azure\.subscription_id is not set"):
        nowhere.open(HOST)
    assert replace(tokens, only_azure_hosts=True).pull_credential("one.example", REPOSITORIES) is None
    assert arm.requests == []


# What Azure refuses.


class Refused:
    def get_token(self, *scopes: str, **options: object) -> object:
        from azure.identity import CredentialUnavailableError

        raise CredentialUnavailableError(message="Please run 'az login' to set up an account.\nmore")


@pytest.mark.parametrize("credential", [Refused(), FakeCredential("expired")], ids=["nobody", "refused"])
def test_nobody_signed_in_is_told_to(tokens: AcrTokens, credential: FakeCredential) -> None:
    stranger = replace(tokens, registries=replace(tokens.registries, credential=credential))
    with pytest.raises(SignInError, match="nobody is signed in") as caught:
        pulled(stranger)
    assert caught.value.next_command == "az login"
    assert "expired" not in caught.value.message


@pytest.mark.parametrize(
    "action",
    [
        "registries/read",
        "registries/tokens/read",
        "registries/tokens/write",
        "registries/scopeMaps/write",
        "registries/generateCredentials/action",
    ],
)
def test_missing_right_is_named_with_the_role(tokens: AcrTokens, arm: ArmEmulator, action: str) -> None:
    arm.deny(action)
    with pytest.raises(AzureForbiddenError) as caught:
        pulled(tokens)
    assert f"Microsoft.ContainerRegistry/{action}" in caught.value.message
    assert "Contributor" in caught.value.message
    assert str(caught.value.next_command).startswith("az role assignment create")
    assert caught.value.temporary is False


def test_too_many_requests_are_tried_again_and_then_said(tokens: AcrTokens, arm: ArmEmulator) -> None:
    busy = ArmError(429, "TooManyRequests", "The request was throttled.", {"Retry-After": "1"})
    arm.fail_next(busy, path="tokens/", times=2)
    pulled(tokens)
    arm.fail_next(busy, path="tokens/", times=3)
    with pytest.raises(AzureBusyError, match="throttled") as caught:
        pulled(tokens)
    assert (caught.value.temporary, caught.value.status) == (True, 429)
    assert "Try again after 1 s" in caught.value.message


def test_however_long_azure_asks_to_wait_is_not_waited(
    tokens: AcrTokens, arm: ArmEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("publisher.azure_registry.MAX_PAUSE_S", 0.2)
    hours = ArmError(429, "TooManyRequests", "The request was throttled.", {"Retry-After": "7200"})
    arm.fail_next(hours, path="tokens/", times=3)
    started = time.monotonic()
    with pytest.raises(AzureBusyError, match="Try again after 7200 s"):
        pulled(tokens)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("error", "kind", "temporary"),
    [
        (
            ArmError(409, "ConflictingOperation", "Another operation is in progress."),
            AzureBusyError,
            True,
        ),
        (ArmError(400, "InvalidScope", "The request is not valid."), AzureError, False),
    ],
)
def test_refusal_of_a_change_has_azures_own_words(
    tokens: AcrTokens, arm: ArmEmulator, error: ArmError, kind: type[AzureError], temporary: bool
) -> None:
    arm.fail_next(error, method="PUT")
    with pytest.raises(kind, match=error.code) as caught:
        pulled(tokens)
    assert error.message in caught.value.message
    assert caught.value.temporary is temporary


@pytest.mark.parametrize("path", ["scopeMaps/", "tokens/", "generateCredentials"])
def test_operation_that_fails_after_it_was_accepted_leaves_nothing_kept(
    tokens: AcrTokens, arm: ArmEmulator, workspace: Workspace, path: str
) -> None:
    arm.fail_operation_at(path, "QuotaExceeded", "The registry has no room for it.")
    with pytest.raises(AzureOperationError, match="QuotaExceeded") as caught:
        pulled(tokens)
    assert "no room" in caught.value.message
    assert list((workspace.state / "secrets").iterdir()) == []
    pulled(tokens)


def test_long_operation_is_waited_for(
    tokens: AcrTokens, registry: EmulatedRegistry, arm: ArmEmulator
) -> None:
    arm.polls = 2
    made = pulled(tokens)
    assert registry.rights(made.username, made.password.reveal())
    assert sum(request.endswith("/status") for request in arm.requests) == 9


def test_unreachable_azure_is_temporary(azure: AcrRegistries) -> None:
    gone = replace(azure.settings, arm_endpoint="https://localhost:9")
    with pytest.raises(AzureBusyError, match="cannot be reached") as caught:
        replace(azure, settings=gone).open(HOST)
    assert caught.value.temporary


def test_unknown_authority_is_refused(azure: AcrRegistries) -> None:
    with pytest.raises(AzureBusyError, match=r"(?i)certificate"):
        replace(azure, settings=replace(azure.settings, ca_file="")).open(HOST)


def test_no_secret_is_in_an_error_or_a_repr(
    tokens: AcrTokens, registry: EmulatedRegistry, arm: ArmEmulator
) -> None:
    made = pulled(tokens)
    registry.admin_enabled = True
    arm.fail_next(ArmError(400, "Bad", f'{{"password": "{made.password.reveal()}"}}'), path="listCredentials")
    with pytest.raises(EdgewrightError) as caught:
        AcrAdmin(tokens.registries).pull_credential(HOST, REPOSITORIES)
    assert made.password.reveal() not in caught.value.message
    assert made.password.reveal() not in repr(made) + repr(tokens)
    assert isinstance(caught.value, AzureError)
    assert not isinstance(caught.value, NoCredentialsError)


def test_endpoint_of_another_cloud_is_its_own_audience(arm: ArmEmulator) -> None:
    credential = FakeCredential()
    api = AzureRegistries(SUBSCRIPTION, credential, arm_endpoint=f"{arm.url}/", ca_file=arm.ca_file)
    api.find(HOST)
    assert credential.scopes[0] == f"{arm.url}/.default"
