"""What to make: one dataclass for the shell, Python, and whatever serves pictures later."""

from __future__ import annotations

from dataclasses import dataclass

from kuosan.errors import Error


@dataclass(frozen=True)
class Request:
    """A request for pictures. Picture i is drawn from seed + i alone, whatever stands beside it in its batch."""

    n: int = 16  # how many pictures
    seed: int = 0  # the first picture's seed; picture i has seed + i
    sampler: str = "dpm_solver_2m"  # ddpm, ddim, euler, heun, dpm_solver_2m, ...; other tools' spellings are understood
    steps: int | None = None  # denoising steps; none: the sampler's own default
    spacing: str | None = None  # where the steps lie: trailing, leading, linspace, log_snr or karras; none: trailing
    eta: float | None = None  # DDIM's noise, 0 none to 1 DDPM's; only for samplers that have it
    variance: str | None = None  # DDPM's variance: beta, posterior or learned
    clip: bool = True  # keep the predicted picture within [-1, 1] at every step
    image: str | None = None  # start from this picture instead of from noise alone
    strength: float | None = None  # with image: how much is made anew, above 0 (nothing) to 1 (everything); 0.6 if none
    between: tuple[int, int] | None = None  # n pictures from one seed's to another's, their noises interpolated
    batch: int = 16  # pictures computed together
    exact: bool = False  # bit-equal pictures whatever n and batch: every batch is padded to 8

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 1_000_000:
            raise Error(f"n = {self.n} is not allowed: 1 to 1,000,000 pictures.")
        if self.steps is not None and not 1 <= self.steps <= 10_000:
            raise Error(f"steps = {self.steps} is not allowed: 1 to 10,000.")
        if not 0 <= self.seed < 2**63 - 1_000_000:
            raise Error(f"seed = {self.seed} is not allowed: 0 to 2^63 - 1,000,001.")
        if self.between is not None and self.image is not None:
            raise Error("between and image cannot both be given: one starts from two seeds, the other from a picture.")
        if self.between is not None and self.seed:
            raise Error(f"seed = {self.seed} has no effect with between, which names its own two seeds; leave it out.")
        if self.between is not None and min(self.between) < 0:
            raise Error(f"between = {self.between} is not allowed: two seeds, each 0 or more.")
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if self.strength is not None and self.image is None:
            raise Error("strength has no effect without image: give --image PICTURE, or leave --strength out.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise Error(f"strength = {self.strength} is not allowed: above 0, at most 1.")
