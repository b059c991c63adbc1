"""Make the device's certificates: `python -m edge_agent.certificates DIRECTORY HOST…`, a short-lived helper process.

The resident agent never imports `cryptography` (it would double its memory), so it runs this and reads the files:

    edge-ca.pem, edge-ca.key   the device's own authority, 10 years; modules trust it through the trust bundle
    server.pem, server.key     the local MQTT server's, for the names and addresses given, 90 days

What is there and good for another 30 days is left alone, so running it again is cheap and changes nothing. Keys are
EC P-256, mode 0600; every file is written by rename.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
SERVER_DAYS = 90
RENEW_DAYS = 30


def ensure_certificates(directory: Path, hosts: list[str]) -> None:
    """Make or renew what is missing, close to its end, or for other hosts than `hosts`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_files = directory / "edge-ca.pem", directory / "edge-ca.key"
    server_files = directory / "server.pem", directory / "server.key"
    ca = _read(*ca_files)
    if ca is None:
        ca = _make_ca()
        _write(ca_files, *ca)
        server = None
    else:
        server = _read(*server_files)
    if server is None or _names(server[0]) != set(hosts) or server[0].issuer != ca[0].subject:
        _write(server_files, *_make_server(ca, hosts))


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _read(certificate_file: Path, key_file: Path) -> Pair | None:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError):
        return None
    renew_at = certificate.not_valid_after_utc - datetime.timedelta(days=RENEW_DAYS)
    if datetime.datetime.now(datetime.UTC) >= renew_at or not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return certificate, key


def _make_ca() -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edge device CA {os.urandom(4).hex()}")])
    builder = _builder(name, name, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(sign_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    return builder.sign(key, hashes.SHA256()), key


def _make_server(ca: Pair, hosts: list[str]) -> Pair:
    authority, authority_key = ca
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge hub")])
    builder = _builder(name, authority.subject, key.public_key(), SERVER_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = builder.add_extension(identifier, False)
    return builder.sign(authority_key, hashes.SHA256()), key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # A device's clock may be a little behind the one that checks.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _names(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _write(files: tuple[Path, Path], certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    certificate_file, key_file = files
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key_file, pem)
    _replace(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))


def _replace(path: Path, data: bytes) -> None:
    scratch = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="edge_agent.certificates", description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("hosts", nargs="+", metavar="HOST")
    arguments = parser.parse_args()
    ensure_certificates(arguments.directory, arguments.hosts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
