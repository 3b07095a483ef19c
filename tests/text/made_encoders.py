"""Tiny text encoders of every family with random weights, and their tokenizers, saved as users' are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SENTENCES = ["a red fox in the snow", "a photo of a cat", "blue dogs, and (two) birds", "狐狸在雪里", "été"]
LENGTH = 16


def byte_characters() -> list[str]:
    """The characters that stand for bytes in byte-level BPE (Radford et al. 2019), in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def clip_tokenizer(folder: Path, length: int = LENGTH) -> int:
    """CLIP's own kind, with a handful of merges; returns how many tokens it knows."""
    characters = byte_characters()
    merges = ["f o", "fo x</w>", "r e", "re d</w>", "t h", "th e</w>", "c a", "ca t</w>"]
    vocabulary = [*characters, *(f"{each}</w>" for each in characters), *(m.replace(" ", "") for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>", **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return len(vocabulary)


def bert_tokenizer(folder: Path, length: int = LENGTH) -> int:
    """BERT's own kind, words in pieces."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "fox",
        "in",
        "the",
        "snow",
        "##y",
        "cat",
        "photo",
    ]
    words += ["of", ",", "(", ")", "dog", "##s", "blue", "狐", "狸"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": length, "do_lower_case": True})
    )
    return len(words)


def sentence_tokenizer(folder: Path, length: int | None = LENGTH, ends: str = "</s>") -> int:
    """T5's kind: a unigram model over words marked with a bar; `ends` is put behind, if any."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "▁",
        *(f"▁{word}" for sentence in SENTENCES for word in sentence.split()),
        *"abcdefghijklmnopqrstuvwxyz()é",
    ]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -2.0) for word in dict.fromkeys(words))]
    own = Tokenizer(models.Unigram(scores, unk_id=2))
    own.pre_tokenizer, own.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if ends:
        own.post_processor = processors.TemplateProcessing(single=f"$A {ends}", special_tokens=[(ends, 1)])
    special: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=own, **special, **({"model_max_length": length} if length else {}))
    fast.save_pretrained(folder)
    return len(fast)


def varied(network: Any) -> Any:
    """Weights large enough that tokens differ, norms that are no identity."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(network.named_parameters())):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.copy_(1 + 0.3 * draw if parameter.ndim == 1 and "norm" in name.lower() else 0.2 * draw)
    return network.eval()


def clip(folder: Path, kind: str = "CLIPTextModel", length: int = LENGTH) -> Any:
    """A CLIP of 2 layers and 16 channels: its text tower, that with a projection, or all of it."""
    import transformers

    known = clip_tokenizer(folder, length)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": known, "bos_token_id": known - 2, "eos_token_id": known - 1, "pad_token_id": known - 1}
    text = {**shape, **words, "max_position_embeddings": length, "projection_dim": 8}
    if kind == "CLIPModel":
        seen = {**shape, "image_size": 8, "patch_size": 4, "projection_dim": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)
    else:
        config = transformers.CLIPTextConfig(**text)
    return saved(getattr(transformers, kind)(config), folder)


def t5(folder: Path, kind: str = "T5EncoderModel", length: int | None = LENGTH) -> Any:
    """A T5, mT5 or UMT5 of 2 layers and 16 channels: its encoder, or all of it."""
    import transformers

    known = sentence_tokenizer(folder, length)
    family = kind.removesuffix("EncoderModel").removesuffix("ForConditionalGeneration")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=known, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return saved(getattr(transformers, kind)(config), folder)


def bert(folder: Path) -> Any:
    """A BERT of 2 layers and 16 channels."""
    from transformers import BertConfig, BertModel

    known = bert_tokenizer(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return saved(BertModel(BertConfig(vocab_size=known, max_position_embeddings=LENGTH, **shape)), folder)


def decoder(folder: Path) -> Any:
    """A GPT-2 of 2 layers and 16 channels, whose tokenizer puts nothing around a text."""
    from transformers import GPT2Config, GPT2Model

    known = sentence_tokenizer(folder, ends="")
    config = GPT2Config(
        vocab_size=known, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return saved(GPT2Model(config), folder)


def translator(folder: Path) -> Any:
    """A BART of 2 layers and 16 channels: any encoder and decoder."""
    from transformers import BartConfig, BartModel

    known = sentence_tokenizer(folder)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=known, d_model=16, max_position_embeddings=LENGTH, **heads, **layers, **ends)
    return saved(BartModel(config), folder)


def image_tower(folder: Path) -> Any:
    """A network of images, with a tokenizer laid beside it by mistake."""
    from transformers import ViTConfig, ViTModel

    bert_tokenizer(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return saved(ViTModel(ViTConfig(image_size=8, patch_size=4, **shape)), folder)


def saved(network: Any, folder: Path) -> Any:
    """Save quietly, as transformers does."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    varied(network).save_pretrained(folder)
    return network


MAKERS = {
    "clip": clip,
    "clip with projection": lambda folder: clip(folder, "CLIPTextModelWithProjection"),
    "whole clip": lambda folder: clip(folder, "CLIPModel"),
    "t5": t5,
    "whole t5": lambda folder: t5(folder, "T5ForConditionalGeneration"),
    "umt5": lambda folder: t5(folder, "UMT5EncoderModel"),
    "bert": bert,
    "decoder": decoder,
    "translator": translator,
}
