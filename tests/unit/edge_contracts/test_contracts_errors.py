from __future__ import annotations

import pytest

from edge_contracts.errors import (
    AgentError,
    ContainerError,
    ContractError,
    EdgewrightError,
    HubError,
    PublishError,
    TargetError,
    unexpected,
)


def test_fields_default_to_those_of_the_class() -> None:
    error = ContractError("no")
    assert (str(error), error.message, error.code, error.temporary) == ("no", "no", "contract", False)
    assert (error.where, error.next_command) == (None, None)


def test_fields_of_an_instance_leave_the_class_alone() -> None:
    error = HubError(
        "busy", code="hub-busy", where="h:8883", temporary=True, next_command="edgewright hub start"
    )
    assert (error.code, error.where, error.temporary) == ("hub-busy", "h:8883", True)
    assert error.next_command == "edgewright hub start"
    assert (HubError.code, HubError.temporary) == ("hub", False)


@pytest.mark.parametrize(
    "base", [ContractError, PublishError, TargetError, AgentError, HubError, ContainerError]
)
def test_packages_have_their_bases_and_codes(base: type[EdgewrightError]) -> None:
    assert issubclass(base, EdgewrightError)
    assert base.code not in {other.code for other in EdgewrightError.__subclasses__() if other is not base}


def test_unexpected_says_path_expectation_and_what_was_found() -> None:
    error = unexpected("a.b", "an integer", "x" * 500)
    assert error.where == "a.b"
    assert error.message.startswith("'a.b' must be an integer, not 'xxx")
    assert len(error.message) < 200
