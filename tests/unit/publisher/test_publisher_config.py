"""edgewright.toml: strict, and helpful about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from publisher.config import Settings, initial_config, parse_settings
from publisher.errors import ConfigError

PATH = Path("/w/edgewright.toml")


def read(text: str, **environ: str) -> Settings:
    return parse_settings(text, PATH, environ)


def refused(text: str, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value


def test_an_empty_file_means_the_defaults() -> None:
    assert read("") == Settings()


def test_the_file_that_init_writes_is_read_back_with_its_python() -> None:
    settings = read(initial_config("demo", "3.12"))
    assert (settings.workspace.name, settings.environment.python) == ("demo", "3.12")


def test_the_commented_defaults_of_the_initial_file_are_the_real_ones() -> None:
    lines = [line.removeprefix("# ") for line in initial_config("demo", "3.11").splitlines()[1:]]
    settings = read("\n".join(line for line in lines if "=" in line or line.startswith("[")))
    assert settings.image == Settings().image


def test_unknown_key_names_key_section_file_line_and_known_keys() -> None:
    error = refused('[image]\n\nplatform = ["linux/amd64"]\n')
    assert error.message == (
        "unknown key 'platform' of [image] in /w/edgewright.toml:3; known keys: "
        "base_layers, default_base, dependencies_compression, model_compression, platforms"
    )
    assert error.where == "/w/edgewright.toml:3"


@pytest.mark.parametrize("text", ["\n[images]\nplatforms = []\n", "\nimages = 1\n"])
def test_unknown_section_or_top_level_key_names_the_sections(text: str) -> None:
    error = refused(text)
    assert "'images' in /w/edgewright.toml:2" in error.message
    assert "[workspace], [image], [environment]" in error.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[image]\nplatforms = 'linux/amd64'\n",
            "image.platforms must be a list of strings, not 'linux/amd64'",
        ),
        ("[image]\nmodel_compression = true\n", "image.model_compression must be a whole number, not True"),
        ("[environment]\nno_index = 1\n", "environment.no_index must be true or false, not 1"),
        ("[environment]\npython = 3.11\n", "environment.python must be a string, not 3.11"),
    ],
)
def test_ill_typed_value_names_key_and_type(text: str, expected: str) -> None:
    error = refused(text)
    assert error.message == f"{expected}, in /w/edgewright.toml:2"


def test_a_full_python_version_is_refused_with_an_example() -> None:
    assert '"3.11"' in refused('[environment]\npython = "3.11.4"\n').message


def test_compression_out_of_range_is_refused() -> None:
    assert "0 (stored) to 9, not 10" in refused("[image]\nmodel_compression = 10\n").message


def test_broken_toml_names_file_and_line() -> None:
    message = refused("[image]\n= 1\n").message
    assert message.startswith("/w/edgewright.toml is not valid TOML") and "line 2" in message


def test_environment_variables_win_over_the_file() -> None:
    settings = read(
        "[image]\nmodel_compression = 1\n",
        EDGEWRIGHT_IMAGE_MODEL_COMPRESSION="6",
        EDGEWRIGHT_IMAGE_PLATFORMS="linux/amd64, linux/arm64",
        EDGEWRIGHT_ENVIRONMENT_NO_INDEX="true",
    )
    assert settings.image.model_compression == 6
    assert settings.image.platforms == ("linux/amd64", "linux/arm64")
    assert settings.environment.no_index


def test_ill_typed_variable_is_named() -> None:
    error = refused("", EDGEWRIGHT_IMAGE_MODEL_COMPRESSION="fast")
    assert error.message == (
        "environment variable EDGEWRIGHT_IMAGE_MODEL_COMPRESSION must be a whole number, not 'fast'"
    )
