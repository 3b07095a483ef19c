"""What a weights file is, its first bytes decide; a header's length may look like the beginning of something else."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest
import torch

from kuosan.errors import Error
from kuosan.storage import tensors as weights


@pytest.mark.parametrize("length", [384, 640, 896, 1152, 1408])
def test_a_header_whose_length_begins_as_a_pickle_does_is_read(tmp_path: Path, length: int) -> None:
    tensors = {"a": torch.arange(6.0)}
    weights.write(tmp_path / "short.safetensors", tensors)
    content = (tmp_path / "short.safetensors").read_bytes()
    there = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + there].ljust(length)  # spaces may stand behind the JSON
    path = tmp_path / "padded.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + there :])
    assert path.read_bytes()[:2] in [bytes([0x80, protocol]) for protocol in range(1, 6)]
    assert weights.kind(path) == "safetensors"
    assert torch.equal(weights.read(path)["a"], tensors["a"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_still_refused_unread(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"{" * 9: list(range(500))}, protocol=protocol))
    with pytest.raises(Error, match="a pickle"):
        weights.read(path)
