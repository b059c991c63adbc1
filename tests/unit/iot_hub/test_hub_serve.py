from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iot_hub.__main__ import main
from iot_hub.serve import HubConfig


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("hub.example", False),
    ],
)
def test_registry_is_plain_http_on_loopback_alone(host: str, plain: bool) -> None:
    assert HubConfig(Path("x"), host).registry_is_plain is plain


def test_clients_are_told_a_name_they_can_reach() -> None:
    assert HubConfig(Path("x"), "127.0.0.1", san=("hub.example",)).public_name == "127.0.0.1"
    assert HubConfig(Path("x"), "0.0.0.0", san=("hub.example",)).public_name == "hub.example"
    assert HubConfig(Path("x"), "0.0.0.0").public_name not in ("", "0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "command"),
        (["serve"], "--data"),
        (
            ["serve", "--data", "x", "--https-port", "70000"],
            "must be an integer from 0 to 65535, not '70000'",
        ),
        (["serve", "--data", "x", "--telemetry-max-mb", "0"], "--telemetry-max-mb"),
    ],
)
def test_usage_error_names_the_argument(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_help_answers_without_loading_a_server() -> None:
    code = "import sys; from iot_hub.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert "starlette" not in done.stdout
    assert "cryptography" not in done.stdout
