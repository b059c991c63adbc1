"""Everything the runtime is told, by arguments and by environment, checked once at start.

An argument wins over its environment variable. What each variable means is in `VARIABLES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import SettingsError
from .schema import Service
from .seat import MAX_WORKERS

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5001  # Azure ML's server
DEFAULT_BODY_LIMIT_BYTES = (
    100 * 1024 * 1024
)  # the payload limit of Azure ML's front end (facts/azureml.md §3)
DEFAULT_SCORING_TIMEOUT_MS = 3_600_000  # Azure ML's server
DEFAULT_WORKER_TIMEOUT_S = 300  # Azure ML's server
DEFAULT_HEALTH_PORT = 5000  # Azure ML's server
DEFAULT_BODY_TIMEOUT_S = 60
DEFAULT_MESSAGE_ROUTES = "input1=output1"
DEFAULT_PROVIDERS = ("cpu",)

VARIABLES = {
    "AZUREML_ENTRY_SCRIPT": "entry script, relative to AML_APP_ROOT",
    "AML_APP_ROOT": "the script's folder and working directory",
    "AZUREML_MODEL_DIR": "folder of the model, version included; of several models, the one that holds NAME/VERSION of each",
    "EDGEWRIGHT_MODEL_FILE": "model file served without a script, relative to AZUREML_MODEL_DIR",
    "EDGEWRIGHT_MODEL": "name:version (joined by commas) shown in metrics and /ready",
    "EDGEWRIGHT_PROVIDER": "execution providers of a bare model, preferred first: cuda,cpu; cpu by default",
    "EDGEWRIGHT_REQUIRE_PROVIDER": "providers that must really run a part of the model; else there is no start",
    "EDGEWRIGHT_MESSAGES": "inputs and outputs for edge messages: input1=output1[,in2=out2]; empty: none",
    "EDGEWRIGHT_HTTP_FD": "inherited listening socket of the public address",
    "EDGEWRIGHT_HEALTH_FD": "inherited listening socket for health probes",
    "EDGEWRIGHT_HOLD": "1: serve the public address only after SIGUSR1",
    "EDGEWRIGHT_THREADS": "how many run() at once in a worker, 1 by default",
    "WORKER_COUNT": "how many worker processes, 1 by default",
    "WORKER_TIMEOUT": "seconds without a sign of life after which a worker is replaced, 300 by default",
    "EDGEWRIGHT_MAX_BODY_BYTES": "largest request body, 100 MiB by default",
    "EDGEWRIGHT_BODY_TIMEOUT_S": "seconds in which a request's body must arrive, 60 by default",
    "SCORING_TIMEOUT_MS": "longest run(), then the client gets 500; 3600000 by default",
    "SEPERATE_HEALTH_ENDPOINT": "true: health on a port of its own too (HEALTH_PORT)",
    "HEALTH_PORT": "that port, 5000 by default",
    "AML_CORS_ORIGINS": "origins allowed to ask from a browser, joined by commas; * for any; none by default",
    "AML_MODEL_DC_STORAGE_ENABLED": "true: ModelDataCollector stores; off by default",
    "AML_MODEL_DC_DEBUG": "true: ModelDataCollector prints instead",
    "AML_MODEL_DC_BOUNDARY": "hour: what is collected says 60 minutes instead of 1440",
    "EDGEWRIGHT_COLLECTED_DIR": "where modeldata/ is made, the temporary folder by default",
    "EDGEWRIGHT_COLLECTED_MAX_BYTES": "most bytes of collected data, 32 MiB by default",
    "AZUREML_LOG_LEVEL": "DEBUG, INFO (default), WARNING or ERROR",
    "EDGEWRIGHT_GOLDEN": "folder of golden cases, relative to AML_APP_ROOT; checked before the module is ready",
    "AZUREML_CONFIG_FILE": "JSON object of these variables; else config.json in AML_APP_ROOT or beside the script",
    "AZUREML_SOURCE_DIRECTORY": "folder below AML_APP_ROOT from which a script can import",
    "SERVER_VERSION_LOG_RESPONSE_ENABLED": "false: answers do not say x-ms-server-version; true by default",
    "EDGEWRIGHT_ACCESS_LOG": "1: a line for each scored request at level INFO",
    "EDGEWRIGHT_LOG_FORMAT": "text (default) or json: one object a line",
    "SERVICE_NAME": "title of the swagger documents",
    "SERVICE_VERSION": "version of the swagger documents",
    "SERVICE_PATH_PREFIX": "prefix of the paths in the swagger documents",
}
# Azure ML's variables that ask for what this runtime does not do: named in a warning, never silently dropped.
_WITHOUT_EFFECT = {
    "AML_APP_INSIGHTS_ENABLED": "Application Insights is not contacted; requests are counted in /metrics and logged here",
    "AML_APP_INSIGHTS_KEY": "Application Insights is not contacted; the key is not read",
    "AZUREML_DEBUG_PORT": "no debugger is started",
    "WORKER_PRELOAD": "each worker loads the script and the model by itself",
}
_LOG_FORMATS = ("text", "json")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

# What IoT Edge gives a module (facts/iotedge.md §4.1); with IOTEDGE_WORKLOADURI all of them must be there.
_EDGE_VARIABLES = {
    "hub_host": "IOTEDGE_IOTHUBHOSTNAME",
    "device_id": "IOTEDGE_DEVICEID",
    "module_id": "IOTEDGE_MODULEID",
    "gateway_host": "IOTEDGE_GATEWAYHOSTNAME",
    "generation_id": "IOTEDGE_MODULEGENERATIONID",
    "workload_uri": "IOTEDGE_WORKLOADURI",
    "api_version": "IOTEDGE_APIVERSION",
}


@dataclass(frozen=True, slots=True)
class EdgeModule:
    """Who this module is on its device, and what it listens to: `routes` maps input names to output names."""

    hub_host: str
    device_id: str
    module_id: str
    gateway_host: str
    generation_id: str
    workload_uri: str
    api_version: str
    routes: Mapping[str, str]

    @property
    def client_id(self) -> str:
        return f"{self.device_id}/{self.module_id}"


@dataclass(frozen=True, slots=True)
class Settings:
    """`served` is the entry script, or the model file when `is_script` is false."""

    served: Path
    is_script: bool
    model_dir: Path | None
    app_root: Path
    model: str
    host: str
    port: int
    http_fd: int | None
    health_fd: int | None
    hold: bool
    threads: int
    body_limit_bytes: int
    log_level: str
    service: Service
    edge: EdgeModule | None
    cors_origins: tuple[str, ...] = ()
    scoring_timeout_ms: int = DEFAULT_SCORING_TIMEOUT_MS
    body_timeout_s: int = DEFAULT_BODY_TIMEOUT_S
    health_port: int | None = None
    log_format: str = "text"
    warnings: tuple[str, ...] = ()
    golden: Path | None = None
    collects_data: bool = False
    providers: tuple[str, ...] = DEFAULT_PROVIDERS
    required_providers: tuple[str, ...] = ()
    workers: int = 1
    worker_timeout_s: int = DEFAULT_WORKER_TIMEOUT_S
    source_directory: Path | None = None
    says_version: bool = True
    access_log: bool = False

    @classmethod
    def read(
        cls,
        environment: Mapping[str, str],
        *,
        entry_script: str | None = None,
        model: str | None = None,
        model_dir: str | None = None,
        host: str | None = None,
        port: int | None = None,
        golden: str | None = None,
        provider: str | None = None,
        require_provider: str | None = None,
        workers: int | None = None,
        cwd: Path,
    ) -> Settings:
        """Combine arguments and environment.

        Raises:
            SettingsError: a value cannot be used, or there is nothing to serve.
        """
        folder = _folder(model_dir or environment.get("AZUREML_MODEL_DIR"), cwd)
        app_root = cwd if entry_script else cwd / environment.get("AML_APP_ROOT", "")
        served, is_script = _what_to_serve(
            environment, entry_script=entry_script, model=model, folder=folder, app_root=app_root, cwd=cwd
        )
        providers = _providers(environment, "EDGEWRIGHT_PROVIDER", provider, is_script)
        required = _providers(environment, "EDGEWRIGHT_REQUIRE_PROVIDER", require_provider, is_script)
        return cls(
            served=served,
            is_script=is_script,
            model_dir=folder,
            app_root=app_root,
            model=environment.get("EDGEWRIGHT_MODEL") or served.stem,
            host=host or DEFAULT_HOST,
            port=_port(port),
            http_fd=_number(environment, "EDGEWRIGHT_HTTP_FD", 0, 1 << 20),
            health_fd=_number(environment, "EDGEWRIGHT_HEALTH_FD", 0, 1 << 20),
            hold=_flag(environment, "EDGEWRIGHT_HOLD"),
            threads=_number(environment, "EDGEWRIGHT_THREADS", 1, 64) or 1,
            body_limit_bytes=_number(environment, "EDGEWRIGHT_MAX_BODY_BYTES", 1, 1 << 40)
            or DEFAULT_BODY_LIMIT_BYTES,
            log_level=_log_level(environment),
            service=_service(environment),
            edge=_edge_module(environment),
            cors_origins=_cors_origins(environment),
            scoring_timeout_ms=_number(environment, "SCORING_TIMEOUT_MS", 1, 1 << 40)
            or DEFAULT_SCORING_TIMEOUT_MS,
            body_timeout_s=_number(environment, "EDGEWRIGHT_BODY_TIMEOUT_S", 1, 3600)
            or DEFAULT_BODY_TIMEOUT_S,
            health_port=_health_port(environment),
            log_format=_one_of(environment, "EDGEWRIGHT_LOG_FORMAT", _LOG_FORMATS),
            warnings=_warnings(environment),
            collects_data=_flag(environment, "AML_MODEL_DC_STORAGE_ENABLED"),
            golden=_golden(environment, golden, app_root, cwd),
            providers=providers or DEFAULT_PROVIDERS,
            required_providers=required,
            workers=_workers(environment, workers),
            worker_timeout_s=_number(environment, "WORKER_TIMEOUT", 1, 86_400) or DEFAULT_WORKER_TIMEOUT_S,
            source_directory=_source_directory(environment, app_root),
            says_version=_flag(environment, "SERVER_VERSION_LOG_RESPONSE_ENABLED", default=True),
            access_log=_flag(environment, "EDGEWRIGHT_ACCESS_LOG"),
        )


def parse_message_routes(text: str) -> dict[str, str]:
    """`"input1=output1,in2=out2"` → {"input1": "output1", "in2": "out2"}; empty text: none.

    Raises:
        SettingsError: a part is not `input=output`, or an input is named twice.
    """
    routes: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        source, separator, target = (piece.strip() for piece in part.partition("="))
        if not (source and separator and target) or "/" in part or source in routes:
            raise SettingsError(
                f"EDGEWRIGHT_MESSAGES must be 'input=output' pairs joined by commas, each input once, not '{text}'"
            )
        routes[source] = target
    return routes


def _what_to_serve(
    environment: Mapping[str, str],
    *,
    entry_script: str | None,
    model: str | None,
    folder: Path | None,
    app_root: Path,
    cwd: Path,
) -> tuple[Path, bool]:
    """The file and whether it is a script; an argument wins over the environment, a script over a model file."""
    if entry_script and model:
        raise SettingsError("give --entry-script or --model, not both: a script opens its model itself")
    if entry_script:
        return cwd / entry_script, True
    if model:
        return _model_file(model, folder, cwd), False
    if environment.get("AZUREML_ENTRY_SCRIPT"):
        return app_root / environment["AZUREML_ENTRY_SCRIPT"], True
    if environment.get("EDGEWRIGHT_MODEL_FILE") and folder:
        return folder / environment["EDGEWRIGHT_MODEL_FILE"], False
    found = sorted(folder.glob("*.onnx")) if folder else []
    if len(found) == 1:
        return found[0], False
    where = f" ({len(found)} .onnx files in {folder})" if folder else ""
    raise SettingsError(f"nothing to serve: give --entry-script score.py or --model model.onnx{where}")


def _model_file(model: str, folder: Path | None, cwd: Path) -> Path:
    candidates: Sequence[Path] = [cwd / model, *([folder / model] if folder else [])]
    return next((file for file in candidates if file.is_file()), candidates[0])


def _folder(text: str | None, cwd: Path) -> Path | None:
    if not text:
        return None
    if not (cwd / text).is_dir():
        raise SettingsError(f"the model folder does not exist: {cwd / text}")
    return cwd / text


def _providers(
    environment: Mapping[str, str], variable: str, given: str | None, is_script: bool
) -> tuple[str, ...]:
    text = given if given is not None else environment.get(variable, "")
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if names and is_script:
        option = "--provider" if variable == "EDGEWRIGHT_PROVIDER" else "--require-provider"
        raise SettingsError(
            f"{option} ({variable}) is for a model without a script, found '{text}': a script opens its model itself"
        )
    return names


def _golden(environment: Mapping[str, str], golden: str | None, app_root: Path, cwd: Path) -> Path | None:
    in_image = environment.get("EDGEWRIGHT_GOLDEN")
    if not golden and not in_image:
        return None
    folder = cwd / golden if golden else app_root / str(in_image)
    if not folder.is_dir():
        raise SettingsError(f"the folder of golden cases does not exist: {folder}")
    return folder


def _port(port: int | None) -> int:
    if port is None:
        return DEFAULT_PORT
    if not 0 <= port <= 65535:
        raise SettingsError(f"--port must be 0 to 65535, not {port}")
    return port


def _workers(environment: Mapping[str, str], given: int | None) -> int:
    if given is None:
        return _number(environment, "WORKER_COUNT", 1, MAX_WORKERS) or 1
    if not 1 <= given <= MAX_WORKERS:
        raise SettingsError(f"--workers must be 1 to {MAX_WORKERS}, not {given}")
    return given


def _number(environment: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SettingsError(f"{name} must be a number from {low} to {high}, not '{text}'")
    return int(text)


def _source_directory(environment: Mapping[str, str], app_root: Path) -> Path | None:
    name = environment.get("AZUREML_SOURCE_DIRECTORY", "").strip()
    return app_root / name if name else None


def _flag(environment: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    text = environment.get(name, "").strip().lower()
    if not text:
        return default
    if text not in ("0", "1", "true", "false"):
        raise SettingsError(f"{name} must be 1 or 0, not '{text}'")
    return text in ("1", "true")


def _log_level(environment: Mapping[str, str]) -> str:
    level = environment.get("AZUREML_LOG_LEVEL", "").strip().upper() or "INFO"
    if level not in _LOG_LEVELS:
        raise SettingsError(f"AZUREML_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}, not '{level}'")
    return level


def _one_of(environment: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The first choice is the default."""
    value = environment.get(name, "").strip().lower() or choices[0]
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, not '{value}'")
    return value


