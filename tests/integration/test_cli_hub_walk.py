"""`edgewright` typed by a user: a hub, devices and deployments, from start to down; and what is said when it goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_harness import free_loopback_address, wait_until
from publisher_workspaces import make_runtime_wheels, make_workspace, write_score
from typer.testing import CliRunner

from edge_containers.errors import RegistryAuthError
from edge_containers.image_model import Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest
from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString
from publisher.agents import start_agent
from publisher.cli.main import app
from publisher.devices import read_rollout
from publisher.embedded_hub import EmbeddedHub, hub_endpoint
from publisher.workspace import Workspace

TIMEOUT_S = 60
EMPTY_DEPLOYMENT = 417  # what an edge agent reports when its twin is empty
AMD64 = Platform.parse("linux/amd64")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class User:
    """Types commands in a workspace of their own; `host` is a loopback address that nobody else uses.

    `type` starts the program; `run` and `fail` give the same words to the same command line within this process, which
    spares a second of imports each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = free_loopback_address()
        self.registry = f"{self.host}:5050"
        self.hub = EmbeddedHub(make_workspace(folder, make_runtime_wheels(folder / "wheels")))

    def type(self, *words: str, code: int = 0) -> Done:
        """Start `edgewright WORDS` and wait; the exit code must be `code`."""
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        return self._checked(words, code, Done(done.returncode, done.stdout, done.stderr))

    def run(self, *words: str, code: int = 0, stdin: str = "", **environ: str) -> Done:
        """As `type`, in this process."""
        with contextlib.chdir(self.folder):
            result = CliRunner().invoke(app, list(words), input=stdin, env=environ)
        return self._checked(words, code, Done(result.exit_code, result.stdout, result.stderr))

    @staticmethod
    def _checked(words: tuple[str, ...], code: int, done: Done) -> Done:
        assert done.code == code, f"{words}: {done}"
        assert "Traceback" not in done.err
        assert "unexpected" not in done.err
        return done

    def fail(self, *words: str, code: int = 1, says: tuple[str, ...] = (), **more: Any) -> Done:
        """Run a command that must fail with one message, naming these, and no result."""
        done = self.run(*words, code=code, **more)
        assert done.out == ""
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.err
        for part in says:
            assert part in done.err
        return done

    @staticmethod
    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "publisher.cli", *words]

    def write(self, name: str, document: object) -> Path:
        path = self.folder / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path


@pytest.fixture(scope="module")
def new_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], User]]:
    users: list[User] = []

    def make() -> User:
        users.append(User(tmp_path_factory.mktemp("user") / "w"))
        return users[-1]

    yield make
    for user in users:
        user.hub.stop()


@pytest.fixture(scope="module")
def user(new_user: Callable[[], User]) -> User:
    """With a hub that runs, a device `edge-1` and an image that is pushed: `digits:1`."""
    user = new_user()
    user.type("hub", "start", "--host", user.host)
    user.run("device", "create", "edge-1", "--tag", "site=north")
    (user.folder / "digits.pkl").write_bytes(b"weights")
    write_score(user.folder)
    user.run("model", "register", "digits.pkl", "--name", "digits")
    user.run("image", "build", "-m", "digits:1", "-s", "score.py", "--platform", "linux/amd64")
    return user


@pytest.fixture(scope="module")
def pushed(user: User) -> ImageRef:
    return ImageRef.parse(user.run("image", "push", "digits:1").out.strip())


@pytest.fixture(scope="module")
def manifest(user: User, pushed: ImageRef) -> Path:
    """A manifest as generated, in a file."""
    done = user.run("manifest", "generate", "scorer=digits:1", "--publish", "5001", "--output-file", "m.json")
    assert "next: edgewright manifest apply m.json --device DEVICE" in done.err
    return user.folder / "m.json"


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def desired_version(user: User, device: str = "edge-1") -> int:
    """Read without the command line, which is what is being tested."""
    return hub_endpoint(Workspace.open(user.folder)).client().get_twin(device, "$edgeAgent").desired_version


# The hub.


