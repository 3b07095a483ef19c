"""A network's parameters and gradients as two flat buffers, so that clipping, averaging and stepping are one call each.

Matrices and kernels come first, then vectors (biases, norms), so that weight decay is a slice.

AdamW on the flat parameters, and the learning rate of each step.

The average of the weights over the run's tail, whose width grows with the run (Karras et al. 2024, eq. 123-127).

    ema_n = d_n · ema_{n-1} + (1 - d_n) · w_n,    d_n = (1 - 1/n)^(gamma + 1)

The first update copies the weights, so there is no warm-up to wait for. Kept in float64: at n = 10^5 an update weighs
1e-4, which float32 would round away.

All that a run is between two steps, to a checkpoint and back, bit for bit. No generator state: draws are keyed.

Everything that one training run works with, as the loop, the saves and the previews see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kuosan.errors import Error, shown
from kuosan.models.model import Model
from kuosan.options import Tree
from kuosan.storage import checkpoint
from kuosan.storage import tensors as weights
from kuosan.storage.files import Lock
from kuosan.storage.log import Log
from kuosan.train import memory
from kuosan.train.batches import BatchStream, LossAwareSampler
from kuosan.train.budget import Budget, Planned
from kuosan.train.config import Course, RunConfig, TrainConfig
from kuosan.train.distributed import World
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Objective
from kuosan.train.report import SilentTraining, TensorBoard


class FlatParameters:
    """Moves a network's trainable parameters into one float32 buffer; each keeps its name, shape and memory format.

    A parameter that two modules share stays one; frozen ones stay where they are.

    Raises:
        Error: nothing to train, or a parameter that is not float32.
    """

    def __init__(self, network: nn.Module) -> None:
        named = _trainable(network)
        self.named = [*((n, p) for n, p in named if p.ndim >= 2), *((n, p) for n, p in named if p.ndim < 2)]
        self.decayed = sum(p.numel() for _, p in self.named if p.ndim >= 2)
        total = sum(p.numel() for _, p in self.named)
        device = self.named[0][1].device
        self.values = torch.empty(total, device=device)
        self.grads = torch.zeros(total, device=device)
        begin = 0
        for _, p in self.named:
            place = slice(begin, begin + p.numel())
            p.data = _like(self.values[place], p).copy_(p.data)
            p.grad = _like(self.grads[place], p)
            begin += p.numel()
        first = {id(p): name for name, p in self.named}
        every = network.named_parameters(remove_duplicate=False)
        self.aliases = {
            name: first[id(p)] for name, p in every if id(p) in first
        }  # each name, and the one it is kept by

    def named_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Another flat buffer (an average, say) cut into the parameters' shapes, by each of their names."""
        begin, views = 0, {}
        for name, p in self.named:
            views[name] = _like(flat[begin : begin + p.numel()], p)
            begin += p.numel()
        return {name: views[kept] for name, kept in self.aliases.items()}

    def grad_norm(self) -> Tensor:
        """The gradient's 2-norm, (); not finite if any entry is not."""
        norm: Tensor = torch.linalg.vector_norm(self.grads)
        return norm

    def optimiser_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Two flat parameters that share the buffers' memory: the decayed part and the rest."""
        groups: list[dict[str, object]] = []
        for part, decay in ((slice(0, self.decayed), weight_decay), (slice(self.decayed, None), 0.0)):
            flat = nn.Parameter(self.values[part])
            flat.grad = self.grads[part]
            if flat.numel():
                groups.append({"params": [flat], "weight_decay": decay, "decayed": part.start == 0})
        return groups


