"""Edge messages in → the data plane → edge messages out, beside HTTP and in a thread of its own.

1. An input named in EDGEWRIGHT_MESSAGES is scored exactly as `POST /score` with the message's body and content
   type; its answer goes to the mapped output with `status` ok or error (then the body is `{"message": …}`), the
   input's own properties, and the input's message id as correlation id.
2. At least once: an input is acknowledged after the hub has acknowledged its output. What a lost connection leaves
   unacknowledged, the hub sends again; the output's message id is made from the input's, so both copies carry the
   same one. An input without message id has no such key.
3. One message is scored at a time, in order of arrival. At most MAX_WAITING wait here; then nothing more is read,
   and the hub keeps the rest.
4. The connection is made again for ever, with a jittered pause of at most a minute. The token is renewed by
   connecting again before it expires.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from .data_plane import DataPlane, Outcome, ScoringReply, ScoringRequest, TimedCall
from .errors import BusyError, ScoringError
from .json_codec import encode
from .message_topics import (
    CONTENT_ENCODING,
    CONTENT_TYPE,
    CORRELATION_ID,
    MESSAGE_ID,
    OUTPUT,
    InputTopic,
    input_filter,
    output_topic,
    parse_input_topic,
)
from .request_ids import new_request_id
from .settings import EdgeModule
from .workers import WorkerPool
from .workload_api import WorkloadApi

log = logging.getLogger("scoring_runtime.messages")

TOKEN_LIFETIME_S = 3600
RENEW_BEFORE_S = 120  # as the device SDK does (facts/iotedge.md §3.4)
MAX_WAITING = 64  # above the acknowledgement window of edge hubs (16)
MAX_UNACKED = 256
MAX_MESSAGE_BYTES = 256 * 1024  # IoT Edge's limit; a larger one closes the connection
MAX_PAUSE_S = 60.0
_SETTLE_S = 10.0
_TURN_S = 1.0
_BUSY_TURN_S = 0.05
_API_VERSION = "2019-10-01"
_NAMESPACE = uuid.UUID(
    "6f0ff1a5-2b4b-5c3e-9d56-0f3f6a7a5b11"
)  # arbitrary and fixed: makes message ids repeatable


class Link(Protocol):
    """What the flow needs of a connection."""

    def publish(self, topic: str, payload: bytes) -> int: ...

    def acknowledge(self, packet_id: int) -> None: ...


@dataclass(slots=True)
class Counts:
    received: int = 0
    published: int = 0
    failed: int = 0
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Input:
    topic: InputTopic
    body: bytes
    packet_id: int  # 0 at QoS 0: nothing to acknowledge


class InputFlow:
    """The inputs of one connection on their way: waiting → being scored → published → acknowledged."""

    def __init__(
        self, module: EdgeModule, plane: DataPlane, pool: WorkerPool, counts: Counts, wake: Callable[[], None]
    ) -> None:
        self._module = module
        self._plane = plane
        self._pool = pool
        self._counts = counts
        self._wake = wake
        self._waiting: deque[Input] = deque()
        self._scoring: tuple[Input, TimedCall, Future[ScoringReply]] | None = None
        self._published: dict[int, int] = {}  # packet id of the output → of its input
        self._done: deque[int] = deque()  # inputs to acknowledge

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < MAX_WAITING

    @property
    def is_stuck(self) -> bool:
        """The hub sends, and acknowledges nothing: reading on would need memory without end."""
        return not self.has_room and len(self._published) >= MAX_UNACKED

    @property
    def is_settled(self) -> bool:
        return self._scoring is None and not self._published and not self._done

    @property
    def is_held_back(self) -> bool:
        """Something waits and the worker pool was full when last asked."""
        return bool(self._waiting) and self._scoring is None

    @property
    def patience_s(self) -> float:
        """How long nothing needs to be done when nothing comes."""
        if self._scoring is None or self._plane.timeout_s is None:
            return _TURN_S
        return min(_TURN_S, max(0.0, self._scoring[1].remaining_s(self._plane.timeout_s)))

    def received(self, topic: str, body: bytes, packet_id: int) -> None:
        parsed = parse_input_topic(topic, self._module)
        if parsed is None or parsed.input not in self._module.routes:
            self._ignore(topic, packet_id)
            return
        self._counts.received += 1
        self._waiting.append(Input(parsed, body, packet_id))

    def output_acked(self, packet_id: int) -> None:
        source = self._published.pop(packet_id, 0)
        if source:
            self._done.append(source)

    def advance(self, link: Link, *, start_new: bool) -> None:
        """Publish what is scored, acknowledge what is published, start what waits."""
        reply = self._reply()
        if reply is not None and self._scoring is not None:
            message, self._scoring = self._scoring[0], None
            self._publish(link, message, reply)
        while self._done:
            link.acknowledge(self._done.popleft())
        if start_new and self._scoring is None and self._waiting and len(self._published) < MAX_UNACKED:
            self._start()

    def _reply(self) -> ScoringReply | None:
        """Of the message being scored; that it took too long as soon as it did, since it may not be stoppable."""
        if self._scoring is None:
            return None
        _, call, future = self._scoring
        if future.done():
            return future.result()
        limit_s = self._plane.timeout_s
        if limit_s is None or call.remaining_s(limit_s) > 0:
            return None
        return self._plane.timed_out(call.request)

    def _start(self) -> None:
        message = self._waiting[0]
        call = TimedCall(self._plane, scoring_request(message), "message")
        try:
            future = self._pool.submit(call)
        except BusyError:
            return  # HTTP fills the pool; the message keeps its place
        self._waiting.popleft()
        self._scoring = message, call, future
        future.add_done_callback(lambda _: self._wake())

    def _publish(self, link: Link, message: Input, reply: ScoringReply) -> None:
        topic, body = output_message(self._module, message, reply)
        self._published[link.publish(topic, body)] = message.packet_id
        self._counts.published += 1
        self._counts.failed += reply.outcome is not Outcome.OK

    def _ignore(self, topic: str, packet_id: int) -> None:
        if not self._counts.ignored:
            log.warning(
                "messages to inputs other than %s are ignored: %s", ", ".join(self._module.routes), topic
            )
        self._counts.ignored += 1
        if packet_id:
            self._done.append(packet_id)


def scoring_request(message: Input) -> ScoringRequest:
    media_type = message.topic.system.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()
    request_id = message.topic.system.get(MESSAGE_ID) or new_request_id()
    return ScoringRequest(message.body, media_type, request_id, dict(message.topic.properties))


def output_message(module: EdgeModule, message: Input, reply: ScoringReply) -> tuple[str, bytes]:
    """(topic, body) of an answer; one that IoT Edge would not carry becomes an error that says so."""
    status = "ok" if reply.outcome is Outcome.OK else "error"
    topic = _output_topic(module, message, status)
    if len(topic) + len(reply.body) <= MAX_MESSAGE_BYTES:
        return topic, reply.body
    text = (
        f"the answer has {len(reply.body)} bytes; a message may have {MAX_MESSAGE_BYTES} with its properties"
    )
    return _output_topic(module, message, "error"), encode({"message": text})


def _output_topic(module: EdgeModule, message: Input, status: str) -> str:
    output = module.routes[message.topic.input]
    source_id = message.topic.system.get(MESSAGE_ID)
    system = {OUTPUT: output, MESSAGE_ID: output_message_id(module, source_id, output)}
    if source_id:
        system[CORRELATION_ID] = source_id
    system |= {CONTENT_TYPE: "application/json", CONTENT_ENCODING: "utf-8"}
    return output_topic(module, system, {**message.topic.properties, "status": status})


def output_message_id(module: EdgeModule, source_id: str | None, output: str) -> str:
    """The same for every delivery of the same input."""
    if not source_id:
        return new_request_id()
    return str(uuid.uuid5(_NAMESPACE, f"{module.hub_host}/{module.client_id}/{output}/{source_id}"))


def sas_token(module: EdgeModule, sign: Callable[[str], str], expiry: int) -> str:
    """The module's password at the edge hub, signed by the workload API (facts/iothub.md §2)."""
    resource = quote(f"{module.hub_host}/devices/{module.device_id}/modules/{module.module_id}", safe="")
    signature = quote(sign(f"{resource}\n{expiry}"), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"


def user_name(module: EdgeModule) -> str:
    return f"{module.hub_host}/{module.client_id}/?api-version={_API_VERSION}&DeviceClientType=edgewright-scoring"


def pause_s(attempt: int, spread: Callable[[float, float], float] = random.uniform) -> float:
    """Before the n-th attempt in a row: doubling from about 1 s to at most MAX_PAUSE_S, half of it by chance.

    Never nothing: a module that was replaced must not take the connection back from its successor at once.
    """
    return min(MAX_PAUSE_S, 2.0 ** min(attempt, 10)) * spread(0.5, 1.0)


@dataclass(slots=True)
class _Status:
    state: str = "not started"
    last_error: str | None = None
    counts: Counts = field(default_factory=Counts)


class EdgeMessages:
    """The thread. `start`, `stop` and `report` may be called from any other."""

    def __init__(self, module: EdgeModule, plane: DataPlane, pool: WorkerPool) -> None:
        self._module = module
        self._plane = plane
        self._pool = pool
        self._workload = WorkloadApi(module)
        self._status = _Status()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._stopping = threading.Event()
        self._stop_by = 0.0
        self._thread = threading.Thread(target=self._run, name="edge-messages", daemon=True)

    @property
    def is_connected(self) -> bool:
        return self._status.state == "connected"

    def start(self) -> None:
        self._status.state = "connecting"
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Finish the message in hand, take no new one, disconnect; back by the monotonic `deadline`."""
        self._stop_by = deadline
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            self._wake_reader.close()
            self._wake_writer.close()

    def report(self) -> Mapping[str, Any]:
        counts = self._status.counts
        return {
            "state": self._status.state,
            "gateway": self._module.gateway_host,
            "routes": dict(self._module.routes),
            "received": counts.received,
            "published": counts.published,
            "failed": counts.failed,
            "ignored": counts.ignored,
            "lastError": self._status.last_error,
        }

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                self._session()
                attempt = 0
            except Exception as error:  # whatever it is, HTTP goes on and the next attempt may succeed
                attempt = 1 if self.is_connected else attempt + 1
                self._pause(error, pause_s(attempt))
        self._status.state = "stopped"

    def _pause(self, error: Exception, seconds: float) -> None:
        self._status.state = "waiting"
        self._status.last_error = f"{type(error).__name__}: {error}"
        expected = isinstance(error, ScoringError)
        log.warning(
            "edge messages: %s; next attempt in %.0f s", error, seconds, exc_info=None if expected else error
        )
        self._stopping.wait(seconds)

    def _session(self) -> None:
        """One connection from its token to its end: renewal or stop; anything else is raised."""
        from .mqtt_link import MqttLink  # paho: only modules with messages pay for it

        self._status.state = "connecting"
        module = self._module
        renew_at = time.monotonic() + TOKEN_LIFETIME_S - RENEW_BEFORE_S
        token = sas_token(module, self._workload.sign, int(time.time()) + TOKEN_LIFETIME_S)
        flow = InputFlow(module, self._plane, self._pool, self._status.counts, self._wake)
        link = MqttLink(
            module.gateway_host,
            client_id=module.client_id,
            username=user_name(module),
            password=token,
            trust_bundle=self._workload.trust_bundle(),
            on_message=flow.received,
            on_acked=flow.output_acked,
        )
        try:
            link.open(input_filter(module), self._wake_reader)
            self._status.state, self._status.last_error = "connected", None
            log.info("edge messages: connected to %s, %s", module.gateway_host, dict(module.routes))
            self._pump(link, flow, renew_at)
        finally:
            link.close()

    def _pump(self, link: Any, flow: InputFlow, renew_at: float) -> None:
        while True:
            leave_by = self._stop_by if self._stopping.is_set() else renew_at + _SETTLE_S
            leaving = self._stopping.is_set() or time.monotonic() >= renew_at
            if leaving and (flow.is_settled or time.monotonic() >= leave_by):
                return
            if flow.is_stuck:
                raise StuckError("the edge hub sends messages but acknowledges none")
            timeout_s = _BUSY_TURN_S if leaving or flow.is_held_back else flow.patience_s
            link.turn(self._wake_reader, timeout_s, read=flow.has_room)
            flow.advance(link, start_new=not leaving)

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # full of wake-ups already, or closed because the thread has ended


class StuckError(ScoringError):
    code = "edge-hub-stuck"
    temporary = True
