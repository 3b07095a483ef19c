"""The samplers by name: kuosan's own, and every spelling of them that other tools use.

Samplers: generators that step along a grid of levels pairwise, noise first, with a denoiser.

`sampler(denoise, x, levels, noise, **options)` yields a Step for each pair (now, to). A sampler owns no bar, device or
random state: the caller draws the noise or gives seed= or generator= (nothing: seed 0), shows the progress, and stops
it by closing it. Coefficients are float64, the
state keeps x's dtype; no noise is added on a step to sigma = 0, and a step of no length changes nothing.
"""

from __future__ import annotations

from typing import Any

from kuosan.diffusion import registry
from kuosan.diffusion.samplers.ancestral import ddim, ddpm, euler, euler_ancestral
from kuosan.diffusion.samplers.dpm_solver import (
    dpm_solver_2m,
    dpm_solver_2m_sde,
    dpm_solver_2s,
    dpm_solver_2s_sde,
    dpm_solver_3m,
    dpm_solver_3m_corrected,
    dpm_solver_3m_sde,
)
from kuosan.diffusion.samplers.heun import heun
from kuosan.diffusion.samplers.pndm import plms, pndm
from kuosan.diffusion.samplers.step import LevelAt, Noise, Pair, Sampler, Step, blend, half_log_snr, pair
from kuosan.diffusion.samplers.unipc import unipc, unipc_3


class Samplers(dict[str, Sampler]):
    """Samplers by name. `SAMPLERS["DPM++ 2M"]` and `"dpmpp_2m" in SAMPLERS` understand other tools' spellings of one of
    ours (`names.SAMPLERS` lists them); iteration, `len` and `keys` show our own names alone.

    Raises: Error for any other name, with the nearest one.
    """

    def __missing__(self, name: str) -> Sampler:
        return self[registry.sampler(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (super().__contains__(name) or registry.plain(name) in registry.SPELLINGS)

    def get(self, name: str, default: Any = None) -> Any:
        """The sampler of a name in any known spelling, or the default."""
        if name not in self:
            return default
        return self[name]


SAMPLERS = Samplers(
    {
        "ddpm": ddpm,
        "ddim": ddim,
        "euler": euler,
        "euler_ancestral": euler_ancestral,
        "heun": heun,
        "dpm_solver_2s": dpm_solver_2s,
        "dpm_solver_2m": dpm_solver_2m,
        "dpm_solver_3m": dpm_solver_3m,
        "dpm_solver_3m_corrected": dpm_solver_3m_corrected,
        "dpm_solver_2s_sde": dpm_solver_2s_sde,
        "dpm_solver_2m_sde": dpm_solver_2m_sde,
        "dpm_solver_3m_sde": dpm_solver_3m_sde,
        "unipc": unipc,
        "unipc_3": unipc_3,
        "plms": plms,
        "pndm": pndm,
    }
)


def sampler(name: str | Sampler) -> Sampler:
    """The function of a name in any known spelling; a function of the caller's own is returned as it is."""
    return name if callable(name) else SAMPLERS[registry.sampler(name)]


__all__ = [
    "SAMPLERS",
    "LevelAt",
    "Noise",
    "Pair",
    "Sampler",
    "Step",
    "blend",
    "ddim",
    "ddpm",
    "dpm_solver_2m",
    "dpm_solver_2m_sde",
    "dpm_solver_2s",
    "dpm_solver_2s_sde",
    "dpm_solver_3m",
    "dpm_solver_3m_corrected",
    "dpm_solver_3m_sde",
    "euler",
    "euler_ancestral",
    "half_log_snr",
    "heun",
    "pair",
    "plms",
    "pndm",
    "sampler",
    "unipc",
    "unipc_3",
]
