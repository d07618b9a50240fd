"""A way out after each error."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from hefl import errors
from hefl.errors import HeflError, OutOfRangeError, ParametersError, UsageError

ROOT = Path(__file__).parents[2]
WITHOUT = (HeflError, ParametersError, OutOfRangeError)
"""Of one's own code or arithmetic: what failed is all that there is to say."""


def raised() -> Iterator[tuple[str, type[HeflError], bool]]:
    """Where an error is made, its class, and whether it is given a hint."""
    for folder in ("hefl", "keys", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    cls = getattr(errors, node.func.id, None)
                    if isinstance(cls, type) and issubclass(cls, HeflError):
                        hinted = any(word.arg == "hint" for word in node.keywords)
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", cls, hinted


def test_every_error_that_a_person_meets_has_a_hint_of_its_own_or_of_its_class() -> None:
    """A command adds 'see its --help' to a UsageError that says no more."""
    places = list(raised())
    assert len(places) > 150
    bare = [
        (place, cls.__name__)
        for place, cls, hinted in places
        if not hinted and cls.way_out is None and not issubclass(cls, UsageError) and cls not in WITHOUT
    ]
    assert bare == []


def test_the_hint_of_a_class_is_used_where_none_is_given() -> None:
    assert errors.TamperError("text").hint == errors.TamperError.way_out
    assert errors.TamperError("text", hint="another").hint == "another"
    assert errors.HeflError("text").hint is None


def test_hints_read_like_messages() -> None:
    for _, cls, _ in raised():
        if cls.way_out:
            assert cls.way_out[0].islower()
            assert not cls.way_out.endswith(".")
