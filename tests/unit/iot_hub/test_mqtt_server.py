"""The server's session rules, with our own client over real TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from asyncio import sslproto
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from mqtt_client import MqttTestClient
from mqtt_harness import RecordingHandler, running_server

from iot_hub.mqtt_codec import ConnackCode, Connect, Pingresp, Publish, Subscribe, Will, encode
from iot_hub.mqtt_server import (
    IN_FLIGHT,
    QUEUE_BYTES,
    TLS_BUFFER_BYTES,
    Connection,
    DisconnectReason,
    Identity,
    MqttDeliveryError,
    MqttListenError,
    MqttServer,
    server_ssl_context,
)
from iot_hub.pki import PkiFiles, ensure_pki

SWEEP_S = 0.02


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> PkiFiles:
    return ensure_pki(tmp_path_factory.mktemp("pki"), ["127.0.0.9"])


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


def client_of(server: MqttServer, pki: PkiFiles, **options: Any) -> MqttTestClient:
    return MqttTestClient(server.host, server.port, pki.ca_cert, **options)


def test_a_client_connects_subscribes_publishes_and_receives(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            assert await client.connect("dev/mod") is ConnackCode.ACCEPTED
            assert await client.subscribe("in/#", "secret/#") == (1, 128)
            assert await client.subscribe("other", qos=2) == (1,)
            await client.publish("out", b"body")
            assert handler.messages == [Publish("out", b"body", 1, 3)]
            connection = server.connection("dev/mod")
            assert connection is not None
            assert connection.identity == Identity("dev", "mod")
            assert handler.infos[0].peer_address == "127.0.0.1"
            connection.send("in/a", b"0")
            await connection.publish_acked("in/b", b"1")
            assert [(await client.expect("in/")).payload for _ in range(2)] == [b"0", b"1"]
            assert server.connected_identities() == (Identity("dev", "mod"),)
            await client.disconnect()
            await handler.until_event("disconnected", "dev/mod", DisconnectReason.CLIENT)
            assert server.connection("dev/mod") is None

    run(test())


def test_a_client_that_speaks_only_tls_1_2_is_served_on_another_loopback_address(pki: PkiFiles) -> None:
    async def test() -> None:
        async with (
            running_server(RecordingHandler(), pki, host="127.0.0.9") as server,
            client_of(server, pki, tls12=True) as client,
        ):
            assert await client.connect("d") is ConnackCode.ACCEPTED
            await client.ping()

    run(test())


def test_bad_credentials_are_told_and_closed(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            assert await client.connect("d", username="u", password="wrong") is ConnackCode.BAD_CREDENTIALS
            await client.expect_closed()
            assert handler.events == []

    run(test())


def test_an_empty_client_id_is_refused(pki: PkiFiles) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki) as server, client_of(server, pki) as client:
            assert await client.connect("", clean_session=True) is ConnackCode.IDENTIFIER_REJECTED
            await client.expect_closed()

    run(test())


def test_another_protocol_version_gets_its_return_code(pki: PkiFiles) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki) as server, client_of(server, pki) as client:
            client.write(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x01a")
            assert (await client.connect("d")) is ConnackCode.UNACCEPTABLE_PROTOCOL_VERSION
            await client.expect_closed()

    run(test())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(Connect("again")), DisconnectReason.PROTOCOL),
        (encode(Pingresp()), DisconnectReason.PROTOCOL),
        (b"\x34\x05\x00\x01a\x00\x01", DisconnectReason.PROTOCOL),
        (b"\x00\x00", DisconnectReason.PROTOCOL),
        (encode(Publish("reject", b"", 1, 1)), DisconnectReason.REJECTED),
        (encode(Subscribe(1, (("reject", 1),))), DisconnectReason.REJECTED),
        (encode(Publish("crash", b"", 1, 1)), DisconnectReason.HANDLER_FAILED),
    ],
)
def test_what_must_not_be_sent_closes_that_connection_alone(
    pki: PkiFiles, data: bytes, reason: DisconnectReason
) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki) as server,
            client_of(server, pki) as client,
            client_of(server, pki) as other,
        ):
            await client.connect("d")
            await other.connect("other")
            client.write(encode(Publish("before", b"")) + data + encode(Publish("after", b"")))
            await client.expect_closed()
            await handler.until_event("disconnected", "d", reason)
            assert [message.topic for message in handler.messages] == ["before"]
            await other.ping()

    run(test())


def test_the_first_packet_must_be_connect(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            client.write(Publish("t", b""))
            await client.expect_closed()
            assert handler.events == []

    run(test())


def test_subscriptions_outlive_the_connection_of_a_persistent_session(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server:
            async with client_of(server, pki) as client:
                await client.connect("d")
                assert client.session_present is False
                await client.subscribe("in/#", "gone")
                await client.unsubscribe("gone")
                await client.disconnect()
            assert server.is_subscribed("d", "in/x")
            assert not server.is_subscribed("d", "gone")
            async with client_of(server, pki) as client:
                await client.connect("d")
                assert client.session_present is True
                connection = server.connection("d")
                assert connection is not None
                assert connection.is_subscribed("in/x")
                await client.disconnect()
            async with client_of(server, pki) as client:
                await client.connect("d", clean_session=True)
                assert client.session_present is False
                assert not server.is_subscribed("d", "in/x")

    run(test())


def test_subscriptions_kept_by_the_hub_are_loaded_once(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        handler.kept = {"d": {"in/#"}}
        async with running_server(handler, pki) as server:
            async with client_of(server, pki) as client:
                await client.connect("d")
                assert client.session_present is True
                assert server.is_subscribed("d", "in/x")
                await client.unsubscribe("in/#")
            async with client_of(server, pki) as client:
                await client.connect("d")
                assert not server.is_subscribed("d", "in/x")
            server.forget("d")
            async with client_of(server, pki) as client:
                await client.connect("d")
                assert server.is_subscribed("d", "in/x")

    run(test())


def test_subscriptions_of_an_identity_are_bounded(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            codes = await client.subscribe(*(f"f/{n}" for n in range(51)))
            assert codes == (*[1] * 50, 128)
            assert await client.subscribe("f/0") == (1,)

    run(test())


def test_a_new_connection_of_an_identity_ends_the_old_one_first(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki) as server,
            client_of(server, pki) as old,
            client_of(server, pki) as new,
        ):
            await old.connect("d")
            old.write(Publish("last words", b""))
            await old.ping()
            assert await new.connect("d") is ConnackCode.ACCEPTED
            await old.expect_closed()
            await new.ping()
            await handler.until(lambda: handler.events.count(("connected", "d")) == 2)
            assert handler.events == [
                ("connected", "d"),
                ("publish", "d", "last words"),
                ("disconnected", "d", DisconnectReason.TAKEN_OVER),
                ("connected", "d"),
            ]

    run(test())


def test_a_handler_that_hangs_does_not_keep_a_new_connection_out(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki, drain_timeout_s=0.05) as server,
            client_of(server, pki) as old,
            client_of(server, pki) as new,
        ):
            await old.connect("d")
            old.write(Publish("hold", b""))
            await old.ping()
            assert await new.connect("d") is ConnackCode.ACCEPTED
            await new.publish("t")
            assert handler.events == [
                ("connected", "d"),
                ("disconnected", "d", DisconnectReason.TAKEN_OVER),
                ("connected", "d"),
                ("publish", "d", "t"),
            ]

    run(test())


def test_many_connections_of_one_identity_at_once_leave_exactly_one(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server:
            clients = [client_of(server, pki) for _ in range(5)]
            for client in clients:
                await client.__aenter__()
            await asyncio.gather(*(client.connect("d") for client in clients), return_exceptions=True)
            await handler.until(lambda: len(handler.events) >= 1)
            assert len(server.connected_identities()) == 1
            for client in clients:
                await client.__aexit__(None, None, None)
            await handler.until(lambda: not server.connected_identities())
            kinds = [event[0] for event in handler.events]
            assert kinds == ["connected", "disconnected"] * (len(kinds) // 2)

    run(test())


def test_publishes_are_handled_in_order_and_acknowledged_after_the_handler(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            held = asyncio.create_task(client.publish("hold"))
            await asyncio.sleep(0)  # lets it write first
            for number in range(10):
                client.write(Publish(f"t/{number}", b""))
            await asyncio.sleep(0.1)
            assert not held.done()
            assert handler.messages == []
            handler.gate.set()
            await held
            await client.publish("end")
            topics = [message.topic for message in handler.messages]
            assert topics == ["hold", *(f"t/{number}" for number in range(10)), "end"]

    run(test())


def test_pings_are_answered_while_the_handler_is_slow(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            client.write(Publish("hold", b""))
            await client.ping()
            handler.gate.set()

    run(test())


def test_reading_pauses_when_too_much_waits_and_nothing_is_lost(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d", keep_alive_s=1)
            client.write(Publish("hold", b""))
            sent = 400
            for number in range(sent):
                client.write(Publish("t", number.to_bytes(2, "big") + bytes(20_000)))
            await asyncio.sleep(0.3)
            connection = server.connection("d")
            assert connection is not None
            assert 0 < connection.queued_bytes < QUEUE_BYTES + 2 * TLS_BUFFER_BYTES
            handler.gate.set()
            await handler.until(lambda: len(handler.messages) == sent + 1)
            numbers = [int.from_bytes(message.payload[:2], "big") for message in handler.messages[1:]]
            assert numbers == list(range(sent))

    run(test())


def test_messages_sent_just_before_the_end_are_handled(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            client.write(b"".join(encode(Publish("t", bytes([number]))) for number in range(50)))
            client._writer.close()
            await handler.until_event("disconnected", "d", DisconnectReason.LOST)
            assert len(handler.messages) == 50

    run(test())


@pytest.mark.parametrize(("graceful", "topics"), [(True, []), (False, ["last"])])
def test_the_will_message_is_for_ungraceful_ends(pki: PkiFiles, graceful: bool, topics: list[str]) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d", will=Will("last", b"gone"))
            await (client.disconnect() if graceful else asyncio.sleep(0))
            client.drop()
            await handler.until(lambda: any(event[0] == "disconnected" for event in handler.events))
            assert [message.topic for message in handler.messages] == topics

    run(test())


def test_retain_is_passed_on_to_the_handler(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            client.write(Publish("t", b"", retain=True))
            await client.publish("end")
            assert [message.retain for message in handler.messages] == [True, False]

    run(test())


async def connected(server: MqttServer, client: MqttTestClient, client_id: str = "d") -> Connection:
    await client.connect(client_id)
    await client.ping()
    connection = server.connection(client_id)
    assert connection is not None
    return connection


def test_messages_in_flight_are_bounded_and_numbered_apart(pki: PkiFiles) -> None:
    async def test() -> None:
        async with (
            running_server(RecordingHandler(), pki) as server,
            client_of(server, pki, acknowledge=False) as client,
        ):
            connection = await connected(server, client)
            for _ in range(IN_FLIGHT):
                connection.send("t", b"", qos=1)
            with pytest.raises(MqttDeliveryError, match="64 unacknowledged"):
                connection.send("t", b"", qos=1)
            connection.send("t", b"unnumbered")
            packet_ids = [(await client.expect("t")).packet_id for _ in range(IN_FLIGHT + 1)]
            assert len(set(packet_ids)) == IN_FLIGHT + 1
            assert packet_ids[-1] is None

    run(test())


def test_an_unacknowledged_message_fails_at_its_time_or_at_the_end_of_the_connection(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki) as server,
            client_of(server, pki, acknowledge=False) as client,
        ):
            connection = await connected(server, client)
            with pytest.raises(MqttDeliveryError, match="did not acknowledge a message to t within"):
                await connection.publish_acked("t", b"", timeout_s=0.05)
            waiting = asyncio.create_task(connection.publish_acked("t", b""))
            await client.expect("t")
            client.drop()
            with pytest.raises(MqttDeliveryError, match="went away") as caught:
                await waiting
            assert caught.value.temporary
            with pytest.raises(MqttDeliveryError, match="not connected"):
                connection.send("t", b"")

    run(test())


def test_a_slow_reader_is_cut_off(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            connection = await connected(server, client)
            client._writer.transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(MqttDeliveryError):
                for _ in range(200):
                    connection.send("t", bytes(200_000))
                    await asyncio.sleep(0)
            await handler.until_event("disconnected", "d", DisconnectReason.SLOW_READER)

    run(test())


def test_a_silent_client_is_dropped_after_one_and_a_half_keep_alives(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki, sweep_interval_s=SWEEP_S) as server,
            client_of(server, pki) as client,
        ):
            await client.connect("d", keep_alive_s=1)
            started = time.monotonic()
            await handler.until_event("disconnected", "d", DisconnectReason.KEEP_ALIVE)
            assert 1.4 < time.monotonic() - started < 5

    run(test())


def test_a_connection_ends_with_its_token(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        handler.expires_at = 1000.0
        now = [990.0]
        async with (
            running_server(handler, pki, sweep_interval_s=SWEEP_S, wall_clock=lambda: now[0]) as server,
            client_of(server, pki) as client,
        ):
            await client.connect("d")
            await asyncio.sleep(3 * SWEEP_S)
            await client.ping()
            now[0] = 1000.0
            await handler.until_event("disconnected", "d", DisconnectReason.TOKEN_EXPIRED)

    run(test())


def test_a_stranger_that_says_nothing_is_dropped(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with (
            running_server(handler, pki, sweep_interval_s=SWEEP_S, connect_timeout_s=0.2) as server,
            client_of(server, pki) as client,
        ):
            await client.expect_closed()

    run(test())


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", encode(Connect("d")), b"\x16\x03\x01\x00\x05hello"]
)
def test_what_is_not_tls_is_closed_and_harms_nobody(pki: PkiFiles, data: bytes) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki) as server, client_of(server, pki) as client:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                while await reader.read(100):
                    pass
            writer.close()
            assert await client.connect("d") is ConnackCode.ACCEPTED

    run(test())


def test_strangers_are_bounded_and_leave_room_when_they_go(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(
            handler, pki, max_unauthenticated=2, connect_timeout_s=0.4, sweep_interval_s=SWEEP_S
        ) as server:
            plain = [socket.create_connection((server.host, server.port), timeout=5) for _ in range(2)]
            await asyncio.sleep(0.05)
            with pytest.raises((ConnectionError, OSError)):
                await client_of(server, pki).__aenter__()
            for stranger in plain:
                assert await asyncio.to_thread(stranger.recv, 1) == b""  # their handshake timed out
                stranger.close()
            async with client_of(server, pki) as client:
                assert await client.connect("d") is ConnackCode.ACCEPTED

    run(test())


def test_a_connect_of_more_than_64_kib_is_refused(pki: PkiFiles) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki) as server, client_of(server, pki) as client:
            client.write(Connect("d", username="u" * 40_000, password=bytes(40_000)))
            await client.expect_closed()

    run(test())


def test_the_hub_can_disconnect_an_identity(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d")
            server.disconnect(Identity("d"))
            server.disconnect("nobody")
            await client.expect_closed()
            await handler.until_event("disconnected", "d", DisconnectReason.SERVER)

    run(test())


def test_stopping_ends_every_connection_and_frees_the_port(pki: PkiFiles) -> None:
    async def test() -> None:
        handler = RecordingHandler()
        async with running_server(handler, pki) as server, client_of(server, pki) as client:
            await client.connect("d", will=Will("last", b""))
            await server.stop()
            assert handler.events[-1] == ("disconnected", "d", DisconnectReason.SERVER)
            assert handler.messages == []
            await client.expect_closed()
            with socket.create_server((server.host, server.port)):
                pass

    run(test())


def test_a_taken_port_is_named(pki: PkiFiles) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki) as server:
            second = MqttServer(
                RecordingHandler(),
                host=server.host,
                port=server.port,
                ssl_context=server_ssl_context(pki.server_cert, pki.server_key),
            )
            with pytest.raises(MqttListenError, match=f"127.0.0.1:{server.port}"):
                await second.start()

    run(test())


def test_tls_buffers_are_small(pki: PkiFiles) -> None:
    async def test() -> None:
        async with running_server(RecordingHandler(), pki):
            assert getattr(sslproto.SSLProtocol, "max_size", TLS_BUFFER_BYTES) <= TLS_BUFFER_BYTES

    run(test())


def test_the_resident_agent_may_import_it(tmp_path: Path) -> None:
    """Nothing heavy comes with the server: `cryptography`, web frameworks and the like stay out."""
    import subprocess
    import sys

    code = (
        "import sys, iot_hub.mqtt_server;"
        "print([m for m in ('cryptography','fastapi','starlette','pydantic','numpy','urllib3') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
