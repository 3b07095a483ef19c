"""Checkpoints: what is saved is read back bit for bit; what is damaged, foreign or hostile is refused by name."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from faults import scenario
from kuosan import config
from kuosan.errors import Error
from kuosan.storage import checkpoint, files
from kuosan.storage import tensors as weights


def save(run: Path, *steps: int, **options: object) -> Path:
    for step in steps:
        last = checkpoint.save(run, step, **(scenario.state_of(step) | options))
    return last


def steps(run: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(run)]


def test_what_is_saved_is_loaded_bit_for_bit_from_the_run_or_the_checkpoint(tmp_path):
    folder = save(tmp_path, 1, 2)
    assert folder == tmp_path / "checkpoints" / "step-00000002"
    for path in (tmp_path, folder, str(tmp_path)):
        saved = checkpoint.load(path)
        assert saved.step == 2 and saved.path == folder and saved.damaged == ()
        assert scenario.same(saved)
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "ema.safetensors", "network.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip


def test_sampling_reads_the_averaged_weights_alone(tmp_path):
    folder = save(tmp_path, 1)
    damage = bytearray((folder / "optimizer.safetensors").read_bytes())
    damage[-1] ^= 1
    (folder / "optimizer.safetensors").write_bytes(damage)
    saved = checkpoint.load(folder, parts=("ema",))
    assert torch.equal(saved.ema["conv.weight"], scenario.state_of(1)["ema"]["conv.weight"])
    assert saved.network == {} and saved.optimizer == {}
    with pytest.raises(Error, match=r"optimizer\.safetensors is damaged"):
        checkpoint.load(folder)
    assert checkpoint.load_config(folder) == scenario.state_of(1)["config"]


def test_rotation_keeps_the_newest_and_the_named_steps(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep_steps=(2,))
    assert steps(tmp_path) == [2, 4, 5]
    save(tmp_path, 6, keep=4)
    assert steps(tmp_path) == [2, 4, 5, 6]


def test_saving_after_a_roll_back_drops_the_future_that_was_given_up(tmp_path):
    save(tmp_path, 1, 2, 3, keep=3)
    save(tmp_path, 2, keep=3)
    assert steps(tmp_path) == [1, 2]


def test_keeping_fewer_than_two_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="keep is 1"):
        save(tmp_path, 1, keep=1)


def test_a_non_finite_weight_is_never_saved(tmp_path):
    save(tmp_path, 1)
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.zeros(1000, dtype=dtype)
            weight[777] = value
            with pytest.raises(Error, match=r"step 2 is not saved: network 'w' holds NaN or infinity"):
                save(tmp_path, 2, network={"w": weight})
    assert steps(tmp_path) == [1]


def test_tied_and_strided_tensors_are_saved_whole(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    save(tmp_path, 1, network={"in": table, "out": table, "turned": table.t(), "slice": table[1:, ::2]})
    loaded = checkpoint.load(tmp_path).network
    assert torch.equal(loaded["in"], table) and torch.equal(loaded["out"], table)
    assert torch.equal(loaded["turned"], table.t()) and torch.equal(loaded["slice"], table[1:, ::2])
    loaded["in"].zero_()
    assert torch.equal(loaded["out"], table)  # memory of its own


def test_every_dtype_keeps_its_bits_and_the_safetensors_library_agrees(tmp_path):
    tensors = {}
    for i, (name, dtype) in enumerate(weights.DTYPES.items()):
        raw = torch.arange(i + 3).to(torch.float32) % 2
        tensors[name] = raw.to(dtype)
        tensors[f"{name}.scalar"] = raw[1].to(dtype).clone()
    tensors["none"] = torch.zeros(0, 4, dtype=torch.bfloat16)
    weights.write(tmp_path / "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    for found in (load_file(tmp_path / "ours.safetensors"), weights.read(tmp_path / "theirs.safetensors")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def flips(path: Path, count: int) -> list[int]:
    """Bits spread over the whole file."""
    bits = 8 * path.stat().st_size
    return [int(bit) for bit in np.linspace(0, bits - 1, min(count, bits))]


def check_flips(run: Path, count: int) -> int:
    save(run, 1, 2)
    found = 0
    for path in scenario.files_of(run, 2):
        whole = path.read_bytes()
        for bit in flips(path, count):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            newest = checkpoint.latest(run)
            assert newest.path == checkpoint.folder(run, 1), (path, bit)
            assert len(newest.damaged) == 1 and f"{path.name} is damaged" in newest.damaged[0], (path, bit, newest)
            with pytest.raises(Error, match=path.name):
                checkpoint.load(path.parent)
            found += 1
        path.write_bytes(whole)
    assert checkpoint.latest(run) == (checkpoint.folder(run, 2), ())
    return found


def test_a_flipped_bit_anywhere_is_found_named_and_fallen_back_from(tmp_path):
    assert check_flips(tmp_path, 100) == 6 * 100


@pytest.mark.slow
def test_a_flipped_bit_at_a_thousand_places_of_every_file_is_found(tmp_path):
    assert check_flips(tmp_path, 1000) > 5 * 1000


def test_a_file_cut_anywhere_is_found_named_and_fallen_back_from(tmp_path):
    save(tmp_path, 1, 2)
    for path in scenario.files_of(tmp_path, 2):
        whole = path.read_bytes()
        for size in {0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            newest = checkpoint.latest(tmp_path)
            assert newest.path == checkpoint.folder(tmp_path, 1)
            assert len(newest.damaged) == 1 and f"{path.name} is damaged" in newest.damaged[0], newest
        path.unlink()
        newest = checkpoint.latest(tmp_path)
        assert newest.path == checkpoint.folder(tmp_path, 1) and f"{path.name} is missing" in newest.damaged[0]
        path.write_bytes(whole)
    saved = checkpoint.load(tmp_path)
    assert saved.step == 2 and scenario.same(saved)


def test_a_run_is_loaded_from_its_newest_good_checkpoint_and_says_what_it_passed_over(tmp_path):
    save(tmp_path, 1, 2)
    (checkpoint.folder(tmp_path, 2) / "config.yaml").write_text("edited: true\n")
    saved = checkpoint.load(tmp_path, parts=("ema",))
    assert saved.step == 1 and len(saved.damaged) == 1 and "config.yaml is damaged" in saved.damaged[0]


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    save(tmp_path, 1, 2)
    for path in checkpoint.checkpoints(tmp_path):
        (path / "state.json").unlink()
    with pytest.raises(Error, match=r"no checkpoint of .* can be used:\n.*step-00000002.*\n.*step-00000001"):
        checkpoint.latest(tmp_path)
    assert checkpoint.latest(tmp_path / "elsewhere") == (None, ())


def test_a_checkpoint_rotated_away_while_it_is_read_is_no_error(tmp_path, monkeypatch):
    save(tmp_path, 1)
    verify = files.verify

    def rotate(path: Path) -> None:
        monkeypatch.setattr(files, "verify", verify)
        save(tmp_path, 2)
        shutil.rmtree(path)
        verify(path)

    monkeypatch.setattr(files, "verify", rotate)
    assert checkpoint.latest(tmp_path) == (checkpoint.folder(tmp_path, 2), ())


class Bomb:
    """Unpickled, it would leave a marker."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, ("import sys; sys.kuosan_bomb = True",)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("old", [False, True])
