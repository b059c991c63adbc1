"""`edgewright registry`: credentials that devices pull images with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from edge_contracts.image_ref import ImageRef
from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    show_document,
)
from publisher.credentials import DAY_S, EmbeddedCredentials, NoCredentialsError
from publisher.embedded_hub import hub_endpoint
from publisher.workspace import Workspace

app = command_group("Registry credentials.")


@app.callback()
def _group() -> None:
    """Registry credentials."""


@app.command()
def credentials(
    repository: Annotated[str, typer.Argument(help="Repository that may be pulled, as 'digits'.")],
    *,
    registry: Annotated[
        str | None, typer.Option(help="Registry as HOST[:PORT]; the embedded one by default.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long they are good for.")] = 90,
    show: Annotated[bool, typer.Option("--show", help="Print the password.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Make pull-only credentials for one repository of the embedded registry."""
    workspace = Workspace.open()
    endpoint = hub_endpoint(workspace)
    embedded = endpoint.address.registry if endpoint.address else ""
    host = registry or embedded
    name = ImageRef.parse(f"{host or 'localhost'}/{repository}").repository
    credential = EmbeddedCredentials(endpoint, days * DAY_S).pull_credential(host, (name,))
    if credential is None:
        raise NoCredentialsError(
            f"credentials can be made for the embedded registry ({embedded or 'not used here'}) alone, not for "
            f"{host or 'another hub'!r}; give that registry's own to manifest generate --registry-username",
            next_command="edgewright manifest generate --help",
        )
    workspace.audit("registry credentials", f"{host}/{name}", username=credential.username, days=days)
    document = {
        "address": credential.address,
        "username": credential.username,
        "password": credential.password.reveal() if show else "***",
        "repository": name,
        "actions": "pull",
        "expires": (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    show_document(document, chosen(output, as_json))
    if not show:
        note("the password is shown with --show; manifest generate makes its own")
