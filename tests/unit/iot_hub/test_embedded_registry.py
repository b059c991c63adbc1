"""The embedded registry over HTTP: by hand, by the product's client, and by skopeo."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from registry_embedded import TableAuth, default_users, embedded_registry, grant
from registry_images import PLATFORMS, put_image

from edge_containers.errors import RegistryAuthError
from edge_containers.image_model import OCI_CONFIG, OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST
from edge_containers.registry_client import RegistryClient
from edge_containers.registry_transport import BasicCredentials
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.redact import Secret

PUSHER = ("pusher", "correct-horse")
PULLER = ("puller", "battery")


class Http:
    """Bare HTTP with Basic credentials, no retries, no redirects."""

    def __init__(self, address: str, user: tuple[str, str] | None = PUSHER) -> None:
        self.url = f"http://{address}"
        self.pool = urllib3.PoolManager(timeout=10.0, retries=False)
        self.auth = {} if user is None else {"Authorization": basic(*user)}

    def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> urllib3.BaseHTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = path if path.startswith("http") else self.url + path
        return self.pool.request(method, url, body=body, headers={**self.auth, **named}, redirect=False)

    def push_blob(self, repository: str, data: bytes) -> ImageDigest:
        digest = ImageDigest.of(data)
        response = self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", data)
        assert response.status == 201, response.data
        return digest

    def push_manifest(self, repository: str, reference: str, **changes: Any) -> urllib3.BaseHTTPResponse:
        config, layer = b"{}", b"layer"
        self.push_blob(repository, config)
        self.push_blob(repository, layer)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(OCI_CONFIG, config),
            "layers": [describe(OCI_LAYER_TAR, layer)],
            **changes,
        }
        data = json.dumps(document).encode()
        return self("PUT", f"/v2/{repository}/manifests/{reference}", data, Content_Type=OCI_MANIFEST)


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def describe(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(ImageDigest.of(data)), "size": len(data)}


def code(response: urllib3.BaseHTTPResponse) -> str:
    """The error's code; the body must have the specification's shape."""
    (error,) = response.json()["errors"]
    assert set(error) == {"code", "message", "detail"}
    return str(error["code"])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_registry(tmp_path_factory.mktemp("registry"), max_blob_bytes=3 << 20) as running:
        yield running


@pytest.fixture
def http(address: str) -> Http:
    return Http(address)


def test_a_request_without_credentials_is_told_where_to_get_a_token(address: str) -> None:
    response = Http(address, None)("GET", "/v2/")
    assert response.status == 401
    assert code(response) == "UNAUTHORIZED"
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    expected = f'Bearer realm="http://{address}/token",service="edgewright-registry"'
    assert response.headers["WWW-Authenticate"] == expected
    response = Http(address, None)("POST", "/v2/team/a/blobs/uploads/")
    assert response.headers["WWW-Authenticate"] == expected + ',scope="repository:team/a:pull,push"'


def test_a_token_allows_what_was_asked_for_and_granted_and_no_more(address: str) -> None:
    Http(address).push_manifest("team/tokens", "v1")
    query = "service=x&scope=repository:team/tokens:pull,push&scope=repository:other:pull"
    response = Http(address, PULLER)("GET", f"/token?{query}")
    assert response.status == 200
    assert response.json()["expires_in"] == 300
    bearer = Http(address, None)
    bearer.auth = {"Authorization": f"Bearer {response.json()['token']}"}
    assert bearer("GET", "/v2/").status == 200
    assert bearer("GET", "/v2/team/tokens/manifests/v1").status == 200
    for method, path in [("POST", "/v2/team/tokens/blobs/uploads/"), ("GET", "/v2/other/tags/list")]:
        refused = bearer(method, path)
        assert refused.status == 401
        assert "scope=" in refused.headers["WWW-Authenticate"]


def test_a_token_ends_after_five_minutes_or_with_its_grant_and_cannot_be_changed(tmp_path: Path) -> None:
    now = [1000.0]
    users = dict(default_users())
    users["short"] = ("lived", grant("short", "*", expires_at=1100.0))
    with embedded_registry(tmp_path, TableAuth(users), wall_clock=lambda: now[0]) as address:
        token = Http(address)("GET", "/token?scope=repository:a:pull").json()["token"]
        short = Http(address, ("short", "lived"))("GET", "/token?scope=repository:a:pull").json()
        assert short["expires_in"] == 100
        bearer = Http(address, None)

        def status(text: str) -> int:
            return bearer("GET", "/v2/", Authorization=f"Bearer {text}").status

        payload, signature = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
        claims["exp"] += 3600
        forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        assert status(token) == 200
        assert [status(text) for text in (f"{forged}.{signature}", payload, "", "a.b", "é.é")] == [401] * 5
        now[0] = 1299.0
        assert status(token) == 200
        assert status(short["token"]) == 401
        assert Http(address, ("short", "lived"))("GET", "/v2/").status == 401
        now[0] = 1300.0
        assert status(token) == 401


def test_wrong_passwords_are_refused_and_soon_not_even_looked_at(tmp_path: Path) -> None:
    now = [1000.0]
    with embedded_registry(tmp_path, wall_clock=lambda: now[0]) as address:
        wrong = Http(address, ("pusher", "guess"))
        assert [wrong("GET", "/token").status for _ in range(10)] == [401] * 10
        assert wrong("GET", "/v2/").status == 429
        braked = Http(address)("GET", "/token")
        assert braked.status == 429
        assert int(braked.headers["Retry-After"]) <= 61
        assert Http(address, PULLER)("GET", "/token").status == 200
        now[0] += 61
        assert Http(address)("GET", "/token").status == 200


def test_the_key_of_tokens_is_private_and_kept(tmp_path: Path) -> None:
    with embedded_registry(tmp_path) as address:
        token = Http(address)("GET", "/token").json()["token"]
        assert (tmp_path / "token-key").stat().st_mode & 0o777 == 0o600
    with embedded_registry(tmp_path) as address:
        assert Http(address, None)("GET", "/v2/", Authorization=f"Bearer {token}").status == 200


def test_a_puller_may_not_push_nor_see_other_repositories(address: str) -> None:
    puller = Http(address, PULLER)
    for method, path in [("POST", "/v2/team/a/blobs/uploads/"), ("GET", "/v2/private/tags/list")]:
        refused = puller(method, path)
        assert (refused.status, code(refused)) == (403, "DENIED")


def test_a_blob_comes_back_whole_and_in_parts(http: Http) -> None:
    data = bytes(range(256)) * 1000
    path = f"/v2/team/blobs/blobs/{http.push_blob('team/blobs', data)}"
    head = http("HEAD", path)
    assert (head.status, head.headers["Content-Length"], head.data) == (200, "256000", b"")
    whole = http("GET", path)
    assert whole.data == data
    assert whole.headers["Docker-Content-Digest"] == str(ImageDigest.of(data))
    part = http("GET", path, Range="bytes=255000-")
    assert (part.status, part.headers["Content-Range"]) == (206, "bytes 255000-255999/256000")
    assert part.data == data[255000:]
    assert http("GET", path, Range="bytes=-2").data == data[-2:]
    for wrong in ("bytes=300000-", "lines=1-2", "bytes=0-1,5-6"):
        refused = http("GET", path, Range=wrong)
        assert (refused.status, code(refused)) == (416, "RANGE_INVALID")
        assert refused.headers["Content-Range"] == "bytes */256000"


def test_an_upload_in_chunks_continues_where_it_stood(http: Http) -> None:
    data = b"a" * 1000 + b"b" * 500
    digest = ImageDigest.of(data)
    started = http("POST", "/v2/team/chunks/blobs/uploads/")
    assert started.status == 202
    location = started.headers["Location"]
    first = http("PATCH", location, data[:1000], Content_Range="0-999")
    assert (first.status, first.headers["Range"]) == (202, "0-999")
    gap = http("PATCH", location, data[1200:], Content_Range="1200-1499")
    assert (gap.status, gap.headers["Range"], code(gap)) == (416, "0-999", "RANGE_INVALID")
    assert http("GET", location).headers["Range"] == "0-999"
    done = http("PUT", f"{location}?digest={digest}", data[1000:], Content_Range="1000-1499")
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, str(digest))
    assert http("GET", f"/v2/team/chunks/blobs/{digest}").data == data
    assert code(http("GET", location)) == "BLOB_UPLOAD_UNKNOWN"


def test_a_chunk_that_broke_off_can_be_continued(address: str, http: Http) -> None:
    location = http("POST", "/v2/team/broken/blobs/uploads/").headers["Location"]
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        head = f"PATCH {location} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {basic(*PUSHER)}\r\n"
        raw.sendall(f"{head}Content-Length: 2000000\r\n\r\n".encode() + bytes(1_500_000))
    digest, reached, deadline = ImageDigest.of(bytes(2_000_000)), 0, time.monotonic() + 10
    while reached == 0:  # until the server has seen that the connection is gone
        assert time.monotonic() < deadline
        reached = int(http("GET", location).headers["Range"].removeprefix("0-"))
    rest = bytes(2_000_000 - reached - 1)
    done = http("PUT", f"{location}?digest={digest}", rest, Content_Range=f"{reached + 1}-1999999")
    assert done.status == 201
    assert 0 < len(rest) < 1_000_000


def test_content_that_is_not_its_digest_leaves_nothing(http: Http, address: str) -> None:
    digest = ImageDigest.of(b"said")
    wrong = http("POST", f"/v2/team/wrong/blobs/uploads/?digest={digest}", b"sent")
    assert (wrong.status, code(wrong)) == (400, "DIGEST_INVALID")
    for absent in (digest, ImageDigest.of(b"sent")):
        assert http("HEAD", f"/v2/team/wrong/blobs/{absent}").status == 404
    assert code(http("GET", "/v2/team/wrong/tags/list")) == "NAME_UNKNOWN"


def test_a_blob_over_the_bound_is_refused(http: Http) -> None:
    data = bytes((3 << 20) + 1)
    refused = http("POST", f"/v2/team/big/blobs/uploads/?digest={ImageDigest.of(data)}", data)
    assert (refused.status, code(refused)) == (413, "SIZE_INVALID")
    started = http("POST", "/v2/team/big/blobs/uploads/")
    location = started.headers["Location"]
    assert http("PATCH", location, data[: 2 << 20]).status == 202
    assert http("PATCH", location, data[: 2 << 20]).status == 413
    assert http("GET", location).status == 404


def test_an_upload_can_be_cancelled_and_belongs_to_its_repository(http: Http) -> None:
    location = http("POST", "/v2/team/cancel/blobs/uploads/").headers["Location"]
    assert http("GET", location.replace("cancel", "other")).status == 404
    assert http("DELETE", location).status == 204
    assert http("PATCH", location, b"late").status == 404


def test_a_repository_serves_only_what_it_was_given(address: str, http: Http) -> None:
    digest = http.push_blob("secret/models", b"weights")
    assert http("GET", f"/v2/team/theirs/blobs/{digest}").status == 404
    users = dict(default_users())
    assert users["puller"][1].allowed("secret/models") == frozenset()
    mounted = http("POST", f"/v2/team/mine/blobs/uploads/?mount={digest}&from=secret/models")
    assert mounted.status == 201
    assert mounted.headers["Location"] == f"/v2/team/mine/blobs/{digest}"
    assert http("GET", f"/v2/team/mine/blobs/{digest}").data == b"weights"


def test_a_mount_needs_the_right_to_pull_from_the_source(tmp_path: Path) -> None:
    users = {**default_users(), "mine": ("pw", grant("mine", "mine/*"))}
    with embedded_registry(tmp_path, TableAuth(users)) as address:
        digest = Http(address).push_blob("secret/models", b"weights")
        tried = Http(address, ("mine", "pw"))(
            "POST", f"/v2/mine/a/blobs/uploads/?mount={digest}&from=secret/models"
        )
        assert tried.status == 202  # an upload begins: whoever has the bytes may send them
        assert Http(address, ("mine", "pw"))("HEAD", f"/v2/mine/a/blobs/{digest}").status == 404


def test_a_manifest_is_found_by_tag_and_digest_and_the_tag_moves(http: Http) -> None:
    first = http.push_manifest("team/tags", "latest")
    assert first.status == 201
    digest = first.headers["Docker-Content-Digest"]
    second = http.push_manifest("team/tags", "latest", annotations={"version": "2"}).headers[
        "Docker-Content-Digest"
    ]
    assert digest != second
    by_tag = http("HEAD", "/v2/team/tags/manifests/latest")
    assert by_tag.headers["Docker-Content-Digest"] == second
    assert by_tag.headers["Content-Type"] == OCI_MANIFEST
    old = http("GET", f"/v2/team/tags/manifests/{digest}")
    assert ImageDigest.of(old.data) == ImageDigest.parse(digest)
    assert code(http("GET", "/v2/team/tags/manifests/none")) == "MANIFEST_UNKNOWN"
    assert code(http("GET", f"/v2/team/other/manifests/{digest}")) == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [describe(OCI_LAYER_TAR, b"never sent")]}, "MANIFEST_BLOB_UNKNOWN"),
        ({"layers": [{**describe(OCI_LAYER_TAR, b"layer"), "size": 6}]}, "MANIFEST_BLOB_UNKNOWN"),
        ({"mediaType": OCI_INDEX}, "MANIFEST_INVALID"),
        ({"schemaVersion": 1}, "MANIFEST_INVALID"),
        ({"config": None}, "MANIFEST_INVALID"),
        ({"layers": [{"digest": "sha256:x"}]}, "MANIFEST_INVALID"),
    ],
)
def test_a_manifest_that_could_not_be_pulled_is_refused(
    http: Http, changes: dict[str, Any], said: str
) -> None:
    refused = http.push_manifest("team/refused", "v1", **changes)
    assert (refused.status, code(refused)) == (400, said)
    assert http("GET", "/v2/team/refused/manifests/v1").status == 404


def test_a_manifest_under_another_digest_or_too_large_is_refused(http: Http) -> None:
    assert code(http.push_manifest("team/digest", str(ImageDigest.of(b"other")))) == "DIGEST_INVALID"
    large = http("PUT", "/v2/team/digest/manifests/v1", bytes((4 << 20) + 1), Content_Type=OCI_MANIFEST)
    assert (large.status, code(large)) == (413, "SIZE_INVALID")
    broken = http("PUT", "/v2/team/digest/manifests/v1", b"[" * 100_000, Content_Type=OCI_MANIFEST)
    assert (broken.status, code(broken)) == (400, "MANIFEST_INVALID")


def test_tags_are_listed_in_pages(http: Http) -> None:
    for tag in ("b", "a", "c", "C"):
        http.push_manifest("team/list", tag)
    listed = http("GET", "/v2/team/list/tags/list")
    assert listed.json() == {"name": "team/list", "tags": ["C", "a", "b", "c"]}
    page = http("GET", "/v2/team/list/tags/list?n=2")
    assert page.json()["tags"] == ["C", "a"]
    assert page.headers["Link"] == '</v2/team/list/tags/list?n=2&last=a>; rel="next"'
    last = http("GET", "/v2/team/list/tags/list?n=2&last=a")
    assert (last.json()["tags"], "Link" in last.headers) == (["b", "c"], False)
    assert http("GET", "/v2/team/list/tags/list?n=x").status == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v2/UPPER/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/%2e%2e/b/tags/list", 400, "NAME_INVALID"),
        ("GET", f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/team/a/blobs/sha256:zz", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/team/a/blobs/sha512:{'0' * 128}", 400, "DIGEST_INVALID"),
        ("GET", "/v2/team/a/manifests/sha256:zz", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/team/a/manifests/.hidden", 400, "MANIFEST_INVALID"),
        ("GET", "/v2/_catalog", 404, "NAME_UNKNOWN"),
        ("DELETE", "/v2/team/a/manifests/latest", 405, "UNSUPPORTED"),
    ],
)
def test_errors_have_the_specifications_shape(
    http: Http, method: str, path: str, status: int, said: str
) -> None:
    response = http(method, path)
    assert (response.status, code(response)) == (status, said)
    assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_a_restart_keeps_images_and_removes_what_nothing_names(tmp_path: Path) -> None:
    with embedded_registry(tmp_path) as address:
        http = Http(address)
        http.push_manifest("team/kept", "v1")
        lone = http.push_blob("team/kept", b"linked but in no manifest")
        unfinished = http("POST", "/v2/team/kept/blobs/uploads/").headers["Location"]
        http("PATCH", unfinished, b"half")
    store = ContentStore(tmp_path)
    orphan = store.put_bytes(b"of a crash").digest
    with embedded_registry(tmp_path) as address:
        http = Http(address)
        assert http("GET", "/v2/team/kept/manifests/v1").status == 200
        assert http("GET", f"/v2/team/kept/blobs/{lone}").status == 200
        assert http("PATCH", unfinished, b"rest").status == 404
    assert not store.has(orphan)
    assert [path.name for path in (tmp_path / "ingest").iterdir() if path.suffix == ".tmp"] == []


def test_the_products_client_pushes_and_pulls_with_tokens(address: str, tmp_path: Path) -> None:
    source, target = ContentStore(tmp_path / "source"), ContentStore(tmp_path / "target")
    index = put_image(source, {"model": b"weights" * 10_000, "script": b"def run(): ..."})
    with RegistryClient(address, credentials=BasicCredentials(PUSHER[0], Secret(PUSHER[1]))) as client:
        first = client.push_image(source, index, "team/digits", "v1")
        assert client.push_image(source, index, "team/digits", "v2").blobs_sent == 0
        moved = client.push_image(source, index, "team/copy", "v1", mount_from="team/digits")
        assert (moved.blobs_sent, first.blobs_skipped) == (0, 0)
    with RegistryClient(address, credentials=BasicCredentials(PULLER[0], Secret(PULLER[1]))) as client:
        ref = ImageRef.parse(f"{address}/team/digits@{index.digest}")
        pulled = client.pull_image(ref, PLATFORMS[1], target)
        assert pulled.config.platform == PLATFORMS[1]
        assert all(target.is_whole(blob) for blob in pulled.manifest.blobs)
        with pytest.raises(RegistryAuthError):
            client.push_image(source, index, "team/digits", "v3")


def test_skopeo_copies_an_image_in_and_out(address: str, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    store = ContentStore(tmp_path / "in")
    index = put_image(store, {"model": b"weights" * 100_000, "script": b"def run(): ..."})
    store.tag("v1", index)
    remote = f"docker://{address}/team/skopeo:v1"

    def copy(*arguments: str) -> None:
        done = subprocess.run(
            [skopeo, "--insecure-policy", "copy", "--all", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    copy(f"oci:{store.root}:v1", remote, "--dest-tls-verify=false", "--dest-creds=pusher:correct-horse")
    copy(remote, f"oci:{tmp_path / 'out'}:v1", "--src-tls-verify=false", "--src-creds=puller:battery")
    returned = ContentStore(tmp_path / "out")
    found = returned.resolve("v1")
    assert found is not None
    assert found.digest == index.digest
    inspect = [skopeo, "inspect", "--tls-verify=false", "--creds=puller:battery", "--raw", remote]
    raw = subprocess.run(inspect, capture_output=True, timeout=60, check=True).stdout
    assert ImageDigest.of(raw) == index.digest
