"""Which family of models a file or a folder is of, by the names of its tensors alone. Torch-free.

Stable Diffusion 1, 2 and XL are opened here. Everything else that comes in such files is refused by its name:
`FOREIGN` lists what others are known by, `QUANTISED` numbers that are packed otherwise than as floats or float8.

Tensors that real files have beside, and that no network here uses, are `EXTRAS`: a named list, skipped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from kuosan.convert.sgm import SKIPPED_LAYER
from kuosan.errors import Error, shown

Family = Literal["sd1", "sd2", "sdxl"]
TITLES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
OPENED = "Stable Diffusion 1, 2 and XL, and their inpainting models, are opened"

# a family's name: beginnings or whole names of tensors that only its files have, behind `model.diffusion_model.` or so
FOREIGN: dict[str, tuple[str, ...]] = {
    "Stable Video Diffusion": (
        r"input_blocks\.1\.1\.time_stack\.",
        r"input_blocks\.1\.0\.time_stack\.",
        r".*time_mixer\.",
    ),
    "AnimateDiff": (r".*motion_modules\.\d+\.temporal_transformer\.",),
    "a ControlNet": (r"control_model\.", r"controlnet_", r"zero_convs\.", r"input_hint_block\.", r"controlnet_cond_"),
    "a LoRA": (
        r".*\.lora_(down|up|mid)\.weight$",
        r".*\.lora(_linear_layer)?[._](A|B|up|down)(\.[\w-]+)?\.weight$",
        r"lora_(unet|te\d?)_",
        r".*\.(hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|dora_scale)$",
    ),
    "an embedding (textual inversion)": (
        r"emb_params$",
        r"string_to_param",
        r"string_to_token",
        r"clip_[lg]$",
        r"<.*>$",
    ),
    "an IP-Adapter": (r"ip_adapter\.", r"image_proj\."),
    "a T2I adapter": (r"adapter\.(body|conv_in|unshuffle)", r"body\.\d+\.(resnets|in_conv)"),
    "Stable Diffusion 3": (r"joint_blocks\.\d+\.",),
    "Chroma": (r"distilled_guidance_layer\.",),
    "Flux.2": (r"(single|double)_stream_modulation(_img|_txt)?\.lin\.",),
    "HunyuanVideo": (r"txt_in\.individual_token_refiner\.",),
    "Flux": (r"double_blocks\.\d+\.img_attn\.", r"single_transformer_blocks\.\d+\.attn\."),
    "HunyuanImage or HunyuanVideo": (r"double_blocks\.\d+\.(img|txt)_(mlp|mod|attn_qkv)",),
    "HunyuanDiT": (r"text_embedding_padding$", r"mlp_t5\.", r"blocks\.\d+\.default_modulation\."),
    "Z-Image": (r"(x|cap)_pad_token$", r"layers\.\d+\.attention\.qkv\.weight$", r"all_x_embedder\."),
    "Lumina": (r"cap_embedder\.\d", r"(noise|context)_refiner\."),
    "Qwen-Image": (r"transformer_blocks\.\d+\.(img|txt)_mod\.", r"txt_in\.text_norm\."),
    "Wan": (r"head\.modulation$", r"vace_blocks\.", r"blocks\.\d+\.cross_attn\.norm_q"),
    "LTX-Video": (r"patchify_proj\.", r"av_ca_", r"decoder\.last_scale_shift_table$", r"per_channel_statistics\."),
    "Mochi": (r"blocks\.\d+\.attn\.qkv_[xy]\.", r"t5_yproj\.", r"t5_y_embedder\."),
    "PixArt": (r"y_embedder\.y_embedding$", r"(t_block|caption_projection\.linear_1)\b", r"ar_embedder\."),
    "Stable Cascade": (r"clip_txt_(pooled_)?mapper\.", r"effnet_mapper\.", r"down_blocks\.\d\.\d\.channelwise\."),
    "AuraFlow": (r"double_layers\.\d+\.", r"register_tokens$", r"cond_seq_linear\."),
    "Cosmos": (r"net\.(x_embedder|blocks|pos_embedder)\b",),
    "Sana": (r"blocks\.\d+\.cross_attn\.(q|kv)_linear\.", r"attention_y_norm\."),
    "HiDream": (r"double_stream_blocks\.\d+\.block\.",),
    "CogVideoX": (
        r"transformer_blocks\.\d+\.norm[12]\.linear\.",
        r"transformer\.layers\.\d+\.attention\.query_key_value",
    ),
    "Kandinsky": (r"add_embedding\.(image|text)_", r"encoder_hid_proj\.image_embeds"),
    "Krea 2": (r"txtfusion\.",),
    "Playground 2.5 (EDM noise)": (r"edm_(mean|std)$",),
    "CosXL (EDM noise)": (r"edm_vpred\.sigma_(max|min)$",),
    "unCLIP": (r"noise_augmentor\.", r"embedder\.(model\.)?visual\."),
    "the SDXL refiner": (r"conditioner\.embedders\.0\.model\.",),
    "an upscaling network": (r"model\.\d+\.sub\.", r"RRDB_trunk\.", r"conv_first\.weight$", r"body\.\d+\.rdb\d\."),
}
QUANTISED: dict[str, tuple[str, ...]] = {
    "bitsandbytes (nf4, fp4 or int8)": (
        r".*\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB|weight_format)$",
        r".*quant_state\.",
    ),
    "SVDQuant (Nunchaku)": (r".*\.(proj_down|proj_up|smooth_factor|smooth_factor_orig|wscales|wtscale|wcscales)$",),
    "GPTQ or AWQ": (r".*\.(qweight|qzeros|g_idx)$",),
    "quanto": (r".*\.weight\._(data|scale|zeropoint|packed)$",),
    "torchao": (r".*\.weight_(qdata|scale_and_zero)$", r".*\.(_weight_qdata|tensor_impl)"),
    "nvfp4 (two scales)": (r".*\.weight_scale_2$",),
}
_STEMS = re.compile(r"^(?:model\.diffusion_model\.|diffusion_model\.|model\.model\.|transformer\.|unet\.|vae\.)?(?=.)")

CLASSES: dict[str, tuple[Family, bool]] = {  # of model_index.json: family (SD 2 has SD 1's), and whether it inpaints
    "StableDiffusionPipeline": ("sd1", False),
    "StableDiffusionImg2ImgPipeline": ("sd1", False),
    "StableDiffusionInpaintPipeline": ("sd1", True),
    "StableDiffusionInpaintPipelineLegacy": ("sd1", False),
    "LatentConsistencyModelPipeline": ("sd1", False),
    "StableDiffusionXLPipeline": ("sdxl", False),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", False),
    "StableDiffusionXLInpaintPipeline": ("sdxl", True),
}
_CHANNELS = {  # of a U-Net's input, beside 4 (text to image) and 9 (inpainting)
    5: "a model conditioned on depth (depth2img)",
    7: "the x4 upscaler",
    8: "InstructPix2Pix",
    3: "a model of pixels (DeepFloyd IF)",
    6: "a model of pixels (DeepFloyd IF's upscaler)",
}

EXTRAS: dict[str, str] = {  # what no network here uses: the names, as a whole
    "a moving average of the U-Net": r"model_ema\..*",
    "buffers of the noise schedule": (
        r"(model\.)?(alphas_cumprod(_prev|_next)?|betas|log_one_minus_alphas_cumprod|logvar|lvlb_weights|posterior_"
        r"(variance|log_variance_clipped|mean_coef[12])|sqrt_(recip(m1)?_|one_minus_)?alphas_cumprod|scale_factor|"
        r"ddim_\w+)"
    ),
    "the noise levels of the training": r"denoiser\.(sigmas|log_sigmas)|model_sampling\.\w+",
    "positions of a text": r".*\bposition_ids",
    "CLIP's scale of similarities": r".*\.?logit_scale",
    "CLIP's image network": (
        r"(cond_stage_model|conditioner\.embedders\.\d)\.(transformer|model)\.(vision_model|visual)[._].*|vision_model\..*"
    ),
    "a projection that is not used": (
        r"cond_stage_model\.transformer\.(text_projection|visual_projection)\.weight|"
        r"conditioner\.embedders\.0\.transformer\.(text_projection|visual_projection)\.weight|"
        r"cond_stage_model\.model\.(text_projection(\.weight)?|visual_projection\.weight)"
    ),
    "SD 2's last text layer": rf"cond_stage_model\.model\.transformer\.resblocks\.{SKIPPED_LAYER}\..*",
    "OpenCLIP's causal mask": r".*\.attn_mask",
    "a safety checker": r"(safety_checker|safety_model)\..*",
    "the autoencoder's discriminator and losses": r"(first_stage_model\.)?loss\..*",
    "the autoencoder's moving average": r"first_stage_model\.model_ema\..*",
    "an embedding manager": r"embedding_manager\..*",
    "marks of float8": r"(.*\.)?scaled_fp8",
    "counters of the training": r"global_step|epoch|num_updates|decay|step",
    "scales of activations": r".*\.(scale_input|input_scale)",
    "the format of each tensor": r".*\.comfy_quant",
}
_EXTRAS = {title: re.compile(pattern) for title, pattern in EXTRAS.items()}
SCALES = (".scale_weight", ".weight_scale")  # of a float8 weight: ComfyUI's word, and diffusers'


def known_extra(name: str) -> str | None:
    """What a tensor is that no network here uses, by its whole name; None of any other."""
    return next((title for title, pattern in _EXTRAS.items() if pattern.fullmatch(name)), None)


def refuse_foreign(where: str, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    """Refuse a file of another family, or of numbers that are packed, by what it is. Raises: Error."""
    names = list(names)
    for kind, patterns in QUANTISED.items():
        if found := _first(names, patterns):
            raise packed(where, kind, found)
    architecture = metadata.get("modelspec.architecture", "")
    ours = any(name.startswith(("model.diffusion_model.input_blocks.", "first_stage_model.")) for name in names)
    for family, patterns in FOREIGN.items():
        if found := _first(names, patterns):
            raise foreign(where, family, f"its tensor {shown(found)}")
    if architecture and not ours and "stable-diffusion" not in architecture:
        raise foreign(where, shown(architecture), "modelspec.architecture in its header")


def packed(where: str, kind: str, found: str) -> Error:
    return Error(
        f"{where} is quantised by {kind} (its tensor {shown(found)}), which is not opened: numbers are read as floats, "
        f"or as float8 with or without scales. Use the same model in fp16, bf16 or fp8."
    )


def foreign(where: str, family: str, mark: str) -> Error:
    """The sentence about a model of another family."""
    return Error(f"{where} is {family}, by {mark}, which is not opened: {OPENED}.")


def _first(names: list[str], patterns: tuple[str, ...]) -> str | None:
    """The first name that one of the patterns begins, with or without the beginning that all have."""
    whole = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return next((n for n in names if whole.match(n) or whole.match(_STEMS.sub("", n, count=1))), None)


def check_scheme(where: str, name: str, scheme: Mapping[str, Any]) -> None:
    """Refuse a tensor's own note of how it is quantised, where that is no float8. Raises: Error."""
    kind = scheme.get("format")
    if kind not in ("float8_e4m3fn", "float8_e5m2"):
        raise packed(where, shown(kind), name)


