"""`kuosan doctor`: what of a folder would be used, resized or skipped, and why; nothing in it is changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from kuosan import outputs
from kuosan.cli.console import counting, say
from kuosan.cli.numbers import Whole
from kuosan.data.config import DataConfig, as_begun
from kuosan.errors import Error
from kuosan.regular import is_folder

CONFIG = "config.yaml"  # of a run


def doctor(
    data: str,
    *,
    out: Path | None = None,
    size: Whole | None = None,
    channels: Literal["auto", "rgb", "grey"] = "auto",
    resize: Literal["auto", "crop", "pad", "stretch", "centre", "random_crop", "buckets"] = "auto",
    background: str = "white",
    hold_out: float | None = None,
    max_pixels: Whole = DataConfig.max_pixels,
    max_bytes: Whole = DataConfig.max_bytes,
    label_column: str = DataConfig.label_column,
    range: str = DataConfig.range,
    bucket_step: Whole | None = None,
    bucket_aspect: float = DataConfig.bucket_aspect,
    layout: Whole | None = None,
    split_version: Whole | None = None,
) -> int:
    """Look at every file of DATA as training would, and say what becomes of it; of a run, at its data as it does.

    Exit code 0 if there is something to train on, 1 if not.

    Parameters
    ----------
    data
        A folder, a zip, tar, IDX, npz or npy file, or `portraits`; or a run's folder, whose own data settings then
        count where no others are given.
    out
        Write accepted.csv, rejected.csv and summary.json into this folder.
    size
        Pixels a side; decided from the pictures if not given.
    channels
        Colour, grey, or decided from the pictures.
    resize
        How pictures of other sizes are brought to it.
    background
        What transparent pictures lie on: white, black, grey or #rrggbb.
    hold_out
        Fraction held out of training.
    max_pixels
        Larger pictures are refused from their header.
    max_bytes
        Memory that decoding one image may take; what would take more is refused from its header.
    label_column
        Column of metadata.csv or metadata.jsonl that holds the class.
    range
        The numbers that are black and white in arrays and files of floats, as 0,1; decided and said if auto.
    bucket_step
        With buckets: sides are multiples of this; an eighth of the size, as a power of two, if not given.
    bucket_aspect
        With buckets: the longer side over the shorter, at most.
    layout
        How folders and the files beside images are understood: 2, or 1 as runs begun by older versions do.
    split_version
        What makes an image the same one: 2 its pixels, near duplicates too; 1 its file's bytes, as in older runs.
    """
    asked = DataConfig(
        data,
        size,
        channels,
        resize,
        background,
        hold_out=hold_out,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        label_column=label_column,
        range=range,
        bucket_step=bucket_step,
        bucket_aspect=bucket_aspect,
        layout=DataConfig.layout if layout is None else layout,
        split_version=DataConfig.split_version if split_version is None else split_version,
    )
    config = _of_run(asked, layout, split_version) if _is_run(data) else asked
    data = config.path
    from kuosan.data import captioned
    from kuosan.data.doctor import examine, write
    from kuosan.shelf import NEAR, Results

    if out is not None:
        outputs.check_folder(out, [Path(data)] if Path(data).exists() else [])
    if out is not None and Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise Error(f"--out {out} lies inside {data}: the report would be looked at as data. Choose another folder.")
    with counting("doctor") as progress:
        report = examine(config, progress=progress, memory=Results.at(None, NEAR))
    for line in report.lines():
        say(line)
    if rows := captioned.rows(report.scan.entries):
        say("The first captions:")
        for row in rows:
            say(f"  {row}")
    if out is not None:
        about = {"data": str(Path(data).resolve()) if Path(data).exists() else data}
        with outputs.claimed(out, "doctor", about, FILES, proof=lambda path: _ours(path, data)):
            say(f"written: {', '.join(str(path) for path in write(report, out))}")
    elif report.scan.refused:
        say("The whole list: kuosan doctor DATA --out FOLDER")
    return 0 if report.scan.entries else 1


def _is_run(data: str) -> bool:
    path = Path(data)
    return is_folder(path) and (path / "checkpoints").is_dir() and (path / CONFIG).is_file()


def _of_run(asked: DataConfig, layout: int | None, split_version: int | None) -> DataConfig:
    """The data settings of a run, but where a person said others; and a line of what they are."""
    from kuosan import checkpoint
    from kuosan import config as trees

    home, usual = asked.path, DataConfig(asked.path)
    tree = as_begun(checkpoint.load_config(home) if checkpoint.checkpoints(home) else trees.load(Path(home, CONFIG)))
    own = trees.build(DataConfig, tree.get("data", {}))
    given: dict[str, Any] = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(DataConfig)
        if getattr(asked, field.name) != getattr(usual, field.name)
    }
    given |= {
        name: value for name, value in (("layout", layout), ("split_version", split_version)) if value is not None
    }
    config = dataclasses.replace(own, **given)
    said = f" and {', '.join(f'{name} {value}' for name, value in given.items())}" if given else ""
    say(
        f"{home} is a run: its data {config.path}, with its own settings{said} "
        f"(layout {config.layout}, split version {config.split_version})."
    )
    return config


FILES = ("accepted.csv", "rejected.csv", "summary.json")


def _ours(path: Path, data: str) -> bool:
    """Whether a file is of an older kuosan's report on the same data, which kept no record."""
    import json

    try:
        said = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    except (OSError, ValueError, RecursionError):
        return False
    heads = {"accepted.csv": "name,from,to,mode", "rejected.csv": "name,reason", "summary.json": "{"}
    return isinstance(said, dict) and said.get("path") == data and first.startswith(heads[path.name])
