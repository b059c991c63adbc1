"""Execution providers of a bare model: what is asked for, what is here, what really runs nodes.

onnxruntime's own Azure provider is the witness: it is installed with the processor's, registers, and takes no node.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import scoring_models as models
from scoring_server import ScoringServer, run_to_end

from scoring_runtime.errors import ProviderError, SettingsError
from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.providers import installed, sessions_providers, short_name
from scoring_runtime.settings import Settings


def load(folder: Path, providers: Sequence[str], required: Sequence[str] = ()) -> OnnxModel:
    file = models.classifier(folder)
    return OnnxModel.load(
        file, threads=2, count_non_finite=lambda _: None, providers=providers, required=required
    )


def test_names_are_onnxruntimes_without_their_ending() -> None:
    assert short_name("CUDAExecutionProvider") == short_name("cudaexecutionprovider") == short_name("cuda")
    assert {"azure", "cpu"} <= installed().keys()


def test_the_order_is_the_callers_and_the_processor_is_always_last() -> None:
    here = installed()
    assert sessions_providers(["azure"]) == [here["azure"], here["cpu"]]
    assert sessions_providers(["cpu", "azure"]) == [here["cpu"], here["azure"]]
    assert sessions_providers([]) == sessions_providers(["CPUExecutionProvider"]) == [here["cpu"]]


def test_a_name_that_no_onnxruntime_knows_is_refused_with_those_it_knows() -> None:
    with pytest.raises(SettingsError, match=r"knows no provider 'gpu'; expected some of .*cpu, cuda"):
        sessions_providers(["gpu"])


def test_used_is_what_runs_nodes_and_not_what_is_registered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, ["azure", "cpu"])
    assert model.providers == ("cpu",)
    assert model.nodes_by_provider == {"azure": 0, "cpu": 3}
    assert "provider 'azure' takes no node of this model's graph; asked for: azure, cpu" in caplog.text


def test_what_is_not_installed_is_a_warning_unless_it_is_required(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, ["cuda", "cpu"]).providers == ("cpu",)
    assert "provider 'cuda' is not installed" in caplog.text
    with pytest.raises(
        ProviderError, match=r"required provider 'cuda' is not installed; asked for: cuda, cpu;"
    ):
        load(tmp_path, ["cpu"], ["cuda"])


def test_a_required_provider_that_runs_nothing_fails_though_it_is_installed(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="required provider 'azure' takes no node"):
        load(tmp_path, ["azure", "cpu"], ["azure"])
    assert load(tmp_path, ["azure"], ["cpu"]).providers == ("cpu",)


def test_a_graph_without_nodes_is_the_processors(tmp_path: Path) -> None:
    model = models.save(
        tmp_path, [], [models.tensor("x", models.FLOAT, ["N"])], [models.tensor("x", models.FLOAT, ["N"])]
    )
    assert OnnxModel.load(model, threads=1, count_non_finite=lambda _: None).providers == ("cpu",)


@pytest.mark.parametrize("variable", ["EDGEWRIGHT_PROVIDER", "EDGEWRIGHT_REQUIRE_PROVIDER"])
def test_a_script_has_no_providers_of_ours(variable: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"\({variable}\) is for a model without a script, found 'cuda'"):
        Settings.read({variable: "cuda"}, entry_script="score.py", cwd=tmp_path)


def test_an_argument_wins_and_empty_parts_are_nothing(tmp_path: Path) -> None:
    given = {"EDGEWRIGHT_PROVIDER": "tensorrt", "EDGEWRIGHT_REQUIRE_PROVIDER": " CUDA ,"}
    settings = Settings.read(given, model="m.onnx", provider="cuda, cpu", cwd=tmp_path)
    assert (settings.providers, settings.required_providers) == (("cuda", "cpu"), ("cuda",))
    assert Settings.read({}, model="m.onnx", cwd=tmp_path).providers == ("cpu",)


def test_a_server_says_everywhere_what_really_runs_its_model(tmp_path: Path) -> None:
    models.classifier(tmp_path)
    with ScoringServer(tmp_path, "--model", "model.onnx", "--provider", "azure,cpu") as server:
        health = server.get("/")
        assert (health.body, health.headers["x-edgewright-providers"]) == (b"Healthy", "cpu")
        assert server.get("/ready?verbose=1").json()["providers"] == {"cpu": 3}
        assert server.get("/v2/models/model").json()["parameters"] == {"providers": "cpu"}
        assert (
            'edgewright_provider_nodes{model="model",provider="cpu"} 3'
            in server.get("/metrics").body.decode()
        )
        assert "providers: cpu (3 nodes)" in server.log


def test_a_start_without_the_required_provider_fails_and_says_what_is_installed(tmp_path: Path) -> None:
    models.classifier(tmp_path)
    done = run_to_end(tmp_path, "--model", "model.onnx", EDGEWRIGHT_REQUIRE_PROVIDER="cuda")
    assert done.returncode == 3
    assert done.stderr.startswith(
        "scoring_runtime: required provider 'cuda' is not installed; asked for: cuda, cpu;"
    )
    assert "azure, cpu; used: cpu" in done.stderr
