from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError, SasError
from edge_contracts.redact import Secret
from edge_contracts.sas import ConnectionString, make_sas, parse_sas, sign, verify_sas

KEY = base64.b64encode(b"k" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()
RESOURCE = "hub.example/devices/d/modules/m"
NOW = 1_900_000_000.0


def shuffled(token: str, order: Sequence[int]) -> str:
    prefix, fields = token.split(" ")
    parts = fields.split("&")
    return f"{prefix} {'&'.join(parts[index] for index in order)}"


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(4)), st.binary(min_size=1, max_size=64), st.text(alphabet="ad/:.%é ", max_size=10)
)
def test_fields_come_in_any_order(order: list[int], key: bytes, tail: str) -> None:
    key_b64 = base64.b64encode(key).decode()
    token = make_sas(f"hub.example/{tail}", key_b64, expiry=2_000_000_000, policy="own er&")
    parsed = verify_sas(shuffled(token, order), [key_b64], audience=f"hub.example/{tail}", now=NOW)
    assert (parsed.policy, parsed.expiry, parsed.resource) == (
        "own er&",
        2_000_000_000,
        f"hub.example/{tail}",
    )


def test_token_is_signed_as_the_service_documents_it() -> None:
    encoded = quote(RESOURCE, safe="")
    digest = hmac.new(b"k" * 32, f"{encoded}\n1999999999".encode(), hashlib.sha256).digest()
    signature = quote(base64.b64encode(digest).decode(), safe="")
    assert make_sas(RESOURCE, KEY, expiry=1999999999) == (
        f"SharedAccessSignature sr={encoded}&sig={signature}&se=1999999999"
    )
    assert sign(KEY, f"{encoded}\n1999999999".encode()) == base64.b64encode(digest).decode()


@pytest.mark.parametrize("safe", ["", "/", "/:"])
def test_resource_may_be_encoded_as_the_client_likes(safe: str) -> None:
    encoded = quote("localhost:8443/devices/d", safe=safe)
    for spelled in (encoded, encoded.replace("%2F", "%2f").replace("%3A", "%3a")):
        signature = sign(KEY, f"{spelled}\n2000000000".encode())
        token = f"SharedAccessSignature sr={spelled}&sig={quote(signature)}&se=2000000000"
        assert verify_sas(token, [KEY], audience="localhost:8443/devices/d", now=NOW).policy is None


def test_either_key_opens() -> None:
    token = make_sas(RESOURCE, OTHER, expiry=2_000_000_000)
    assert verify_sas(token, [KEY, OTHER], audience=RESOURCE, now=NOW).resource == RESOURCE


@pytest.mark.parametrize(
    ("resource", "audience", "opens"),
    [
        ("hub.example", "hub.example/devices/d", True),
        ("HUB.example", "hub.EXAMPLE/devices/d", True),
        ("hub.example/devices/d", "hub.example/devices/d", True),
        ("hub.example/devices/d/", "hub.example/devices/d", True),
        ("hub.example/devices/d", "hub.example/devices/d/modules/m", True),
        ("hub.example/devices/d", "hub.example/devices/d2", False),
        ("hub.example/devices/d2", "hub.example/devices/d", False),
        ("hub.example/devices/D", "hub.example/devices/d", False),
        ("hub.example/devices/d/modules/m", "hub.example/devices/d", False),
        ("other.example/devices/d", "hub.example/devices/d", False),
        ("hub.example:8443", "hub.example", False),
        ("/", "hub.example", False),
    ],
)
def test_token_opens_its_resource_and_below(resource: str, audience: str, opens: bool) -> None:
    token = make_sas(resource, KEY, expiry=2_000_000_000)
    if opens:
        verify_sas(token, [KEY], audience=audience, now=NOW)
        return
    with pytest.raises(SasError) as caught:
        verify_sas(token, [KEY], audience=audience, now=NOW)
    assert caught.value.code == "sas-audience"


def test_ended_token_is_refused_to_the_second() -> None:
    token = make_sas(RESOURCE, KEY, expiry=2_000_000_000)
    verify_sas(token, [KEY], audience=RESOURCE, now=1_999_999_999.9)
    with pytest.raises(SasError, match="ended at 2000000000, now is 2000000000") as caught:
        verify_sas(token, [KEY], audience=RESOURCE, now=2_000_000_000.0)
    assert caught.value.code == "sas-expired"


