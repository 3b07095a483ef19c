"""Looking at a data set as a job: `plan_doctor` looks at every file, `run_doctor` writes what it found. Torch-free.

Looking belongs to the plan: it is what a training's plan does with its images, here by itself, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kuosan.config import as_begun
from kuosan.config import build as built
from kuosan.config import load as loaded
from kuosan.data.config import DataConfig
from kuosan.errors import Error
from kuosan.events import Event, Finished, OnEvent, Wrote, counted
from kuosan.regular import is_folder
from kuosan.storage import outputs

if TYPE_CHECKING:
    from kuosan.data.doctor import DataReport

CONFIG = "config.yaml"  # of a run
FILES = ("accepted.csv", "rejected.csv", "summary.json")
NOT_TYPED = ("data.path", "data.flip", "data.memory_gib", "data.workers", "data.cache")  # of no effect on a report


@dataclass(frozen=True)
class DoctorJob:
    """Which of a data set's files would be used, and why not the rest.

    Attributes:
        out: write accepted.csv, rejected.csv and summary.json into this folder.
        data: as training would have it; where its path is a run's folder, that run's own settings where none are given.
        given: names of the settings in `data` that were said, which win over a run's own even where they are defaults.
    """

    out: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    given: tuple[str, ...] = field(default=(), metadata={"option": False})


@dataclass(frozen=True)
class DoctorPlan:
    """A data set looked at; what remains is to write it down."""

    job: DoctorJob
    report: DataReport
    run: str | None  # the run whose data it is
    given: dict[str, object]  # the settings that were said in place of the run's own

    @property
    def config(self) -> DataConfig:
        """The settings that it was looked at with."""
        return self.report.config


def plan_doctor(job: DoctorJob, on_event: OnEvent | None = None) -> DoctorPlan:
    """Look at every file, as training would.

    Args:
        on_event: called with the Progress of looking.

    Raises:
        Error: no data set, settings that are impossible, or a folder that the report cannot be written into.
    """
    config, given, path = job.data, dict[str, object](), job.data.path
    run = path if _is_run(path) else None
    if run is not None:
        config, given = _of_run(job)
    source = Path(config.path)
    if job.out is not None:
        outputs.check_folder(job.out, [source] if source.exists() else [])
        if source.is_dir() and job.out.resolve().is_relative_to(source.resolve()):
            raise Error(
                f"--out {job.out} lies inside {config.path}: the report would be looked at as data. Choose another "
                f"folder."
            )
    from kuosan.data.doctor import examine
    from kuosan.storage.cache import NEAR, Results

    report = examine(config, progress=counted(on_event), memory=Results.at(None, NEAR))
    return DoctorPlan(job, report, run, given)


def run_doctor(plan: DoctorPlan) -> Iterator[Event]:
    """Write the report, where a folder is given for it. Raises: Error: something else's files lie there."""
    from kuosan.data.doctor import write

    out = plan.job.out
    if out is not None:
        data, source = plan.config.path, Path(plan.config.path)
        about = {"data": str(source.resolve()) if source.exists() else data}
        with outputs.claimed(out, "doctor", about, FILES, proof=lambda path: _is_report(path, data)):
            written = write(plan.report, out)
        yield from (Wrote(path) for path in written)
    yield Finished(plan.report)


def _is_run(data: str) -> bool:
    path = Path(data)
    return is_folder(path) and (path / "checkpoints").is_dir() and (path / CONFIG).is_file()


def _of_run(job: DoctorJob) -> tuple[DataConfig, dict[str, object]]:
    """The data settings of a run, but where others were said; and those."""
    from kuosan.storage import checkpoint

    home, default = job.data.path, DataConfig(job.data.path)
    tree = as_begun(checkpoint.load_config(home) if checkpoint.checkpoints(home) else loaded(Path(home, CONFIG)))
    own = built(DataConfig, tree.get("data", {}))
    given: dict[str, object] = {
        each.name: getattr(job.data, each.name)
        for each in dataclasses.fields(DataConfig)
        if each.name in job.given or getattr(job.data, each.name) != getattr(default, each.name)
    }
    return dataclasses.replace(own, **given), given  # type: ignore[arg-type]


def _is_report(path: Path, data: str) -> bool:
    """Whether a file is of an older kuosan's report on the same data, which kept no record."""
    try:
        said = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    except (OSError, ValueError, RecursionError):
        return False
    heads = {"accepted.csv": "name,from,to,mode", "rejected.csv": "name,reason", "summary.json": "{"}
    return isinstance(said, dict) and said.get("path") == data and first.startswith(heads[path.name])
