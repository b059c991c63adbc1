"""How an image's layers are laid out for a module, and the shim's log."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edge_containers.interpreter import Interpreter
from edge_containers.module_view import (
    LayerFolder,
    ModuleView,
    labelled_folders,
    layer_steps,
    own_variables,
)
from edge_containers.runtime import IncompatibleImageError
from edge_containers.shim import RotatingLog, start_time, write_json


def test_layers_side_by_side_are_bound_whole() -> None:
    assert layer_steps({"/opt/b": "/s/b", "/opt/a": "/s/a"}) == [
        ["bind", "/s/a", "/opt/a"],
        ["bind", "/s/b", "/opt/b"],
    ]


def test_a_layer_around_another_is_bound_entry_by_entry(tmp_path: Path) -> None:
    for path in ("score.py", "models/notes.txt", "models/digits/1/shadowed"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "latest").symlink_to("score.py")

    steps = layer_steps({"/app": str(tmp_path), "/app/models/digits/1": "/s/model"})

    assert steps == [
        ["link", "score.py", "/app/latest"],
        ["bind", f"{tmp_path}/models/notes.txt", "/app/models/notes.txt"],
        ["bind", f"{tmp_path}/score.py", "/app/score.py"],
        ["bind", "/s/model", "/app/models/digits/1"],
    ]


def view_of(interpreter: Interpreter, hidden: Path, *, isolated_root: bool, workload: Path) -> ModuleView:
    layer = LayerFolder("model", "/var/azureml-app/m", "/s/m")
    return ModuleView(
        interpreter,
        [layer],
        isolated_root=isolated_root,
        temporary="/t",
        workload_dir=workload,
        hidden=hidden,
    )


def test_links_come_last_and_folders_once(tmp_path: Path) -> None:
    prefix = str(tmp_path)
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", ("/usr", "/usr/lib", prefix))
    steps = view_of(interpreter, Path("/elsewhere"), isolated_root=True, workload=tmp_path).root_steps()
    kinds = [step[0] for step in steps]
    assert kinds == sorted(kinds)
    targets = [step[-1] for step in steps]
    assert targets.count("/usr") == 1
    assert "/usr/lib" not in targets
    assert ["bind", prefix, prefix] in steps
    assert ["bind", prefix, "/run/edgewright"] in steps


def test_a_root_inside_the_interpreters_prefix_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", (str(tmp_path),))
    steps = view_of(interpreter, tmp_path / "state", isolated_root=True, workload=tmp_path).root_steps()
    assert ["hide", f"{tmp_path}/state"] in steps
    assert steps.index(["hide", f"{tmp_path}/state"]) > steps.index(["bind", str(tmp_path), str(tmp_path)])


def test_without_mounts_the_workload_address_is_the_real_one(tmp_path: Path) -> None:
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", ())
    manifest = {"IOTEDGE_WORKLOADURI": "unix:///run/edgewright/w.sock", "OTHER": "unix:///run/edgewright-x"}
    real = view_of(interpreter, Path("/e"), isolated_root=False, workload=tmp_path)
    found = real.environment({}, {}, manifest, {})
    assert found["IOTEDGE_WORKLOADURI"] == f"unix://{tmp_path}/w.sock"
    assert found["OTHER"] == "unix:///run/edgewright-x"
    assert found["AZUREML_MODEL_DIR"] == "/s/m"
    assert "AML_APP_ROOT" not in found
    seen = view_of(interpreter, Path("/e"), isolated_root=True, workload=tmp_path)
    found = seen.environment({}, {}, manifest, {})
    assert found["IOTEDGE_WORKLOADURI"] == "unix:///run/edgewright/w.sock"
    assert found["AZUREML_MODEL_DIR"] == "/var/azureml-app/m"


def several(tmp_path: Path, *, isolated_root: bool) -> ModuleView:
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", ())
    homes = {"model:a:1": "/var/azureml-app/m/a/1", "model:b:2": "/var/azureml-app/m/b/2"}
    layers = [LayerFolder(role, home, f"/s/{role}") for role, home in homes.items()]
    return ModuleView(
        interpreter,
        layers,
        isolated_root=isolated_root,
        temporary="/t",
        workload_dir=None,
        hidden=tmp_path / "hidden",
    )


def test_several_models_have_one_folder_of_mounts_or_of_links(tmp_path: Path) -> None:
    mounted, linked = several(tmp_path, isolated_root=True), several(tmp_path, isolated_root=False)
    assert mounted.environment({}, {}, {}, {})["AZUREML_MODEL_DIR"] == "/var/azureml-app/m"
    assert mounted.model_links() == {}
    assert ["bind", "/s/model:b:2", "/var/azureml-app/m/b/2"] in mounted.root_steps()
    assert linked.environment({}, {}, {}, {})["AZUREML_MODEL_DIR"] == "/t/azureml-models"
    assert linked.model_links() == {
        "/t/azureml-models/a/1": "/s/model:a:1",
        "/t/azureml-models/b/2": "/s/model:b:2",
    }


def test_models_in_two_places_are_refused() -> None:
    roles = ("dependencies", "runtime", "model:a:1", "model:b:2")
    folders = {role: f"/opt/edgewright/{role[:7]}/x/y" for role in roles}
    labels = {"edgewright.layers": json.dumps(folders)}
    with pytest.raises(IncompatibleImageError, match="models as NAME/VERSION in one folder"):
        labelled_folders(
            labels | {"edgewright.layers": json.dumps(folders | {roles[3]: "/opt/edgewright/b"})}, roles, "i"
        )
    with pytest.raises(IncompatibleImageError, match="a folder and a layer for 'model'"):
        labelled_folders(labels, roles[:2], "i")


def test_what_the_runtime_says_cannot_be_overridden() -> None:
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", ())
    view = view_of(interpreter, Path("/e"), isolated_root=True, workload=Path("/w"))
    found = view.environment(
        {}, {}, {"EDGEWRIGHT_HEALTH_FD": "0", "HOME": "/root"}, {"EDGEWRIGHT_HEALTH_FD": "7"}
    )
    assert (found["EDGEWRIGHT_HEALTH_FD"], found["HOME"]) == ("7", "/t")


def test_a_log_keeps_its_newest_files(tmp_path: Path) -> None:
    log = RotatingLog(str(tmp_path / "log"), limit_bytes=10, files=3)
    for text in (b"11111\n", b"22222\n", b"3\n", b"44444\n", b"55555\n", b"66666\n"):
        log.write(text)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"log": "66666\n", "log.1": "55555\n", "log.2": "44444\n"}


def test_a_log_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for text in (b"1\n", b"2\n"):
        RotatingLog(str(tmp_path / "log"), limit_bytes=10, files=3).write(text)
    assert (tmp_path / "log").read_text() == "1\n2\n"


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    write_json(str(tmp_path / "a.json"), {"a": 1})
    write_json(str(tmp_path / "a.json"), {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{"a": 2}'


def test_a_process_keeps_its_start_time() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid()) > 0


def test_an_image_sets_its_own_variables_and_none_of_the_runtimes(tmp_path: Path) -> None:
    asked = {
        "GREETING": "hello",
        "LD_PRELOAD": "/x.so",
        "PYTHONPATH": "/x",
        "pythonstartup": "/x",
        "IOTEDGE_WORKLOADURI": "unix:///x",
        "A=B": "x",
        "NUL": "a\0b",
        "NUMBER": 1,
    }
    labels = {"edgewright.environment": json.dumps(asked)}
    assert own_variables(labels) == {"GREETING": "hello"}
    interpreter = Interpreter("/usr/bin/python3", "3.11", "glibc", "amd64", ("/usr",))
    view = view_of(interpreter, Path("/elsewhere"), isolated_root=True, workload=tmp_path)
    assert view.environment(labels, {}, {}, {})["GREETING"] == "hello"
    assert view.environment(labels, {}, {"GREETING": "manifest"}, {})["GREETING"] == "manifest"


@pytest.mark.parametrize("label", ["", "[", "[]", "3", "null", '"x"'])
def test_a_label_of_variables_that_is_none_is_left_out(label: str) -> None:
    assert own_variables({"edgewright.environment": label}) == {}
