"""The pictures of one `kuosan restore`: looked at, restored one after another, written, and laid on a sheet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kuosan import checkpoint, trained
from kuosan import config as trees
from kuosan import files as writing
from kuosan.cli.console import bar, say
from kuosan.data.images import save_png, to_uint8
from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error, escaped
from kuosan.sample import restoration as restoring
from kuosan.sample.bring import Brought, bring
from kuosan.sample.contact import line, sheet
from kuosan.sample.generate import generate
from kuosan.sample.plan import Plan, plan
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
        self.request = restoring.usual(self.trained.model.config, wanted, named=named)
        home = checkpoint.home(run)
        self.files, self.left_out = list(files), 0
        usual = (
            Path("pictures") / f"{home.resolve().name}-restored" if checkpoint.is_exported(home) else home / "restored"
        )
        self.folder = out or self._unused(usual)
        asked = wanted.restoration
        beside = [path.resolve().parent for path in files]
        if asked is not None and asked.mask is not None and Path(asked.mask).exists():
            mask = Path(asked.mask).resolve()
            beside.append(mask if mask.is_dir() else mask.parent)
        if self.folder.resolve() in beside:
            raise Error(
                f"--out {self.folder} holds the pictures or masks that are read, and they would be written over: name "
                f"another."
            )

    def do(self) -> int:
        """Restore every picture, and lay the sheet; 1 where some were left out."""
        say(f"compute: {self.trained.compute}")
        for text in self.trained.damaged:
            say(f"warning: a newer checkpoint is damaged and passed over: {text}")
        walk = plan(self.trained.model.config, self.request)
        self._say_plan(walk)
        self._look(walk)
        with writing.explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        writing.write_atomic(self.folder / ASKED, self._told())
        begin, used = time.perf_counter(), {"sheet"}
        lines: list[np.ndarray] = []
        for path in self.files:
            name = path.stem if path.stem not in used else f"{path.stem}-{path.suffix[1:]}"
            while name in used:
                name += "-again"
            used.add(name)
            try:
                brought, images = self._restored(path)
            except KeyboardInterrupt:
                say(f"stopped: {len(used) - 2} of {len(self.files)} pictures are restored, in {self.folder}.")
                raise
            self._write(path, name, brought, images)
            if len(lines) < SHEET:
                lines.append(line(brought.picture, images))
        sheet(self.folder / "sheet.png", lines)
        seconds = time.perf_counter() - begin
        many = len(self.files) * self.request.n
        say(f"{many} picture{'s' * (many > 1)} in {seconds:.1f} s: {self.folder} (sheet.png: before, after)")
        return 1 if self.left_out else 0

    def _told(self) -> str:
        """All that the answers follow from, but the pictures: what makes a folder another command's or this one's."""
        return json.dumps({"weights": self.trained.weights, "request": trees.plain(self.request)}, indent=1) + "\n"

    def _unused(self, home: Path) -> Path:
        """A folder by what is done and how; of those so called, the first that holds no other command's answers."""
        asked = self.request.restoration
        assert asked is not None
        words = [*asked.damage, asked.method or "trained", self.request.sampler, f"seed{self.request.seed}"]
        first = home / "-".join(words)
        candidates = (first if i == 1 else first.with_name(f"{first.name}-{i}") for i in range(1, 10_000))
        return next(each for each in candidates if not each.exists() or self._mine(each / ASKED))

    def _mine(self, path: Path) -> bool:
        return path.is_file() and path.read_text(encoding="utf-8") == self._told()

    def _look(self, walk: Plan) -> None:
        """Open every picture and mask before the first is restored; those that are refused are named and left out.

        Raises: Error if none is left, or for an overlap without effect.
        """
        wrong, good, tiles = [], list[Path](), 0
        for path in self.files:
            asked = self._request(path).restoration
            assert asked is not None
            try:
                brought = bring(self.trained.model, asked, path, batch=self.request.batch)
            except Error as error:
                wrong.append(str(error))
                continue
            good.append(path)
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
        calls = tiles * self.request.n * walk.evaluations
        many = len(good) * self.request.n
        say(f"to make: {many} picture{'s' * (many > 1)}, {calls:,} network evaluations in all, each of one tile")

    def _restored(self, path: Path) -> tuple[Brought, Tensor]:
        request = self._request(path)
        assert request.restoration is not None
        brought = bring(self.trained.model, request.restoration, path, batch=self.request.batch)
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

    def _request(self, path: Path) -> Request:
        assert self.request.restoration is not None
        return replace(self.request, restoration=replace(self.request.restoration, picture=str(path)))

    def _write(self, path: Path, name: str, brought: Brought, images: Tensor) -> None:
        recipe = self.trained.recipe(self._request(path), brought.picture, size=(images.shape[3], images.shape[2]))
        for i, picture in enumerate(to_uint8(images.cpu().numpy())):
            own = replace(recipe, picture=i)
            ending = f"-seed-{own.seed:08d}" if self.request.n > 1 else ""
            save_png(self.folder / f"{name}{ending}.png", picture, own.text())

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
        say(
            f"pictures: {len(self.files)}, {self.request.n} answer{'s' * (self.request.n > 1)} each, into {self.folder}"
        )
