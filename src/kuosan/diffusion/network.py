"""A network as users have it, called as kuosan calls one: `network(x, t, **cond)` -> (B, ...).

Diffusers' networks, those of guided-diffusion, DiT and others differ in three things, each met here by what the
network itself shows, so none of those packages is imported: the answer may be wrapped (`.sample`), conditions may have
other names (`class_labels`, `encoder_hidden_states`), and t may have to be int64.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kuosan.errors import Error

Network = Callable[..., Tensor]  # network(x, t, **cond) -> (B, C or 2C, H, W); t float32 or int64 (B,)

# a condition by kuosan's name: what other networks call it
CONDITIONS: dict[str, tuple[str, ...]] = {
    "label": ("class_labels", "y", "labels"),
    "context": ("encoder_hidden_states",),
    "context_mask": ("encoder_attention_mask",),
}
# what torch says where a float is used as an index: by an embedding, by t in brackets, by one_hot and gather
FLOAT_INDEX = re.compile(
    r"'indices' to have one of the following scalar types: Long, Int|tensors used as indices must be long|"
    r"one_hot is only applicable to index tensor|Expected dtype int(32(/| or )int)?64 for index|"
    r"Expected a long tensor for index"
)

Kind = Literal["real", "whole", "settled"]  # takes t as it is; needs int64; answers as `call` does

_kinds: WeakKeyDictionary[Any, Kind] = WeakKeyDictionary()  # of the networks that were called


def call(network: Network, x: Tensor, t: Tensor, cond: Mapping[str, Any] | None = None) -> Tensor:
    """The network's answer, a tensor, for x (B, ...) and t (B,) float32; a network that indexes by t gets it int64.

    Whether it does is found out by its first call, and remembered. Conditions are passed by the names that its
    `forward` has.
    Raises: Error for an answer that holds no single tensor, a condition that `forward` does not take, and for t between
    two trained timesteps where a network needs a whole one.
    """
    module = inner(network)
    known = _remembered(module)
    if known == "settled":
        return network(x, t, **(cond or {}))
    own = named(module, cond) if cond else {}
    if known is not None:
        return unwrapped(network(x, whole(t) if known == "whole" else t, **own))
    state = _random_state(x)
    found: Kind
    try:
        out, found = network(x, t, **own), "real"
    except (RuntimeError, IndexError) as error:
        if not FLOAT_INDEX.search(str(error)):
            raise
        _restore(x, state)  # dropout before the embedding draws the same again
        out, found = network(x, whole(t), **own), "whole"
    _remember(module, found)
    return unwrapped(out)


class Called(nn.Module):
    """A network of the caller's as a module that answers `(x, t, **cond)` with a tensor, for what stands around it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return call(self.network, x, t, cond)


def unwrapped(out: object) -> Tensor:
    """The tensor of an answer: itself, its `.sample` (diffusers' outputs), or a tuple's only entry."""
    if isinstance(out, Tensor):
        return out
    if isinstance(out, tuple | list) and len(out) == 1:
        out = out[0]
    found = getattr(out, "sample", out)
    if isinstance(found, Tensor):
        return found
    of = f" of {len(out)}" if isinstance(out, tuple | list) else ""
    raise Error(
        f"the network answered with a {type(out).__name__}{of}: need a tensor of x's shape, or an output whose .sample "
        f"is one, as diffusers' networks give; wrap it: lambda x, t: network(x, t)[0]."
    )


def whole(t: Tensor) -> Tensor:
    """Timesteps as int64. Raises: Error for one between two trained timesteps."""
    rounded = t.round()
    if not torch.equal(rounded, t):
        between = float(t[rounded != t][0])
        raise Error(
            f"t {between:g}: this network indexes by t, so it knows whole timesteps alone. Use a Discrete schedule and "
            "spacing trailing, leading or linspace (log_snr, karras and samplers that ask between the grid's levels do "
            "not stay on them); or a network that takes t as a real number."
        )
    return rounded.long()


def named(network: object, cond: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by the names of the network's own arguments. Raises: Error for one that it does not take."""
    taken, any_name = arguments(network)
    own = {}
    for name, value in cond.items():
        other = next((each for each in CONDITIONS.get(name, ()) if each in taken), None)
        if name not in taken and other is None and not any_name:
            others = "".join(f" or {each}" for each in CONDITIONS.get(name, ()))
            raise Error(
                f"condition {name!r}: {type(network).__name__} takes {', '.join(taken) or 'nothing'}; give its forward "
                f"an argument {name}{others}, or leave the condition out."
            )
        own[name if name in taken or other is None else other] = value
    return own


def arguments(network: object) -> tuple[tuple[str, ...], bool]:
    """The names of a network's arguments, and whether it takes any name, as what shows no signature is taken to."""
    function = vars(network).get("forward", type(network).forward) if isinstance(network, nn.Module) else network
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return (), True
    fixed = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return tuple(name for name in fixed if name != "self"), any(each.kind is each.VAR_KEYWORD for each in parameters)


def settled(network: Network) -> Network:
    """A function of kuosan's own that answers as `call` does, so that `call` asks it as it is."""
    _kinds[network] = "settled"
    return network


def inner(network: object) -> object:
    """The network within what torch puts around one: DistributedDataParallel, a compiled module."""
    while isinstance(network, nn.Module):
        within = getattr(network, "_orig_mod", None)
        if within is None and isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
            within = network.module
        if within is None:
            return network
        network = within
    return network


def _remembered(network: object) -> Kind | None:
    with suppress(TypeError):  # not hashable
        return _kinds.get(network)
    return None


def _remember(network: object, kind: Kind) -> None:
    with suppress(TypeError):  # neither hashable nor to be held weakly: found out again at its next call
        _kinds[network] = kind


def _random_state(x: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


def _restore(x: Tensor, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], x.device)
