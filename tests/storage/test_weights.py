"""What a weights file is, its first bytes decide; a header's length may look like the beginning of something else."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from kuosan.errors import Error
from kuosan.models.latents import prepare
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


def _private() -> int:
    """Bytes of this process that no file lies behind."""
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def test_tensors_lie_mapped_and_what_is_written_to_them_stays_here(tmp_path: Path) -> None:
    path, size = tmp_path / "w.safetensors", 1 << 26
    weights.write(path, {name: torch.full((size // 16,), 1.0) for name in "abcd"})
    before, content = _private(), path.read_bytes()[-64:]
    found, sha256 = weights.read_hashed(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert _private() - before < size // 4
    assert float(sum(value.sum() for value in found.values())) == size // 4  # every page is looked at
    assert _private() - before < size // 4
    found["a"].mul_(2)
    assert float(found["a"][-1]) == 2 and path.read_bytes()[-64:] == content
    path.unlink()  # a save that is rotated away keeps its pages as long as they are used
    assert float(found["d"][-1]) == 1


def test_every_dtype_comes_back_as_it_was_also_where_a_file_begins_it_at_an_odd_place(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for name, dtype in weights.DTYPES.items():
        bits = torch.arange(24, dtype=torch.uint8) % 2
        tensor = bits.to(dtype) if dtype == torch.bool else bits.view(dtype) if dtype != torch.uint8 else bits
        weights.write(path, {"w": tensor, "none": tensor[:0], "one": tensor[1].reshape(())})
        found = weights.read(path)
        assert {value.dtype for value in found.values()} == {dtype} and found["one"].shape == (), name
        assert found["w"].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist(), name
        entry = {"w": {"dtype": name, "shape": [len(tensor)], "data_offsets": [0, 24]}}
        for blanks in range(8):
            header = json.dumps(entry).encode() + b" " * blanks
            path.write_bytes(struct.pack("<Q", len(header)) + header + bits.numpy().tobytes())
            odd = weights.read(path)["w"]
            assert odd.data_ptr() % odd.element_size() == 0
            assert odd.view(torch.uint8).tolist() == bits.tolist(), (name, blanks)


@pytest.mark.parametrize("change", ["another file", "other bytes"])
def test_a_file_that_is_replaced_between_its_hash_and_its_use_is_refused(tmp_path: Path, monkeypatch, change) -> None:
    path, opened = tmp_path / "w.safetensors", weights.safe_open
    weights.write(path, {"w": torch.ones(64)})

    def swapped(*args: object, **options: object) -> object:
        if change == "another file":
            weights.write(tmp_path / "new", {"w": torch.zeros(64)})
            (tmp_path / "new").rename(path)
        else:
            with path.open("r+b") as stream:
                stream.seek(-4, os.SEEK_END)
                stream.write(b"0000")
            os.utime(path, ns=(0, 0))
        return opened(*args, **options)

    monkeypatch.setattr(weights, "safe_open", swapped)
    with pytest.raises(Error, match=r"w\.safetensors was replaced while it was read"):
        weights.read_hashed(path)


def test_what_only_the_library_refuses_is_named_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(Error, match=r"w\.safetensors: its header is not the JSON of safetensors"):
        weights.read(path)


def test_an_undrawn_network_takes_tensors_as_they_lie_and_prepare_copies_them(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    drawn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    weights.write(
        path, {name: value.bfloat16() if name == "1.bias" else value for name, value in drawn.state_dict().items()}
    )
    found = weights.read(path)
    network = weights.undrawn(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)))
    weights.assign(network, found)
    assert network[0].weight.data_ptr() == found["0.weight"].data_ptr() and network[1].bias.dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        ready = prepare(network, dtype=dtype)
        assert ready[0].weight.dtype == dtype and not ready[0].weight.requires_grad
        assert not {each.data_ptr() for each in ready.parameters()} & {each.data_ptr() for each in network.parameters()}
        assert torch.equal(ready[0].weight, drawn[0].weight.to(dtype))
    assert all(each.requires_grad for each in network.parameters())
    with pytest.raises(RuntimeError, match="size mismatch"):
        weights.assign(network, {**found, "1.bias": torch.zeros(4)})
