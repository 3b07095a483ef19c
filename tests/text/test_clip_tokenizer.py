"""CLIP's tokenizer of ours gives the tokens of transformers' with the same vocabulary, whatever the text."""

from __future__ import annotations

import json
import random
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kuosan.errors import Error
from kuosan.networks.clip import CLIPTextNetwork
from kuosan.networks.text_config import CLIPText
from kuosan.text.clip import BEGIN, END, CLIPTokenizer, open_tokenizer, own_vocabulary
from kuosan.text.encoder import TextEncoder
from kuosan.text.tokens import TextEncoderConfig, Tokens
from text.made_encoders import clip_tokenizer

HAND = [
    *("", " ", "a photo of an astronaut riding a horse on mars", "A Fox!", "it's we're I'LL 'tis o'clock ''s 'Sx"),
    *("été ÉTÉ e\u0301te\u0301", "狐狸在雪里", "مرحبا بالعالم", "हिन्दी में", "ไทย", "한글 \u1112\u1161\u11ab", "ΑΣ ΑΣ."),
    *("👩‍👩‍👧 👍🏽 ✨", "123 4½ Ⅷ x²", "tabs\tand\nlines\r\n", "\x00\x1c\x1d\x7f", "a\x85b\xa0c\u200bd\u3000"),
    *("(red:1.3) fox, 8k, [masterpiece] -- ~~", f"hi {END} x{BEGIN}y", "hi <|ENDOFTEXT|>", "!!! ! a!b"),
    *("\ufeff ﬁ ǅ ß \u0345", "\u0958 \u2126 \u212b\u0301", "İI", "<|ENDOFTEXT|>\x00 !<|STARTOFTEXT|>!"),
]  # fmt: skip


