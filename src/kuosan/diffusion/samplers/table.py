"""The samplers by name."""

from __future__ import annotations

from kuosan.diffusion import names
from kuosan.diffusion.samplers.ancestral import ddim, ddpm, euler, euler_ancestral
from kuosan.diffusion.samplers.dpm_solver import (
    dpm_solver_2m,
    dpm_solver_2m_sde,
    dpm_solver_3m,
    dpm_solver_3m_corrected,
    dpm_solver_3m_sde,
)
from kuosan.diffusion.samplers.heun import heun
from kuosan.diffusion.samplers.pndm import plms, pndm
from kuosan.diffusion.samplers.singlestep import dpm_solver_2s, dpm_solver_2s_sde
from kuosan.diffusion.samplers.step import Sampler
from kuosan.diffusion.samplers.unipc import unipc, unipc_3

SAMPLERS: dict[str, Sampler] = {
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


def sampler(name: str | Sampler) -> Sampler:
    """The function of a name in any known spelling; a function of the caller's own is returned as it is."""
    return name if callable(name) else SAMPLERS[names.sampler(name)]
