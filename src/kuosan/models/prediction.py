"""What a checkpoint's network predicts, eps or v, and whether its noise ends at no signal at all: by its own marks.

In this order, the first that says something counts, and is said with the answer:

1. marker tensors          `v_pred`, `ztsnr`
2. the header              modelspec.prediction_type and .architecture; ss_v_parameterization, ss_zero_terminal_snr
3. a .yaml beside it       parameterization: "v"; VScaling, EpsScaling; the betas
4. scheduler_config.json   prediction_type, rescale_betas_zero_snr
5. shapes                  Stable Diffusion 1 has one kind, eps; 2 and XL have both, and their shapes are the same
6. a self-test             one step each at some levels: `self_test`, which may answer that it cannot say

What no mark and no test says is refused, naming --prediction; nothing is guessed.

The test: on flat fields x0 with noise eps, x = alpha x0 + sigma eps, a network that predicts eps gives <out, eps> =
<eps, eps>, one that predicts v = alpha eps - sigma x0 gives alpha <eps, eps>; so p = (<out, eps>/<eps, eps> - alpha) /
(1 - alpha) is 1 for eps and 0 for v: what is left of the noise in x0 by the other formula is (1 - alpha) times it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kuosan import config as trees
from kuosan import seeds
from kuosan.errors import Error, shown
from kuosan.regular import read_regular
from kuosan.storage.files import explained

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["eps", "v"]
_WORDS: dict[str, Prediction] = {
    "eps": "eps",
    "epsilon": "eps",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "v_pred": "v",
    "vpred": "v",
    "velocity": "v",
}


@dataclass(frozen=True)
class Kind:
    """What a network predicts and why it is taken to; `prediction` is None where only a test can say."""

    prediction: Prediction | None
    reason: str
    zero_snr: bool = False  # the last step has no signal: alpha_bar = 0 (Lin et al. 2023)
    zero_reason: str = ""
    notes: tuple[str, ...] = ()  # marks that say otherwise, and did not count

    def lines(self) -> list[str]:
        """For a person: what was recognised, by what, and what contradicts it."""
        found = [f"predicts {self.prediction or 'eps or v, which no mark of it says'} ({self.reason})"]
        if self.zero_snr:
            found.append(f"zero terminal SNR ({self.zero_reason})")
        return found + list(self.notes)


@dataclass(frozen=True)
class _Said:
    """What one place says."""

    place: str
    prediction: Prediction | None = None
    zero: bool | None = None
    zero_place: str = ""


def recognised(
    family: str,
    names: Collection[str],
    metadata: Mapping[str, str],
    sheet: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    asked: Prediction | None = None,
) -> Kind:
    """The kind of a checkpoint by its marks.

    Args:
        names: of its tensors.
        metadata: of its header.
        sheet: the .yaml beside it.
        scheduler: its scheduler_config.json.
        asked: what a person says it predicts, which counts before every mark.

    Raises:
        Error: a mark that says what is neither eps nor v.
    """
    said = [_Said("as was given, --prediction", asked)] if asked else []
    marked = [name for name in ("v_pred", "ztsnr") if name in names]
    if marked:
        v: Prediction | None = "v" if "v_pred" in marked else None
        zero_marked = True if "ztsnr" in marked else None
        said.append(_Said("marker tensor v_pred", v, zero_marked, "marker tensor ztsnr"))
    said += [each for each in (_header(metadata), _sheet(sheet), _scheduler(scheduler)) if each is not None]
    if family == "sd1":
        said.append(_Said("its shapes are those of Stable Diffusion 1, which predicts eps", "eps", None))
    named = [each for each in said if each.prediction is not None]
    zeros = [each for each in said if each.zero is not None]
    found, reason = (named[0].prediction, named[0].place) if named else (None, "no mark of it says so")
    notes = [
        f"{each.place}: {each.prediction}, which does not count beside the marks before it"
        for each in named[1:]
        if each.prediction != found and not each.place.startswith("its shapes")
    ]
    zero = zeros[0] if zeros else None
    place = (zero.zero_place or zero.place) if zero and zero.zero else ""
    return Kind(found, reason, bool(zero and zero.zero), place, tuple(notes))


def _header(metadata: Mapping[str, str]) -> _Said | None:
    for key in ("modelspec.prediction_type", "prediction_type"):
        if key in metadata:
            return _Said(f"{key} in its header", _word(metadata[key], key), _zero_of(metadata))
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.endswith("-v"):
        return _Said(f"modelspec.architecture {shown(architecture)} in its header", "v", _zero_of(metadata))
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        return _Said("ss_v_parameterization in its header", "v", _zero_of(metadata))
    zero = _zero_of(metadata)
    return None if zero is None else _Said("ss_zero_terminal_snr in its header", None, zero)


def _zero_of(metadata: Mapping[str, str]) -> bool | None:
    said = metadata.get("ss_zero_terminal_snr", metadata.get("modelspec.zero_terminal_snr", "")).lower()
    return {"true": True, "false": False}.get(said)


def _word(value: object, key: str) -> Prediction:
    """A prediction by any tool's word for it. Raises: Error for another one."""
    found = _WORDS.get(str(value).lower())
    if found is None:
        raise Error(f"{key} is {shown(value)}; of such a model allowed: eps (epsilon) and v (v_prediction).")
    return found


