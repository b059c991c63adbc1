"""`edgewright image`: build, list, show, push, pull, export, delete."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_containers.image_model import Platform
from edge_contracts.image_ref import ImageRef
from publisher.build_request import BuildRequest
from publisher.builders.oci import BuildResult
from publisher.cli.options import FilterOption, PropertyFilterOption, filter_of, labels_of, password_of
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
    size_text,
)
from publisher.environments import read_environment
from publisher.errors import UsageError
from publisher.image_plan import DEFAULT_MESSAGES
from publisher.image_transfer import Access, PushedImage, RemoteTag, TagState
from publisher.images import ContainerImage, Image, default_platforms
from publisher.models import Model
from publisher.workspace import Workspace

if TYPE_CHECKING:
    from edge_containers.registry_client import BasicCredentials
    from publisher.deployment_file import DeploymentFile

app = command_group("Build scoring images, push and export them.")

COLUMNS = {
    "id": "ID",
    "modelIds": "MODELS",
    "platforms": "PLATFORMS",
    "size": "SIZE",
    "shortDigest": "DIGEST",
}

SHARED_ROLES = ("runtime", "model", "script")
"""Roles of layers that are one blob for all platforms."""

base_app = command_group("Make what images stand on.")
app.add_typer(base_app, name="base")

ImageArgument = Annotated[
    str, typer.Argument(metavar="NAME[:VERSION]", help="A built image; newest version by default.")
]
UsernameOption = Annotated[
    str | None, typer.Option(help="User of the registry; the workspace's or Docker's login by default.")
]
PasswordOption = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Read the password from stdin (else EDGEWRIGHT_REGISTRY_PASSWORD)."
    ),
]
CaOption = Annotated[Path | None, typer.Option(help="Certificate authority of the registry, PEM.")]


@app.command()
def build(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="NAME[:VERSION]", help="Registered model to score with. May be repeated."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Azure ML v2 deployment YAML: model, script and environment in place of options.",
        ),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(
            "--script",
            "-s",
            help="Entry script with init() and run(); not needed for one .onnx file or an MLflow folder.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-t", help="Name of the image; the first model's by default.")
    ] = None,
    requirements: Annotated[
        Path | None,
        typer.Option(
            help="What the script imports: requirements.txt, pyproject.toml or a conda environment."
        ),
    ] = None,
    conda_file: Annotated[
        Path | None, typer.Option("--conda-file", help="Conda environment; may stand beside --requirements.")
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Extra of the pyproject.toml. May be repeated.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="URL", help="Package index in place of the workspace's.")
    ] = None,
    extra_index: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Further package index. May be repeated.")
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="File or folder beside the script. May be repeated.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="linux/amd64 or linux/arm64; the workspace's by default. May be repeated."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="What it stands on: none (the device's own Python), a base made by `image base create`, a path, or "
            "HOST/REPOSITORY:TAG; the workspace's by default.",
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="python, or spark-py: with PySpark, on a base with a Java runtime.")
    ] = "python",
    builder: Annotated[
        str, typer.Option(help="oci, in process; or docker, for steps that an engine must run.")
    ] = "oci",
    docker_file: Annotated[
        Path | None,
        typer.Option(
            help="Steps below the image's own layers, for --builder docker; without FROM they start from the base."
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH|schema",
            help="Requests (a JSON file or a folder of them) whose answers are recorded by running the image here, and "
            "checked on every device before it is ready; schema: the script's own sample.",
        ),
    ] = None,
    messages: Annotated[
        str, typer.Option(metavar="INPUT=OUTPUT", help="Message input scored, and output answered on.")
    ] = DEFAULT_MESSAGES,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Resolve anew instead of using the workspace's lock.")
    ] = False,
    locked: Annotated[
        bool,
        typer.Option("--locked", help="Use the workspace's lock, offline; fail where it would change."),
    ] = False,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    prop: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="May be repeated.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is.")] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Build a scoring image for every platform."""
    deployment = _deployment(file, model, script, include)
    workspace = Workspace.open()
    if deployment is None:
        registered = tuple(Model(workspace, id=each) for each in model or ())
    else:
        from publisher.deployment_request import deployment_model

        registered = (deployment_model(workspace, deployment, progress),)
    python = workspace.settings.environment.python
    environment = read_environment(requirements, conda_file, python, extras=extra or ())
    request = BuildRequest(
        name=name or registered[0].name,
        models=registered,
        script=script,
        environment=environment,
        includes=tuple(include or ()),
        platforms=_platforms(workspace, platform),
        base=base or workspace.settings.image.default_base,
        messages=messages,
        golden=golden,
        runtime=runtime,
        builder=builder,
        docker_file=docker_file,
        upgrade=upgrade,
        locked=locked,
        index=index or "",
        extra_index=tuple(extra_index or ()),
        tags=labels_of(tag, "--tag"),
        properties=labels_of(prop, "--property"),
        description=description,
    )
    if deployment is not None and file is not None:
        from publisher.deployment_request import deployment_request

        request = deployment_request(request, deployment, file)
        request = replace(request, base=base or request.base)
    request = request.with_own_script()
    for line in request.environment.notes:
        note(line)
    image = ContainerImage.from_request(workspace, request, steps=progress)
    if chosen(output, as_json) is not Format.TABLE:
        show_document(image.serialize() | _build_document(image.build), chosen(output, as_json))
        return
    print(f"{image.id} {image.digest}")
    _note_build(image)
    note(f"next: edgewright image push {image.id}")


