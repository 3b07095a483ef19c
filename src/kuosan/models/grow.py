"""A model's weights as the beginning of another model: images of another size or number of channels, classes, captions.

Whatever is added begins so that the outputs are what they were:

new class          its row is the null label's; of a network without classes all rows are 0
captions           attention to them has a last layer of 0, as has their vector
task's channels    weights 0
colour of grey     w/3 for each of red, green, blue at the entrance, the same output thrice: a grey image of three equal
                   channels gives what it gave; back, the sum at the entrance and the mean at the exit
alpha              weights 0 at the entrance, output 0
patch k p of p     w[i // k, j // k] / k² at the entrance, w[i // k, j // k] at the exit: an image with each pixel k x k
                   times gives the output with each pixel k x k times; back, sums and means of k x k weights
attention          its last layer is 0

Levels behind the coarsest begin as a mean of 2 x 2 cells and back, each block as the identity: there alone outputs
change, as the middle sees coarser cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan.errors import Error
from kuosan.models.model import ModelConfig, OwnNetwork
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import DiTConfig, UNetConfig
from kuosan.networks.text_config import ByteText
from kuosan.networks.unet import UNet, residual_blocks
from kuosan.tasks import Inpainting, SuperResolution
from kuosan.text.tokens import NoText, Text, TextEncoderConfig

# Fields of networks that may differ: what follows from data and task, what changes no weight, what is grown.
FREE = {
    *("in_channels", "out_channels", "classes", "context_width", "context_vector", "concat_channels", "concat_skip"),
    *("dropout", "checkpointing", "origin", "patch", "grid"),
}
_COLOURS = {1: (1, False), 2: (1, True), 3: (3, False), 4: (3, True)}  # channels of an image: colours, and alpha
_KINDS = {1: "grey", 2: "grey-alpha", 3: "RGB", 4: "RGBA"}
ALLOWED = (
    "Allowed are images of another size, grey, RGB or RGBA, other classes, captions where there were none, another "
    "task, a patch that is a multiple or a divisor, attention where there was none, levels behind the coarsest of its "
    "width"
)


class _Names(NamedTuple):
    """What the parameters at a network's ends are called."""

    entrance: str
    exit: str
    label: str = ""
    time: str = ""  # the bias of the time embedding's last layer
    pooled: str = ""


_NAMES = {
    "unet": _Names("encoder.entrance", "decoder.exit", "encoder.label.weight", "encoder.time.2.bias", "encoder.pooled"),
    "dit": _Names("entrance", "exit.out", "label.weight", "time.2.bias", "pooled"),
    "classifier": _Names("encoder.entrance", "head"),
    "autoencoder": _Names("encoder.entrance", "decoder.exit"),
}


@dataclass(frozen=True)
class Grown:
    """The weights of a new model, and what in them is new or other, in words."""

    weights: dict[str, Tensor]
    news: list[str] = field(default_factory=list)


def require_growth(old: ModelConfig, new: ModelConfig, name: str) -> None:
    """Refuse what the weights of `old` are no beginning of. Raises: Error; it names what differs, and the cure."""
    mine, theirs = new.network, old.network
    if isinstance(mine, OwnNetwork) or isinstance(theirs, OwnNetwork):
        if type(mine) is not type(theirs):
            raise Error(
                f"--init {name}: its network is {_what(theirs)}, and the one asked for {_what(mine)}: leave --init "
                f"out, or give the same network."
            )
        return
    differing = _differences(theirs, mine)
    if differing:
        raise Error(
            f"--init {name}: its network is another than the one asked for: {'; '.join(differing)}. {ALLOWED}. Leave "
            f"--network and these out, so that the new run has that network, or leave --init out."
        )
    _require_inputs(old, new, name)


