"""What bad input gets: one clear message, the right exit code, no traceback, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kuosan.sample.recipe import Recipe
from kuosan.storage import manifest
from shell import QUICK, image_folder, kuosan, refused, tree

SAMPLE = ["-n", 1, "--steps", 1, "--precision", "fp32", "--threads", 1]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


# Images


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("train", tmp_path / "empty", "--out", tmp_path / "run", *QUICK, naming=["empty", "put images"])
    assert not (tmp_path / "run").exists()


def test_a_folder_of_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text("a caption without an image")
    refused("train", folder, "--out", tmp_path / "run", *QUICK, naming=["text"])
    (folder / "x.png").write_text("no image")
    refused("train", folder, "--out", tmp_path / "run", *QUICK, naming=["0.txt", "not an image", "doctor"])
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_there_are_refused(tmp_path: Path) -> None:
    refused("train", tmp_path / "nowhere", "--out", tmp_path / "run", naming=["nowhere"])
    refused("doctor", tmp_path / "nowhere", naming=["nowhere"])
    refused("train", naming=["kuosan train FOLDER", "portraits"])
    refused("train", "--out", tmp_path / "none", naming=["none", "no run to go on with"])
    refused("train", "a", "b", naming=["'a'", "'b'", "one data set"])
    refused("train", "a", "--data.path", "b", naming=["'a'", "'b'", "twice"])
    assert list(tmp_path.iterdir()) == []


def test_one_image_trains(tmp_path: Path) -> None:
    said = kuosan("train", image_folder(tmp_path / "one", 1), "--out", tmp_path / "run", *QUICK)
    assert said.code == 0, said
    assert kuosan("sample", tmp_path / "run", *SAMPLE).code == 0


def test_mixed_sizes_and_modes_train(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "mixed", 2)
    noise = np.random.Generator(np.random.Philox(1)).integers(0, 256, (17, 40, 4), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    Image.fromarray(noise[..., :3]).convert("P").save(folder / "palette.gif")
    Image.fromarray(noise).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise[..., :3]).save(folder / "wide.webp")
    Image.fromarray(noise[:1, :1, :3]).save(folder / "dot.bmp")
    said = kuosan("train", folder, "--out", tmp_path / "run", *QUICK)
    assert said.code == 0 and "8 images used" in said.out, said


# Words and numbers

TRAIN = {
    "--max-stps 5": ["--max-stps", "--max-steps"],
    "--train.max_steps x": ["train.max_steps", "'x'", "int"],
    "--max-steps 0": ["train.max_steps", "0", "1 or more"],
    "--max-steps 1e999": ["train.max_steps", "1e999"],
    "--max-steps": ["--max-steps", "needs a value"],
    "--max-steps=": ["--max-steps", "no value"],
    "--max-steps 5 --max-steps 6": ["twice", "5", "6"],
    "--batch -4": ["train.batch", "-4"],
    "--lr nan": ["train.lr", "nan", "finite"],
    "--lr -1": ["train.lr", "-1", "0 or more"],
    "--lr-shape cosin": ["train.lr_shape", "'cosin'", "'cosine'"],
    "--weight mins_snr": ["weight", "'mins_snr'", "min_snr"],
    "--train.betas 0.9": ["train.betas"],
    "--train.betas 0.9,1.5": ["train.betas", "1.5", "below 1"],
    "--betas 0.9,0.99": ["--model.schedule.betas", "--train.betas", "in full"],
    "--keep 1": ["train.keep", "2 or more"],
    "--schedule cosine": ["'cosine'", "discrete, karras, flow", "model.schedule.betas"],
    "--schedule flows": ["'flows'", "flow"],
    "--model.schedule.betas cosin": ["model.schedule.betas", "'cosin'", "cosine"],
    "--prediction epz": ["prediction", "'epz'", "'eps'"],
    "--prediction eps --zero-terminal-snr": ["eps", "zero_terminal_snr", "predict v"],
    "--prediction eps --schedule flow": ["eps", "flow", "predict v"],
    "--sigma-max 80": ["model.schedule.sigma_max", "discrete"],
    "--T 0": ["T 0", "at least 1"],
    "--beta-start 0.5": ["beta_start", "beta_end"],
    "--learned-variance": ["learned_variance", "loss simple", "hybrid"],
    "--preview-steps 2000 --preview-every 5": ["previews", "2000", "1000"],
    "--T 10 --preview-every 5": ["previews", "T=10"],
    "--device cudda": ["device", "'cudda'", "'cuda'"],
    "--precision fp16": ["precision", "'fp16'", "bf16"],
    "--threads -1": ["threads", "-1"],
    "--data.size 7": ["size", "7", "8"],
    "--resize crob": ["resize", "'crob'", "crop"],
    "--background pinkish": ["background", "'pinkish'", "#rrggbb"],
    "--flip=maybe": ["data.flip", "'maybe'", "true, false"],
    "--hold-out 2": ["hold_out", "2", "0.9"],
    "--network huge": ["--network", "huge", "tiny"],
    "--model.network.kind own": ["own", "kuosan.fit"],
    "--config nosuch": ["recipe", "'nosuch'", "portraits"],
    "--config nosuch.yaml": ["nosuch.yaml", "No such file"],
    "-q 3": ["'-q'", "--key value"],
    "--init nowhere": ["nowhere", "does not exist"],
}


@pytest.mark.parametrize("words", TRAIN)
def test_what_train_cannot_do_is_refused_and_nothing_is_written(words: str, tmp_path: Path) -> None:
    images = image_folder(tmp_path / "pictures", 1)
    refused("train", images, "--out", tmp_path / "run", *words.split(), naming=TRAIN[words])
    assert not (tmp_path / "run").exists()


SAMPLES = {
    "--sampler dimm": ["sampler", "'dimm'", "'ddim'", "dpm_solver_2m"],
    "--sampler dpmpp_2m_karras": ["spacing 'karras'"],
    "--spacing trailling": ["spacing", "'trailling'", "'trailing'"],
    "--steps 1001": ["steps 1001", "T=1000", "log_snr"],
    "--steps 0": ["steps = 0", "1 to 10,000"],
    "--steps 100000000": ["steps = 100000000"],
    "--steps 2.5": ["--steps", "'2.5'", "whole"],
    "--stps 3": ["--stps", "--steps"],
    "-n 0": ["n = 0", "1,000,000"],
    "-n -3": ["n = -3"],
    "-n 99999999999": ["n = 99999999999"],
    "-n x": ["-n", "'x'"],
    "--seed -1": ["seed = -1"],
    "--seed 1.5": ["--seed", "'1.5'", "whole"],
    "--seed 99999999999999999999": ["seed", "2^63"],
    "--eta 0.5": ["eta 0.5", "dpm_solver_2m", "ddim"],
    "--eta 2 --sampler ddim": ["eta 2", "0 to 1"],
    "--eta nan --sampler ddim": ["--eta", "nan"],
    "--variance learned --sampler ddpm": ["learned", "predicts no variance", "posterior"],
    "--variance larned --sampler ddpm": ["'larned'", "'learned'"],
    "--variance beta": ["variance", "ddpm"],
    "--strength 0.5": ["strength", "--image"],
    "--image x.png --strength 0": ["strength = 0", "at most 1"],
    "--image x.png --strength nan": ["--strength", "nan"],
    "--image x.png --strength 0.01 --steps 5": ["no step at all", "0.2"],
    "--image nowhere.png": ["nowhere.png"],
    "--image x.png --between 1 2": ["between", "image"],
    "--between 1": ["--between", "2"],
    "--between 1 -2": ["between", "-2"],
    "--between 1 2 --sampler ddpm": ["between", "ddpm", "euler"],
    "--batch 0": ["batch = 0"],
    "--columns 0": ["columns = 0"],
    "--device tpu": ["device", "'tpu'"],
    "--device cuda:99": ["cuda"],
    "--precision int8": ["int8", "bf16"],
    "--threads 5000": ["threads = 5000"],
    "extra": ["'extra'"],
}


@pytest.mark.parametrize("words", SAMPLES)
def test_what_sample_cannot_do_is_refused_and_nothing_is_written(words: str, trained_run: Path) -> None:
    before = tree(trained_run)
    refused("sample", trained_run, *words.split(), naming=SAMPLES[words])
    assert tree(trained_run) == before


def test_a_run_whose_noise_is_pure_at_its_end_is_sampled_by_heun_and_refuses_even_log_snr(tmp_path: Path) -> None:
    images = image_folder(tmp_path / "pictures")
    words = [*QUICK, "--zero-terminal-snr"]
    assert kuosan("train", images, "--out", tmp_path / "run", *words).code == 0
    refused("sample", tmp_path / "run", "--spacing", "log_snr", naming=["log_snr", "zero_terminal_snr", "use trailing"])
    assert kuosan("sample", tmp_path / "run", "--sampler", "heun", *SAMPLE).code == 0


def test_nonsense_verbs_are_answered_with_the_near_one() -> None:
    refused("trian", "x", naming=["trian", "train"])
    refused("sampel", naming=["sample"])
    assert kuosan().code == 0 and "train" in kuosan("--help").out


MISSPELT = {
    "train x --netwrok dit": "--network",
    "train x --batchsize 8": "--batch",
    "train x --dryrun": "--dry-run",
    "train x --model.netwrok.channels 8": "--model.network.channels",
    "train x --learning-rate 1": "--lr",
    "train x --resolution 64": "--size",
    "train x --epochs 3": "--max-steps",
    "sample x --stpes 3": "--steps",
    "evaluate x --metrcs kid": "--metrics",
    "evaluate x --dryrun": "--dry-run",
    "invert x y.png --iteration 3": "--iterations",
    "restore x y.png --upsacle 2": "--upscale",
    "compare x --imagse 8": "--images",
    "reconstruct x y --btach 8": "--batch",
    "export x --uot y": "--out",
    "doctor x --resise crop": "--resize",
    "demo --minuts 3": "--minutes",
}


@pytest.mark.parametrize("words", MISSPELT)
def test_every_verb_guesses_what_a_misspelt_option_was_meant_as(words: str) -> None:
    refused(*words.split(), naming=[words.split(" --")[1].split()[0], f"Did you mean {MISSPELT[words]}?"])


# Configuration files


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("data: 5", ["data = 5", "group"]),
        ("- 1\n- 2", ["list"]),
        ("data: [", ["plain YAML"]),
        ("train: {max_stps: 3}", ["train.max_stps", "train.max_steps"]),
        ("training: {max_steps: 3}", ["training", "train"]),
        ("lr: 3", ["lr", "Allowed"]),
        ("train: {lr: true}", ["train.lr", "true"]),
        ("train: {lr: [1]}", ["train.lr"]),
        ("model: {schedule: 5}", ["model.schedule = 5"]),
        ("model: {network: {kind: [1]}}", ["model.network.kind"]),
        ("model: !!python/object/apply:os.system ['true']", ["plain YAML"]),
        ("", ["not a mapping"]),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(text: str, naming: list[str], tmp_path: Path) -> None:
    images = image_folder(tmp_path / "pictures", 1)
    (tmp_path / "c.yaml").write_text(text)
    refused("train", images, "--config", tmp_path / "c.yaml", "--out", tmp_path / "run", *QUICK[:4], naming=naming)
    assert not (tmp_path / "run").exists()


# Runs and checkpoints


def test_a_run_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    refused("sample", tmp_path / "nowhere", naming=["nowhere", "does not exist"])
    (tmp_path / "empty").mkdir()
    refused("sample", tmp_path / "empty", naming=["empty", "not a run"])
    refused("sample", image_folder(tmp_path / "pictures"), naming=["pictures", "not a run"])
    refused("sample", tmp_path / "pictures" / "0.png", naming=["0.png"])
    refused("sample", naming=["kuosan sample RUN"])


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(run: Path) -> None:
    weights = newest(run) / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    said = kuosan("sample", run, *SAMPLE)
    assert said.code == 0 and "warning" in said.out and "ema.safetensors" in said.out and "step 0" in said.out
    refused("sample", newest(run), *SAMPLE, naming=["ema.safetensors", "damaged"])


def test_an_edited_checkpoint_is_refused(run: Path) -> None:
    config = newest(run) / "config.yaml"
    stored = config.read_text()
    config.write_text(stored.replace("prediction: x0", "prediction: v"))
    assert config.read_text() != stored
    refused("sample", newest(run), *SAMPLE, naming=["config.yaml", "edited"])


def test_a_checkpoint_of_a_newer_kuosan_is_refused(run: Path) -> None:
    path = newest(run) / manifest.NAME
    body = json.loads(path.read_text())
    del body["sha256"]
    body["format"] = 99
    path.write_text(json.dumps(body | {"sha256": manifest._own_sha256(body)}))
    refused("sample", newest(run), *SAMPLE, naming=["99", "update kuosan"])


def test_a_pickled_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> object:
            return os.mkdir, (str(ran),)

    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Trap()))
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name in ("model.ckpt", "model.safetensors"):
        refused("sample", tmp_path / name, naming=[name, "run code when opened"])
        refused("train", "portraits", "--init", tmp_path / name, "--out", tmp_path / "x", *QUICK, naming=[name])
    assert not ran.exists() and not (tmp_path / "x").exists()


def test_a_run_of_no_step_says_that_it_makes_noise(run: Path, tmp_path: Path) -> None:
    first = run / "checkpoints" / "step-00000000"
    image = image_folder(tmp_path / "pictures", 1) / "0.png"
    out = tmp_path / "out"
    for words in (["sample", first, *SAMPLE], ["restore", first, image, "--noise", 9, "--steps", 2],
                  ["invert", first, image, "--steps", 2]):  # fmt: skip
        said = kuosan(*words, "--out", out / str(words[0]))
        assert said.code == 0, said
        assert said.err.startswith(f"kuosan: warning: {first} is of step 0, before any training"), said
        assert said.err.count("\n") == 1
    assert "noise" in kuosan("export", first, "--out", out / "export").err
    assert kuosan("sample", run, *SAMPLE, "--out", out / "trained").err == ""
    # one that began from another run's weights makes what that run does
    words = [word if word != "3" else "1" for word in QUICK]
    said = kuosan("train", image.parent, *words, "--init", run, "--out", tmp_path / "second")
    assert said.code == 0, said
    begun = tmp_path / "second" / "checkpoints" / "step-00000000"
    assert kuosan("sample", begun, *SAMPLE, "--out", out / "begun").err == ""


def test_images_with_nan_weights_are_not_written(run: Path, tmp_path: Path) -> None:
    from kuosan.storage import checkpoint

    saved = checkpoint.load(run)
    bad = {name: tensor * float("nan") if tensor.is_floating_point() else tensor for name, tensor in saved.ema.items()}
    # as if written by a run without the guard
    from safetensors.torch import save_file

    save_file(bad, newest(run) / "ema.safetensors")
    (newest(run) / manifest.NAME).unlink()
    (newest(run) / manifest.NAME).write_bytes(manifest.describe(newest(run)))
    refused("sample", newest(run), *SAMPLE, "--out", tmp_path / "out", naming=["NaN", "diverged"])
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_folder_of_something_else_is_not_trained_into(tmp_path: Path) -> None:
    images, other = image_folder(tmp_path / "pictures"), tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    refused("train", images, "--out", other, *QUICK, naming=["thesis", "not empty", "--out"])
    refused("train", images, "--out", other / "thesis.tex", *QUICK, naming=["thesis.tex"])
    refused("train", images, "--out", images, *QUICK, naming=["pictures"])
    assert tree(other) == {"thesis.tex": b"precious"}


def test_another_configuration_is_not_trained_into_a_run(run: Path, tmp_path: Path) -> None:
    before = tree(run)
    refused("train", "--out", run, "--clip", "0.5", naming=["train.clip", "1.0", "0.5", "--out ANOTHER", "--init"])
    refused("train", "--out", run, "--schedule", "flow", naming=["model.schedule.kind", "flow", "discrete"])
    other = image_folder(tmp_path / "other", 3, side=9)
    same = [*QUICK, "--data.hold_out", "0"]
    refused("train", other, "--out", run, *same, naming=["images are not the ones", "--accept-new-data"])
    refused("train", "--out", run, "--init", run, naming=["--init", "ignored"])
    assert tree(run) == before


def test_a_run_of_ones_own_network_is_for_python(run: Path) -> None:
    for path in (run / "config.yaml",):
        tree_ = yaml.safe_load(path.read_text())
        tree_["model"]["network"] = {"kind": "own", "name": "MyNet"}
        path.write_text(yaml.safe_dump(tree_))
    refused("sample", run, *SAMPLE, naming=["MyNet", "kuosan.load"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_without_permission_to_write_nothing_starts(run: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused("train", image_folder(tmp_path / "p"), "--out", locked / "run", *QUICK, naming=["locked"], code=74)
    refused("sample", run, *SAMPLE, "--out", locked / "x", naming=["locked"], code=74)


def test_a_file_in_the_way_of_the_images_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused("sample", run, *SAMPLE, "--out", tmp_path / "file", naming=["file is a file", "name a folder"])
    refused("sample", run, *SAMPLE, "--out", tmp_path / "file" / "x", naming=["file/x", "is a file"], code=74)
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_while_sampling_keeps_what_is_finished(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kuosan.sample import write

    real = write.images

    def images(folder: Path, made: torch.Tensor, recipe: Recipe, first: int) -> object:
        if first == 2:
            raise KeyboardInterrupt
        return real(folder, made, recipe, first)

    monkeypatch.setattr(write, "images", images)
    said = kuosan("sample", run, "-n", 4, "--batch", 2, "--steps", 1, "--out", tmp_path / "out")
    assert said.code == 130 and said.err == "kuosan: stopped.\n"
    assert "stopped: 2 of 4 images are finished" in said.out
    assert len(list((tmp_path / "out").glob("seed-*.png"))) == 2
