"""How the runtime's log lines look: text, or one JSON object a line (EDGEWRIGHT_LOG_FORMAT), or as a `logging.json` says.

That file is a dictionary for `logging.config.dictConfig`, in AML_APP_ROOT or beside the entry script, as Azure ML's server takes it.
Our loggers are `scoring_runtime` and, for access lines, `scoring_runtime.access`.
"""

from __future__ import annotations

import json
import logging
import logging.config
import time
from collections.abc import Iterable
from pathlib import Path

from .errors import SettingsError

_DATE = "%Y-%m-%dT%H:%M:%S"


def configure(level: str, style: str) -> None:
    """Set up the root logger; `style` is text or json. What a script logs looks the same."""
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])


def configure_by_file(folders: Iterable[Path]) -> None:
    """Apply the first `logging.json` of these folders, if there is one.

    Raises:
        SettingsError: it is no JSON object, or the logging package refuses it.
    """
    file = next((folder / "logging.json" for folder in folders if (folder / "logging.json").is_file()), None)
    if file is None:
        return
    try:
        # Loggers exist already; that they were to be silenced is hardly meant.
        logging.config.dictConfig({"disable_existing_loggers": False, **json.loads(file.read_bytes())})
    except Exception as error:  # whatever the classes that it names raise
        raise SettingsError(f"{file} cannot be used: {type(error).__name__}: {error}") from error
    logging.getLogger("scoring_runtime").info("logging as %s says", file)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", _DATE)
        self.converter = time.gmtime


class JsonFormatter(logging.Formatter):
    """Keys: time, level, logger, message, and traceback where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, _DATE)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "parts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
