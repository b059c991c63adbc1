"""`edgewright manifest` as typed: flags for one module or all, templates, layers, differences, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts_manifests import DIGEST, PASSWORD, complete
from typer.testing import CliRunner, Result

from edge_contracts.layers import Layer
from edge_contracts.manifest import DeploymentManifest
from publisher.cli.main import app
from publisher.workspace import Workspace

Run = Callable[..., Result]
SCORER = f"scorer=shop.example/digits@{DIGEST}"
FILTER = f"filter=shop.example/filter@{DIGEST}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    Workspace.init(tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")

    def call(*words: str, code: int = 0) -> Result:
        done = CliRunner().invoke(app, ["manifest", *words])
        assert done.exit_code == code, done.output
        return done

    return call


def written(name: str = "m.json") -> DeploymentManifest:
    return DeploymentManifest.parse(Path(name).read_bytes())


def write(name: str, document: object) -> str:
    Path(name).write_text(document if isinstance(document, str) else json.dumps(document))
    return name


def test_flags_are_for_every_module_or_for_the_one_they_name(run: Run) -> None:
    write("twin.json", {"threshold": 0.5})
    write("options.json", {"HostConfig": {"LogConfig": {"Type": "local"}}})
    run(
        *("generate", SCORER, FILTER, "--output-file", "m.json"),
        *("--env", "SITE=north", "--env", "scorer::LEVEL=a::b"),
        *(
            "--memory",
            "64m",
            "--cpus",
            "filter::0.5",
            "--gpu",
            "scorer::all",
            "--device",
            "scorer::/dev/video0",
        ),
        *(
            "--volume",
            "filter::/srv:/in:ro",
            "--port",
            "scorer::127.0.0.1:8501",
            "--port",
            "scorer::9000:9000/udp",
        ),
        *("--create-options", "scorer::options.json", "--twin", "scorer::twin.json"),
        *("--startup-order", "filter::1", "--startup-order", "scorer::2", "--restart-policy", "on-failure"),
        *("--pull-policy", "filter::never", "--status", "filter::stopped", "--module-version", "1.4"),
        *("--route", "up=FROM /messages/modules/scorer/* INTO $upstream", "--route-priority", "up=0"),
        *("--route-ttl", "up=60", "--message-ttl", "-1", "--edge-hub-image", "mirror.example/hub:1.5"),
    )
    manifest = written()
    scorer, filtering = manifest.modules["scorer"], manifest.modules["filter"]
    assert scorer.env == {"SITE": "north", "LEVEL": "a::b"}
    assert filtering.env == {"SITE": "north"}
    assert scorer.create_options["HostConfig"]["Memory"] == 64 << 20
    assert scorer.create_options["HostConfig"]["LogConfig"] == {"Type": "local"}
    assert set(scorer.create_options["HostConfig"]["PortBindings"]) == {"5001/tcp", "9000/udp"}
    assert set(filtering.create_options["HostConfig"]) == {"Memory", "NanoCpus", "Binds"}
    assert (filtering.startup_order, scorer.startup_order) == (1, 2)
    assert (filtering.status, filtering.image_pull_policy) == ("stopped", "never")
    assert {module.restart_policy for module in manifest.modules.values()} == {"on-failure"}
    assert manifest.module_twins == {"scorer": {"threshold": 0.5}}
    (route,) = manifest.routes
    assert (route.priority, route.ttl_s, manifest.store_and_forward_ttl_s) == (0, 60, -1)
    assert str(manifest.edge_hub.image) == "mirror.example/hub:1.5"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "give one of the two"),
        ((SCORER, "--template", "t.json"), "give one of the two"),
        ((SCORER, "--memory", "other::64m"), "names module 'other', and the modules are scorer"),
        ((SCORER, "--memory", "64m", "--memory", "65m"), "2 times for module 'scorer'"),
        ((SCORER, "--startup-order", "first"), "--startup-order must be a whole number"),
        ((SCORER, "--restart-policy", "on-unhealthy"), "never or on-failure or always"),
        ((SCORER, "--route-priority", "up=1"), "which no --route gives"),
        (
            (
                SCORER,
                "--privileged",
            ),
            "No such option",
        ),
    ],
)
def test_bad_option_is_refused(run: Run, words: tuple[str, ...], part: str) -> None:
    assert part in " ".join(run("generate", *words, code=2).output.split())


def test_template_is_expanded_with_the_env_file_beside_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    document = complete()
    agent = document["modulesContent"]["$edgeAgent"]["properties.desired"]
    agent["runtime"]["settings"]["registryCredentials"]["r1"]["password"] = "${REGISTRY_PASSWORD}"
    agent["modules"]["scorer"]["settings"] = {
        "image": f"registry.example/scorer@{DIGEST}",
        "createOptions": {"HostConfig": {"Memory": 9000000}},
    }
    write("deployment.template.json", document)
    run("generate", "--template", "deployment.template.json", code=1)
    write(".env", "REGISTRY_PASSWORD=from-the-file\n")
    shown = run("generate", "--template", "deployment.template.json").output
    assert "from-the-file" not in shown
    run("generate", "--template", "deployment.template.json", "--output-file", "m.json")
    assert written().credentials[0].password.reveal() == "from-the-file"
    assert Path("m.json").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("REGISTRY_PASSWORD", "from-the-environment")
    run("generate", "--template", "deployment.template.json", "--output-file", "m.json")
    assert written().credentials[0].password.reveal() == "from-the-environment"
    done = run("generate", "--template", write("bad.json", '{"a": "${MODULES.digits}"}'), code=1)
    assert "${MODULES.digits} has no image" in done.output


def test_layer_is_generated_checked_with_its_base_and_previewed(run: Run) -> None:
    write("base.json", complete())
    run("generate", FILTER, "--layered", "--port", "8501", "--output-file", "layer.json")
    Layer.parse(Path("layer.json").read_bytes())
    assert "0 findings" in run("check", "layer.json").output
    merged = run("check", "base.json", "--layer", "layer.json").output
    assert "module 'filter'" not in merged
    assert "fixes port 8501/tcp" in merged
    preview = run("check", "base.json", "--layer", "layer.json", "--preview").output
    assert set(DeploymentManifest.parse(preview).modules) == {"scorer", "filter"}
    assert PASSWORD not in preview
    assert "is a layer" in run("diff", "base.json", "layer.json", code=2).output
    assert "whole manifest" in run("check", "base.json", "--layer", "base.json", code=2).output


def test_check_names_what_is_wrong_and_how_large_it_is(run: Run) -> None:
    document = complete()
    modules = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    modules["scorer"]["startUpOrder"] = 1
    modules["scorer"]["settings"]["createOptions"] = '{"HostConfig":{"Privileged":true}}'
    del modules["scorer"]["settings"]["createOptions01"]
    done = run("check", write("m.json", document), code=1)
    assert "modules.scorer.startUpOrder' is no member of a deployment manifest" in done.output
    assert "gives the module every right on the device" in done.output
    assert "of 32768 bytes" in done.output
    found = json.loads(run("check", "m.json", "--json", code=1).output)
    assert {each["code"] for each in found["findings"]} >= {"member-unknown", "elevated-rights"}


def test_diff_says_by_its_exit_code_whether_two_manifests_are_the_same(run: Run) -> None:
    write("a.json", complete())
    document = complete()
    document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]["version"] = "2.0"
    write("b.json", document)
    assert "no difference" in run("diff", "a.json", "a.json").output
    done = run("diff", "a.json", "b.json", "--json", code=1)
    assert json.loads(done.output) == [
        {"path": "modules.scorer.version", "change": "changed", "before": "1.0", "after": "2.0"}
    ]
    run("diff", "a.json", code=2)
    run("diff", "a.json", "nothing.json", code=2)
    run("diff", "a.json", "--device", "d", code=2)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "give one"),
        (("--device", "d", "--target-condition", "tags.a='b'"), "give one"),
        (("--target-condition", "tags.a='b'"), "needs --priority"),
        (("--target-condition", "tags.a='b'", "--priority", "1", "--wait", "3"), "does not go with --wait"),
        (("--device", "d", "--priority", "1"), "go with --target-condition"),
        (("--target-condition", "tags.a='b'", "--priority", "1", "--id", "Big One"), "--id must be"),
    ],
)
def test_apply_to_nothing_or_to_two_things_is_refused(run: Run, words: tuple[str, ...], part: str) -> None:
    write("m.json", complete())
    assert part in " ".join(run("apply", "m.json", *words, code=2).output.split())