def _deployment(
    file: Path | None, model: list[str] | None, script: Path | None, include: list[Path] | None
) -> DeploymentFile | None:
    """What `-f` names; it stands in place of the options that say the same."""
    given = [name for name, value in (("-m", model), ("-s", script), ("--include", include)) if value]
    if file is None:
        if not model:
            raise typer.BadParameter(
                "name the model with --model NAME, or a deployment file with --file FILE"
            )
        return None
    if given:
        raise typer.BadParameter(f"{given[0]} is said by the deployment file: give {given[0]} or -f")
    from publisher.deployment_file import read_deployment

    return read_deployment(file)


@app.command("list")
def list_images(
    *,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Only this name.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME[:VERSION]", help="Only with this model.")
    ] = None,
    tag: FilterOption = None,
    prop: PropertyFilterOption = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List images, newest version first."""
    by_id = model is not None and ":" in model
    found = Image.list(
        Workspace.open(),
        name,
        model_name=None if by_id else model,
        model_id=model if by_id else None,
        tags=filter_of(tag),
        properties=filter_of(prop),
    )
    images = [image.serialize() for image in found]
    for_reading = [
        {**image, "size": size_text(image["sizeBytes"]), "shortDigest": image["digest"][:19]}
        for image in images
    ]
    show_rows(
        for_reading if chosen(output, as_json) is Format.TABLE else images, COLUMNS, chosen(output, as_json)
    )


@app.command()
def show(
    image: ImageArgument,
    *,
    remote: Annotated[
        bool, typer.Option("--remote", help="Also ask the registries what its tags name now.")
    ] = False,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Print its SBOM (CycloneDX JSON, one platform) instead.")
    ] = False,
    platform: Annotated[str | None, typer.Option(help="Platform of the SBOM, as linux/arm64.")] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show one image with its layers."""
    workspace = Workspace.open()
    found = Image(workspace, id=image)
    if sbom:
        print(json.dumps(json.loads(found.sbom(platform)), indent=2, sort_keys=True))
        return
    tags = found.remote_tags(lambda registry: _access(workspace, registry)) if remote else []
    document = found.serialize() | ({"remoteTags": [_tag_document(each) for each in tags]} if remote else {})
    show_document(document, chosen(output, as_json))
    for each in tags:
        if each.state is not TagState.SAME:
            now = each.found or "nothing"
            note(f"warning: {each.reference} was {each.recorded} here and names {now} now")