def _require_inputs(old: ModelConfig, new: ModelConfig, name: str) -> None:
    """Refuse what is denoised or given where it has no way to the new. Raises: Error."""
    channels, wanted = old.sample_shape[0], new.sample_shape[0]
    latent = "latents" in (old.codec.kind, new.codec.kind)
    if channels != wanted and (latent or not {channels, wanted} <= set(_COLOURS)):
        what = "latents" if old.codec.kind == "latents" else "images"
        raise Error(
            f"--init {name}: it denoises {what} of {channels} channels, not of {wanted}: use images, or an "
            f"autoencoder (--codec), as it has them, or leave --init out."
        )
    if not isinstance(old.text, NoText) and isinstance(new.text, NoText) and not isinstance(new.network, _NO_TEXT):
        raise Error(
            f"--init {name}: it reads captions, and no network without them gives what it gives: leave --text none "
            f"out, or leave --init out."
        )
    old_skip, new_skip = (getattr(each.network, "concat_skip", False) for each in (old, new))
    if old_skip != new_skip:
        was, now = ("is", "is not") if old_skip else ("is not", "is")
        raise Error(
            f"--init {name}: its output {was} added to the image that it is given (concat_skip = "
            f"{str(old_skip).lower()}), and here it {now}, for task {new.task.kind}: use --task {old.task.kind} and "
            f"leave concat_skip out, or leave --init out."
        )


_NO_TEXT = (ClassifierConfig, AutoencoderConfig, OwnNetwork)


def _what(network: Any) -> str:
    if isinstance(network, OwnNetwork):
        return f"one of its owner's own ({network.name or 'MyNetwork'})"
    return f"kuosan's {network.kind}"


def _differences(old: Any, new: Any) -> list[str]:
    """What of two networks differs that no weights bridge, in words."""
    if old.kind != new.kind:
        return [f"kind {new.kind} against {old.kind}"]
    free, found = set(FREE), list[str]()
    if isinstance(old, UNetConfig):
        if old.context_width is None or new.context_width is None:
            free |= {"context_attention", "transformer_depth", "transformer_mlp"}
            if new.context_width is not None and new.context_attention != "cross" and _attends(old):
                found.append("context_attention transformer against attention without captions (cross is allowed)")
        if added := new.levels - old.levels:
            behind = new.multipliers[old.levels :]
            if added > 0 and new.multipliers[: old.levels] == old.multipliers and set(behind) == {old.multipliers[-1]}:
                free.add("multipliers")
        pairs = zip(old.attention, new.attention)
        if all(on or not was for was, on in pairs) and new.middle_attention >= old.middle_attention:
            free |= {"attention", "middle_attention"}
    if isinstance(old, AutoencoderConfig):
        free |= {"critic_channels", "critic_layers"}
    for name in vars(old):
        if name not in free and getattr(old, name) != getattr(new, name):
            found.append(f"{name} {_shown(getattr(new, name))} against {_shown(getattr(old, name))}")
    patches = sorted((old.patch, new.patch))
    if patches[1] % patches[0]:
        found.append(f"patch {new.patch} against {old.patch}")
    return found


def _attends(network: UNetConfig) -> bool:
    return network.middle_attention or any(network.attention)


def _shown(value: object) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return {"True": "true", "False": "false", "None": "none"}.get(str(value), str(value))


def grown(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig) -> Grown:
    """The weights of `new` that begin as those of `old`, whose pair `require_growth` allows.

    Args:
        weights: of `old`, by name, in any precision.
        fresh: of `new`, as drawn for a run from nothing.
    """
    news: list[str] = []
    source = {_bare(name, old): t.float() if t.is_floating_point() else t for name, t in weights.items()}
    made = {_bare(name, new): t.detach().clone() for name, t in fresh.items()}
    if not _same_text(old.text, new.text):
        source = {name: t for name, t in source.items() if not _of_text(name)}
        _begin_text(made, old, new, news)
    if isinstance(old.network, UNetConfig) and isinstance(new.network, UNetConfig):
        if new.network.levels > old.network.levels:
            source = _with_levels(source, made, old.network, new.network, news)
        _say_attention(old.network, new.network, news)
    _say_size(old, new, news)
    names = _NAMES[new.network.kind]
    source |= (
        _entrance(source, names, old, new, news) | _exit(source, names, old, new) | _labels(source, names, old, new)
    )
    _say_classes(old, new, news)
    for name, value in made.items():
        taken = source.get(name)
        if taken is None or (name.startswith("critic.") and taken.shape != value.shape):
            continue
        if name == "text.places.weight" and taken.shape != value.shape:
            rows = min(len(taken), len(value))
            value[:rows] = taken[:rows]
            news.append(f"captions of {len(value) - 1} tokens for {len(taken) - 1}")
            continue
        assert taken.shape == value.shape, (name, taken.shape, value.shape)
        made[name] = taken.to(value.dtype)
    back = {_bare(name, new): name for name in fresh}
    return Grown({back[name]: value for name, value in made.items()}, news)


