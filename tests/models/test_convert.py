"""A checkpoint goes from a single file to a folder and back with every byte; pickles give plain tensors or nothing."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

import kuosan
import stable_diffusion as made
from kuosan.errors import Error
from kuosan.models.convert import ConvertJob, plan_convert
from kuosan.models.open import describe
from kuosan.models.parts import tensors
from shell import kuosan as shell

_models: dict[str, made.Models] = {}


def tiny(kind: str) -> made.Models:
    if kind not in _models:
        _models[kind] = made.tiny(kind)
    return _models[kind]


def convert(source: Path, out: Path, **options: Any) -> Path:
    list(kuosan.run(kuosan.plan(ConvertJob(source, out, **options))))
    return out


def header(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {}), load_file(file)


@pytest.mark.parametrize("kind", made.KINDS)
def test_a_single_file_comes_back_byte_for_byte_and_the_folder_opens_in_diffusers(kind: str, tmp_path: Path) -> None:
    models = tiny(kind)
    file = made.write_single(models, tmp_path / "m.safetensors", dtype=torch.float16)
    folder = convert(file, tmp_path / "folder")
    found = describe(folder)
    assert found.kind is not None and found.family == models.family and found.inpainting == models.inpaints
    assert (found.kind.prediction == "v", found.kind.zero_snr) == ("-v" in kind, kind.endswith("ztsnr"))
    for name, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        theirs = cls.from_pretrained(folder / name, local_files_only=True, torch_dtype=torch.float16).state_dict()
        wanted = getattr(models, name).state_dict()
        assert theirs.keys() == wanted.keys() and all(torch.equal(theirs[n], wanted[n].half()) for n in theirs)
    scheduler = getattr(diffusers, models.scheduler["_class_name"]).from_pretrained(folder / "scheduler")
    assert scheduler.config.prediction_type == models.scheduler["prediction_type"]
    back = convert(folder, tmp_path / "back.safetensors")
    assert back.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl-v-ztsnr"])
@pytest.mark.parametrize("clip", ["old", "new"])
def test_a_folder_comes_back_with_its_tensors_names_and_configurations(kind: str, clip: str, tmp_path: Path) -> None:
    models = tiny(kind)
    folder = made.write_folder(models, tmp_path / "m", clip=clip)
    extra = json.loads((folder / "unet" / "config.json").read_text()) | {"sample_size": 13}
    (folder / "unet" / "config.json").write_text(json.dumps(extra))
    text = folder / "text_encoder" / "model.safetensors"
    beside = load_file(text) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    made.save_file(beside, text, {"format": "pt", "note": "mine"})
    file = convert(folder, tmp_path / "m.safetensors")
    metadata, state = header(file)
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.prediction_type"] == ("v" if "-v" in kind else "epsilon")
    assert ("v_pred" in state, "ztsnr" in state) == (kind == "sdxl-v-ztsnr",) * 2
    for name, value in made.single(models).items():
        assert torch.equal(state[name], value), name
    back = convert(file, tmp_path / "back")
    for path in [each for each in folder.rglob("*") if each.is_file()]:
        other = back / path.relative_to(folder)
        if path.suffix == ".json":
            assert other.read_bytes() == path.read_bytes(), path
        else:
            (said, ours), (theirs, own) = header(other), header(path)
            assert said == theirs and ours.keys() == own.keys()
            assert all(torch.equal(ours[n], own[n]) and ours[n].dtype == own[n].dtype for n in own)


def test_float8_is_kept_or_multiplied_by_its_scales(tmp_path: Path) -> None:
    models = tiny("sdxl")
    plain = made.write_single(models, tmp_path / "plain.safetensors", float8="plain")
    folder = convert(plain, tmp_path / "folder")
    assert convert(folder, tmp_path / "back.safetensors").read_bytes() == plain.read_bytes()
    scaled = made.write_single(models, tmp_path / "scaled.safetensors", float8="weight_scale")
    with pytest.raises(Error, match=r"its unet is of float8 with scales.*--precision bf16"):
        plan_convert(ConvertJob(scaled, tmp_path / "x"))
    for out in ("y", "y.safetensors"):
        written = convert(scaled, tmp_path / out, precision="fp32")
        read, wanted = (dict(tensors(describe(each).parts["unet"], torch.float32)) for each in (written, scaled))
        assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    assert not any(n.endswith(("weight_scale", "scaled_fp8")) for n in load_file(tmp_path / "y.safetensors"))


def test_a_changed_folder_is_not_written_with_the_old_files_header(tmp_path: Path) -> None:
    file = made.write_single(tiny("sdxl"), tmp_path / "m.safetensors")
    folder = convert(file, tmp_path / "folder")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    metadata, state = header(convert(folder, tmp_path / "back.safetensors"))
    assert metadata["modelspec.prediction_type"] == "v" and "v_pred" in state


def test_nothing_is_written_over_and_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    file = made.write_single(tiny("sdxl"), tmp_path / "m.safetensors", marked=False)
    (tmp_path / "there").mkdir()
    with pytest.raises(Error, match="is there already"):
        ConvertJob(file, tmp_path / "there")
    with pytest.raises(Error, match="--prediction eps"):
        plan_convert(ConvertJob(file, tmp_path / "x"))
    folder = convert(file, tmp_path / "folder", prediction="v")
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    with pytest.raises(Error, match=r"a diffusers folder already: give .*y.safetensors"):
        plan_convert(ConvertJob(folder, tmp_path / "y"))
    plan = plan_convert(ConvertJob(folder, tmp_path / "late.safetensors"))
    (tmp_path / "late.safetensors").write_bytes(b"mine")
    with pytest.raises(Error, match="is there already"):
        list(kuosan.run(plan))
    assert (tmp_path / "late.safetensors").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".kuosan-*"))


def test_the_shell_says_what_was_recognised_and_by_what(tmp_path: Path) -> None:
    file = made.write_single(tiny("sdxl-v-ztsnr"), tmp_path / "m.safetensors")
    done = shell("convert", file, tmp_path / "folder")
    assert done.code == 0, done.err
    for words in (
        "Stable Diffusion XL, single file",
        "predicts v (marker tensor v_pred)",
        "zero terminal SNR",
        "converted:",
    ):
        assert words in done.out
    assert (tmp_path / "folder" / "model_index.json").is_file()
    done = shell("convert", file)
    assert done.code == 2 and "OUT must be given" in done.err


class Gadget:
    """What a stranger puts into a pickle."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def gadgets(mark: Path) -> dict[str, Any]:
    import subprocess
    import types

    touch = f"open({str(mark)!r}, 'w').close()"
    return {
        "system": Gadget(os.system, f"touch {mark}"),
        "eval": Gadget(eval, touch.replace("open", "__import__('builtins').open")),
        "exec": Gadget(exec, touch),
        "popen": Gadget(subprocess.Popen, ["touch", str(mark)]),
        "run": Gadget(subprocess.check_output, ["touch", str(mark)]),
        "open": Gadget(open, str(mark), "w"),
        "import": Gadget(__import__, "this"),
        "code": Gadget(types.CodeType, 0),
        "nested": {"state_dict": {"a": torch.zeros(2), "b": Gadget(os.system, f"touch {mark}")}},
        "beside": {"state_dict": {"a": torch.zeros(2)}, "callbacks": [Gadget(os.mkdir, str(mark))]},
        "load": Gadget(torch.load, str(mark)),
        "hub": Gadget(torch.hub.load, "x/y", "z"),
        "unlink": Gadget(os.unlink, str(mark)),
        "chmod": Gadget(os.chmod, "/", 0),
    }


