from __future__ import annotations

import re

import pytest

from hefl import errors
from hefl.errors import HeflError, ProtocolError


def subclasses(root: type[HeflError]) -> list[type[HeflError]]:
    return [root, *(found for child in root.__subclasses__() for found in subclasses(child))]


ALL = [cls for cls in subclasses(HeflError) if cls.__module__ == "hefl.errors"]


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, tuple[str, int]] = {}
    path = ["HeflError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ((?:[│├└─ ]{4})*)(\w+)(?: +(\d))? {2,}\S", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            code = int(found[3]) if found[3] else drawn[path[depth - 1]][1]
            drawn[found[2]] = (path[depth - 1] if depth else "Exception", code)
    assert drawn == {cls.__name__: (cls.__bases__[0].__name__, cls.exit_code) for cls in ALL}


@pytest.mark.parametrize("cls", ALL)
def test_an_error_without_a_message_says_its_docstring_in_lower_case(cls: type[HeflError]) -> None:
    first = (cls.__doc__ or "").splitlines()[0]
    assert first.endswith(".")
    assert str(cls()) == first[:-1].lower()
    assert cls().hint == cls.way_out


@pytest.mark.parametrize("cls", ALL)
def test_an_error_survives_its_name_on_the_wire(cls: type[HeflError]) -> None:
    back = errors.from_name(cls.__name__, "what failed", "the way out")
    assert type(back) is cls
    assert (str(back), back.message, back.hint) == ("what failed", "what failed", "the way out")


@pytest.mark.parametrize("name", ["", "Exception", "SystemExit", "hefl.errors.KeysError"])
def test_a_name_that_is_no_error_of_hefl_becomes_a_protocol_error(name: str) -> None:
    assert type(errors.from_name(name, "text", None)) is ProtocolError


@pytest.mark.parametrize("cls", ALL)
def test_exit_codes_and_http_statuses_are_those_of_failures(cls: type[HeflError]) -> None:
    assert 1 <= cls.exit_code <= 5
    assert 400 <= cls.http_status < 600
