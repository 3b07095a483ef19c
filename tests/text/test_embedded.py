"""Captions' features are computed once a distinct caption, kept, and come back as the encoder gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")

from kuosan.errors import Error
from kuosan.text.encoder import TextEncoder, open_encoder
from kuosan.text.tokens import TextEncoderConfig
from kuosan.train import text_conditioning
from kuosan.train.text_conditioning import embed_all
from text.made_encoders import bert, clip

CAPTIONS = ["a red fox", "a cat", "a red fox", "", "(a fox:9)", "a cat in the snow", "a red fox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "bert"
    bert(path)
    return path


def opened(folder: Path, **settings: Any) -> TextEncoder:
    return open_encoder(TextEncoderConfig(encoder=str(folder), **settings))


class Counting:
    """Counts what is encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        real = TextEncoder.row

        def row(encoder: TextEncoder, text: str) -> Any:
            self.texts.append(text)
            return real(encoder, text)

        monkeypatch.setattr(TextEncoder, "row", row)


def test_rows_are_what_the_encoder_gives_in_half_precision(folder: Path, tmp_path: Path) -> None:
    encoder = opened(folder)
    kept = embed_all(CAPTIONS, encoder, tmp_path)
    assert (len(kept), kept.distinct, kept.width) == (7, 5, 16)
    features, mask = kept.rows(np.array([3, 1, 0, 5, 4, 1]))
    assert features.dtype == torch.float32 and features.shape == (6, int(mask.sum(1).max()), 16)
    for row, there, i in zip(features, mask, (3, 1, 0, 5, 4, 1)):
        wanted = encoder.row(CAPTIONS[i]).features  # brackets mean nothing in a caption
        assert there.tolist() == [j < len(wanted) for j in range(len(there))]
        assert torch.equal(row[there], wanted.half().float()) and not row[~there].any()
    assert kept.rows([3]).features.shape[1] == 2  # no longer than it must be
    features += 1  # rows are the caller's own
    assert torch.equal(kept.rows([3]).features[0], encoder.row("").features.half().float())


def test_each_distinct_caption_is_encoded_once_and_never_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, counting, said = opened(folder), Counting(monkeypatch), list[str]()
    first = embed_all(CAPTIONS, encoder, tmp_path, said.append)
    assert sorted(counting.texts) == sorted(set(CAPTIONS))
    assert len(said) == 1 and said[0].startswith("captions: 5 different ones encoded in ") and str(tmp_path) in said[0]
    counting.texts.clear()
    turned = list(reversed(CAPTIONS))  # images in another order
    again = embed_all(turned, opened(folder), tmp_path, said.append)
    assert counting.texts in ([""], [])  # opening asks for the width
    assert said[1].startswith("captions: 5 encoded ones from the cache, about ") and said[1].endswith(" s saved.")
    for i in range(7):
        assert torch.equal(first.rows([i]).features, again.rows([6 - i]).features)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, tmp: (CAPTIONS + ["a dog"], opened(folder)),
        lambda folder, tmp: ([*CAPTIONS[:-1], "a red  fox"], opened(folder)),
        lambda folder, tmp: (CAPTIONS, opened(folder, hidden=-2)),
        lambda folder, tmp: (CAPTIONS, opened(folder, length=14)),
        lambda folder, tmp: (CAPTIONS, opened(folder, padding="attended")),
        lambda folder, tmp: (CAPTIONS, opened(folder, long="cut")),
        lambda folder, tmp: (clip(tmp / "clip") and CAPTIONS, opened(tmp / "clip", long="cut")),
    ],
)
def test_other_captions_settings_or_encoders_have_features_of_their_own(
    folder: Path, tmp_path: Path, change: Any
) -> None:
    embed_all(CAPTIONS, opened(folder), tmp_path / "cache")
    captions, encoder = change(folder, tmp_path)
    said: list[str] = []
    kept = embed_all(captions, encoder, tmp_path / "cache", said.append)
    assert len([line for line in said if "different ones encoded" in line]) == 1
    assert torch.equal(kept.rows([0]).features[0], encoder.row("a red fox").features.half().float())
    assert len(list((tmp_path / "cache" / "embeddings").iterdir())) == 2


def test_an_interrupted_embedding_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_conditioning, "PART", 2)
    encoder, counting = opened(folder), Counting(monkeypatch)

    def stop(what: str, done: int, of: int) -> None:
        assert what == "captions"
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_all(CAPTIONS, encoder, tmp_path, progress=stop)
    assert len(counting.texts) == 4
    said: list[str] = []
    kept = embed_all(CAPTIONS, encoder, tmp_path, said.append)
    assert len(counting.texts) == 5
    assert "1 different one encoded" in said[0] and "4 encoded ones from the cache" in said[1]
    assert torch.equal(kept.rows([5]).features[0], encoder.row(CAPTIONS[5]).features.half().float())


def test_a_damaged_part_is_reported_and_computed_again(folder: Path, tmp_path: Path) -> None:
    encoder = opened(folder)
    embed_all(CAPTIONS, encoder, tmp_path)
    (path,) = (tmp_path / "embeddings").glob("*/features.rows")
    content = bytearray(path.read_bytes())
    content[40] ^= 4
    path.write_bytes(content)
    said: list[str] = []
    kept = embed_all(CAPTIONS, encoder, tmp_path, said.append)
    assert "is damaged" in said[0] and "5 different ones encoded" in said[1]
    assert torch.equal(kept.rows([1]).features[0], encoder.row("a cat").features.half().float())


def test_captions_that_are_cut_are_said_and_too_long_ones_refused_before_anything_is_encoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [f"a {'red ' * 14}fox {i}" for i in range(5)]
    counting = Counting(monkeypatch)
    with pytest.raises(Error, match=r"has 17 tokens, and .* reads 14 at once"):
        embed_all([*CAPTIONS, captions[0]], opened(folder), tmp_path)
    assert counting.texts in ([""], []) and not (tmp_path / "embeddings").exists()
    said: list[str] = []
    embed_all(captions, opened(folder, long="cut"), tmp_path, said.append)
    cut = [line for line in said if line.startswith("caption cut: ")]
    assert len(cut) == 3 and "is read without its end, 'red fox" in cut[0]
    assert "captions cut: 5 in all are longer than 14 tokens." in said


def test_features_beyond_half_precision_are_an_error_and_not_infinite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = opened(folder)
    real = encoder.row
    monkeypatch.setattr(encoder, "row", lambda text: real(text)._replace(features=real(text).features * 1e5))
    with pytest.raises(Error, match=r"the cache holds 65504 at most"):
        embed_all(CAPTIONS, encoder, tmp_path)


def test_features_kept_before_attended_padding_had_its_name_are_found(folder: Path, tmp_path: Path) -> None:
    """Their key has the word of then: embeddings of 0.1.0 need not be computed again."""
    encoder = opened(folder, padding="told")
    assert encoder.settings.padding == "attended"
    assert text_conditioning._key(["a fox"], encoder)["padding"] == "told"
    assert text_conditioning._key(["a fox"], opened(folder))["padding"] == "masked"