def _trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    name = type(network).__name__
    for key, p in network.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise Error(f"{name}.{key} has no shape yet (a lazy module): call the network once on a batch first.")
    named = [(key, p) for key, p in network.named_parameters() if p.requires_grad and p.numel()]
    if not named:
        frozen = sum(1 for _ in network.parameters())
        why = f"all {frozen} parameters are frozen (requires_grad is False)" if frozen else "it has no parameters"
        raise Error(f"{name} has nothing to train: {why}.")
    for key, p in named:
        if p.dtype != torch.float32:
            raise Error(
                f"{name}.{key} is {str(p.dtype).removeprefix('torch.')}; weights in training are float32: pass "
                f"network.float() (--compute.precision bf16 computes in bf16 all the same), or freeze it."
            )
    return named


def _like(flat: Tensor, p: Tensor) -> Tensor:
    """A slice of a flat buffer viewed in a parameter's shape; kernels lie channels_last."""
    if p.ndim != 4:
        return flat.view(p.shape)
    out, into, height, width = p.shape
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)


def adamw(parameters: FlatParameters, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in its fused form: one kernel a step on every device that has it."""
    groups = parameters.optimiser_groups(config.weight_decay)
    fused = parameters.values.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=fused)


def learning_rate(config: TrainConfig, step: int, plan: Planned | None = None) -> float:
    """The rate of the `step`-th step (the first is 0): linear warm-up, then the configured shape.

    Under a time budget by the share of the run that is done, as the `plan` in force has it.
    """
    if plan is not None:
        return config.lr * _of_share(config, step, plan)
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    match config.lr_shape:
        case "cosine":
            done = (step - config.warmup) / max(1, config.max_steps - config.warmup)
            return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "inverse_sqrt":
            reference = max(config.warmup, 1)
            return config.lr / math.sqrt(max((step + 1) / reference, 1))
        case _:
            return config.lr


def _of_share(config: TrainConfig, step: int, plan: Planned) -> float:
    """The same as a factor of `lr`, where the run's length is a time: warm-up's share, or its steps."""
    now, after = plan.share_at(step), plan.share_at(step + 1)
    warmup = 0.0 if config.warmup >= 1 else config.warmup
    if step < config.warmup and not warmup:
        return (step + 1) / config.warmup
    if now < warmup:
        return min(1.0, after / warmup)
    match config.lr_shape:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * (now - warmup) / (1 - warmup)))
        case "inverse_sqrt":
            times = after / warmup if warmup else (step + 1) / max(config.warmup, 1)
            return 1 / math.sqrt(max(times, 1))
        case _:
            return 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float, weight_decay: float) -> None:
    """Give every group the same rate, and the decayed one its decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if group["decayed"]:
            group["weight_decay"] = weight_decay


def optimizer_tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `<group>.<what>`; empty before the first step."""
    state = {}
    for i, group in enumerate(optimizer.param_groups):
        for name, value in optimizer.state[group["params"][0]].items():
            state[f"{i}.{name}"] = value
    return state


def restore(optimizer: torch.optim.AdamW, state: dict[str, Tensor]) -> None:
    """Put named tensors from `tensors` back, bit for bit.

    Raises:
        KeyError: they are another optimiser's.
    """
    groups = optimizer.param_groups
    wanted = {f"{i}.{name}" for i in range(len(groups)) for name in ("step", "exp_avg", "exp_avg_sq")}
    if state and set(state) != wanted:
        raise KeyError(f"optimizer state has {sorted(state)}, not {sorted(wanted)}")
    for i, group in enumerate(groups):
        (parameter,) = group["params"]
        own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{i}.")}
        if own and own["exp_avg"].shape != parameter.shape:
            raise KeyError(f"{i}.exp_avg has {len(own['exp_avg'])} entries, the network {len(parameter)}")
        held = optimizer.state[parameter]
        if own.keys() == held.keys():  # in place: after an out-of-memory there may be no room for a second copy
            for name, value in own.items():
                held[name].copy_(value)
        else:
            # only fused AdamW keeps its step count beside the parameter
            beside = {name for name, value in own.items() if value.ndim or group["fused"]}
            own = {name: value.to(parameter.device) if name in beside else value for name, value in own.items()}
            optimizer.state[parameter] = {name: value.clone() for name, value in own.items()}


CACHED = 1 << 16  # weights whose float64 copies fit a processor's cache: half the time of all at once


def gamma_of(width: float) -> float:
    """The power `gamma` whose average has relative standard deviation `width` (Karras et al. 2024, eq. 126)."""
    assert width > 0
    # width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)); decreasing in gamma, so bisect
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2:
            low = middle
        else:
            high = middle
    return low


def exact(values: Tensor) -> Tensor:
    """The values in float64, on their device or, where that knows no float64 (Apple's GPUs), on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


class EMA:
    """The average of one flat buffer of weights."""

    def __init__(self, values: Tensor, width: float) -> None:
        self.set_width(width)
        self.values = exact(values)
        self.updates = 0

    def set_width(self, width: float) -> None:
        """The average's relative width from the next update on; 0: the weights themselves."""
        if getattr(self, "width", None) != width:
            self.width, self.gamma = width, gamma_of(width) if width else math.inf

    def decay(self, n: int) -> float:
        """How much of the average the n-th update keeps (n = 1 keeps nothing)."""
        return 0.0 if math.isinf(self.gamma) else (1 - 1 / n) ** (self.gamma + 1)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take in the weights after one optimiser step that was really taken."""
        self.updates += 1
        new = 1 - self.decay(self.updates)
        values = values.to(self.values.device)
        size = CACHED if values.device.type == "cpu" else max(1, values.numel())
        for kept, part in zip(torch.split(self.values, size), torch.split(values, size), strict=True):
            kept.lerp_(part.double(), new)


_COUNTED = ("bad", "skipped", "retry", "returns", "good_step")  # what state.json holds of a State


@dataclass
class State:
    """Everything a training step changes."""

    network: nn.Module
    parameters: FlatParameters
    optimizer: torch.optim.AdamW
    ema: EMA
    step: int = 0
    bad: int = 0  # steps in a row that were not finite
    skipped: int = 0  # such steps in all
    retry: int = 0  # returns to an earlier save, so that the same steps draw other noise
    returns: int = 0  # of them, those since the last save that was due
    good_step: int = 0  # the last save that was due, after a finite step: where too many bad ones return to
    history: LossAwareSampler | None = None  # of losses, under importance sampling
    constants: frozenset[str] = frozenset()  # buffers that hold infinities from the start, as causal masks do
    _buffers: list[Tensor] = field(default_factory=list)

    @classmethod
    def fresh(cls, network: nn.Module, config: TrainConfig, history: LossAwareSampler | None = None) -> State:
        """The state before the first step.

        Raises:
            Error: nothing to train, or a network whose state dict cannot be saved.
        """
        if what := weights.unwritable(network.state_dict()):
            raise Error(
                f"{type(network).__name__}'s {what}, which safetensors cannot hold; keep it out of the state dict, as "
                f"register_buffer(..., persistent=False) does. It takes tensors of {', '.join(weights.DTYPES)}."
            )
        parameters = FlatParameters(network)
        ema = EMA(parameters.values, config.ema)
        masks = frozenset(name for name, buffer in network.named_buffers() if bool(buffer.isinf().any()))
        optimizer = adamw(parameters, config)
        return cls(network, parameters, optimizer, ema, history=history, constants=masks)

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict with the averaged weights, float32; buffers are the network's own."""
        views = self.parameters.named_views(self.ema.values.float())
        return {name: views.get(name, value).detach() for name, value in self.network.state_dict().items()}

    def keep_buffers(self) -> None:
        """Remember the network's buffers (batch norm's statistics, say), which a forward pass may change."""
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what forward passes did to the buffers since `keep_buffers`."""
        for buffer, kept in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def counts(self) -> dict[str, int]:
        """What is counted beside the steps."""
        return {name: getattr(self, name) for name in _COUNTED}

    def count(self, counts: Mapping[str, int]) -> None:
        """Take these counts."""
        for name in _COUNTED:
            setattr(self, name, counts[name])

    def save(self, run: Path, config: Tree, keep: int, extra: dict[str, Any]) -> Path:
        """Write a checkpoint of this instant; see `checkpoint.save` for what can go wrong."""
        history = self.history.tensors() if self.history else {}
        return checkpoint.save(
            run,
            self.step,
            config=config,
            ema=self.averaged(),
            network=self.network.state_dict(),
            optimizer={**optimizer_tensors(self.optimizer), "ema.values": self.ema.values, **history},
            state={"ema_updates": self.ema.updates, **self.counts(), **extra},
            keep=keep,
            keep_steps=(self.good_step,),
            constants=self.constants,
        )

    def restore(self, saved: checkpoint.Saved) -> None:
        """Become the saved instant.

        Raises:
            KeyError, RuntimeError: it is another network's or optimiser's.
        """
        for name in ("ema_updates", *_COUNTED):
            value = saved.state.get(name)
            if type(value) is not int or not 0 <= value < 1 << 62:
                raise Error(
                    f"{saved.path}: state.json has {name} = {shown(value)}, not a whole number: it is damaged; use an "
                    f"earlier checkpoint, or copy the folder again."
                )
        self.network.load_state_dict(saved.network)
        tensors = dict(saved.optimizer)
        self.ema.values.copy_(tensors.pop("ema.values"))
        self.ema.updates = saved.state["ema_updates"]
        if self.history:
            self.history.restore(tensors)
        restore(self.optimizer, tensors)
        self.step = saved.step
        self.count(saved.state)

    def is_finite(self) -> bool:
        """Whether weights, average and moments hold only finite numbers; what does not is never saved."""
        held = [self.parameters.values, self.ema.values, *optimizer_tensors(self.optimizer).values()]
        return all(bool(torch.isfinite(values).all()) for values in held)


@dataclass
class Run:
    """Everything a training run works with."""

    folder: Path
    config: RunConfig
    model: Model
    parallel: nn.Module  # the network as it is called in training
    state: State
    batches: BatchStream
    objective: Objective
    log: Log | None  # on the first process only
    monitor: Monitor | None
    world: World
    report: SilentTraining
    extra: dict[str, Any]  # what every checkpoint notes beside the state: fingerprint, versions
    board: TensorBoard | None = None  # on the first process, where rows go to TensorBoard as well
    lock: Lock | None = None  # held on the first process
    new_data: bool = False  # it goes on with other images than it was trained on before
    closed: bool = False  # it has let go of its files and of the other processes
    saved_at: int = -1  # the step of the newest save; -1: there is none
    tried_at: int = -1  # the step of the newest attempt
    failed_saves: int = 0  # in a row
    unwritten: list[dict[str, Any]] = field(default_factory=list)  # rows that the log could not take yet
    times: list[tuple[float, int]] = field(default_factory=list)  # when the last steps ended, and which
    sizes: memory.Sizes = field(default_factory=memory.Sizes)
    on_disk: tuple[int, dict[str, int]] = (0, {})  # the save that the state followed from, and its counts then
    budget: Budget | None = None  # of time, in place of a number of steps
    course: Course = Course()  # noqa: RUF009 (frozen); what changed on the way

    @property
    def train(self) -> TrainConfig:
        """The settings of the step to come."""
        return self.course.at(self.state.step, self.config.train)

    @property
    def last(self) -> int:
        """The last step; under a time budget, as it is planned now."""
        return self.config.train.max_steps if self.budget is None else self.budget.last(self.state.step)

    def is_time(self, every: int) -> bool:
        """Whether what is done every so many steps (0: never, -1: at a budget's looks) is to be done after this one."""
        step, budget = self.state.step, self.budget
        plan = budget.plan(step - 1) if budget is not None and budget.plans else None
        ends = step == (self.config.train.max_steps if plan is None else plan.last)  # that is 0 without a plan
        if every < 0:
            return plan is not None and (step in plan.looks or (ends and plan.closing))
        return bool(every) and (step % every == 0 or ends)