def test_changed_token_is_refused() -> None:
    token = make_sas(RESOURCE, KEY, expiry=2_000_000_000)
    for changed in (token.replace("se=2000000000", "se=2000000001"), token.replace("sig=", "sig=A")):
        with pytest.raises(SasError) as caught:
            verify_sas(changed, [KEY], audience=RESOURCE, now=NOW)
        assert caught.value.code == "sas-signature"
    with pytest.raises(SasError, match="signed by none of its keys"):
        verify_sas(token, [], audience=RESOURCE, now=NOW)


@pytest.mark.parametrize(
    ("token", "part"),
    [
        ("", "must begin with 'SharedAccessSignature sr='"),
        ("Basic abc", "must begin with"),
        ("SharedAccessSignature sr=h&se=1", "sig not found"),
        ("SharedAccessSignature ", "sr, sig, se not found"),
        ("SharedAccessSignature sr=h&sig=secret&se=soon", "se must be seconds since the epoch, not 'soon'"),
        ("SharedAccessSignature sr=h&sig=secret&se=1e9", "se must be seconds"),
    ],
)
def test_malformed_token_is_named_without_its_signature(token: str, part: str) -> None:
    with pytest.raises(SasError) as caught:
        parse_sas(token)
    assert caught.value.code == "sas-malformed"
    assert part in caught.value.message
    assert "secret" not in caught.value.message


def test_signature_is_not_shown() -> None:
    parsed = parse_sas(make_sas(RESOURCE, KEY, expiry=2_000_000_000))
    assert parsed.signature not in repr(parsed)


def test_key_that_is_no_base64_is_refused() -> None:
    with pytest.raises(ContractError, match="key must be base64"):
        make_sas(RESOURCE, "not base64!", expiry=1)


@pytest.mark.parametrize(
    "text",
    [
        f"HostName=h.example;DeviceId=d;SharedAccessKey={KEY}",
        f"HostName=h.example;DeviceId=d;ModuleId=m;SharedAccessKey={KEY};GatewayHostName=127.0.0.2",
        f"HostName=localhost:8443;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}",
        f"HostName=[::1]:8443;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}",
        f"HostName=[::1];SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}",
    ],
)
def test_connection_strings_survive_a_round_trip(text: str) -> None:
    parsed = ConnectionString.parse(text)
    assert parsed.format() == text
    assert parsed.shared_access_key == Secret(KEY)
    assert KEY not in repr(parsed)


def test_connection_string_of_a_service() -> None:
    parsed = ConnectionString.parse(
        f" hostname=localhost:8443;SharedAccessKeyName=o;sharedaccesskey={KEY};\n"
    )
    assert (parsed.host_name, parsed.port, parsed.authority) == ("localhost", 8443, "localhost:8443")
    assert parsed.resource_uri == "localhost:8443"


def test_connection_string_of_a_module() -> None:
    parsed = ConnectionString.parse(f"HostName=h;DeviceId=d=1;ModuleId=m;SharedAccessKey={KEY}")
    assert (parsed.host_name, parsed.port, parsed.device_id) == ("h", None, "d=1")
    assert parsed.resource_uri == "h/devices/d=1/modules/m"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "field HostName is missing"),
        (f"DeviceId=d;SharedAccessKey={KEY}", "field HostName is missing"),
        ("HostName=h;DeviceId=d", "field SharedAccessKey is missing"),
        (
            f"HostName=h;SharedAccessKey={KEY}",
            "expected DeviceId (a device) or SharedAccessKeyName (a service)",
        ),
        (
            f"HostName=h;DeviceId=d;SharedAccessKey={KEY};Colour=red",
            "unknown field 'Colour'; known are HostName,",
        ),
        (f"HostName=h;HostName=g;DeviceId=d;SharedAccessKey={KEY}", "HostName appears twice"),
        (f"HostName=h:0;DeviceId=d;SharedAccessKey={KEY}", "port of HostName must be 1 to 65535, not '0'"),
        (
            f"HostName=h:https;DeviceId=d;SharedAccessKey={KEY}",
            "port of HostName must be 1 to 65535, not 'https'",
        ),
    ],
)
def test_bad_connection_string_is_named_without_its_key(text: str, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        ConnectionString.parse(text, where="file x")
    assert caught.value.message.startswith("Bad file x: ")
    assert part in caught.value.message
    assert KEY not in caught.value.message
