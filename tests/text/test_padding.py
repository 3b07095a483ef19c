"""Values that had other names are read by them, typed or from files, and written by today's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kuosan import config as trees
from kuosan.config import as_begun
from kuosan.errors import Error
from kuosan.options import parse
from kuosan.text.tokens import TextEncoderConfig
from kuosan.train.config import RunConfig
from kuosan.train.resume import refuse_changes

PADDING = ["--model.text.kind", "encoder", "--model.text.encoder", "minilm", "--model.text.padding"]


@pytest.mark.parametrize("word", ["told", "attended"])
def test_attended_padding_is_read_by_either_name_and_written_by_the_new_one(word: str) -> None:
    typed, _ = parse([*PADDING, word], RunConfig)
    stored: dict[str, Any] = {"model": {"text": {"kind": "encoder", "encoder": "minilm", "padding": word}}}
    for tree in (typed, trees.parse(trees.dump(stored), Path("config.yaml"))):
        made = trees.build(RunConfig, {"data": {"path": "images"}, **tree})
        assert trees.plain(made)["model"]["text"]["padding"] == "attended"
    assert TextEncoderConfig(encoder="minilm", padding=word).padding == "attended"  # type: ignore[arg-type]


def test_another_word_is_refused_with_the_names_of_today() -> None:
    with pytest.raises(Error, match=r"padding = 'tolt'.*'masked' or 'attended'"):
        trees.build(TextEncoderConfig, {"encoder": "minilm", "padding": "tolt"})


def test_a_run_of_told_padding_goes_on_with_attended() -> None:
    now = trees.plain(trees.build(RunConfig, {"data": {"path": "images"}, **parse([*PADDING, "told"], RunConfig)[0]}))
    old = trees.merge(now, {"model": {"text": {"padding": "told"}}})
    assert as_begun(old)["model"]["text"]["padding"] == "attended" and old["model"]["text"]["padding"] == "told"
    assert refuse_changes(as_begun(old), now, "run") == []
    with pytest.raises(Error, match=r"model.text.padding.*masked"):
        refuse_changes(as_begun(old), trees.merge(now, {"model": {"text": {"padding": "masked"}}}), "run")
