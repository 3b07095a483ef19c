"""Every sampler, schedule, spacing, prediction and guidance: sampled and measured, or refused and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from analytic import Cell, every_cell, some_cells
from measuring import Schedule, errors

from kuosan.diffusion import names
from kuosan.diffusion.level import Level
from kuosan.diffusion.schedule import SPACINGS, Discrete, Flow, Karras
from kuosan.errors import Error

STEPS = 16  # of a walk in the matrix
COARSE, FINE = 64, 128  # steps between which the order is measured

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}),
    "ddpm, posterior": ("ddpm", {"variance": "posterior"}),
    "ddim": ("ddim", {}),
    "ddim, eta 1": ("ddim", {"eta": 1.0}),
    "euler": ("euler", {}),
    "euler_ancestral": ("euler_ancestral", {}),
    "heun": ("heun", {}),
    "heun, churn 4": ("heun", {"s_churn": 4.0}),
    "dpm_solver_2s": ("dpm_solver_2s", {}),
    "dpm_solver_2m": ("dpm_solver_2m", {}),
    "dpm_solver_3m": ("dpm_solver_3m", {}),
    "dpm_solver_3m_corrected": ("dpm_solver_3m_corrected", {}),
    "dpm_solver_2s_sde": ("dpm_solver_2s_sde", {}),
    "dpm_solver_2m_sde": ("dpm_solver_2m_sde", {}),
    "dpm_solver_3m_sde": ("dpm_solver_3m_sde", {}),
    "unipc": ("unipc", {}),
    "unipc_3": ("unipc_3", {}),
    "plms": ("plms", {}),
    "pndm": ("pndm", {}),
}

SCHEDULES: dict[str, Schedule] = {
    "linear": Discrete(),
    "scaled_linear": Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": Discrete(betas="cosine"),
    "sigmoid": Discrete(betas="sigmoid"),
    "linear, zero terminal SNR": Discrete(zero_terminal_snr=True),
    "karras": Karras(),
    "flow": Flow(),
    "flow, shift 3": Flow(shift=3.0),
}


def even_in_karras(n: int) -> Level:
    """A discrete schedule between log SNR -9 and 5, even in s^(1/7): no end of the grid blurs the order."""
    ends = torch.linspace(math.exp(9 / 14), math.exp(-5 / 14), n + 1, dtype=torch.float64)
    return Discrete().at_log_snr((-14 * ends.log()).numpy())


def even_in_log_snr(n: int) -> Level:
    return Karras(sigma_min=math.exp(-2.5), sigma_max=math.exp(5)).grid(n, "log_snr", last="first")


def even_in_clock(n: int) -> Level:
    return Flow().at_sigma(torch.linspace(0.99, 0.1, n + 1, dtype=torch.float64).numpy())


WINDOWS: dict[str, tuple[Schedule, Callable[[int], Level]]] = {
    "linear, even in s^(1/7)": (Discrete(), even_in_karras),
    "karras, even in log SNR": (Karras(), even_in_log_snr),
    "flow, even in t": (Flow(), even_in_clock),
}


@dataclass(frozen=True)
class Combination:
    """One walk's place in the matrix."""

    row: str
    schedule: str
    spacing: str

    def check(self, prediction: str) -> None:
        """What names.check says. Raises: Error."""
        name, options = ROWS[self.row]
        asked = {"sampler": name, "options": options, "steps": STEPS, "spacing": self.spacing}
        names.check(SCHEDULES[self.schedule], prediction, **asked)  # type: ignore[arg-type]

    def walk(self, cells: list[Cell], steps: int = STEPS) -> torch.Tensor:
        """The errors of a walk, one a cell. Raises: Error, from the grid, the sampler or the denoiser."""
        name, options = ROWS[self.row]
        schedule = SCHEDULES[self.schedule]
        return errors(name, options, schedule, schedule.grid(steps, self.spacing), cells)


@dataclass
class Results:
    """What the page shows."""

    matrix: dict[Combination, torch.Tensor | None] = field(default_factory=dict)  # (cells,), or refused
    unguided: dict[Combination, int] = field(default_factory=dict)  # how many cells, the first ones, are so
    refused: dict[str, list[tuple[Combination, str]]] = field(default_factory=dict)  # reason -> combination, prediction
    orders: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)  # (row, window) -> (cells,)


def refusal(run: Callable[[], object]) -> str | None:
    """What an Error says, or None where there is none."""
    try:
        run()
    except Error as error:
        return str(error)
    return None


def combinations() -> Iterator[Combination]:
    for schedule in SCHEDULES:
        for spacing in SPACINGS:
            for row in ROWS:
                yield Combination(row, schedule, spacing)


def allowed(combination: Combination) -> tuple[list[str], dict[str, str]]:
    """The predictions that names.check allows here, and the reasons against the others."""
    reasons = {p: refusal(lambda p=p: combination.check(p)) for p in names.PREDICTIONS}  # type: ignore[misc]
    return [p for p, reason in reasons.items() if reason is None], {p: r for p, r in reasons.items() if r is not None}


def measure(thorough: bool) -> Results:
    """The whole matrix, and the orders; `thorough` puts every prediction under every guidance, else they take turns."""
    results = Results()
    for turn, combination in enumerate(combinations()):
        predictions, reasons = allowed(combination)
        for prediction, reason in reasons.items():
            results.refused.setdefault(general(reason, combination), []).append((combination, prediction))
        cells = every_cell(predictions) if thorough else some_cells(predictions, turn) if predictions else []
        results.matrix[combination] = combination.walk(cells) if cells else None
        results.unguided[combination] = sum(guidance == "none" for guidance, _ in cells)
    every = list(names.PREDICTIONS)
    for turn, row in enumerate(ROWS):
        for window in WINDOWS:
            cells = (
                every_cell(every) if thorough else [("none", every[turn % len(every)]), *some_cells(every, turn)[-2:]]
            )
            results.orders[row, window] = order(row, window, cells)
    return results


def order(row: str, window: str, cells: list[Cell]) -> torch.Tensor:
    """(cells,): the measured order of convergence."""
    name, options = ROWS[row]
    schedule, grid = WINDOWS[window]
    coarse, fine = (errors(name, options, schedule, grid(n), cells) for n in (COARSE, FINE))
    return (coarse / fine).log2()


def general(reason: str, combination: Combination) -> str:
    """A reason without the sampler that it names, so that those of one kind are one."""
    return reason.replace(f"sampler {ROWS[combination.row][0]!r}: ", "")
