"""Small parts: processor budget, worker pool, swagger documents, model paths, metrics text."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from scoring_runtime.cpu_budget import available_cpus, parse_cfs, parse_cpu_max
from scoring_runtime.data_plane import Outcome
from scoring_runtime.errors import BusyError
from scoring_runtime.metrics import NUMBERS, OUTCOMES, Metrics
from scoring_runtime.schema import Service, Signature, SwaggerDocuments, UnknownSwaggerVersionError
from scoring_runtime.seat import COUNTERS
from scoring_runtime.shims.azureml.core.model import Model, ModelNotFoundException
from scoring_runtime.workers import WorkerPool


@pytest.mark.parametrize(
    ("text", "cpus"), [("150000 100000\n", 1.5), ("max 100000", None), ("", None), ("1 0", None)]
)
def test_cpu_max_is_quota_over_period(text: str, cpus: float | None) -> None:
    assert parse_cpu_max(text) == cpus


def test_a_v1_quota_of_minus_one_is_none() -> None:
    assert parse_cfs("-1", "100000") is None
    assert parse_cfs("50000", "100000") == 0.5


def test_the_tightest_quota_of_all_parent_groups_counts(tmp_path: Path) -> None:
    inner = tmp_path / "fs/outer/inner"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/outer/inner\n")
    (inner / "cpu.max").write_text("max 100000")
    (inner.parent / "cpu.max").write_text("50000 100000")
    assert available_cpus(tmp_path / "fs", tmp_path / "own") == 1


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path, tmp_path / "absent") == len(os.sched_getaffinity(0))


def test_a_full_pool_refuses_and_goes_on_when_there_is_room() -> None:
    pool = WorkerPool(1, max_waiting=1)
    started, gate = threading.Event(), threading.Event()
    running = pool.submit(lambda: (started.set(), gate.wait(5)))
    assert started.wait(5)
    waiting = pool.submit(lambda: "second")
    with pytest.raises(BusyError, match="1 requests are waiting"):
        pool.submit(lambda: None)
    assert pool.is_busy
    gate.set()
    assert waiting.result(5) == "second" and running.done()


def test_an_error_in_a_worker_reaches_the_caller_and_the_thread_lives_on() -> None:
    pool = WorkerPool(1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    assert pool.submit(lambda: 2).result(5) == 2


def test_swagger_carries_the_services_name_and_prefix() -> None:
    documents = SwaggerDocuments(Signature(), Service("digits", "7", "/api/v1/service/digits"), None)
    document = documents.get("2")
    assert (document["info"]["title"], document["info"]["version"]) == ("digits", "7")
    assert "/api/v1/service/digits/score" in document["paths"]


def test_every_reference_in_a_swagger_document_leads_somewhere() -> None:
    documents = SwaggerDocuments(
        Signature(media_types=("application/json", "application/octet-stream")), Service(), None
    )
    two, three = documents.get("2"), documents.get("3")
    body = two["paths"]["/score"]["post"]["parameters"][0]["schema"]["$ref"]
    assert body.removeprefix("#/definitions/") in two["definitions"]
    content = three["paths"]["/score"]["post"]["requestBody"]["content"]
    assert (
        content["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
        in three["components"]["schemas"]
    )
    assert content["application/octet-stream"]["schema"] == {"type": "string", "format": "binary"}


def test_a_swagger_file_beside_the_script_wins(tmp_path: Path) -> None:
    (tmp_path / "swagger3.json").write_text('{"openapi": "3.0.0", "mine": true}')
    documents = SwaggerDocuments(Signature(), Service(), tmp_path)
    assert documents.get("3.0")["mine"]
    assert documents.get(None)["swagger"] == "2.0"


def test_a_version_that_cannot_describe_the_model_is_refused() -> None:
    documents = SwaggerDocuments(Signature(versions=("3.0", "3.1")), Service(), None)
    with pytest.raises(
        UnknownSwaggerVersionError,
        match=r"swagger 2\.0 cannot describe this model; expected one of 3, 3\.0, 3\.1",
    ):
        documents.get(None)


def test_metrics_know_every_outcome_and_fit_into_a_workers_row() -> None:
    assert set(OUTCOMES) == {outcome.value for outcome in Outcome}
    assert NUMBERS <= COUNTERS


def test_labels_of_metrics_are_escaped() -> None:
    assert 'model="a\\"b\\\\c\\nd"' in Metrics('a"b\\c\nd').text()


@pytest.fixture
def models_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for version in ("1", "2", "10"):
        folder = tmp_path / "azureml-models/digits" / version
        folder.mkdir(parents=True)
        (folder / "model.pkl").touch()
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path / "azureml-models/digits/2"))
    return tmp_path / "azureml-models"


def test_get_model_path_takes_the_highest_version_or_the_one_asked_for(models_root: Path) -> None:
    assert Model.get_model_path("digits") == str(models_root / "digits/10/model.pkl")
    assert Model.get_model_path("digits", version=2) == str(models_root / "digits/2/model.pkl")


def test_get_model_path_of_several_models_looks_in_their_folder(
    models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models_root / "letters" / "3" / "net").mkdir(parents=True)
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(models_root))
    assert Model.get_model_path("letters") == str(models_root / "letters/3/net")
    assert Model.get_model_path("digits", 2) == str(models_root / "digits/2/model.pkl")


def test_get_model_path_names_a_model_that_is_not_there(models_root: Path) -> None:
    with pytest.raises(
        ModelNotFoundException, match=f"model letters is not in this image; looked in .*{models_root}"
    ):
        Model.get_model_path("letters")
    with pytest.raises(ModelNotFoundException, match="digits version 3"):
        Model.get_model_path("digits", 3)
    with pytest.raises(ValueError, match="version should be an int"):
        Model.get_model_path("digits", "2")  # type: ignore[arg-type]
