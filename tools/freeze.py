"""Records what kuosan does from the shell, and compares two versions of it on one machine.

    python tools/freeze.py against 47b8b58           the version of that commit against this working tree
    python tools/freeze.py record FILE [SECTION ...]  of the kuosan that this Python imports
    python tools/freeze.py compare OLD NEW

Sections: `help` (every option name of every verb), `runs` (loss curves and weights of tiny trainings, every setting
that shows typed), `images` (pixels of sampled and restored images), `results` (figures of the evaluators), `refusals`
(exit code, and that the message names the thing and the value). Bits depend on the processor, so both sides are always
recorded in one go. Wordings may differ; options may be added, none may go.
"""
# ruff: noqa: E501 (tables of commands)

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "KUOSAN_CACHE": "", "COLUMNS": "200", "NO_COLOR": "1"}
ROOT = Path(__file__).resolve().parent.parent
VERBS = ("train", "sample", "restore", "evaluate", "compare", "reconstruct", "invert", "export", "doctor", "demo")
SECTIONS = ("help", "runs", "images", "results", "refusals")
Record = dict[str, Any]

# ---------------------------------------------------------------- the shell in this process


def shell(*words: object) -> tuple[int, str]:
    """`kuosan WORDS`: its exit code (1 for a traceback) and all that it said."""
    from kuosan.cli import console, main

    said = io.StringIO()
    code: object = 0
    console.console.file = said
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    except Exception as error:  # a traceback is a result here, named
        said.write(f"TRACEBACK {type(error).__name__}: {error}")
        code = 1
    finally:
        console.console.file = sys.stdout
    return (code if isinstance(code, int) else 0), said.getvalue()


def must(*words: object) -> str:
    """The same, where it has to succeed."""
    code, said = shell(*words)
    if code:
        raise SystemExit(f"freeze: kuosan {' '.join(map(str, words))} ended with {code}:\n{said[-2000:]}")
    return said


# ---------------------------------------------------------------- inputs


def inputs(home: Path) -> None:
    """Small images of smooth colours: in class folders, of several shapes, with captions, with transparency."""
    import numpy as np
    from PIL import Image

    def image(i: int, width: int = 16, height: int = 16, channels: int = 3) -> Image.Image:
        cells = np.random.default_rng([i, channels]).integers(0, 256, (4, 4, channels), dtype=np.uint8)
        return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)

    for i in range(24):
        for folder in ("plain", f"classes/{'red' if i % 2 else 'blue'}", "captions"):
            (home / folder).mkdir(parents=True, exist_ok=True)
            image(i).save(home / folder / f"{i:02}.png")
        (home / "shapes").mkdir(exist_ok=True)
        image(i, 24 if i % 3 else 16, 16 if i % 3 else 24).save(home / "shapes" / f"{i:02}.png")
        (home / "captions" / f"{i:02}.txt").write_text(f"a {'red' if i % 2 else 'blue'} thing, number {i}")
    image(99, channels=3).save(home / "one.png")
    image(98, 8, 8).save(home / "small.png")
    hole = np.zeros((16, 16), np.uint8)
    hole[4:10, 5:12] = 255
    Image.fromarray(hole).save(home / "mask.png")


NETWORK = ["--model.network.channels", "32", "--model.network.multipliers", "1,2", "--model.network.blocks", "1",
           "--model.network.attention", "false,true", "--model.network.groups", "8", "--model.network.patch", "1",
           "--model.network.middle_attention", "true", "--model.network.time_conditioning", "add"]  # fmt: skip
TRAINING = ["--lr", "1e-3", "--lr-shape", "constant", "--warmup", "2", "--clip", "1.0", "--weight", "simple",
            "--train.ema", "0.1", "--seed", "3", "--save-every", "3", "--keep", "2", "--evaluate-every", "0",
            "--preview-every", "0", "--precision", "fp32", "--threads", "1", "--workers", "0",
            "--device", "cpu"]  # fmt: skip
