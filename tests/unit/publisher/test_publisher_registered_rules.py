"""Versions, tags and properties: the rules of the original, as a state machine against a plain dictionary."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from publisher.errors import NotFoundError, UsageError
from publisher.models import Model
from publisher.workspace import Workspace

KEYS = st.sampled_from(["area", "stage", "key"])
VALUES = st.sampled_from(["0.1", "0.2", "", "é"])
LABELS = st.dictionaries(KEYS, VALUES, max_size=3)
NAMES = st.sampled_from(["digits", "letters"])


class Expected:
    """One version as the rules say it is."""

    def __init__(self, tags: dict[str, str], properties: dict[str, str]) -> None:
        self.tags, self.properties, self.description = dict(tags), dict(properties), None


class RegisteredRules(RuleBasedStateMachine):
    """Two names; each step through a newly got object, or one got before another changed the row."""

    models = Bundle("models")

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing costs nothing
        self.folder = Path(tempfile.mkdtemp(prefix="edgewright-rules-", dir=memory))
        self.workspace = Workspace.init(self.folder / "w")
        (self.folder / "m.pkl").write_bytes(b"weights")
        self.last = {"digits": 0, "letters": 0}
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(target=models, name=NAMES, tags=LABELS, properties=LABELS)
    def register(self, name: str, tags: dict[str, str], properties: dict[str, str]) -> Model:
        model = Model.register(self.workspace, self.folder / "m.pkl", name, tags, properties)
        self.last[name] += 1
        assert model.id == f"{name}:{self.last[name]}"
        self.expected[model.id] = Expected(tags, properties)
        return model

    @rule(model=models, tags=LABELS)
    def add_tags(self, model: Model, tags: dict[str, str]) -> None:
        model.add_tags(tags)
        self.expected[model.id].tags |= tags

    @rule(model=models, keys=st.lists(KEYS))
    def remove_tags(self, model: Model, keys: list[str]) -> None:
        model.remove_tags(keys)
        for key in keys:
            self.expected[model.id].tags.pop(key, None)

    @rule(model=models, tags=LABELS)
    def replace_tags(self, model: Model, tags: dict[str, str]) -> None:
        model.update(tags=tags)
        self.expected[model.id].tags = dict(tags)

    @rule(model=models, tags=LABELS, keys=st.lists(KEYS), properties=LABELS)
    def change_all(
        self, model: Model, tags: dict[str, str], keys: list[str], properties: dict[str, str]
    ) -> None:
        expected = self.expected[model.id]
        if any(expected.properties.get(key, value) != value for key, value in properties.items()):
            with pytest.raises(UsageError, match="properties can be added, not changed"):
                model.update_tags_properties(tags, keys, properties)
            return  # and nothing of it was done, which `rows_are_as_expected` sees
        model.update_tags_properties(tags, keys, properties)
        expected.properties |= properties
        expected.tags = {key: value for key, value in (expected.tags | tags).items() if key not in keys}

    @rule(model=consumes(models))
    def delete(self, model: Model) -> None:
        model.delete()
        del self.expected[model.id]
        with pytest.raises(NotFoundError, match=r"^ModelNotFound"):
            Model(self.workspace, id=model.id)
        with pytest.raises(NotFoundError, match=r"^ModelNotFound"):
            model.add_tags({"area": "gone"})

    @rule(target=models, model=models)
    def get_again(self, model: Model) -> Any:
        document = Model(self.workspace, id=model.id).serialize()
        assert Model.deserialize(self.workspace, document).serialize() == document
        return multiple()

    @rule(key=KEYS, value=VALUES)
    def search(self, key: str, value: str) -> None:
        for wanted, fits in (
            ([key], lambda tags: key in tags),
            ([[key, value]], lambda tags: tags.get(key) == value),
            ([key, [key, value]], lambda tags: tags.get(key) == value),
        ):
            found = {model.id for model in Model.list(self.workspace, tags=wanted)}
            assert found == {id for id, each in self.expected.items() if fits(each.tags)}

    @invariant()
    def rows_are_as_expected(self) -> None:
        found = {model.id: model for model in Model.list(self.workspace)}
        assert found.keys() == self.expected.keys()
        for id, model in found.items():
            expected = self.expected[id]
            assert (model.tags, model.properties) == (expected.tags, expected.properties)
        for name in self.last:
            versions = [model.version for model in Model.list(self.workspace, name=name)]
            assert versions == sorted(versions, reverse=True)
            if versions:
                assert Model(self.workspace, name).version == versions[0]
                assert [model.version for model in Model.list(self.workspace, name, latest=True)] == versions[
                    :1
                ]


RegisteredRules.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestRegisteredRules = RegisteredRules.TestCase