def test_pickle_is_refused_by_its_bytes_whatever_its_suffix_and_never_runs(tmp_path, name, old):
    torch.save({"state_dict": Bomb()}, tmp_path / name, _use_new_zipfile_serialization=not old)
    for read in (checkpoint.load, weights.read):
        with pytest.raises(Error, match=r"which can run code when opened: kuosan never opens it"):
            read(tmp_path / name)
    assert not hasattr(sys, "kuosan_bomb")


def test_pickle_inside_a_checkpoint_with_a_matching_manifest_is_refused(tmp_path):
    folder = tmp_path / "step-00000001"
    with files.staged(folder) as staging:
        for part in checkpoint.PARTS:
            torch.save({"w": Bomb()}, staging / f"{part}.safetensors")
        (staging / "config.yaml").write_text("a: 1\n")
        (staging / "state.json").write_text('{"step": 1, "state": {}}')
    with pytest.raises(Error, match=r"ema\.safetensors is a zip of pickled objects"):
        checkpoint.load(folder)
    assert not hasattr(sys, "kuosan_bomb")


@pytest.mark.parametrize(
    "text, words",
    [
        ("!!python/object/apply:os.system [x]\n", "not plain YAML"),
        ("- 1\n", "holds list"),
        ("[" * 1000, "not plain YAML"),
        ("a: &a [x, x]\nb: [*a, *a]\n", r"alias \*a: write it out"),
        ("a: 1\nb: {c: 1, c: 2}\n", "c is given twice"),
    ],
)
def test_a_configuration_that_is_no_plain_mapping_is_refused(tmp_path, text, words):
    with pytest.raises(Error, match=words):
        config.parse(text, tmp_path / "config.yaml")


