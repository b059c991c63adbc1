"""How the runtime's log lines look: text, or one JSON object a line (EDGEWRIGHT_LOG_FORMAT)."""

from __future__ import annotations

import json
import logging
import time

_DATE = "%Y-%m-%dT%H:%M:%S"


def configure(level: str, style: str) -> None:
    """Set up the root logger; `style` is text or json. What a script logs looks the same."""
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])


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
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
