"""Tiny Stable Diffusion models with random weights, by diffusers and transformers, and the files that people have.

The single files are written by walking diffusers' modules in the order in which the original networks are built, each
block numbered as it comes: nothing here shares a table of names with `kuosan.convert`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

KINDS = ("sd1", "sd1-inpaint", "sd2-v", "sdxl", "sdxl-v-ztsnr", "sdxl-inpaint")
WORDS = 120  # of the vocabulary: a tokenizer is not needed to look at files
MAX_SHARD = "200KB"


@dataclass
class Models:
    """The parts of one tiny model."""

    kind: str
    unet: Any
    vae: Any
    texts: list[Any]
    scheduler: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.kind.partition("-")[0]

    @property
    def inpaints(self) -> bool:
        return self.kind.endswith("inpaint")


def tiny(kind: str, seed: int = 0, words: int = WORDS) -> Models:
    """A model of a kind, every weight random."""
    family, channels = kind.partition("-")[0], 9 if kind.endswith("inpaint") else 4
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        common = {"in_channels": channels, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 32}
        if family == "sdxl":
            unet = diffusers.UNet2DConditionModel(
                **common,
                block_out_channels=(64, 128, 128),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=128,
                attention_head_dim=[1, 2, 2],
                use_linear_projection=True,
                transformer_layers_per_block=[1, 1, 2],
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=64 + 6 * 256,
            )
            texts = [_clip("quick_gelu", False, words), _clip("gelu", True, words)]
        else:
            unet = diffusers.UNet2DConditionModel(
                **common,
                block_out_channels=(64, 128),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=64,
                attention_head_dim=8 if family == "sd1" else [1, 2],
                use_linear_projection=family == "sd2",
            )
            texts = [_clip("quick_gelu" if family == "sd1" else "gelu", False, words)]
        vae = diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=32,
            scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        )
        for module in (unet, vae, *texts):
            for parameter in module.parameters():  # norms and biases too
                parameter.data += 0.02 * torch.randn_like(parameter)
    scheduler = {
        "_class_name": "EulerDiscreteScheduler" if family == "sdxl" else "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if "-v" in kind else "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    } | ({"rescale_betas_zero_snr": True} if kind.endswith("ztsnr") else {})
    return Models(kind, unet.eval(), vae.eval(), [text.eval() for text in texts], scheduler)


def _clip(act: str, projected: bool, words: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=1,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=64,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


PIPELINES = {"sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL"}


def write_folder(
    models: Models,
    path: Path,
    *,
    clip: str = "old",
    variant: str | None = None,
    shards: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A diffusers folder; `clip` "old" has `text_model.` in the names of a text network without projection."""
    index: dict[str, Any] = {
        "_class_name": f"{PIPELINES[models.family]}{'Inpaint' * models.inpaints}Pipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", models.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    options = {"variant": variant, **({"max_shard_size": MAX_SHARD} if shards else {})}
    for name in ("unet", "vae"):
        _cast(getattr(models, name), dtype).save_pretrained(path / name, **options)
    for i, text in enumerate(models.texts):
        name = f"text_encoder{'_2' * i}"
        index[name] = ["transformers", type(text).__name__]
        (path / name).mkdir(parents=True)
        (path / name / "config.json").write_text(json.dumps(text.config.to_dict(), default=str))
        tensors = {own: value.to(dtype).contiguous() for own, value in clip_state(text, clip == "old").items()}
        _write_text(path / name, tensors, variant, shards)
        index[f"tokenizer{'_2' * i}"] = ["transformers", "CLIPTokenizer"]
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(models.scheduler))
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """A copy in another type; diffusers' own `to` warns."""
    return module if dtype == torch.float32 else nn.Module.to(copy.deepcopy(module), dtype)


