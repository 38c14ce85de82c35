"""Any error as one line."""

import errno

import pytest
from pydantic import BaseModel, ValidationError

from cogview3.errors import UserError, as_user_error, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines\t"), "two lines"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), "a.png: No such file"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("the hub says no"), "the hub says no"),
        (KeyError("width"), "'width' is missing"),
        (ValueError("x" * 400), "x" * 297 + "..."),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_the_type_comes_first_where_nothing_is_known_of_an_error() -> None:
    assert one_line(ZeroDivisionError("by 0"), typed=True) == "ZeroDivisionError: by 0"
    assert one_line(ZeroDivisionError(), typed=True) == "ZeroDivisionError"


def test_of_pydantic_key_and_value_are_named() -> None:
    class Model(BaseModel):
        width: int

    with pytest.raises(ValidationError) as caught:
        Model(width="wide")  # type: ignore[arg-type]
    assert one_line(caught.value).startswith("width 'wide': ")


def test_errors_of_libraries_become_a_users_but_not_those_that_stop_a_program() -> None:
    with (
        pytest.raises(UserError, match=r"^a\.json: copy it again \(RuntimeError\)$"),
        as_user_error("a.json", "copy it again"),
    ):
        raise RuntimeError
    for kind in (MemoryError, KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), as_user_error("a.json"):
            raise kind
