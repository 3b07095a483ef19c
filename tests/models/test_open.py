"""What a path holds: every kind of Stable Diffusion in every layout, by its own marks; everything else by its name."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

import stable_diffusion as made
from kuosan.convert import families, sgm, shapes
from kuosan.errors import Error
from kuosan.models.open import Checkpoint, describe
from kuosan.models.parts import tensors
from kuosan.models.prediction import Kind, recognised, self_test

KIND = {  # family, inpainting, prediction, zero terminal SNR
    "sd1": ("sd1", False, "eps", False),
    "sd1-inpaint": ("sd1", True, "eps", False),
    "sd2-v": ("sd2", False, "v", False),
    "sdxl": ("sdxl", False, "eps", False),
    "sdxl-v-ztsnr": ("sdxl", False, "v", True),
    "sdxl-inpaint": ("sdxl", True, "eps", False),
}
LAYOUTS: dict[str, Callable[[made.Models, Path], Path]] = {
    "single file": lambda m, at: made.write_single(m, at / "m.safetensors"),
    "single file, fp16": lambda m, at: made.write_single(m, at / "m.safetensors", dtype=torch.float16),
    "float8": lambda m, at: made.write_single(m, at / "m.safetensors", float8="plain"),
    "float8, scale_weight": lambda m, at: made.write_single(m, at / "m.safetensors", float8="scale_weight"),
    "float8, weight_scale": lambda m, at: made.write_single(m, at / "m.safetensors", float8="weight_scale"),
    "folder, old CLIP": lambda m, at: made.write_folder(m, at / "m", clip="old"),
    "folder, new CLIP": lambda m, at: made.write_folder(m, at / "m", clip="new"),
    "fp16 variant": lambda m, at: made.write_folder(m, at / "m", variant="fp16", dtype=torch.float16),
    "shards": lambda m, at: made.write_folder(m, at / "m", shards=True),
    "shards, fp16 variant": lambda m, at: made.write_folder(m, at / "m", shards=True, variant="fp16"),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


_models: dict[str, made.Models] = {}


def tiny(kind: str) -> made.Models:
    if kind not in _models:
        _models[kind] = made.tiny(kind)
    return _models[kind]


def wanted(models: made.Models) -> dict[str, dict[str, Tensor]]:
    """The tensors of every part, by the names that our parts have."""
    found = {"unet": models.unet.state_dict(), "vae": models.vae.state_dict()}
    found |= {f"text_encoder{'_2' * i}": made.clip_state(text, True) for i, text in enumerate(models.texts)}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", made.KINDS)
def test_every_kind_is_recognised_in_every_layout_and_every_tensor_is_read(
    kind: str, layout: str, tmp_path: Path
) -> None:
    models = tiny(kind)
    found = describe(LAYOUTS[layout](models, tmp_path))
    assert found.kind is not None and found.kind.reason
    assert (found.family, found.inpainting, found.kind.prediction, found.kind.zero_snr) == KIND[kind]
    assert found.layout == ("diffusers folder" if (tmp_path / "m").is_dir() else "single file")
    for name, own in wanted(models).items():
        read = dict(tensors(found.parts[name], torch.float32))
        assert read.keys() == own.keys()
        half = "fp16" in layout or "float8" in layout
        for each, value in own.items():
            assert read[each].dtype == torch.float32
            if not half:
                assert torch.equal(read[each], value), each
            else:  # float8 has 3 bits behind the first, so 1/16 off at most, and 2^-10 near 0 without a scale
                near = torch.isclose(read[each], value, rtol=1 / 16, atol=2**-10)
                assert near.all() if "shards" not in layout else torch.equal(read[each], value), each


@pytest.mark.parametrize("kind", made.KINDS)
def test_configurations_read_off_shapes_are_the_models_own(kind: str, tmp_path: Path) -> None:
    models = tiny(kind)
    found = describe(made.write_single(models, tmp_path / "m.safetensors")).parts
    for name, model in (("unet", models.unet), ("vae", models.vae)):
        for key, value in found[name].config.items():
            own = models.unet.config if name == "unet" else models.vae.config
            if key in ("_class_name", "sample_size", "force_upcast"):
                continue
            assert own[key] == value or list(own[key]) == value, (name, key, own[key], value)
        rebuilt = type(model).from_config(dict(found[name].config))
        assert {n: v.shape for n, v in rebuilt.state_dict().items()} == {
            n: v.shape for n, v in model.state_dict().items()
        }
    for i, text in enumerate(models.texts):
        config = found[f"text_encoder{'_2' * i}"].config
        own = {key: getattr(text.config, key) for key in config if key not in ("architectures", "model_type")}
        assert own == {key: config[key] for key in own}


@pytest.mark.parametrize("kind", made.KINDS)
def test_a_single_file_is_read_as_diffusers_reads_it(kind: str, tmp_path: Path) -> None:
    models = tiny(kind)
    folder = made.write_folder(models, tmp_path / "folder")
    file = made.write_single(models, tmp_path / "m.safetensors")
    found = describe(file).parts
    for name, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        theirs = cls.from_single_file(str(file), config=str(folder), subfolder=name, local_files_only=True).state_dict()
        ours = dict(tensors(found[name]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[each], theirs[each]) for each in theirs)


def test_the_tensors_of_published_shapes_are_those_that_diffusers_builds() -> None:
    """The whole networks of SD 1, 2 and XL, on the meta device."""
    xl: dict[str, Any] = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    two = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
    families_of: dict[families.Family, dict[str, Any]] = {
        "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 9},
        "sd2": two,
        "sdxl": xl,
    }
    for family, config in families_of.items():
        with torch.device("meta"):
            model = diffusers.UNet2DConditionModel(**config)
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert shapes.unet_shapes(config, family) == own
        read = shapes.unet_config(own, family, family)
        assert shapes.unet_shapes(read, family) == own
        assert read["attention_head_dim"] == model.config.attention_head_dim
        names = sgm.to_single(family, "unet", list(own))
        back = sgm.to_diffusers(family, "unet", [each.removeprefix(sgm.UNET) for each, _ in names.values()])
        assert {pieces[0].name for pieces in back.values()} == own.keys() and len(back) == len(own)


def rewritten(file: Path, change: Callable[[dict[str, Tensor]], None], metadata: dict[str, str] | None = None) -> Path:
    with safe_open(file, framework="pt") as opened:
        said = dict(opened.metadata() or {})
    state = {name: value.clone() for name, value in load_file(file).items()}
    change(state)
    save_file(state, file, said | (metadata or {}))
    return file


PLANTED = [
    "model.diffusion_model.input_blocks.1.0.in_layers.3.weight",
    "model.diffusion_model.output_blocks.77.0.in_layers.0.weight",
    "model.diffusion_model.time_embed.4.bias",
    "first_stage_model.encoder.mid.attn_2.q.weight",
    "first_stage_model.decoder.up.7.block.0.conv1.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.9.mlp.fc1.weight",
    "cond_stage_model.transformer.text_model.pooler.weight",
    "something.else",
]
REMOVED = [
    "model.diffusion_model.middle_block.1.norm.weight",
    "model.diffusion_model.output_blocks.1.0.skip_connection.bias",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight",
    "model.diffusion_model.out.2.bias",
    "first_stage_model.post_quant_conv.bias",
    "first_stage_model.decoder.mid.attn_1.v.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.bias",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight",
]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_tensor_is_named(name: str, tmp_path: Path) -> None:
    file = made.write_single(tiny("sd1"), tmp_path / "m.safetensors", beside={name: torch.zeros(3, 4)})
    with pytest.raises(Error) as error:
        describe(file)
    assert f"'{name}' is unknown" in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_missing_tensor_is_named_as_the_file_would_have_it(name: str, tmp_path: Path) -> None:
    file = rewritten(made.write_single(tiny("sd1"), tmp_path / "m.safetensors"), lambda state: state.pop(name))
    with pytest.raises(Error, match="is missing") as error:
        describe(file)
    assert name in str(error.value) or sgm.clip_name(name.partition("transformer.")[2]) in str(error.value)


@pytest.mark.parametrize("where", ["unet", "vae", "text_encoder"])
def test_a_planted_and_a_missing_tensor_of_a_folder_are_named(where: str, tmp_path: Path) -> None:
    folder = made.write_folder(tiny("sd1"), tmp_path / "m")
    file = next((folder / where).glob("*.safetensors"))
    rewritten(file, lambda state: state.update({"planted.weight": torch.zeros(2)}))
    with pytest.raises(Error, match=r"'planted.weight' is unknown"):
        describe(folder)
    state = load_file(file)
    gone = next(name for name in sorted(state) if name.endswith(".weight") and name != "planted.weight")
    rewritten(file, lambda state: [state.pop(each) for each in ("planted.weight", gone)])
    with pytest.raises(Error, match=rf"{gone}' is missing"):
        describe(folder)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.2.out_layers.3.weight"
    file = rewritten(
        made.write_single(tiny("sd1"), tmp_path / "m.safetensors"), lambda s: s.update({name: torch.zeros(3, 4, 5)})
    )
    with pytest.raises(Error, match=r"middle_block.2.out_layers.3.weight' has the shape \(3, 4, 5\), not \(128, 128"):
        describe(file)


def test_both_spellings_of_a_folders_attention_and_of_a_files_are_read(tmp_path: Path) -> None:
    models = tiny("sd1")
    folder = made.write_folder(models, tmp_path / "m")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def spelled(state: dict[str, Tensor]) -> None:
        for name in [each for each in state if ".attentions." in each]:
            new = name
            for now, before in old.items():
                new = new.replace(f".{now}.", f".{before}.")
            state[new] = state.pop(name)

    rewritten(folder / "vae" / "diffusion_pytorch_model.safetensors", spelled)
    read = dict(tensors(describe(folder).parts["vae"]))
    assert all(torch.equal(read[name], value) for name, value in models.vae.state_dict().items())

    def linear(state: dict[str, Tensor]) -> None:
        for name in [each for each in state if "attn_1" in each and state[each].ndim == 4]:
            state[name.replace(".q.", ".to_q.").replace(".proj_out.", ".to_out.0.")] = state.pop(name)[:, :, 0, 0]

    file = rewritten(made.write_single(models, tmp_path / "m.safetensors"), linear)
    rewritten(file, lambda s: [s.update({n.replace(".q.b", ".to_q.b"): s.pop(n)}) for n in list(s) if ".q.b" in n])
    read = dict(tensors(describe(file).parts["vae"]))
    assert all(torch.equal(read[name], value) for name, value in models.vae.state_dict().items())


def test_what_is_passed_over_is_counted_by_what_it_is(tmp_path: Path) -> None:
    found = describe(made.write_single(tiny("sd1"), tmp_path / "m.safetensors"))
    assert found.extras == {
        "a moving average of the U-Net": 3,
        "buffers of the noise schedule": 2,
        "positions of a text": 1,
        "the autoencoder's discriminator and losses": 1,
    }
    assert "passed over: 3 of a moving average of the U-Net" in found.lines()


def test_every_extra_of_the_list_has_a_name_that_it_matches() -> None:
    names = {
        "a moving average of the U-Net": "model_ema.diffusion_modeltime_embed0weight",
        "buffers of the noise schedule": "sqrt_recipm1_alphas_cumprod",
        "the noise levels of the training": "denoiser.sigmas",
        "positions of a text": "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "CLIP's scale of similarities": "conditioner.embedders.1.model.logit_scale",
        "CLIP's image network": "cond_stage_model.transformer.vision_model.post_layernorm.bias",
        "a projection that is not used": "cond_stage_model.transformer.text_projection.weight",
        "SD 2's last text layer": "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_bias",
        "OpenCLIP's causal mask": "cond_stage_model.model.attn_mask",
        "a safety checker": "safety_checker.concept_embeds",
        "the autoencoder's discriminator and losses": "first_stage_model.loss.discriminator.main.0.weight",
        "the autoencoder's moving average": "first_stage_model.model_ema.decay",
        "an embedding manager": "embedding_manager.embedder.transformer.text_model.x",
        "marks of float8": "model.diffusion_model.scaled_fp8",
        "counters of the training": "global_step",
        "scales of activations": "model.diffusion_model.middle_block.1.proj_in.scale_input",
        "the format of each tensor": "model.diffusion_model.middle_block.1.proj_in.comfy_quant",
    }
    assert names.keys() == families.EXTRAS.keys()
    assert {families.known_extra(name): name for name in names.values()} == names


FOREIGN = {  # what a file is: two tensors as its files have them
    "Stable Diffusion 3": "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
    "Flux": "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale",
    "Flux.2": "double_stream_modulation_img.lin.weight",
    "Chroma": "distilled_guidance_layer.in_proj.bias",
    "Z-Image": "model.diffusion_model.layers.0.attention.qkv.weight",
    "Lumina": "model.diffusion_model.cap_embedder.0.weight",
    "Qwen-Image": "model.diffusion_model.transformer_blocks.0.img_mod.1.weight",
    "HunyuanVideo": "model.model.txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",
    "HunyuanDiT": "text_embedding_padding",
    "Stable Video Diffusion": "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_k.weight",
    "AnimateDiff": "down_blocks.0.motion_modules.0.temporal_transformer.norm.bias",
    "Wan": "model.diffusion_model.head.modulation",
    "LTX-Video": "model.diffusion_model.patchify_proj.weight",
    "Mochi": "blocks.0.attn.qkv_x.weight",
    "PixArt": "y_embedder.y_embedding",
    "Stable Cascade": "clip_txt_mapper.weight",
    "AuraFlow": "double_layers.0.attn.w2q.weight",
    "Cosmos": "net.x_embedder.proj.1.weight",
    "Sana": "blocks.0.cross_attn.q_linear.weight",
    "HiDream": "double_stream_blocks.0.block.adaLN_modulation.1.bias",
    "Krea 2": "txtfusion.projector.weight",
    "the SDXL refiner": "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
    "a ControlNet": "control_model.time_embed.0.weight",
    "a LoRA": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "an embedding (textual inversion)": "emb_params",
    "an IP-Adapter": "image_proj.proj.weight",
    "Playground 2.5 (EDM noise)": "edm_mean",
    "CosXL (EDM noise)": "edm_vpred.sigma_max",
    "unCLIP": "noise_augmentor.time_embed.weight",
}
QUANTISED = {
    "bitsandbytes": "model.diffusion_model.input_blocks.1.0.in_layers.2.weight.absmax",
    "SVDQuant": "transformer_blocks.0.attn.to_q.proj_down",
    "GPTQ or AWQ": "model.diffusion_model.middle_block.1.proj_in.qweight",
    "quanto": "unet.conv_in.weight._data",
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("family", "name"), [*FOREIGN.items(), *QUANTISED.items()])
def test_another_family_is_refused_by_its_name(family: str, name: str, whole: bool, tmp_path: Path) -> None:
    """Alone in a file, and beside all tensors of a Stable Diffusion, as a mixture of both would have them."""
    file = tmp_path / "m.safetensors"
    if whole:
        made.write_single(tiny("sd1"), file, beside={name: torch.zeros(2, 2)})
    else:
        save_file({name: torch.zeros(2, 2)}, file)
    with pytest.raises(Error) as error:
        describe(file)
    said = str(error.value)
    assert family in said and name in said and "not opened" in said


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "FluxPipeline", "KandinskyPipeline", "StableVideoDiffusionPipeline"]
)
def test_a_folder_of_another_pipeline_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(Error, match=f"{name}.*not opened: Stable Diffusion 1, 2 and XL"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("channels", "what"), [(5, "depth"), (7, "x4 upscaler"), (8, "InstructPix2Pix"), (6, "6 channels")]
)
def test_a_unet_for_another_task_is_refused(channels: int, what: str, tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    file = rewritten(
        made.write_single(tiny("sd1"), tmp_path / "m.safetensors"),
        lambda state: state.update({name: torch.zeros(64, channels, 3, 3)}),
    )
    with pytest.raises(Error, match=what):
        describe(file)


def test_packed_numbers_are_refused_and_float8_notes_are_read(tmp_path: Path) -> None:
    stem = "model.diffusion_model.middle_block.1.proj_in"
    note = {"format": "float8_e4m3fn"}

    def noted(scheme: Any) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(scheme).encode()), dtype=torch.uint8)

    models = tiny("sdxl")
    file = tmp_path / "m.safetensors"
    made.write_single(models, file, float8="weight_scale", beside={f"{stem}.comfy_quant": noted(note)})
    assert describe(file).extras["the format of each tensor"] == 1
    made.write_single(models, file, beside={f"{stem}.comfy_quant": noted({"format": "nvfp4"})})
    with pytest.raises(Error, match=r"quantised by 'nvfp4' \(its tensor .*proj_in.comfy_quant"):
        describe(file)
    layers = json.dumps({"format_version": "1.0", "layers": {stem: {"format": "int8_tensorwise"}}})
    rewritten(made.write_single(models, file), lambda _: None, {"_quantization_metadata": layers})
    with pytest.raises(Error, match="quantised by 'int8_tensorwise'"):
        describe(file)
    made.write_single(models, file, beside={f"{stem}.weight": torch.zeros(128, 64, dtype=torch.uint8)})
    with pytest.raises(Error, match=r"proj_in.weight' is of uint8, which are packed numbers"):
        describe(file)
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(Error, match="GGUF"):
        describe(file)


def test_a_scale_without_its_weight_or_of_another_shape_is_named(tmp_path: Path) -> None:
    stem = "model.diffusion_model.middle_block.1.proj_in"
    file = tmp_path / "m.safetensors"
    made.write_single(tiny("sdxl"), file, beside={f"{stem}.scale_weight": torch.ones(())})
    with pytest.raises(Error, match=r"scale_weight' is a scale of .*proj_in.weight', which is no float8"):
        describe(file)
    made.write_single(tiny("sdxl"), file, beside={"model.diffusion_model.gone.scale_weight": torch.ones(())})
    with pytest.raises(Error, match=r"gone.scale_weight' is a scale, and there is no one weight"):
        describe(file)
    made.write_single(tiny("sdxl"), file, float8="scale_weight", beside={f"{stem}.scale_weight": torch.ones(7)})
    with pytest.raises(Error, match=r"proj_in.scale_weight' has the shape \(7,\)"):
        dict(tensors(describe(file).parts["unet"], torch.float32))


def kind(**marks: Any) -> Kind:
    given: dict[str, Any] = {"family": "sdxl", "names": (), "metadata": {}, "sheet": None, "scheduler": None}
    return recognised(**given | marks)


V, EPS = {"modelspec.prediction_type": "v"}, {"modelspec.prediction_type": "epsilon"}
YAML_V = {"model": {"target": "ldm.x", "params": {"parameterization": "v"}}}
YAML_NONE = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {"linear_start": 0.00085}}}
SCALING = {"network_config": {}, "denoiser_config": {"params": {"scaling_config": {"target": "sgm.VScaling"}}}}


@pytest.mark.parametrize(
    ("marks", "prediction", "zero", "reason"),
    [
        ({"names": ("v_pred",)}, "v", False, "marker tensor v_pred"),
        ({"names": ("v_pred", "ztsnr")}, "v", True, "marker tensor v_pred"),
        ({"names": ("ztsnr",)}, None, True, "no mark"),
        ({"metadata": V}, "v", False, "modelspec.prediction_type in its header"),
        ({"metadata": EPS}, "eps", False, "modelspec.prediction_type in its header"),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-768-v"}}, "v", False, "modelspec.architecture"),
        ({"metadata": {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}}, "v", True, "ss_v_param"),
        ({"sheet": YAML_V}, "v", False, "parameterization in the .yaml"),
        ({"sheet": YAML_NONE}, "eps", False, "the .yaml beside it, which names no parameterization"),
        ({"sheet": {"model": {"params": SCALING}}}, "v", False, "VScaling in the .yaml"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, "v", False, "prediction_type in its scheduler_config"),
        (
            {"scheduler": {"rescale_betas_zero_snr": True}},
            "eps",
            True,
            "scheduler_config.json, which names no prediction_type",
        ),
        ({"family": "sd1"}, "eps", False, "its shapes"),
        ({"family": "sd1", "names": ("v_pred",)}, "v", False, "marker"),
        ({"family": "sd2"}, None, False, "no mark"),
        ({}, None, False, "no mark"),
        ({"asked": "v", "metadata": EPS}, "v", False, "as was given"),
    ],
)
def test_marks_count_in_their_order(marks: dict[str, Any], prediction: str | None, zero: bool, reason: str) -> None:
    found = kind(**marks)
    assert (found.prediction, found.zero_snr) == (prediction, zero) and found.reason.startswith(reason)


def test_a_mark_that_says_otherwise_is_said(tmp_path: Path) -> None:
    found = kind(names=("v_pred",), metadata=EPS, scheduler={"prediction_type": "epsilon"})
    assert found.prediction == "v" and len(found.notes) == 2
    assert "modelspec.prediction_type in its header: eps" in found.lines()[1]
    with pytest.raises(Error, match="'sample'; of such a model allowed: eps"):
        kind(scheduler={"prediction_type": "sample"})
    file = made.write_single(tiny("sdxl"), tmp_path / "m.safetensors", marked=False)
    assert describe(file).kind == Kind(None, "no mark of it says so")
    assert describe(file, prediction="v").kind == Kind("v", "as was given, --prediction")


def test_a_yaml_beside_a_file_gives_its_betas_and_never_runs(tmp_path: Path) -> None:
    file = made.write_single(tiny("sd2-v"), tmp_path / "m.safetensors")
    file.with_suffix(".yaml").write_text(
        made.SD2_V + "    linear_start: 0.001\n    linear_end: 0.01\n    timesteps: 900\n"
    )
    assert describe(file).scheduler == {"beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 900}
    file.with_suffix(".yaml").write_text("model: !!python/object/apply:os.system [touch here]\n")
    with pytest.raises(Error, match="not plain YAML"):
        describe(file)


def test_shards_are_compared_with_their_index(tmp_path: Path) -> None:
    folder = made.write_folder(tiny("sd1"), tmp_path / "m", shards=True)
    index = folder / "text_encoder" / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    moved = {**listed["weight_map"]}
    first = next(iter(moved))
    moved[first] = next(file for file in moved.values() if file != moved[first])
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(Error, match=r"is in model.* and not in model"):
        describe(folder)
    index.write_text(json.dumps({"weight_map": {**moved, first: "../elsewhere.safetensors"}}))
    with pytest.raises(Error, match="is no file of this folder"):
        describe(folder)
    index.write_text(json.dumps(listed))
    next((folder / "text_encoder").glob("*-00002-of-*")).unlink()
    with pytest.raises(Error, match=r"the shard .*00002.* is missing"):
        describe(folder)


def test_variants_are_taken_as_asked_and_the_plain_files_first(tmp_path: Path) -> None:
    models = tiny("sd1")
    folder = made.write_folder(models, tmp_path / "m")
    half = made.write_folder(models, tmp_path / "half", variant="fp16", dtype=torch.float16)
    for part in ("unet", "vae", "text_encoder"):
        for file in (half / part).glob("*.safetensors"):
            shutil.copy(file, folder / part / file.name)

    def dtypes(found: Checkpoint) -> set[torch.dtype]:
        return {each.dtype for part in found.parts.values() for each in part.tensors.values()}

    assert dtypes(describe(folder)) == {torch.float32} and dtypes(describe(folder, variant="fp16")) == {torch.float16}
    with pytest.raises(Error, match="in its variant bf16"):
        describe(folder, variant="bf16")
    with pytest.raises(Error, match="only folders have variants"):
        describe(made.write_single(models, tmp_path / "x.safetensors"), variant="fp16")


def test_pickles_are_not_opened_and_the_way_to_convert_them_is_said(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(Error, match=r"may hold code.*kuosan convert old.ckpt old.safetensors --allow-pickle"):
        describe(path)
    folder = made.write_folder(tiny("sd1"), tmp_path / "m")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(Error, match=r"diffusion_pytorch_model.bin alone, which may hold code"):
        describe(folder)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = made.write_folder(tiny("sdxl"), tmp_path / "m")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "addition_embed_type": None}))
    with pytest.raises(Error, match="addition_embed_type None; a folder of Stable Diffusion XL has text_time"):
        describe(folder)
    shutil.rmtree(folder / "text_encoder_2")
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Error, match="text_encoder_2/ is missing"):
        describe(folder)


ALPHA_BARS = dict(zip(range(1000), torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).tolist()))


def oracle(predicts: str, shrink: float = 1.0, noise: float = 0.0) -> Callable[[Tensor, int], Tensor]:
    """A denoiser of flat fields: it finds x0 as the mean of each channel, and errs by `shrink` and `noise`."""

    def network(x: Tensor, t: int) -> Tensor:
        alpha, sigma = ALPHA_BARS[t] ** 0.5, (1 - ALPHA_BARS[t]) ** 0.5
        x0 = x.mean((2, 3), keepdim=True) / alpha
        eps = (x - alpha * x0) / sigma
        out = eps if predicts == "eps" else alpha * eps - sigma * x0
        return shrink * out + noise * torch.sin(1000 * x)

    return network


@pytest.mark.parametrize(
    ("network", "answer"),
    [
        (oracle("eps"), "eps"),
        (oracle("v"), "v"),
        (oracle("eps", 0.95, 0.3), "eps"),
        (oracle("v", 0.9, 0.3), "v"),
        (lambda x, t: torch.zeros_like(x), None),
        (lambda x, t: torch.sin(1000 * x), None),
        (lambda x, t: x * float("nan"), None),
        (lambda x, t: 3 * x, None),
    ],
)
def test_a_step_on_flat_fields_says_what_is_predicted_or_that_it_cannot(network: Any, answer: str | None) -> None:
    assert self_test(network, (4, 16, 16), ALPHA_BARS) == answer