def _write_text(folder: Path, tensors: dict[str, Tensor], variant: str | None, shards: bool) -> None:
    infix = f".{variant}" if variant else ""
    if not shards:
        save_file(tensors, folder / f"model{infix}.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    listed = {}
    for i, own in enumerate(halves, 1):
        file = f"model{infix}-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in own}, folder / file, {"format": "pt"})
        listed |= dict.fromkeys(own, file)
    index = f"model.safetensors.index{infix}.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def clip_state(text: Any, old: bool) -> dict[str, Tensor]:
    """A text network's tensors, by the names before transformers 5.6 or after."""
    found = {}
    for name, value in text.state_dict().items():
        bare = name.removeprefix("text_model.")
        found[bare if bare.startswith("text_projection") or not old else f"text_model.{bare}"] = value
    return found


def single(models: Models) -> dict[str, Tensor]:
    """The tensors of a single file, without extras."""
    found = dict(_unet(models.unet, "model.diffusion_model."))
    found |= dict(_vae(models.vae, "first_stage_model."))
    if models.family == "sd1":
        found |= _prefixed("cond_stage_model.transformer.", clip_state(models.texts[0], True))
    elif models.family == "sd2":
        found |= dict(_open_clip(models.texts[0], "cond_stage_model.model."))
    else:
        found |= _prefixed("conditioner.embedders.0.transformer.", clip_state(models.texts[0], True))
        found |= dict(_open_clip(models.texts[1], "conditioner.embedders.1.model."))
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def extras(models: Models) -> dict[str, Tensor]:
    """What real files have beside."""
    found = {"alphas_cumprod": torch.linspace(1, 0, 1000), "model_ema.decay": torch.tensor(0.999)}
    if models.family != "sdxl":
        found |= {"betas": torch.linspace(0, 1, 1000), "model_ema.num_updates": torch.tensor(3)}
        found["model_ema.diffusion_modelout2weight"] = torch.zeros(4, 64, 3, 3)
    if models.family == "sd1":
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        found["first_stage_model.loss.logvar"] = torch.zeros(())
    else:
        stem = "cond_stage_model" if models.family == "sd2" else "conditioner.embedders.1"
        found[f"{stem}.model.logit_scale"] = torch.tensor(4.6)
    if models.family == "sd2":
        found["cond_stage_model.model.text_projection"] = torch.zeros(64, 64)
    if models.family == "sdxl":
        found["denoiser.sigmas"] = torch.linspace(0, 14, 1000)
    return found


def _prefixed(stem: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {stem + name: value for name, value in state.items()}


def _module(stem: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict().items():
        yield f"{stem}.{name}", value


def _resnet(stem: str, block: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    own = (
        block.norm1,
        block.conv1,
        getattr(block, "time_emb_proj", None),
        block.norm2,
        block.conv2,
        block.conv_shortcut,
    )
    for name, module in zip(names, own, strict=True):
        if module is not None:
            yield from _module(f"{stem}.{name}", module)


_OF_UNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_OF_VAE = ("norm1", "conv1", "", "norm2", "conv2", "nin_shortcut")


def _unet(unet: Any, stem: str) -> Iterator[tuple[str, Tensor]]:
    """As openaimodel.UNetModel builds itself: a running number for every step down, and for every step up."""
    yield from _module(f"{stem}time_embed.0", unet.time_embedding.linear_1)
    yield from _module(f"{stem}time_embed.2", unet.time_embedding.linear_2)
    if hasattr(unet, "add_embedding"):
        yield from _module(f"{stem}label_emb.0.0", unet.add_embedding.linear_1)
        yield from _module(f"{stem}label_emb.0.2", unet.add_embedding.linear_2)
    yield from _module(f"{stem}input_blocks.0.0", unet.conv_in)
    number = 1
    for level in unet.down_blocks:
        attentions = list(getattr(level, "attentions", [])) or [None] * len(level.resnets)
        for resnet, attention in zip(level.resnets, attentions, strict=True):
            yield from _resnet(f"{stem}input_blocks.{number}.0", resnet, _OF_UNET)
            if attention is not None:
                yield from _module(f"{stem}input_blocks.{number}.1", attention)
            number += 1
        for down in level.downsamplers or []:
            yield from _module(f"{stem}input_blocks.{number}.0.op", down.conv)
            number += 1
    middle = unet.mid_block
    yield from _resnet(f"{stem}middle_block.0", middle.resnets[0], _OF_UNET)
    yield from _module(f"{stem}middle_block.1", middle.attentions[0])
    yield from _resnet(f"{stem}middle_block.2", middle.resnets[1], _OF_UNET)
    number = 0
    for level in unet.up_blocks:
        attentions = list(getattr(level, "attentions", [])) or [None] * len(level.resnets)
        for i, (resnet, attention) in enumerate(zip(level.resnets, attentions, strict=True)):
            step = 1
            yield from _resnet(f"{stem}output_blocks.{number}.0", resnet, _OF_UNET)
            if attention is not None:
                yield from _module(f"{stem}output_blocks.{number}.{step}", attention)
                step += 1
            if level.upsamplers and i == len(level.resnets) - 1:
                yield from _module(f"{stem}output_blocks.{number}.{step}.conv", level.upsamplers[0].conv)
            number += 1
    yield from _module(f"{stem}out.0", unet.conv_norm_out)
    yield from _module(f"{stem}out.2", unet.conv_out)


def _vae(vae: Any, stem: str) -> Iterator[tuple[str, Tensor]]:
    """As autoencoder.Encoder and Decoder build themselves; the decoder's levels count from the finest."""
    for side, part in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        own = f"{stem}{side}"
        yield from _module(f"{own}.conv_in", part.conv_in)
        levels = list(enumerate(part.down_blocks)) if side == "encoder" else list(enumerate(reversed(part.up_blocks)))
        for i, level in levels:
            word = "down" if side == "encoder" else "up"
            for j, resnet in enumerate(level.resnets):
                yield from _resnet(f"{own}.{word}.{i}.block.{j}", resnet, _OF_VAE)
            for way in getattr(level, f"{word}samplers") or []:
                yield from _module(f"{own}.{word}.{i}.{word}sample.conv", way.conv)
        yield from _resnet(f"{own}.mid.block_1", part.mid_block.resnets[0], _OF_VAE)
        yield from _resnet(f"{own}.mid.block_2", part.mid_block.resnets[1], _OF_VAE)
        attention = part.mid_block.attentions[0]
        yield from _module(f"{own}.mid.attn_1.norm", attention.group_norm)
        maps = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "proj_out": attention.to_out[0]}
        for name, linear in maps.items():  # convolutions of 1 x 1 there
            yield f"{own}.mid.attn_1.{name}.weight", linear.weight[:, :, None, None]
            yield f"{own}.mid.attn_1.{name}.bias", linear.bias
        yield from _module(f"{own}.norm_out", part.conv_norm_out)
        yield from _module(f"{own}.conv_out", part.conv_out)
    yield from _module(f"{stem}quant_conv", vae.quant_conv)
    yield from _module(f"{stem}post_quant_conv", vae.post_quant_conv)


def _open_clip(text: Any, stem: str) -> Iterator[tuple[str, Tensor]]:
    """As open_clip.TextTransformer builds itself: q, k, v in one, and a projection that multiplies from the right."""
    inner = getattr(text, "text_model", text)
    yield f"{stem}positional_embedding", inner.embeddings.position_embedding.weight
    yield f"{stem}token_embedding.weight", inner.embeddings.token_embedding.weight
    for i, layer in enumerate(inner.encoder.layers):
        own, attention = f"{stem}transformer.resblocks.{i}", layer.self_attn
        maps = [attention.q_proj, attention.k_proj, attention.v_proj]
        yield f"{own}.attn.in_proj_weight", torch.cat([each.weight for each in maps])
        yield f"{own}.attn.in_proj_bias", torch.cat([each.bias for each in maps])
        yield from _module(f"{own}.attn.out_proj", attention.out_proj)
        yield from _module(f"{own}.ln_1", layer.layer_norm1)
        yield from _module(f"{own}.ln_2", layer.layer_norm2)
        yield from _module(f"{own}.mlp.c_fc", layer.mlp.fc1)
        yield from _module(f"{own}.mlp.c_proj", layer.mlp.fc2)
    yield from _module(f"{stem}ln_final", inner.final_layer_norm)
    if hasattr(text, "text_projection"):
        yield f"{stem}text_projection", text.text_projection.weight.T


SD2_V = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    parameterization: v\n"
MODELSPEC = {
    "sd1": "stable-diffusion-v1",
    "sd1-inpaint": "stable-diffusion-v1-inpainting",
    "sd2-v": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-v-ztsnr": "stable-diffusion-xl-v1-base",
    "sdxl-inpaint": "stable-diffusion-xl-v1-base",
}


def write_single(
    models: Models,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    float8: str = "",  # plain, scale_weight, weight_scale
    marked: bool = True,
    beside: dict[str, Tensor] | None = None,
) -> Path:
    """A single file with its usual extras, and the marks that files of the kind have."""
    tensors = {name: value.to(dtype) for name, value in single(models).items()}
    if float8:
        tensors = _float8(tensors, float8)
    tensors |= extras(models) | (beside or {})
    metadata = {"format": "pt"}
    if marked and models.kind == "sd2-v":
        path.with_suffix(".yaml").write_text(SD2_V)
    elif marked and models.kind == "sdxl-v-ztsnr":
        tensors |= {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    elif marked and models.family == "sdxl":
        metadata |= {"modelspec.architecture": MODELSPEC[models.kind], "modelspec.prediction_type": "epsilon"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


def _float8(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """The U-Net's linear maps in float8; with scales where `how` is the word for them."""
    found = {}
    for name, value in tensors.items():
        if not name.startswith("model.diffusion_model.") or value.ndim != 2:
            found[name] = value
        elif how == "plain":
            found[name] = value.to(torch.float8_e4m3fn)
        else:
            scale = value.abs().amax() / 448 if how == "scale_weight" else value.abs().amax(1, keepdim=True) / 448
            found[name] = (value / scale).to(torch.float8_e4m3fn)
            found[name.removesuffix(".weight") + f".{how}"] = scale.float()
    if how != "plain":
        found["model.diffusion_model.scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return found
