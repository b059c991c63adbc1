"""Bare ONNX models: what goes in, what comes out, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scoring_models as models
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_runtime.data_plane import ScoringRequest
from scoring_runtime.errors import BadInputError, ContentTypeError, ModelError, RequestError
from scoring_runtime.onnx_model import OnnxModel

OCTETS = "application/octet-stream"


class Counter:
    def __init__(self) -> None:
        self.values = 0

    def __call__(self, values: int) -> None:
        self.values += values


def load(file: Path, counter: Counter | None = None) -> OnnxModel:
    return OnnxModel.load(file, threads=1, count_non_finite=counter or Counter())


def score(model: OnnxModel, body: bytes, content_type: str = "application/json") -> Any:
    return json.loads(model.render(model.run(model.parse(ScoringRequest(body, content_type)))))


@pytest.mark.parametrize("key", ["data", "x"])
def test_one_input_is_called_data_or_by_its_name(tmp_path: Path, key: str) -> None:
    body = json.dumps({key: [[1, 2, 3], [4, 5, 6.5]]}).encode()
    assert score(load(models.doubler(tmp_path)), body) == {"y": [[2, 4, 6], [8, 10, 13]]}


def test_no_content_type_means_json(tmp_path: Path) -> None:
    assert score(load(models.doubler(tmp_path)), b'{"data": [[1, 2, 3]]}', "") == {"y": [[2, 4, 6]]}


def test_octets_are_the_inputs_own_bytes(tmp_path: Path) -> None:
    body = np.arange(6, dtype="<f4").tobytes()
    assert score(load(models.doubler(tmp_path)), body, OCTETS) == {"y": [[0, 2, 4], [6, 8, 10]]}


def test_several_inputs_go_by_their_names(tmp_path: Path) -> None:
    assert score(load(models.adder(tmp_path)), b'{"left": [[1, 2]], "right": [10, 20]}') == {
        "sum": [[11, 22]]
    }


def test_zip_map_gives_a_list_of_maps(tmp_path: Path) -> None:
    reply = score(load(models.classifier(tmp_path)), b'{"data": [[0, 0], [0, 50]]}')
    assert reply == {
        "label": [0, 1],
        "probabilities": [{"4": 0.5, "5": 0.5}, {"4": pytest.approx(0), "5": 1.0}],
    }


def test_nan_and_infinity_are_null_and_counted(tmp_path: Path) -> None:
    counter = Counter()
    assert score(load(models.logarithm(tmp_path), counter), b'{"data": [-1, 0, 1]}') == {
        "y": [None, None, 0.0]
    }
    assert counter.values == 2


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (models.STRING, ["a", "å"]),
        (models.BOOL, [True, False]),
        (models.INT64, [2**60, -1]),
        (models.UINT64, [2**64 - 1, 2**63 + 1, 1]),
    ],
)
def test_every_element_type_comes_back_as_it_went_in(tmp_path: Path, kind: int, values: list[Any]) -> None:
    assert score(load(models.copier(tmp_path, kind)), json.dumps({"data": values}).encode()) == {"y": values}


def test_an_empty_batch_is_scored(tmp_path: Path) -> None:
    assert score(load(models.copier(tmp_path, models.FLOAT)), b'{"data": []}') == {"y": []}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"data": [[1, 2]]}', "input 'x' expects float32 [N, 3], found shape [1, 2]"),
        ('{"data": [1, 2, 3]}', "found shape [3]"),
        ('{"data": [[1, 2, 3], [1, 2]]}', "rows of different lengths (first at [1])"),
        ('{"data": [[1, 2, "3"]]}', "found text"),
        ('{"data": [[true, false, true]]}', "found true or false"),
        ('{"data": [[1, 2, 3], [4, false, 6]]}', "found true or false"),
        ('{"data": [[1, 2, null]]}', "found null"),
        ('{"data": {"a": 1}}', "found shape []"),
        ('{"data": [[1, 2, 1e300]]}', "a number too large for float32"),
        ('{"data": [[1, 2, NaN]]}', "the body is not JSON"),
        ('{"z": [[1, 2, 3]]}', 'the model has no input \'z\'; expected {"data": …} or {"x": …}'),
        ('{"data": [[1, 2, 3]], "x": [[1, 2, 3]]}', "the model has no input 'data'"),
        ("{}", "input 'x' (float32 [N, 3]) is missing"),
        ("[[1, 2, 3]]", 'expected a JSON object {"data": …} or {"x": …}, found an array'),
        ("", "the body is empty"),
        ("{", "the body is not JSON"),
        ('{"data": ' + "[" * 100 + "]" * 100 + "}", "expects float32 [N, 3]"),
    ],
)
def test_bad_input_names_the_input_and_what_it_expects(tmp_path: Path, body: str, text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        score(load(models.doubler(tmp_path)), body.encode())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("[1.5]", "found the number 1.5, which is no integer"),
        ("[1e30]", "a number outside"),
        ('["1"]', "found text"),
        ("[99999999999999999999]", "expects int64 [N]"),
        ("[9223372036854775808, 0]", "a number outside"),
        ("[-9223372036854775809, 0]", "a number outside"),
        ("[-9223372036854777856.0, 0]", "a number outside"),
    ],
)
def test_nothing_is_converted_to_an_integer_silently(tmp_path: Path, body: str, text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        score(load(models.copier(tmp_path, models.INT64)), f'{{"data": {body}}}'.encode())
    assert text in str(caught.value)


def test_whole_numbers_are_integers_however_they_are_written(tmp_path: Path) -> None:
    assert score(load(models.copier(tmp_path, models.INT64)), b'{"data": [1.0, 2]}') == {"y": [1, 2]}


@pytest.mark.parametrize("body", ["[1]", '["a", 1]'])
def test_a_string_input_takes_strings_only(tmp_path: Path, body: str) -> None:
    with pytest.raises(BadInputError, match="values that are not strings"):
        score(load(models.copier(tmp_path, models.STRING)), f'{{"data": {body}}}'.encode())


def test_a_missing_input_among_several_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"input 'right' \(float32 \[2\]\) is missing"):
        score(load(models.adder(tmp_path)), b'{"left": [[1, 2]]}')


def test_octets_of_the_wrong_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="found 13 bytes, which is no multiple of 12"):
        score(load(models.doubler(tmp_path)), bytes(13), OCTETS)


def test_octets_of_a_fixed_shape_must_have_its_length(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="found 24 bytes instead of 12"):
        score(load(models.doubler(tmp_path, shape=(1, 3))), bytes(24), OCTETS)


@pytest.mark.parametrize(
    ("kind", "shape", "text"),
    [(models.STRING, ["N"], "strings have no fixed size"), (models.FLOAT, ["N", "M"], "2 free dimensions")],
)
def test_octets_that_could_mean_several_shapes_are_refused(
    tmp_path: Path, kind: int, shape: list[Any], text: str
) -> None:
    with pytest.raises(ContentTypeError, match=text):
        score(load(models.copier(tmp_path, kind, shape)), bytes(8), OCTETS)


def test_another_content_type_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ContentTypeError, match="expected content type 'application/json' or 'application/octet-stream'"
    ):
        score(load(models.doubler(tmp_path)), b"a=1", "text/csv")


def test_what_only_the_model_can_refuse_is_still_the_callers_mistake(tmp_path: Path) -> None:
    nodes = [models.helper.make_node("Gather", ["table", "rows"], ["y"])]
    inputs = [models.tensor("table", models.FLOAT, ["K"]), models.tensor("rows", models.INT64, ["N"])]
    model = load(models.save(tmp_path, nodes, inputs, [models.tensor("y", models.FLOAT, ["N"])]))
    with pytest.raises(BadInputError, match=r"the model refuses the input: .*out of data bounds"):
        score(model, b'{"table": [1, 2], "rows": [7]}')


def test_a_named_dimension_has_one_size_in_all_inputs(tmp_path: Path) -> None:
    nodes = [models.helper.make_node("MatMul", ["a", "b"], ["c"])]
    inputs = [models.tensor("a", models.FLOAT, [1, "K"]), models.tensor("b", models.FLOAT, ["K", 1])]
    model = load(models.save(tmp_path, nodes, inputs, [models.tensor("c", models.FLOAT, [1, 1])]))
    with pytest.raises(BadInputError, match=r"float32 \[K, 1\], found K = 3, but K = 2 in input 'a'"):
        score(model, b'{"a": [[1, 2]], "b": [[1], [2], [3]]}')


def test_a_file_that_is_no_model_is_named_with_onnxruntimes_reason(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"onnxruntime [0-9.]+ cannot load .*model\.onnx"):
        load(file)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist: .*absent\.onnx"):
        load(tmp_path / "absent.onnx")


def test_the_signature_comes_from_the_graph(tmp_path: Path) -> None:
    signature = load(models.doubler(tmp_path)).signature
    data = signature.input["properties"]["data"]
    assert data["description"] == "float32 [N, 3]"
    limit = data["items"]["items"]["maximum"]
    assert np.float32(limit) == np.finfo(np.float32).max < np.float64(limit)
    number = {"type": "number", "minimum": -limit, "maximum": limit}
    assert data["items"] == {"type": "array", "items": number, "minItems": 3, "maxItems": 3}
    assert data["minItems"] == 1 and "maxItems" not in data
    assert signature.input["additionalProperties"] is False
    assert list(signature.output["properties"]) == ["y"]
    assert signature.media_types == ("application/json", OCTETS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "x", "y"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> list[OnnxModel]:
    folder = tmp_path_factory.mktemp("kinds")
    kinds = (models.FLOAT, models.INT64, models.STRING, models.BOOL)
    return [load(models.copier(folder, kind, ["N", "M"])) for kind in kinds] + [load(models.doubler(folder))]


@settings(max_examples=300, deadline=None)
@given(value=JSON_VALUES, wrapped=st.booleans())
def test_any_json_is_scored_or_refused_as_the_callers_mistake(
    one_of_each: list[OnnxModel], value: Any, wrapped: bool
) -> None:
    body = json.dumps({"data": value} if wrapped else value).encode()
    for model in one_of_each:
        try:
            assert set(score(model, body)) == {"y"}
        except BadInputError as error:
            assert str(error)


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=64), content_type=st.sampled_from(["", "application/json", OCTETS, "text/csv"])
)
def test_any_bytes_are_scored_or_refused_as_the_callers_mistake(
    one_of_each: list[OnnxModel], body: bytes, content_type: str
) -> None:
    for model in one_of_each:
        try:
            score(model, body, content_type)
        except RequestError as error:
            assert str(error)
