"""Out of memory at any place of a step: half the images at once, the same draws, and not a bit of the failed try."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kuosan import Error
from kuosan.errors import is_out_of_memory
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from kuosan.train import loop, saving
from kuosan.train import state as optimizers
from kuosan.train.batches import BatchStream, LossAwareSampler
from kuosan.train.loop import measure
from kuosan.train.memory import FILE
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Autoencoding, Classification, Diffusion
from kuosan.train.state import EMA, FlatParameters, State
from shell import mostly_slow
from train.made_runs import OwnNetwork, Stopping, begin, differences, go, images, mixed, outcome
from train.test_autoencoding import SETTINGS as AUTOENCODER
from train.test_classifier_training import labelled

CPU = "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 5 bytes."
ERRORS: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError(CPU),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 bytes."),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    MemoryError("Unable to allocate 1.2 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
BASE = {
    "train.max_steps": 6,
    "train.save_every": 2,
    "train.evaluate_every": 0,
    "train.batch": 6,
}
TRAINERS: dict[str, dict[str, Any]] = {
    "pixels": {"data.flip": "true", "model.network.dropout": 0.1},
    "accumulating": {"train.micro_batch": 4},
    "own": {},
    "importance": {"train.t_sampling": "importance", "model.schedule.T": 2, "train.batch": 30},
    "classifier": {"train.objective": "classifier"},
    "autoencoder": {"train.objective": "autoencoder"},
    "super_resolution": {"model.task.kind": "super_resolution", "model.task.scale": 2},
    "buckets": {"data.resize": "buckets", "data.size": 16},
}
PLACES = ("forward", "backward", "gradient", "optimiser", "half an update", "average", "half an average")
STEP = 3  # the fourth, between the saves of steps 2 and 4


def fault(patch: pytest.MonkeyPatch, place: str, steps: dict[int, int], error: BaseException) -> None:
    """Raise `error` at a place of steps, so many times each; in the middle of a pass where the place is one."""
    now, left, calls = [-1], dict(steps), [0]
    backward = loop.backward

    def watched(run: Any, drawn: Any) -> torch.Tensor:
        now[0], calls[0] = run.state.step, 0
        return backward(run, drawn)

    def failing(owner: Any, name: str, before: str, after: str = "") -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def tried(*given: Any, **more: Any) -> Any:
            fail(before)
            result = real(*given, **more)
            fail(after)
            return result

        patch.setattr(owner, name, tried)

    def fail(here: str) -> None:
        if here == place and left.get(now[0], 0):
            left[now[0]] -= 1
            raise error

    patch.setattr(loop, "backward", watched)
    for objective in (Diffusion, Classification, Autoencoding):
        failing(objective, "losses", "", "forward")
    failing(torch.autograd, "backward", "", "backward")
    failing(FlatParameters, "grad_norm", "gradient")
    failing(torch.optim.AdamW, "step", "optimiser", "half an update")
    failing(EMA, "update", "average", "half an average")
    failing(LossAwareSampler, "update_history", "history", "half a history")


class Bench:
    """The runs of one trainer: whole, and begun with half the micro-batch from the step of the fault."""

    def __init__(self, folder: Path, trainer: str) -> None:
        self.folder, self.trainer = folder, trainer
        self.settings = BASE | TRAINERS[trainer]
        if trainer == "autoencoder":
            self.settings |= {**AUTOENCODER, "train.autoencoder.critic_start": 2, "train.max_steps": 6}
        if trainer == "buckets":
            mixed(folder / "data")
            self.data = folder / "data"
        else:
            self.data = labelled(folder / "data", 24) if trainer == "classifier" else images(folder / "images.npz")
        batch = int(self.settings["train.batch"])
        self.micro = int(self.settings.get("train.micro_batch", batch))

    def go(self, name: str, **more: Any) -> Path:
        """One start of a run."""
        settings = self.settings | more.pop("settings", {})
        go(self.folder / name, self.data, settings, network=OwnNetwork() if self.trainer == "own" else None, **more)
        return self.folder / name

    def reference(self, halvings: int = 1) -> dict[str, Any]:
        """A run that was stopped before the step of the fault, and went on with a micro-batch of its user's choice."""
        name = f"reference-{halvings}"
        if not (self.folder / name).exists():
            self.go(name, report=Stopping(STEP - 1))
            self.go(name, settings={"train.micro_batch": self.micro // 2**halvings})
        return weights(self.folder / name)


@pytest.fixture(scope="module", params=mostly_slow(TRAINERS, "pixels", "autoencoder", "importance"))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp(request.param), request.param)


def weights(out: Path) -> dict[str, Any]:
    """Every bit of weights, average, moments and history, and every loss."""
    came = outcome(out)
    losses = {f"loss {row['step']}": row["loss"] for row in came["rows"]}
    return {key: value for key, value in came.items() if "/" in key} | losses


@pytest.mark.parametrize("place", [*PLACES, "history", "half a history"])
def test_a_step_out_of_memory_is_that_of_a_run_with_half_the_micro_batch(
    bench: Bench, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "history" in place and bench.trainer != "importance":
        pytest.skip("only importance sampling keeps a history of losses")
    reference, report = bench.reference(), Stopping()
    with monkeypatch.context() as patch:
        fault(patch, place, {STEP: 1}, RuntimeError(CPU))
        out = bench.go(place, report=report)
    assert not differences(weights(out), reference)
    said = [line for line in report.said if "out of memory" in line]
    assert len(said) == 1 and "step 4: out of memory" in said[0]
    assert f"micro-batch {bench.micro} -> {bench.micro // 2} from here on" in said[0] and "same draws" in said[0]
    assert [row.get("micro_batch") for row in Log(out / "log.jsonl").rows()] == [None] * 3 + [bench.micro // 2] + [
        None
    ] * 2
    shutil.rmtree(out)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_every_allocators_complaint_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "full"), Error("memory")])
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "images.npz")


