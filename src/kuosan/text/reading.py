"""Prompts as a network is told of them: read once a distinct prompt, weighted, padded to one length.

features' = e + w·(features - e), e the empty text's: weight 1 is the reading itself, 0 none, 2 twice as far
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan.text import prompts, words

if TYPE_CHECKING:
    from kuosan.networks.text import TextTransformer

Read = Callable[[str], tuple[Tensor, Tensor]]  # a prompt to features (L, W) and mask (L,)
Count = Callable[[str], int]  # a prompt to L, at little cost


STEP = 64  # rows that an encoder's prompts are filled up to a multiple of; nothing is told in them


def read_bytes(text: TextTransformer, prompt: str) -> tuple[Tensor, Tensor]:
    """A prompt by a text transformer that was trained with its network: (L, W) float32 and (L,) bool.

    Raises:
        Error: brackets that do not close, or more words than the model reads.
    """
    parts: list[bytes] = []
    weights = [1.0]
    for segment, weight in prompts.parse(prompt):
        own = words.pieces(segment)
        parts += own
        weights += [weight] * len(own)
    table = words.rows(parts)
    if len(table) > text.config.length:
        raise words.too_long(prompt, len(table), text.config.length)
    device = text.places.weight.device
    features, mask = text(torch.from_numpy(table).long().to(device)[None])
    assert mask is not None
    if any(weight != 1 for weight in weights):
        empty = text(torch.from_numpy(words.rows([])).long().to(device)[None]).features
        scale = torch.tensor(weights, device=device)[None, :, None]
        features = torch.where(scale == 1, features, empty + scale * (features - empty))
    return features[0], mask[0]


def count_bytes(prompt: str) -> int:
    """How many rows `read_bytes` makes of a prompt; raises as it does of brackets that do not close."""
    return 1 + sum(words.length(segment) - 1 for segment, _ in prompts.parse(prompt))


@torch.no_grad()
def contexts(read: Read, count: Count, wanted: Sequence[str], among: Sequence[str], step: int) -> Mapping[str, Tensor]:
    """What a network is told of prompts, by door: `context` (B, L, W) and `context_mask` (B, L).

    L is a multiple of `step` that holds the longest of `among`, all prompts of a request: so a batch is told the same
    whatever stands beside it, and a prompt the same beside others, unless they are longer than a step. Those are
    counted, and only the wanted ones read: a request may have thousands.
    """
    known = {prompt: read(prompt) for prompt in dict.fromkeys(wanted)}
    longest = max(count(prompt) for prompt in dict.fromkeys([*among, *wanted]))
    longest = -(-longest // step) * step
    return told([known[prompt] for prompt in wanted], longest)


def told(read: Sequence[tuple[Tensor, Tensor]], length: int) -> dict[str, Tensor]:
    """Features (L, W) and masks (L,) of several texts, by door, with nothing behind each up to `length`."""
    context, mask = [], []
    for features, there in read:
        more = length - len(there)
        context.append(torch.cat([features, features.new_zeros(more, features.shape[1])]))
        mask.append(torch.cat([there, there.new_zeros(more)]))
    return {"context": torch.stack(context), "context_mask": torch.stack(mask)}
