"""Registered models: content-addressed, versioned, refused clearly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from publisher_workspaces import blobs

from edge_contracts.errors import EdgewrightError
from publisher.errors import ModelFileError, NotFoundError, UsageError
from publisher.model_details import ResourceConfiguration
from publisher.models import Model
from publisher.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.init(tmp_path / "w")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "net"
    (root / "data").mkdir(parents=True)
    (root / "model.onnx").write_bytes(b"graph")
    (root / "data" / "weights").write_bytes(b"weights")
    (root / "data" / "tool.sh").write_text("#!/bin/sh\n")
    (root / "data" / "tool.sh").chmod(0o755)
    return root


def test_a_file_becomes_version_1_under_its_name(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes(b"graph")
    model = Model.register(
        workspace, tmp_path / "digits.onnx", "digits", {"kind": "cnn"}, {"accuracy": "0.97"}, "handwriting"
    )
    assert (model.id, model.version, model.size, model.is_file) == ("digits:1", 1, 5, True)
    assert (model.tags, model.properties, model.description) == (
        {"kind": "cnn"},
        {"accuracy": "0.97"},
        "handwriting",
    )
    assert [file.path for file in model.files] == ["digits.onnx"]
    assert model.serialize()["digest"] == str(model.digest)


def test_a_folder_keeps_its_name_paths_and_programs(workspace: Workspace, folder: Path) -> None:
    model = Model.register(workspace, folder, "net")
    assert not model.is_file
    assert [(file.path, file.executable) for file in model.files] == [
        ("net/data/tool.sh", True),
        ("net/data/weights", False),
        ("net/model.onnx", False),
    ]


def test_byte_code_is_left_out(workspace: Workspace, folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    (folder / "y.pyc").write_bytes(b"")
    assert len(Model.register(workspace, folder, "net").files) == 3


def test_the_same_content_is_a_new_version_of_the_same_blobs(workspace: Workspace, folder: Path) -> None:
    first = Model.register(workspace, folder, "net")
    before = blobs(workspace)
    second = Model.register(workspace, folder, "net")
    assert (second.id, second.digest) == ("net:2", first.digest)
    assert blobs(workspace) == before


def test_a_relative_path_and_the_folder_itself_have_a_name(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert Model.register(workspace, ".", "net").base_name == "net"


def test_missing_path_is_one_clear_error_and_no_version(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        Model.register(workspace, tmp_path / "nothere.onnx", "digits")
    assert caught.value.message == f"no model at {tmp_path / 'nothere.onnx'}: expected a file or a folder"
    assert Model.list(workspace) == []
    assert blobs(workspace) == set()


def test_an_empty_folder_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="holds no file"):
        Model.register(workspace, tmp_path / "empty", "digits")


def test_links_and_pipes_in_a_folder_are_refused_before_anything_is_copied(
    workspace: Workspace, folder: Path
) -> None:
    (folder / "zz-key").symlink_to("/etc/hostname")
    with pytest.raises(ModelFileError, match=r"zz-key is a symbolic link.*cp -rL"):
        Model.register(workspace, folder, "net")
    (folder / "zz-key").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelFileError, match="pipe is no plain file"):
        Model.register(workspace, folder, "net")
    assert blobs(workspace) == set()
    assert Model.list(workspace) == []


def test_a_linked_folder_inside_is_refused(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(ModelFileError, match="more is a symbolic link"):
        Model.register(workspace, folder, "net")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a:1", "x" * 256, "mödel", "a\n", "end."])
def test_a_name_that_is_no_path_part_is_refused(workspace: Workspace, folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a model's name must be"):
        Model.register(workspace, folder, name)


def test_tags_must_be_a_dict_of_json(workspace: Workspace, folder: Path) -> None:
    with pytest.raises(UsageError, match="tags must be a dict, not list"):
        Model.register(workspace, folder, "net", ["a"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="properties must be JSON-serialisable"):
        Model.register(workspace, folder, "net", properties={"a": object()})  # type: ignore[dict-item]


def test_the_getter_takes_the_newest_that_fits(workspace: Workspace, folder: Path) -> None:
    Model.register(workspace, folder, "net", {"stage": "old"})
    Model.register(workspace, folder, "net", {"stage": "new"})
    assert Model(workspace, name="net").version == 2
    assert Model(workspace, name="net", version=1).version == 1
    assert Model(workspace, id="net:1").version == 1
    assert Model(workspace, name="net", tags=[["stage", "old"]]).version == 1
    assert Model(workspace, name="net", tags=["stage"]).version == 2


def test_an_absent_model_is_named_with_those_there_are(workspace: Workspace, folder: Path) -> None:
    Model.register(workspace, folder, "net")
    with pytest.raises(NotFoundError, match=r"^ModelNotFound: no model 'other'.*registered are net"):
        Model(workspace, name="other")
    with pytest.raises(NotFoundError, match="'net:7'"):
        Model(workspace, id="net:7")
    with pytest.raises(UsageError, match="one of id or name"):
        Model(workspace)
    with pytest.raises(UsageError, match="NAME:VERSION"):
        Model(workspace, id="net:latest")


def test_list_is_newest_first_and_filtered(workspace: Workspace, folder: Path) -> None:
    Model.register(workspace, folder, "b")
    Model.register(workspace, folder, "a", {"x": "1"})
    Model.register(workspace, folder, "a")
    assert [model.id for model in Model.list(workspace)] == ["a:2", "a:1", "b:1"]
    assert [model.id for model in Model.list(workspace, name="b")] == ["b:1"]
    assert [model.id for model in Model.list(workspace, tags=["x"])] == ["a:1"]


def test_a_filter_that_is_none_is_refused(workspace: Workspace, folder: Path) -> None:
    Model.register(workspace, folder, "net", {"rate": "0.1"})
    assert [model.id for model in Model.list(workspace, tags=[["rate", 0.1]])] == ["net:1"]  # type: ignore[list-item]
    for wanted in ("rate", {"rate": "0.1"}, [["rate", "0.1", "x"]], [7]):
        with pytest.raises(UsageError, match="tags to look for must be a list of 'key'"):
            Model.list(workspace, tags=wanted)  # type: ignore[arg-type]
    with pytest.raises(
        NotFoundError, match=r"^ModelNotFound: no model 'net' with tags \['a'\] with properties \['b'\]"
    ):
        Model(workspace, "net", tags=["a"], properties=["b"])


def test_an_update_needs_something_and_says_what_is_wrong(workspace: Workspace, folder: Path) -> None:
    model = Model.register(workspace, folder, "net", {"a": "1"})
    with pytest.raises(UsageError, match=r"No parameters provided to update\."):
        model.update()
    with pytest.raises(UsageError, match="must be a list of their keys, not 'a'"):
        model.remove_tags("a")
    model.update(description="better")
    again = Model(workspace, "net")
    assert (again.description, again.tags) == ("better", {"a": "1"})


def test_a_payload_of_something_else_is_refused(workspace: Workspace, folder: Path) -> None:
    document = Model.register(workspace, folder, "net").serialize()
    with pytest.raises(UsageError, match=r"expected what model\.serialize"):
        Model.deserialize(workspace, {"id": "net:1"})
    other = document | {"digest": f"sha256:{'0' * 64}"}
    with pytest.raises(NotFoundError, match="no model 'net:1' with digest sha256:0000"):
        Model.deserialize(workspace, other)


def test_details_are_kept_searched_and_shown(workspace: Workspace, folder: Path) -> None:
    model = Model.register(
        workspace,
        folder,
        "net",
        model_framework=Model.Framework.ONNX,
        model_framework_version="1.20",
        resource_configuration=ResourceConfiguration(cpu=1, memory_in_gb=0.5),
    )
    Model.register(workspace, folder, "other")
    assert [each.id for each in Model.list(workspace, model_framework="Onnx")] == ["net:1"]
    shown = model.serialize()
    assert (shown["framework"], shown["frameworkVersion"]) == ("Onnx", "1.20")
    assert shown["resourceConfiguration"] == {"cpu": 1, "memoryInGB": 0.5, "gpu": None}
    assert (shown["mimeType"], shown["unpack"]) == ("application/json", True)
    assert Model(workspace, "net").resource_configuration == ResourceConfiguration(1, 0.5)
    assert Model(workspace, "other").model_framework is None


def test_details_that_cannot_be_are_refused_by_name(workspace: Workspace, folder: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"datasets": []}, "datasets is not supported, there are no data sets here: note"),
        ({"sample_input_dataset": object()}, "sample_input_dataset is not supported"),
        ({"model_framework_version": "1"}, "model_framework_version '1' needs a model_framework"),
        ({"model_framework": 1}, "model_framework must be a text, not 1"),
        ({"resource_configuration": {"cpu": 1}}, "must be a ResourceConfiguration, not dict"),
    ]
    for given, message in cases:
        with pytest.raises(UsageError, match=message):
            Model.register(workspace, folder, "net", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gpu must be a number above 0, not 0"):
        ResourceConfiguration(gpu=0)
    assert Model.list(workspace) == []


def test_child_paths_take_a_part_of_a_folder(workspace: Workspace, folder: Path) -> None:
    model = Model.register(workspace, folder, "net", child_paths=["model.onnx", "data/weights"])
    assert [file.path for file in model.files] == ["net/data/weights", "net/model.onnx"]
    assert len(Model.register(workspace, folder, "net", child_paths=["data"]).files) == 2
    for children, message in (
        (["nothere"], "child path nothere doesn't exist"),
        (["../net"], "child path ../net doesn't exist"),
        ([], "child_paths must be a list"),
        ("data", "child_paths must be a list"),
    ):
        with pytest.raises(EdgewrightError, match=message):
            Model.register(workspace, folder, "net", child_paths=children)


def test_get_model_path_copies_from_a_workspace_and_looks_around_without(
    workspace: Workspace, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        Model.register(workspace, folder, "digits")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(NotFoundError, match=r"^ModelNotFound: no model digits in .*give a workspace"):
        Model.get_model_path("digits")
    assert Model.get_model_path("digits", 1, workspace) == "azureml-models/digits/1/net"
    assert Model.get_model_path("digits", _workspace=workspace) == "azureml-models/digits/2/net"
    assert Model.get_model_path("digits") == "azureml-models/digits/2/net"
    assert Model.get_model_path("digits", version=1) == "azureml-models/digits/1/net"
    with pytest.raises(NotFoundError, match="digits version 3"):
        Model.get_model_path("digits", 3)
    with pytest.raises(UsageError, match="version should be an int, not '1'"):
        Model.get_model_path("digits", "1")  # type: ignore[arg-type]
    Path("azureml-models/digits/2/more").touch()
    with pytest.raises(ModelFileError, match="expected exactly one file or folder"):
        Model.get_model_path("digits")
    Path("letters.pkl").touch()
    assert Model.get_model_path("letters.pkl") == "letters.pkl"


def test_delete_frees_what_nothing_else_needs_and_never_reuses_the_version(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(b"b" * 1000)
    big = Model.register(workspace, tmp_path / "big", "big")
    shared = Model.register(workspace, folder, "net")
    Model.register(workspace, folder, "net")
    before = blobs(workspace)
    shared.delete()
    assert blobs(workspace) == before
    big.delete()
    assert len(blobs(workspace)) == len(before) - 2
    assert Model(workspace, name="net").download(tmp_path / "out")
    assert Model.register(workspace, tmp_path / "big", "big").version == 2


def test_download_gives_back_what_was_registered(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    out = Path(Model.register(workspace, folder, "net").download(tmp_path / "out"))
    assert out == tmp_path / "out" / "net"
    assert (out / "data" / "weights").read_bytes() == b"weights"
    assert os.access(out / "data" / "tool.sh", os.X_OK)


def test_download_over_something_is_refused_unless_allowed(
    workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    model = Model.register(workspace, folder, "net")
    (tmp_path / "out" / "net").mkdir(parents=True)
    (tmp_path / "out" / "net" / "mine").write_text("")
    with pytest.raises(ModelFileError, match="set exist_ok to True"):
        model.download(tmp_path / "out")
    assert (tmp_path / "out" / "net" / "mine").exists()
    model.download(tmp_path / "out", exist_ok=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["net"]
    assert (tmp_path / "out" / "net" / "model.onnx").exists()
