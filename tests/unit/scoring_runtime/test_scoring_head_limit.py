"""A head or trailers without end: refused while they come, and nobody else is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from scoring_wire import MemoryTransport, Wire, parse_answers, post

PIECE = b"x" * 10_000
CHUNKED = b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def feed(wire: Wire, pieces: Sequence[bytes]) -> MemoryTransport:
    """Until the connection is closed."""

    async def run() -> MemoryTransport:
        transport, protocol = wire.connect()
        for piece in pieces:
            protocol.data_received(piece)
            await asyncio.sleep(0)
            if transport.closed:
                break
        protocol.connection_lost(None)
        return transport

    return asyncio.run(run())


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\nHost: x\r\nx-bomb: ", b"GET /", b"POST /score HTTP/1.1\r\nx"]
)
def test_a_head_without_end_is_answered_and_ended(start: bytes) -> None:
    transport = feed(Wire(), [start] + [PIECE] * 1000)
    (answer,) = parse_answers(transport.written)
    assert (answer.status, answer.body) == (431, b'{"message":"the head exceeds 65536 bytes"}')


def test_many_small_header_lines_are_a_head_too() -> None:
    transport = feed(Wire(), [b"GET / HTTP/1.1\r\nHost: x\r\n"] + [b"x-y: z\r\n" * 500] * 1000)
    assert parse_answers(transport.written)[0].status == 431


def test_trailers_without_end_are_cut() -> None:
    transport = feed(Wire(), [CHUNKED + b"1\r\n1\r\n0\r\n", b"x-bomb: "] + [PIECE] * 1000)
    assert transport.closed and transport.written == b""


def test_a_long_body_in_small_chunks_is_no_head() -> None:
    chunks = [b"1;%b\r\n \r\n" % (b"e" * 30) * 300] * 10  # 110 kB for 3000 bytes
    (answer,) = Wire().exchange([CHUNKED, *chunks, b"1\r\n7\r\n0\r\n\r\n"])
    assert (answer.status, answer.body) == (200, b"7")


def test_many_requests_of_the_general_parser_on_one_connection_are_no_long_head() -> None:
    request = post(b"1", b"x-own: " + b"y" * 2000).replace(b"POST", b"PUT")
    answers = Wire().exchange([request] * 60, 60, patient=True)
    assert {answer.status for answer in answers} == {405}
