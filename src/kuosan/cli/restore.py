"""`kuosan restore`: fill holes, enlarge, deblur, colour or denoise pictures with a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kuosan.cli.console import bar, say
from kuosan.cli.numbers import Whole, whole
from kuosan.cli.sample import stored
from kuosan.device import ComputeConfig
from kuosan.diffusion import names
from kuosan.errors import Error
from kuosan.sample import restoration as restoring
from kuosan.sample.request import Request
from kuosan.sample.restoration import Restoration

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from kuosan.sample.bring import Brought
    from kuosan.sample.plan import Plan

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
SHEET = 64  # pictures on the sheet at most


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
    guidance: Annotated[float | None, Parameter(name=["--guidance", "--guidance-scale", "--cfg"])] = None,
    fit: Annotated[bool, Parameter(negative=())] = False,
    overlap: Whole | None = None,
    batch: Whole = 16,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    threads: Whole = 0,
) -> None:
    """Restore PICTURES with the model in RUN: files, or folders of them; a sheet shows before and after.

    A model trained for super_resolution or inpainting does what it was trained for; a model of whole pictures fills
    holes, enlarges, deblurs, colours and denoises without training for it, by --method.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints.
    pictures
        Picture files, or folders of them.
    mask
        What is to be made anew: a mask file as large as the picture (white is made anew), a folder of such files by the
        pictures' names, `alpha` for where a picture is transparent, or a box x,y,w,h in pixels.
    outpaint
        Pixels to add: one number for all four sides, or LEFT,TOP,RIGHT,BOTTOM.
    upscale
        How many times larger each side becomes.
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
    guidance
        Classifier-free guidance: 1 is none, 3 a usual scale.
    fit
        Bring each picture to the model's size first: shorter side scaled, centre cut.
    overlap
        Of the tiles of a picture larger than the model's, in pixels; a quarter of a tile if not given.
    batch
        Tiles or answers computed together.
    out
        The folder to write; RUN/restored if not given.
    device
        auto, cpu, cuda, cuda:1 or mps.
    precision
        What the network computes in.
    threads
        Processor threads; 0 lets torch choose.
    """
    if not pictures:
        raise Error("no pictures given: kuosan restore RUN PICTURE [PICTURE ...], or a folder of them.")
    asked = Restoration(
        "", mask=mask, outpaint=sides(outpaint), upscale=upscale, down=down, deblur=deblur, colorise=colorise,
        noise=noise, method=method, push=push, jump_length=jump_length, jumps=jumps, overlap=overlap, fit=fit,
    )  # fmt: skip
    if sampler is not None:
        names.sampler(sampler)
    wanted = Request(
        n=variants, seed=seed, steps=steps, spacing=spacing, eta=eta, variance=variance, classes=tuple(classes or ()),
        guidance=guidance, batch=batch, restoration=asked, sampler=sampler or Request().sampler,
    )  # fmt: skip
    files = found(pictures)
    config = stored(run) if (run / "config.yaml").is_file() else None
    if config is not None:
        from kuosan.sample.plan import choose, refuse_to_itself

        usual = restoring.usual(config, wanted, named=sampler is not None)
        choose(config, usual)
        refuse_to_itself(config, usual)
    Work(run, files, wanted, sampler is not None, out, ComputeConfig(device, precision, threads)).do()


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
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise Error(f"{path} holds no picture ({', '.join(suffix[1:] for suffix in SUFFIXES)}).")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise Error(f"there is no picture {path}.")
    return files


class Work:
    """The pictures of one command: opened one after another, restored, written."""

    def __init__(
        self, run: Path, files: Sequence[Path], wanted: Request, named: bool, out: Path | None, where: ComputeConfig
    ) -> None:
        from kuosan import checkpoint, trained
        from kuosan import files as writing
        from kuosan.device import choose

        self.trained = trained.load(run, compute=choose(where))
        self.request = restoring.usual(self.trained.model.config, wanted, named=named)
        home = run.resolve().parent.parent if run.resolve().parent.name == checkpoint.FOLDER else run
        self.files, self.folder = files, out or home / "restored"
        if any(path.resolve().parent == self.folder.resolve() for path in files):
            raise Error(
                f"--out {self.folder} holds pictures that are to be restored, and would be written over: name another."
            )
        with writing.explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def do(self) -> None:
        """Restore every picture, and lay the sheet."""
        from kuosan.sample.contact import line, sheet
        from kuosan.sample.plan import plan

        say(f"compute: {self.trained.compute}")
        for text in self.trained.damaged:
            say(f"warning: a newer checkpoint is damaged and passed over: {text}")
        self._say_plan(plan(self.trained.model.config, self.request))
        self._look()
        begin, used = time.perf_counter(), {"sheet"}
        lines: list[np.ndarray] = []
        for path in self.files:
            name = path.stem if path.stem not in used else f"{path.stem}-{path.suffix[1:]}"
            while name in used:
                name += "-again"
            used.add(name)
            brought, images = self._restored(path)
            self._write(path, name, brought, images)
            if len(lines) < SHEET:
                lines.append(line(brought.picture, images))
        sheet(self.folder / "sheet.png", lines)
        seconds = time.perf_counter() - begin
        many = len(self.files) * self.request.n
        say(f"{many} picture{'s' * (many > 1)} in {seconds:.1f} s: {self.folder} (sheet.png: before, after)")

    def _look(self) -> None:
        """Open every picture and mask before the first is restored, so that one that is refused costs no work."""
        from kuosan.sample.bring import bring

        wrong = []
        for path in self.files:
            asked = self._request(path).restoration
            assert asked is not None
            try:
                bring(self.trained.model, asked, path, batch=self.request.batch)
            except Error as error:
                wrong.append(str(error))
        if wrong:
            more = f" (and {len(wrong) - 1} more of {len(self.files)} pictures)" if len(wrong) > 1 else ""
            raise Error(f"{wrong[0]}{more} Nothing was restored.")

    def _restored(self, path: Path) -> tuple[Brought, Tensor]:
        import torch

        from kuosan.sample.bring import bring
        from kuosan.sample.generate import generate

        request = self._request(path)
        assert request.restoration is not None
        brought = bring(self.trained.model, request.restoration, path, batch=self.request.batch)
        for note in brought.notes:
            say(f"{path}: {note}")
        frames = generate(brought.model, brought.batched(request), given=brought.given,
                          measurement=brought.measurement)  # fmt: skip
        parts = []
        with bar() as progress:
            task = progress.add_task(path.name, total=None)
            for frame in frames:
                done = frame.first * frame.steps + len(frame.x) * frame.step
                progress.update(task, completed=done, total=request.n * frame.steps)
                if frame.done:
                    parts.append(brought.result(frame.x))
        return brought, torch.cat(parts)

    def _request(self, path: Path) -> Request:
        assert self.request.restoration is not None
        return replace(self.request, restoration=replace(self.request.restoration, picture=str(path)))

    def _write(self, path: Path, name: str, brought: Brought, images: Tensor) -> None:
        from kuosan.data.images import save_png, to_uint8

        recipe = self.trained.recipe(self._request(path), brought.picture, size=(images.shape[3], images.shape[2]))
        for i, picture in enumerate(to_uint8(images.cpu().numpy())):
            own = replace(recipe, picture=i)
            ending = f"-seed-{own.seed:08d}" if self.request.n > 1 else ""
            save_png(self.folder / f"{name}{ending}.png", picture, own.text())

    def _say_plan(self, walk: Plan) -> None:
        asked, trained = self.request.restoration, self.trained
        assert asked is not None
        channels, height, width = trained.model.shape
        how = restoring.METHODS[walk.method] if walk.method else "as the model was trained"
        gradients = ", each with its gradient (about 3 times the cost)" if walk.graded else ""
        say(
            f"model: {trained.name}, step {trained.step}, {width}x{height} {'grey' if channels == 1 else 'colour'}; "
            f"{', '.join(asked.damage) or 'noise'} by {how}: {walk.sampler}, {walk.steps} steps, {walk.evaluations} "
            f"network evaluations a tile and answer{gradients}"
        )
        say(
            f"pictures: {len(self.files)}, {self.request.n} answer{'s' * (self.request.n > 1)} each, into {self.folder}"
        )
