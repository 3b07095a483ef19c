"""`kuosan restore`: fill holes, enlarge, deblur, colour or denoise pictures with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.numbers import Whole, whole
from kuosan.cli.sample import stored
from kuosan.device import ComputeConfig
from kuosan.diffusion import names
from kuosan.errors import Error
from kuosan.sample import restoration as restoring
from kuosan.sample.request import Request
from kuosan.sample.restoration import Restoration

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")


def restore(
    run: Path,
    *pictures: Path,
    mask: str | None = None,
    outpaint: str | None = None,
    upscale: Whole | None = None,
    down: Literal["area", "bicubic"] | None = None,
    deblur: Annotated[float | None, Parameter(negative=())] = None,
    colorise: Annotated[bool, Parameter(name=["--colorise", "--colorize"], negative=())] = False,
    noise: float = 0.0,
    method: str | None = None,
    push: float | None = None,
    jumps: Whole | None = None,
    jump_length: Whole | None = None,
    variants: Annotated[int, Parameter(name=["--variants", "-n"], converter=whole)] = 1,
    seed: Whole = 0,
    sampler: str | None = None,
    steps: Whole | None = None,
    spacing: str | None = None,
    eta: float | None = None,
    variance: str | None = None,
    classes: Annotated[list[str] | None, Parameter(name="--class", negative=())] = None,
    prompts: Annotated[list[str] | None, Parameter(name="--prompt", negative=())] = None,
    guidance: Annotated[float | None, Parameter(name=["--guidance", "--guidance-scale", "--cfg"])] = None,
    negative: Annotated[str | None, Parameter(name="--negative")] = None,
    fit: Annotated[bool, Parameter(negative=())] = False,
    overlap: Whole | None = None,
    batch: Whole = 16,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: Whole = 0,
) -> int:
    """Restore PICTURES with the model in RUN: files, or folders of them; a sheet shows before and after.

    A model trained for super_resolution or inpainting does what it was trained for; a model of whole pictures fills
    holes, enlarges, deblurs, colours and denoises without training for it, by --method.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints.
    pictures
        Picture files, or folders of them, with all that is below.
    mask
        What is to be made anew: a mask file as large as the picture (white is made anew), a folder of such files by the
        pictures' names, `alpha` for where a picture is transparent, or a box x,y,w,h in pixels.
    outpaint
        Pixels to add: one number for all four sides, or LEFT,TOP,RIGHT,BOTTOM.
    upscale
        How many times larger each side becomes; of a model trained for super_resolution its own factor if not given.
    down
        With --upscale: how the picture is taken to have been shrunk, area (if not said) or bicubic.
    deblur
        The standard deviation of the blur that the picture went through, in pixels; 2 is usual.
    colorise
        Make colours for grey pictures.
    noise
        The standard deviation of the noise in the picture, of 255.
    method
        How a model of whole pictures is held to what is known: ddnm, pigdm, dps or repaint; if not said, pigdm for
        holes and ddnm for the rest.
    push
        With --method pigdm or dps: how strongly; 1 if not given.
    jumps
        With --method repaint or ddnm: how often each stretch of the walk is walked; 10 for repaint, 1 for ddnm.
    jump_length
        With --jumps: how many steps each return goes back; 10 if not given.
    variants
        How many answers for each picture; answer k has seed SEED + k.
    seed
        The first answer's seed.
    sampler
        As for `kuosan sample`; the method's usual one if not given.
    steps
        Denoising steps; the method's or sampler's usual number if not given.
    spacing
        Where the steps lie: trailing, leading, linspace, log_snr or karras.
    eta
        The noise of ddim (0 none, to 1 as much as DDPM) and of euler_ancestral.
    variance
        DDPM's variance: beta or posterior.
    classes
        The class of the pictures, by name or number, or `none`, which is meant where none is given.
    prompts
        What is to be seen, where the model understands words; given again, the answers take turns.
    guidance
        Classifier-free guidance: 1 is none, 3 a usual scale.
    negative
        With --guidance: the words (or the class) to lead away from, instead of from nothing.
    fit
        Bring each picture to the model's size first, as the training images were: cut, padded or stretched.
    overlap
        Of the tiles of a picture larger than the model's, in pixels; a quarter of a tile if not given.
    batch
        Tiles or answers computed together.
    out
        The folder to write; one in RUN/restored, by what is done and how, if not given.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the network computes in.
    threads
        Processor threads; 0 lets torch choose.
    """
    if not pictures:
        raise Error("no pictures given: kuosan restore RUN PICTURE [PICTURE ...], or a folder of them.")
    config = stored(run) if (run / "config.yaml").is_file() else None
    if config is not None:  # what a model is trained for goes without saying
        damage = {"mask": mask, "outpaint": outpaint, "deblur": deblur, "colorise": colorise, "upscale": upscale}
        upscale = restoring.implied(config, damage)
    asked = Restoration(
        "", mask=mask, outpaint=sides(outpaint), upscale=upscale, down=down, deblur=deblur, colorise=colorise,
        noise=noise, method=method, push=push, jump_length=jump_length, jumps=jumps, overlap=overlap, fit=fit,
    )  # fmt: skip
    if sampler is not None:
        names.sampler(sampler)
    wanted = Request(
        n=variants, seed=seed, steps=steps, spacing=spacing, eta=eta, variance=variance, classes=tuple(classes or ()),
        prompts=tuple(prompts or ()), guidance=guidance, negative=negative, batch=batch, restoration=asked,
        sampler=sampler or Request().sampler,
    )  # fmt: skip
    files = found(pictures)
    if config is not None:
        from kuosan.sample.plan import choose, refuse_to_itself

        usual = restoring.usual(config, wanted, named=sampler is not None)
        choose(config, usual)
        refuse_to_itself(config, usual)
    from kuosan.cli.restoring import Work

    return Work(run, files, wanted, sampler is not None, out, ComputeConfig(device, precision, threads)).do()


def sides(text: str | None) -> tuple[int, int, int, int] | None:
    """What --outpaint says, as pixels at the left, top, right and bottom.

    Raises:
        Error: neither one whole number nor four.
    """
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if not all(part.isdigit() for part in parts) or len(parts) not in (1, 4):
        raise Error(f"outpaint = {text!r} is not allowed: one number of pixels, or LEFT,TOP,RIGHT,BOTTOM as 0,0,32,0.")
    left, top, right, bottom = [int(part) for part in parts] * (4 // len(parts))
    return left, top, right, bottom


def found(pictures: Sequence[Path]) -> list[Path]:
    """The picture files that were named, folders opened.

    Raises:
        Error: nothing there, or a folder without pictures.
    """
    files: list[Path] = []
    for path in pictures:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise Error(f"{path} holds no picture ({', '.join(suffix[1:] for suffix in SUFFIXES)}).")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise Error(f"there is no picture {path}.")
    return files