def halvings(out: Path) -> list[tuple[str, int, int]]:
    return [(each["what"], each["step"], each["size"]) for each in json.loads((out / FILE).read_text())]


def test_it_halves_until_the_step_fits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch, "forward", {1: 1, 4: 1}, MemoryError())
    go(tmp_path / "run", data, BASE)
    assert halvings(tmp_path / "run") == [("training", 2, 3), ("training", 5, 1)]
    saved = checkpoint.load(tmp_path / "run").state["halvings"]
    assert saved == json.loads((tmp_path / "run" / FILE).read_text())


def test_at_one_image_the_run_ends_with_the_cures_and_its_last_save(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("backward", "half an update"):
        with monkeypatch.context() as patch:
            fault(patch, place, {3: 9}, torch.OutOfMemoryError("CUDA out of memory. Tried"))
            with pytest.raises(
                Error, match=r"step 4: out of memory with one image at once .*--network or --size"
            ) as met:
                go(tmp_path / place, data, BASE)
        assert met.value.exit_code == 71
        go(tmp_path / place, data, BASE)  # where there is memory again, it goes on as one that halved twice
        assert halvings(tmp_path / place) == [("training", 4, 3), ("training", 4, 1)]
        assert Log(tmp_path / place / "log.jsonl").path.read_text().count('"micro_batch": 1') == 1
    assert not differences(weights(tmp_path / "backward"), weights(tmp_path / "half an update"))


def test_a_run_that_goes_on_from_an_earlier_save_halves_at_the_same_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fault(patch, "forward", {3: 1}, MemoryError())
        go(tmp_path / "whole", data, BASE)
    with monkeypatch.context() as patch:
        fault(patch, "forward", {3: 1}, MemoryError())
        go(tmp_path / "killed", data, BASE, report=Stopping(4))
    saves = checkpoint.checkpoints(tmp_path / "killed")
    assert checkpoint.step_of(saves[0]) == 4 and checkpoint.step_of(saves[-1]) == 5
    for path in saves[1:]:
        shutil.rmtree(path)
    shutil.copytree(tmp_path / "killed", tmp_path / "copied")
    (tmp_path / "copied" / FILE).unlink()  # a save knows what came before it
    for name in ("killed", "copied"):
        report = Stopping()
        go(tmp_path / name, data, BASE, report=report)
        assert not differences(outcome(tmp_path / name), outcome(tmp_path / "whole"))
        assert not [line for line in report.said if "memory" in line]


def test_a_halving_after_the_newest_save_is_not_forgotten(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    with monkeypatch.context() as patch:
        fault(patch, "forward", {3: 1}, MemoryError())
        go(tmp_path / "whole", data, BASE | {"train.save_every": 100})
    with monkeypatch.context() as patch:
        fault(patch, "forward", {3: 1}, MemoryError())
        save = State.save
        patch.setattr(State, "save", lambda state, *a, **k: kill() if state.step else save(state, *a, **k))

        def kill() -> None:
            raise Killed

        with pytest.raises(Killed):
            go(tmp_path / "killed", data, BASE | {"train.save_every": 5})
    assert checkpoint.load(tmp_path / "killed").step == 0
    go(tmp_path / "killed", data, BASE | {"train.save_every": 100})
    assert not differences(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_another_micro_batch_of_the_users_own_puts_halvings_out_of_force(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fault(patch, "forward", {1: 1}, MemoryError())
        go(tmp_path / "run", data, BASE | {"train.max_steps": 3})
    go(tmp_path / "plain", data, BASE | {"train.max_steps": 1})
    seen: list[int] = []
    losses = Diffusion.losses
    monkeypatch.setattr(
        Diffusion, "losses", lambda own, net, part: seen.append(len(part.eps)) or losses(own, net, part)
    )
    go(tmp_path / "run", data, BASE | {"train.max_steps": 4})
    go(tmp_path / "run", data, BASE | {"train.max_steps": 5, "train.micro_batch": 6})
    go(tmp_path / "run", data, BASE | {"train.max_steps": 6})
    assert seen == [3, 3, 6, 3, 3]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"what": "training"}]', "nonsense", ""])
def test_a_damaged_list_of_halvings_is_said(data: Path, tmp_path: Path, text: str) -> None:
    go(tmp_path / "run", data, BASE | {"train.max_steps": 1})
    (tmp_path / "run" / FILE).write_text(text)
    report = Stopping()
    go(tmp_path / "run", data, BASE | {"train.max_steps": 2}, report=report)
    assert any(FILE in line and "cannot be read" in line for line in report.said)


def test_validation_and_previews_take_fewer_images_or_are_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        **BASE,
        "train.max_steps": 2,
        "train.evaluate_every": 1,
        "train.preview_every": 1,
        "train.preview_pictures": 4,
        "train.preview_steps": 1,
    }
    validate, preview, most = Monitor.validate, Monitor.preview, [2]

    def judged(monitor: Monitor, *given: Any) -> Any:
        if monitor.at_once > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return validate(monitor, *given)

    def drawn(monitor: Monitor, weights: Any, step: int, at_once: int) -> Any:
        if at_once > most[0]:
            raise RuntimeError(CPU)
        return preview(monitor, weights, step, at_once)

    go(tmp_path / "whole", data, settings)
    monkeypatch.setattr(Monitor, "validate", judged)
    monkeypatch.setattr(Monitor, "preview", drawn)
    report = Stopping()
    go(tmp_path / "run", data, settings, report=report)
    assert halvings(tmp_path / "run")[-2:] == [("validation", 1, 2), ("preview", 1, 2)]
    rows, whole = outcome(tmp_path / "run")["rows"], outcome(tmp_path / "whole")["rows"]
    assert [row["held_out"]["loss"] for row in rows] == pytest.approx([row["held_out"]["loss"] for row in whole])
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]
    assert (tmp_path / "run/samples/step-00000002.png").is_file()
    most[0] = 0
    go(tmp_path / "none", data, settings, report=report)
    assert sum("warning: step 2: no validation: out of memory with one" in line for line in report.said) == 1
    assert sum("warning: step 2: no preview: out of memory with one" in line for line in report.said) == 1
    assert not differences(weights(tmp_path / "none"), weights(tmp_path / "whole"))


