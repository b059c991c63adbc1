"""One worker: load, `init()`, serve.

Exit codes: 0 stopped by a signal, 1 cannot listen, 2 bad arguments or environment, 3 the script or the model cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import log_format, old_imports
from .config_file import apply_config_file
from .cpu_budget import available_cpus
from .errors import ModelError, ScriptError, StartError
from .metrics import Metrics
from .readiness import Readiness
from .seat import Seat
from .settings import DEFAULT_HOST, DEFAULT_PORT, VARIABLES, Settings
from .sockets import bind, listening_sockets
from .supervisor import EXIT_STUCK, GRACE_S
from .traffic import Traffic
from .version import VERSION
from .workers import WorkerPool

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .data_plane import DataPlane, Scorer
    from .fast_path import FastScore
    from .inference_v2 import InferenceV2

log = logging.getLogger("scoring_runtime")

# The first scores have the processor to themselves for so long; whoever asks for anything else has it loaded at once.
_APP_AFTER_S = 0.5


def main(arguments: Sequence[str] | None = None, *, seat: Seat) -> int:
    """Run until stopped; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        notes = apply_config_file(
            os.environ, given=options.config_file, entry_script=options.entry_script, cwd=Path.cwd()
        )
        settings = Settings.read(
            os.environ,
            entry_script=options.entry_script,
            model=options.model,
            model_dir=options.model_dir,
            host=options.host,
            port=options.port,
            golden=options.golden,
            provider=options.provider,
            require_provider=options.require_provider,
            workers=options.workers,
            cwd=Path.cwd(),
        )
        _prepare_process(settings, notes)
        return _serve(settings, seat)
    except StartError as error:
        if isinstance(error, ScriptError) and error.user_traceback:
            print(error.user_traceback, file=sys.stderr)
        print(f"scoring_runtime: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(f"  {name:27} {text}" for name, text in VARIABLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m scoring_runtime",
        description="Serve score.py or a bare ONNX model over HTTP and as an IoT Edge module.",
        epilog=f"environment (an argument wins over its variable):\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entry-script", metavar="SCORE.PY", help="script with init() and run(data)")
    parser.add_argument("--model", metavar="FILE.ONNX", help="serve this model without a script")
    parser.add_argument(
        "--model-dir", metavar="DIR", help="the script's AZUREML_MODEL_DIR, or the folder of --model"
    )
    parser.add_argument(
        "--provider",
        metavar="NAMES",
        help="execution providers of --model, preferred first: cuda,cpu (default cpu)",
    )
    parser.add_argument(
        "--require-provider",
        metavar="NAMES",
        help="those that must really run a part of --model; else the start fails",
    )
    parser.add_argument("--host", help=f"address to listen on (default {DEFAULT_HOST}; 0.0.0.0 for all)")
    parser.add_argument("--port", type=int, help=f"port to listen on (default {DEFAULT_PORT}; 0 for any)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default 1)")
    parser.add_argument(
        "--config-file", metavar="FILE", help="JSON object of the variables below, for those that are not set"
    )
    parser.add_argument(
        "--golden",
        metavar="DIR",
        help="recorded requests and answers to reproduce before the module is ready",
    )
    return parser


