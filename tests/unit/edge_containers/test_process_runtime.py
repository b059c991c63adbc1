"""The process runtime beyond the contract of every runtime: images without a base, ports, limits, tiers, accidents."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import runtime_harness
import runtime_images
from runtime_harness import RuntimeHarness, is_running, processes_of, run_inside, try_get, until

from edge_containers import sandbox, shim
from edge_containers.errors import DigestMismatchError
from edge_containers.interpreter import Interpreter
from edge_containers.process_runtime import LANDLOCK, NAMESPACES, ProcessRuntime
from edge_containers.public_ports import PublicPorts
from edge_containers.runtime import (
    ImageNotPreparedError,
    IncompatibleImageError,
    ModuleSpec,
    ModuleStartError,
    ModuleStatus,
    PortInUseError,
    SandboxUnavailableError,
)
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.redact import Secret

PYTHON = Path(sys.executable)


@pytest.fixture(scope="module")
def best() -> Iterator[RuntimeHarness]:
    """In the best tier this machine has."""
    harness = RuntimeHarness(best_tier(), PYTHON)
    yield harness
    harness.close()


@pytest.fixture
def harness(best: RuntimeHarness) -> Iterator[RuntimeHarness]:
    yield best
    best.reset()


@pytest.fixture
def fresh() -> Iterator[RuntimeHarness]:
    """On a root of its own, where no image is yet."""
    harness = RuntimeHarness(best_tier(), PYTHON)
    yield harness
    harness.close()


@functools.cache
def best_tier() -> str:
    return next(tier for tier in runtime_harness.TIERS if works(tier))


def works(tier: str) -> bool:
    harness = RuntimeHarness(tier, PYTHON)
    try:
        harness.runtime.report()
    except SandboxUnavailableError:
        return False
    finally:
        harness.close()
    return True


def port_binding(port: int) -> dict[str, object]:
    bound = [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
    return {"HostConfig": {"PortBindings": {"5001/tcp": bound}}}


class TestImages:
    @pytest.mark.parametrize(
        ("label", "value", "message"),
        [
            ("edgewright.base", None, "its base must be none, .* not unlabelled"),
            ("edgewright.python", "3.9", r"its Python must be 3\.1\d, as of .*, not 3\.9"),
            ("edgewright.libc", "musl", "its C library must be glibc, as of .*, not musl"),
            ("edgewright.layer-roles", '["model"]', "edgewright.layer-roles must hold 4 different roles"),
            (
                "edgewright.layers",
                "{}",
                "edgewright.layers must hold a folder and a layer for 'dependencies'",
            ),
            ("edgewright.layers", "nonsense", "edgewright.layers must hold a JSON dict, not 'nonsense'"),
            ("edgewright.http-port", "http", "edgewright.http-port must hold a port, not 'http'"),
        ],
    )
    def test_an_image_for_something_else_is_refused(
        self, fresh: RuntimeHarness, label: str, value: str | None, message: str
    ) -> None:
        with pytest.raises(IncompatibleImageError, match=message) as caught:
            fresh.image(**{label: value})
        assert caught.value.code == "exec-format"
        assert list((fresh.root / "images").iterdir()) == []
        assert list((fresh.root / "layers" / "sha256").iterdir()) == []

    @pytest.mark.parametrize(
        "path", ["/etc", "/var/azureml-app/../../etc", "/opt/edgewright-evil", "opt/edgewright/x"]
    )
    def test_a_layer_may_not_stand_anywhere(self, fresh: RuntimeHarness, path: str) -> None:
        folders = json.dumps({"dependencies": path, "runtime": path, "model": path})
        with pytest.raises(IncompatibleImageError, match="paths beneath /opt/edgewright or /var/azureml-app"):
            fresh.image(**{"edgewright.layers": folders})

    def test_a_labelled_folder_must_be_in_its_layer(self, fresh: RuntimeHarness) -> None:
        folders = json.dumps(
            {role: f"/opt/edgewright/{role}" for role in ("dependencies", "runtime", "model")}
        )
        with pytest.raises(
            IncompatibleImageError, match="layer 'model' must hold the folder /opt/edgewright/model"
        ):
            fresh.image(**{"edgewright.layers": folders})

    def test_one_flipped_bit_leaves_the_image_unprepared(self, fresh: RuntimeHarness) -> None:
        store = fresh.runtime.store
        digest = runtime_images.put_image(
            store, labels={"edgewright.python": runtime_harness.version_of(PYTHON)}
        )
        largest = max((store.root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[700] ^= 1
        largest.write_bytes(data)

        with pytest.raises(DigestMismatchError, match=largest.name):
            fresh.runtime.prepare(digest)

        assert not fresh.runtime.has_image(ImageRef("127.0.0.1:5050", "digits", None, digest))

    def test_an_image_that_is_not_whole_is_not_prepared(self, fresh: RuntimeHarness) -> None:
        with pytest.raises(ImageNotPreparedError, match="is not whole"):
            fresh.runtime.prepare(ImageDigest.of(b"nothing"))

    def test_an_image_is_pulled_from_a_registry_and_started(self, fresh: RuntimeHarness) -> None:
        from registry_double import RegistryDouble, User

        from edge_containers.image_model import OCI_INDEX, Descriptor
        from edge_containers.registry_client import BasicCredentials, RegistryClient
        from edge_containers.store import ContentStore

        credentials = BasicCredentials("device", Secret("hush"))
        source = ContentStore(fresh.folder / "source")
        labels: dict[str, str | None] = {"edgewright.python": runtime_harness.version_of(PYTHON)}
        first, second = (runtime_images.put_image(source, version, labels=labels) for version in "12")
        with RegistryDouble(auth="bearer", users={"device": User("hush")}) as registry:
            with RegistryClient(registry.address, credentials=credentials) as client:
                for digest in (first, second):
                    index = Descriptor(OCI_INDEX, digest, source.size(digest))
                    client.push_image(source, index, "digits")
            images = [ImageRef(registry.address, "digits", None, digest) for digest in (first, second)]
            pulled = [fresh.runtime.pull(image, credentials) for image in images]
        assert pulled[0].bytes_received > 40_000
        assert pulled[1].bytes_received < 20_000, "only the model layer is new"
        assert fresh.runtime.pull(images[0]).bytes_received == 0, "nobody is asked"
        assert fresh.start("2", image=images[1]).image == images[1]


class TestPorts:
    def test_an_asked_for_port_is_bound_and_named_when_taken(self, harness: RuntimeHarness) -> None:
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            port = stranger.getsockname()[1]
            with pytest.raises(
                PortInUseError,
                match=f"module 'scorer' needs TCP port {port} on 127.0.0.1, which is already in use",
            ):
                harness.start(create_options=port_binding(port))
            assert harness.runtime.list() == []
            assert processes_of(harness.root) == []
        assert harness.start(create_options=port_binding(port)).public_address == ("127.0.0.1", port)

    def test_a_new_port_is_another_socket(self, harness: RuntimeHarness) -> None:
        old = harness.start()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        new = harness.start("2", create_options=port_binding(port))
        assert [try_get(old.public_address), try_get(new.public_address)] == ["1", "2"]

    def test_docker_publishes_on_every_address(self, tmp_path: Path) -> None:
        ports = PublicPorts(tmp_path / "ports.json", (20000, 20001))
        assert ports.wanted("scorer", None, 8080) == ("0.0.0.0", 8080)
        assert ports.wanted("scorer", None, None) is None

    def test_a_chosen_port_is_kept_until_somebody_takes_it(self, tmp_path: Path) -> None:
        file = tmp_path / "ports.json"
        with PublicPorts(file, (21000, 21009)).bind("scorer", None, None) as listener:
            first = listener.getsockname()
        assert PublicPorts(file, (21000, 21009)).wanted("scorer", None, None) == first
        with (
            socket.create_server(first),
            PublicPorts(file, (21000, 21009)).bind("scorer", None, None) as listener,
        ):
            second = listener.getsockname()
        assert second != first
        assert json.loads(file.read_text()) == {"scorer": second[1]}

    def test_a_range_can_be_used_up(self, tmp_path: Path) -> None:
        ports = PublicPorts(tmp_path / "ports.json", (21020, 21021))
        with (
            ports.bind("one", None, None),
            ports.bind("two", None, None),
            pytest.raises(PortInUseError, match="module 'three' needs a TCP port of 21020 to 21021"),
        ):
            ports.bind("three", None, None)
        with ports.bind("one", None, None):
            ports.bind("three", None, None).close()
        assert set(json.loads((tmp_path / "ports.json").read_text())) == {"one", "three"}

    def test_a_module_without_http_has_no_public_address(self, harness: RuntimeHarness) -> None:
        module = harness.start(image=harness.image(**{"edgewright.http-port": None}))
        assert module.public_address is None
        assert run_inside(module, "import os; result = 'EDGEWRIGHT_HTTP_FD' in os.environ") is False


class TestModules:
    def test_the_environment_is_composed_of_image_options_and_manifest(self, harness: RuntimeHarness) -> None:
        module = harness.start(
            env={"B": "manifest", "PYTHONPATH": "/nowhere"},
            create_options={"Env": ["A=options", "B=options"]},
        )
        found = run_inside(module, "import os; result = dict(os.environ)")
        home = "/var/azureml-app"
        assert {name: found[name] for name in ("A", "B", "EDGEWRIGHT_MODEL", "ORT_DISABLE_TELEMETRY")} == {
            "A": "options",
            "B": "manifest",
            "EDGEWRIGHT_MODEL": "digits:1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        assert found["AML_APP_ROOT"].endswith(home)
        assert found["AZUREML_MODEL_DIR"].endswith(f"{home}/azureml-models/digits/1")
        path = run_inside(module, "import sys; result = sys.path")
        assert [entry.rpartition("/")[2] for entry in path[-2:]] == ["dependencies", "runtime"]
        assert "/nowhere" not in path

    @pytest.mark.parametrize("tier", runtime_harness.TIERS)
    def test_several_models_are_found_in_one_folder(self, tier: str) -> None:
        harness = runtime_harness.open_harness(tier)
        try:
            module = harness.start(image=harness.image(more_models=("letters/3", "letters/12")))
            code = (
                "import os\nroot = os.environ['AZUREML_MODEL_DIR']\n"
                "result = [open(f'{root}/{each}/model.pkl').read() for each in ('letters/3', 'letters/12')]"
            )
            assert run_inside(module, code) == ["letters/3", "letters/12"]
            assert sorted(
                run_inside(module, "import os\nresult = os.listdir(os.environ['AZUREML_MODEL_DIR'])")
            ) == [
                "digits",
                "letters",
            ]
        finally:
            harness.close()

    def test_secrets_stay_out_of_sight(self, harness: RuntimeHarness) -> None:
        module = harness.start(env={"PASSWORD": "hush-hush"})
        spec = harness.root / "modules" / "scorer" / module.instance_id / "spec.json"
        assert spec.stat().st_mode & 0o777 == 0o600
        assert "hush-hush" in spec.read_text()
        assert "hush-hush" not in repr(ModuleSpec("scorer", module.image, "i9", {"PASSWORD": "hush-hush"}))
        lines = [Path(f"/proc/{process}/cmdline").read_bytes() for process in processes_of(harness.root)]
        assert lines
        assert not any(b"hush-hush" in line for line in lines)

    def test_a_module_over_its_memory_is_killed_and_says_so(self, harness: RuntimeHarness) -> None:
        module = harness.start(create_options={"HostConfig": {"Memory": 80 << 20}})
        with pytest.raises(OSError, match=r"closed|reset"):
            run_inside(module, "import time; x = bytearray(b'x') * (200 << 20); time.sleep(30)")
        exited = harness.exited(module)
        assert (exited.exit_code, exited.reason) == (128 + signal.SIGKILL, "memory limit")
        assert "memory limit exceeded" in harness.runtime.logs("scorer")

    def test_a_memory_limit_must_be_a_number(self, harness: RuntimeHarness) -> None:
        with pytest.raises(ModuleStartError, match=r"HostConfig\.Memory must be a number of bytes, not '1g'"):
            harness.start(create_options={"HostConfig": {"Memory": "1g"}})
        assert harness.runtime.list() == []

    @pytest.mark.parametrize("name", ["../evil", "", ".hidden", "a/b", "-x", "x" * 200])
    def test_names_cannot_leave_the_root(self, harness: RuntimeHarness, name: str) -> None:
        image = harness.image()
        for spec in (ModuleSpec(name, image, "i1"), ModuleSpec("scorer", image, name)):
            with pytest.raises(ModuleStartError, match="must be up to 128 of"):
                harness.runtime.start(spec)

    def test_logs_of_a_talkative_module_are_bounded_and_keep_the_end(self, harness: RuntimeHarness) -> None:
        module = harness.start()
        run_inside(module, "for n in range(45_000): print(n, 'x' * 92, flush=False)")
        harness.runtime.stop("scorer", module.instance_id)
        sizes = [file.stat().st_size for file in sorted((harness.root / "modules").glob("*/*/log*"))]
        assert len(sizes) == 3
        assert all(size <= 1_000_000 for size in sizes)
        last = harness.runtime.logs("scorer", tail=2).splitlines()
        assert last == [f"44999 {'x' * 92}", "module 1 ends"]

    def test_logs_of_several_instances_follow_one_another(self, harness: RuntimeHarness) -> None:
        harness.start("1")
        harness.start("2")
        until(lambda: "module 2 starts\n" in harness.runtime.logs("scorer"), "the second one has written")
        assert harness.runtime.logs("scorer") == "module 1 starts\nmodule 2 starts\n"
        assert harness.runtime.logs("nobody") == ""


class TestAccidents:
    @pytest.mark.parametrize("tier", runtime_harness.TIERS)
    def test_nothing_survives_a_killed_shim(self, tier: str) -> None:
        harness = runtime_harness.open_harness(tier)
        try:
            module = harness.start()
            child = (
                "import os, time\nif (child := os.fork()) == 0: os.setsid(); time.sleep(60)\nresult = child"
            )
            run_inside(module, child)
            supervisor = json.loads((harness.root / "modules/scorer/i1/shim.json").read_text())["shim"]["pid"]
            tree = until(
                lambda: len(found := sandbox.descendants(supervisor)) == 2 and found, "the child is there"
            )
            os.kill(supervisor, signal.SIGKILL)
            until(lambda: not any(map(is_running, tree)), "the tree is gone", timeout_s=5)
            exited = harness.exited(module)
            assert (exited.exit_code, exited.reason) == (128 + signal.SIGKILL, "killed")
            assert harness.start().public_address == module.public_address
        finally:
            harness.close()

    def test_an_agent_killed_while_it_starts_a_module_leaves_all_or_nothing(
        self, harness: RuntimeHarness
    ) -> None:
        image = harness.image()
        program = f"""
            import sys
            sys.path[:0] = [{str(runtime_harness.PROJECT)!r}]
            from pathlib import Path
            from edge_containers.process_runtime import ProcessRuntime
            from edge_containers.runtime import ModuleSpec
            from edge_contracts.image_ref import ImageRef
            runtime = ProcessRuntime(Path({str(harness.root)!r}), Path({str(PYTHON)!r}), tiers=[{harness.tier!r}])
            runtime.report()
            print("go", flush=True)
            runtime.start(ModuleSpec("scorer", ImageRef.parse({str(image)!r}), "i1"))
        """
        for delay_ms in (0, 5, 15, 40):
            agent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
            with agent:
                assert agent.stdout.readline() == b"go\n"
                time.sleep(delay_ms / 1000)
                agent.kill()
            found = harness.open().list()
            if found and found[0].status is ModuleStatus.RUNNING:
                until(functools.partial(try_get, found[0].health_address), "it is ready")
            harness.open().remove("scorer", "i1")
            assert harness.open().list() == []
            until(lambda: not processes_of(harness.root), "no process is left", timeout_s=5)

    def test_a_launcher_killed_half_way_leaves_no_module_nobody_knows(self, harness: RuntimeHarness) -> None:
        model = json.loads(
            (harness.root / "modules/scorer" / harness.start().instance_id / "spec.json").read_text()
        )
        harness.reset()
        known = 0
        for delay_ms in (20, 40, 50, 60, 80, 120):
            folder = harness.folder / f"launch-{delay_ms}"
            (folder / "root").mkdir(parents=True)
            with (folder / "lock").open("wb") as lock:
                spec = {
                    **model,
                    "lock": lock.fileno(),
                    "sockets": {"health": None, "public": None},
                    "argv": [model["argv"][0], "-c", "import time; time.sleep(60)", str(folder)],
                    "root": {**model["root"], "mountpoint": str(folder / "root")},
                }
                (folder / "spec.json").write_text(json.dumps(spec))
                command = [sys.executable, "-I", "-S", shim.__file__, str(folder / "spec.json")]
                with subprocess.Popen(
                    command, pass_fds=[lock.fileno()], stdout=subprocess.DEVNULL
                ) as launcher:
                    time.sleep(delay_ms / 1000)
                    launcher.kill()
            if (folder / "shim.json").exists():
                known += 1
                os.kill(json.loads((folder / "shim.json").read_text())["shim"]["pid"], signal.SIGKILL)
            until(functools.partial(lambda folder: not processes_of(folder), folder), "no process is left")
        assert known < 6, "no launcher was killed half-way"

    def test_no_room_to_write_down_a_start_leaves_nothing(self, harness: RuntimeHarness) -> None:
        image = harness.image()
        running = harness.start()
        before = sorted(harness.root.rglob("modules/**"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # As a full disk does, it fails writes; spec.json has more than this.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        try:
            with pytest.raises(
                ModuleStartError, match="module 'scorer' could not be started: File too large"
            ):
                harness.runtime.start(ModuleSpec("scorer", image, "i9"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(harness.root.rglob("modules/**")) == before
        assert harness.runtime.list() == [running]

    def test_the_end_of_an_unsupervised_module_is_found_later(self, harness: RuntimeHarness) -> None:
        module = harness.start()
        shim_file = harness.root / "modules" / "scorer" / module.instance_id / "shim.json"
        processes = json.loads(shim_file.read_text())
        harness.runtime.stop("scorer", module.instance_id)
        (shim_file.parent / "exit.json").unlink()
        # Its process ids belong to others now: this test's own.
        for role in ("shim", "module"):
            processes[role]["pid"] = os.getpid()
        shim_file.write_text(json.dumps(processes))
        found = harness.now(module)
        assert (found.status, found.exit_code, found.reason) == (ModuleStatus.EXITED, 137, "killed")
        harness.runtime.stop("scorer", module.instance_id, 0)

    def test_a_boot_ends_every_module(self, harness: RuntimeHarness) -> None:
        module = harness.start()
        shim_file = harness.root / "modules" / "scorer" / module.instance_id / "shim.json"
        before = shim_file.read_text()
        shim_file.write_text(json.dumps({**json.loads(before), "boot": "another"}))
        assert harness.now(module).status is ModuleStatus.EXITED
        shim_file.write_text(before)
        assert harness.now(module).status is ModuleStatus.RUNNING


class TestTiers:
    def test_the_best_tier_is_reported_without_a_reason(self) -> None:
        harness = runtime_harness.open_harness(NAMESPACES)
        report = harness.runtime.report()
        harness.close()
        assert (report.kind, report.tier, report.reason) == ("process", NAMESPACES, "")

    @pytest.fixture
    def closed_root(self, tmp_path: Path) -> Path:
        """A root that the user of modules cannot pass through, as far as root's own processes are concerned."""
        if os.geteuid() != 0:
            pytest.skip("only root runs modules as another user")
        (tmp_path / "closed").mkdir(mode=0o700)
        return tmp_path / "closed" / "runtime"

    def test_a_tier_is_passed_over_with_a_reason(self, closed_root: Path) -> None:
        runtime = ProcessRuntime(closed_root, PYTHON, tiers=[LANDLOCK, NAMESPACES])
        report = runtime.report()
        assert report.tier == NAMESPACES
        assert report.reason.startswith("landlock: /")
        assert report.reason.endswith("Permission denied")
        assert [path.name for path in closed_root.iterdir() if path.name.startswith(".")] == []

    def test_without_isolation_nothing_runs_unless_it_was_allowed(self, closed_root: Path) -> None:
        runtime = ProcessRuntime(closed_root, PYTHON, tiers=[LANDLOCK, "unisolated"])
        with pytest.raises(
            SandboxUnavailableError, match=r"landlock: .*Permission denied; unisolated: not allowed"
        ) as caught:
            runtime.report()
        assert caught.value.code == "sandbox"

    def test_an_interpreter_that_is_none_is_named(self, tmp_path: Path) -> None:
        runtime = ProcessRuntime(tmp_path, Path("/nonexistent/python"))
        with pytest.raises(SandboxUnavailableError, match="'/nonexistent/python' is not"):
            runtime.report()

    def test_an_interpreter_knows_itself(self) -> None:
        found = Interpreter.ask(PYTHON)
        assert found.version == f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert found.executable == os.path.realpath(sys.executable)
        assert str(Path(sys.base_prefix).resolve()) in found.folders
