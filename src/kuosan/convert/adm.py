"""guided-diffusion's networks (ADM, Dhariwal & Nichol 2021) to ours: the U-Net and the classifier of noisy images.

Their files hold weights alone, and what network they are of is said by the flags that its scripts are called with.
Rows of q, k and v lie head by head, or one behind the other (`use_new_attention_order`), as ours do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kuosan.convert.diffusers import check_size, stacked
from kuosan.errors import Error, shown
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 1000  # ImageNet's, in code
_MULTIPLIERS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}  # by image_size, in code
_UNET: dict[str, Any] = {  # the scripts' flags and their defaults
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "learn_sigma": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_CLASSIFIER: dict[str, Any] = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
# flags of the scripts that are no network's
_IDLE = (
    *("use_checkpoint", "use_fp16", "classifier_use_fp16", "diffusion_steps", "noise_schedule", "timestep_respacing"),
    *("use_kl", "predict_xstart", "rescale_timesteps", "rescale_learned_sigmas"),
)
_HEAD = 64  # channels of a classifier's attention head, in code
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


def adm_unet_config(flags: Mapping[str, Any]) -> UNetConfig:
    """The `UNetConfig` of the U-Net that guided-diffusion's scripts make of these flags (`num_channels`, ...).

    Raises: `Error` for a flag that is none of theirs, and for networks that ours cannot be.
    """
    f = _flags(_UNET, flags)
    multipliers = _multipliers(f["image_size"], f["channel_mult"])
    heads = f["num_head_channels"]
    if heads == -1 and f["num_heads_upsample"] not in (-1, f["num_heads"]):
        raise Error(
            f"num_heads_upsample is {f['num_heads_upsample']}; ours has num_heads, {f['num_heads']}, everywhere."
        )
    return UNetConfig(
        in_channels=3,
        out_channels=6 if f["learn_sigma"] else 3,
        channels=f["num_channels"],
        multipliers=multipliers,
        blocks=f["num_res_blocks"],
        attention=_attention(f["image_size"], f["attention_resolutions"], len(multipliers)),
        head_channels=None if heads == -1 else heads,
        level_heads=(f["num_heads"],) * len(multipliers) if heads == -1 else (),
        time_conditioning="scale_shift" if f["use_scale_shift_norm"] else "add",
        resample="block" if f["resblock_updown"] else "conv",
        dropout=f["dropout"],
        classes=CLASSES if f["class_cond"] else 0,
    )


def adm_classifier_config(flags: Mapping[str, Any]) -> ClassifierConfig:
    """The `ClassifierConfig` of the classifier that guided-diffusion's scripts make of these flags.

    Raises: `Error` for a flag that is none of theirs, and for classifiers that ours cannot be.
    """
    f = _flags(_CLASSIFIER, flags)
    multipliers = _multipliers(f["image_size"], "")
    if f["classifier_pool"] not in ("attention", "adaptive"):
        raise Error(f"classifier_pool is {shown(f['classifier_pool'])}; we can take attention and adaptive.")
    return ClassifierConfig(
        classes=CLASSES,
        channels=f["classifier_width"],
        multipliers=multipliers,
        blocks=f["classifier_depth"],
        attention=_attention(f["image_size"], f["classifier_attention_resolutions"], len(multipliers)),
        head_channels=_HEAD,
        time_conditioning="scale_shift" if f["classifier_use_scale_shift_norm"] else "add",
        resample="block" if f["classifier_resblock_updown"] else "conv",
        pool_side=f["image_size"] >> (len(multipliers) - 1) if f["classifier_pool"] == "attention" else 0,
    )


def _flags(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name in _IDLE:
            continue
        if name not in known:
            raise Error(f"{shown(name)} is no flag of guided-diffusion's network: it has {', '.join(known)}.")
        own = type(known[name])
        if type(value) is not own and not (own is float and type(value) is int):
            raise Error(f"{name} is {shown(value)}; guided-diffusion's own is {known[name]!r}.")
    return {**known, **{name: value for name, value in given.items() if name in known}}


def _multipliers(size: int, said: str) -> tuple[int, ...]:
    if said:
        try:
            return tuple(int(each) for each in said.split(","))
        except ValueError:
            raise Error(f"channel_mult is {shown(said)}; it is whole numbers, as 1,2,3,4.") from None
    if size not in _MULTIPLIERS:
        why = " (its first level has half of num_channels, which ours cannot)" if size == 512 else ""
        raise Error(f"image_size is {size}{why}; we can take {', '.join(map(str, sorted(_MULTIPLIERS)))}.")
    return _MULTIPLIERS[size]


def _attention(size: int, resolutions: str, levels: int) -> tuple[bool, ...]:
    """Which levels attend: those with images of these sides."""
    try:
        factors = {size // int(each) for each in resolutions.split(",")}
    except (ValueError, ZeroDivisionError):
        raise Error(f"attention resolutions are {shown(resolutions)}; they are whole numbers, as 32,16,8.") from None
    return tuple(1 << level in factors for level in range(levels))


def unet_from_adm(config: UNetConfig, weights: Mapping[str, Tensor], *, new_order: bool) -> dict[str, Tensor]:
    """The state dict of our U-Net from guided-diffusion's weights; its label table gets a row of zeros, our null label.

    Args:
        new_order: its flag `use_new_attention_order`.

    Raises: `Error` for weights unknown, missing or of another shape.
    """
    import torch

    check_size("guided-diffusion U-Net", config.layers, weights)
    theirs = dict(weights)
    if config.classes and "label_emb.weight" in theirs:
        rows = theirs["label_emb.weight"]
        theirs["label_emb.weight"] = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
    state = stacked("guided-diffusion U-Net", unet_table(config), theirs)
    return state if new_order else _in_new_order(config, state)


def classifier_from_adm(config: ClassifierConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our classifier from guided-diffusion's weights (its attention is always in the old order).

    Raises: `Error` for weights unknown, missing or of another shape.
    """
    check_size("guided-diffusion classifier", config.layers, weights)
    theirs = dict(weights)
    if config.pool_side and "out.2.positional_embedding" in theirs:
        theirs["out.2.positional_embedding"] = theirs["out.2.positional_embedding"].T
    return _in_new_order(config.encoder, stacked("guided-diffusion classifier", classifier_table(config), theirs))


