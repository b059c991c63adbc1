"""`edgewright manifest`: deployment manifests, made, checked and applied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_contracts.errors import ContractError
from edge_contracts.manifest import DeploymentManifest, Severity
from edge_contracts.redact import MASK, redact_document
from edge_contracts.twin import DESIRED_LIMIT_BYTES
from publisher.cli.devices import rollout_document
from publisher.cli.options import labels_of, password_of
from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
)
from publisher.credentials import CredentialSource, EmbeddedCredentials, GivenCredentials
from publisher.devices import check_device_id, wait_for_rollout
from publisher.embedded_hub import NoHubError, hub_endpoint
from publisher.errors import NotFoundError, UsageError
from publisher.manifests import ModuleRequest, parse_module, registries_without_credentials
from publisher.manifests import generate as generate_manifest
from publisher.private_file import write_private
from publisher.workspace import Workspace

app = command_group("Deployment manifests for IoT Edge devices.")

ManifestArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A deployment manifest.")]


@app.command()
def generate(
    modules: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]IMAGE…", help="Modules: built images as pushed, or references by digest."
        ),
    ],
    *,
    route: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ROUTE",
            help="May be repeated; without any, the device's messages go in and results go upstream.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of every module. May be repeated.")
    ] = None,
    publish: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Port on the device; a free one by default.")
    ] = None,
    registry_username: Annotated[
        str | None, typer.Option(help="User of the one registry that is not the embedded one.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read that user's password from stdin.")
    ] = False,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", help="Where to write it (mode 0600).")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print credentials too.")] = False,
) -> None:
    """Make a manifest from images, with pull-only credentials, routes and images by digest."""
    workspace = Workspace.open()
    if publish is not None and len(modules) > 1:
        raise UsageError("--publish is for one module, and these are several", where="--publish")
    if output_file is not None and not output_file.parent.is_dir():
        raise UsageError(f"--output-file must be in a folder that is there, not in {output_file.parent}")
    environment = labels_of(env, "--env")
    requests = [replace(parse_module(workspace, text), env=environment, publish=publish) for text in modules]
    sources: list[CredentialSource] = []
    embedded = _embedded_credentials(workspace)
    if registry_username is not None:
        registry = _given_registry(requests, embedded)
        sources.append(GivenCredentials(registry, registry_username, password_of(from_stdin=password_stdin)))
    if embedded is not None:
        sources.append(embedded)
    manifest = generate_manifest(
        requests, routes=labels_of(route, "--route") if route else None, sources=sources
    )
    for registry in registries_without_credentials(manifest):
        note(f"no credentials for {registry}: if it needs some, give its own with --registry-username")
    document = manifest.dump()
    if output_file is not None:
        write_private(output_file, json.dumps(document, indent=2) + "\n")
        note(f"manifest written to {output_file}: {_sizes(manifest)}")
        note(f"next: edgewright manifest apply {output_file} --device DEVICE")
        return
    print(json.dumps(document if show else redact_document(document), indent=2))
    if manifest.credentials and not show:
        note(f"passwords are shown as {MASK}: for a manifest to apply, give --output-file FILE")


@app.command()
def check(
    file: ManifestArgument, *, output: OutputOption = Format.TABLE, as_json: JsonOption = False
) -> None:
    """Check a manifest: form, names, routes, images, size. Exit code 1 for an error, 0 for warnings."""
    manifest = read_manifest(file)
    findings = manifest.check()
    wanted = chosen(output, as_json)
    if wanted is Format.TABLE:
        for finding in findings:
            print(f"{finding.severity}: '{finding.where}' {finding.message}")
        print(f"{file}: {len(findings)} findings; {_sizes(manifest)}")
    else:
        rows = [
            {"code": f.code, "severity": str(f.severity), "where": f.where, "message": f.message}
            for f in findings
        ]
        show_document({"findings": rows, **_size_document(manifest)}, wanted)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


@app.command()
def apply(
    file: ManifestArgument,
    *,
    device: Annotated[
        str, typer.Option("--device", "-d", help="The device to set.", callback=check_device_id)
    ],
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Wait until the device has finished.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Set a device's modules and routes through the hub's service API.

    With --wait, exit code 1 when the device did not come to the new release: it then runs what it ran before.
    """
    manifest = read_manifest(file)
    _refuse_unusable(file, manifest)
    workspace = Workspace.open()
    client = hub_endpoint(workspace).client()
    client.apply_configuration(device, manifest.dump())
    workspace.audit("manifest apply", device, modules={n: str(m.image) for n, m in manifest.modules.items()})
    if wait is None:
        note(f"deployment sent to device {device}")
        note(f"next: edgewright device show {device} --wait 60")
        return
    with progress(f"waiting for device {device}"):
        rollout = wait_for_rollout(client, device, wait)
    show_document({"deviceId": device, **rollout_document(rollout)}, chosen(output, as_json))
    if rollout.result != "succeeded":
        note(f"error: device {device} did not take deployment {rollout.desired_version}: {rollout.result}")
        note(f"next: edgewright device twin {device} --module '$edgeAgent'")
        raise typer.Exit(1)


