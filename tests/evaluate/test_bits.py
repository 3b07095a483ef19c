"""Bits a dimension are those of the very weights that were opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kuosan.device import ComputeConfig, choose
from kuosan.errors import Error
from kuosan.evaluate.run import measure
from kuosan.sample import pipeline

FEW = {"likelihood": True, "likelihood_pictures": 2, "ode_pictures": 0}


def test_a_run_that_trains_on_meanwhile_is_refused_and_never_mixed(plain_run: Path, tmp_path: Path):
    opened = pipeline.load(plain_run, compute=choose(ComputeConfig(precision="bf16")))
    told = measure(opened, out=str(tmp_path / "out"), **FEW).likelihood  # the float32 weights of the same step
    assert told is not None and told["bound"]["n"] == 2
    with pytest.raises(Error, match="other weights"):
        measure(dataclasses.replace(opened, weights="0" * 64), out=str(tmp_path / "other"), **FEW)
