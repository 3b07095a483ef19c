"""Whether few steps are as good as all: KID of fast samplers beside DDPM's 1000 steps, on one run's weights.

    python benchmarks/quality.py runs/fashion                # 500 images a side; DDPM is hours on a small machine
    python benchmarks/quality.py runs/fashion -n 100         # a quick look

All samplers get the same weights and the same seeds, so the difference of two is told image by image, and its
error is far below that of either distance. Images and features are kept in RUN/evaluations, where `kuosan evaluate`
keeps them: the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np

from kuosan.cli.console import duration
from kuosan.errors import Error
from kuosan.evaluate.config import configured
from kuosan.evaluate.job import EvaluateJob
from kuosan.evaluate.plan import plan_evaluate
from kuosan.evaluate.prepare import EvaluatePlan, point_rows, side_rows
from kuosan.evaluate.run import nested
from kuosan.evaluate.sampling import make
from kuosan.metrics.kid import kid, kid_difference

SAMPLERS = (
    *("ddpm:1000", "ddim:50", "ddim:15", "heun:8", "dpm_solver_2m:10", "dpm_solver_2m:15", "unipc:10", "unipc:15"),
    *("dpm_solver_2m_sde:10", "dpm_solver_2m_sde:15"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder, or one checkpoint in it")
    parser.add_argument("-n", type=int, default=500, help="images a side")
    parser.add_argument(
        "--samplers", default=",".join(SAMPLERS), help="SAMPLER:STEPS[:SPACING],..., the yardstick first"
    )
    parser.add_argument("--features", default="lite0-128")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    asked = parser.parse_args()
    try:
        figures = [*compare(asked.run, asked.samplers.split(","), asked.n, asked.features, asked.threads)]
    except Error as error:
        sys.exit(f"quality: {error}")
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


def compare(run: Path, samplers: list[str], n: int, features: str, threads: int):
    """The figures of each sampler, one after another, printed as they come."""
    first: np.ndarray | None = None
    for word in samplers:
        sampler, steps, *spacing = word.split(":")
        settings = {"n": n, "sampler": sampler, "steps": steps, "features": features, "threads": threads}
        settings |= {"metrics": ["kid"]} | ({"spacing": spacing[0]} if spacing else {})
        prepared = plan_evaluate(EvaluateJob.of(str(run), configured(nested(settings))))
        reference = rows(prepared)
        if first is None:
            head(prepared, reference)
        made = rows(prepared, made=True)
        (job,) = prepared.points
        value, more = kid(made, reference), None if first is None else kid_difference(made, first, reference)
        first = made if first is None else first
        said = "" if more is None else f"{1000 * more.value:10.1f} ± {1000 * more.error:.1f}"
        seconds = duration(job.store.seconds(n) * n)
        shown = f"{1000 * value.value:10.1f} ± {1000 * value.error:.1f}"
        print(f"{word:30} {job.choice.evaluations:5} {shown} {said:20} {seconds}")
        yield {
            "sampler": word,
            "evaluations": job.choice.evaluations,
            "kid": [value.value, value.error],
            "more_than_first": None if more is None else [more.value, more.error],
        }


def head(prepared: EvaluatePlan, reference: np.ndarray) -> None:
    """What is compared with what, and the floor."""
    assert prepared.network is not None and prepared.model is not None
    one, other = (returned(side_rows(prepared, side, prepared.network)) for side in prepared.floor)
    floor = kid(one, other)
    print(f"{prepared.target}, step {prepared.model.step}: {len(reference)} training images, {prepared.network.name}")
    print(f"floor: {1000 * floor.value:.1f} ± {1000 * floor.error:.1f}; computed on {prepared.model.compute}")
    print(f"{'sampler':30} {'evals':>5} {'KID x 1000':>16} {'more than the first':>22}  seconds of sampling")


def rows(prepared: EvaluatePlan, made: bool = False) -> np.ndarray:
    """The features of the images made, which are made if they lack, or of the real ones."""
    assert prepared.network is not None and prepared.model is not None
    if not made:
        return returned(side_rows(prepared, prepared.reference, prepared.network))
    for _ in make(prepared.model, prepared.points):
        pass
    return returned(point_rows(prepared, prepared.points[0], prepared.network))


def returned(steps: Generator[object, None, np.ndarray]) -> np.ndarray:
    """What a job's part returns, its events dropped."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
