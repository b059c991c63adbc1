"""The agent put together: twins, reconciler, edge hub and control socket, for as long as the process lives.

Order of a start: the state folder is locked and read; modules are adopted or started from what is kept there; only
then, and without waiting, the hub is connected. Stopping leaves the modules running.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any, Protocol

from edge_agent.background import in_thread
from edge_agent.config import AgentConfig
from edge_agent.control import ControlError, ControlServer
from edge_agent.desired import Verdict, read_desired, read_routes
from edge_agent.executors import Hands
from edge_agent.hub_client import Connector
from edge_agent.identity import Identities
from edge_agent.listing import ModuleState, module_states
from edge_agent.local_release import LocalRelease, load_local, make_release, save_local, take_file
from edge_agent.observe import Probe, probe
from edge_agent.planner import Current
from edge_agent.reconciler import Reconciler
from edge_agent.release import ReleaseRecord
from edge_agent.reports import agent_report, deployment_status, hub_report
from edge_agent.store import Store, StoreError
from edge_agent.twin_sync import Desired, TwinSync
from edge_containers.runtime import ModuleRuntime, RuntimeReport
from edge_contracts.errors import ContractError, EdgewrightError
from edge_contracts.messages import Message
from edge_contracts.reported import ClientReport
from edge_contracts.routes import Route

EDGE_HUB_START_S = 10.0
EDGE_HUB_RETRY_S = 10.0
HOUSEKEEPING_S = 60.0
PROBE_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
IMPORT_TIMEOUT_S = 6 * 3600.0
"""The largest bundle from the slowest card."""

MESSAGE_LIMIT_BYTES = 256 * 1024
"""IoT Hub's limit of a device-to-cloud message."""

log = logging.getLogger("edge_agent")


class LocalHub(Protocol):
    """The edge hub as the agent uses it; `EdgeHub` is the real one."""

    async def start(self) -> None:
        """Listen."""

    async def stop(self) -> None:
        """Stop listening."""

    def set_routes(self, routes: Sequence[Route], default_ttl_s: int) -> None:
        """Use these routes."""

    def module_environment(self, module: str) -> dict[str, str]:
        """The IOTEDGE_* variables of a module."""

    async def ensure_module(self, module: str) -> Path:
        """Serve the module's workload socket."""

    async def remove_module(self, module: str) -> None:
        """Stop serving it."""

    async def publish_local(self, message: Message) -> int:
        """Route a message of the device itself."""

    def upstream_changed(self) -> None:
        """The hub can be reached again."""

    def connected_modules(self) -> tuple[str, ...]:
        """Modules connected now."""


