"""MLflow folders: recognised, read within bounds, refused where they reach out of themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from publisher_workspaces import make_runtime_wheels, make_workspace

from edge_contracts.errors import EdgewrightError
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.errors import MlflowModelError, ModelFileError, ScriptError
from publisher.mlflow_model import MlflowModel, Scoring, read_mlflow
from publisher.models import Model
from publisher.workspace import Workspace

SIGNATURE = {"inputs": '[{"type": "double", "name": "a"}]', "outputs": None, "params": None}
FUNCTION = {
    "loader_module": "mlflow.sklearn",
    "model_path": "model.pkl",
    "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
    "predict_fn": "predict",
    "python_version": "3.11.7",
}
SKLEARN = {"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "sklearn_version": "1.5.0"}
REQUIREMENTS = "mlflow==2.9.2\nscikit-learn==1.5.0\ncloudpickle==3.0.0\n"


def document(**changes: Any) -> dict[str, Any]:
    """An `MLmodel`; `changes` are by flavour, or the signature."""
    flavors = {"python_function": dict(FUNCTION), "sklearn": dict(SKLEARN)}
    for name, fields in changes.items():
        if name in flavors:
            flavors[name] |= fields
    found = {"flavors": flavors, "mlflow_version": "2.9.2", "signature": changes.get("signature", SIGNATURE)}
    return found


def folder(root: Path, mlmodel: object, requirements: str | None = REQUIREMENTS) -> Path:
    """A model folder; `mlmodel` is a document or the text itself."""
    model = root / "model"
    (model / "code").mkdir(parents=True, exist_ok=True)
    text = mlmodel if isinstance(mlmodel, str) else yaml.safe_dump(mlmodel)
    (model / "MLmodel").write_text(text, encoding="utf-8")
    (model / "model.pkl").write_bytes(b"\x80\x04N.")
    (model / "code" / "helper.py").write_text("x = 1\n")
    (model / "conda.yaml").write_text(
        "dependencies:\n- python=3.11.7\n- pip:\n  - mlflow==2.9.2\n  - pandas==2.2.0\n"
    )
    (model / "python_env.yaml").write_text("python: 3.11.7\ndependencies:\n- -r requirements.txt\n")
    (model / "requirements.txt").unlink(missing_ok=True)
    if requirements is not None:
        (model / "requirements.txt").write_text(requirements)
    return model


def read(model: Path) -> MlflowModel:
    return read_mlflow(
        {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))


class TestReading:
    def test_requirements_python_and_signature_are_taken(self, tmp_path: Path) -> None:
        model = read(folder(tmp_path, document()))
        assert model.scoring is Scoring.SKLEARN
        assert model.requirements == ("scikit-learn==1.5.0", "cloudpickle==3.0.0", "numpy", "pandas")
        assert model.python == "3.11.7"
        assert model.inputs is not None and [each.name for each in model.inputs] == ["a"]
        assert not model.python_note("3.11")
        assert "saved with Python 3.11.7" in model.python_note("3.12")[0]

    def test_without_a_list_the_conda_environment_is_taken(self, tmp_path: Path) -> None:
        model = read(folder(tmp_path, document(sklearn={"serialization_format": "skops"}), requirements=None))
        assert model.scoring is Scoring.PYFUNC
        assert model.requirements == ("mlflow-skinny==2.9.2", "pandas==2.2.0", "numpy")

    @pytest.mark.parametrize(
        "change",
        [
            {"sklearn": {"serialization_format": "skops"}},
            {"sklearn": {"code": "code"}},
            {"python_function": {"code": "code"}},
            {"python_function": {"loader_module": "mlflow.xgboost"}},
            {"python_function": {"predict_fn": "score"}},
            {"signature": SIGNATURE | {"params": '[{"name": "k"}]'}},
            {"signature": SIGNATURE | {"inputs": '[{"type": "datetime", "name": "a"}]'}},
            {
                "signature": SIGNATURE
                | {"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "float64"}}]'}
            },
        ],
    )
    def test_what_scikit_learn_alone_would_not_score_alike_goes_by_mlflow(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        model = read(folder(tmp_path, document(**change)))
        assert model.scoring is Scoring.PYFUNC
        assert model.requirements[0] == "mlflow-skinny==2.9.2"

    def test_what_mlflow_lists_of_no_use_to_onnx_is_left_out(self, tmp_path: Path) -> None:
        flavors = {
            "onnx": {"data": "model.onnx"},
            "python_function": FUNCTION | {"loader_module": "mlflow.onnx"},
        }
        model = folder(tmp_path, {"flavors": flavors}, "mlflow==2.9.2\nonnx==1.16\nonnxruntime==1.18.0\n")
        (model / "model.onnx").write_bytes(b"x")
        found = read(model)
        assert (found.scoring, found.model_path) == (Scoring.ONNX, "model.onnx")
        assert found.requirements == ("onnxruntime==1.18.0", "numpy")


class TestRegistering:
    def test_an_mlflow_folder_is_recognised_and_needs_no_script(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        model = Model.register(workspace, folder(tmp_path, document()), "m")
        found = model.as_mlflow()
        assert found is not None and found.to_document()["scoring"] == "sklearn"
        request = BuildRequest("m", (model,), None, Environment((), "3.11")).with_own_script()
        assert request.script is not None and request.script.name == "sklearn_score.py"
        settings = json.loads(request.settings_files["mlflow_model.json"])
        assert settings["model_path"] == "model/model.pkl"
        assert "scikit-learn==1.5.0" in request.environment.requirements

    def test_a_script_of_ones_own_is_kept(self, workspace: Workspace, tmp_path: Path) -> None:
        model = Model.register(workspace, folder(tmp_path, document()), "m")
        request = BuildRequest("m", (model,), tmp_path / "score.py", Environment((), "3.11"))
        assert request.with_own_script() is request

    def test_another_folder_is_none(self, workspace: Workspace, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "weights.bin").write_bytes(b"x")
        model = Model.register(workspace, tmp_path / "plain", "m")
        assert model.as_mlflow() is None
        request = BuildRequest("m", (model,), None, Environment((), "3.11"))
        assert request.with_own_script() is request

    def test_a_malicious_folder_leaves_nothing_registered(self, workspace: Workspace, tmp_path: Path) -> None:
        with pytest.raises(MlflowModelError, match=r"MLmodel:\d+ must have a path inside the folder"):
            Model.register(workspace, folder(tmp_path, document(sklearn={"pickled_model": "../x"})), "m")
        assert not Model.list(workspace)

    @pytest.mark.parametrize("name", ["MLmodel", "model.pkl", "conda.yaml"])
    def test_a_link_is_not_followed(self, workspace: Workspace, tmp_path: Path, name: str) -> None:
        model = folder(tmp_path, document())
        (tmp_path / "secret").write_text((model / name).read_text(errors="replace"))
        (model / name).unlink()
        (model / name).symlink_to(tmp_path / "secret")
        with pytest.raises(ModelFileError, match="symbolic link"):
            Model.register(workspace, model, "m")

    def test_a_pipe_in_the_place_of_the_file_does_not_wait(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        model = folder(tmp_path, document())
        (model / "MLmodel").unlink()
        os.mkfifo(model / "MLmodel")
        with pytest.raises(ModelFileError, match="no plain file"):
            Model.register(workspace, model, "m")

    def test_unpickling_is_left_to_the_image(self, workspace: Workspace, tmp_path: Path) -> None:
        model = folder(tmp_path, document())
        # os.mkdir("ran") when loaded, in pickle's protocol 0.
        (model / "model.pkl").write_bytes(b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR.")
        registered = Model.register(workspace, model, "m")
        BuildRequest("m", (registered,), None, Environment((), "3.11")).with_own_script()
        assert not (tmp_path / "ran").exists()


PATHS = ["../x", "/etc/passwd", "code/../../x", "..", "a\\..\\b", "nothere", "", "x\0y", 3, ["model.pkl"]]
FIELDS = [
    ("python_function", "model_path"),
    ("python_function", "data"),
    ("python_function", "code"),
    ("sklearn", "pickled_model"),
    ("sklearn", "code"),
]


class TestMalicious:
    @pytest.mark.parametrize("path", PATHS, ids=repr)
    @pytest.mark.parametrize(("flavor", "field"), FIELDS)
    def test_a_path_out_of_the_folder_is_refused_by_its_field(
        self, tmp_path: Path, flavor: str, field: str, path: object
    ) -> None:
        with pytest.raises(MlflowModelError, match=rf"MLmodel.*flavors\.{flavor}\.{field}"):
            text = json.dumps(document(**{flavor: {field: path}}))  # YAML too; it spells a NUL
            read(folder(tmp_path, text))

    @pytest.mark.parametrize(
        "env", ["/etc/passwd", "../conda.yaml", {"conda": "../../x"}, {"virtualenv": "/x"}]
    )
    def test_an_environment_file_out_of_the_folder_is_refused(self, tmp_path: Path, env: object) -> None:
        with pytest.raises(
            MlflowModelError,
            match="path inside the folder in flavors.python_function.env".replace(".", r"\."),
        ):
            read(folder(tmp_path, document(python_function={"env": env}), requirements=None))

    @pytest.mark.parametrize(
        "line",
        [
            "-r /etc/passwd",
            "-r ../../x",
            "-r requirements.txt",
            "x @ file:///etc/passwd",
            "-e .",
            "/etc/passwd",
            "--index-url https://evil",
        ],
    )
    def test_an_environment_file_reaches_for_nothing(self, tmp_path: Path, line: str) -> None:
        with pytest.raises(MlflowModelError, match=r"requirements\.txt:1"):
            read(folder(tmp_path, document(), requirements=f"{line}\n"))
        model = folder(tmp_path, document(), requirements=None)
        (model / "conda.yaml").write_text(json.dumps({"dependencies": [{"pip": [line]}]}))
        with pytest.raises(MlflowModelError, match=r"conda\.yaml:1"):
            read(model)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("flavors: !!python/object/apply:os.system [id]\n", "MLmodel:1 has a tag that is not taken"),
            (
                "a: &a [x,x,x,x,x,x,x,x,x]\n"
                + "".join(f"{c}: &{c} [{','.join(['*' + chr(ord(c) - 1)] * 9)}]\n" for c in "bcdefghi"),
                "counting repeated ones",
            ),
            ("[" * 5000, "nested deeper"),
            ("x" * (2 << 20), "MLmodel is larger than 1 MiB"),
            ("", "MLmodel:1 must be a mapping"),
            ("- 1\n", "MLmodel:1 must be a mapping"),
            ("flavors: [python_function]\n", "MLmodel:1 must name its flavours"),
            ("flavors: {}\n", "has no flavour python_function or onnx: found none"),
            ("flavors: {spark: {}}\n", "found spark"),
            ("flavors: {python_function: x}\n", "MLmodel:1 must be a mapping"),
            (
                "flavors: {python_function: {}}\nsignature: {inputs: '{'}\n",
                "MLmodel:2 has no JSON in signature.inputs",
            ),
            ("flavors: {python_function: {}}\nsignature: {inputs: '[1]'}\n", "has a column that is none"),
            ("flavors: {python_function: {}}\nsignature: {inputs: '" + "[" * 100_000 + "'}\n", "has no JSON"),
            (
                "flavors: {python_function: {}}\nsignature: {inputs: '[" + "0," * 10_001 + "0]'}\n",
                "up to 10000 columns",
            ),
        ],
    )
    def test_a_file_that_is_none_or_a_bomb_is_refused_with_its_line(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        with pytest.raises(MlflowModelError, match=message):
            read(folder(tmp_path, text))

    def test_a_huge_list_of_requirements_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(MlflowModelError, match=r"requirements\.txt is larger than 1 MiB"):
            read(folder(tmp_path, document(), requirements="numpy\n" * 200_000))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["model.pkl", "../x", "conda.yaml"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["conda", "code", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["python_function", "sklearn", "onnx", "spark"])
FIELD_NAMES = st.sampled_from(
    [
        "model_path",
        "data",
        "code",
        "env",
        "pickled_model",
        "predict_fn",
        "loader_module",
        "serialization_format",
        "python_version",
        "sklearn_version",
    ]
)
MLMODELS = st.fixed_dictionaries(
    {},
    optional={
        "flavors": VALUES
        | st.dictionaries(NAMES, VALUES | st.dictionaries(FIELD_NAMES, VALUES, max_size=5), max_size=3),
        "signature": VALUES
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "params"]), VALUES | st.text('[]{}",:a1', max_size=20)
        ),
        "mlflow_version": VALUES,
    },
)


@given(MLMODELS)
def test_any_mlmodel_is_read_or_refused_and_names_only_files_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, mlmodel: dict[str, Any]
) -> None:
    model = folder(tmp_path_factory.getbasetemp() / "fuzz", json.dumps(mlmodel))
    try:
        found = read(model)
    except EdgewrightError as error:
        assert isinstance(error, MlflowModelError)
        return
    if found.model_path:
        assert (model / found.model_path).resolve().is_relative_to(model.resolve())
        assert (model / found.model_path).exists()


def test_a_folder_that_scores_without_a_script_is_named_where_one_is_missing(
    workspace: Workspace, tmp_path: Path
) -> None:
    from publisher.build_request import check_request

    (tmp_path / "m.bin").write_bytes(b"x")
    model = Model.register(workspace, tmp_path / "m.bin", "m")
    with pytest.raises(ScriptError, match=r"only a single \.onnx file and an MLflow folder"):
        check_request(BuildRequest("m", (model,), None, Environment((), "3.11")))
