"""`edgewright model`: register, list, show, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from publisher.cli.options import FilterOption, PropertyFilterOption, filter_of, labels_of
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
from publisher.models import Model
from publisher.workspace import Workspace

app = command_group("Register models and look them up.")

COLUMNS = {"id": "ID", "file": "FILE", "size": "SIZE", "createdTime": "CREATED", "tags": "TAGS"}

ModelArgument = Annotated[
    str, typer.Argument(metavar="NAME[:VERSION]", help="A registered model; newest version by default.")
]


@app.command()
def register(
    path: Annotated[Path, typer.Argument(help="File or folder of the model.")],
    name: Annotated[str, typer.Option("--name", "-n", help="Name to register it under.")],
    *,
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    prop: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="May be repeated.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is.")] = None,
    framework: Annotated[
        str | None, typer.Option(help="What made it: ScikitLearn, Onnx, TensorFlow, …; noted.")
    ] = None,
    framework_version: Annotated[str | None, typer.Option(help="Its version; noted.")] = None,
    child_path: Annotated[
        list[str] | None,
        typer.Option(help="Only this file or folder inside the model's folder. May be repeated."),
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Copy a file or folder into the workspace as the next version of a name."""
    tags, properties = labels_of(tag, "--tag"), labels_of(prop, "--property")
    model = Model.register(
        Workspace.open(),
        path,
        name,
        tags,
        properties,
        description,
        model_framework=framework,
        model_framework_version=framework_version,
        child_paths=child_path,
        steps=progress,
    )
    if chosen(output, as_json) is not Format.TABLE:
        show_document(model.serialize(), chosen(output, as_json))
        return
    print(model.id)
    note(f"registered {model.base_name}, {size_text(model.size)}")
    if (mlflow := model.as_mlflow(with_requirements=False)) is not None:
        note(f"an MLflow model ({', '.join(mlflow.flavors)}): it needs no entry script")
    note(f"next: edgewright image build -m {model.id}")


@app.command("list")
def list_models(
    *,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Only this name.")] = None,
    tag: FilterOption = None,
    prop: PropertyFilterOption = None,
    framework: Annotated[str | None, typer.Option(help="Only of this framework.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Only the newest version of each name.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List registered models, newest version first."""
    found = Model.list(
        Workspace.open(), name, filter_of(tag), filter_of(prop), latest=latest, model_framework=framework
    )
    models = [model.serialize() for model in found]
    rows = [{**row, "size": size_text(row["sizeBytes"])} for row in models]
    show_rows(rows if chosen(output, as_json) is Format.TABLE else models, COLUMNS, chosen(output, as_json))


@app.command()
def show(model: ModelArgument, output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Show one registered model."""
    found = Model(Workspace.open(), id=model)
    mlflow = found.as_mlflow(with_requirements=False)
    document = found.serialize() | ({"mlflow": mlflow.to_document()} if mlflow else {})
    show_document(document, chosen(output, as_json))


@app.command()
def delete(
    model: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to delete.")],
) -> None:
    """Delete one version of a model. Refused while an image uses it."""
    found = Model(Workspace.open(), id=model)
    found.delete()
    note(f"model {found.id} deleted")