def other(tmp_path: Path, what: str) -> Path:
    run = tmp_path / "run"
    folder = save(run, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, tmp_path / "bare.safetensors")
    return {
        "nothing": tmp_path / "absent",
        "empty": tmp_path / "empty",
        "pictures": tmp_path,
        "text": tmp_path / "note.txt",
        "bare": tmp_path / "bare.safetensors",
        "inside": run / "checkpoints",
        "part": folder / "ema.safetensors",
        "fresh": tmp_path / "fresh",
    }[what]


@pytest.mark.parametrize(
    "what, words",
    [
        ("nothing", "does not exist"),
        ("empty", "is not a run: it is empty"),
        ("pictures", "is not a run: it holds no checkpoints"),
        ("text", "is no checkpoint"),
        ("bare", "bare weights without a configuration"),
        ("inside", "is the inside of a run: give .*run"),
        ("part", "is one file of a checkpoint: give its folder, .*step-00000001"),
        ("fresh", "has no checkpoint yet"),
    ],
)
def test_a_path_that_is_no_run_is_refused_by_what_it_is(tmp_path, what, words):
    path = other(tmp_path, what)
    with pytest.raises(Error, match=rf"{path}.*{words}|{words}"):
        checkpoint.load(path)


def lie(header: dict[str, object] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[object], start: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


F = entry("F32", [2], 0, 8)
LIES = {
    "a header of a terabyte": (lie({"w": F}, bytes(8), 1 << 40), "its header claims 1.0 TB"),
    "a header past the end": (lie({"w": F}, bytes(8), 5000), "is cut short: its header alone needs 5008"),
    "overlap": (lie({"w": F, "v": entry("F32", [2], 4, 12)}, bytes(12)), "'v' overlaps the tensor before it"),
    "a gap": (lie({"w": F, "v": entry("F32", [1], 12, 16)}, bytes(16)), "'v' leaves a gap before it"),
    "past the end": (lie({"w": entry("F32", [20], 0, 80)}, bytes(8)), "is cut short"),
    "bytes of nobody": (lie({"w": F}, bytes(9)), "has bytes that belong to no tensor"),
    "an unknown dtype": (lie({"w": entry("F31", [2], 0, 8)}, bytes(8)), "tensor 'w' is impossible"),
    "a shape of 2^60": (lie({"w": entry("F32", [1 << 60], 0, 1 << 62)}, bytes(8)), "is cut short"),
    "a shape that wraps": (lie({"w": entry("F32", [1 << 32, 1 << 32], 0, 0)}, b""), "tensor 'w' is impossible"),
    "a negative shape": (lie({"w": entry("F32", [-2, -1], 0, 8)}, bytes(8)), "tensor 'w' is impossible"),
    "a negative offset": (lie({"w": entry("F32", [2], -8, 0)}, bytes(8)), "tensor 'w' is impossible"),
    "a shape of words": (lie({"w": entry("F32", ["2"], 0, 8)}, bytes(8)), "tensor 'w' is impossible"),
    "a shape of floats": (lie({"w": entry("F32", [2.0], 0, 8)}, bytes(8)), "tensor 'w' is impossible"),
    "a dtype that is a list": (lie({"w": {**F, "dtype": []}}, bytes(8)), "tensor 'w' is impossible"),
    "no entry": (lie({"w": 3}, bytes(8)), "tensor 'w' is impossible"),
    "a name twice": (lie(b'{"w": 1, "w": 2}', bytes(8)), "a name appears twice"),
    "no JSON": (lie(b"{nothing", bytes(8)), "is not the JSON of safetensors"),
    "a deep header": (lie(b'{"w":' + b"[" * 200_000, b""), "is not the JSON of safetensors"),
    "text": (b"once upon a time there was", "is not a safetensors file"),
    "nothing": (b"", "is not a safetensors file"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, what):
    content, words = LIES[what]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(Error, match=words):
        weights.read(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_to_a_safetensors_file_is_an_error_or_still_tensors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "w.safetensors"
    weights.write(path, {"w": torch.ones(3), "v": torch.zeros(2, 2, dtype=torch.bfloat16)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        tensors = weights.read(path)
    except Error as error:
        assert str(path) in str(error)
    else:
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= len(content)
