"""What is no HTTP request is refused in the contract's form, and in no other request's place."""

from __future__ import annotations

import pytest
from scoring_wire import Answer, Wire, post

from scoring_runtime.wire_refusal import wire_refusal

CHUNKED = b"POST /score HTTP/1.1\r\nHost: x\r\nx-request-id: R\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECTED = "expected an HTTP/1.1 request, found: "


def refused(answer: Answer) -> str:
    """The message of an answer that must be a refusal in the contract's form."""
    assert answer.status in (400, 431)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-ms-run-function-failed"] == "False"
    assert answer.headers["x-request-id"] and answer.headers["x-ms-request-id"]
    return answer.message


@pytest.mark.parametrize(
    ("request_bytes", "found"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "Invalid method encountered"),  # TLS
        (b"BREW /score HTTP/1.1\r\n\r\n", "Invalid method encountered"),
        (b"GET /score HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", "Invalid header"),
        (
            post(b"1").replace(b"Content-Length: 1", b"Content-Length: one"),
            "Invalid character in Content-Length",
        ),
        (
            post(b"1").replace(b"Content-Length: 1", b"Content-Length: -1"),
            "Invalid character in Content-Length",
        ),
        (post(b"1", b"Content-Length: 2"), "Content-Length"),
        (post(b"1", b"Transfer-Encoding: chunked"), "Transfer-Encoding"),
        (CHUNKED + b"zz\r\n", "Invalid character in chunk size"),
        (CHUNKED + b"1\r\n12\r\n", "chunk"),
    ],
)
def test_what_is_no_request_is_refused_with_what_was_found(request_bytes: bytes, found: str) -> None:
    (answer,) = Wire().exchange([request_bytes])
    message = refused(answer)
    assert message.startswith(EXPECTED) and found in message
    assert answer.headers["connection"] == "close"


def test_the_ids_that_were_read_come_back() -> None:
    (answer,) = Wire().exchange([CHUNKED + b"zz\r\n"])
    assert answer.headers["x-request-id"] == answer.headers["x-ms-request-id"] == "R"
    long = CHUNKED.replace(b": R", b": " + b"R" * 101)
    (answer,) = Wire().exchange([long + b"zz\r\n"])
    assert "x-request-id" not in answer.headers


def test_another_requests_ids_do_not() -> None:
    first = post(b"1", b"x-request-id: R", b"x-y: general").replace(b"POST", b"PUT")
    _, answer = Wire().exchange([first, b"\x00\x01"], 2, patient=True)
    assert answer.headers["x-request-id"] != "R"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_requests_before_the_bad_one_are_answered_in_their_places(before: int, fast: bool) -> None:
    good = b"".join(post(b"%d" % number) for number in range(before))
    answers = Wire(fast=fast).exchange([good + b"\x00\x01"])
    assert [answer.body for answer in answers[:before]] == [b"%d" % number for number in range(before)]
    assert [refused(answer).startswith(EXPECTED) for answer in answers[before:]] in ([], [True])
    assert answers[-1].headers["connection"] == "close"


def test_a_bad_body_behind_an_unanswered_request_takes_no_ones_place() -> None:
    general = post(b"1", b"Expect: nothing")
    answers = Wire().exchange([general + CHUNKED + b"zz\r\n"])
    assert all(answer.body == b"1" for answer in answers)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 400),
        ([b"Host: a", b"Host: b"], 400),
        ([b"Host: a"], 200),
        ([b"Host:"], 200),
    ],
)
def test_http_1_1_has_one_host(lines: list[bytes], status: int) -> None:
    head = b"\r\n".join([b"POST /score HTTP/1.1", *lines, b"Content-Length: 1"])
    (answer,) = Wire().exchange([head + b"\r\n\r\n7"])
    assert answer.status == status
    if status == 400:
        assert refused(answer).startswith("expected one Host header in an HTTP/1.1 request, found ")


def test_http_1_0_needs_none() -> None:
    (answer,) = Wire().exchange([b"POST /score HTTP/1.0\r\nContent-Length: 1\r\n\r\n7"])
    assert (answer.status, answer.body) == (200, b"7")


def test_lines_that_every_answer_has_are_on_refusals_too() -> None:
    assert b"\r\nserver: x\r\n" in wire_refusal(400, "no", [], b"server: x\r\n")
