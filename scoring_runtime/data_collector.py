"""`ModelDataCollector` of Azure ML: what went in and what came out, as CSV files beside the module.

1. Off unless AML_MODEL_DC_STORAGE_ENABLED=true; AML_MODEL_DC_DEBUG=true prints the rows instead of storing them.
2. File: `<root>/modeldata/<subscription>/<group>/<workspace>/<webservice>/<model>/<version>/<designation>/<yyyy>/<mm>/<dd>/data.csv`
   by UTC; the header row from `feature_names` or the columns of a data frame, then the eight correlation columns.
3. One dimension is one row, unless there is a single feature; more dimensions are rows, each flattened.
4. Rows of `inputs` get new correlation ids; what the same request collects afterwards gets the same ones, row by row.
5. `collect` never waits for the disk: a thread writes within FLUSH_S, and the rest when the module ends. More than
   QUEUE_BYTES waiting are dropped. Files older than the newest are deleted to stay under the limit; then rows are dropped.
   What is dropped is counted in a warning.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .current_request import request_id

log = logging.getLogger("scoring_runtime")

DESIGNATIONS = ("inputs", "predictions", "labels", "signals", "general")
CORRELATION_COLUMNS = (
    "$aml_dc_correlation_id",
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
)
FLUSH_S = 1.0
FLUSH_BYTES = 64 * 1024
QUEUE_BYTES = 4 * 1024 * 1024
# Half of a module's /tmp (64 MB, docs/reference/image.md).
DEFAULT_MAX_BYTES = 32 * 1024 * 1024
_WARN_EVERY_S = 60.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_BOUNDARY_MINUTES = {"hour": 60}
_DAY_MINUTES = 1440


class ModelDataCollector:
    """One table of one model; the signature is Azure ML's."""

    def __init__(  # noqa: PLR0917
        self,
        model_name: str,
        designation: str = "default",
        feature_names: Sequence[str] | None = None,
        workspace: str = "default/default/default",
        webservice_name: str = "default",
        model_version: str = "default",
        collection_name: str = "default",
    ) -> None:
        designation = "general" if designation == "default" else designation
        if designation not in DESIGNATIONS:
            raise ValueError(f"designation must be one of {', '.join(DESIGNATIONS)}, not '{designation}'")
        if not model_name:
            raise ValueError("model_name must not be empty")
        if len(workspace.split("/")) != 3:
            raise ValueError(f"workspace must be 'subscription/group/workspace', not '{workspace}'")
        self._designation = designation
        self._features = list(feature_names) if feature_names is not None else None
        self._identity = (workspace, webservice_name, model_name, str(model_version))
        parts = [*workspace.split("/"), webservice_name, model_name, str(model_version), designation]
        self._folder = Path("modeldata", *map(_path_part, parts))
        self._settings = CollectionSettings.read(os.environ)
        self._last = threading.local()

    def collect(self, input_data: Any, user_correlation_id: str = "") -> Any:
        """Store rows of a list, a numpy array, or a pandas or Spark data frame.

        Returns:
            The rows' correlation columns as a list of lists, for `add_correlations`; None when collecting is off.
        """
        settings = self._settings
        if not (settings.enabled or settings.debug):
            return None
        table = _table(input_data, self._features)
        if table is None:
            warnings.warn(
                f"ModelDataCollector cannot collect a {type(input_data).__name__}; expected a list, an array or a"
                " data frame",
                stacklevel=2,
            )
            return None
        names, rows = table
        if names[-len(CORRELATION_COLUMNS) :] == list(CORRELATION_COLUMNS):  # add_correlations was used
            correlations = [row[-len(CORRELATION_COLUMNS) :] for row in rows]
            whole = rows
        else:
            correlations = self._correlations(len(rows), user_correlation_id)
            names = [*names, *CORRELATION_COLUMNS]
            whole = [[*row, *more] for row, more in zip(rows, correlations, strict=True)]
        if settings.debug:
            print(_csv([names, *whole]), end="")
        else:
            _storage(settings).add(self._folder, names, whole)
        return correlations

    def add_correlations(self, input_data: Any, correlation_headers: Any) -> Any:
        """`input_data`'s rows with the columns that `collect` of the inputs returned, for another `collect`."""
        table = _table(input_data, self._features)
        if table is None or correlation_headers is None:
            return input_data
        names, rows = table
        joined = [[*row, *more] for row, more in zip(rows, correlation_headers, strict=True)]
        return Collected([*names, *CORRELATION_COLUMNS], joined)

    def _correlations(self, count: int, user_id: str) -> list[list[Any]]:
        """Those of this request's inputs where there are as many rows, else new ones."""
        now = datetime.now(UTC).isoformat()
        workspace, service, model, version = self._identity
        ids = _ids_of_request(self._designation, model, count, user_id)
        fixed = [now, self._settings.boundary_minutes, workspace, service, model, version, request_id()]
        return [[identifier, *fixed] for identifier in ids]