def test_a_batch_that_was_too_much_beside_another_is_drawn_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "whole", data, BASE)
    with_noise, left = BatchStream._with_noise, {2: 1}

    def short(draws: BatchStream, step: int, batch: Any) -> Any:
        if left.get(step):
            left[step] -= 1
            raise MemoryError
        return with_noise(draws, step, batch)

    monkeypatch.setattr(BatchStream, "_with_noise", short)
    go(tmp_path / "run", data, BASE)
    assert not differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    left[4] = 2
    with pytest.raises(Error, match=r"step 5: out of memory in reading its 6 images .*--train.batch"):
        go(tmp_path / "ends", data, BASE)
    assert checkpoint.load(tmp_path / "ends").step == 4


def test_a_plan_is_measured_with_what_fits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run", data, BASE)
    losses = Diffusion.losses

    def short(own: Diffusion, network: Any, part: Any) -> torch.Tensor:
        if len(part.eps) > most:
            raise MemoryError
        return losses(own, network, part)

    monkeypatch.setattr(Diffusion, "losses", short)
    most = 3
    assert measure(run).seconds > 0 and run.sizes.halvings == []
    assert not run.state.parameters.grads.any()
    most = 0
    with pytest.raises(Error, match="step 1: out of memory with one image at once"):
        measure(run)


def test_a_run_that_is_begun_again_takes_no_halving_of_the_one_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of no step that ran out of memory and was killed; another learning rate replaces it."""

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        fault(patch, "forward", {0: 1}, MemoryError())
        patch.setattr(loop, "update", killed)
        go(tmp_path / "run", data, BASE)
    assert halvings(tmp_path / "run") == [("training", 1, 3)]
    other, report = BASE | {"train.lr": 5e-4}, Stopping(3)
    assert go(tmp_path / "run", data, other, report=report)
    assert any("a run of no step yet" in line for line in report.said) and not (tmp_path / "run" / FILE).exists()
    run = begin(tmp_path / "run", data, other)
    assert run.state.step == 4 and run.sizes.halvings == []
    saving.close(run)


def test_a_state_is_restored_in_place() -> None:
    """Where memory has run out on a GPU, there may be no room for the moments of the save beside those of now."""
    weights = torch.nn.Parameter(torch.ones(5))
    adam = torch.optim.AdamW([weights])

    def stepped() -> dict[str, torch.Tensor]:
        weights.grad = torch.rand(5)
        adam.step()
        return {name: value.clone() for name, value in optimizers.optimizer_tensors(adam).items()}

    optimizers.restore(adam, before := stepped())
    stepped()
    places = {name: value.data_ptr() for name, value in optimizers.optimizer_tensors(adam).items()}
    optimizers.restore(adam, before)
    assert {name: value.data_ptr() for name, value in optimizers.optimizer_tensors(adam).items()} == places
    assert all(torch.equal(value, before[name]) for name, value in optimizers.optimizer_tensors(adam).items())
