"""What models and images have in common: names, tags, properties, filters and version text.

Rules (Azure ML SDK v1): an id is `name:version`, versions count from 1; tags may be replaced, properties only added;
a filter is a list of `"key"` (present) or `["key", "value"]` (equal), all of which must hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from publisher.errors import UsageError

Filter = Sequence[str | Sequence[str]]


def check_labels(kind: str, labels: Mapping[str, str] | None) -> dict[str, str]:
    """Tags or properties as a row holds them.

    Raises:
        UsageError: not a mapping, or not of JSON's values.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise UsageError(f"{kind} must be a dict, not {type(labels).__name__}")
    try:
        json.dumps(dict(labels))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} must be JSON-serialisable: {error}") from error
    return {str(key): str(value) for key, value in labels.items()}


def with_properties(kept: Mapping[str, str], added: Mapping[str, str], whose: str) -> dict[str, str]:
    """Properties with some added; adding one again as it is changes nothing.

    Raises:
        UsageError: one of them is there with another value.
    """
    for key, value in added.items():
        if kept.get(key, value) != value:
            raise UsageError(
                f"property {key!r} of {whose} is {kept[key]!r} and stays so: properties can be added, not changed; "
                "use a tag for what changes",
                where=whose,
            )
    return {**kept, **added}


def without_tags(kept: Mapping[str, str], removed: Sequence[str] | None) -> dict[str, str]:
    """Tags without some, by key; a key that is not there changes nothing.

    Raises:
        UsageError: the keys are not a list of them.
    """
    if isinstance(removed, str) or not all(isinstance(each, str) for each in removed or ()):
        raise UsageError(f"tags to remove must be a list of their keys, not {removed!r}")
    return {key: value for key, value in kept.items() if key not in (removed or ())}


def check_filter(kind: str, wanted: Filter | None) -> Filter:
    """A filter as `matches` takes it.

    Raises:
        UsageError: not a list of `"key"` and `["key", "value"]`.
    """
    if isinstance(wanted, str | Mapping) or not all(_is_condition(each) for each in wanted or ()):
        raise UsageError(f"{kind} to look for must be a list of 'key' or ['key', 'value'], not {wanted!r}")
    return wanted or ()


def _is_condition(each: object) -> bool:
    return isinstance(each, str) or (isinstance(each, list | tuple) and len(each) == 2)


def matches(labels: Mapping[str, str], wanted: Filter | None) -> bool:
    """Whether tags or properties satisfy a filter; no filter takes everything."""
    return all(_holds(labels, each) for each in wanted or ())


def _holds(labels: Mapping[str, str], wanted: str | Sequence[str]) -> bool:
    if isinstance(wanted, str):
        return wanted in labels
    key, value = wanted
    return key in labels and labels[key] == str(value)


def split_id(text: str, kind: str) -> tuple[str, int | None]:
    """`name` or `name:version` as name and version (None: the newest).

    Raises:
        UsageError: the part behind the colon is no version.
    """
    name, colon, version = text.partition(":")
    if not colon:
        return name, None
    if not re.fullmatch(r"[1-9][0-9]{0,9}", version):
        raise UsageError(f"{kind} must be NAME or NAME:VERSION with a version from 1, not {text!r}")
    return name, int(version)
