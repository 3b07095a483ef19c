"""Two processes are the run of one: the same images, losses to rounding, saves for either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.distributed_c10d import _get_object_coll_device

import warm_processes
from kuosan.train.distributed import World, join
from latent_models import autoencoder_run
from train.made_runs import Stopping, go, images, outcome

SETTINGS = {"train.max_steps": 12, "train.batch": 6, "train.evaluate_every": 6}


def launch(out: Path, data: Path, torchrun: bool = False, **settings: Any) -> list[dict[str, Any]]:
    """Train in two processes, which torchrun starts or which are warm forks; what each noted."""
    words = [f"{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    worker = Path(__file__).with_name("two_processes.py")
    tests = str(worker.parent.parent)
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    if torchrun:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        command = [*start, "--rdzv-endpoint", "localhost:0", str(worker), str(out), str(data), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        envs = [env | rank for rank in warm_processes.ranks(2)]
        processes = [warm_processes.start("train.two_processes:main", out, data, *words, env=each) for each in envs]
        for process in processes:  # each ends by itself, or after 150 s
            _, said = process.communicate(timeout=150)
            assert process.returncode == 0, said[-3000:]
    return [json.loads(out.with_name(f"{out.name}-rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and their run in one process."""
    folder = tmp_path_factory.mktemp("processes")
    go(folder / "one", images(folder / "pictures.npz"), SETTINGS)
    return folder


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in outcome(out)["rows"]]


def test_two_processes_see_the_same_images_and_have_the_same_losses_as_one(made: Path) -> None:
    ranks = launch(made / "two", made / "pictures.npz", torchrun=True)
    seen: list[Any] = []
    go(made / "again", made / "pictures.npz", SETTINGS, seen=seen)
    for step, ids, *_ in seen:
        shares = [dict(map(tuple, rank["ids"]))[step] for rank in ranks]
        assert [shares[row % 2][row // 2] for row in range(6)] == ids
    assert losses(made / "two") == pytest.approx(losses(made / "one"), rel=1e-6)
    assert [rank["reducing"] for rank in ranks] == [0, 0], "a reducer that outlives the group's other owners may hang"
    assert ranks[1]["said"] == [] or all("warning" not in line for line in ranks[1]["said"])


def test_a_run_of_two_stops_saves_and_goes_on_bit_for_bit_and_one_goes_on_with_it(made: Path) -> None:
    """A signal to one process stops both; resumed by two the losses are equal, by one they are so to rounding."""
    ranks = launch(made / "stopped", made / "pictures.npz", stop=5)
    assert [rank["code"] for rank in ranks] == [15, 15]
    shutil.copytree(made / "stopped", made / "alone")
    launch(made / "stopped", made / "pictures.npz")
    two = made / "two"
    if not two.exists():
        launch(two, made / "pictures.npz")
    assert losses(made / "stopped") == losses(two)
    report = Stopping()
    go(made / "alone", made / "pictures.npz", SETTINGS, report=report)
    assert any("with processes 2, now 1" in line for line in report.said)
    assert losses(made / "alone") == pytest.approx(losses(two), rel=1e-6)


def test_two_processes_share_latents_and_what_is_measured_of_them(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUOSAN_CACHE", str(made / "cache"))
    latents = {"model.codec.run": str(autoencoder_run(made / "autoencoder")), "data.size": 8}
    ranks = launch(made / "latents-two", made / "pictures.npz", **latents)
    assert [rank["code"] for rank in ranks] == [0, 0]
    assert sum("encoded in" in line for rank in ranks for line in rank["said"]) == 1, "by the first process alone"
    go(made / "latents-one", made / "pictures.npz", {**SETTINGS, **latents})
    assert losses(made / "latents-two") == pytest.approx(losses(made / "latents-one"), rel=1e-5)


def test_two_processes_take_the_steps_that_the_first_one_plans(made: Path) -> None:
    """The second one's clock is not asked: both plan the same, take as many steps, and go on with more minutes."""
    timed = {"train.minutes": 0.1, "train.save_every": -1, "train.evaluate_every": -1}
    for minutes in (0.1, 0.2):
        ranks = launch(made / "timed", made / "pictures.npz", **{**timed, "train.minutes": minutes})
        assert [rank["code"] for rank in ranks] == [0, 0], ranks
        assert ranks[0]["ids"][-1][0] == ranks[1]["ids"][-1][0], "the same last step"
        assert any(f"{minutes} min, of which" in line for line in ranks[0]["said"])
    after = outcome(made / "timed")
    plans = after["state"]["budget"]["plans"]
    assert {plan["reason"] for plan in plans} >= {"first", "minutes"} and plans[-1]["last"] == after["step"] >= 2


def test_an_error_of_the_first_process_ends_both_at_once(made: Path) -> None:
    begin = time.monotonic()
    ranks = launch(made / "one", made / "pictures.npz", **{"train.clip": 0.5})
    assert time.monotonic() - begin < 60
    assert [rank["code"] for rank in ranks] == [2, 2]
    assert all("train.clip: the run has 1.0, now 0.5" in rank["error"] for rank in ranks)


def test_processes_with_different_images_are_refused(made: Path) -> None:
    other = images(made / "other.npz", seed=9)
    ranks = launch(made / "differ", made / "pictures.npz", data1=other)
    assert all("process 1 sees other images" in rank["error"] for rank in ranks)
    assert not (made / "differ" / "config.yaml").exists()


@pytest.mark.slow
def test_of_two_processes_the_first_alone_encodes_captions(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="text encoders need transformers (pip install transformers)")
    from text.made_encoders import bert

    monkeypatch.setenv("KUOSAN_CACHE", str(made / "cache"))
    bert(made / "encoder")
    (made / "captioned").mkdir()
    for i, pixels in enumerate(np.load(made / "pictures.npz")["images"]):
        Image.fromarray(pixels).save(made / "captioned" / f"{i:02d}.png")
        (made / "captioned" / f"{i:02d}.txt").write_text(("a red fox", "a cat in the snow")[i % 2])
    told = {"model.text.kind": "encoder", "model.text.encoder": str(made / "encoder")}
    ranks = launch(made / "told-two", made / "captioned", **told)
    assert [rank["code"] for rank in ranks] == [0, 0]
    assert ["different ones encoded" in " ".join(rank["said"]) for rank in ranks] == [True, False]
    go(made / "told-one", made / "captioned", {**SETTINGS, **told})
    assert losses(made / "told-two") == pytest.approx(losses(made / "told-one"), rel=1e-5)


def test_objects_of_processes_on_gpus_go_from_cpu_to_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is restored after an out-of-memory needs no memory of the GPU for its way to the others."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: asked.update(rest, backend=backend))
    store = dist.HashStore()
    for device in ("cuda", "cpu"):
        join(World(0, 2, None, store), torch.device(device))
        asked[device] = asked["backend"]
    assert asked["cpu"] == "gloo" and dict(each.split(":") for each in asked["cuda"].split(",")) == {
        "cpu": "gloo",
        "cuda": "nccl",
    }
    # torch's own rule: of several backends, objects go by the one of the CPU
    monkeypatch.undo()
    dist.init_process_group(asked["cuda"].replace("nccl", "gloo"), store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert _get_object_coll_device() == "cpu"
    finally:
        dist.destroy_process_group()
