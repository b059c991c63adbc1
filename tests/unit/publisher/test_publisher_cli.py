"""`edgewright` as typed: what is printed where, exit codes, bad input, interruption."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from publisher_workspaces import (
    blobs,
    make_runtime_wheels,
    make_wheel,
    make_workspace,
    resolved_locks,
    seed_locks,
    write_score,
)
from registry_double import RegistryDouble, User
from typer.testing import CliRunner, Result

from publisher.cli.main import COMMANDS, app
from publisher.cli.output import progress, size_text
from publisher.images import Image
from publisher.models import Model
from publisher.workspace import Workspace

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolved_locks(tmp_path_factory.mktemp("locks"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_runtime_wheels(tmp_path / "wheels")


@pytest.fixture
def workspace(tmp_path: Path, wheels: Path, locks: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace of the current directory, with a model and a script to build from."""
    workspace = make_workspace(tmp_path / "w", wheels)
    seed_locks(workspace, locks)
    monkeypatch.chdir(workspace.root)
    Path("digits.pkl").write_bytes(b"weights")
    write_score(Path())
    return workspace


@pytest.fixture
def run() -> Run:
    def runner(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return runner


def failed(result: Result, code: int, *parts: str) -> None:
    """The command failed with one message and printed no result."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


class TestProgram:
    def test_help_lists_every_command_without_importing_any(self) -> None:
        code = (
            "import sys\nfrom publisher.cli.main import app\n"
            "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'rich', 'urllib3', 'yaml', 'sqlite3', 'publisher.images', 'publisher.models'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
        )
        for name, row in COMMANDS.items():
            assert name in result.stdout
            assert row.help in result.stdout

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_row_of_the_table_leads_to_a_command(self, run: Run, name: str) -> None:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"{name} [OPTIONS]" in result.stdout

    def test_usage_errors_exit_2(self, run: Run) -> None:
        failed(run("imag"), 2, "Did you mean 'image'?")
        failed(run("image", "build"), 2, "--model")
        failed(run("model", "show", "a:latest"), 1 if not Path("edgewright.toml").exists() else 2)

    def test_version(self, run: Run) -> None:
        assert run("--version").stdout.startswith("edgewright ")

    def test_no_workspace_names_the_next_command(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        failed(run("model", "list"), 1, "error: no workspace in", "next: edgewright init")
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_key_in_edgewright_toml_is_usage(self, run: Run, workspace: Workspace) -> None:
        config = workspace.root / "edgewright.toml"
        config.write_text("[image]\nplatfroms = []\n")
        failed(
            run("model", "list"),
            2,
            f"unknown key 'platfroms' of [image] in {config}:2",
            "known keys: base_layers, default_base",
        )

    def test_an_unexpected_failure_is_a_line_and_with_debug_a_traceback(
        self, run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Model.register(workspace, "digits.pkl", "digits")
        for path in (workspace.state / "oci" / "blobs" / "sha256").iterdir():
            path.unlink()
            path.mkdir()
        failed(run("model", "show", "digits"), 1, "error: ", "next: ")
        monkeypatch.setenv("EDGEWRIGHT_DEBUG", "1")
        assert "Traceback" in run("model", "show", "digits").stderr


class TestInit:
    def test_init_makes_a_workspace_and_says_what_comes_next(self, run: Run, tmp_path: Path) -> None:
        result = run("init", str(tmp_path / "new"))
        assert result.exit_code == 0
        assert f"made in {tmp_path / 'new'}" in result.stderr
        assert (tmp_path / "new" / "edgewright.toml").is_file()
        assert "is in" in run("init", str(tmp_path / "new")).stderr


class TestModels:
    def test_register_prints_the_id_alone_on_stdout(self, run: Run, workspace: Workspace) -> None:
        result = run("model", "register", "digits.pkl", "--name", "digits", "--tag", "a=b=c")
        assert (result.exit_code, result.stdout) == (0, "digits:1\n")
        assert "next: edgewright image build -m digits:1" in result.stderr
        assert Model(workspace, name="digits").tags == {"a": "b=c"}

    def test_list_and_show_in_every_format(self, run: Run, workspace: Workspace) -> None:
        model = Model.register(workspace, "digits.pkl", "digits")
        table = run("model", "list").stdout
        assert "digits:1" in table and "digits.pkl" in table and "7 B" in table
        assert json.loads(run("model", "list", "--json").stdout) == [model.serialize()]
        assert yaml.safe_load(run("model", "show", "digits:1", "-o", "yaml").stdout) == model.serialize()
        assert str(model.digest) in run("model", "show", "digits").stdout
        assert json.loads(run("model", "list", "-n", "other", "-o", "json").stdout) == []

    def test_missing_model_file(self, run: Run, workspace: Workspace) -> None:
        failed(run("model", "register", "nothere.onnx", "-n", "digits"), 1, "error: no model at nothere.onnx")
        assert Model.list(workspace) == [] and blobs(workspace) == set()

    def test_bad_name_and_tag_are_usage(self, run: Run, workspace: Workspace) -> None:
        failed(run("model", "register", "digits.pkl", "-n", "a/b"), 2, "not 'a/b'")
        failed(
            run("model", "register", "digits.pkl", "-n", "a", "--tag", "x"),
            2,
            "--tag must be KEY=VALUE, not 'x'",
        )
        assert Model.list(workspace) == []

    def test_unknown_model_names_those_there_are(self, run: Run, workspace: Workspace) -> None:
        Model.register(workspace, "digits.pkl", "digits")
        failed(
            run("model", "show", "digit"),
            1,
            "'digit'",
            "registered are digits",
            "next: edgewright model list",
        )
        failed(run("model", "show", "digits:x"), 2, "NAME:VERSION")


class TestImages:
    @pytest.fixture(autouse=True)
    def registered(self, workspace: Workspace) -> Model:
        return Model.register(workspace, "digits.pkl", "digits")

    def test_build_prints_id_and_digest_and_says_what_was_reused(
        self, run: Run, workspace: Workspace
    ) -> None:
        first = run("image", "build", "-m", "digits:1", "-s", "score.py")
        image = Image(workspace, name="digits")
        assert (first.exit_code, first.stdout) == (0, f"digits:1 {image.digest}\n")
        assert "next: edgewright image push digits:1\n" in first.stderr
        second = run("image", "build", "-m", "digits", "-s", "score.py")
        assert second.stdout == f"digits:2 {image.digest}\n"
        assert "reused" in second.stderr and "--upgrade resolves again" in second.stderr

    def test_build_options_reach_the_image(self, run: Run, workspace: Workspace, wheels: Path) -> None:
        make_wheel(wheels, "extra")
        Path("requirements.txt").write_text("extra\n")
        Path("labels.txt").write_text("0\n")
        result = run(
            *("image", "build", "-m", "digits", "-s", "score.py", "-t", "other", "--include", "labels.txt"),
            *(
                "--requirements",
                "requirements.txt",
                "--platform",
                "linux/arm64",
                "--messages",
                "in=out",
                "--json",
            ),
        )
        document = json.loads(result.stdout)
        assert (document["id"], document["platforms"]) == ("other:1", ["linux/arm64"])
        assert [layer["role"] for layer in document["built"]] == [
            "dependencies",
            "runtime",
            "model",
            "script",
        ]
        image = Image(workspace, name="other")
        assert image.build is None
        assert document["digest"] == str(image.digest)

    def test_list_show_export_delete(self, run: Run, workspace: Workspace, tmp_path: Path) -> None:
        run("image", "build", "-m", "digits", "-s", "score.py", "--platform", "linux/amd64")
        assert "linux/amd64" in run("image", "list").stdout
        assert json.loads(run("image", "list", "--json").stdout)[0]["id"] == "digits:1"
        shown = run("image", "show", "digits").stdout
        assert "role=dependencies" in shown and "imageLocation" in shown
        assert run("image", "export", "digits", "--output-file", str(tmp_path / "x.tar")).exit_code == 0
        assert (tmp_path / "x.tar").stat().st_size > 0
        failed(
            run("model", "delete", "digits:1"),
            1,
            "used by image digits:1",
            "next: edgewright image delete digits:1",
        )
        assert run("image", "delete", "digits:1").exit_code == 0
        assert run("model", "delete", "digits:1").exit_code == 0
        assert blobs(workspace) == set()

    def test_export_where_nothing_can_be_written(self, run: Run, workspace: Workspace) -> None:
        run("image", "build", "-m", "digits", "-s", "score.py", "--platform", "linux/amd64")
        failed(
            run("image", "export", "digits", "--output-file", "no/such/x.tar"),
            1,
            "no/such/x.tar cannot be written",
        )

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["-m", "other", "-s", "score.py"], 1, "no model 'other'"),
            (["-m", "digits:7", "-s", "score.py"], 1, "no model 'digits:7'"),
            (["-m", "digits", "-s", "nothere.py"], 1, "entry script nothere.py does not exist"),
            (
                ["-m", "digits", "-s", "norun.py"],
                1,
                "entry script norun.py must define run(data) at its top level",
            ),
            (["-m", "digits", "-s", "digits.pkl"], 1, "digits.pkl must be a Python file"),
            (["-m", "digits"], 1, "needs an entry script"),
            (
                ["-m", "digits", "-s", "score.py", "--requirements", "bad.txt"],
                1,
                "package 'no-such-pkg' was not found",
            ),
            (
                ["-m", "digits", "-s", "score.py", "--requirements", "amd.txt"],
                1,
                "'amd64-only' has no wheel for linux/arm64",
            ),
            (["-m", "digits", "-s", "score.py", "--requirements", "no.txt"], 1, "no.txt cannot be read"),
            (
                ["-m", "digits", "-s", "score.py", "--platform", "linux/arm/v7"],
                2,
                "not built for linux/arm/v7",
            ),
            (["-m", "digits", "-s", "score.py", "--platform", "arm"], 1, "'os/architecture'"),
            (["-m", "digits", "-s", "score.py", "--base", "debian"], 1, "base 'debian' must be"),
            (["-m", "digits", "-s", "score.py", "-t", "Digits"], 2, "not 'Digits'"),
        ],
    )
    def test_bad_input_is_one_message_and_no_image(
        self, run: Run, workspace: Workspace, wheels: Path, *, arguments: list[str], code: int, message: str
    ) -> None:
        write_score(Path(), "def init():\n    pass\n", "norun.py")
        Path("bad.txt").write_text("no-such-pkg\n")
        Path("amd.txt").write_text("amd64-only\n")
        make_wheel(wheels, "amd64-only", tag="cp311-cp311-manylinux_2_28_x86_64")
        failed(run("image", "build", *arguments), code, message)
        assert Image.list(workspace) == []
        assert workspace.store.tags() == {}

    def test_push_reads_the_password_from_stdin_and_prints_the_digest(
        self, run: Run, workspace: Workspace
    ) -> None:
        run("image", "build", "-m", "digits", "-s", "score.py")
        image = Image(workspace, name="digits")
        with RegistryDouble(auth="basic", users={"ci": User("pass")}) as registry:
            push = ("image", "push", "digits:1", registry.address, "--username", "ci")
            result = run(*push, "--password-stdin", stdin="pass\n")
            assert (result.exit_code, result.stdout) == (0, f"{registry.address}/digits@{image.digest}\n")
            assert "bytes" in result.stderr
            again = json.loads(run(*push, "--password-stdin", "--json", stdin="pass\n").stdout)
            assert (again["blobsSent"], again["blobsSkipped"]) == (0, 6)
            wrong = run(*push, "--password-stdin", stdin="wrong\n")
            failed(wrong, 1, registry.address)
            assert "wrong" not in wrong.output

    def test_push_without_a_password_is_usage(
        self, run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("EDGEWRIGHT_REGISTRY_PASSWORD", raising=False)
        run("image", "build", "-m", "digits", "-s", "score.py", "--platform", "linux/amd64")
        failed(run("image", "push", "digits", "127.0.0.1:9", "--username", "ci"), 2, "--password-stdin")


def test_ctrl_c_while_resolving_kills_uv_and_leaves_nothing(workspace: Workspace) -> None:
    Model.register(workspace, "digits.pkl", "digits")
    Path("requirements.txt").write_text("slow\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        config = workspace.root / "edgewright.toml"
        config.write_text(f'[environment]\npython = "3.11"\nindex = "{index}"\n')
        command = [
            sys.executable,
            "-m",
            "publisher.cli.main",
            "image",
            "build",
            "-m",
            "digits",
            "-s",
            "score.py",
        ]
        command += ["--requirements", "requirements.txt"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            connection, _ = silent.accept()  # uv has asked the index and waits for ever
            time.sleep(0.2)
            children = _children(process.pid)
            assert children
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            connection.close()
        finally:
            process.kill()
            process.wait(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert Image.list(workspace) == []
    assert list((workspace.cache / "work").iterdir()) == []


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(stat.parent.name))
    return found


class TestLists:
    def test_models_are_listed_by_tag_property_framework_and_newest(
        self, run: Run, workspace: Workspace
    ) -> None:
        register = ("model", "register", "digits.pkl", "--name")
        assert run(*register, "a", "--tag", "key=0.1", "--framework", "Onnx").exit_code == 0
        assert run(*register, "a", "--property", "p=1", "--framework-version", "1").exit_code == 2
        assert run(*register, "a", "--property", "p=1").exit_code == 0

        def ids(*options: str) -> list[str]:
            return [each["id"] for each in json.loads(run("model", "list", "--json", *options).stdout)]

        assert ids() == ["a:2", "a:1"]
        assert ids("--tag", "key") == ids("--tag", "key=0.1") == ids("--framework", "Onnx") == ["a:1"]
        assert ids("--tag", "key=0.2") == ids("--tag", "key", "--property", "p") == []
        assert ids("--property", "p=1") == ids("--latest") == ["a:2"]
        shown = yaml.safe_load(run("model", "show", "a:1", "-o", "yaml").stdout)
        assert (shown["framework"], shown["tags"]) == ("Onnx", {"key": "0.1"})

    def test_images_are_listed_by_model_tag_and_property(self, run: Run, workspace: Workspace) -> None:
        run("model", "register", "digits.pkl", "--name", "a")
        run("model", "register", "digits.pkl", "--name", "b")
        build = ("image", "build", "-s", "score.py", "--platform", "linux/amd64", "-m", "a")
        assert run(*build, "--tag", "stage=new").exit_code == 0
        assert run(*build, "-m", "b", "-t", "both", "--property", "p=1").exit_code == 0

        def ids(*options: str) -> list[str]:
            return [each["id"] for each in json.loads(run("image", "list", "--json", *options).stdout)]

        assert ids() == ids("-m", "a") == ids("-m", "a:1") == ["a:1", "both:1"]
        assert ids("-m", "b") == ids("--property", "p") == ["both:1"]
        assert ids("--tag", "stage=new") == ["a:1"]
        shown = json.loads(run("image", "show", "both", "--json").stdout)
        assert shown["modelIds"] == ["a:1", "b:1"]
        assert (shown["imageFlavor"], shown["driverProgram"]) == ("WebApiContainer", "score.py")
        failed(
            run("model", "delete", "b:1"), 1, "used by image both:1", "next: edgewright image delete both:1"
        )


class TestOutput:
    @pytest.mark.parametrize(
        ("size", "text"),
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4_014_080, "4.0 MB"), (2.5e9, "2.5 GB")],
    )
    def test_sizes_are_for_reading(self, size: float, text: str) -> None:
        assert size_text(size) == text

    def test_short_work_prints_no_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress("resolving"):
            pass
        assert capsys.readouterr().err == ""

    def test_long_work_prints_begin_and_end(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress("resolving"):
            time.sleep(1.1)
        begin, end = capsys.readouterr().err.splitlines()
        assert begin == "resolving …"
        assert end.startswith("resolving: done after 1.")


def test_the_environment_of_the_caller_is_left_alone(workspace: Workspace, run: Run) -> None:
    before = dict(os.environ)
    run("model", "list")
    assert dict(os.environ) == before
