"""iotedgedev's templates: placeholders, `.env` files, createOptions as objects."""

from __future__ import annotations

import json

import pytest
from contracts_manifests import DIGEST, complete
from hypothesis import given
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.manifest import DeploymentManifest
from publisher.errors import NotFoundError
from publisher.manifest_template import TemplateError, expand, read_env_file

ENV = """
# what the registry wants
CONTAINER_REGISTRY_USERNAME_shop=puller
export CONTAINER_REGISTRY_PASSWORD_shop="pa\\"ss$word"   # quotes as in a shell
LEVEL='de bug'
TTL=60 # seconds
EMPTY=
"""


def image_of(name: str) -> str:
    if name != "scorer":
        raise NotFoundError(f"no image {name!r}", next_command=f"edgewright image build {name}")
    return f"shop.example/scorer@{DIGEST}"


def template(image: str = "${MODULES.scorer}") -> str:
    document = complete()
    agent = document["modulesContent"]["$edgeAgent"]["properties.desired"]
    agent["runtime"]["settings"]["registryCredentials"] = {
        "shop": {
            "username": "$CONTAINER_REGISTRY_USERNAME_shop",
            "password": "$CONTAINER_REGISTRY_PASSWORD_shop",
            "address": "shop.example",
        }
    }
    scorer = agent["modules"]["scorer"]
    scorer["env"] = {"LEVEL": {"value": "${LEVEL}"}, "MIXED": {"value": "a-$LEVEL-${TTL}$EMPTY"}}
    scorer["settings"] = {
        "image": image,
        "createOptions": {"HostConfig": {"Memory": 1 << 26}, "Labels": {"long": "x" * 700}},
    }
    agent["systemModules"]["edgeAgent"]["settings"]["createOptions"] = ""
    text = json.dumps({"$schema-template": "2.0.0", **document}, indent=1)
    return text.replace('"timeToLiveSecs": 7200', '"timeToLiveSecs": $TTL')


def test_template_becomes_a_manifest() -> None:
    manifest = DeploymentManifest.parse(expand(template(), read_env_file(ENV), image_of))
    scorer = manifest.modules["scorer"]
    assert str(scorer.image) == f"shop.example/scorer@{DIGEST}"
    assert scorer.env == {"LEVEL": "de bug", "MIXED": "a-de bug-60"}
    assert scorer.create_options == {"HostConfig": {"Memory": 1 << 26}, "Labels": {"long": "x" * 700}}
    assert manifest.store_and_forward_ttl_s == 60
    (credential,) = manifest.credentials
    assert (credential.username, credential.password.reveal()) == ("puller", 'pa"ss$word')
    assert {route.name for route in manifest.routes} == {"up", "in"}, "$upstream is of the route language"
    settings = manifest.dump()["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"][
        "settings"
    ]
    assert set(settings) == {"image", "createOptions", "createOptions01"}
    assert [finding for finding in manifest.check() if finding.severity == "error"] == []


@pytest.mark.parametrize(
    "image", ["${MODULES.scorer.amd64}", "${MODULES.scorer.arm64v8}", "${MODULES.scorer.amd64.debug}"]
)
def test_platform_of_a_placeholder_is_the_same_image(image: str) -> None:
    expanded = expand(template(image), read_env_file(ENV), image_of)
    assert DeploymentManifest.parse(expanded).modules["scorer"].image.digest is not None


def test_everything_missing_is_named_at_once() -> None:
    text = '{"a": "$ONE ${TWO} $body $upstream", "b": ["${MODULES.other}", "${MODULES.scorer.arm32v7}", "${a-b}"]}'
    with pytest.raises(TemplateError) as caught:
        expand(text, {}, image_of, where="deployment.template.json")
    for part in (
        "deployment.template.json",
        "$ONE is not set",
        "${TWO} is not set",
        "${MODULES.other} has no image: no image 'other' (edgewright image build other)",
        "32-bit ARM",
        "${a-b} is neither",
    ):
        assert part in caught.value.message
    assert "$body" not in caught.value.message


def test_value_outside_of_quotes_is_a_scalar() -> None:
    assert expand('{"a": $A, "b": ${B}}', {"A": "3", "B": "true"}, image_of) == {"a": 3, "b": True}
    for bad in ('{"x": 1}', "[1]", "text", "", '1, "c": 2'):
        with pytest.raises(TemplateError, match="must be a number"):
            expand('{"a": $A}', {"A": bad}, image_of)


def test_broken_json_is_refused_with_its_place() -> None:
    with pytest.raises(ContractError, match="line 1"):
        expand('{"a": ', {}, image_of)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_value_comes_out_of_a_string_as_it_went_in(value: str) -> None:
    assert expand('{"a": "x${VALUE}y"}', {"VALUE": value}, image_of) == {"a": f"x{value}y"}


@given(st.text(max_size=60))
def test_any_template_is_expanded_or_refused(text: str) -> None:
    try:
        expand(text, {"A": "1"}, image_of)
    except (TemplateError, ContractError):
        pass


def test_env_file_is_read_as_a_shell_would() -> None:
    assert read_env_file(ENV) == {
        "CONTAINER_REGISTRY_USERNAME_shop": "puller",
        "CONTAINER_REGISTRY_PASSWORD_shop": 'pa"ss$word',
        "LEVEL": "de bug",
        "TTL": "60",
        "EMPTY": "",
    }
    assert read_env_file('\ufeffA=1\r\nB="x\\ny"\r\nC=a#b\n') == {"A": "1", "B": "x\ny", "C": "a#b"}


@pytest.mark.parametrize("line", ["VALUE-ALONE", "=1", "1A=2", 'A="open', "A='x' y", "A-B=1"])
def test_bad_line_is_named_by_its_number_without_its_value(line: str) -> None:
    with pytest.raises(TemplateError, match="line 2") as caught:
        read_env_file(f"OK=1\n{line}\n")
    assert line not in caught.value.message


@given(st.text(max_size=60))
def test_any_env_file_is_read_or_refused(text: str) -> None:
    try:
        read_env_file(text)
    except TemplateError:
        pass
