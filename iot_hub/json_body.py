"""JSON that came from outside, read strictly."""

from __future__ import annotations

import json
from typing import Any

from iot_hub.errors import HubRequestError


def parse_json(raw: bytes, where: str) -> Any:
    """The value in `raw`; null for an empty body.

    Raises:
        HubRequestError: not UTF-8, not JSON, nested too deep, NaN or infinity, or text that is not Unicode.
    """
    if not raw.strip():
        return None
    try:
        value = json.loads(raw.decode())
        # What cannot be written cannot be answered or stored: infinity (1e999) and lone surrogates ("\\ud800").
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise HubRequestError("IotHubFormatError", f"{where} must be JSON: {error}", where=where) from error
    return value