def _in_new_order(config: UNetConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of qkv as ours have them: all q, all k, all v, where theirs lie head by head."""
    made = dict(state)
    for name, weight in state.items():
        half, _, rest = name.partition(".")
        if ".qkv." not in rest or half == "pool":
            continue
        place = rest.split(".")
        deepest = config.levels - 1
        level = deepest if place[0] == "middle" else int(place[1]) if half == "encoder" else deepest - int(place[1])
        heads = config.widths[level] // (config.head_width(level) or config.widths[level])
        rows = weight.reshape(heads, 3, -1, *weight.shape[1:])
        made[name] = rows.transpose(0, 1).reshape(weight.shape)
    return made


def unet_table(config: UNetConfig) -> dict[str, dict[str, int]]:
    """{our weight: {guided-diffusion's weight: its rows}} of a U-Net."""
    import torch

    from kuosan.networks.unet import UNet

    with torch.device("meta"):
        network = UNet(config)
    places = _encoder(config, "encoder.") | {"decoder.norm": "out.0", "decoder.exit": "out.2"}
    number = 0
    for level in range(config.levels):
        attends, last = config.attention[config.levels - 1 - level], level == config.levels - 1
        for block in range(config.blocks + 1):
            ours, theirs = f"decoder.levels.{level}", f"output_blocks.{number}"
            places[f"{ours}.blocks.{block}"] = f"{theirs}.0"
            places[f"{ours}.attentions.{block}"] = f"{theirs}.1"
            if block == config.blocks and not last:
                way = "" if config.resample == "block" else ".conv"
                places[f"{ours}.exit"] = f"{theirs}.{1 + attends}{way}"
            number += 1
    return _table(network, places)


def classifier_table(config: ClassifierConfig) -> dict[str, dict[str, int]]:
    """{our weight: {guided-diffusion's weight: its rows}} of a classifier."""
    import torch

    from kuosan.networks.unet import Classifier

    with torch.device("meta"):
        network = Classifier(config)
    places = {**_encoder(config.encoder, "encoder."), "norm": "out.0"}
    places |= {"head": "out.2.c_proj", "pool.qkv": "out.2.qkv_proj"} if config.pool_side else {"head": "out.3"}
    table = _table(network, places)
    if config.pool_side:
        table["pool.positions.weight"] = {"out.2.positional_embedding": config.pool_side**2 + 1}
    return table


def _encoder(config: UNetConfig, ours: str) -> dict[str, str]:
    """Our modules of a first half: theirs."""
    places = {f"{ours}entrance": "input_blocks.0.0", f"{ours}label": "label_emb"}
    places |= {f"{ours}time.{i}": f"time_embed.{i}" for i in (0, 2)}
    places |= {f"{ours}middle.{i}": f"middle_block.{i}" for i in range(3)}
    number = 1
    for level in range(config.levels):
        for block in range(config.blocks):
            places[f"{ours}levels.{level}.blocks.{block}"] = f"input_blocks.{number}.0"
            places[f"{ours}levels.{level}.attentions.{block}"] = f"input_blocks.{number}.1"
            number += 1
        if level < config.levels - 1:
            way = "" if config.resample == "block" else ".op"
            places[f"{ours}levels.{level}.exit"] = f"input_blocks.{number}.0{way}"
            number += 1
    return places


def _table(network: Any, places: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """The weights of a network of ours by the modules that stand for its own."""
    from kuosan.networks.layers import Attention, ResidualBlock
    from kuosan.networks.unet import Conditioning

    inside = dict(places)
    modules = dict(network.named_modules())
    for name, there in places.items():
        kind = modules.get(name)
        parts = _RESIDUAL if isinstance(kind, ResidualBlock) else _ATTENTION if isinstance(kind, Attention) else {}
        inside |= {f"{name}.{own}": f"{there}.{theirs}" for own, theirs in parts.items()}
    table: dict[str, dict[str, int]] = {}
    for name, weight in network.state_dict().items():
        module, _, end = name.rpartition(".")
        if isinstance(modules[module], Conditioning):
            half = module.rpartition(".")[0]
            blocks = [n for n, each in modules.items() if isinstance(each, ResidualBlock) and n.startswith(f"{half}.")]
            names = [f"{places[block]}.emb_layers.1.{end}" for block in blocks]
            table[name] = dict(zip(names, modules[module].widths, strict=True))
        elif module in inside:
            table[name] = {f"{inside[module]}.{end}": weight.shape[0]}
    return table
