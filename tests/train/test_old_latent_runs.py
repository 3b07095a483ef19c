"""An autoencoder and a model of its latents that commit 47b8b58 made: both go on as that commit did.

tests/train/latents-47b8b58.zip holds their images, their saves of step 4, and what that commit came to at step 8. They
were begun by `kuosan train images --out ae AUTOENCODER` and `kuosan train images --out latents LATENTS`. On the machine
that made them today's saves of step 8 are equal in every byte of their weights, averages and moments.
"""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from kuosan import checkpoint
from shell import kuosan

ZIP = Path(__file__).parent / "latents-47b8b58.zip"
COMMON = [
    *("--size", 16, "--hold-out", 0.2, "--max-steps", 8, "--batch", 4, "--save-every", 4, "--keep", 5),
    *("--evaluate-every", 4, "--preview-every", 0, "--warmup", 2, "--precision", "fp32", "--threads", 1),
    *("--workers", 0, "--model.network.channels", 2, "--model.network.blocks", 1),
]
RUNS = {
    "ae": [
        *(*COMMON, "--objective", "autoencoder", "--multipliers", "1,1", "--groups", 1, "--latent-channels", 2),
        *("--model.network.middle_attention", "false", "--critic-channels", 4, "--critic-layers", 1),
        *("--perceptual", 0, "--critic-start", 2),
    ],
    "latents": [
        *(*COMMON, "--codec", "ae", "--head-channels", 2, "--multipliers", 1, "--attention", "false"),
        *("--model.network.groups", 2),
    ],
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_of_latents_goes_on_with_its_own_losses(
    name: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(ZIP) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUOSAN_CACHE", str(tmp_path / "cache"))
    said = kuosan("train", "--out", name) if alone else kuosan("train", "images", "--out", name, *RUNS[name])
    assert said.code == 0 and "going on from step 4 of 8" in said.out, said
    assert "warning" not in said.out + said.err, said
    found, wanted = (
        [json.loads(line) for line in (tmp_path / path).read_text().splitlines()]
        for path in (f"{name}/log.jsonl", f"whole/{name}.jsonl")
    )
    assert [row["step"] for row in found] == list(range(1, 9))
    for row, then in zip(found, wanted):
        assert row.keys() >= then.keys()
        for key, value in then.items():
            if isinstance(value, float) and key != "images_per_s":
                assert row[key] == pytest.approx(value, rel=1e-5), (key, row, then)
        assert ("held_out" in row) == ("held_out" in then)
        for key, value in then.get("held_out", {}).items():
            if isinstance(value, float):
                assert row["held_out"][key] == pytest.approx(value, rel=1e-5), (key, row, then)
    tree = checkpoint.load_config(tmp_path / name)
    assert (tree["data"]["layout"], tree["data"]["split_version"], tree["defaults"]) == (1, 1, 1)
