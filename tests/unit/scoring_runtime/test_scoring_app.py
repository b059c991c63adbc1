"""The HTTP contract around any scorer: status codes, headers, limits (facts: Azure ML's scoring server)."""

from __future__ import annotations

from typing import Any

import pytest
from scoring_asgi import AppUnderTest

from scoring_runtime.readiness import Phase

JSON = {"content-type": "application/json"}


def fail(value: Any) -> Any:
    raise RuntimeError("the secret detail")


def test_health_answers_the_contracts_text() -> None:
    reply = AppUnderTest().call("GET", "/")
    assert (reply.status, reply.body) == (200, b"Healthy")
    assert AppUnderTest().call("HEAD", "/").status == 200


def test_score_returns_the_result_and_how_long_run_took() -> None:
    reply = AppUnderTest(lambda value: {"twice": value * 2}).call("POST", "/score", b"[1]", JSON)
    assert (reply.status, reply.json()) == (200, {"twice": [1, 1]})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-ms-run-function-failed"] == "False"
    assert float(reply.headers["x-ms-run-fn-exec-ms"]) >= 0


def test_a_failing_run_tells_the_client_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    reply = AppUnderTest(fail).call("POST", "/score", b"1", {**JSON, "x-request-id": "abc-1"})
    assert reply.status == 500
    assert b"secret" not in reply.body and "log" in reply.message
    assert reply.headers["x-ms-run-function-failed"] == "True"
    assert "abc-1" in caplog.text and "RuntimeError: the secret detail" in caplog.text


def test_a_result_json_cannot_hold_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    reply = AppUnderTest(lambda value: {1, 2}).call("POST", "/score", b"1", JSON)
    assert (reply.status, reply.headers["x-ms-run-function-failed"]) == (500, "True")
    assert "set" in caplog.text


def test_bad_json_is_a_400_that_says_where() -> None:
    reply = AppUnderTest().call("POST", "/score", b'{"a": ', JSON)
    assert reply.status == 400
    assert reply.message.startswith("the body is not JSON:")
    assert reply.headers["x-ms-run-function-failed"] == "False"


def test_a_query_is_read_as_the_object_it_spells() -> None:
    reply = AppUnderTest().call("GET", "/score?a=1&b=[1,2]&c=x&d=null&c=y")
    assert reply.json() == {"a": 1, "b": [1, 2], "c": ["x", "y"], "d": None}


def test_options_is_answered_without_scoring() -> None:
    app = AppUnderTest(fail)
    assert app.call("OPTIONS", "/score").status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD"])
def test_other_methods_are_refused_in_json(method: str) -> None:
    reply = AppUnderTest().call(method, "/score")
    assert (reply.status, reply.headers["content-type"]) == (405, "application/json")
    assert reply.message == f"{method} is no method of '/score'; expected GET, OPTIONS, POST"


@pytest.mark.parametrize("path", ["/score/", "/nothing"])
def test_unknown_paths_are_404_in_json(path: str) -> None:
    reply = AppUnderTest().call("POST", path)
    assert reply.status == 404
    assert reply.message.startswith(f"there is no route '{path}'; expected one of /, /live, /ready, /score,")


def test_a_body_over_the_limit_is_refused_by_its_declared_length() -> None:
    reply = AppUnderTest(body_limit_bytes=10).call("POST", "/score", b"1", {**JSON, "content-length": "11"})
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert reply.message == "the body exceeds the limit of 10 bytes"


def test_a_body_over_the_limit_is_refused_while_it_arrives() -> None:
    assert AppUnderTest(body_limit_bytes=10).call("POST", "/score", b"1" * 11, JSON, chunk=4).status == 413


def test_a_body_in_pieces_is_put_together() -> None:
    assert AppUnderTest().call("POST", "/score", b"[1, 2, 3]", JSON, chunk=2).json() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x-request-id": "r"}, {"x-request-id": "r", "x-ms-request-id": "r"}),
        (
            {"x-request-id": "r", "x-ms-request-id": "l"},
            {"x-ms-request-id": "l", "x-ms-client-request-id": "l"},
        ),
        (
            {"x-request-id": "r", "x-ms-client-request-id": "c"},
            {"x-ms-request-id": "c", "x-ms-client-request-id": "c"},
        ),
        (
            {"x-ms-request-id": "l", "x-ms-client-request-id": "c"},
            {"x-ms-request-id": "l", "x-ms-client-request-id": "c"},
        ),
        ({"traceid": "t"}, {"traceid": "t"}),
    ],
)
def test_ids_come_back(given: dict[str, str], expected: dict[str, str]) -> None:
    headers = AppUnderTest().call("POST", "/score", b"1", {**JSON, **given}).headers
    assert {name: headers[name] for name in expected} == expected
    assert ("x-ms-client-request-id" in headers) == any("ms-" in name for name in given)