@app.command()
def push(
    image: ImageArgument,
    registry: Annotated[
        str | None, typer.Argument(help="Registry as HOST[:PORT]; the embedded hub's by default.")
    ] = None,
    *,
    repository: Annotated[
        str | None, typer.Option(help="Repository there; the image's name by default.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            "-t",
            metavar="[HOST/]NAME[:TAG]",
            help="Where to push, with a registry of its own or on REGISTRY; the version by default. May be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Move a tag that names something not pushed from here.")
    ] = False,
    username: UsernameOption = None,
    password_stdin: PasswordOption = False,
    ca_file: CaOption = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Push an image; only blobs that the registry lacks are sent. Prints its reference by digest."""
    workspace = Workspace.open()
    found = Image(workspace, id=image)
    if repository is not None and tag:
        raise UsageError("give --repository, or the whole name with -t NAME:TAG, not both")
    given = _credentials(username, password_stdin)
    pushed = []
    for host, name, label in _targets(workspace, found, registry, repository, tag):
        login = _access(workspace, host, given, ca_file)
        pushed.append(
            found.push(
                host,
                repository=name,
                tag=label,
                force=force,
                credentials=login.credentials,
                ca_file=ca_file,
                steps=progress,
            )
        )
    if chosen(output, as_json) is not Format.TABLE:
        documents = [_push_document(each) for each in pushed]
        show_document(documents[0] | {"pushed": documents}, chosen(output, as_json))
        return
    for each in pushed:
        print(each.location)
        note(
            f"{each.tagged}: sent {each.bytes_sent} bytes: {each.blobs_sent} blobs, {each.blobs_skipped} were there"
        )


@app.command()
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="HOST/NAME[:TAG|@DIGEST]", help="The image; its digest is safest.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Name here; the last part of the repository by default.")
    ] = None,
    username: UsernameOption = None,
    password_stdin: PasswordOption = False,
    ca_file: CaOption = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Bring an image of a registry into the workspace, with all platforms, SBOM and signatures."""
    workspace = Workspace.open()
    host = ImageRef.parse(reference).registry or ""
    login = _access(workspace, host, _credentials(username, password_stdin), ca_file)
    found = Image.pull(
        workspace, reference, name=name, credentials=login.credentials, ca_file=ca_file, steps=progress
    )
    if chosen(output, as_json) is not Format.TABLE:
        show_document(found.serialize(), chosen(output, as_json))
        return
    print(f"{found.id} {found.digest}")


@app.command()
def export(
    image: ImageArgument,
    output_file: Annotated[Path, typer.Option("--output-file", help="Where to write it.")],
    platform: Annotated[
        str | None, typer.Option(help="One platform, as linux/arm64; all of them by default.")
    ] = None,
) -> None:
    """Write an image as one file that docker load and skopeo (oci-archive:FILE) take."""
    found = Image(Workspace.open(), id=image)
    with progress(f"writing {output_file.name}"):
        size = found.export(output_file, platform)
    note(f"image {found.id} written to {output_file}, {size_text(size)}")


@app.command()
def delete(
    image: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to delete.")],
) -> None:
    """Delete one version of an image here; copies in registries stay."""
    found = Image(Workspace.open(), id=image)
    found.delete()
    note(f"image {found.id} deleted")


@base_app.command("create")
def create_base_image(
    *,
    suite: Annotated[str, typer.Option(help="Debian release.")] = "bookworm",
    arch: Annotated[
        str | None, typer.Option(help="amd64, arm64 or arm; that of this machine by default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="How images name it; the suite by default.")
    ] = None,
    with_jre: Annotated[
        bool, typer.Option("--with-jre", help="With a Java runtime, which PySpark needs.")
    ] = False,
    package: Annotated[
        list[str] | None, typer.Option(help="Further Debian package. May be repeated.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Debian mirror.")] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", help="Also write the root file system's tar here.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Make it anew, with the packages of today.")
    ] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Make a slim Debian base with Python by mmdebstrap, for any architecture, and keep it in the workspace."""
    from publisher.bases.create import DEFAULT_MIRROR, BaseRecipe, create_base

    recipe = BaseRecipe(
        platform=Platform("linux", arch) if arch else Platform.host(),
        suite=suite,
        mirror=mirror or DEFAULT_MIRROR,
        with_jre=with_jre,
        packages=tuple(package or ()),
    )
    made = create_base(
        Workspace.open(),
        recipe,
        name=name,
        output_file=output_file,
        refresh=refresh,
        steps=progress,
        report=lambda line: note(f"  {line}"),
    )
    if chosen(output, as_json) is not Format.TABLE:
        document = {
            "name": made.name,
            "platform": str(made.platform),
            "digest": str(made.digest),
            "diffId": str(made.diff_id),
            "sizeBytes": made.size_bytes,
            "reused": made.reused,
        }
        show_document(document, chosen(output, as_json))
        return
    print(f"{made.name} {made.platform} {made.diff_id}")
    note(
        f"base {made.name} for {made.platform} {'was here' if made.reused else 'made'}, {size_text(made.size_bytes)}"
    )
    note(f"next: edgewright image build -m MODEL --base {made.name} --platform {made.platform}")


def _platforms(workspace: Workspace, given: list[str] | None) -> tuple[Platform, ...]:
    return tuple(Platform.parse(each) for each in given) if given else default_platforms(workspace)


def _targets(
    workspace: Workspace, image: Image, registry: str | None, repository: str | None, tags: list[str] | None
) -> list[tuple[str, str, str | None]]:
    """Registry, repository and tag of each place to push to."""
    if not tags:
        return [(registry or _embedded_registry(workspace), repository or image.name, None)]
    targets = []
    for each in tags:
        ref = ImageRef.parse(each)
        if ref.digest is not None:
            raise UsageError(f"-t takes NAME[:TAG], not a digest: {each!r}", where="-t")
        targets.append((ref.registry or registry or _embedded_registry(workspace), ref.repository, ref.tag))
    return targets


def _embedded_registry(workspace: Workspace) -> str:
    """The embedded hub's registry, which is meant when none is named."""
    from publisher.embedded_hub import hub_endpoint

    endpoint = hub_endpoint(workspace)
    if endpoint.address is None:
        raise UsageError("name the registry to push to: this workspace's hub is not the embedded one")
    return endpoint.address.registry


def _access(
    workspace: Workspace, registry: str, given: BasicCredentials | None = None, ca_file: Path | None = None
) -> Access:
    from publisher.credentials.chain import credentials_for

    return Access(given or credentials_for(registry, workspace=workspace), ca_file)


def _push_document(pushed: PushedImage) -> dict[str, Any]:
    return {
        "imageLocation": str(pushed.location),
        "tagged": str(pushed.tagged),
        "bytesSent": pushed.bytes_sent,
        "blobsSent": pushed.blobs_sent,
        "blobsSkipped": pushed.blobs_skipped,
    }


def _tag_document(tag: RemoteTag) -> dict[str, Any]:
    return {
        "reference": str(tag.reference),
        "state": tag.state.value,
        "recordedDigest": str(tag.recorded),
        "foundDigest": str(tag.found) if tag.found is not None else None,
    }


def _credentials(username: str | None, password_stdin: bool) -> BasicCredentials | None:
    from edge_containers.registry_client import BasicCredentials

    return BasicCredentials(username, password_of(from_stdin=password_stdin)) if username else None


def _build_document(result: BuildResult | None) -> dict[str, object]:
    layers = [
        {
            "platform": str(each.platform),
            "role": layer.role,
            "digest": str(layer.descriptor.digest),
            "sizeBytes": layer.descriptor.size,
            "reused": layer.reused,
            "seconds": round(layer.seconds, 3),
        }
        for each in (result.platforms if result else ())
        for layer in each.layers
    ]
    return {"built": layers}


def _note_build(image: Image) -> None:
    if image.build is None:
        return
    for each in image.build.platforms:
        if each.lock.reused:
            note(
                f"{each.platform}: dependencies as resolved here at {each.lock.resolved_at}; --upgrade resolves again"
            )
    seen = set()
    for each in image.build.platforms:
        for layer in each.layers:
            if layer.descriptor.digest not in seen:
                seen.add(layer.descriptor.digest)
                shared = f" {each.platform}" if layer.role not in SHARED_ROLES else ""
                how = "reused" if layer.reused else f"{layer.seconds:.1f} s"
                note(f"  {layer.role + shared:26} {size_text(layer.descriptor.size):>9}  {how}")
    note(f"image {image.id} built in {image.build_seconds:.1f} s, {size_text(image.size)}")