def test_hub_starts_stops_and_starts_again_where_it_was(new_user: Callable[[], User]) -> None:
    user = new_user()
    before = user.type("hub", "status", "--json", code=1)
    assert before.document == {"state": "stopped", "pid": None}
    assert "next: edgewright hub start" in before.err

    ports = ("--https-port", "0", "--registry-port", "0")
    started = user.type("hub", "start", "--host", user.host, *ports, "--json").document
    assert started["state"] == "running"
    assert started["mqtt"] == f"{user.host}:8883"
    assert Path(started["caFile"]).exists()
    connection_string = Path(started["connectionStringFile"])
    assert connection_string.stat().st_mode & 0o777 == 0o600
    assert user.run("hub", "status", "--json").document == started
    assert user.run("hub", "start", "--json").document == started, "starting what runs does nothing"

    done = user.fail("hub", "start", "--https-port", "1", says=("runs already", user.host, "HTTPS 1,"))
    assert "next: edgewright hub stop" in done.err

    user.run("device", "create", "d")
    assert user.type("hub", "stop").err.strip() == "hub stopped"
    assert not listens(user.host, 8883)
    assert user.run("hub", "stop").err.strip() == "hub was not running"
    https_port = started["https"].rpartition(":")[2]
    stopped = user.fail("device", "list", says=("is stopped", user.host, https_port))
    assert "next: edgewright hub start" in stopped.err

    again = user.type("hub", "start", "--json").document
    assert {**again, "pid": 0} == {**started, "pid": 0}, "devices and manifests hold the address"
    assert [row["deviceId"] for row in user.run("device", "list", "--json").document] == ["d"]


@pytest.mark.parametrize(("port", "what"), [(8883, "MQTT"), (8443, "HTTPS"), (5050, "the registry")])
def test_hub_does_not_start_on_a_port_in_use(new_user: Callable[[], User], port: int, what: str) -> None:
    user = new_user()
    with socket.create_server((user.host, port)):
        done = user.fail(
            "hub", "start", "--host", user.host, says=(f"{user.host}:{port}", what, "Address already in use")
        )
        assert "next: edgewright hub start --host" in done.err
    assert not any(listens(user.host, each) for each in (8883, 8443, 5050))
    assert user.hub.status().pid is None
    assert not (user.folder / ".edgewright/hub/hub.db").exists()


def test_hub_does_not_start_beside_another_workspaces_on_one_address(
    user: User, new_user: Callable[[], User]
) -> None:
    other = new_user()
    options = ("--host", user.host, "--https-port", "0", "--registry-port", "0")
    other.fail("hub", "start", *options, says=(f"MQTT on {user.host}:8883",))
    assert other.hub.status().pid is None
    assert user.hub.status().pid is not None


