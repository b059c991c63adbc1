"""`edgewright manifest`: deployment manifests, made, checked, compared and applied."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_contracts.documents import parse_object
from edge_contracts.errors import ContractError, EdgewrightError
from edge_contracts.image_ref import ImageRef
from edge_contracts.layers import Layer, merge
from edge_contracts.layers import read_manifest as parse_manifest
from edge_contracts.manifest import (
    EDGE_AGENT_IMAGE,
    EDGE_HUB_IMAGE,
    STORE_AND_FORWARD_TTL_S,
    DeploymentManifest,
    Finding,
    Severity,
)
from edge_contracts.module_settings import (
    CODE,
    STARTUP_ORDER_MAXIMUM,
    DesiredStatus,
    ImagePullPolicy,
    RestartPolicy,
)
from edge_contracts.redact import MASK, redact_document
from edge_contracts.twin import DESIRED_LIMIT_BYTES
from publisher.cli.devices import rollout_document
from publisher.cli.options import labels_of, password_of, per_module
from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    report_error,
    show_document,
    show_rows,
)
from publisher.container_flags import create_options
from publisher.credentials import (
    CredentialSource,
    EmbeddedCredentials,
    GivenCredentials,
    credentials_for,
    device_sources,
    embedded_credentials,
)
from publisher.credentials.ledger import findings_of
from publisher.deployments import (
    PRIORITY_MAXIMUM,
    configuration_id,
    read_device_manifest,
    set_configuration,
)
from publisher.devices import check_device_id, wait_for_rollout
from publisher.embedded_hub import hub_endpoint
from publisher.errors import NotFoundError, UsageError, WorkspaceError
from publisher.hub_client import Configuration
from publisher.manifest_diff import differences
from publisher.manifest_template import expand, read_env_file
from publisher.manifests import (
    Login,
    ModuleRequest,
    SystemSettings,
    generate_layer,
    parse_module,
    pin,
    registries_without_credentials,
    resolve_image,
)
from publisher.manifests import generate as generate_manifest
from publisher.private_file import write_private
from publisher.workspace import Workspace

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials

app = command_group("Deployment manifests for IoT Edge devices.")

ManifestArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A deployment manifest.")]
OutputFileOption = Annotated[
    Path | None, typer.Option("--output-file", help="Where to write it (mode 0600).")
]
ShowOption = Annotated[bool, typer.Option("--show", help="Print credentials too.")]
OF_EACH = "[MODULE::]"
NEW_MANIFEST = "edgewright manifest generate IMAGE --output-file FILE"


def _each(value: str, text: str) -> Any:
    """An option that may be repeated and that holds for every module, or for the one it begins with."""
    return typer.Option(metavar=f"{OF_EACH}{value}", help=text)


@app.command()
def generate(
    modules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]IMAGE…", help="Modules: built images as pushed, or references by digest or tag."
        ),
    ] = None,
    *,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Expand this deployment template instead.")
    ] = None,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--env-file", metavar="FILE", help="Variables of --template; .env beside it by default."
        ),
    ] = None,
    route: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ROUTE",
            help="May be repeated; without any, the device's messages go in and results go upstream.",
        ),
    ] = None,
    route_priority: Annotated[
        list[str] | None, typer.Option(metavar="NAME=0..9", help="Of a route; 0 goes first.")
    ] = None,
    route_ttl: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SECONDS", help="How long a route's messages are kept.")
    ] = None,
    message_ttl: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=-1, help="Of messages without a time of their own; -1 for ever."),
    ] = STORE_AND_FORWARD_TTL_S,
    env: Annotated[list[str] | None, _each("NAME=VALUE", "An environment variable. May be repeated.")] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(
            "--port",
            "--publish",
            metavar=f"{OF_EACH}[HOST:]PORT[:CONTAINER]",
            help="Port on the device; a free one by default.",
        ),
    ] = None,
    memory: Annotated[list[str] | None, _each("SIZE", "Most memory it may use, such as 512m.")] = None,
    cpus: Annotated[list[str] | None, _each("NUMBER", "Most processors it may use, such as 1.5.")] = None,
    gpu: Annotated[list[str] | None, _each("all|COUNT|IDS", "GPUs it gets.")] = None,
    device: Annotated[list[str] | None, _each("PATH[:PATH[:rwm]]", "A device file it gets.")] = None,
    volume: Annotated[list[str] | None, _each("SOURCE:/path[:ro]", "A folder or volume it gets.")] = None,
    container_options: Annotated[
        list[str] | None,
        typer.Option(
            "--create-options",
            metavar=f"{OF_EACH}FILE",
            help="JSON of Docker's container create, under the flags.",
        ),
    ] = None,
    twin: Annotated[list[str] | None, _each("FILE", "JSON of the module's own desired properties.")] = None,
    module_version: Annotated[list[str] | None, _each("TEXT", "The module's version, for people.")] = None,
    startup_order: Annotated[list[str] | None, _each("N", "Lower ones start first.")] = None,
    restart_policy: Annotated[
        list[str] | None, _each("never|on-failure|always", "When it is started again.")
    ] = None,
    pull_policy: Annotated[list[str] | None, _each("on-create|never", "Whether its image is pulled.")] = None,
    status: Annotated[list[str] | None, _each("running|stopped", "Whether it is to run.")] = None,
    unpushed: Annotated[
        bool, typer.Option("--unpushed", help="Take images that no registry has: for a bundle.")
    ] = False,
    layered: Annotated[bool, typer.Option("--layered", help="A layer over a base deployment.")] = False,
    edge_agent_image: Annotated[
        str, typer.Option(help="System module of stock IoT Edge devices; ours have it built in.")
    ] = EDGE_AGENT_IMAGE,
    edge_hub_image: Annotated[str, typer.Option(help="The same.")] = EDGE_HUB_IMAGE,
    registry_username: Annotated[
        str | None, typer.Option(help="User of the one registry that is not the embedded one.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read that user's password from stdin.")
    ] = False,
    output_file: OutputFileOption = None,
    show: ShowOption = False,
) -> None:
    """Make a manifest from images, with pull-only credentials, routes and images by digest; or from a template."""
    workspace = Workspace.open()
    if bool(modules) == (template is not None):
        raise UsageError("a manifest is made from images or from a --template: give one of the two")
    if output_file is not None and not output_file.parent.is_dir():
        raise UsageError(f"--output-file must be in a folder that is there, not in {output_file.parent}")
    if template is not None:
        _write(_from_template(workspace, template, env_file), output_file, show=show)
        return
    requests = [parse_module(workspace, text, unpushed=unpushed) for text in modules or ()]
    sources, login = _sources(
        workspace, [request.image for request in requests], registry_username, from_stdin=password_stdin
    )
    requests = [replace(request, image=pin(request.image, login)) for request in requests]
    names = [request.name for request in requests]
    one = {
        key: per_module(values, names, option, only_one=True)
        for key, values, option in (
            ("memory", memory, "--memory"),
            ("cpus", cpus, "--cpus"),
            ("gpu", gpu, "--gpu"),
            ("others", container_options, "--create-options"),
            ("desired", twin, "--twin"),
            ("version", module_version, "--module-version"),
            ("startup_order", startup_order, "--startup-order"),
            ("restart_policy", restart_policy, "--restart-policy"),
            ("image_pull_policy", pull_policy, "--pull-policy"),
            ("status", status, "--status"),
        )
    }
    many = {
        "env": per_module(env, names, "--env"),
        "ports": per_module(port, names, "--port"),
        "devices": per_module(device, names, "--device"),
        "volumes": per_module(volume, names, "--volume"),
    }
    requests = [
        _completed(
            request,
            {key: values[request.name][0] for key, values in one.items() if values[request.name]},
            {key: values[request.name] for key, values in many.items()},
        )
        for request in requests
    ]
    routes = _routes(route, route_priority, route_ttl)
    if layered:
        _write(generate_layer(requests, routes=routes, sources=sources), output_file, show=show)
        return
    system = SystemSettings(edge_agent_image, edge_hub_image, message_ttl)
    _write(generate_manifest(requests, routes=routes, sources=sources, system=system), output_file, show=show)


@app.command()
def check(
    file: ManifestArgument,
    *,
    layer: Annotated[
        list[Path] | None,
        typer.Option(
            "--layer", metavar="FILE", help="Check it with this layer on top; lowest priority first."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Print what a device gets instead, without passwords.")
    ] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Check a manifest: form, names, routes, images, size. Exit code 1 for an error, 0 for warnings."""
    manifest = read_any_manifest(file)
    if layer:
        manifest = merge(_whole(file, manifest), [_layer(each) for each in layer])
    if preview:
        print(json.dumps(redact_document(manifest.dump()), indent=2))
        return
    findings = _findings(manifest)
    sizes = _size_document(manifest) if isinstance(manifest, DeploymentManifest) else {}
    wanted = chosen(output, as_json)
    if wanted is Format.TABLE:
        for finding in findings:
            print(_finding_text(finding))
        print(f"{file}: {len(findings)} findings; {_sizes(manifest)}")
    else:
        rows = [
            {"code": f.code, "severity": str(f.severity), "where": f.where, "message": f.message}
            for f in findings
        ]
        show_document({"findings": rows, **sizes}, wanted)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment manifest.")],
    after: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Another one.")] = None,
    *,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Compare with what this device was given.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Compare two manifests, or a device's with a file. Exit code 0 when they mean the same, 1 when not, 2 on failure."""
    try:
        if (after is None) == (device is None):
            raise UsageError(
                "a manifest is compared with another FILE or with a --device: give one of the two"
            )
        first = _whole(before, read_any_manifest(before))
        if after is not None:
            found = differences(first, _whole(after, read_any_manifest(after)))
        else:
            client = hub_endpoint(Workspace.open()).client()
            found = differences(read_device_manifest(client, check_device_id(str(device))), first)
    except EdgewrightError as error:
        report_error(error)
        raise typer.Exit(2) from error
    rows = [
        {"path": each.path, "change": each.change, "before": each.before, "after": each.after}
        for each in found
    ]
    columns = {"change": "CHANGE", "path": "PATH", "before": "BEFORE", "after": "AFTER"}
    if rows or chosen(output, as_json) is not Format.TABLE:
        show_rows(rows, columns, chosen(output, as_json))
    else:
        note("no difference")
    if rows:
        raise typer.Exit(1)


