"""Settings from a file: AZUREML_CONFIG_FILE, else `config.json` in AML_APP_ROOT, else beside the entry script.

A JSON object of environment variables, as Azure ML's server reads it: `{"SCORING_TIMEOUT_MS": 1000}`. What the environment says
wins. A `config.json` that was found and holds none of these names is somebody else's (a model's, say) and is left alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

from .errors import SettingsError
from .settings import VARIABLES

log = logging.getLogger("scoring_runtime")

NAME = "config.json"
LIMIT_BYTES = 1 << 20


def apply_config_file(
    environment: MutableMapping[str, str], *, given: str | None, entry_script: str | None, cwd: Path
) -> list[str]:
    """Put what a file says into the environment.

    Returns:
        Warnings: names of the file that mean nothing here.

    Raises:
        SettingsError: the file that was named cannot be read, or a value is no text, number or boolean.
    """
    named = given or environment.get("AZUREML_CONFIG_FILE")
    if named:
        return _apply(environment, cwd / named, _read(cwd / named))
    for file in _candidates(environment, entry_script, cwd):
        try:
            document = _read(file)
        except SettingsError as error:
            return [f"{error}; it is not used"]
        if not VARIABLES.keys().isdisjoint(document):
            return _apply(environment, file, document)
    return []


def _candidates(environment: MutableMapping[str, str], entry_script: str | None, cwd: Path) -> Iterable[Path]:
    root = cwd / environment.get("AML_APP_ROOT", "")
    script = (
        cwd / entry_script if entry_script else root / environment.get("AZUREML_ENTRY_SCRIPT", "score.py")
    )
    files = dict.fromkeys((root / NAME, script.parent / NAME))
    return (file for file in files if file.is_file() and file.stat().st_size)


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(LIMIT_BYTES + 1)
        if len(data) > LIMIT_BYTES:
            raise SettingsError(f"the settings file {file} exceeds {LIMIT_BYTES} bytes")
        document = json.loads(data)
    except OSError as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the settings file {file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"the settings file {file} must be a JSON object of environment variables")
    return document


def _apply(environment: MutableMapping[str, str], file: Path, document: dict[str, Any]) -> list[str]:
    known = {name: value for name, value in document.items() if name in VARIABLES}
    for name, value in known.items():
        environment.setdefault(name, _text(name, value, file))
    unknown = sorted(document.keys() - known.keys())
    return [f"{file} holds what is no setting of this server: {', '.join(unknown)}"] if unknown else []


def _text(name: str, value: Any, file: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    raise SettingsError(
        f"{name} in {file} must be text, a number or true or false, not {json.dumps(value)[:40]}"
    )