def test_two_starts_at_once_make_one_hub(new_user: Callable[[], User]) -> None:
    user = new_user()
    starts = [
        subprocess.Popen(
            user.command("hub", "start", "--host", user.host, "--json"),
            cwd=user.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [(*start.communicate(timeout=TIMEOUT_S), start.returncode) for start in starts]
    assert [code for *_, code in ended] == [0, 0], ended
    assert len({json.loads(out)["pid"] for out, *_ in ended}) == 1


def test_hub_without_a_workspace_runs_until_it_is_asked_to_end(tmp_path: Path) -> None:
    words = ("hub", "serve", "--data", str(tmp_path / "data"), "--host", free_loopback_address(), "--json")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        busy = subprocess.run(
            User.command("hub", "serve", "--data", str(tmp_path / "none"), "--https-port", port),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (busy.returncode, busy.stdout) == (1, "")
    assert f"error: cannot listen for HTTPS on 127.0.0.1:{port}" in busy.stderr
    assert not (tmp_path / "none").exists()

    hub = subprocess.Popen(User.command(*words), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert hub.stdout is not None
        assert json.loads(hub.stdout.readline())["ready"]
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(20) == 0
    finally:
        hub.kill()
        hub.communicate()


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", ""])
def test_hub_needs_an_address_that_devices_can_dial(
    user: User, new_user: Callable[[], User], host: str
) -> None:
    new_user().fail("hub", "start", "--host", host, says=(repr(host), "edgewright hub serve"))


def test_workspace_without_a_hub_names_the_command_that_starts_one(new_user: Callable[[], User]) -> None:
    user = new_user()
    done = user.fail("device", "list", says=(str(user.folder), "has no hub"))
    assert "next: edgewright hub start" in done.err
    done = user.fail("manifest", "apply", str(user.write("m.json", "{}")), "-d", "d", code=2)
    assert user.run("status", "--json").document == {
        "workspace": str(user.folder),
        "models": 0,
        "images": 0,
        "hub": "stopped",
        "agents": [],
    }


def test_damaged_record_is_named_and_status_shows_the_rest(new_user: Callable[[], User]) -> None:
    user = new_user()
    record = user.folder / ".edgewright/run/hub.json"
    record.write_text("{")
    try:
        done = user.fail("hub", "status", says=(str(record), "damaged"))
        assert f"next: rm {record}" in done.err
        user.fail("down", says=(str(record),))
        document = user.run("status", "--json").document
        assert document["models"] == 0
        assert str(record) in document["hub"]
    finally:
        record.unlink()


def test_down_works_although_the_hubs_data_is_gone(new_user: Callable[[], User]) -> None:
    user = new_user()
    user.type("hub", "start", "--host", user.host)
    shutil.rmtree(user.folder / ".edgewright/hub")
    gone = user.fail("device", "list", says=("is gone", str(user.folder / ".edgewright/hub")))
    assert "next: edgewright hub stop" in gone.err
    assert "is gone" in user.run("status", "--json").document["devices"]
    assert "hub yes" in user.type("down").err
    assert not listens(user.host, 8883)


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # the agent is to outlive what started it
def test_down_stops_agents_and_hub_and_keeps_the_users_folder(new_user: Callable[[], User]) -> None:
    user = new_user()
    user.type("hub", "start", "--host", user.host)
    done = user.run(
        *("device", "create", "d", "--agent-config", "agent", "--edge-hub-host", free_loopback_address()),
        *("--python", sys.executable),
    )
    assert "next: edge-agent --config agent/config.toml run" in done.err
    log = user.folder / "agent.log"
    agent = start_agent(Workspace.open(user.folder), user.folder / "agent/config.toml", log)
    try:
        client = hub_endpoint(Workspace.open(user.folder)).client()
        wait_until(lambda: read_rollout(client, "d").code == EMPTY_DEPLOYMENT, 30, "the agent's first report")
        shown = user.run("status", "--json").document
        assert shown["agents"] == [f"pid {agent.process.pid}"]
        assert shown["devices"] == {"d": "no deployment"}
        assert "stopped: 1 agents, 0 modules, hub yes" in user.run("down").err, log.read_text()
        assert not agent.is_running
    finally:
        if agent.is_running:
            os.kill(agent.process.pid, signal.SIGKILL)
    assert (user.folder / "agent/config.toml").exists()
    assert "stopped: 0 agents, 0 modules, hub was not running" in user.run("down").err


def test_down_ends_an_agent_that_was_started_by_hand(new_user: Callable[[], User]) -> None:
    user = new_user()
    user.type("hub", "start", "--host", user.host)
    user.run(
        *("device", "create", "d", "--agent-config", "agent", "--edge-hub-host", free_loopback_address()),
        *("--python", sys.executable),
    )
    command = [sys.executable, "-m", "edge_agent", "--config", "agent/config.toml", "run"]
    with subprocess.Popen(command, cwd=user.folder, stderr=subprocess.DEVNULL) as agent:
        wait_until((user.folder / "agent/state/control.sock").exists, 30, "the agent")
        assert user.run("status", "--json").document["agents"] == [f"pid {agent.pid}"]
        assert "stopped: 1 agents, 0 modules, hub yes" in user.run("down").err
        assert agent.wait(20) is not None


# Devices.


def test_device_from_create_to_delete(user: User) -> None:
    created = user.run("device", "create", "d-1", "--no-edge", "--tag", "a=1", "--json").document
    assert created == {
        "deviceId": "d-1",
        "status": "enabled",
        "edge": False,
        "connection": "disconnected",
        "tags": {"a": "1"},
    }
    assert "d-1" in user.run("device", "list").out
    user.run("device", "tag", "d-1", "a=", "b=2")
    assert user.run("device", "show", "d-1", "--json").document["tags"] == {"b": "2"}
    assert user.run("device", "twin", "d-1").document["tags"] == {"b": "2"}
    for condition, found in (("tags.b = '2'", ["d-1"]), ("tags.b = '2' AND capabilities.iotEdge = true", [])):
        listed = user.run("device", "list", "--query", condition, "--json").document
        assert [row["deviceId"] for row in listed] == found
    user.fail(
        "device",
        "list",
        "--query",
        "tags.b == 2",
        code=2,
        says=("'--query' at character 9: expected a property",),
    )
    exists = user.fail("device", "create", "d-1", says=("'d-1'", "DeviceAlreadyExists"))
    assert "next: edgewright device show d-1" in exists.err
    user.fail("device", "method", "d-1", "ping", says=("'ping'", "not connected"))
    user.run("device", "delete", "d-1")
    gone = user.fail("device", "show", "d-1", says=("'d-1'", "404"))
    assert "next: edgewright device list" in gone.err


def test_key_shows_only_when_asked_for(user: User) -> None:
    hidden = user.run("device", "connection-string", "edge-1").out.strip()
    assert hidden == f"HostName={user.host};DeviceId=edge-1;SharedAccessKey=***"
    shown = ConnectionString.parse(user.run("device", "connection-string", "edge-1", "--show").out.strip())
    assert (shown.host_name, shown.device_id) == (user.host, "edge-1")
    assert len(shown.shared_access_key.reveal()) > 40


def test_second_device_for_one_folder_is_not_created(user: User) -> None:
    words = ("--agent-config", "agent-2", "--python", "/usr/bin/python3")
    user.run("device", "create", "d-2", *words)
    config = user.folder / "agent-2/config.toml"
    before = config.read_bytes()
    user.fail("device", "create", "d-3", *words, says=("agent-2/config.toml", "there already"))
    user.fail("device", "show", "d-3", says=("404",))
    assert config.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("d 4",), 2, "'d 4'"),
        (("d-4", "--tag", "colour"), 2, "'colour'"),
        (("d-4", "--tag", "a.b=1"), 1, "a.b"),
        (("d-4", "--agent-config", "score.py"), 1, "score.py"),
        (("d-4", "--no-edge", "--agent-config", "x"), 2, "--agent-config"),
    ],
)
def test_bad_device_leaves_none(user: User, words: tuple[str, ...], code: int, says: str) -> None:
    user.fail("device", "create", *words, code=code, says=(says,))
    assert "d-4" not in user.run("device", "list").out


# Deployments.


def test_manifest_from_image_to_desired_properties(user: User, manifest: Path, pushed: ImageRef) -> None:
    assert pushed.registry == user.registry
    assert manifest.stat().st_mode & 0o777 == 0o600
    checked = user.run("manifest", "check", "m.json", "--json").document
    assert [finding["code"] for finding in checked["findings"]] == ["port-fixed"]
    assert checked["desiredBytes"] < checked["limitBytes"] == 32768

    before = desired_version(user)
    applied = user.run("manifest", "apply", "m.json", "--device", "edge-1")
    assert "next: edgewright device show edge-1 --wait 60" in applied.err
    assert desired_version(user) == before + 1
    twin = user.run("device", "twin", "edge-1", "--module", "$edgeAgent")
    desired = twin.document["properties"]["desired"]
    assert desired["modules"]["scorer"]["settings"]["image"] == str(pushed)
    [credential] = desired["runtime"]["settings"]["registryCredentials"].values()
    assert credential["address"] == user.registry
    assert credential["password"] == "***"
    shown = user.run("device", "show", "edge-1", "--json").document
    assert (shown["desiredVersion"], shown["result"], shown["modules"]) == (before + 1, "under way", {})

    late = user.fail(
        "manifest", "apply", "m.json", "-d", "edge-1", "--wait", "0", says=("is its agent running",)
    )
    assert "next: edgewright device show edge-1" in late.err


def test_exported_manifest_is_what_was_applied(user: User, manifest: Path) -> None:
    user.run("device", "create", "edge-9")
    empty = user.fail("manifest", "export", "--device", "edge-9", says=("has no deployment",))
    assert "next: edgewright manifest apply FILE --device edge-9" in empty.err
    user.run("manifest", "apply", "m.json", "--device", "edge-9")
    user.run("manifest", "diff", "m.json", "--device", "edge-9")
    printed = user.run("manifest", "export", "--device", "edge-9")
    [hidden] = printed.document["modulesContent"]["$edgeAgent"]["properties.desired"]["runtime"]["settings"][
        "registryCredentials"
    ].values()
    assert hidden["password"] == "***"
    user.run("manifest", "export", "--device", "edge-9", "--output-file", "exported.json")
    assert (user.folder / "exported.json").stat().st_mode & 0o777 == 0o600
    user.run("manifest", "diff", "m.json", "exported.json")
    document = json.loads(manifest.read_text())
    document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]["version"] = "9"
    user.write("other.json", document)
    found = user.run("manifest", "diff", "other.json", "--device", "edge-9", "--json", code=1).document
    assert [(row["path"], row["after"]) for row in found] == [("modules.scorer.version", "9")]
    user.fail("manifest", "diff", "m.json", "--device", "nobody", code=2, says=("nobody",))


