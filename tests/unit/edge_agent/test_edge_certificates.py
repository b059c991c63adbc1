"""The helper process makes certificates once, renews what must be, and keeps keys private."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from edge_agent import certificates


def names(folder: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_helper_makes_an_authority_and_a_server_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    command = [sys.executable, "-m", "edge_agent.certificates", str(folder), "127.0.0.2", "edge.example"]
    subprocess.run(command, check=True, timeout=30)
    assert sorted(contents(folder)) == ["edge-ca.key", "edge-ca.pem", "server.key", "server.pem"]
    assert names(folder) == {"127.0.0.2", "edge.example"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_running_it_again_changes_nothing(tmp_path: Path) -> None:
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    before = contents(tmp_path)
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    assert contents(tmp_path) == before


def test_other_hosts_renew_the_server_certificate_alone(tmp_path: Path) -> None:
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    before = contents(tmp_path)
    certificates.ensure_certificates(tmp_path, ["127.0.0.3"])
    assert contents(tmp_path)["edge-ca.pem"] == before["edge-ca.pem"]
    assert names(tmp_path) == {"127.0.0.3"}


def test_a_damaged_or_ending_certificate_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", certificates.RENEW_DAYS - 1)
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    monkeypatch.undo()
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert left.days >= certificates.SERVER_DAYS - 1
    (tmp_path / "server.key").write_bytes(b"torn")
    certificates.ensure_certificates(tmp_path, ["127.0.0.2"])
    assert b"PRIVATE KEY" in (tmp_path / "server.key").read_bytes()
