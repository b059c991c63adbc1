"""`python -m iot_hub serve`: the embedded hub as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_contracts.errors import EdgewrightError
from edge_contracts.redact import redact_text

if TYPE_CHECKING:
    from iot_hub.serve import HubServer

_MEGABYTE = 1024 * 1024


class _RedactingFormatter(logging.Formatter):
    """What a library logs may quote a token or a header."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code: 0 after SIGTERM, 1 when the hub cannot start."""
    options = _parser().parse_args(arguments)
    _log_to_stderr(options.log_level)
    # Imported here, so that --help and a usage error answer at once.
    from iot_hub.serve import HubConfig, serve
    from iot_hub.telemetry_log import Retention

    config = HubConfig(
        options.data,
        options.host,
        options.mqtt_port,
        options.https_port,
        options.registry_port,
        tuple(options.san),
        Retention(options.telemetry_max_mb * _MEGABYTE, options.telemetry_max_age_hours * 3600),
    )

    def on_ready(server: HubServer) -> None:
        print(_ready_line(options.host, server, as_json=options.json), flush=True)

    try:
        asyncio.run(serve(config, on_ready))
    except EdgewrightError as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        if error.next_command:
            print(f"next: {error.next_command}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m iot_hub", description="The embedded IoT hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the hub until SIGTERM")
    serve.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the hub's data")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--mqtt-port", type=_port, default=8883, help="Microsoft's device SDKs take 8883 only")
    serve.add_argument("--https-port", type=_port, default=8443)
    serve.add_argument("--registry-port", type=_port, default=5050)
    serve.add_argument(
        "--san", action="append", default=[], metavar="NAME", help="further name or address of this hub"
    )
    serve.add_argument("--telemetry-max-mb", type=_positive, default=256, help="size of the telemetry log")
    serve.add_argument(
        "--telemetry-max-age-hours", type=_positive, default=7 * 24, help="age of its oldest message"
    )
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.add_argument("--json", action="store_true", help="the ready line as JSON")
    return parser


def _port(text: str) -> int:
    return _integer(text, 0, 65535)


def _positive(text: str) -> int:
    return _integer(text, 1, 2**31)


def _integer(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}, not {text!r}")
    return int(text)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("asyncio").setLevel("WARNING")


def _ready_line(host: str, server: HubServer, *, as_json: bool) -> str:
    ports = {"mqtt": server.mqtt_port, "https": server.https_port, "registry": server.registry_port}
    if as_json:
        return json.dumps({"ready": True, "host": host, **ports})
    return "hub ready: " + ", ".join(f"{name} on {host}:{port}" for name, port in ports.items())


if __name__ == "__main__":
    sys.exit(main())