class Upstream(Protocol):
    """The sender, as far as the agent tidies up after it."""

    async def close_idle(self) -> None:
        """Close connections that were not used for long."""

    async def close(self) -> None:
        """Close all."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Monotonic time for decisions, and one fixed offset to show it as wall time."""

    offset: float

    @classmethod
    def start(cls) -> Clock:
        """The clock of this process."""
        return cls(time.time() - time.monotonic())

    def __call__(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.monotonic() + self.offset


class Agent:
    """One device's agent."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        device_id: str,
        runtime: ModuleRuntime,
        identities: Identities,
        connector: Connector,
        local_hub: LocalHub,
        upstream: Upstream,
        store: Store,
        random: Random,
        probe: Probe = probe,
    ) -> None:
        self._config = config
        self._device_id = device_id
        self._runtime = runtime
        self._local_hub = local_hub
        self._upstream = upstream
        self._store = store
        self._clock = Clock.start()
        self._started_at = datetime.fromtimestamp(int(time.time()), UTC)
        self._version = metadata.version("edgewright")
        self._identities = identities
        self._verdict: Verdict | None = None
        self._local: LocalRelease | None = None
        self._import: asyncio.Task[LocalRelease] | None = None
        self._hub_desired: Desired | None = None
        self._hub_number = 0
        self._routes_problem: ContractError | None = None
        self._edge_hub_problem = ""
        self._edge_hub_up = asyncio.Event()
        self._clients: dict[str, ClientReport] = {}
        self._tier = RuntimeReport("", "", "not probed yet")
        hands = Hands(runtime, identities, local_hub, store, self._pull_ended, store.load_record())
        self.reconciler = Reconciler(
            hands,
            interval_s=config.reconcile_interval_s,
            ready_timeout_s=config.ready_timeout_s,
            random=random,
            changed=self._report,
            clock=self._clock,
            probe=probe,
        )
        options: dict[str, Any] = {
            "connector": connector,
            "identities": identities,
            "store": store,
            "random": random,
        }
        self._agent_twin = TwinSync(
            "$edgeAgent",
            "desired-agent.json",
            on_desired=self._on_agent_desired,
            on_connected=self._on_agent_connected,
            **options,
        )
        self._hub_twin = TwinSync(
            "$edgeHub",
            "desired-hub.json",
            on_desired=self._on_hub_desired,
            on_connected=self._report,
            **options,
        )
        operations = {
            "list": self._op_list,
            "status": self._op_status,
            "restart": self._op_restart,
            "apply": self._op_apply,
            "apply-status": self._op_apply_status,
            "send": self._op_send,
        }
        self._control = ControlServer(config.state_dir, operations)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then close everything but the modules."""
        self._load_local()
        self._agent_twin.load()
        self._hub_twin.load()
        await self._probe_tier()
        await self._control.start()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("edge-hub", self._keep_edge_hub_up()),
                ("reconciler", self.reconciler.run()),
                ("agent-twin", self._agent_twin.run()),
                ("hub-twin", self._hub_twin.run()),
                ("housekeeping", self._keep_house()),
            )
        ]
        stopping = asyncio.create_task(stop.wait())
        log.info(
            "edge-agent %s runs device %s, state in %s",
            self._version,
            self._device_id,
            self._config.state_dir,
        )
        try:
            await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            stopping.cancel()
            if self._import is not None:
                self._import.cancel()
            await self._close(tasks)

    async def _close(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._control.stop()
                await asyncio.gather(self._local_hub.stop(), self._upstream.close(), return_exceptions=True)
        log.info("edge-agent stopped; modules go on running")

    async def _probe_tier(self) -> None:
        try:
            self._tier = await in_thread(PROBE_TIMEOUT_S, self._runtime.report)
            log.info("modules run as %s, tier %s %s", self._tier.kind, self._tier.tier, self._tier.reason)
        except (EdgewrightError, OSError, TimeoutError) as error:
            self._tier = RuntimeReport("process", "none", str(error))
            log.error("no module can be started: %s", error)

    async def _keep_edge_hub_up(self) -> None:
        """Start the edge hub, again and again until its address is free; then stay."""
        while True:
            try:
                await self._local_hub.start()
                break
            except (EdgewrightError, OSError) as error:
                address = f"{self._config.edge_hub_host}:{self._config.edge_hub_port}"
                problem = f"the edge hub cannot listen on {address}: {error}"
                if problem != self._edge_hub_problem:
                    log.error("%s", problem)
                self._edge_hub_problem = problem
                await asyncio.sleep(EDGE_HUB_RETRY_S)
        self._edge_hub_problem = ""
        self._edge_hub_up.set()
        self._report()
        await asyncio.Event().wait()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            await self._upstream.close_idle()

    def _pull_ended(self, image: str, error: EdgewrightError | None) -> None:
        self.reconciler.pull_ended(image, error)

    def _on_agent_desired(self, desired: Desired) -> None:
        self._verdict = read_desired(desired.values, desired.version)
        if self._verdict.release is None:
            _log_refusal("$edgeAgent", desired, self._verdict.description)
        self._want()
        if self._agent_twin.status.connected:
            self._yield_to_hub()

    def _on_agent_connected(self) -> None:
        self._local_hub.upstream_changed()
        self._yield_to_hub()

    def _yield_to_hub(self) -> None:
        """What was applied here is over when the hub is there and desires something."""
        if self._active_local is None or self._verdict is None or self._verdict.release is None:
            return
        ended = self._active_local.ended()
        try:
            save_local(self._store, ended)
        except StoreError as error:
            log.error("%s", error)  # it is tried again at the next connection
            return
        log.info("the hub's desired version %d takes over from %s", self._verdict.version, ended.source)
        self._local = ended
        self._want()
        if self._hub_desired is not None:
            self._on_hub_desired(self._hub_desired)

    def _on_hub_desired(self, desired: Desired) -> None:
        self._hub_number, self._hub_desired = desired.version, desired
        if self._active_local is None:
            self._use_routes(desired)
        self._report()

    def _use_routes(self, desired: Desired) -> None:
        try:
            manifest = read_routes(desired.values)
        except ContractError as error:
            self._routes_problem = error
            _log_refusal("$edgeHub", desired, error.message)
        else:
            self._routes_problem = None
            self._local_hub.set_routes(manifest.routes, manifest.store_and_forward_ttl_s)

    @property
    def _active_local(self) -> LocalRelease | None:
        """What was applied on this device, while no hub has taken over."""
        return self._local if self._local is not None and self._local.is_active else None

    def _want(self) -> None:
        """Set what the device is to run: what was applied here, else the hub's desired state."""
        verdict = self._active_local.verdict() if self._active_local else self._verdict
        self.reconciler.want(verdict.release if verdict else None)

    def _load_local(self) -> None:
        try:
            self._local = load_local(self._store)
            self._use_local()
        except StoreError as error:
            # What is committed is in another file, and the hub has its own desired state.
            log.error("%s", error)

    def _use_local(self) -> None:
        """Give an active local release's modules identities, use its routes, and want it."""
        local = self._active_local
        if local is None:
            return
        release = local.verdict().release
        for goal in release.modules if release else ():
            self._identities.adopt(goal.name)
        self._use_routes(Desired(dict(local.hub or {}), local.number))
        self._want()

    def _states(self) -> tuple[ModuleState, ...]:
        return module_states(
            self.reconciler.hands.record,
            self.reconciler.modules,
            self.reconciler.current,
            clock=self._clock(),
            now=self._clock.wall(),
        )

    def _report(self) -> None:
        """Hand both twins what is to be reported; they send the differences."""
        report = agent_report(
            verdict=self._verdict,
            current=self._current(),
            states=self._states(),
            runtime=self._tier,
            started_at=self._started_at,
            edge_hub_problem=self._edge_hub_problem,
            local=self._local,
            version=self._version,
            clock=self._clock(),
            now=datetime.fromtimestamp(self._clock.wall(), UTC),
        )
        self._agent_twin.report(report)
        self._note_clients()
        if self._hub_number:
            self._hub_twin.report(
                hub_report(
                    number=self._hub_number,
                    problem=self._routes_problem,
                    clients=self._clients,
                    version=self._version,
                )
            )

    def _current(self) -> Current:
        """The last observation, with the record as it is by now."""
        return replace(self.reconciler.current, record=self.reconciler.hands.record)

    def _note_clients(self) -> None:
        connected = {f"{self._device_id}/{name}" for name in self._local_hub.connected_modules()}
        now = datetime.fromtimestamp(int(self._clock.wall()), UTC)
        for name in connected | set(self._clients):
            before = self._clients.get(name, ClientReport(False))
            if before.connected == (name in connected):
                continue
            if before.connected:
                self._clients[name] = ClientReport(False, before.last_connected, now)
            else:
                self._clients[name] = ClientReport(True, now, before.last_disconnected)

    async def _op_list(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.reconciler.wake()
        return [state.as_row() for state in self._states()]

    async def _op_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number, code, description = deployment_status(self._verdict, self._current())
        record = self.reconciler.hands.record
        return {
            "running": True,
            "pid": os.getpid(),
            "version": self._version,
            "deviceId": self._device_id,
            "startedAt": self._started_at.isoformat(),
            "hub": asdict(self._agent_twin.status),
            "runtime": asdict(self._tier),
            "edgeHub": {
                "address": f"{self._config.edge_hub_host}:{self._config.edge_hub_port}",
                "problem": self._edge_hub_problem,
                "connected": list(self._local_hub.connected_modules()),
            },
            "desiredVersion": self._verdict.version if self._verdict else 0,
            "lastDesiredVersion": number,
            "lastDesiredStatus": {"code": int(code), "description": description},
            "release": release_summary(record),
            "localRelease": self._local.report() if self._local else None,
            "pulledBytes": self.reconciler.hands.pulled_bytes,
        }

    async def _op_restart(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = str(request["module"])
        committed = self.reconciler.hands.record.committed
        names = [goal.name for goal in committed.running] if committed else []
        if name not in names:
            known = ", ".join(names) or "none"
            raise ControlError(
                f"no module '{name}' is to run on this device; running modules: {known}",
                code="no-such-module",
                next_command="edge-agent list",
            )
        self.reconciler.request_restart(name)
        return {"module": name}

    async def _op_apply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._import is not None and not self._import.done():
            raise ControlError("another file is being applied", code="busy", temporary=True)
        hub, verdict = self._agent_twin.status, self._verdict
        if hub.connected and verdict is not None and verdict.release is not None:
            raise ControlError(
                f"the hub is connected and desires deployment {verdict.version}: its desired state holds, nothing changed",
                code="hub-decides",
                next_command="edgewright manifest apply FILE --device DEVICE",
            )
        self._import = asyncio.create_task(self._apply(Path(str(request["path"]))), name="apply")
        self._import.add_done_callback(_log_apply)
        return {}

    async def _apply(self, path: Path) -> LocalRelease:
        self.reconciler.keeps_garbage = True
        try:
            taken = await in_thread(IMPORT_TIMEOUT_S, take_file, path, self._runtime)
            local = make_release(taken, self.reconciler.hands.record, self._local)
            save_local(self._store, local)
            self._local = local
            self._use_local()
        finally:
            self.reconciler.keeps_garbage = False
        log.info("%s is applied on the device: release %s", local.source, local.digest)
        self._report()
        return local

    async def _op_apply_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How the last `apply` stands; an error of it is the answer's error."""
        if self._import is None:
            raise ControlError("nothing was applied since the agent started", code="no-apply")
        if not self._import.done():
            return {"state": "reading"}
        try:
            local = self._import.result()
        except TimeoutError as error:
            raise ControlError(f"the file was not read in {IMPORT_TIMEOUT_S:g} s", code="busy") from error
        except OSError as error:
            raise ControlError(f"the file cannot be read: {error.strerror}", code="local-release") from error
        record = self.reconciler.hands.record
        key = (local.digest, local.number)
        ended = next((each for each in record.results if each.key == key), None)
        return {
            "state": "ended" if ended else "under way",
            "release": local.digest,
            "result": ended.result.value if ended else None,
            "description": ended.description if ended else "",
        }

    async def _op_send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        body = base64.b64decode(request["body"], validate=True)
        if len(body) > MESSAGE_LIMIT_BYTES:
            raise ControlError(
                f"a message must be at most {MESSAGE_LIMIT_BYTES} bytes, not {len(body)}", code="message-size"
            )
        if self._edge_hub_problem:
            raise ControlError(self._edge_hub_problem, code="edge-hub", next_command="edge-agent check")
        try:
            # An agent that has just started answers commands before its edge hub listens.
            await asyncio.wait_for(self._edge_hub_up.wait(), EDGE_HUB_START_S)
        except TimeoutError as error:
            raise ControlError(
                f"the edge hub is not running after {EDGE_HUB_START_S:g} s",
                code="edge-hub",
                temporary=True,
                next_command="edge-agent check",
            ) from error
        properties = {str(key): str(value) for key, value in dict(request.get("properties") or {}).items()}
        message = Message(body=body, content_type=request.get("contentType"), properties=properties)
        return {"endpoints": await self._local_hub.publish_local(message)}


def _log_apply(work: asyncio.Task[LocalRelease]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("nothing was applied: %s", error)


def _log_refusal(module: str, desired: Desired, reason: str) -> None:
    level = logging.WARNING if desired.values else logging.INFO
    log.log(level, "%s: desired version %d changes nothing: %s", module, desired.version, reason)


def release_summary(record: ReleaseRecord) -> dict[str, Any]:
    """The release record for `status`: digests and results, nothing of the documents."""
    attempt, last = record.attempt, record.last
    return {
        "committed": record.committed.digest if record.committed else None,
        "attempt": {"digest": attempt.release.digest, "phase": attempt.phase.value} if attempt else None,
        "last": {
            "digest": last.digest,
            "desiredVersion": last.number,
            "result": last.result.value,
            "errorClass": last.error_class.value if last.error_class else None,
            "description": last.description,
        }
        if last
        else None,
        "quarantined": [entry.digest for entry in record.quarantine],
    }
