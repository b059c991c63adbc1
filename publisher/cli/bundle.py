"""`edgewright bundle`: a manifest and its images in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_containers.image_model import Platform
from publisher.bundles import create_bundle
from publisher.cli.manifests import read_manifest, refuse_unusable
from publisher.cli.output import (
    Format,
    JsonOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
    size_text,
)
from publisher.workspace import Workspace

app = command_group("Bundles for devices without a network.")


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command()
def create(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A deployment manifest.")],
    *,
    output_file: Annotated[
        Path, typer.Option("--output-file", "-o", metavar="FILE", help="Where to write it (mode 0600).")
    ],
    platform: Annotated[
        str | None,
        typer.Option(metavar="OS/ARCH", help="Of the device; may be left out where the images have one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a manifest and its images, for one platform, into one file that `edge-agent apply` takes offline."""
    document = read_manifest(manifest)
    refuse_unusable(manifest, document)
    made = create_bundle(
        Workspace.open(),
        document,
        output_file,
        Platform.parse(platform) if platform else None,
        steps=progress,
    )
    if as_json:
        row = {
            "file": str(made.path),
            "platform": str(made.platform),
            "release": made.release,
            "images": list(made.images),
            "blobs": made.blobs,
            "sizeBytes": made.size_bytes,
        }
        show_document(row, chosen(Format.TABLE, as_json))
    note(f"{made.path}: {len(made.images)} images for {made.platform}, {size_text(made.size_bytes)}")
    if document.module_twins:
        note("properties of module twins stay behind: without a hub there is no twin to set")
    note(f"next: on the device, edge-agent apply {made.path.name}")
