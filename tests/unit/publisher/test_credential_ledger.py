"""When credentials end: noted when they are made, said when a manifest that holds them is checked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contracts_manifests import complete
from typer.testing import CliRunner

from edge_contracts.manifest import RegistryCredential, Severity
from edge_contracts.redact import Secret
from publisher.cli.main import app
from publisher.credentials.forms import manifest_document as credentials_document
from publisher.credentials.forms import manifest_entry
from publisher.credentials.ledger import Recorded, ends_of, findings_of
from publisher.credentials.source import PullCredential
from publisher.workspace import Workspace

NOW = datetime(2026, 5, 1, tzinfo=UTC)
PASSWORD = "s3cret-W0rd-of-thirty-two-octets"


class Maker:
    """Makes credentials that end after some days; None: that do not say."""

    def __init__(self, days: float | None, password: str = PASSWORD, start: datetime = NOW) -> None:
        self.days, self.password, self.start = days, password, start

    def pull_credential(self, registry: str, repositories: tuple[str, ...]) -> PullCredential | None:
        if registry != "one.example":
            return None
        expires = None if self.days is None else self.start + timedelta(days=self.days)
        return PullCredential(registry, "robot", Secret(self.password), "maker", repositories, expires)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.init(tmp_path / "w")


def made(workspace: Workspace, maker: Maker) -> RegistryCredential:
    credential = Recorded(maker, workspace).pull_credential("one.example", ("digits",))
    assert credential is not None
    return manifest_entry(credential)


@pytest.mark.parametrize(
    ("days", "part"),
    [(15, None), (13.5, "end on 2026-05-14, in 13 days"), (-1, "ended on 2026-04-30"), (None, None)],
)
def test_end_is_said_from_two_weeks_before(
    workspace: Workspace, days: float | None, part: str | None
) -> None:
    entry = made(workspace, Maker(days))
    found = findings_of(workspace, (entry,), NOW)
    if part is None:
        assert found == ()
        return
    assert [(each.severity, each.where) for each in found] == [
        (Severity.WARNING, "registryCredentials.one-example")
    ]
    assert part in found[0].message


def test_two_passwords_of_one_user_end_each_at_its_time(workspace: Workspace) -> None:
    first, second = made(workspace, Maker(10)), made(workspace, Maker(90, PASSWORD[::-1]))
    assert len(findings_of(workspace, (first,), NOW)) == 1
    assert findings_of(workspace, (second,), NOW) == ()
    stranger = RegistryCredential("x", "one.example", "robot", Secret("of another machine"))
    assert ends_of(workspace, [stranger]) == {}


def test_audit_holds_no_password(workspace: Workspace) -> None:
    made(workspace, Maker(10))
    with workspace.database.read() as db:
        rows = [dict(row) for row in db.execute("SELECT * FROM audit")]
    [row] = [each for each in rows if each["action"] == "registry credentials"]
    assert PASSWORD not in str(rows)
    assert json.loads(row["detail"])["username"] == "robot"
    assert Recorded(Maker(1), workspace).pull_credential("two.example", ()) is None


def test_check_warns_of_credentials_that_end_soon(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = Recorded(Maker(3.5, start=datetime.now(UTC)), workspace).pull_credential("one.example", ())
    assert credential is not None
    document = complete()
    settings = document["modulesContent"]["$edgeAgent"]["properties.desired"]["runtime"]["settings"]
    settings.update(credentials_document(credential))
    file = workspace.root / "manifest.json"
    file.write_text(json.dumps(document))
    monkeypatch.chdir(workspace.root)
    result = CliRunner().invoke(app, ["manifest", "check", str(file), "--json"])
    assert result.exit_code == 0, result.stderr
    assert "credential-ends" in {each["code"] for each in json.loads(result.stdout)["findings"]}
    monkeypatch.chdir(workspace.root.parent)
    elsewhere = CliRunner().invoke(app, ["manifest", "check", str(file), "--json"])
    assert elsewhere.exit_code == 0, elsewhere.stderr
    assert "credential-ends" not in elsewhere.stdout