def generated(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of every script that this Python knows: letters, marks that join, emoji, control characters, words."""
    draw = random.Random(seed)
    every = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    near = [chr(i) for i in (*range(0x530), *range(0x1F300, 0x1F700), 0x200D, 0xFE0F, 0x2019)]
    words = [word for text in HAND for word in text.split(" ")]
    for _ in range(count):
        kind, size = draw.random(), draw.randint(1, 40)
        if kind < 0.3:
            yield "".join(draw.choices(every, k=size))
        elif kind < 0.6:
            yield "".join(draw.choices(near, k=size))
        elif kind < 0.8:
            yield " ".join(draw.choices(words, k=size))
        else:
            yield "".join(draw.choices([*words, " ", "\u0301", "\u0323", "Ü", "\u1100", "\u1161", "'s", "9"], k=size))


def peer(pad: str) -> Any:
    """transformers' own with the same vocabulary."""
    transformers = pytest.importorskip("transformers")
    vocabulary, merges = own_vocabulary()
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


@pytest.mark.parametrize("pad", [END, "!"])
def test_tokens_equal_those_of_transformers_in_every_script(pad: str) -> None:
    own, theirs = CLIPTokenizer(pad=pad), peer(pad)
    assert own.pad_token_id == theirs.pad_token_id == (49407 if pad == END else 0)
    for text in [*HAND, *generated(1000)]:
        wanted = theirs(text, verbose=False).input_ids
        assert own(text).input_ids == wanted, ascii(text)
        assert own.decode(wanted[1:-1]) == theirs.decode(wanted[1:-1]), ascii(text)


def test_places_in_the_text_equal_those_of_transformers_where_nothing_was_composed() -> None:
    own, theirs = CLIPTokenizer(), peer(END)
    looked_at = 0
    for text in [*HAND, *generated(500)]:
        if unicodedata.is_normalized("NFC", text):
            looked_at += 1
            read = theirs(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            assert own(text, add_special_tokens=False).offset_mapping == read.offset_mapping, ascii(text)
    assert looked_at > 200


def test_a_known_prompt_has_the_published_tokens() -> None:
    ids = CLIPTokenizer()("a photo of an astronaut riding a horse on mars").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_long_words_take_no_longer_than_their_letters() -> None:
    draw, own = random.Random(0), CLIPTokenizer()
    begun = time.process_time()
    own("".join(draw.choices("abcdefghij", k=20_000)))
    own("a" + "\u0301" * 20_000)
    assert time.process_time() - begun < 20


def test_a_folders_own_tokenizer_goes_first(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert open_tokenizer().vocabulary is own_vocabulary()[0]
    assert open_tokenizer(tmp_path, pad="!").pad_token_id == 0  # nothing there: CLIP's own
    old = tmp_path / "old"
    clip_tokenizer(old)  # vocab.json and merges.txt
    theirs = transformers.AutoTokenizer.from_pretrained(old)
    new = tmp_path / "new"
    theirs.save_pretrained(new)  # tokenizer.json alone
    assert not (new / "vocab.json").exists()
    for folder in (old, new):
        own = open_tokenizer(folder)
        assert own.model_max_length == 16 and own.pad_token_id == theirs.pad_token_id
        for text in HAND:
            assert own(text).input_ids == theirs(text, verbose=False).input_ids, (folder, ascii(text))


@pytest.mark.parametrize("pad", [END, "!"])
def test_the_files_of_stable_diffusion_say_how_special_tokens_are_looked_for(tmp_path: Path, pad: str) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary, merges = own_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    ends = {
        f"{name}_token": {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos", BEGIN), ("eos", END), ("unk", END))
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({**ends, "pad_token": pad}))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad, "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    own, theirs = open_tokenizer(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert own.pad_token_id == theirs.pad_token_id
    for text in [*HAND, *generated(100, 1)]:
        assert own(text).input_ids == theirs(text, verbose=False).input_ids, ascii(text)


def test_tokens_that_were_added_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    clip_tokenizer(tmp_path / "plain")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    theirs.add_tokens(["<my-fox>", "snowball"])
    theirs.save_pretrained(tmp_path / "added")
    own = open_tokenizer(tmp_path / "added")
    for text in ("a <my-fox> in a Snowball", "snowballs <MY-FOX>", "the <my-fox>!"):
        assert own(text).input_ids == theirs(text, verbose=False).input_ids, text


def test_files_of_another_tokenizer_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    clip_tokenizer(tmp_path)
    settings = (tmp_path / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(Error, match=r"T5Tokenizer.*CLIPTokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings)
    for name, text, said in (
        ("vocab.json", "{", "not valid JSON"),
        ("vocab.json", "[]", "no mapping"),
        ("vocab.json", '{"a": "b"}', "no numbers"),
        ("vocab.json", '{"a": 1}', "not CLIP's"),
        ("merges.txt", "a b c", "each is of two tokens"),
    ):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(Error, match=said):
            open_tokenizer(tmp_path)
        (tmp_path / name).write_text(kept)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(Error, match=r"merges\.txt"):
        open_tokenizer(tmp_path)


SETTINGS = TextEncoderConfig(encoder="sd", padding="attended", long="chunks")


def encoder(settings: TextEncoderConfig = SETTINGS, pad: str = END, projection: int = 0) -> TextEncoder:
    """A tiny CLIP of all of CLIP's tokens, as an opened checkpoint's."""
    network = CLIPTextNetwork(CLIPText(width=16, hidden=32, depth=3, heads=2, projection=projection)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return TextEncoder(network, CLIPTokenizer(pad=pad), settings, "")


def test_prompts_are_filled_up_cut_and_chunked_as_other_encoders_are() -> None:
    long = "fox " * 100
    tokens = Tokens(CLIPTokenizer(pad="!"), "sd", 77)
    assert (tokens.length, tokens.room, tokens.pad, tokens.before, tokens.behind) == (77, 75, 0, [49406], [49407])
    with pytest.raises(Error, match="100 tokens"):
        tokens.chunks([(long, 1.0)], "refuse")
    assert [len(each.ids) for each in tokens.chunks([(long, 1.0)], "cut")] == [77]
    assert [len(each.ids) for each in tokens.chunks([(long, 1.0)], "chunks")] == [77, 27]
    assert tokens.cut_off([(long, 1.0)]).split() == ["fox"] * 25
    features, mask = encoder().encode(["a fox", long])
    assert features.shape == (2, 154, 16) and mask.tolist() == [[True] * 77 + [False] * 77, [True] * 154]


def test_what_fills_a_prompt_up_and_which_layer_is_read_make_a_difference() -> None:
    own = encoder()
    ids = torch.tensor([[49406, 320, 3240, *[49407] * 74]])
    with torch.no_grad():
        states = own.network(ids)
        assert torch.equal(own.row("a fox").features, states.last_hidden_state[0])
        skipped = encoder(TextEncoderConfig(encoder="sd", padding="attended", hidden=-2))
        normed = own.network.final_layer_norm(states.hidden_states[-2])[0]
        assert torch.allclose(skipped.row("a fox").features, normed, atol=1e-6)
        xl = encoder(TextEncoderConfig(encoder="sd", padding="attended", hidden=-2, final_norm=False))
        assert torch.equal(xl.row("a fox").features, states.hidden_states[-2][0])
    zeros = encoder(pad="!").row("a fox").features
    assert torch.equal(zeros[:4], own.row("a fox").features[:4])
    assert not torch.allclose(zeros[4:], own.row("a fox").features[4:], atol=1e-3)
    with pytest.raises(Error, match="final_norm"):
        TextEncoderConfig(encoder="sd", final_norm=False)


def test_weights_move_the_words_that_they_stand_around() -> None:
    own = encoder()
    plain, weighted, none = (own.read(text).features for text in ("a red fox", "a (red:1.5) fox", "a (red:0) fox"))
    empty = own.row("").features
    changed = (plain != weighted).any(1)
    assert changed.nonzero().flatten().tolist() == [2]
    assert torch.allclose(weighted[2], empty[2] + 1.5 * (plain[2] - empty[2]), atol=1e-6)
    assert torch.equal(none[2], empty[2])


def test_the_pooled_text_is_the_first_chunks_at_its_end() -> None:
    own = encoder(projection=8)
    ids = torch.tensor([[49406, 320, 3240, 49407]])
    with torch.no_grad():
        assert torch.equal(own.pooled("a (fox:1.3)"), own.network(ids).pooled[0])
    long = "fox " * 100
    assert own.pooled(long).shape == (8,)
    assert torch.equal(own.pooled(long), own.pooled("fox " * 75))