def of_single(where: str, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    """The family of a single file, by its text networks and by the U-Net's shapes. Raises: Error."""
    unet = "model.diffusion_model."
    if not any(name.startswith(f"{unet}input_blocks.") for name in shapes):
        what = _alone(shapes)
        raise Error(
            f"{where} holds no U-Net of Stable Diffusion (no tensor begins with {unet}input_blocks.){what}: give a "
            f"whole checkpoint. {OPENED[0].upper()}{OPENED[1:]}."
        )
    if f"{unet}label_emb.weight" in shapes:
        raise foreign(
            where, "a model of classes or noise levels (the x4 upscaler)", f"its tensor {unet}label_emb.weight"
        )
    xl = any(name.startswith("conditioner.embedders.1.model.") for name in shapes)
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        if not xl:
            raise Error(
                f"{where} has the first text network of SDXL, conditioner.embedders.0, and not the second, "
                f"conditioner.embedders.1.model: it is not whole."
            )
        return "sdxl"
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in shapes):
        return "sd1"
    width = next((shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    title = {768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "the SDXL refiner"}.get(width, "one of an unknown width")
    raise Error(
        f"{where} holds a U-Net and no text network (it attends to {width} channels: {title}), so no prompt could be "
        f"read: give a whole checkpoint."
    )


def _alone(shapes: Mapping[str, Any]) -> str:
    """What a file without a U-Net is, in words that follow."""
    if any(name.startswith(("encoder.down.", "first_stage_model.encoder.", "encoder.down_blocks.")) for name in shapes):
        return ", an autoencoder alone"
    if any("text_model.encoder." in name or "resblocks." in name for name in shapes):
        return ", a text network alone"
    if any(name.startswith(("input_blocks.", "down_blocks.")) for name in shapes):
        return ", a U-Net alone"
    return ""


def of_folder(where: str, index: Mapping[str, Any], unet: Mapping[str, Any]) -> tuple[Family, str]:
    """The family of a diffusers folder, by model_index.json and the U-Net's config.json; and the class that it names.

    Raises:
        Error: a pipeline of another family.
    """
    name = index.get("_class_name")
    if name not in CLASSES:
        raise foreign(where, f"a {shown(name)}", "_class_name in its model_index.json")
    kind = unet.get("_class_name", "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise foreign(where, f"a {shown(kind)}", "_class_name in its unet/config.json")
    family = CLASSES[name][0]
    vector = unet.get("addition_embed_type")
    if family == "sdxl" and vector == "text_time" and not index.get("text_encoder", [None, None])[1]:
        raise foreign(where, "the SDXL refiner", "its model_index.json, without a first text encoder")
    if (family == "sdxl") != (vector == "text_time"):
        raise Error(
            f"{where}: model_index.json names a {name}, and unet/config.json has addition_embed_type "
            f"{shown(vector)}; a folder of {TITLES[family]} has {'text_time' if family == 'sdxl' else 'none'}."
        )
    if family == "sd1" and unet.get("use_linear_projection"):
        family = "sd2"
    return family, name


def check_channels(where: str, channels: int, out: int) -> bool:
    """Whether a U-Net inpaints, by the channels that it takes. Raises: Error for other models."""
    if out != 4:
        raise foreign(where, "a model of a learned variance or other latents", f"a U-Net that gives {out} channels")
    if channels not in (4, 9):
        what = _CHANNELS.get(channels, "a model of another task")
        raise foreign(where, what, f"a U-Net that takes {channels} channels")
    return channels == 9


_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}
_CODE = {"sdxl": "https://github.com/Stability-AI/generative-models"}


def modelspec(title: str, family: str, inpainting: bool, v: bool, zero_snr: bool) -> dict[str, str]:
    """A header's fields by modelspec 1.0.1."""
    large = family == "sd2" and v
    architecture = "stable-diffusion-v2-768-v" if large else _ARCHITECTURES[family]
    said = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture + ("-inpainting" if inpainting else ""),
        "modelspec.implementation": _CODE.get(family, "https://github.com/CompVis/stable-diffusion"),
        "modelspec.title": title,
        "modelspec.resolution": "768x768" if large else {"sdxl": "1024x1024"}.get(family, "512x512"),
        "modelspec.prediction_type": "v" if v else "epsilon",
    }
    return said | ({"modelspec.zero_terminal_snr": "true"} if zero_snr else {})
