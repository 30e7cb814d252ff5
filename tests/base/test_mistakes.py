"""What is wrong with a file is told in our own words, with the key that was probably meant."""

import re

import pytest
from pydantic import Field

from nas_prune.base.errors import NasPruneError
from nas_prune.base.files.documents import Document, validated

MEANT = "did you mean 'share'? Correct it"


class Part(Document):
    """A part of a file."""

    about: str
    share: float = 0.5


class Whole(Document):
    """A file."""

    parts: dict[str, Part] = Field({})
    first: Part | None = None
    rows: list[Part] = Field([])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"parts": {"a": {"abuot": "x"}}},
            "f: the key 'parts.a.about' is missing; unknown key",
        ),
        (
            {"parts": {"a": {"about": "x", "shar": 1}}},
            "f: unknown key 'parts.a.shar'; did you mean 'share'? Correct it",
        ),
        ({"first": {"about": "x", "shar": 1}}, f"f: unknown key 'first.shar'; {MEANT}"),
        ({"rows": [{"about": "x", "shar": 1}]}, f"f: unknown key 'rows.0.shar'; {MEANT}"),
        ({"rows": {}}, "f: rows should be a list; correct it"),
        ({"parts": {"a": 3}}, "f: parts.a should be a mapping (key: value); correct it"),
        ({"first": {"about": 3}}, "f: first.about should be text; correct it"),
        (3, "f: it should be a mapping (key: value); correct it"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_our_own_words(value: object, said: str) -> None:
    with pytest.raises(NasPruneError) as told:
        validated(value, Whole, "f", NasPruneError, "correct it")
    assert str(told.value).startswith(said)
    assert not re.search(r"Input|dictionary|instance|not permitted", str(told.value))