STEPS = ["--max-steps", "6", "--batch", "6", "--micro-batch", "3"]
SIZE = ["--size", "16", "--channels", "rgb", "--hold-out", "0"]
LINEAR = ["--schedule", "discrete", "--model.schedule.betas", "linear", "--prediction", "v"]
COSINE = ["--schedule", "discrete", "--model.schedule.betas", "cosine", "--prediction", "x0"]
DENOISER = [*SIZE, *NETWORK, *TRAINING, *STEPS]
RUNS: dict[str, list[str]] = {
    "pixels": ["plain", *DENOISER, *LINEAR],
    "classes": ["classes", *DENOISER, *COSINE, "--labels", "--drop", "0.2", "--weight", "min_snr"],
    "importance": ["plain", *DENOISER, *LINEAR, "--prediction", "eps", "--learned-variance", "--loss", "vlb", "--weight",
                   "simple", "--t-sampling", "importance"],
    "held-out": ["plain", *DENOISER, *LINEAR, "--hold-out", "0.3"],
    "flow": ["plain", *DENOISER, "--schedule", "flow", "--prediction", "flow"],
    "karras": ["plain", *DENOISER, "--schedule", "karras", "--prediction", "edm"],
    "buckets": ["shapes", *DENOISER, *LINEAR, "--data.resize", "buckets", "--data.bucket-step", "4"],
    "text": ["captions", *DENOISER, *LINEAR, "--text", "bytes", "--model.text.length", "32"],
    "super-resolution": ["plain", *DENOISER, *COSINE, "--task", "super_resolution", "--scale", "2",
                         "--model.network.concat-skip", "true"],
    "inpainting": ["plain", *DENOISER, *LINEAR, "--task", "inpainting"],
    "classifier": ["classes", *SIZE, *TRAINING, *STEPS, "--objective", "classifier", "--labels",
                   "--model.schedule.betas", "linear", "--model.network.channels", "32",
                   "--model.network.multipliers", "1,2", "--model.network.attention", "false,true",
                   "--model.network.groups", "8"],
    "autoencoder": ["plain", *SIZE, *TRAINING, *STEPS, "--objective", "autoencoder",
                    "--model.network.channels", "8", "--model.network.multipliers", "1,2",
                    "--model.network.blocks", "1", "--model.network.groups", "4", "--model.network.patch", "1",
                    "--train.autoencoder.perceptual", "0", "--train.autoencoder.critic-start", "1", "--model.network.critic-layers", "1"],
    "latents": ["plain", *DENOISER, *LINEAR, "--codec", "runs/autoencoder"],
}  # fmt: skip


def latest(words: list[str]) -> list[str]:
    """The words with each option once, as it was typed last."""
    pairs: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") or not pairs:
            pairs.pop(word, None)
            pairs[word] = []
        else:
            pairs[next(reversed(pairs))].append(word)
    return [word for option, values in pairs.items() for word in (option, *values)]


def runs() -> Record:
    """Each run trained, stopped halfway, and gone on with: its losses, and the bits of its weights."""
    record: Record = {}
    for name, typed in RUNS.items():
        words = latest(typed)
        first = [*words, "--out", f"runs/{name}"]
        first[first.index("--max-steps") + 1] = "3"
        must("train", *first)
        must("train", *words, "--out", f"runs/{name}")
        record[name] = {"losses": losses(Path("runs") / name), "weights": weights(Path("runs") / name)}
    return record


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if line.strip()]
    return [row["loss"] for row in rows if "loss" in row]