def _cors_origins(environment: Mapping[str, str]) -> tuple[str, ...]:
    parts = (part.strip() for part in environment.get("AML_CORS_ORIGINS", "").split(","))
    origins = tuple(filter(None, parts))
    for origin in origins:
        if not origin.isascii() or not origin.isprintable() or " " in origin:
            raise SettingsError(
                f"AML_CORS_ORIGINS must be origins like https://app.example joined by commas, not '{origin}'"
            )
    return origins


def _health_port(environment: Mapping[str, str]) -> int | None:
    if not _flag(environment, "SEPERATE_HEALTH_ENDPOINT"):  # Azure ML's spelling
        return None
    port = _number(environment, "HEALTH_PORT", 0, 65535)
    return DEFAULT_HEALTH_PORT if port is None else port


def _warnings(environment: Mapping[str, str]) -> tuple[str, ...]:
    asked = (name for name in _WITHOUT_EFFECT if environment.get(name, "").strip().lower() not in _OFF)
    return tuple(f"{name} is set and has no effect: {_WITHOUT_EFFECT[name]}" for name in asked)


_OFF = ("", "0", "false")


def _service(environment: Mapping[str, str]) -> Service:
    names = {"name": "SERVICE_NAME", "version": "SERVICE_VERSION", "path_prefix": "SERVICE_PATH_PREFIX"}
    return Service(**{field: environment[name] for field, name in names.items() if environment.get(name)})


def _edge_module(environment: Mapping[str, str]) -> EdgeModule | None:
    """None outside IoT Edge, or with EDGEWRIGHT_MESSAGES set to nothing."""
    if not environment.get("IOTEDGE_WORKLOADURI"):
        return None
    routes = parse_message_routes(environment.get("EDGEWRIGHT_MESSAGES", DEFAULT_MESSAGE_ROUTES))
    if not routes:
        return None
    missing = [name for name in _EDGE_VARIABLES.values() if not environment.get(name)]
    if missing:
        raise SettingsError(
            f"IOTEDGE_WORKLOADURI is set, but not {', '.join(missing)}; IoT Edge sets them all"
        )
    return EdgeModule(**{field: environment[name] for field, name in _EDGE_VARIABLES.items()}, routes=routes)