def test_a_request_without_id_gets_one_of_its_own() -> None:
    app = AppUnderTest()
    first, second = (app.call("GET", "/").headers["x-request-id"] for _ in range(2))
    assert first != second and len(first) == 32


@pytest.mark.parametrize("name", ["x-request-id", "x-ms-request-id", "x-ms-client-request-id"])
def test_a_long_id_is_refused(name: str) -> None:
    assert AppUnderTest().call("GET", "/", headers={name: "x" * 100}).status == 200
    reply = AppUnderTest().call("GET", "/", headers={name: "x" * 101})
    assert reply.status == 431
    assert name in reply.message and reply.message.endswith("must not exceed 100 characters")
    assert "x-ms-request-id" not in reply.headers and "x-ms-client-request-id" not in reply.headers
    assert ("x-request-id" in reply.headers) is (name != "x-request-id")


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_comes_back_and_is_in_the_log_of_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    reply = AppUnderTest(fail).call("POST", "/score", b"1", {**JSON, "traceparent": TRACE})
    assert (reply.status, reply.headers["traceparent"]) == (500, TRACE)
    assert f"traceparent {TRACE}: run() raised" in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-0-0-01",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
    ],
)
def test_a_malformed_traceparent_does_not_come_back(value: str) -> None:
    reply = AppUnderTest().call("POST", "/score", b"1", {**JSON, "traceparent": value})
    assert "traceparent" not in reply.headers


@pytest.mark.parametrize(
    ("phase", "status"), [(Phase.STARTING, 503), (Phase.READY, 200), (Phase.STOPPING, 503)]
)
def test_ready_says_when_it_is_not(phase: Phase, status: int) -> None:
    app = AppUnderTest()
    app.readiness.phase = phase
    assert app.call("GET", "/ready").status == status
    report = app.call("GET", "/ready?verbose=1")
    assert (report.status, report.json()["phase"]) == (status, phase.value)
    assert app.call("GET", "/live").status == 200


def test_details_of_a_part_show_in_the_verbose_report_alone() -> None:
    app = AppUnderTest()
    app.readiness.details["messages"] = lambda: {"state": "waiting"}
    assert app.call("GET", "/ready?verbose=1").json()["messages"] == {"state": "waiting"}
    assert app.call("GET", "/ready").body == b"Ready"


def test_what_arrives_while_stopping_is_still_scored() -> None:
    app = AppUnderTest()
    app.readiness.phase = Phase.STOPPING
    assert app.call("POST", "/score", b"1", JSON).status == 200


@pytest.mark.parametrize(
    ("query", "version"),
    [("", "2.0"), ("?version=2", "2.0"), ("?version=3", "3.0.3"), ("?version=3.1", "3.1.0")],
)
def test_swagger_comes_in_the_version_asked_for(query: str, version: str) -> None:
    document = AppUnderTest().call("GET", f"/swagger.json{query}").json()
    assert version in (document.get("swagger"), document.get("openapi"))


def test_an_unknown_swagger_version_lists_the_known_ones() -> None:
    reply = AppUnderTest().call("GET", "/swagger.json?version=4")
    assert reply.status == 404
    assert reply.message == "swagger version '4' does not exist; expected one of 2, 2.0, 3, 3.0, 3.1"


def test_metrics_count_requests_failures_and_seconds() -> None:
    app = AppUnderTest(lambda value: value if value else fail(value))
    for body in (b"1", b"1", b"0", b"{"):
        app.call("POST", "/score", body, JSON)
    app.metrics.non_finite(3)
    lines = app.call("GET", "/metrics").body.decode().splitlines()
    assert 'edgewright_requests_total{model="double:1",source="http",outcome="ok"} 2' in lines
    assert 'edgewright_requests_total{model="double:1",source="http",outcome="run_failed"} 1' in lines
    assert 'edgewright_request_errors_total{model="double:1"} 2' in lines
    assert 'edgewright_run_seconds_bucket{model="double:1",le="+Inf"} 3' in lines
    assert 'edgewright_non_finite_values_total{model="double:1"} 3' in lines