def _prepare_process(settings: Settings, notes: Sequence[str]) -> None:
    """What a script may rely on: its working directory, AZUREML_MODEL_DIR, and that its output appears at once."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if settings.model_dir is not None:
        os.environ["AZUREML_MODEL_DIR"] = str(settings.model_dir)
    if settings.app_root.is_dir():
        os.chdir(settings.app_root)
    sys.path += [
        str(folder) for folder in (settings.app_root, settings.source_directory) if folder is not None
    ]
    # After everything else on the path: a real azureml package in the image wins.
    sys.path.append(str(Path(__file__).parent / "shims"))
    old_imports.install()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    log_format.configure(settings.log_level, settings.log_format)
    script_folder = [settings.served.parent] if settings.is_script else []
    log_format.configure_by_file([settings.app_root, *script_folder])
    for warning in (*notes, *settings.warnings):
        log.warning("%s", warning)


def _serve(settings: Settings, seat: Seat) -> int:
    """Load, `init()`, serve until stopped.

    Each part is imported where it is needed: what is slow and may fail (the model, the script) comes before
    the event loop and the HTTP stack.
    """
    started = time.monotonic()
    public, health = listening_sockets(settings)
    if health is None and settings.health_port is not None:
        health = bind(settings.host, settings.health_port)
    silence_s = min(settings.scoring_timeout_ms / 1000 + GRACE_S, settings.worker_timeout_s)
    seat.report([public] if health is None else [public, health], settings.workers, silence_s)
    metrics = Metrics(settings.model, *seat.counters(settings.workers))
    metrics.counter("workers_replaced_total", lambda: seat.replaced(settings.workers))
    scorer = _load_scorer(settings, metrics)
    if settings.golden is not None:
        from .golden import check_golden

        check_golden(settings.golden, scorer)
    module = _Module(settings, seat, scorer, metrics, (public, health))
    gc.collect()
    gc.freeze()  # what was loaded stays; later collections need not look at it again
    log.info("%s is ready after %.0f ms", settings.model, (time.monotonic() - started) * 1000)
    clean = asyncio.run(_serve_and_beat(module, seat, metrics, silence_s))
    _write_collected()
    if not clean or module.pool.is_busy:
        # A run() that has not returned sits in a daemon thread; ending the interpreter under it may crash.
        logging.shutdown()
        os._exit(module.exit_code)
    return module.exit_code


class _Module:
    """One loaded model or script, and everything that serves it in this process."""

    def __init__(
        self,
        settings: Settings,
        seat: Seat,
        scorer: Scorer,
        metrics: Metrics,
        sockets: tuple[socket.socket, socket.socket | None],
    ) -> None:
        """`sockets`: the public one and the one for health."""
        from .data_plane import DataPlane
        from .late_app import LateApp
        from .run_timer import RunTimer
        from .schema import SwaggerDocuments
        from .server import ModuleServer

        self._settings, self._scorer, self._metrics = settings, scorer, metrics
        timer = RunTimer(
            settings.scoring_timeout_ms, getattr(scorer, "stops", None), self._replace_this_worker
        )
        metrics.gauge("runs_in_flight", lambda: float(timer.in_flight))
        metrics.gauge("runs_overdue", lambda: float(timer.overdue))
        self.exit_code = 0
        self.pool = WorkerPool(max(settings.threads, getattr(scorer, "parallel_runs", 1)))
        self._plane = DataPlane(scorer, metrics, timer, seat.expect_silence)
        self._readiness = Readiness(settings.model)
        self._documents = SwaggerDocuments(scorer.signature, settings.service, settings.app_root)
        self._health_headers = _show_providers(scorer, metrics, self._readiness)
        public, health = sockets
        version = (b"x-ms-server-version", f"edgewright/{VERSION}".encode())
        self.app = LateApp(self._build_app)
        self.server = ModuleServer(
            self.app,
            self._readiness,
            public=public,
            health=health,
            hold=settings.hold,
            early=seat.early,
            traffic=_message_traffic(
                settings, self._plane, self.pool, self._readiness, metrics, worker=seat.number
            ),
            headers=[version] if settings.says_version else [],
            # An access line needs what the general path knows of a request; both together would not be fast.
            fast=None if settings.access_log else self._fast_score(),
        )

    def _fast_score(self) -> FastScore | None:
        from .fast_path import FastScore

        return FastScore.over(
            self._scorer,
            self._plane,
            self.pool,
            self._metrics,
            body_limit_bytes=self._settings.body_limit_bytes,
            body_timeout_s=self._settings.body_timeout_s,
        )

    def _build_app(self) -> ASGIApp:
        from .app import ScoringApp

        settings = self._settings
        return ScoringApp(
            self._plane,
            self.pool,
            readiness=self._readiness,
            documents=self._documents,
            metrics=self._metrics,
            body_limit_bytes=settings.body_limit_bytes,
            cors_origins=settings.cors_origins,
            body_timeout_s=settings.body_timeout_s,
            v2=_inference_v2(settings, self._scorer, self._plane, self._metrics, self._readiness),
            health_headers=self._health_headers,
            access_log=settings.access_log,
        ).asgi()

    def _replace_this_worker(self) -> None:
        log.error("a run() cannot be stopped and keeps its thread: this worker is replaced")
        self.exit_code = EXIT_STUCK
        self.pool.refuse("this worker is being replaced; try again")
        self.server.abandon()


async def _serve_and_beat(module: _Module, seat: Seat, metrics: Metrics, silence_s: float) -> bool:
    async def beat() -> None:
        while True:
            await asyncio.sleep(pause_s)
            seat.beat()
            metrics.publish()

    pause_s = min(max(silence_s / 10, 0.1), 1.0)
    seat.ready()
    asyncio.get_running_loop().call_later(_APP_AFTER_S, module.app.start)
    beating = asyncio.ensure_future(beat())
    try:
        return await module.server.serve()
    finally:
        beating.cancel()


def _write_collected() -> None:
    """What a script's ModelDataCollector has not written yet; the module is loaded only where a script uses it."""
    collector = sys.modules.get(f"{__package__}.data_collector")
    if collector is not None:
        collector.close_all()


