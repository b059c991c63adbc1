"""`edgewright registry`: credentials that devices pull images with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_contracts.redact import MASK, Secret
from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
    show_rows,
)
from publisher.credentials.chain import Source, issuer_of, registry_credentials
from publisher.credentials.forms import aci_document, kubernetes_secret, manifest_document
from publisher.credentials.source import DAY_S, WARN_BEFORE_S, PullCredential
from publisher.embedded_hub import hub_endpoint
from publisher.errors import UsageError
from publisher.private_file import write_private
from publisher.workspace import Workspace

app = command_group("Registry credentials.")


class CredentialFormat(StrEnum):
    """How a credential is printed: for reading, or as those who pull take it."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    MANIFEST = "manifest"
    ACI = "aci"
    KUBERNETES = "kubernetes"


FORMS: Mapping[CredentialFormat, Callable[[PullCredential], dict[str, Any]]] = {
    CredentialFormat.MANIFEST: manifest_document,
    CredentialFormat.ACI: aci_document,
    CredentialFormat.KUBERNETES: kubernetes_secret,
}

RegistryArgument = Annotated[
    str | None, typer.Argument(help="Registry as HOST[:PORT]; the embedded one by default.")
]


@app.callback()
def _group() -> None:
    """Registry credentials."""


@app.command()
def credentials(
    registry: RegistryArgument = None,
    *,
    repository: Annotated[
        list[str] | None,
        typer.Option(help="Repository that may be pulled; those of all images here by default. Repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="For this device alone, not for a deployment.")
    ] = None,
    source: Annotated[
        Source, typer.Option(help="Where they come from; a person's own login only when named.")
    ] = Source.AUTO,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long they are good for.")] = 90,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="A new password; the one in use stays good (Azure).")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the password.")] = False,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", help="Where to write them, password and all (mode 0600).")
    ] = None,
    output: Annotated[
        CredentialFormat, typer.Option("--output", "-o", help="How to print the result.")
    ] = CredentialFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Get credentials for pulling: made by the registry where it can, pull-only and for a time."""
    workspace = Workspace.open()
    host = registry or _embedded_registry(workspace)
    with progress(f"credentials for {host}"):
        credential = registry_credentials(
            workspace,
            host,
            repository,
            source=source,
            device=device,
            life_s=days * DAY_S,
            rotate=rotate,
        )
    wanted = CredentialFormat.JSON if as_json else output
    if output_file is not None:
        write_private(output_file, _text(_document(credential, wanted), wanted) + "\n")
        note(f"credentials written to {output_file}")
    else:
        shown = credential if show else _masked(credential)
        _print(_document(shown, wanted), wanted)
        if not show:
            note(f"passwords are shown as {MASK}: give --show, or --output-file FILE")
    if credential.warning:
        note(f"warning: {credential.warning}")


@app.command("list")
def list_users(
    registry: RegistryArgument = None,
    *,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List the credentials that were made at a registry, and when they end."""
    workspace = Workspace.open()
    host = registry or _embedded_registry(workspace)
    now = datetime.now(UTC)
    users = issuer_of(workspace, host).users(host)
    rows = [
        {
            "username": user.username,
            "repositories": list(user.repositories),
            "expires": None if user.expires is None else _time(user.expires),
            "daysLeft": None if user.expires is None else (user.expires - now).days,
        }
        for user in users
    ]
    columns = {
        "username": "USER",
        "repositories": "REPOSITORIES",
        "expires": "EXPIRES",
        "daysLeft": "DAYS LEFT",
    }
    show_rows(rows, columns, chosen(output, as_json))
    for user in users:
        if user.expires is not None and (user.expires - now).total_seconds() < WARN_BEFORE_S:
            note(
                f"warning: {user.username} ends {_time(user.expires)}: make new ones and apply the manifest again"
            )


@app.command()
def revoke(
    username: Annotated[str, typer.Argument(help="User, as `registry list` shows it.")],
    registry: RegistryArgument = None,
) -> None:
    """Take credentials back: whoever has them cannot pull any more."""
    workspace = Workspace.open()
    host = registry or _embedded_registry(workspace)
    with progress(f"revoking {username}"):
        issuer_of(workspace, host).revoke(host, username)
    workspace.audit("registry revoke", host, username=username)
    note(f"user {username} of registry {host} is gone; what it was logged in with ends in some minutes")


def _embedded_registry(workspace: Workspace) -> str:
    address = hub_endpoint(workspace).address
    if address is None:
        raise UsageError("name the registry: this workspace's hub is not the embedded one", where="REGISTRY")
    return address.registry


def _document(credential: PullCredential, wanted: CredentialFormat) -> dict[str, Any]:
    if wanted in FORMS:
        return FORMS[wanted](credential)
    return {
        "address": credential.registry,
        "username": credential.username,
        "password": credential.password.reveal(),
        "source": credential.source,
        "repositories": list(credential.repositories),
        "expires": None if credential.expires is None else _time(credential.expires),
    }


def _masked(credential: PullCredential) -> PullCredential:
    return replace(credential, password=Secret(MASK))


def _text(document: Mapping[str, Any], wanted: CredentialFormat) -> str:
    if wanted in (CredentialFormat.YAML, CredentialFormat.KUBERNETES):
        import yaml

        return str(yaml.safe_dump(document, sort_keys=False)).rstrip()
    return json.dumps(document, indent=2)


def _print(document: Mapping[str, Any], wanted: CredentialFormat) -> None:
    if wanted is CredentialFormat.TABLE:
        show_document(document, Format.TABLE)
    else:
        print(_text(document, wanted))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
