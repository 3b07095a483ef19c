"""Sentences for people: one full stop, whatever was quoted, and paths as they are."""

from __future__ import annotations

import pytest

from kuosan.errors import Error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x cannot be read: bad..", "x cannot be read: bad."),
        ("x is 'bad'.. Make it again.", "x is 'bad'. Make it again."),
        ("../x and y/.. are paths, .. too", "../x and y/.. are paths, .. too"),
        ("'..' is a folder; so is ..", "'..' is a folder; so is .."),
        ("and so on...", "and so on..."),
        ("wait... x.", "wait... x."),
    ],
)
def test_a_message_has_one_full_stop_where_two_sentences_meet(text: str, said: str) -> None:
    assert str(Error(text)) == said