@app.command()
def apply(
    file: ManifestArgument,
    *,
    device: Annotated[str | None, typer.Option("--device", "-d", help="The device to set.")] = None,
    target_condition: Annotated[
        str | None,
        typer.Option(metavar="QUERY", help="Every edge device of this condition, as tags.site='north'."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=0, max=PRIORITY_MAXIMUM, help="With --target-condition; the highest one holds."),
    ] = None,
    configuration: Annotated[
        str | None,
        typer.Option("--id", help="Name of the automatic deployment; from its content by default."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the automatic deployment.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME=QUERY", help="A metric of the automatic deployment.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Wait until the device has finished.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Set the modules and routes of one device, or of every device that a condition targets, through the hub.

    With --wait, exit code 1 when the device did not come to the new release: it then runs what it ran before.
    """
    if (device is None) == (target_condition is None):
        raise UsageError("a manifest goes to a --device or to the devices of a --target-condition: give one")
    manifest = read_any_manifest(file)
    refuse_unusable(file, manifest)
    if target_condition is not None:
        if priority is None or wait is not None:
            raise UsageError("--target-condition needs --priority, and does not go with --wait")
        content = manifest.dump()
        document = Configuration(
            configuration_id(configuration, content),
            target_condition,
            priority,
            content,
            labels_of(label, "--label"),
            labels_of(metric, "--metric"),
        )
        _apply_at_scale(document, chosen(output, as_json))
        return
    if any(option is not None for option in (priority, configuration, label, metric)):
        raise UsageError(
            "--priority, --id, --label and --metric go with --target-condition, not with --device"
        )
    device = check_device_id(str(device))
    whole = _whole(file, manifest)
    workspace = Workspace.open()
    client = hub_endpoint(workspace).client()
    client.apply_configuration(device, whole.dump())
    workspace.audit("manifest apply", device, modules={n: str(m.image) for n, m in whole.modules.items()})
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


@app.command()
def export(
    *,
    device: Annotated[
        str, typer.Option("--device", "-d", help="Whose deployment to take.", callback=check_device_id)
    ],
    output_file: OutputFileOption = None,
    show: ShowOption = False,
) -> None:
    """Write the manifest that a device was given, module twins included, so that `apply` gives it again."""
    client = hub_endpoint(Workspace.open()).client()
    _write(read_device_manifest(client, device), output_file, show=show)


def _apply_at_scale(configuration: Configuration, output: Format) -> None:
    workspace = Workspace.open()
    client = hub_endpoint(workspace).client()
    made, created = set_configuration(client, configuration)
    workspace.audit("manifest apply", made.configuration_id, target_condition=made.target_condition)
    document = {
        "id": made.configuration_id,
        "targetCondition": made.target_condition,
        "priority": made.priority,
        "labels": dict(made.labels),
        "metrics": dict(made.metric_queries),
        "result": "created" if created else "updated",
    }
    show_document(document, output)
    note("a hub takes up to five minutes until it has found the devices of a condition")


def _completed(
    request: ModuleRequest, one: Mapping[str, str], many: Mapping[str, list[str]]
) -> ModuleRequest:
    """The module with what the options say of it."""
    changes: dict[str, Any] = {
        "env": labels_of(many["env"], "--env"),
        "create_options": create_options(
            ports=many["ports"],
            memory=one.get("memory"),
            cpus=one.get("cpus"),
            gpu=one.get("gpu"),
            devices=many["devices"],
            volumes=many["volumes"],
            others=_json_file(one["others"], "--create-options") if "others" in one else None,
        ),
    }
    if "version" in one:
        changes["version"] = one["version"]
    if "desired" in one:
        changes["desired"] = _json_file(one["desired"], "--twin")
    if "startup_order" in one:
        changes["startup_order"] = _number(one["startup_order"], "--startup-order", 0, STARTUP_ORDER_MAXIMUM)
    choices: tuple[tuple[str, str, Sequence[Any]], ...] = (
        ("status", "--status", list(DesiredStatus)),
        ("image_pull_policy", "--pull-policy", list(ImagePullPolicy)),
        # on-unhealthy means something else to each agent.
        (
            "restart_policy",
            "--restart-policy",
            [RestartPolicy.NEVER, RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS],
        ),
    )
    for key, option, allowed in choices:
        if key in one:
            changes[key] = _choice(one[key], option, allowed)
    return replace(request, **changes)


def _choice(text: str, option: str, allowed: Sequence[Any]) -> Any:
    if text not in allowed:
        raise UsageError(f"{option} must be {' or '.join(map(str, allowed))}, not {text!r}", where=option)
    return next(each for each in allowed if each == text)


def _number(text: str, option: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise UsageError(
            f"{option} must be a whole number from {least} to {most}, not {text!r}", where=option
        )
    return int(text)


def _json_file(name: str, option: str) -> dict[str, Any]:
    try:
        text = Path(name).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{option} {name} cannot be read: {error.strerror}", where=name) from error
    return parse_object(text, where=name, code=CODE)


def _routes(
    texts: Sequence[str] | None, priorities: Sequence[str] | None, ttls: Sequence[str] | None
) -> dict[str, str | Mapping[str, Any]] | None:
    routes: dict[str, Any] = dict(labels_of(texts, "--route"))
    for values, option, key, most in (
        (priorities, "--route-priority", "priority", 9),
        (ttls, "--route-ttl", "timeToLiveSecs", 4294967295),
    ):
        for name, text in labels_of(values, option).items():
            if name not in routes:
                raise UsageError(f"{option} names route {name!r}, which no --route gives", where=option)
            before = routes[name] if isinstance(routes[name], dict) else {"route": routes[name]}
            routes[name] = before | {key: _number(text, option, 0, most)}
    return routes or None


def _from_template(
    workspace: Workspace, template: Path, env_files: Sequence[Path] | None
) -> DeploymentManifest | Layer:
    files = list(env_files or ())
    if not files and (template.parent / ".env").is_file():
        files = [template.parent / ".env"]
    variables: dict[str, str] = {}
    for file in files:
        variables |= read_env_file(_text(file, "--env-file"), where=str(file))
    variables |= os.environ
    images = lambda name: str(resolve_image(workspace, name))  # noqa: E731 - one expression
    document = expand(_text(template, "--template"), variables, images, where=str(template))
    return parse_manifest(document)


def _text(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise NotFoundError(f"{option} {file} cannot be read: {reason}", where=str(file)) from error


def _write(manifest: DeploymentManifest | Layer, output_file: Path | None, *, show: bool) -> None:
    """Print a manifest masked, or write it whole to a file that is its owner's alone."""
    for registry in registries_without_credentials(manifest):
        note(
            f"no credentials for {registry}: if it needs some, give --registry-username, registry.logins or [azure]"
        )
    document = manifest.dump()
    if output_file is not None:
        write_private(output_file, json.dumps(document, indent=2) + "\n")
        note(f"manifest written to {output_file}: {_sizes(manifest)}")
        way = (
            "--device DEVICE"
            if isinstance(manifest, DeploymentManifest)
            else "--target-condition Q --priority N"
        )
        note(f"next: edgewright manifest apply {output_file} {way}")
        return
    print(json.dumps(document if show else redact_document(document), indent=2))
    if manifest.credentials and not show:
        note(f"passwords are shown as {MASK}: for a manifest to apply, give --output-file FILE")


def read_manifest(file: Path) -> DeploymentManifest:
    """The whole manifest in a file; a layer is refused.

    Raises:
        NotFoundError: there is no such file. ContractError: it is not a manifest.
    """
    return _whole(file, read_any_manifest(file))


def read_any_manifest(file: Path) -> DeploymentManifest | Layer:
    """The manifest or layer in a file; see `read_manifest`."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"manifest {file} cannot be read: {error.strerror}", where=str(file), next_command=NEW_MANIFEST
        ) from error
    try:
        return parse_manifest(text)
    except ContractError as error:
        raise ContractError(
            f"{file} is no deployment manifest: {error.message}", code=error.code, where=error.where
        ) from error


def _whole(file: Path, manifest: DeploymentManifest | Layer) -> DeploymentManifest:
    if isinstance(manifest, Layer):
        raise UsageError(
            f"{file} is a layer over a base deployment, not a whole manifest",
            where=str(file),
            next_command=f"edgewright manifest apply {file} --target-condition QUERY --priority N",
        )
    return manifest


def _layer(file: Path) -> Layer:
    found = read_any_manifest(file)
    if not isinstance(found, Layer):
        raise UsageError(f"--layer {file} is a whole manifest, not a layer over one", where=str(file))
    return found


def _sources(
    workspace: Workspace, images: Sequence[ImageRef], username: str | None, *, from_stdin: bool
) -> tuple[list[CredentialSource], Login]:
    """Who makes pull credentials for these images' registries, and what to sign in there with to resolve tags."""
    sources: list[CredentialSource] = list(device_sources(workspace))
    given: GivenCredentials | None = None
    if username is not None:
        registry = _given_registry(images, embedded_credentials(workspace))
        given = GivenCredentials(registry, username, password_of(from_stdin=from_stdin))
        sources.insert(0, given)

    def login(registry: str) -> BasicCredentials | None:
        from edge_containers.registry_client import BasicCredentials

        if given is not None and given.registry.lower() == registry.lower():
            return BasicCredentials(given.username, given.password)
        return credentials_for(registry, workspace=workspace)

    return sources, login


def _given_registry(images: Sequence[ImageRef], embedded: EmbeddedCredentials | None) -> str:
    """The one registry that --registry-username is for: a password must not get to any other.

    Raises:
        UsageError: there is none, or more than one.
    """
    registries = {host for image in images if (host := image.credentials_host)}
    meant = {host for host in registries if embedded is None or not embedded.covers(host)} or registries
    if len(meant) != 1:
        found = " and ".join(sorted(meant)) or "none"
        raise UsageError(
            f"--registry-username is for one registry, and these images are from {found}",
            where="--registry-username",
        )
    return meant.pop()


def refuse_unusable(file: Path, manifest: DeploymentManifest | Layer) -> None:
    """Refuse what `check` calls an error, and passwords that were printed masked; say the warnings."""
    findings = _findings(manifest)
    if errors := [finding for finding in findings if finding.severity is Severity.ERROR]:
        raise ContractError(
            f"{file} would not work: {errors[0].message}",
            where=errors[0].where,
            next_command=f"edgewright manifest check {file}",
        )
    for credential in manifest.credentials:
        if credential.password.reveal() == MASK:
            raise ContractError(
                f"{file} holds {MASK} instead of the password for {credential.address}: it was printed, not "
                "written with --output-file",
                where=f"registryCredentials.{credential.id}.password",
                next_command=NEW_MANIFEST,
            )
    for finding in findings:
        note(_finding_text(finding))


def _findings(manifest: DeploymentManifest | Layer) -> tuple[Finding, ...]:
    """What the manifest says of itself, and what the workspace here, if there is one, knows of its credentials."""
    try:
        workspace = Workspace.open()
    except WorkspaceError:
        return tuple(manifest.check())
    return (*manifest.check(), *findings_of(workspace, manifest.credentials, datetime.now(UTC)))


def _finding_text(finding: Finding) -> str:
    return f"{finding.severity}: {finding.message}"


def _size_document(manifest: DeploymentManifest) -> dict[str, Any]:
    return {
        "desiredBytes": manifest.desired_size_bytes(),
        "predictedReportedBytes": manifest.predicted_reported_size_bytes(),
        "limitBytes": DESIRED_LIMIT_BYTES,
    }


def _sizes(manifest: DeploymentManifest | Layer) -> str:
    if isinstance(manifest, Layer):
        return "a layer, whose size counts with its base: edgewright manifest check BASE --layer FILE"
    sizes = _size_document(manifest)
    return "desired {desiredBytes}, reported at most {predictedReportedBytes} of {limitBytes} bytes".format(
        **sizes
    )