def weights(run: Path) -> str:
    """SHA-256 of the newest save's averaged weights, by name; whatever their file looks like around them."""
    from safetensors import safe_open

    newest = max(run.rglob("ema.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    digest = hashlib.sha256()
    with safe_open(newest, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(dtype=__import__("torch").uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- images

EXACT = ["--exact", "--precision", "fp32", "--threads", "1", "--device", "cpu"]
FEW = ["-n", "2", "--steps", "5", "--seed", "5"]
SAMPLERS = ("ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpm_solver_2s", "dpm_solver_2m", "dpm_solver_3m",
            "dpm_solver_3m_corrected", "dpm_solver_2s_sde", "dpm_solver_2m_sde", "dpm_solver_3m_sde", "unipc",
            "unipc_3", "plms", "pndm")  # fmt: skip
RESTORE = ["--precision", "fp32", "--threads", "1", "--device", "cpu", "--seed", "5", "--steps", "5"]
IMAGES: dict[str, list[str]] = {
    **{f"sampler {name}": ["sample", "runs/pixels", *FEW, *EXACT, "--sampler", name] for name in SAMPLERS},
    "spacing log_snr": ["sample", "runs/pixels", *FEW, *EXACT, "--spacing", "log_snr"],
    "spacing leading": ["sample", "runs/pixels", *FEW, *EXACT, "--spacing", "leading", "--sampler", "ddim"],
    "eta": ["sample", "runs/pixels", *FEW, *EXACT, "--sampler", "ddim", "--eta", "0.5"],
    "churn": ["sample", "runs/karras", *FEW, *EXACT, "--sampler", "heun", "--s-churn", "4"],
    "karras": ["sample", "runs/karras", *FEW, *EXACT],
    "flow": ["sample", "runs/flow", *FEW, *EXACT, "--sampler", "euler"],
    "learned variance": ["sample", "runs/importance", *FEW, *EXACT, "--sampler", "ddpm", "--variance", "learned"],
    "no clip": ["sample", "runs/pixels", *FEW, *EXACT, "--no-clip"],
    "threshold": ["sample", "runs/pixels", *FEW, *EXACT, "--threshold", "90"],
    "between": ["sample", "runs/pixels", *FEW[:4], *EXACT, "--between", "3", "9", "--sampler", "ddim"],
    "image to image": ["sample", "runs/pixels", *FEW, *EXACT, "--image", "one.png", "--strength", "0.5"],
    "class": ["sample", "runs/classes", *FEW, *EXACT, "--class", "red"],
    "guidance": ["sample", "runs/classes", *FEW, *EXACT, "--class", "red", "--guidance", "3"],
    "negative class": ["sample", "runs/classes", *FEW, *EXACT, "--class", "red", "--guidance", "3", "--negative", "blue"],
    "interval and rescale": ["sample", "runs/classes", *FEW, *EXACT, "--class", "red", "--guidance", "3",
                             "--guidance-interval", "0.3", "5", "--guidance-rescale", "0.7"],
    "classifier": ["sample", "runs/pixels", *FEW, *EXACT, "--classifier", "runs/classifier", "--class", "red",
                   "--classifier-scale", "2"],
    "prompt": ["sample", "runs/text", *FEW, *EXACT, "--prompt", "a red thing"],
    "prompt, guidance": ["sample", "runs/text", *FEW, *EXACT, "--prompt", "a (red:1.4) thing", "--guidance", "4",
                         "--negative", "a blue thing"],
    "latents": ["sample", "runs/latents", *FEW, *EXACT],
    "buckets": ["sample", "runs/buckets", *FEW, *EXACT, "--aspect", "3:2"],
    "restore ddnm": ["restore", "runs/pixels", "one.png", "--mask", "mask.png", "--method", "ddnm", *RESTORE],
    "restore pigdm": ["restore", "runs/pixels", "one.png", "--mask", "mask.png", "--method", "pigdm", *RESTORE],
    "restore dps": ["restore", "runs/pixels", "one.png", "--mask", "mask.png", "--method", "dps", *RESTORE],
    "restore repaint": ["restore", "runs/pixels", "one.png", "--mask", "mask.png", "--method", "repaint", "--jumps", "2",
                        "--jump-length", "2", *RESTORE],
    "restore upscale": ["restore", "runs/super-resolution", "small.png", "--upscale", "2", *RESTORE],
    "restore inpainting": ["restore", "runs/inpainting", "one.png", "--mask", "mask.png", *RESTORE],
    "restore deblur, noise": ["restore", "runs/pixels", "one.png", "--deblur", "1", "--noise", "5", *RESTORE],
    "restore latents": ["restore", "runs/latents", "one.png", "--mask", "mask.png", *RESTORE],
    "invert": ["invert", "runs/pixels", "one.png", "--steps", "5", "--precision", "fp32", "--threads", "1"],
}  # fmt: skip


def images() -> Record:
    """The pixels of every image that each command writes, by file name."""
    record: Record = {}
    for name, words in IMAGES.items():
        out = Path("made") / re.sub(r"\W+", "-", name)
        must(*words, "--out", out)
        record[name] = {str(path.relative_to(out)): pixels(path) for path in sorted(out.rglob("*.png"))}
        assert record[name], name
    return record


def pixels(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


# ---------------------------------------------------------------- results

RESULTS: dict[str, list[str]] = {
    "evaluate a run": ["evaluate", "runs/pixels", "--metrics", "kid", "--metrics", "prdc", "-n", "12", "--steps", "3",
                       "--request.exact", "true", "--precision", "fp32", "--threads", "1"],
    "evaluate a sweep": ["evaluate", "runs/pixels", "--metrics", "kid", "-n", "8", "--sweep", "steps=2,3",
                         "--precision", "fp32", "--threads", "1"],
    "likelihood": ["evaluate", "runs/held-out", "--likelihood", "--likelihood-pictures", "4", "--ode-pictures", "2", "--ode-steps", "3",
                   "--precision", "fp32", "--threads", "1"],
    "compare": ["compare", "plain", "--with", "runs/pixels:ddnm,steps=3", "--mask", "4,4,8,8", "--force", "-n", "4",
                "--precision", "fp32", "--threads", "1"],
    "reconstruct": ["reconstruct", "runs/autoencoder", "plain", "--force", "-n", "8", "--precision", "fp32", "--threads", "1"],
}  # fmt: skip
UNSTABLE = re.compile(r"second|time|path|date|version|commit|machine|speed|command|name|out|run$|folder", re.IGNORECASE)


def results() -> Record:
    """The numbers of each evaluator's result.json, by their place in it; None where a command does not go through."""
    record: Record = {}
    for name, words in RESULTS.items():
        out = Path("results") / re.sub(r"\W+", "-", name)
        code, said = shell(*words, "--out", out)
        if code:
            record[name] = {"code": code, "said": said.strip().splitlines()[-1][:300] if said.strip() else ""}
            continue
        found = json.loads(next(out.glob("*.json")).read_text())  # result.json, reconstruction.json
        record[name] = dict(numbers(found, ""))
    return record


def numbers(tree: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not UNSTABLE.search(str(key)):
                yield from numbers(value, f"{place}/{key}")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from numbers(value, f"{place}/{i}")
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield place, tree


# ---------------------------------------------------------------- refusals

FRESH = ["plain", "--network", "tiny", "--max-steps", "1", "--batch", "2", "--threads", "1", "--dry-run"]
NUMBERS = {
    "train.max_steps": ("0", "-3", "many"),
    "train.batch": ("0", "-1", "2.5", "many"),
    "train.micro_batch": ("-1", "many"),
    "train.lr": ("0", "-1", "nan", "inf", "fast"),
    "train.warmup": ("-1", "slow"),
    "train.lr_shape": ("sine", "1"),
    "train.weight_decay": ("-1", "nan", "x"),
    "train.clip": ("-1", "nan", "x"),
    "train.loss": ("l2", "mse"),
    "train.weight": ("snrr", "min-snrr"),
    "train.min_snr_gamma": ("0", "-5", "nan"),
    "train.p2_k": ("0", "-1"),
    "train.p2_gamma": ("0", "nan"),
    "train.vlb_weight": ("-1", "nan"),
    "train.vlb_variance": ("learned", "x"),
    "train.t_sampling": ("even", "normal"),
    "train.t_std": ("0", "-1"),
    "train.offset_noise": ("-1", "nan"),
    "train.ema": ("-0.1", "nan", "2"),
    "train.seed": ("-1", "x"),
    "train.save_every": ("0", "-1"),
    "train.keep": ("1", "0", "-1"),
    "train.evaluate_every": ("-1", "x"),
    "train.evaluate_pictures": ("0", "-1"),
    "train.preview_every": ("-1", "x"),
    "train.objective": ("gan", "score"),
    "data.size": ("0", "-8", "big"),
    "data.channels": ("bgr", "3"),
    "data.resize": ("cut", "zoom"),
    "data.background": ("pinkish", "#12"),
    "data.hold_out": ("-0.1", "1.5", "nan"),
    "data.memory_gib": ("-1", "nan"),
    "data.workers": ("-1", "x"),
    "data.max_pixels": ("0", "-5"),
    "data.flip": ("maybe", "2"),
    "model.prediction": ("score", "x1"),
    "model.sigma_data": ("0", "-1"),
    "model.schedule.kind": ("linear", "ddpm"),
    "model.schedule.betas": ("square", "log"),
    "model.schedule.T": ("0", "-1", "many"),
    "model.schedule.beta_start": ("0", "2"),
    "model.schedule.beta_end": ("0", "1.5"),
    "model.network.kind": ("vit", "cnn"),
    "model.network.channels": ("0", "7", "wide"),
    "model.network.multipliers": ("0", "a"),
    "model.network.blocks": ("0", "-1"),
    "model.network.groups": ("0", "7"),
    "model.network.dropout": ("1.5", "-0.1", "nan"),
    "model.network.patch": ("3", "0"),
    "model.network.norm_eps": ("0", "-1"),
    "model.task.kind": ("colouring", "sr"),
    "model.text.kind": ("letters", "clip"),
    "model.learned_variance": ("perhaps",),
    "model.network.middle_attention": ("perhaps",),
    "model.network.head_channels": ("0", "-8"),
    "model.network.time_conditioning": ("concat",),
    "model.network.resample": ("pool",),
    "model.network.freq_shift": ("-1", "nan"),
    "model.network.cos_first": ("perhaps",),
    "model.network.attention": ("perhaps",),
    "model.schedule.zero_terminal_snr": ("perhaps",),
    "train.autoencoder.kl": ("-1", "nan"),
    "train.autoencoder.critic": ("-1", "nan"),
    "train.preview_pictures": ("0", "-1"),
    "train.preview_steps": ("0", "-1"),
    "train.betas": ("2,2", "x"),
    "train.uncaptioned": ("drop",),
    "data.label_column": ("",),
    "data.bucket_aspect": ("0.5", "99"),
    "compute.precision": ("fp8", "double"),
    "compute.threads": ("-1", "x"),
    "compute.device": ("gpu9", "tpu"),
}
TYPOS = ("maxsteps", "learning", "bach", "sise", "lrr", "network.chanels", "model.shedule.kind", "train.bat", "data.pth",
         "epochsss", "foo", "data.foo", "model.foo", "train.foo", "compute.foo", "model.network.foo")  # fmt: skip
SAMPLE_BAD: dict[str, tuple[str, ...]] = {
    "-n": ("0", "-1", "x"),
    "--seed": ("-1", "x"),
    "--steps": ("0", "-1", "20000", "x"),
    "--sampler": ("dimm", "dpm", "k_lms"),
    "--spacing": ("even", "lin"),
    "--eta": ("2", "-1", "nan", "x"),
    "--variance": ("small", "x"),
    "--s-churn": ("-1", "nan"),
    "--guidance": ("-1", "2000", "nan"),
    "--guidance-rescale": ("2", "-1"),
    "--class": ("cat", "9"),
    "--prompt": ("hello",),
    "--negative": ("dull",),
    "--classifier": ("runs/none",),
    "--reference": ("runs/none",),
    "--threshold": ("0.99", "0", "200"),
    "--image": ("none.png",),
    "--strength": ("0", "2"),
    "--size": ("0", "x", "24x24"),
    "--aspect": ("wide", "3:0"),
    "--batch": ("0", "-1", "9999"),
    "--precision": ("fp8",),
    "--threads": ("-1", "x"),
    "--device": ("tpu",),
    "--like": ("none.png", "one.png"),
    "--columns": ("0", "x"),
    "--foo": ("1",),
}
RESTORE_BAD: dict[str, tuple[str, ...]] = {
    "--mask": ("none.png", "box:1", "box:0,0,99,99", "small.png"),
    "--upscale": ("0", "1", "x"),
    "--deblur": ("0", "-1", "x"),
    "--noise": ("-1", "500", "nan"),
    "--outpaint": ("-1", "x"),
    "--method": ("magic", "repaimt"),
    "--push": ("0", "1000"),
    "--jumps": ("0", "-1"),
    "--overlap": ("-1",),
    "--variants": ("0", "-1"),
    "--down": ("nearest",),
    "--fit": ("squash",),
    "--foo": ("1",),
}
OTHERS: list[tuple[list[str], str, str]] = [
    (["sample", "runs/none"], "runs/none", ""),
    (["sample", "plain"], "plain", ""),
    (["sample", "runs/autoencoder"], "autoencoder", ""),
    (["sample", "runs/classifier"], "classifier", ""),
    (["sample", "runs/super-resolution"], "restore", ""),
    (["restore", "runs/none", "one.png", "--mask", "mask.png"], "runs/none", ""),
    (["restore", "runs/pixels", "none.png", "--mask", "mask.png"], "none.png", ""),
    (["restore", "runs/pixels", "one.png"], "nothing", ""),
    (["evaluate", "runs/none"], "runs/none", ""),
    (["evaluate", "runs/pixels", "--metrics", "beauty"], "beauty", "metric"),
    (["evaluate", "runs/pixels", "--features", "vgg"], "vgg", "features"),
    (["evaluate", "runs/pixels", "--sweep", "speed=1,2"], "speed", ""),
    (["evaluate", "runs/pixels", "--sweep", "steps"], "steps", ""),
    (["evaluate", "plain"], "against", ""),
    (["evaluate", "runs/pixels", "-n", "0"], "0", ""),
    (["compare", "plain"], "with", ""),
    (["compare", "plain", "--with", "runs/none", "--mask", "half"], "runs/none", ""),
    (["compare", "plain", "--with", "runs/pixels:magic", "--mask", "half"], "magic", "method"),
    (["compare", "plain", "--with", "runs/pixels,foo=1", "--mask", "half"], "foo", ""),
    (["compare", "none", "--with", "runs/pixels", "--mask", "half"], "none", ""),
    (["reconstruct", "runs/none"], "runs/none", ""),
    (["reconstruct", "runs/pixels"], "runs/pixels", ""),
    (["reconstruct", "runs/autoencoder", "none"], "none", ""),
    (["invert", "runs/none", "one.png"], "runs/none", ""),
    (["invert", "runs/pixels", "none.png"], "none.png", ""),
    (["invert", "runs/pixels", "one.png", "--steps", "0"], "0", "steps"),
    (["invert", "runs/pixels", "one.png", "--iterations", "-1"], "-1", "iterations"),
    (["export", "runs/none", "--out", "exported"], "runs/none", ""),
    (["export", "runs/pixels", "--out", "plain"], "plain", ""),
    (["doctor", "none"], "none", ""),
    (["doctor", "plain", "--size", "0"], "0", "size"),
    (["doctor", "plain", "--resize", "cut"], "cut", "resize"),
    (["doctor", "plain", "--foo", "1"], "foo", ""),
    (["train", "none"], "none", ""),
    (["train", "mask.png"], "mask.png", ""),
    (["train", "plain", "--config", "none.yaml"], "none.yaml", ""),
    (["train", "plain", "--init", "runs/none", *FRESH[1:]], "runs/none", ""),
    (["train", "plain", "--codec", "runs/none", *FRESH[1:]], "runs/none", ""),
    (["train", "plain", "--codec", "runs/pixels", *FRESH[1:]], "runs/pixels", ""),
    (["train", "plain", "--labels", *FRESH[1:]], "classes", ""),
    (["train", "plain", "--text", "bytes", *FRESH[1:]], "caption", ""),
    (["train", "plain", "--text", "encoder", *FRESH[1:]], "encoder", ""),
    (["train", "plain", "--task", "super_resolution", "--scale", "5", "--size", "16", *FRESH[1:]], "5", "scale"),
    (["train", "plain", "--out", "plain", *FRESH[1:]], "plain", ""),
    (["train", "plain", "--prediction", "eps", "--zero-terminal-snr", *FRESH[1:]], "eps", "zero_terminal_snr"),
    (["train", "plain", "--learned-variance", "--loss", "simple", *FRESH[1:]], "learned_variance", ""),
    (["train", "plain", "--p2-k", "2", "--weight", "simple", *FRESH[1:]], "p2_k", "2"),
    (["train", "plain", "--t-mean", "1", *FRESH[1:]], "t_mean", "1"),
    (["train", "plain", "--bucket-step", "4", *FRESH[1:]], "bucket_step", "4"),
    (["train", "plain", "--drop", "0.3", *FRESH[1:]], "drop", "0.3"),
    (["train", "plain", "--scale", "2", *FRESH[1:]], "scale", "2"),
    (["train", "plain", "--min-snr-gamma", "3", "--weight", "simple", *FRESH[1:]], "min_snr_gamma", "3"),
    (["train", "plain", "--vlb-weight", "0.1", *FRESH[1:]], "vlb_weight", "0.1"),
    (["train", "plain", "--uncaptioned", "empty", *FRESH[1:]], "uncaptioned", "empty"),
    (["train", "plain", "--data.size", "16", "--size", "24", *FRESH[1:]], "size", "24"),
    (["train", "plain", "--batch", "4", *FRESH[1:]], "batch", "twice"),
    (["frobnicate"], "frobnicate", ""),
    (["sample"], "sample", ""),
]


def cases() -> Iterator[tuple[str, list[str], str, str]]:
    """(name, words, thing, value) of every refusal; thing and value must stand in the message."""
    for key, values in NUMBERS.items():
        for value in values:
            yield f"train --{key} {value}", ["train", *FRESH, f"--{key}={value}"], key.rsplit(".", 1)[-1], value
    for key in TYPOS:
        yield f"train --{key}", ["train", *FRESH, f"--{key}=1"], key, ""
    for verb, start, table in (
        ("sample", ["runs/pixels", "--out", "refused"], SAMPLE_BAD),
        ("restore", ["runs/pixels", "one.png", "--out", "refused"], RESTORE_BAD),
    ):
        for option, values in table.items():
            for value in values:
                yield f"{verb} {option} {value}", [verb, *start, f"{option}={value}"], option.strip("-"), value
    for words, thing, value in OTHERS:
        yield (
            " ".join(words),
            [*words, *([] if "--out" in words or len(words) < 2 else ["--out", "refused"])],
            thing,
            value,
        )


def refusals() -> Record:
    """Exit codes, and whether the message names the thing and the value (hyphens and underscores are one)."""
    record: Record = {}
    for name, words, thing, value in cases():
        code, said = shell(*words)
        plain = said.replace("-", "_").lower()
        record[name] = {
            "code": code,
            "traceback": "TRACEBACK" in said,
            "thing": thing.replace("-", "_").lower() in plain,
            "value": value.replace("-", "_").lower() in plain,
        }
    return record


def options() -> Record:
    """The names of every verb's options, as --help and, where there is one, --help-all print them."""
    record: Record = {}
    for verb in VERBS:
        said = must(verb, "--help")
        code, more = shell(verb, "--help-all")
        record[verb] = sorted(set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", said + (more if code == 0 else ""))))
    return record


# ---------------------------------------------------------------- record and compare

RECORDERS: dict[str, Callable[[], Record]] = {
    "help": options,
    "runs": runs,
    "images": images,
    "results": results,
    "refusals": refusals,
}


def record(sections: tuple[str, ...] = SECTIONS) -> Record:
    """What the kuosan that this Python imports does; in a folder of its own."""
    import warnings

    warnings.simplefilter("ignore")
    found: Record = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        os.environ["KUOSAN_CACHE"] = str(Path(home) / "cache")
        try:
            inputs(Path(home))
            needed = [name for name in SECTIONS if name in sections or (name == "runs" and set(sections) != {"help"})]
            for name in needed:
                found[name] = RECORDERS[name]()
                print(f"freeze: {name}: {len(found[name])} recorded", file=sys.stderr, flush=True)
        finally:
            os.chdir(before)
    return found


def differences(old: Record, new: Record) -> Iterator[str]:
    """A line for each thing that the new side does otherwise."""
    for section in SECTIONS:
        if section not in old or section not in new:
            continue
        for name, before in old[section].items():
            after = new[section].get(name)
            if after is None:
                yield f"{section}: {name}: gone"
            elif section == "help":
                gone = sorted(set(map(plain_option, before)) - set(map(plain_option, after)))
                if gone:
                    yield f"help: {name}: without {', '.join(gone)}"
            elif section == "refusals":
                worse = [key for key in ("thing", "value") if before[key] and not after[key]]
                if before["code"] != after["code"] or after["traceback"] or worse:
                    yield f"refusals: {name}: {before} -> {after}"
            elif section == "results" and "code" not in before and "code" not in after:
                lost = [place for place in before if not same(before[place], after.get(place))]
                if lost:
                    yield f"results: {name}: {len(lost)} of {len(before)} numbers, as {lost[0]}: " + (
                        f"{before[lost[0]]} -> {after.get(lost[0])}"
                    )
            elif before != after:
                keys = [key for key in before if isinstance(after, dict) and before[key] != after.get(key)]
                yield f"{section}: {name}: another {', '.join(keys) or 'value'}"


def plain_option(name: str) -> str:
    """An option's name however it is spelt."""
    return name.lstrip("-").replace("_", "-")


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, int | float) or not isinstance(b, int | float):
        return bool(a == b)
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def against(commit: str, sections: tuple[str, ...]) -> int:
    """Both sides recorded here and now, and their differences printed; the number of them."""
    records = []
    with tempfile.TemporaryDirectory() as home:
        tree = Path(home) / "old"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", tree, commit], check=True)  # noqa: S603, S607
        try:
            for side in (tree, ROOT):
                out = Path(home) / f"{len(records)}.json"
                words = [sys.executable, __file__, "record", str(out), *sections]
                subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": str(side / "src")}, cwd=home)  # noqa: S603
                records.append(json.loads(out.read_text()))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)  # noqa: S603, S607
    return report(*records)


def report(old: Record, new: Record) -> int:
    lines = list(differences(old, new))
    for line in lines:
        print(line)
    counts = ", ".join(f"{len(old[name])} {name}" for name in SECTIONS if name in old)
    print(f"freeze: {counts}: {len(lines)} differences")
    return len(lines)


def main(words: list[str]) -> int:
    match words:
        case ["record", out, *sections]:
            Path(out).write_text(json.dumps(record(tuple(sections) or SECTIONS), indent=1, sort_keys=True))
            return 0
        case ["compare", old, new]:
            return min(1, report(json.loads(Path(old).read_text()), json.loads(Path(new).read_text())))
        case ["against", commit, *sections]:
            return min(1, against(commit, tuple(sections) or SECTIONS))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