def test_embedded_hub_says_that_it_has_no_automatic_deployments(user: User, manifest: Path) -> None:
    condition = ("--target-condition", "tags.site='north'", "--priority", "10")
    done = user.fail("manifest", "apply", "m.json", *condition, says=("serves no automatic deployments",))
    assert "next: edgewright manifest apply FILE --device DEVICE" in done.err


def test_printed_manifest_hides_passwords_and_is_not_applied_by_mistake(user: User, pushed: ImageRef) -> None:
    printed = user.run("manifest", "generate", "digits:1")
    assert "--output-file FILE" in printed.err
    user.write("printed.json", printed.out)
    before = desired_version(user)
    user.fail("manifest", "apply", "printed.json", "-d", "edge-1", code=2, says=("***", user.registry))
    assert desired_version(user) == before


def bad(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The good manifest, changed by `change`, given `$edgeAgent`'s and `$edgeHub`'s desired properties."""

    def make(good: Path) -> object:
        document = json.loads(good.read_text())
        change({name: twin["properties.desired"] for name, twin in document["modulesContent"].items()})
        return document

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            bad(lambda twins: twins["$edgeAgent"].update(schemaVersion="2.0")),
            ("schemaVersion", "'1.0' or '1.1'", "'2.0'"),
        ),
        (
            bad(lambda twins: twins["$edgeHub"]["routes"].update(mine="FROM nowhere")),
            ("routes.mine", "expected", "nowhere"),
        ),
        (
            bad(
                lambda twins: twins["$edgeHub"]["routes"].update(
                    mine="FROM /messages/modules/gone/* INTO $upstream"
                )
            ),
            ("routes.mine", "gone", "no module"),
        ),
        (
            bad(
                lambda twins: twins["$edgeAgent"]["modules"]["scorer"].update(
                    env={f"V{n}": {"value": "x" * 4000} for n in range(9)}
                )
            ),
            ("$edgeAgent", "32768", "scorer"),
        ),
        (lambda _good: '{"modulesContent": ', ("JSON", "bad.json")),
        (lambda _good: "[]", ("JSON object", "bad.json")),
        (lambda _good: {"modulesContent": {}}, ("$edgeAgent",)),
        (lambda _good: None, ("bad.json", "No such file", "manifest generate")),
    ],
    ids=["schema version", "route", "unknown module", "too large", "cut", "no object", "empty", "missing"],
)
def test_bad_manifest_is_refused_and_changes_nothing(
    user: User, manifest: Path, make: Callable[[Path], object], says: tuple[str, ...]
) -> None:
    (user.folder / "bad.json").unlink(missing_ok=True)
    document = make(manifest)
    if document is not None:
        user.write("bad.json", document)
    before = desired_version(user)
    user.fail(
        "manifest", "apply", "bad.json", "--device", "edge-1", code=1 if document is None else 2, says=says
    )
    assert desired_version(user) == before


def test_deployment_for_a_device_that_is_not_there_is_refused(user: User, manifest: Path) -> None:
    user.fail(
        "manifest", "apply", "m.json", "-d", "nobody", says=("'nobody'", "404", "edgewright device list")
    )


def test_manifest_is_not_written_into_a_folder_that_is_not_there(user: User, pushed: ImageRef) -> None:
    user.fail("manifest", "generate", "digits:1", "--output-file", "none/m.json", code=2, says=("none",))


def test_unknown_setting_is_named(new_user: Callable[[], User]) -> None:
    user = new_user()
    settings = user.folder / "edgewright.toml"
    settings.write_text(settings.read_text() + "colour = 1\n")
    user.fail("hub", "status", code=2, says=("'colour'", str(settings), "known keys"))


# Registry credentials.


def test_given_password_goes_to_its_own_registry_alone(user: User, pushed: ImageRef) -> None:
    others = [f"{name}={name}.example/{name}@{pushed.digest}" for name in ("one", "two")]
    given = ("--registry-username", "me", "--password-stdin", "--output-file", "mixed.json")
    user.run("manifest", "generate", "digits:1", others[0], *given, stdin="my-pass-word\n")
    mixed = DeploymentManifest.parse((user.folder / "mixed.json").read_bytes())
    password = {credential.address: credential.password.reveal() for credential in mixed.credentials}
    assert password.keys() == {user.registry, "one.example"}
    assert password["one.example"] == "my-pass-word"
    assert password[user.registry] != "my-pass-word"

    words = ("manifest", "generate", "digits:1", *others, *given)
    refused = user.fail(*words, code=2, stdin="my-pass-word\n", says=("one.example and two.example",))
    assert "my-pass-word" not in refused.err

    bare = user.run("manifest", "generate", "digits:1", others[0], "--output-file", "bare.json")
    assert "no credentials for one.example" in bare.err
    assert user.registry not in bare.err


def test_credentials_pull_and_do_not_push(user: User, pushed: ImageRef, tmp_path: Path) -> None:
    hidden = user.run("registry", "credentials", "--repository", "digits", "--json").document
    assert hidden["password"] == "***"
    made = user.run("registry", "credentials", user.registry, "--days", "1", "--show", "--json").document
    assert (made["address"], made["repositories"]) == (user.registry, ["digits"])

    reader = BasicCredentials(made["username"], Secret(made["password"]))
    with RegistryClient(user.registry, credentials=reader) as client:
        assert client.pull_image(pushed, AMD64, ContentStore(tmp_path / "good")).manifest

    words = (
        "image",
        "push",
        "digits:1",
        user.registry,
        "--repository",
        "digits",
        "--username",
        made["username"],
    )
    refused = user.fail(*words, "--password-stdin", stdin=made["password"], says=(user.registry, "digits"))
    assert made["password"] not in refused.err
    refused = user.fail("registry", "credentials", "other.example", says=("other.example", "registry.logins"))
    assert "--source docker" in refused.err


def test_credentials_come_out_for_whoever_pulls_and_are_taken_back(user: User, pushed: ImageRef) -> None:
    masked = user.run("registry", "credentials", "-o", "kubernetes")
    assert "kubernetes.io/dockerconfigjson" in masked.out
    assert "password: '***'" not in masked.out
    user.run("registry", "credentials", "-o", "aci", "--output-file", "aci.json")
    file = user.folder / "aci.json"
    assert file.stat().st_mode & 0o777 == 0o600
    made = json.loads(file.read_text())
    assert (made["server"], made.keys()) == (user.registry, {"server", "username", "password"})

    listed = user.run("registry", "list", "--json").document
    [mine] = [each for each in listed if each["username"] == made["username"]]
    assert (mine["repositories"], mine["daysLeft"]) == (["digits"], 89)
    user.run("registry", "revoke", made["username"])
    listed = user.run("registry", "list", "--json").document
    assert made["username"] not in {each["username"] for each in listed}
    user.fail("registry", "revoke", made["username"], says=(made["username"],))
    user.fail("registry", "revoke", "x", "other.example", says=("other.example", "not made here"))


def test_wrong_password_is_refused_on_push_and_pull(user: User, pushed: ImageRef, tmp_path: Path) -> None:
    location = user.run("image", "show", "digits:1", "--json").document["imageLocation"]
    words = ("image", "push", "digits:1", user.registry, "--repository", "other")
    refused = user.fail(
        *words, "--username", "iothubowner", "--password-stdin", stdin="wr0ng-pass\n", says=(user.registry,)
    )
    assert "wr0ng-pass" not in refused.err
    assert user.run("image", "show", "digits:1", "--json").document["imageLocation"] == location

    stranger = BasicCredentials("edgewright-0", Secret("wr0ng-pass"))
    store = ContentStore(tmp_path / "store")
    with (
        RegistryClient(user.registry, credentials=stranger) as client,
        pytest.raises(RegistryAuthError, match=user.registry) as caught,
    ):
        client.pull_image(pushed, AMD64, store)
    assert "wr0ng-pass" not in str(caught.value)
    assert not store.has(pushed.digest)  # type: ignore[arg-type]


# Messages.


@pytest.mark.filterwarnings("ignore")  # Microsoft's device SDK
def test_monitor_prints_what_arrives_and_says_what_did_not(user: User) -> None:
    from azure.iot.device import IoTHubDeviceClient, Message

    user.run("device", "create", "sender", "--no-edge")
    text = user.run("device", "connection-string", "sender", "--show").out.strip()
    ca = user.hub.ca_file.read_text()
    sender = IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=ca)
    monitor = subprocess.Popen(
        user.command("hub", "monitor", "--device", "sender", "--count", "2", "--timeout", "50", "--json"),
        cwd=user.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        sender.connect()
        wait_until(lambda: has_socket(monitor.pid), 20, "the monitor's connection")
        # The monitor begins at the end of the log, which it has read by its second connection at the latest.
        deadline = time.monotonic() + 30
        while monitor.poll() is None and time.monotonic() < deadline:
            message = Message('{"a": 1}')
            message.custom_properties["kind"] = "test"
            sender.send_message(message)
            time.sleep(0.1)
        out, err = monitor.communicate(timeout=20)
    finally:
        sender.shutdown()
        monitor.kill()
        monitor.communicate()
    assert (monitor.returncode, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 2
    assert (rows[0]["deviceId"], rows[0]["body"], rows[0]["properties"]) == (
        "sender",
        {"a": 1},
        {"kind": "test"},
    )

    line = user.run("hub", "monitor", "--from", str(rows[0]["offset"]), "--count", "1").out
    assert line.startswith(f"{rows[0]['offset']} ")
    assert line.endswith('sender kind=test {"a": 1}\n')

    none = user.run("hub", "monitor", "--device", "edge-1", "--count", "1", "--timeout", "0.2", code=1)
    assert (none.out, none.err) == ("", "0 of 1 messages arrived in 0.2 s\n")
    assert user.run("hub", "monitor", "--device", "edge-1", "--timeout", "0").out == ""


def test_monitor_is_interrupted_without_a_trace(user: User) -> None:
    monitor = subprocess.Popen(
        user.command("hub", "monitor"),
        cwd=user.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: has_socket(monitor.pid), 20, "the monitor's connection")
        time.sleep(0.3)
        monitor.send_signal(signal.SIGINT)
        out, err = monitor.communicate(timeout=20)
    finally:
        monitor.kill()
        monitor.communicate()
    assert (monitor.returncode, out, err) == (130, "", "interrupted\n")


def has_socket(pid: int) -> bool:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return any(link.startswith("socket:") for link in links)


# Another hub, named by the environment.


def test_hub_of_the_environment_is_used_and_its_mistakes_are_named(user: User) -> None:
    variable = "EDGEWRIGHT_HUB_CONNECTION_STRING"
    own = user.hub.connection_string_file.read_text().strip()
    ca_file = {"EDGEWRIGHT_HUB_CA_FILE": str(user.hub.ca_file)}
    assert "edge-1" in user.run("device", "list", **{variable: own}, **ca_file).out
    user.fail("device", "list", says=("cannot be trusted", user.host), **{variable: own})
    away = own.replace(":8443;", ":1;")
    down = user.fail(
        "device", "list", says=(f"{user.host}:1 cannot be reached",), **{variable: away}, **ca_file
    )
    assert "next: edgewright hub status" in down.err
    assert "another hub" in user.run("hub", "status", **{variable: own}).err
    user.fail("device", "list", code=2, says=(variable, "HostName"), **{variable: "SharedAccessKey=c2VjcmV0"})
    user.fail("hub", "monitor", says=(variable,), **{variable: own}, **ca_file)
    user.fail(
        "registry", "credentials", "digits", says=("not the embedded one",), **{variable: own}, **ca_file
    )
