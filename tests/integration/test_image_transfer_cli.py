"""`edgewright image push|show|pull` as they are typed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from publisher_workspaces import make_runtime_wheels, make_workspace, write_score
from registry_servers import PASSWORD, USER, debian_registry
from typer.testing import CliRunner

from edge_containers.image_model import Platform
from publisher import Model
from publisher.build_request import BuildRequest
from publisher.cli.main import app
from publisher.environments import Environment
from publisher.images import ContainerImage


def test_pushed_to_two_places_shown_pulled_and_refused(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    workspace = make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))
    (tmp_path / "m.pkl").write_bytes(b"model")
    model = Model.register(workspace, tmp_path / "m.pkl", "m")
    script, platforms = write_score(tmp_path), (Platform.parse("linux/amd64"),)
    request = BuildRequest("m", (model,), script, Environment((), "3.11"), platforms=platforms)
    image = ContainerImage.from_request(workspace, request)
    with debian_registry(tmp_path / "registry") as registry:
        login = f'logins = ["{registry.address} {USER} env:THE_PASSWORD"]'
        for folder in (workspace.root, make_workspace(tmp_path / "other", tmp_path).root):
            with (folder / "edgewright.toml").open("a") as file:
                file.write(f"\n[registry]\n{login}\n")

        def run(folder: Path, *words: str, code: int = 0) -> str:
            with contextlib.chdir(folder):
                result = CliRunner().invoke(app, list(words), env={"THE_PASSWORD": PASSWORD})
            assert result.exit_code == code, result.output
            return result.stdout if code == 0 else result.stderr

        places = ["-t", f"{registry.address}/team/m:live", "-t", "team/m"]
        pushed = json.loads(run(workspace.root, "image", "push", "m:1", registry.address, *places, "--json"))
        assert [each["tagged"] for each in pushed["pushed"]] == [
            f"{registry.address}/team/m:live",
            f"{registry.address}/team/m:1",
        ]
        shown = json.loads(run(workspace.root, "image", "show", "m", "--remote", "--json"))
        assert {each["state"] for each in shown["remoteTags"]} == {"same"}
        sbom = json.loads(run(workspace.root, "image", "show", "m", "--sbom"))
        assert sbom["bomFormat"] == "CycloneDX"
        other = tmp_path / "other"
        assert run(other, "image", "pull", f"{registry.address}/team/m:live") == f"m:1 {image.digest}\n"
        said = run(other, "image", "push", "m", f"{registry.address}", "--repository", "a", "-t", "b", code=2)
        assert "not both" in said
        assert "no manifest gone" in run(other, "image", "pull", f"{registry.address}/team/m:gone", code=1)