@dataclass(frozen=True)
class Collected:
    """Rows that know their columns."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    enabled: bool
    debug: bool
    boundary_minutes: int
    root: Path
    max_bytes: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> CollectionSettings:
        limit = environment.get("EDGEWRIGHT_COLLECTED_MAX_BYTES", "")
        root = environment.get("EDGEWRIGHT_COLLECTED_DIR") or tempfile.gettempdir()
        return cls(
            is_enabled(environment),
            environment.get("AML_MODEL_DC_DEBUG", "").strip().lower() == "true",
            _BOUNDARY_MINUTES.get(environment.get("AML_MODEL_DC_BOUNDARY", "").strip().lower(), _DAY_MINUTES),
            Path(root),
            int(limit) if limit.isascii() and limit.isdigit() else DEFAULT_MAX_BYTES,
        )


def is_enabled(environment: Mapping[str, str]) -> bool:
    return environment.get("AML_MODEL_DC_STORAGE_ENABLED", "").strip().lower() == "true"


_INPUT_IDS = threading.local()


def _ids_of_request(designation: str, model: str, count: int, user_id: str) -> list[str]:
    key = (model, request_id())
    if designation != "inputs":
        known: tuple[Any, list[str]] | None = getattr(_INPUT_IDS, "last", None)
        if known is not None and known[0] == key and len(known[1]) == count:
            return known[1]
    prefix = f"{user_id}-" if user_id else ""
    ids = [f"{prefix}{uuid.uuid4()}" for _ in range(count)]
    if designation == "inputs":
        _INPUT_IDS.last = (key, ids)
    return ids


# ---- rows ----


def _table(data: Any, features: Sequence[str] | None) -> tuple[list[str], list[list[Any]]] | None:
    """(column names, rows), None for what is no table."""
    if isinstance(data, Collected):
        return data.columns, data.rows
    if hasattr(data, "toPandas"):  # Spark
        data = data.toPandas()
    if hasattr(data, "columns") and hasattr(data, "itertuples"):  # pandas
        names = list(features) if features is not None else [str(name) for name in data.columns]
        return names, [list(row) for row in data.itertuples(index=False, name=None)]
    if hasattr(data, "tolist") and hasattr(data, "shape"):  # numpy
        data = data.tolist()
    if isinstance(data, int | float) and not isinstance(data, bool):
        data = [data]  # an array of no dimension
    if not isinstance(data, list | tuple):
        return None
    rows = _rows(list(data), features)
    width = max((len(row) for row in rows), default=0)
    names = list(features) if features is not None else [str(number) for number in range(width)]
    return names, rows


def _rows(data: list[Any], features: Sequence[str] | None) -> list[list[Any]]:
    if any(isinstance(member, list | tuple) for member in data):
        return [list(_flat(member)) for member in data]
    one_column = features is not None and len(features) == 1
    return [[member] for member in data] if one_column else [data]


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for member in value:
            yield from _flat(member)
    else:
        yield value


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _path_part(text: str) -> str:
    part = _UNSAFE.sub("_", text)
    return part if part.strip(".") else "_"


# ---- storage ----


class Storage:
    """All tables of a process: a bounded buffer and the thread that writes it."""

    def __init__(self, settings: CollectionSettings) -> None:
        self._root = settings.root
        self._max_bytes = settings.max_bytes
        self._changed = threading.Condition()
        self._pending: dict[tuple[Path, tuple[str, ...]], list[bytes]] = {}
        self._pending_bytes = 0
        self._closed = False
        self._dropped = 0
        self._warned = -_WARN_EVERY_S
        self._thread = threading.Thread(target=self._write_forever, name="data-collector", daemon=True)
        self._thread.start()

    def add(self, folder: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        text = _csv(rows).encode()
        key = (folder / datetime.now(UTC).strftime("%Y/%m/%d"), tuple(names))
        with self._changed:
            if self._closed or self._pending_bytes + len(text) > QUEUE_BYTES:
                self._drop(len(rows))
                return
            self._pending.setdefault(key, []).append(text)
            self._pending_bytes += len(text)
            if self._pending_bytes >= FLUSH_BYTES:
                self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits; nothing is taken afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _write_forever(self) -> None:
        while not self._closed:
            with self._changed:
                if not self._closed:
                    self._changed.wait(FLUSH_S)
            self._write_pending()
        self._write_pending()

    def _write_pending(self) -> None:
        with self._changed:
            pending, self._pending, self._pending_bytes = self._pending, {}, 0
        for (folder, names), pieces in pending.items():
            try:
                self._append(self._root / folder / "data.csv", names, b"".join(pieces))
            except OSError as error:
                log.warning("collected data cannot be written to %s: %s", self._root / folder, error.strerror)
                self._drop(len(pieces))

    def _append(self, file: Path, names: Sequence[str], text: bytes) -> None:
        header = b"" if file.exists() else _csv([names]).encode()
        if not self._make_room(file, len(header) + len(text)):
            self._drop(text.count(b"\n"))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        if header:
            with contextlib.suppress(FileExistsError), file.open("xb") as new:
                new.write(header)
        with file.open("ab", buffering=0) as existing:  # one write: other processes of the module append too
            existing.write(text)

    def _make_room(self, current: Path, size_bytes: int) -> bool:
        """Delete the oldest days until `size_bytes` fit; the file being written stays."""
        files = sorted((self._root / "modeldata").rglob("data.csv"), key=lambda file: file.parts[-4:-1])
        sizes = {file: file.stat().st_size for file in files}
        total = sum(sizes.values()) + size_bytes
        for file in files:
            if total <= self._max_bytes:
                break
            if file != current and file.parts[-4:-1] < current.parts[-4:-1]:
                file.unlink(missing_ok=True)
                total -= sizes[file]
        return total <= self._max_bytes

    def _drop(self, rows: int) -> None:
        self._dropped += rows
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            log.warning(
                "collected data is at its limit (%d bytes under %s): %d rows dropped so far",
                self._max_bytes,
                self._root / "modeldata",
                self._dropped,
            )


_STORAGES: dict[tuple[int, Path], Storage] = {}
_STORAGES_LOCK = threading.Lock()


def _storage(settings: CollectionSettings) -> Storage:
    """One for each process and folder: a thread does not survive a fork."""
    key = (os.getpid(), settings.root)
    found = _STORAGES.get(key)
    if found is not None:
        return found
    with _STORAGES_LOCK:
        if key not in _STORAGES:
            _STORAGES[key] = Storage(settings)
        return _STORAGES[key]


def close_all() -> None:
    """Write what waits, at the end of the process."""
    with _STORAGES_LOCK:
        mine = [key for key in _STORAGES if key[0] == os.getpid()]
        storages = [_STORAGES.pop(key) for key in mine]
    for storage in storages:
        storage.close()
