"""The embedded hub's own certificate authority: one CA and one server certificate, made where they are missing.

A client trusts `ca_cert`, which is never replaced while it is valid and readable, so that devices keep trusting
the hub; the server certificate is re-issued when the names asked for change, when it nears its end, or when its
files do not belong together.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
# Apple's and the browsers' bound for server certificates; re-issued a month before its end.
SERVER_LIFETIME = timedelta(days=397)
RENEW_BEFORE = timedelta(days=30)
# Clocks of devices that were just switched on may be behind.
BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PkiFiles:
    """PEM files, each of mode 0600; `server_cert` holds the server's certificate alone, not the CA's."""

    ca_cert: Path
    server_cert: Path
    server_key: Path


@dataclass(frozen=True, slots=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_pki(directory: Path, san: list[str], *, now: datetime | None = None) -> PkiFiles:
    """Make what is missing or no longer fits; names are localhost, 127.0.0.1, ::1, this host's and those of `san`.

    Args:
        directory: created with mode 0700 if absent; holds ca.pem, ca-key.pem, server.pem and server-key.pem.
        san: further DNS names and IP addresses of the server.
        now: the time that lifetimes begin at and are judged by.

    Raises:
        OSError: the directory cannot be written.
        ValueError: a name is neither a DNS name nor an address.
    """
    names = _general_names(["localhost", "127.0.0.1", "::1", socket.gethostname(), *san])
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = _load(directory / "ca.pem", directory / "ca-key.pem")
    if authority is None or _ends_soon(authority.certificate, now):
        authority = _make_authority(now)
        _save(authority, directory / "ca.pem", directory / "ca-key.pem")
    files = PkiFiles(directory / "ca.pem", directory / "server.pem", directory / "server-key.pem")
    server = _load(files.server_cert, files.server_key)
    if server is None or not _still_fits(server.certificate, authority, names, now):
        _save(_make_server(authority, names, now), files.server_cert, files.server_key)
    return files


def _general_names(names: list[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in dict.fromkeys(name for name in names if name)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        ascii_name = name.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    if not ascii_name or any(c.isspace() or c in "/:@" for c in ascii_name):
        raise ValueError(f"a server name must be a DNS name or an IP address, not {name!r}")
    return x509.DNSName(ascii_name)


def _load(certificate: Path, key: Path) -> _Pair | None:
    """The pair, or None when a file is missing, damaged, or not of the other."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        private_key = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError):
        return None
    if (
        not isinstance(private_key, ec.EllipticCurvePrivateKey)
        or loaded.public_key() != private_key.public_key()
    ):
        return None
    return _Pair(loaded, private_key)


def _ends_soon(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc - now < RENEW_BEFORE


def _still_fits(
    certificate: x509.Certificate, authority: _Pair, names: list[x509.GeneralName], now: datetime
) -> bool:
    try:
        certificate.verify_directly_issued_by(authority.certificate)
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # each of cryptography's many ways to say "not this one"
        return False
    return set(present) == set(names) and not _ends_soon(certificate, now)


def _make_authority(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial in the name keeps a re-made CA apart from its predecessor in trust stores.
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Edgewright"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Edgewright hub CA {serial:040x}"[:40]),
        ]
    )
    certificate = (
        _builder(name, name, key, now, CA_LIFETIME)
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _make_server(authority: _Pair, names: list[x509.GeneralName], now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Edgewright hub")])
    lifetime = min(SERVER_LIFETIME, authority.certificate.not_valid_after_utc - now)
    certificate = (
        _builder(subject, authority.certificate.subject, key, now, lifetime)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _save(pair: _Pair, certificate: Path, key: Path) -> None:
    """The key first: a crash between the two leaves a pair that does not match, which the next start re-makes."""
    pem = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key, pem)
    _write(certificate, pair.certificate.public_bytes(serialization.Encoding.PEM))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
