"""Scoring images: built from local wheels, reproducible, layered, refused clearly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from publisher_workspaces import (
    SCORE,
    blobs,
    make_runtime_wheels,
    make_wheel,
    make_workspace,
    resolved_locks,
    seed_locks,
    write_score,
)
from registry_double import RegistryDouble, User

from edge_containers.image_model import ImageConfig, ImageIndex, ImageManifest, Platform
from edge_containers.registry_client import BasicCredentials
from edge_contracts.errors import EdgewrightError
from edge_contracts.redact import Secret
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.errors import (
    BaseImageError,
    InUseError,
    NotFoundError,
    NoWheelError,
    RequirementError,
    ScriptError,
    UnknownPackageError,
    UsageError,
)
from publisher.images import ContainerImage, Image
from publisher.models import Model
from publisher.workspace import Workspace

PLATFORMS = (Platform.parse("linux/amd64"), Platform.parse("linux/arm64"))
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolved_locks(tmp_path_factory.mktemp("locks"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_runtime_wheels(tmp_path / "wheels")


@pytest.fixture
def workspace(tmp_path: Path, wheels: Path, locks: Path) -> Workspace:
    workspace = make_workspace(tmp_path / "w", wheels)
    seed_locks(workspace, locks)
    return workspace


@pytest.fixture
def model(workspace: Workspace, tmp_path: Path) -> Model:
    (tmp_path / "digits.pkl").write_bytes(b"weights of version 1")
    return Model.register(workspace, tmp_path / "digits.pkl", "digits")


@pytest.fixture
def request_(model: Model, tmp_path: Path) -> BuildRequest:
    script = write_score(tmp_path / "code")
    return BuildRequest("digits", (model,), script, Environment((), "3.11"), platforms=PLATFORMS)


def manifests(image: Image) -> list[tuple[ImageManifest, ImageConfig]]:
    store = image.workspace.store
    index = ImageIndex.from_bytes(store.read_bytes(image.digest))
    found = [ImageManifest.from_bytes(store.read_bytes(entry.digest)) for entry in index.manifests]
    return [(each, ImageConfig.from_bytes(store.read_bytes(each.config.digest))) for each in found]


def layer_names(image: Image, role: str, platform: int = 0) -> list[str]:
    manifest, _ = manifests(image)[platform]
    [layer] = [each for each in manifest.layers if each.annotations["edgewright.layer"] == role]
    with tarfile.open(fileobj=BytesIO(image.workspace.store.path(layer.digest).read_bytes())) as tar:
        return [entry.name for entry in tar.getmembers() if entry.isfile()]


class TestBuild:
    def test_an_image_has_four_layers_for_each_platform_and_shares_three(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        image = ContainerImage.from_request(workspace, request_)
        assert image.id == "digits:1"
        assert image.platforms == PLATFORMS
        amd64, arm64 = (manifest for manifest, _ in manifests(image))
        roles = [layer.annotations["edgewright.layer"] for layer in amd64.layers]
        assert roles == ["dependencies", "runtime", "model", "script"]
        assert [layer.digest for layer in amd64.layers[1:]] == [layer.digest for layer in arm64.layers[1:]]
        assert workspace.store.resolve("digits:1") == image.descriptor
        assert image.size == sum(layer.size for layer in image.layers)

    def test_labels_say_what_the_process_runtime_needs(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        image = ContainerImage.from_request(workspace, request_)
        _, config = manifests(image)[1]
        assert config.platform == PLATFORMS[1]
        labels = dict(config.labels)
        assert json.loads(labels.pop("edgewright.layers")) == {
            "dependencies": "/opt/edgewright/dependencies",
            "runtime": "/opt/edgewright/runtime",
            "model": "/var/azureml-app/azureml-models/digits/1",
            "script": "/var/azureml-app",
        }
        assert json.loads(labels.pop("edgewright.layer-roles")) == [
            "dependencies",
            "runtime",
            "model",
            "script",
        ]
        assert labels.pop("edgewright.lock-digest").startswith("sha256:")
        assert labels == {
            "edgewright.base": "none",
            "edgewright.python": "3.11",
            "edgewright.libc": "glibc",
            "edgewright.http-port": "5001",
            "edgewright.contract": "score",
            "edgewright.model": "digits:1",
            "edgewright.model-file": "digits.pkl",
            "edgewright.entry-script": "score.py",
            "edgewright.messages": "input1=output1",
        }
        assert config.user == "65534:65534"
        assert "ORT_DISABLE_TELEMETRY=1" in config.env
        assert config.created == "1970-01-01T00:00:00Z"

    def test_layers_hold_their_files_where_the_labels_say(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        write_score(tmp_path / "code" / "lib", "x = 1\n", "helper.py")
        (tmp_path / "code" / "lib" / "__pycache__").mkdir()
        (tmp_path / "code" / "lib" / "__pycache__" / "helper.cpython-311.pyc").touch()
        (tmp_path / "labels.txt").write_text("0")
        includes = (tmp_path / "code" / "lib", tmp_path / "labels.txt")
        image = ContainerImage.from_request(workspace, replace(request_, includes=includes))
        assert layer_names(image, "model") == ["var/azureml-app/azureml-models/digits/1/digits.pkl"]
        assert layer_names(image, "script") == [
            "var/azureml-app/labels.txt",
            "var/azureml-app/lib/helper.py",
            "var/azureml-app/score.py",
        ]
        runtime = layer_names(image, "runtime")
        assert "opt/edgewright/runtime/scoring_runtime/__init__.py" in runtime
        assert {
            "opt/edgewright/runtime/paho/mqtt/client.py",
            "opt/edgewright/runtime/paho/LICENSE.txt",
        } <= set(runtime)
        dependencies = layer_names(image, "dependencies")
        assert {
            "opt/edgewright/dependencies/edgewright.lock",
            "opt/edgewright/dependencies/uvicorn/__init__.py",
        } <= set(dependencies)
        assert not [name for name in dependencies if "/bin/" in name or name.endswith(".pyc")]

    def test_the_lock_label_is_the_digest_of_the_lock_in_the_layer(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        image = ContainerImage.from_request(workspace, request_)
        assert image.build is not None
        _, config = manifests(image)[0]
        assert config.labels["edgewright.lock-digest"] == str(image.build.platforms[0].lock.digest)

    def test_a_second_build_makes_nothing_and_gives_the_same_digest(
        self, workspace: Workspace, request_: BuildRequest, wheels: Path
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        before = blobs(workspace)
        shutil.rmtree(wheels)  # nothing to resolve from or install from
        second = ContainerImage.from_request(workspace, request_)
        assert (second.id, second.digest) == ("digits:2", first.digest)
        assert blobs(workspace) == before
        assert second.build is not None
        assert all(layer.reused for each in second.build.platforms for layer in each.layers)
        assert all(each.lock.reused for each in second.build.platforms)

    def test_a_new_model_is_one_new_layer_for_all_platforms(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        (tmp_path / "digits.pkl").write_bytes(b"weights of version 2")
        model = Model.register(workspace, tmp_path / "digits.pkl", "digits")
        second = ContainerImage.from_request(workspace, replace(request_, models=(model,)))
        new = {layer.digest for layer in second.layers} - {layer.digest for layer in first.layers}
        assert [layer.role for layer in second.layers if layer.digest in new] == ["model"]

    def test_several_models_are_as_many_layers_and_one_folder(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "weights").write_bytes(b"1")
        letters = Model.register(workspace, tmp_path / "net", "letters")
        request = replace(request_, models=(*request_.models, letters))
        first = ContainerImage.from_request(workspace, request)
        assert first.model_ids == ["digits:1", "letters:1"]
        manifest, config = manifests(first)[0]
        roles = ["dependencies", "runtime", "model:digits:1", "model:letters:1", "script"]
        assert json.loads(config.labels["edgewright.layer-roles"]) == roles
        assert [each.annotations["edgewright.layer"] for each in manifest.layers][2:4] == ["model", "model"]
        folders = json.loads(config.labels["edgewright.layers"])
        assert folders["model:letters:1"] == "/var/azureml-app/azureml-models/letters/1"
        assert config.labels["edgewright.model"] == "digits:1,letters:1"
        assert "edgewright.model-file" not in config.labels
        assert "AZUREML_MODEL_DIR=/var/azureml-app/azureml-models" in config.env

        (tmp_path / "net" / "weights").write_bytes(b"2")
        letters = Model.register(workspace, tmp_path / "net", "letters")
        second = ContainerImage.from_request(workspace, replace(request, models=(*request_.models, letters)))
        new = {layer.digest for layer in second.layers} - {layer.digest for layer in first.layers}
        assert len(new) == 1
        alone = ContainerImage.from_request(workspace, request_)
        assert {each.digest for each in alone.layers} <= {each.digest for each in first.layers}
        with pytest.raises(InUseError, match="letters:2 cannot be deleted: it is used by image digits:2"):
            letters.delete()

    def test_a_new_script_is_one_new_layer(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        write_score(tmp_path / "code", SCORE + "# changed\n")
        second = ContainerImage.from_request(workspace, request_)
        new = {layer.digest for layer in second.layers} - {layer.digest for layer in first.layers}
        assert [layer.role for layer in second.layers if layer.digest in new] == ["script"]

    def test_a_bare_onnx_model_needs_no_script_and_gets_onnxruntime(
        self, workspace: Workspace, wheels: Path, tmp_path: Path
    ) -> None:
        make_wheel(wheels, "numpy", "2.0")
        make_wheel(wheels, "onnxruntime", "1.20", requires=("numpy",))
        (tmp_path / "net.onnx").write_bytes(b"graph")
        model = Model.register(workspace, tmp_path / "net.onnx", "net")
        request = BuildRequest("net", (model,), None, Environment((), "3.11"), platforms=PLATFORMS)
        image = ContainerImage.from_request(workspace, request)
        manifest, config = manifests(image)[0]
        assert [layer.annotations["edgewright.layer"] for layer in manifest.layers] == [
            "dependencies",
            "runtime",
            "model",
        ]
        assert json.loads(config.labels["edgewright.layer-roles"]) == ["dependencies", "runtime", "model"]
        assert "script" not in json.loads(config.labels["edgewright.layers"])
        assert "edgewright.entry-script" not in config.labels
        assert config.labels["edgewright.model-file"] == "net.onnx"
        assert "opt/edgewright/dependencies/onnxruntime/__init__.py" in layer_names(image, "dependencies")

    def test_skopeo_reads_the_layout(self, workspace: Workspace, request_: BuildRequest) -> None:
        skopeo = shutil.which("skopeo")
        if skopeo is None:
            pytest.skip("skopeo is not installed: apt-get install skopeo")
        image = ContainerImage.from_request(workspace, request_)
        raw = subprocess.run(
            [skopeo, "inspect", "--raw", f"oci:{workspace.state / 'oci'}:digits:1"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        assert raw == workspace.store.read_bytes(image.digest)
        for platform in PLATFORMS:
            shown = subprocess.run(
                [
                    skopeo,
                    "--override-arch",
                    platform.architecture,
                    "inspect",
                    f"oci:{workspace.state / 'oci'}:digits:1",
                ],
                capture_output=True,
                check=True,
                timeout=60,
            ).stdout
            assert json.loads(shown)["Architecture"] == platform.architecture
            assert json.loads(shown)["Labels"]["edgewright.model"] == "digits:1"

    def test_skopeo_copies_an_exported_image(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        skopeo = shutil.which("skopeo")
        if skopeo is None:
            pytest.skip("skopeo is not installed: apt-get install skopeo")
        if os.geteuid() != 0:
            pytest.skip("skopeo unpacks an archive with the owners it names, which only root may set")
        image = ContainerImage.from_request(workspace, request_)
        size = image.export(tmp_path / "digits.tar")
        assert size == (tmp_path / "digits.tar").stat().st_size
        source, target = f"oci-archive:{tmp_path / 'digits.tar'}", f"oci:{tmp_path / 'copy'}:digits"
        subprocess.run(
            [skopeo, "--insecure-policy", "copy", "--all", "--preserve-digests", source, target],
            check=True,
            capture_output=True,
            timeout=60,
        )
        index = json.loads((tmp_path / "copy" / "index.json").read_bytes())
        assert index["manifests"][0]["digest"] == str(image.digest)


REBUILD = """
import os, sys
from pathlib import Path
os.umask(0o077)
from publisher_workspaces import make_runtime_wheels, make_workspace, write_score
from publisher import ContainerImage, Model
root = Path(sys.argv[1])
workspace = make_workspace(root / "elsewhere", make_runtime_wheels(root / "other-wheels"))
(root / "digits.pkl").write_bytes(b"weights of version 1")
model = Model.register(workspace, root / "digits.pkl", "digits")
os.chdir(write_score(root / "src").parent)
config = ContainerImage.image_configuration("score.py", "python")
print(ContainerImage.create(workspace, "renamed", [model], config).digest)
"""


def test_the_same_inputs_give_the_same_image_in_another_process_workspace_umask_and_locale(
    workspace: Workspace, request_: BuildRequest, tmp_path: Path
) -> None:
    image = ContainerImage.from_request(workspace, request_)
    (tmp_path / "again").mkdir()
    environ = os.environ | {"PYTHONHASHSEED": "1234", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests' / 'support'}"
    result = subprocess.run(
        [sys.executable, "-c", REBUILD, str(tmp_path / "again")],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == str(image.digest)


class TestRefused:
    """Each is one error, and no image, no tag and no blob of one is there afterwards."""

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, workspace: Workspace, model: Model) -> object:
        yield
        assert Image.list(workspace) == []
        assert workspace.store.tags() == {}
        work = workspace.cache / "work"
        assert not work.exists() or list(work.iterdir()) == []
        documents = [
            name
            for name in blobs(workspace)
            if b"rootfs" in (workspace.state / "oci/blobs/sha256" / name).read_bytes()
        ]
        assert documents == []

    def refused(
        self, workspace: Workspace, request: BuildRequest, kind: type[EdgewrightError], match: str
    ) -> None:
        with pytest.raises(kind, match=match):
            ContainerImage.from_request(workspace, request)

    def test_script_missing(self, workspace: Workspace, request_: BuildRequest, tmp_path: Path) -> None:
        self.refused(
            workspace, replace(request_, script=tmp_path / "no.py"), ScriptError, r"no\.py does not exist"
        )

    def test_script_without_run(self, workspace: Workspace, request_: BuildRequest, tmp_path: Path) -> None:
        script = write_score(tmp_path / "bad", "def init(): pass\n")
        self.refused(workspace, replace(request_, script=script), ScriptError, r"must define run\(data\)")

    def test_no_script_for_a_pickle(self, workspace: Workspace, request_: BuildRequest) -> None:
        self.refused(
            workspace,
            replace(request_, script=None),
            ScriptError,
            r"digits:1 \(digits\.pkl\) needs an entry script",
        )

    def test_no_model_one_twice_and_several_without_a_script(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        [model] = request_.models
        self.refused(workspace, replace(request_, models=()), UsageError, "needs at least one model")
        self.refused(
            workspace, replace(request_, models=(model, model)), UsageError, "digits:1 is given twice"
        )
        (tmp_path / "net.onnx").write_bytes(b"graph")
        models = tuple(Model.register(workspace, tmp_path / "net.onnx", name) for name in ("a", "b"))
        self.refused(
            workspace,
            replace(request_, models=models, script=None),
            ScriptError,
            "an image of 2 models needs an entry script",
        )

    def test_included_file_missing(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        request = replace(request_, includes=(tmp_path / "nothere",))
        self.refused(workspace, request, ScriptError, "included file .*nothere does not exist")

    def test_two_files_of_one_name(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        request = replace(request_, includes=(write_score(tmp_path / "other"),))
        self.refused(workspace, request, ScriptError, r"would both be score\.py in the image")

    def test_an_include_in_the_place_of_models(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        folder = tmp_path / "azureml-models"
        write_score(folder, "x = 1\n", "x.py")
        self.refused(
            workspace, replace(request_, includes=(folder,)), ScriptError, "where models are; rename it"
        )

    def test_unknown_package(self, workspace: Workspace, request_: BuildRequest) -> None:
        request = replace(request_, environment=Environment(("no-such-pkg",), "3.11"))
        self.refused(workspace, request, UnknownPackageError, "package 'no-such-pkg' was not found")

    def test_platform_without_a_wheel(
        self, workspace: Workspace, request_: BuildRequest, wheels: Path
    ) -> None:
        make_wheel(wheels, "amd64-only", tag="cp311-cp311-manylinux_2_28_x86_64")
        request = replace(request_, environment=Environment(("amd64-only",), "3.11"))
        self.refused(workspace, request, NoWheelError, "'amd64-only' has no wheel for linux/arm64")

    def test_platform_that_images_are_not_built_for(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        request = replace(request_, platforms=(Platform.parse("linux/arm/v7"),))
        self.refused(workspace, request, UsageError, "not built for linux/arm/v7")

    def test_another_base(self, workspace: Workspace, request_: BuildRequest) -> None:
        self.refused(
            workspace, replace(request_, base="debian"), BaseImageError, "base 'debian' must be 'none'"
        )

    @pytest.mark.parametrize("name", ["Digits", "a/b", "-a", "a:1", "a" * 129, "", "a..b"])
    def test_a_name_no_registry_takes(self, workspace: Workspace, request_: BuildRequest, name: str) -> None:
        self.refused(workspace, replace(request_, name=name), UsageError, "give another with -t NAME")

    def test_a_model_deleted_meanwhile(self, workspace: Workspace, request_: BuildRequest) -> None:
        request_.models[0].delete()
        self.refused(workspace, request_, EdgewrightError, "digits:1|not in the content store")

    def test_requirements_missing(self, tmp_path: Path) -> None:
        with pytest.raises(RequirementError, match="cannot be read"):
            Environment.from_file(tmp_path / "nothere", "3.11")


class TestOriginalApi:
    def test_the_original_call_builds(
        self, workspace: Workspace, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_score(tmp_path)
        config = ContainerImage.image_configuration(
            execution_script="score.py",
            runtime="Python",
            tags={"area": "digits"},
            description="scores digits",
        )
        image = ContainerImage.create(workspace, "digits", ["digits:1"], config)
        image.wait_for_creation(show_output=False)
        assert (image.creation_state, image.tags, image.description) == (
            "Succeeded",
            {"area": "digits"},
            "scores digits",
        )
        assert [each.id for each in image.models] == ["digits:1"]

    def test_models_are_given_by_id_or_by_path_which_registers_them(
        self, workspace: Workspace, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_score(tmp_path)
        config = ContainerImage.image_configuration("score.py", "python", platforms=["linux/amd64"])
        name = "a-model-whose-name-is-very-long.pkl"
        (tmp_path / name).write_bytes(b"weights")
        image = ContainerImage.create(workspace, "digits", [model.id, f"./{name}"], config)
        assert image.model_ids == ["digits:1", "a-model-whose-name-is-very-lon:1"]
        for given, message in (
            ("nothere", "ModelNotFound: no model 'nothere'"),
            (7, "must be a Model, the id of one, or a path, not int"),
            ("https://h.example/m.pkl", "is a URL: download it"),
        ):
            with pytest.raises(EdgewrightError, match=message):
                ContainerImage.create(workspace, "digits", [given], config)  # type: ignore[list-item]
        spark = replace(config, runtime="spark-py")
        with pytest.raises(UsageError, match="runtime spark-py needs a base with a Java runtime"):
            ContainerImage.create(workspace, "digits", [model], spark)

    def test_at_least_one_model(
        self, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_score(tmp_path)
        config = ContainerImage.image_configuration("score.py", "python")
        with pytest.raises(UsageError, match="needs at least one model"):
            ContainerImage.create(workspace, "digits", [], config)


class TestListDelete:
    def test_getters_and_filters(self, workspace: Workspace, request_: BuildRequest) -> None:
        one_platform = replace(request_, platforms=PLATFORMS[:1])
        ContainerImage.from_request(workspace, replace(one_platform, tags={"stage": "old"}))
        ContainerImage.from_request(workspace, one_platform)
        ContainerImage.from_request(workspace, replace(one_platform, name="other"))
        assert [image.id for image in Image.list(workspace)] == ["digits:2", "digits:1", "other:1"]
        assert [image.id for image in Image.list(workspace, image_name="other")] == ["other:1"]
        assert (
            len(Image.list(workspace, model_id="digits:1"))
            == len(Image.list(workspace, model_name="digits"))
            == 3
        )
        assert Image.list(workspace, model_id="digits:2") == []
        assert Image(workspace, name="digits").version == 2
        assert Image(workspace, name="digits", tags=[["stage", "old"]]).version == 1
        with pytest.raises(
            NotFoundError, match=r"^ImageNotFound: no image 'digits:9'.*built are digits, other"
        ):
            Image(workspace, id="digits:9")

    def test_a_model_in_use_is_not_deleted_and_the_image_is_named(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        image = ContainerImage.from_request(workspace, request_)
        with pytest.raises(
            InUseError, match="digits:1 cannot be deleted: it is used by image digits:1"
        ) as caught:
            request_.models[0].delete()
        assert caught.value.next_command == "edgewright image delete digits:1"
        image.delete()
        request_.models[0].delete()
        assert blobs(workspace) == set()
        assert workspace.store.tags() == {}

    def test_deleting_one_version_keeps_what_the_other_shares(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        second = ContainerImage.from_request(workspace, request_)
        first.delete()
        assert [image.id for image in Image.list(workspace)] == ["digits:2"]
        assert workspace.store.find_image(second.digest, PLATFORMS[1]) is not None

    def test_a_build_after_deleting_makes_its_layers_again(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        first.delete()
        assert list((workspace.cache / "layers").iterdir()) == []
        second = ContainerImage.from_request(workspace, request_)
        assert (second.id, second.digest) == ("digits:2", first.digest)


def test_two_builds_of_one_name_at_once_are_two_versions_of_one_image(
    workspace: Workspace, request_: BuildRequest
) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(ContainerImage.from_request, workspace, request_) for _ in range(2)]
        images = [job.result(timeout=60) for job in jobs]
    assert {image.id for image in images} == {"digits:1", "digits:2"}
    assert len({image.digest for image in images}) == 1


class TestPush:
    CREDENTIALS = BasicCredentials("pusher", Secret("pass"))

    def test_a_push_names_the_image_by_digest_and_sends_only_what_is_missing(
        self, workspace: Workspace, request_: BuildRequest, tmp_path: Path
    ) -> None:
        first = ContainerImage.from_request(workspace, request_)
        (tmp_path / "digits.pkl").write_bytes(b"weights of version 2")
        model = Model.register(workspace, tmp_path / "digits.pkl", "digits")
        second = ContainerImage.from_request(workspace, replace(request_, models=(model,)))
        with RegistryDouble(auth="bearer", users={"pusher": User("pass")}) as registry:
            pushed = first.push(registry.address, credentials=self.CREDENTIALS)
            assert str(pushed.location) == f"{registry.address}/digits@{first.digest}"
            assert registry.repository("digits").tags["1"] == str(first.digest)
            assert Image(workspace, id="digits:1").image_location == str(pushed.location)
            again = second.push(registry.address, credentials=self.CREDENTIALS)
        model_layer = next(layer.size for layer in second.layers if layer.role == "model")
        assert again.bytes_sent <= model_layer + 65536
        # Sent: the model's layer and two configs. There: runtime, script, and dependencies, pure and so the same blob.
        assert (again.blobs_sent, again.blobs_skipped) == (3, 3)

    def test_a_wrong_password_is_refused_and_no_location_is_noted(
        self, workspace: Workspace, request_: BuildRequest
    ) -> None:
        image = ContainerImage.from_request(workspace, request_)
        with (
            RegistryDouble(auth="basic", users={"pusher": User("other")}) as registry,
            pytest.raises(EdgewrightError) as caught,
        ):
            image.push(registry.address, credentials=self.CREDENTIALS)
        assert registry.address in caught.value.message
        assert "pass" not in caught.value.message.replace("password", "")
        assert Image(workspace, id="digits:1").image_location is None


@pytest.mark.timeout(120)
def test_numpy_of_the_package_index_for_two_platforms(tmp_path: Path) -> None:
    """The one build that asks the configured package index: each platform gets its own compiled files."""
    workspace = Workspace.init(tmp_path / "w")
    (tmp_path / "m.pkl").write_bytes(b"m")
    model = Model.register(workspace, tmp_path / "m.pkl", "m")
    environment = Environment(("numpy",), "3.11")
    request = BuildRequest("m", (model,), write_score(tmp_path), environment, platforms=PLATFORMS)
    image = ContainerImage.from_request(workspace, request)
    for number, machine in enumerate(("x86_64", "aarch64")):
        names = layer_names(image, "dependencies", number)
        extensions = [name for name in names if "_multiarray_umath" in name and name.endswith(".so")]
        assert len(extensions) == 1 and f"cpython-311-{machine}-linux-gnu" in extensions[0]
