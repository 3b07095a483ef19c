"""The introduction's own class, for those who come from its listing: one network, T steps, betas in a line.

loss = mean (eps - model(x_t, t))² at x_t = sqrt(alpha_bar_t)·x0 + sqrt(1 - alpha_bar_t)·eps (Ho et al. 2020,
algorithm 1), and ancestral sampling with sigma_t² = beta_t (algorithm 2). A thin face on `diffusion`; as the listing
does, and nothing else in kuosan, it draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from kuosan.diffusion.denoiser import Prediction, to_x0
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import ddpm
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error

TABLES = ("betas", "alphas", "alpha_bars")


class DiffusionModel(nn.Module):
    """A network that predicts noise, with its diffusion: `forward` is the training loss, `sample` makes images.

    `model(x, t)` takes x (B, ...) and t, a LongTensor (1,) or (B,) of steps 0..T-1, and returns x's shape. `betas`,
    `alphas` and `alpha_bars` are non-persistent buffers (T,): they follow `.to()`, and state dicts with or without
    them load.

    Raises: Error for T or betas that make no schedule.
    """

    betas: Tensor
    alphas: Tensor
    alpha_bars: Tensor

    def __init__(
        self, model: Callable[..., Tensor], T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> None:
        super().__init__()
        if not callable(model):
            raise Error(f"model {model!r}: need a network, called as model(x, t).")
        self.schedule = Discrete(betas="linear", T=T, beta_start=float(beta_start), beta_end=float(beta_end))
        self.model = model
        self.T = T
        self._fill_tables(torch.get_default_dtype(), torch.get_default_device())
        self.register_load_state_dict_pre_hook(drop_tables)  # type: ignore[no-untyped-call]

    def forward(self, x0: Tensor, t: Tensor | int, noise: Tensor | None = None) -> Tensor:
        """The mean squared error of the predicted noise, a scalar; x0 and noise (B, ...), t (), (1,) or (B,).

        Without `noise` it is drawn from torch's global generator.
        Raises: Error for t outside 0..T-1 or not integer, and for shapes that do not fit.
        """
        if not x0.is_floating_point():
            raise Error(f"x0 has dtype {x0.dtype}: need images as floats in [-1, 1], as in x / 127.5 - 1.")
        steps = self._steps(t, x0)
        noise = torch.randn_like(x0) if noise is None else noise
        if noise.shape != x0.shape:
            raise Error(f"noise has shape {tuple(noise.shape)}, x0 {tuple(x0.shape)}: they must be the same.")
        level = self.schedule.at_t(steps.cpu().numpy())
        x = (level[0] if len(level) == 1 else level).add(x0, noise)
        return (noise - self._predict(x, steps)).square().mean()

    @torch.no_grad()
    def sample(self, shape: Sequence[int]) -> Tensor:
        """Images of this shape, on the buffers' device: `randn(shape)`, then one more draw a step while t > 0.

        Raises: Error for a shape that is none.
        """
        shape = self._shape(shape)

        def noise(i: int, now: Level, to: Level) -> Tensor:
            return torch.randn(shape, dtype=self.betas.dtype, device=self.betas.device)

        def denoise(x: Tensor, level: Level) -> Prediction:
            t = torch.full((1,), int(level.t), dtype=torch.long, device=x.device)
            return Prediction(to_x0("eps", self._predict(x, t), x, level))

        levels = self.schedule.grid(self.T, "trailing")
        x = noise(-1, levels[0], levels[0])
        for step in ddpm(denoise, x, levels, noise, variance="beta"):
            x = step.x
        return x

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        weights = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        low = weights is not None and weights.dtype in (torch.float16, torch.bfloat16)
        out = self.model(x.to(weights.dtype) if weights is not None and low else x, t)
        if out.shape != x.shape:
            raise Error(
                f"the model put out {tuple(out.shape)} for an input of {tuple(x.shape)}: it must predict the noise, "
                "in the input's shape."
            )
        return out.to(x.dtype) if low else out

    def _steps(self, t: Tensor | int, x0: Tensor) -> Tensor:
        """t as a LongTensor (1,) or (B,) beside x0."""
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise Error(f"t has dtype {t.dtype}: need integers 0..{self.T - 1}, as from torch.randint.")
        if t.ndim > 1 or x0.ndim == 0 or (t.numel() != 1 and len(t) != len(x0)):
            raise Error(f"t has shape {tuple(t.shape)}: need (), (1,) or (B,) for x0 of shape {tuple(x0.shape)}.")
        if t.numel() and (int(t.min()) < 0 or int(t.max()) >= self.T):
            raise Error(f"t {int(t.min())}..{int(t.max())}: this diffusion has T={self.T}, so t = 0..{self.T - 1}.")
        return t.reshape(-1).to(x0.device, torch.long)

    def _shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        try:
            sizes = tuple(index(size) for size in shape)  # 16.5 is no size
        except (TypeError, ValueError):
            sizes = ()
        if not sizes or min(sizes) < 1:
            raise Error(f"shape {shape!r}: need positive sizes, as in (16, 3, 32, 32).")
        return sizes

    def _fill_tables(self, dtype: torch.dtype, device: torch.device) -> None:
        """The listing's three tables, in at least float32: half precision cannot hold 1 - alpha_bar."""
        dtype = torch.promote_types(dtype, torch.float32)
        betas = torch.linspace(self.schedule.beta_start, self.schedule.beta_end, self.T, dtype=dtype, device="cpu")
        alphas = 1 - betas
        for name, table in zip(TABLES, (betas, alphas, torch.cumprod(alphas, 0)), strict=True):
            self.register_buffer(name, table.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusionModel:
        """What `.to()`, `.double()` and the like call: the tables are made again, exact in the new dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill_tables(self.betas.dtype, self.betas.device)
        return self


def drop_tables(module: DiffusionModel, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the tables out of an old state dict. Raises: Error where they are those of another schedule."""
    for name in TABLES:
        saved = state_dict.pop(prefix + name, None)
        if saved is None:
            continue
        ours = getattr(module, name).cpu().double()
        if saved.shape != ours.shape or not torch.allclose(saved.cpu().double(), ours, rtol=1e-2, atol=1e-7):
            ends = f"{name} of T={saved.numel()}, {float(saved.flatten()[0]):.6g}..{float(saved.flatten()[-1]):.6g}"
            raise Error(
                f"the state dict holds {ends}, this model {name} of T={module.T}, {float(ours[0]):.6g}.."
                f"{float(ours[-1]):.6g}: make DiffusionModel with the T, beta_start and beta_end it was trained with."
            )
