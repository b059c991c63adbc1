from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.redact import Secret, redact_document, redact_text

HIDDEN = "hunter2Hunter2hunter2"


@dataclasses.dataclass(frozen=True)
class Holder:
    secret: Secret


@pytest.mark.parametrize(
    "text",
    [
        str(Secret(HIDDEN)),
        repr(Secret(HIDDEN)),
        f"{Secret(HIDDEN)}",
        f"{Secret(HIDDEN)!r:>40}",
        repr(Holder(Secret(HIDDEN))),
        repr(dataclasses.asdict(Holder(Secret(HIDDEN)))),
        repr([Secret(HIDDEN)]),
        repr(copy.deepcopy(Secret(HIDDEN))),
    ],
)
def test_secret_shows_stars_in_every_text_form(text: str) -> None:
    assert HIDDEN not in text
    assert "***" in text


def test_secret_gives_its_value_only_when_asked() -> None:
    assert Secret(HIDDEN).reveal() == HIDDEN
    assert Secret(HIDDEN) == Secret(HIDDEN) != Secret("other")
    assert Secret(HIDDEN) != HIDDEN
    assert not Secret("")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_secret_is_refused_by_encoders() -> None:
    with pytest.raises(TypeError):
        json.dumps({"key": Secret(HIDDEN)})
    with pytest.raises(TypeError):
        pickle.dumps(Secret(HIDDEN))


@pytest.mark.parametrize(
    "text",
    [
        f"HostName=h;DeviceId=d;SharedAccessKey={HIDDEN}",
        f"HostName=h;SharedAccessKeyName=owner;SharedAccessKey={HIDDEN}=;GatewayHostName=g",
        f"SharedAccessSignature sr=h&sig={HIDDEN}%3D&se=1",
        f"sig={HIDDEN}&sr=h",
        f"Authorization: Basic {HIDDEN}",
        f"authorization: SharedAccessSignature sr=h&sig={HIDDEN}&se=1",
        f"{{'Authorization': 'Bearer {HIDDEN}'}}",
        f"Bearer {HIDDEN}",
        f"https://user:{HIDDEN}@registry.example/v2/",
        f"http://{HIDDEN}@registry.example/",
        f"password={HIDDEN}",
        f"PGPASSWORD={HIDDEN} psql",
        f'{{"username": "u", "password": "{HIDDEN}"}}',
        f'{{"password": "a\\"b{HIDDEN}"}}',
        json.dumps(json.dumps({"primaryKey": HIDDEN})),
        f"{{'secondaryKey': '{HIDDEN}'}}",
        f"-----BEGIN EC PRIVATE KEY-----\n{HIDDEN}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{HIDDEN}",
    ],
)
def test_redacted_text_holds_no_secret(text: str) -> None:
    assert HIDDEN not in redact_text(text)
    assert "***" in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "HostName=h;SharedAccessKeyName=owner",
        "image registry.example/digits@sha256:00 not found",
        "https://registry.example/v2/ answered 401",
        "Basic authentication was refused",
        "devices/d/modules/m/messages/events/%24.on=out",
        "",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert redact_text(text) == text


def test_redacted_text_keeps_what_is_not_secret() -> None:
    text = redact_text(f"HostName=h;DeviceId=d;SharedAccessKey={HIDDEN};GatewayHostName=g")
    assert text == "HostName=h;DeviceId=d;SharedAccessKey=***;GatewayHostName=g"


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact_text(redact_text(text)) == redact_text(text)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "piece", ["a.", "token ", "'token': '", "\\'password\\': ", "sig=", "Bearer ", "http://a", "-----BEGIN "]
)
def test_long_text_takes_no_long_time(piece: str) -> None:
    assert redact_text(piece * 3000)


def test_redacted_document_hides_values_under_secret_keys() -> None:
    document = {
        "registryCredentials": {"r": {"username": "u", "password": HIDDEN, "address": "a"}},
        "keys": [{"primaryKey": HIDDEN, "secondary_key": HIDDEN, "SharedAccessKey": HIDDEN}],
        "privateKey": {"type": "key", "bytes": HIDDEN},
        "note": f"password={HIDDEN}",
        "given": Secret(HIDDEN),
        "token": "",
        "passphrase": None,
        "count": 3,
    }
    redacted = redact_document(document)
    assert HIDDEN not in repr(redacted)
    assert isinstance(redacted, dict)
    assert redacted["registryCredentials"]["r"] == {"username": "u", "password": "***", "address": "a"}
    assert (redacted["token"], redacted["passphrase"], redacted["count"]) == ("", None, 3)
    assert document["note"] == f"password={HIDDEN}"