@pytest.mark.parametrize("form", ["torch.save", "old torch.save", "pickle"])
@pytest.mark.parametrize("name", ["system", "eval", "popen", "open", "nested", "beside", "chmod"])
def test_a_gadget_is_never_run(name: str, form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "m.ckpt"
    thing = gadgets(mark)[name]
    if form == "pickle":
        path.write_bytes(pickle.dumps(thing))
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=form == "torch.save")
    with pytest.raises(Error) as error:
        plan_convert(ConvertJob(path, tmp_path / "out", allow_pickle=True))
    assert "holds no plain tensors" in str(error.value) and not mark.exists() and not (tmp_path / "out").exists()
    with pytest.raises(Error, match="--allow-pickle"):
        plan_convert(ConvertJob(path, tmp_path / "out"))
    assert not list(tmp_path.glob(".kuosan-*"))


def test_a_checkpoint_of_plain_tensors_is_converted(tmp_path: Path) -> None:
    models = tiny("sd1")
    state = made.single(models) | made.extras(models)
    torch.save({"state_dict": state, "global_step": 7, "pytorch-lightning_version": "1.4"}, tmp_path / "m.ckpt")
    out = convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors", allow_pickle=True)
    read = load_file(out)
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    assert not list(tmp_path.glob(".kuosan-*"))
    with pytest.raises(Error, match="--allow-pickle has no effect"):
        plan_convert(ConvertJob(out, tmp_path / "x", allow_pickle=True))
