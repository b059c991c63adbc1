"""Flags in the manner of `docker run` become createOptions as Docker's Engine takes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contracts.create_options import CreateOptions
from edge_contracts.errors import ContractError
from publisher.container_flags import create_options
from publisher.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "host_config"),
    [
        ({"ports": ["5001"]}, {"PortBindings": {"5001/tcp": [{"HostPort": "5001"}]}}),
        (
            {"ports": ["127.0.0.1:8080"]},
            {"PortBindings": {"5001/tcp": [{"HostPort": "8080", "HostIp": "127.0.0.1"}]}},
        ),
        (
            {"ports": ["0.0.0.0:00080:9000/udp", "81"]},
            {
                "PortBindings": {
                    "9000/udp": [{"HostPort": "80", "HostIp": "0.0.0.0"}],
                    "5001/tcp": [{"HostPort": "81"}],
                }
            },
        ),
        ({"memory": "512m"}, {"Memory": 512 << 20}),
        ({"memory": "2G"}, {"Memory": 2 << 30}),
        ({"memory": "6291456"}, {"Memory": 6291456}),
        ({"cpus": "1.5"}, {"NanoCpus": 1_500_000_000}),
        ({"cpus": "0.1"}, {"NanoCpus": 100_000_000}),
        ({"gpu": "all"}, {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}),
        ({"gpu": "2"}, {"DeviceRequests": [{"Count": 2, "Capabilities": [["gpu"]]}]}),
        (
            {"gpu": "GPU-1a,GPU-2b"},
            {"DeviceRequests": [{"DeviceIDs": ["GPU-1a", "GPU-2b"], "Capabilities": [["gpu"]]}]},
        ),
        (
            {"devices": ["/dev/video0", "/dev/a:/dev/b:r"]},
            {
                "Devices": [
                    {
                        "PathOnHost": "/dev/video0",
                        "PathInContainer": "/dev/video0",
                        "CgroupPermissions": "rwm",
                    },
                    {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"},
                ]
            },
        ),
        (
            {"volumes": ["/srv/in:/in:ro", "cache:/var/cache"]},
            {"Binds": ["/srv/in:/in:ro", "cache:/var/cache"]},
        ),
    ],
)
def test_flag_becomes_its_member(flags: dict[str, Any], host_config: dict[str, Any]) -> None:
    assert create_options(**flags) == {"HostConfig": host_config}


def test_nothing_asked_is_nothing_said() -> None:
    assert create_options() == {}


def test_other_options_stay_and_flags_win() -> None:
    others = {"User": "1000", "HostConfig": {"Memory": 1, "LogConfig": {"Type": "local"}}}
    assert create_options(memory="64m", others=others) == {
        "User": "1000",
        "HostConfig": {"Memory": 64 << 20, "LogConfig": {"Type": "local"}},
    }
    with pytest.raises(ContractError, match="HostPort"):
        create_options(others={"HostConfig": {"PortBindings": {"5001/tcp": [{"HostPort": 5001}]}}})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        *(
            ({"ports": [text]}, "--port")
            for text in (
                "0",
                "65536",
                "",
                "http",
                "1.2.3:80",
                "::1:80",
                "host:80",
                "80:",
                "-1",
                "٨٠",
                "80/sctp",
                "80:0",
            )
        ),
        *(({"memory": text}, "--memory") for text in ("", "5m", "1t", "-1m", "1.5g", "m")),
        *(({"cpus": text}, "--cpus") for text in ("0", "", "-1", "1,5", "1025", "1e3", "nan")),
        *(({"gpu": text}, "--gpu") for text in ("", "0", "a b", "x,")),
        *(({"devices": [text]}, "--device") for text in ("video0", "/dev/a:b", "/dev/a:/dev/b:x", "")),
        *(({"volumes": [text]}, "--volume") for text in ("/a", "a b:/c", "/a:c", "/a:/b:exec", "../a:/b")),
    ],
)
def test_bad_flag_is_refused_by_name(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        create_options(**flags)
    assert caught.value.where == named


@given(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp"]))
def test_port_is_found_again(port: int, container: int, protocol: str) -> None:
    options = CreateOptions(create_options(ports=[f"{port}:{container}/{protocol}"]))
    assert options.host_port_for(container, protocol) == (None, port)
    assert options.fixed_host_ports() == [(port, protocol)]


@given(st.text(max_size=12))
def test_any_text_is_taken_or_refused(text: str) -> None:
    for flag, value in (
        ("ports", [text]),
        ("memory", text),
        ("cpus", text),
        ("gpu", text),
        ("devices", [text]),
    ):
        try:
            create_options(**{flag: value})  # type: ignore[arg-type]
        except UsageError as error:
            assert repr(text) in error.message
