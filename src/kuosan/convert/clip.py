"""CLIP's text towers in transformers' files (Stable Diffusion's `text_encoder` folders), and in OpenCLIP's, to ours.

What decides is the names on disk: transformers wrote `text_model.` in front of them, versions from 5.6 know no such
module any more, and files are of either kind; the projection is `text_projection.weight` in both. OpenCLIP's layout
(Stable Diffusion 2 and the second of XL in single files) has q, k and v in one, and the projection transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kuosan.errors import Error, shown
from kuosan.networks.text_config import CLIPText

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "text_model."
PROJECTION = "text_projection.weight"
EXTRAS = ("embeddings.position_ids",)  # in files of older versions: 0 to 76
_FIELDS = {  # transformers' option: ours, and transformers' own where it is left out
    "vocab_size": ("vocabulary", 49408),
    "hidden_size": ("width", 512),
    "intermediate_size": ("hidden", 2048),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("heads", 8),
    "max_position_embeddings": ("length", 77),
    "hidden_act": ("act", "quick_gelu"),
    "layer_norm_eps": ("norm_eps", 1e-5),
    "eos_token_id": ("end", 49407),
}
_KINDS = ("clip_text_model", "clip")  # model_type


def config_from_transformers(config: Mapping[str, Any], *, projected: bool) -> CLIPText:
    """The `CLIPText` of a CLIP's config.json, of a whole CLIP's its text tower.

    Args:
        projected: whether the pooled text goes through a projection: whether there is one among the weights.

    Raises: `Error` for another model's config, and for options we do not have.
    """
    kind = config.get("model_type", "clip_text_model")
    if kind not in _KINDS:
        raise Error(f"model_type is {shown(kind)}; a CLIP text encoder's is {' or '.join(_KINDS)}.")
    own = config.get("text_config") if kind == "clip" and isinstance(config.get("text_config"), Mapping) else config
    assert own is not None
    if own.get("quantization_config") is not None:
        raise Error("this CLIP is quantised (quantization_config), which kuosan does not read: give the plain model.")
    if own.get("hidden_act", "quick_gelu") not in ("quick_gelu", "gelu"):
        raise Error(f"CLIP's hidden_act is {shown(own['hidden_act'])}; we can take quick_gelu and gelu.")
    fields = {ours: own.get(theirs, default) for theirs, (ours, default) in _FIELDS.items()}
    end = fields["end"]
    fields["end"] = CLIPText.end if end is None else end[0] if isinstance(end, list) and len(end) == 1 else end
    projection = own.get("projection_dim", 512) if projected else 0
    return CLIPText(**fields, projection=projection)


def config_to_transformers(config: CLIPText, read: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config.json of the CLIP text model that computes the same.

    Args:
        read: the config.json that it was made from; what it says comes back.
    """
    written = {theirs: getattr(config, ours) for theirs, (ours, _) in _FIELDS.items()}
    projected = bool(config.projection)
    written |= {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "projection_dim": config.projection or config.width,
    }
    same = read is not None and config_from_transformers(read, projected=projected) == config
    return {**written, **read} if same and read is not None else written


def clip_names(on_disk: Iterable[str], config: CLIPText | None = None) -> tuple[dict[str, str], tuple[str, ...]]:
    """{our weight: its name on disk}, and the known extras that are left out.

    Args:
        config: whose weights these must be, each of them once; None: only translate.

    Raises: `Error` for weights unknown or missing.
    """
    names = list(on_disk)
    ours = {name.removeprefix(PREFIX): name for name in names}
    if len(ours) < len(names):
        twice = next(name for name in names if ours[name.removeprefix(PREFIX)] != name)
        raise Error(f"weight {twice.removeprefix(PREFIX)} is there twice, with and without {PREFIX} before its name.")
    extras = tuple(ours.pop(name) for name in EXTRAS if name in ours)
    if config is not None:
        import torch

        from kuosan.networks.clip import CLIPTextNetwork

        with torch.device("meta"):
            wanted = CLIPTextNetwork(config).state_dict().keys()
        unknown, missing = sorted(ours.keys() - wanted), sorted(wanted - ours.keys())
        if unknown or missing:
            parts = [
                f"{len(each)} {what}: {', '.join(each[:5])}{f' and {len(each) - 5} more' if len(each) > 5 else ''}"
                for what, each in (("unknown", [ours[name] for name in unknown]), ("missing", missing))
                if each
            ]
            raise Error(
                f"the weights are not those of a CLIP text encoder with this config ({'; '.join(parts)}). Use the "
                "config that was saved beside these weights."
            )
    return ours, extras


def clip_from_transformers(
    config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[CLIPText, dict[str, Tensor]]:
    """Our config and state dict of a CLIP text tower, from its config.json and its weights by their names on disk.

    Raises: `Error` for an option we do not have, and for weights unknown, missing or of another shape.
    """
    import torch

    from kuosan.networks.clip import CLIPTextNetwork

    ours = config_from_transformers(config, projected=PROJECTION in weights)
    if ours.depth > len(weights):
        raise Error(f"this CLIP's config says {ours.depth} layers, and its files hold {len(weights)} weights.")
    names, _ = clip_names(weights, ours)
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in CLIPTextNetwork(ours).state_dict().items()}
    for name, theirs in names.items():
        if tuple(weights[theirs].shape) != shapes[name]:
            raise Error(
                f"weight {theirs} has shape {tuple(weights[theirs].shape)}; with this config it must be "
                f"{shapes[name]}. Use the config that was saved beside these weights."
            )
    return ours, {name: weights[theirs] for name, theirs in names.items()}


def clip_to_transformers(
    config: CLIPText, state: Mapping[str, Tensor], read: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights as every version of transformers reads them: with `text_model.` before their names."""
    weights = {name if name == PROJECTION else PREFIX + name: each for name, each in state.items()}
    return config_to_transformers(config, read), weights


_OPEN_CLIP = [  # (OpenCLIP's, transformers' without text_model.)
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^text_projection$", PROJECTION),
]
OPEN_CLIP_EXTRAS = ("logit_scale", "attn_mask")


def open_clip_names(on_disk: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{OpenCLIP's weight: transformers' names without `text_model.`}; three for one of q, k and v, none for extras."""
    table: dict[str, tuple[str, ...]] = {}
    for theirs in on_disk:
        name = theirs
        for pattern, replacement in _OPEN_CLIP:
            name = re.sub(pattern, replacement, name)
        if stacked := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            table[theirs] = tuple(f"{stacked[1]}.self_attn.{each}_proj.{stacked[2]}" for each in "qkv")
        else:
            table[theirs] = () if theirs in OPEN_CLIP_EXTRAS else (name,)
    return table


def open_clip_weights(name: str, weight: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """One weight of OpenCLIP's as those of `names` (of `open_clip_names`), which are views of it."""
    if len(names) == 3:
        return dict(zip(names, weight.chunk(3), strict=True))
    return {each: weight.T if name == "text_projection" else weight for each in names}