def read_manifest(file: Path) -> DeploymentManifest:
    """The manifest in a file.

    Raises:
        NotFoundError: there is no such file. ContractError: it is not a manifest.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"manifest {file} cannot be read: {error.strerror}",
            where=str(file),
            next_command="edgewright manifest generate IMAGE --output-file FILE",
        ) from error
    try:
        return DeploymentManifest.parse(text)
    except ContractError as error:
        raise ContractError(
            f"{file} is no deployment manifest: {error.message}", code=error.code, where=error.where
        ) from error


def _embedded_credentials(workspace: Workspace) -> EmbeddedCredentials | None:
    try:
        return EmbeddedCredentials(hub_endpoint(workspace))
    except NoHubError:
        return None


def _given_registry(requests: Sequence[ModuleRequest], embedded: EmbeddedCredentials | None) -> str:
    """The one registry that --registry-username is for: a password must not get to any other.

    Raises:
        UsageError: there is none, or more than one.
    """
    registries = {host for request in requests if (host := request.image.credentials_host)}
    meant = {host for host in registries if embedded is None or not embedded.covers(host)} or registries
    if len(meant) != 1:
        found = " and ".join(sorted(meant)) or "none"
        raise UsageError(
            f"--registry-username is for one registry, and these images are from {found}",
            where="--registry-username",
        )
    return meant.pop()


def _refuse_unusable(file: Path, manifest: DeploymentManifest) -> None:
    """Refuse what `check` calls an error, and passwords that were printed masked; say the warnings."""
    findings = manifest.check()
    if errors := [finding for finding in findings if finding.severity is Severity.ERROR]:
        raise ContractError(
            f"{file} would not work: '{errors[0].where}' {errors[0].message}",
            where=errors[0].where,
            next_command=f"edgewright manifest check {file}",
        )
    for credential in manifest.credentials:
        if credential.password.reveal() == MASK:
            raise ContractError(
                f"{file} holds {MASK} instead of the password for {credential.address}: it was printed, not "
                "written with --output-file",
                where=f"registryCredentials.{credential.id}.password",
                next_command="edgewright manifest generate IMAGE --output-file FILE",
            )
    for finding in findings:
        note(f"{finding.severity}: '{finding.where}' {finding.message}")


def _size_document(manifest: DeploymentManifest) -> dict[str, Any]:
    return {
        "desiredBytes": manifest.desired_size_bytes(),
        "predictedReportedBytes": manifest.predicted_reported_size_bytes(),
        "limitBytes": DESIRED_LIMIT_BYTES,
    }


def _sizes(manifest: DeploymentManifest) -> str:
    sizes = _size_document(manifest)
    return "desired {desiredBytes}, reported at most {predictedReportedBytes} of {limitBytes} bytes".format(
        **sizes
    )