def same_shapes(weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of a network of the caller's own. Raises: Error where it has others than they are for."""
    there, here = ({key: tuple(t.shape) for key, t in each.items()} for each in (weights, fresh))
    odd = [f"{key} {_sides(there.get(key))} there, {_sides(here.get(key))} here"
           for key in {**there, **here} if there.get(key) != here.get(key)]  # fmt: skip
    if odd:
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise Error(
            f"--init {name}: its network is another than the one given: {'; '.join(odd[:3])}{more}. Give the network "
            f"that it was trained with, or leave --init out."
        )
    return dict(weights)


def _sides(shape: tuple[int, ...] | None) -> str:
    return "is not" if shape is None else "x".join(map(str, shape)) or "a number"


def _bare(name: str, config: ModelConfig) -> str:
    """A weight's name without the wrapper around a network with a text transformer."""
    return name.removeprefix("network.") if isinstance(config.text, ByteText) else name


def _of_text(name: str) -> bool:
    return name.startswith("text.") or bool(re.search(r"(^|\.)(pooled|cross|cross_norm)\.", name))


def _same_text(old: Text, new: Text) -> bool:
    """Whether what a caption becomes means the same to both networks."""
    if isinstance(old, ByteText) and isinstance(new, ByteText):
        return (old.width, old.depth, old.heads) == (new.width, new.depth, new.heads)
    if isinstance(old, TextEncoderConfig) and isinstance(new, TextEncoderConfig):
        keys = ("weights", "hidden", "width")
        return all(getattr(old, key) == getattr(new, key) for key in keys)
    return type(old) is type(new)


def _begin_text(made: dict[str, Tensor], old: ModelConfig, new: ModelConfig, news: list[str]) -> None:
    """Let nothing of a text reach the output yet."""
    for name, value in made.items():
        if name.endswith(("cross.out.weight", "cross.out.bias")) or "pooled." in name:
            value.zero_()
    if not isinstance(new.text, NoText):
        news.append(
            "captions, whose attention begins at zero"
            if isinstance(old.text, NoText)
            else "another reading of captions, whose attention begins at zero"
        )


def _network(config: ModelConfig) -> UNetConfig | DiTConfig | ClassifierConfig | AutoencoderConfig:
    assert not isinstance(config.network, OwnNetwork)
    return config.network


def _kind(network: Any, config: ModelConfig) -> tuple[int, int, str]:
    """Channels of x, channels of an image joined to it, and what else is joined."""
    channels = network.in_channels
    task = config.task
    if not getattr(network, "concat_channels", 0):
        return channels, 0, ""
    if isinstance(task, Inpainting):
        return channels, channels, "mask"
    return channels, channels, "noise" if isinstance(task, SuperResolution) and task.noise > 0 else ""


def _entrance(
    source: Mapping[str, Tensor], names: _Names, old: ModelConfig, new: ModelConfig, news: list[str]
) -> dict[str, Tensor]:
    """The first layer: (out, channels · p², ...), for each of x, the image joined to it and what else is."""
    key = f"{names.entrance}.weight"
    (c, joined, more), (n, wanted, less) = _kind(old.network, old), _kind(new.network, new)
    p, q = _network(old).patch, _network(new).patch
    w = source[key]
    tail = w.shape[2:]
    w = w.reshape(len(w), -1, p, p, *tail)
    parts = [_into(w[:, :c], n)]
    if wanted:
        parts.append(_into(w[:, c : c + joined], n) if joined else torch.zeros_like(parts[0]))
    if less:
        parts.append(w[:, c + joined :] if less == more else torch.zeros_like(w[:, :1]))
    whole = torch.cat(parts, dim=1)
    if p != q:
        whole = _patched(whole, q, mean=False)
        news.append(f"patches of {q} x {q} pixels for {p} x {p}, each pixel as {_times(p, q)}")
    if c != n:
        news.append(f"{_KINDS[n]} images for {_KINDS[c]}, of which grey ones give what they gave")
    if wanted and not joined:
        news.append(f"what task {new.task.kind} joins to the image, which begins at zero")
    if new.learned_variance != old.learned_variance:
        news.append("a learned variance, which begins at zero" if new.learned_variance else "no learned variance")
    if joined and not wanted:
        news.append(f"nothing joined to the image, as task {old.task.kind} did")
    return {key: whole.reshape(len(w), -1, *tail)}


def _times(p: int, q: int) -> str:
    return f"{q // p} x {q // p} were" if q > p else f"the mean of {p // q} x {p // q}"


def _exit(source: Mapping[str, Tensor], names: _Names, old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """The last layer: (channels · p², ...), twice of them where a variance is learned."""
    if isinstance(new.network, ClassifierConfig):
        return _head(source, names, old, new)
    c, n = _network(old).in_channels, _network(new).in_channels
    p, q = _network(old).patch, _network(new).patch
    found = {}
    for key in (f"{names.exit}.weight", f"{names.exit}.bias"):
        w = source[key]
        tail = w.shape[1:]
        halves = w.reshape(-1, c, p, p, *tail)  # mean, variance
        made = [_patched(_out_of(half, n), q, mean=True) if p != q else _out_of(half, n) for half in halves]
        if new.learned_variance and len(made) == 1:
            made.append(torch.zeros_like(made[0]))
        found[key] = torch.stack(made[: 1 + new.learned_variance]).reshape(-1, *tail)
    return found


def _head(source: Mapping[str, Tensor], names: _Names, old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """A classifier's last layer: rows of classes that it knows by name, 0 of others."""
    found = {}
    for key in (f"{names.exit}.weight", f"{names.exit}.bias"):
        w, known = source[key], old.task.class_names
        rows = [w[known.index(name)] if name in known else torch.zeros_like(w[0]) for name in new.task.class_names]
        found[key] = torch.stack(rows)
    return found


def _into(w: Tensor, n: int) -> Tensor:
    """Weights (out, c, ...) of c channels as those of n: a grey image gives what it gave."""
    if w.shape[1] == n:
        return w
    (colours, alpha), (wanted, more) = _COLOURS[w.shape[1]], _COLOURS[n]
    own = w[:, :colours]
    if (colours, wanted) == (1, 3):
        own = own.repeat_interleave(3, dim=1) / 3
    if (colours, wanted) == (3, 1):
        own = own.sum(1, keepdim=True)
    if not more:
        return own
    return torch.cat([own, w[:, colours:] if alpha else torch.zeros_like(own[:, :1])], dim=1)


def _out_of(w: Tensor, n: int) -> Tensor:
    """Weights (c, ...) that make c channels as those that make n."""
    if len(w) == n:
        return w
    (colours, alpha), (wanted, more) = _COLOURS[len(w)], _COLOURS[n]
    own = w[:colours]
    if (colours, wanted) == (1, 3):
        own = own.repeat_interleave(3, dim=0)
    if (colours, wanted) == (3, 1):
        own = own.mean(0, keepdim=True)
    if not more:
        return own
    return torch.cat([own, w[colours:] if alpha else torch.zeros_like(own[:1])])


def _patched(w: Tensor, q: int, *, mean: bool) -> Tensor:
    """Weights of patches of p x p pixels as those of q x q: the entrance's (out, c, p, p, ...), or the exit's.

    mean: the exit's, (c, p, p, ...).
    """
    at = 1 if mean else 2
    p = w.shape[at]
    if q > p:
        w = w.repeat_interleave(q // p, dim=at).repeat_interleave(q // p, dim=at + 1)
        return w if mean else w / (q // p) ** 2
    w = w.reshape(*w.shape[:at], q, p // q, q, p // q, *w.shape[at + 2 :])
    return w.mean((at + 1, at + 3)) if mean else w.sum((at + 1, at + 3))


def _labels(source: Mapping[str, Tensor], names: _Names, old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """The table of classes: rows by name, the null label's for new ones; without a table, it is in the time's bias."""
    if not names.label:
        return {}
    known, wanted = old.task.class_names, new.task.class_names
    table, time = source.get(names.label), source[names.time]
    if not wanted:
        return {} if table is None else {names.time: time + table[-1]}
    if table is None:
        return {names.label: torch.zeros(len(wanted) + 1, len(time))}
    rows = [table[known.index(name)] if name in known else table[-1] for name in wanted]
    return {names.label: torch.stack([*rows, table[-1]])}


def _say_classes(old: ModelConfig, new: ModelConfig, news: list[str]) -> None:
    known, wanted = old.task.class_names, new.task.class_names
    unknown = [name for name in wanted if name not in known]
    begun = "zero" if isinstance(new.network, ClassifierConfig) else "the null label's row"
    if wanted and not known:
        news.append(f"{len(wanted)} classes, which begin as no class")
    elif unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        news.append(f"{len(unknown)} of {len(wanted)} classes ({shown}), which begin at {begun}")
    if known and not wanted:
        news.append("no classes: what it made of none")


def _say_attention(old: UNetConfig, new: UNetConfig, news: list[str]) -> None:
    added = [str(i + 1) for i, (was, on) in enumerate(zip(old.attention, new.attention)) if on and not was]
    if added:
        what = "level" if len(added) == 1 else "levels"
        news.append(f"attention at {what} {' and '.join(added)}, which begins at zero")


def _say_size(old: ModelConfig, new: ModelConfig, news: list[str]) -> None:
    if old.shape is None or new.shape is None or old.shape[1:] == new.shape[1:]:
        return
    (h, w), (height, width) = old.shape[1:], new.shape[1:]
    text = f"images of {width} x {height} pixels for {w} x {h}"
    if isinstance(new.network, DiTConfig) and new.network.grid:
        text += f", positions stretched over {new.network.grid} tokens"
    elif isinstance(new.network, UNetConfig) and isinstance(old.network, UNetConfig):
        sides = [max(each.sample_shape[1:]) // each.network.factor for each in (old, new)]  # type: ignore[union-attr]
        same = old.network.levels == new.network.levels and old.network.patch == new.network.patch
        cells = f": {sides[1]} cells a side at its coarsest for {sides[0]}" if sides[0] != sides[1] else ""
        text += f", with {'the same' if same else 'its'} network{cells}"
    news.append(text)


def _with_levels(
    source: Mapping[str, Tensor], made: dict[str, Tensor], old: UNetConfig, new: UNetConfig, news: list[str]
) -> dict[str, Tensor]:
    """The old weights by their new names, levels behind the coarsest added; these begin, in `made`, as the identity."""
    added = new.levels - old.levels
    news.append(
        f"{added} {'levels' if added > 1 else 'level'} behind the coarsest: a mean of 2 x 2 cells and back at first"
    )

    def moved(name: str) -> str:
        return re.sub(r"^decoder\.levels\.(\d+)", lambda found: f"decoder.levels.{int(found[1]) + added}", name)

    found = {moved(name): value for name, value in source.items()}
    with torch.device("meta"):
        nets = UNet(old), UNet(new)
    for half, parts in (("encoder", ("levels", "middle")), ("decoder", ("levels",))):
        rows = [_rows(getattr(net, half), half, parts) for net in nets]
        for what in ("weight", "bias"):
            key = f"{half}.conditioning.{what}"
            whole = made[key].clone()
            for name, place in rows[0].items():
                whole[rows[1][moved(name)]] = source[key][place]
            found[key] = whole
    eye = torch.eye(new.widths[-1])
    for i in range(added):
        if (
            f"encoder.levels.{old.levels - 1 + i}.exit.weight" in made
        ):  # a convolution; a block is the identity as drawn
            down = made[f"encoder.levels.{old.levels - 1 + i}.exit.weight"]
            begin = 0 if new.resample == "conv_asymmetric" else 1
            down.zero_()[:, :, begin : begin + 2, begin : begin + 2] = eye[:, :, None, None] / 4
            made[f"decoder.levels.{i}.exit.weight"].zero_()[:, :, 1, 1] = eye
        for j in range(new.blocks + 1):
            shortcut = made[f"decoder.levels.{i}.blocks.{j}.shortcut.weight"]
            shortcut.zero_()[:, : len(eye), 0, 0] = eye
    return found


def _rows(half: Any, prefix: str, parts: tuple[str, ...]) -> dict[str, slice]:
    """Which rows of a half's time conditioning are each residual block's, by the block's name."""
    names = {id(module): f"{prefix}.{name}" for name, module in half.named_modules()}
    begin, rows = 0, {}
    for block in residual_blocks(getattr(half, part) for part in parts):
        rows[names[id(block)]] = slice(begin, begin + block.time_width)
        begin += block.time_width
    return rows


def begun_from(
    weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig, name: str
) -> Grown:
    """`grown`, or of a network of the caller's own the same weights. Raises: Error: what they are no beginning of."""
    require_growth(old, new, name)
    if isinstance(new.network, OwnNetwork):
        return Grown(same_shapes(weights, fresh, name))
    return grown(weights, fresh, old, new)