def _sheet(sheet: Mapping[str, Any] | None) -> _Said | None:
    """What a .yaml of Stability AI's two code bases says."""
    model = _within(sheet, "model")
    params = _within(model, "params")
    if params is None:
        return None
    scaling = _within(_within(_within(params, "denoiser_config"), "params"), "scaling_config")
    if scaling is not None:
        target = str(scaling.get("target", "")).rpartition(".")[2]
        scalings: dict[str, Prediction] = {"VScaling": "v", "EpsScaling": "eps"}
        found = scalings.get(target)
        if found is None:
            raise Error(f"scaling_config in the .yaml beside it is {shown(target)}; allowed: EpsScaling and VScaling.")
        return _Said(f"{target} in the .yaml beside it", found, None)
    if "parameterization" in params:
        return _Said("parameterization in the .yaml beside it", _word(params["parameterization"], "parameterization"))
    if str(_within(sheet, "model", {}).get("target", "")).startswith("ldm."):
        return _Said("the .yaml beside it, which names no parameterization, so eps", "eps")
    return None


def _within(tree: Any, key: str, default: Any = None) -> Any:
    found = tree.get(key, default) if isinstance(tree, Mapping) else default
    return found if isinstance(found, Mapping) else default


def _scheduler(config: Mapping[str, Any] | None) -> _Said | None:
    if config is None:
        return None
    place = "scheduler_config.json"
    zero = config.get("rescale_betas_zero_snr")
    zero = zero if isinstance(zero, bool) else None
    zero_place = f"rescale_betas_zero_snr in its {place}"
    given = config.get("prediction_type")
    if given is None:  # the class's own default, which is what such a folder means
        return _Said(f"{place}, which names no prediction_type, so epsilon", "eps", zero, zero_place)
    return _Said(f"prediction_type in its {place}", _word(given, f"prediction_type in {place}"), zero, zero_place)


def sheet_of(path: Path) -> dict[str, Any] | None:
    """The .yaml beside a single file, of the same name; None where there is none. Raises: Error: no plain YAML."""
    for suffix in (".yaml", ".yml"):
        beside = path.with_suffix(suffix)
        if beside.is_file():
            with explained(beside, doing="read"):
                return trees.parse(read_regular(beside).decode(errors="replace"), beside)
    return None


def schedule_of(sheet: Mapping[str, Any] | None) -> dict[str, Any]:
    """The betas that a .yaml names, in the words of scheduler_config.json."""
    params = _within(_within(sheet, "model"), "params") or {}
    words = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
    return {new: params[old] for old, new in words.items() if isinstance(params.get(old), int | float)}


def undecided(where: str, tested: bool = False) -> Error:
    """The sentence about a network of which nothing says what it predicts."""
    why = ", and a test of one step could not say either" if tested else ""
    return Error(
        f"{where}: no mark of it says whether it predicts eps or v{why}; a wrong guess makes noise of every image. "
        f"Say which: --prediction eps (SDXL, SD 2 base) or --prediction v (NoobAI v-pred, SD 2 at 768)."
    )


LEVELS = (300, 450, 600, 700)  # timesteps of 1,000 of the test: alpha from 0.83 to 0.26 in Stable Diffusion's table
_NEAR = 0.35  # of p to 1 or 0, in the mean
_SPREAD = 0.5  # of p between levels, at most


def self_test(
    network: Callable[[Tensor, int], Tensor],
    shape: tuple[int, int, int],
    alpha_bars: Mapping[int, float],
    seed: int = 0,
) -> Prediction | None:
    """What a network predicts, by one step each on noised flat fields; None where that does not say.

    Args:
        network: (x, t) -> its output, conditioned on the empty prompt; x (B, C, H, W).
        shape: C, H, W of what it denoises.
        alpha_bars: of each of `LEVELS`.
    """
    import torch

    values = (-0.8, 0.0, 0.8)  # of the flat fields, in standard deviations of latents
    found = []
    for t in LEVELS:
        alpha, sigma = math.sqrt(alpha_bars[t]), math.sqrt(1 - alpha_bars[t])
        eps = torch.stack([seeds.normal([(seed, "self-test", t, i)], shape)[0] for i in range(len(values))])
        eps = eps - eps.mean((2, 3), keepdim=True)
        x = alpha * torch.tensor(values).reshape(-1, 1, 1, 1) + sigma * eps
        with torch.no_grad():
            out = network(x, t).float().cpu()
        share = float((out * eps).sum() / (eps * eps).sum())
        found.append((share - alpha) / (1 - alpha))
    if not all(math.isfinite(p) for p in found):
        return None
    mean = sum(found) / len(found)
    if max(found) - min(found) > _SPREAD:
        return None
    if abs(mean - 1) < _NEAR:
        return "eps"
    return "v" if abs(mean) < _NEAR else None