def _load_scorer(settings: Settings, metrics: Metrics) -> Scorer:
    if settings.is_script:
        from .entry_script import EntryScript

        script = EntryScript.load(settings.served, settings.collects_data)
        script.init()
        return script
    try:
        from .onnx_model import OnnxModel
    except ImportError as error:
        raise ModelError(
            f"serving {settings.served} needs numpy and onnxruntime in the image: {error}"
        ) from error
    return OnnxModel.load(
        settings.served,
        threads=max(1, available_cpus() // settings.workers),
        count_non_finite=metrics.non_finite,
        providers=settings.providers,
        required=settings.required_providers,
    )


def _show_providers(scorer: Scorer, metrics: Metrics, readiness: Readiness) -> dict[str, str]:
    """Say in the log, in the metrics and in /ready what runs the model; the header for `GET /`, whose body is fixed."""
    used: tuple[str, ...] = getattr(scorer, "providers", ())
    if not used:
        return {}
    counted: dict[str, int] = getattr(scorer, "nodes_by_provider", {})
    nodes = {short: counted.get(short, 0) for short in used}
    log.info("providers: %s", ", ".join(f"{short} ({count} nodes)" for short, count in nodes.items()))
    metrics.fact("provider_nodes", "provider", nodes)
    readiness.details["providers"] = lambda: nodes
    return {"x-edgewright-providers": ",".join(used)}


def _inference_v2(
    settings: Settings, scorer: Scorer, plane: DataPlane, metrics: Metrics, readiness: Readiness
) -> InferenceV2 | None:
    """The Open Inference Protocol is for bare models: a script's body is its own."""
    if settings.is_script:
        return None
    from .inference_v2 import InferenceV2, V2Scorer
    from .onnx_model import OnnxModel

    assert isinstance(scorer, OnnxModel)
    name, _, version = settings.model.partition(":")
    v2 = V2Scorer(scorer, name, version or "1", metrics.non_finite)
    return InferenceV2(v2, plane.beside(v2), readiness)


def _message_traffic(
    settings: Settings,
    plane: DataPlane,
    pool: WorkerPool,
    readiness: Readiness,
    metrics: Metrics,
    *,
    worker: int,
) -> Traffic:
    """Worker 0's alone: an edge hub lets a module's identity have one connection, the last one that came."""
    if settings.edge is None:
        return Traffic()
    if worker:
        readiness.details["messages"] = lambda: {"state": "worker 0 has the connection"}
        metrics.gauge("messages_connected", lambda: 0.0)
        return Traffic()
    from .messages import EdgeMessages

    messages = EdgeMessages(settings.edge, plane, pool)
    readiness.details["messages"] = messages.report
    metrics.gauge("messages_connected", lambda: float(messages.is_connected))
    return Traffic(messages.start, messages.stop)


def finish(code: int) -> None:
    """End with `code`, even when a failed script left a thread of its own running."""
    if code == 0:
        sys.exit(0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
