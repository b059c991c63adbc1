"""The hub's certificates: what is made, when it is made anew, and that a TLS client believes it."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from iot_hub.mqtt_server import server_ssl_context
from iot_hub.pki import PkiFiles, ensure_pki


def names_of(files: PkiFiles) -> tuple[set[str], set[str]]:
    """DNS names and addresses of the server certificate."""
    certificate = x509.load_pem_x509_certificate(files.server_cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return set(names.get_values_for_type(x509.DNSName)), addresses


def handshake(files: PkiFiles, name: str) -> None:
    """Client and server in memory; raises ssl.SSLError when the client does not believe the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trust = ssl.create_default_context(cafile=str(files.ca_cert))
    client = trust.wrap_bio(to_client, to_server, server_hostname=name)
    context = server_ssl_context(files.server_cert, files.server_key)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "127.0.0.7", "hub.example"])
def test_a_client_that_trusts_the_ca_believes_every_name(tmp_path: Path, name: str) -> None:
    handshake(ensure_pki(tmp_path, ["127.0.0.7", "hub.example"]), name)


def test_another_name_or_another_ca_is_not_believed(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path / "a", [])
    other = ensure_pki(tmp_path / "b", [])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files, "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(PkiFiles(other.ca_cert, files.server_cert, files.server_key), "localhost")


def test_every_file_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ensure_pki(tmp_path / "pki", [])
    finally:
        os.umask(before)
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "pki").iterdir()}
    assert modes == dict.fromkeys(["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"], 0o600)


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path, ["hub.example", "hub.example", ""])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert ensure_pki(tmp_path, ["hub.example"]) == files
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_new_names_make_a_new_server_certificate_under_the_same_ca(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path, [])
    ca, server = files.ca_cert.read_bytes(), files.server_cert.read_bytes()
    ensure_pki(tmp_path, ["hub.example", "10.0.0.5"])
    assert files.ca_cert.read_bytes() == ca
    assert files.server_cert.read_bytes() != server
    dns, addresses = names_of(files)
    assert {"localhost", "hub.example"} <= dns
    assert {str(ip_address("::1")), "127.0.0.1", "10.0.0.5"} <= addresses
    handshake(files, "10.0.0.5")


def test_a_certificate_near_its_end_is_made_anew_and_the_ca_outlives_it(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path, [])
    ca, server = files.ca_cert.read_bytes(), files.server_cert.read_bytes()
    now = datetime.now(UTC)
    ensure_pki(tmp_path, [], now=now + timedelta(days=360))
    assert files.server_cert.read_bytes() == server
    ensure_pki(tmp_path, [], now=now + timedelta(days=370))
    assert files.server_cert.read_bytes() != server
    assert files.ca_cert.read_bytes() == ca
    ensure_pki(tmp_path, [], now=now + timedelta(days=3640))
    assert files.ca_cert.read_bytes() != ca


@pytest.mark.parametrize("damaged", ["server.pem", "server-key.pem", "ca.pem", "ca-key.pem"])
def test_a_damaged_or_missing_file_is_made_good(tmp_path: Path, damaged: str) -> None:
    files = ensure_pki(tmp_path, [])
    (tmp_path / damaged).write_text("not PEM")
    handshake(ensure_pki(tmp_path, []), "localhost")
    (tmp_path / damaged).unlink()
    handshake(ensure_pki(tmp_path, []), "localhost")
    assert files.server_key.stat().st_mode & 0o777 == 0o600


def test_a_key_of_another_certificate_is_noticed(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path / "a", [])
    files.server_key.write_bytes(ensure_pki(tmp_path / "b", []).server_key.read_bytes())
    handshake(ensure_pki(tmp_path / "a", []), "localhost")


def test_the_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    files = ensure_pki(tmp_path, [])
    ca = x509.load_pem_x509_certificate(files.ca_cert.read_bytes())
    server = x509.load_pem_x509_certificate(files.server_cert.read_bytes())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(
        True, 0
    )
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert server.not_valid_before_utc < datetime.now(UTC) - timedelta(hours=12)


@pytest.mark.parametrize("name", ["https://hub", "hub:8883", "two words", "a" * 70, "user@hub"])
def test_what_is_no_name_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be a DNS name or an IP address"):
        ensure_pki(tmp_path, [name])
    assert list(tmp_path.iterdir()) == []
