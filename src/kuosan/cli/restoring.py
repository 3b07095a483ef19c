"""The pictures of one `kuosan restore`: looked at, restored one after another, written, and laid on a sheet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kuosan import config as trees
from kuosan import files as writing
from kuosan import outputs, trained
from kuosan.cli.console import bar, say, warn
from kuosan.cli.picture_folder import of_run
from kuosan.data.images import read_png_text, save_png, to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error, escaped
from kuosan.outputs import Output
from kuosan.sample import restoration as restoring
from kuosan.sample.bring import Brought, bring
from kuosan.sample.contact import line, sheet
from kuosan.sample.generate import generate
from kuosan.sample.plan import Plan, plan
from kuosan.sample.recipe import KEY, Recipe, fingerprint
from kuosan.sample.request import Request

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ASKED = "request.json"  # beside the answers: what was asked
SHEET = 64  # pictures on the sheet at most


class Work:
    """The pictures of one command: opened one after another, restored, written."""

    def __init__(
        self, run: Path, files: Sequence[Path], wanted: Request, named: bool, out: Path | None, where: ComputeConfig
    ) -> None:
        self.trained = trained.load(run, compute=choose(where))
        self._prints: dict[Path, str] = {}  # of the pixels of each image, as it is restored
        self._names: dict[Path, str] = {}
        self.request = restoring.usual(self.trained.model.config, wanted, named=named)
        self.files, self.left_out, self.out = list(files), 0, out
        self.home = of_run(run, "restored", "{}-restored")
        asked = wanted.restoration
        self.inputs = list(files)
        if asked is not None and asked.mask is not None and Path(asked.mask).exists():
            self.inputs.append(Path(asked.mask))
        if out is not None:
            outputs.check_folder(out, self.inputs)

    def do(self) -> int:
        """Restore every picture, and lay the sheet; 1 where some were left out."""
        say(f"compute: {self.trained.compute}")
        for text in self.trained.damaged:
            say(f"warning: a newer checkpoint is damaged and passed over: {text}")
        warn(self.trained.warnings)
        walk = plan(self.trained.model.config, self.request)
        self._say_plan(walk)
        self._look(walk)
        with self._claim() as output:
            self._all(output)
        return 1 if self.left_out else 0

    def _all(self, output: Output) -> None:
        """Every image restored into a claimed folder, and the sheet, which never takes another's place."""
        folder, sheet_name = output.folder, output.free("sheet.png", [self._told(), *sorted(self._prints.values())])
        say(f"into {folder}")
        writing.write_atomic(folder / ASKED, self._told())
        begin = time.perf_counter()
        lines: list[np.ndarray] = []
        for done, path in enumerate(self.files):
            try:
                brought, images = self._restored(path)
            except KeyboardInterrupt:
                say(f"stopped: {done} of {len(self.files)} pictures are restored, in {folder}.")
                raise
            self._write(folder, path, brought, images)
            if len(lines) < SHEET:
                lines.append(line(brought.picture, images))
        sheet(folder / sheet_name, lines)
        seconds = time.perf_counter() - begin
        many = len(self.files) * self.request.n
        say(f"{many} picture{'s' * (many > 1)} in {seconds:.1f} s: {folder} ({sheet_name}: before, after)")

    def _claim(self) -> AbstractContextManager[Output]:
        """The folder to write; without --out one by what is done and how that is free, or holds these answers.

        Each answer follows from its own image and the request, so more images may be restored into one folder; the
        sheet of other images gets another name.
        """
        names: dict[str, Any] = {ASKED: self._told()}
        for path in self.files:
            own = self._recipe(path, self._prints[path], None)
            names |= {name: trees.plain(replace(own, picture=i, size=(0, 0)))
                      for i, name in enumerate(self._answers(path))}  # fmt: skip

        def proof(path: Path) -> bool:
            return self._fits(path)

        if self.out is not None:
            return outputs.claimed(self.out, "restore", self._told(), names, inputs=self.inputs, proof=proof)
        asked = self.request.restoration
        assert asked is not None
        words = [*asked.damage, asked.method or "trained", self.request.sampler, f"seed{self.request.seed}"]
        return outputs.claimed_unused(self.home / "-".join(words), "restore", self._told(), names, proof=proof)

    def _fits(self, path: Path) -> bool:
        """Whether a file that an older kuosan wrote, which kept no record, is of this request."""
        try:
            said = json.loads((path.parent / ASKED).read_text(encoding="utf-8")) == json.loads(self._told())
            if not said or path.name == ASKED:
                return bool(said)
            own = json.loads(read_png_text(path)[KEY])
        except (Error, OSError, ValueError, KeyError, RecursionError):
            return False
        return any(path.name in self._answers(each) and own.get("start") == self._prints[each] for each in self.files)

    def _answers(self, path: Path) -> list[str]:
        """The files of an image's answers."""
        name = self._names[path]
        seed = self.request.seed
        return [f"{name}-seed-{seed + i:08d}.png" if self.request.n > 1 else f"{name}.png"
                for i in range(self.request.n)]  # fmt: skip

    def _told(self) -> str:
        """All that the answers follow from, but the pictures: what makes a folder another command's or this one's."""
        return json.dumps({"weights": self.trained.weights, "request": trees.plain(self.request)}, indent=1) + "\n"

    def _look(self, walk: Plan) -> None:
        """Open every picture and mask before the first is restored; those that are refused are named and left out.

        Raises: Error if none is left, or for an overlap without effect.
        """
        wrong, good, tiles = [], list[Path](), 0
        for path in self.files:
            try:
                brought = self._opened(path)
            except Error as error:
                wrong.append(str(error))
                continue
            if path not in good:
                good.append(path)
            self._prints[path] = fingerprint(brought.picture)
            tiles += brought.tiles
        if not good:
            more = f" ({len(wrong) - 1} more pictures are refused, too.)" if len(wrong) > 1 else ""
            raise Error(f"{wrong[0]}{more}")
        overlap = self.request.restoration and self.request.restoration.overlap
        if overlap is not None and tiles == len(good):
            raise Error(f"overlap = {overlap} has no effect: no picture is larger than the model's; leave it out.")
        for text in wrong:
            say(f"left out: {text}")
        self.files, self.left_out = good, len(wrong)
        self._names = _named(good)
        calls = tiles * self.request.n * walk.evaluations
        many = len(good) * self.request.n
        say(f"to make: {many} picture{'s' * (many > 1)}, {calls:,} network evaluations in all, each of one tile")

    def _restored(self, path: Path) -> tuple[Brought, Tensor]:
        request = self._request(path)
        assert request.restoration is not None
        brought = self._opened(path)
        for note in brought.notes:
            say(f"{path}: {note}")
        frames = generate(brought.model, brought.batched(request), given=brought.given,
                          measurement=brought.measurement)  # fmt: skip
        parts = []
        with bar() as progress:
            task = progress.add_task(escaped(path.name), total=None)
            for frame in frames:
                done = frame.first * frame.steps + len(frame.x) * frame.step
                progress.update(task, completed=done, total=request.n * frame.steps)
                if frame.done:
                    parts.append(brought.result(frame.x))
        return brought, torch.cat(parts)

    def _opened(self, path: Path) -> Brought:
        """An image as the training images were read, ready to be restored. Raises: Error where it cannot be."""
        asked = self._request(path).restoration
        assert asked is not None
        return bring(self.trained.model, asked, path, batch=self.request.batch, reading=self.trained.reading)

    def _request(self, path: Path) -> Request:
        assert self.request.restoration is not None
        return replace(self.request, restoration=replace(self.request.restoration, picture=str(path)))

    def _write(self, folder: Path, path: Path, brought: Brought, images: Tensor) -> None:
        recipe = self._recipe(path, fingerprint(brought.picture), (images.shape[3], images.shape[2]))
        for i, (name, picture) in enumerate(zip(self._answers(path), to_uint8(images.cpu().numpy()))):
            save_png(folder / name, picture, replace(recipe, picture=i).text())

    def _recipe(self, path: Path, start: str, size: tuple[int, int] | None) -> Recipe:
        """What the answers to an image follow from."""
        return replace(self.trained.recipe(self._request(path), size=size or (0, 0)), start=start)

    def _say_plan(self, walk: Plan) -> None:
        asked, trained = self.request.restoration, self.trained
        assert asked is not None
        channels, height, width = trained.model.shape
        how = f" by {restoring.METHODS[walk.method]}" if walk.method else ", as the model was trained"
        gradients = ", each with its gradient (about 3 times the cost)" if walk.graded else ""
        say(
            f"model: {trained.name}, step {trained.step}, {width}x{height} {'grey' if channels == 1 else 'colour'}; "
            f"{', '.join(asked.damage) or 'noise'}{how}: {walk.sampler}, {walk.steps} steps, {walk.evaluations} "
            f"network evaluations a tile and answer{gradients}"
        )
        say(f"pictures: {len(self.files)}, {self.request.n} answer{'s' * (self.request.n > 1)} each")


def _named(files: Sequence[Path]) -> dict[Path, str]:
    """What each image's answers are called: its own name, no two alike, nor like the sheet."""
    found: dict[Path, str] = {}
    used = {"sheet"}
    for path in files:
        name = path.stem if path.stem not in used else f"{path.stem}-{path.suffix[1:]}"
        while name in used:
            name += "-again"
        used.add(name)
        found[path] = name
    return found
