"""What a stranger may send is opened within 256 MB and 2 s, without a socket, and refused in a sentence.

The whole campaign is `python benchmarks/hostile_files.py`; here is a sample of it, and the rules one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal, get_origin

import pytest
import torch

from kuosan import limits, regular
from kuosan.errors import Error, escaped, shown
from kuosan.models.model import ModelConfig
from kuosan.options import dataclasses_in, hints, members
from kuosan.sample.recipe import Recipe
from kuosan.storage import checkpoint, pickled
from kuosan.storage import tensors as weights

ROOT = Path(__file__).parent.parent


def test_a_sample_of_hostile_files_keeps_the_rule() -> None:
    script = ROOT / "benchmarks" / "hostile_files.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": ""}
    command = [sys.executable, str(script), "--every", "31"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 break the rule" in done.stdout and "0 sockets, 0 tracebacks" in done.stdout


def classes_in(cls: type) -> set[type]:
    """A dataclass and all that its fields may be."""
    found = {cls}
    for annotation in hints(cls).values():
        for member in dataclasses_in(annotation):
            found |= classes_in(member)
    return found


def test_every_number_list_and_text_of_a_models_configuration_has_a_limit() -> None:
    lacking = []
    for cls in [*classes_in(ModelConfig), Recipe]:
        assert is_dataclass(cls)
        for field in fields(cls):
            annotation = hints(cls)[field.name]
            plain = [each for each in members(annotation) if each is not type(None) and not is_dataclass(each)]
            free = [each for each in plain if each is not bool and get_origin(each) is not Literal]
            if (
                free
                and field.name not in limits.VALUES.get(cls.__name__, {})
                and field.name not in ("kind", "attention")
            ):
                lacking.append(f"{cls.__name__}.{field.name}")
            if any(get_origin(each) is tuple for each in free):
                assert field.name in limits.ENTRIES, field.name
    assert not lacking
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for cls_name, ranges in limits.VALUES.items():
        for name, (_, high) in ranges.items():
            if isinstance(high, int) and high >= 1000 and cls_name in ("UNetConfig", "DiTConfig", "Discrete"):
                assert f"`{name}`" in text and f"{high:,}" in text, (cls_name, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "plain"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x07", "a\\rb\\x07"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("a\nb", "a\\nb"),
        ("list:\n  one\n  two", "list:\n  one\n  two"),
        ("\udcff", "\\udcff"),
        ("été 狐狸　ok", "été 狐狸　ok"),
        ("\x9b31m\x85\u2028", "\\x9b31m\\x85\\u2028"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text: str, said: str) -> None:
    assert escaped(text) == said


def test_a_value_in_a_message_is_short_and_never_fails() -> None:
    for value in ("x" * 10**6, 10**10_000, [[1] * 1000] * 1000, {"a": "b" * 10**5}, "\x1b\u202e"):
        assert len(shown(value)) <= 120 and shown(value).isprintable()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "nul", "surrogate", "sparse", "large", "link"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
        case "nul":
            path = tmp_path / "a\0b"
        case "surrogate":
            path = tmp_path / "\ud800"
        case "sparse":
            with open(path, "wb") as stream:
                stream.truncate(1 << 30)
        case "large":
            path.write_bytes(bytes(2000))
        case "link":
            (tmp_path / "real").write_text("x")
            path.symlink_to(tmp_path / "real")
    with pytest.raises((Error, OSError)) as caught:
        regular.read_regular(path, 1 << 31 if kind == "sparse" else 1000, follow=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "link", "a\0b", "x" * 5000, "fifo", "nowhere", "~/x", "loop"])
def test_places_hold_what_lies_below_them_and_nothing_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "x").write_text("x")
    (below / "link").symlink_to(tmp_path / "x")
    (below / "loop").symlink_to("loop")
    (below / "own").write_text("x")
    os.mkfifo(below / "fifo")
    monkeypatch.chdir(below)
    places = regular.Places.of([below])
    with pytest.raises(Error):
        places.checked(name, "the image")
    assert places.checked("own", "the image") == below.resolve() / "own"
    assert regular.Places.of([below, tmp_path / "x"]).checked("../x", "the image") == (tmp_path / "x").resolve()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_tensors_are_read_bit_for_bit(tmp_path: Path, zipped: bool, protocol: int) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = network.state_dict() | {
        "bf16": torch.randn(3, 4).bfloat16(),
        "turned": torch.randn(4, 6).t(),
        "part": torch.arange(10.0)[3:7],
        "empty": torch.empty(0, 3),
        "truth": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    path = tmp_path / "state.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found, _ = pickled.read(path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())


def test_a_header_is_compared_with_the_network_before_a_tensor_is_read(tmp_path: Path) -> None:
    wanted = {"a": torch.empty(3, 4, device="meta"), "n": torch.empty(1, dtype=torch.int64, device="meta")}
    for given, said in (
        ({"a": torch.zeros(3, 4)}, "'n' is missing"),
        ({"a": torch.zeros(4, 3), "n": torch.zeros(1).long()}, r"shape \(4, 3\), not \(3, 4\)"),
        ({"a": torch.zeros(3, 4, dtype=torch.complex64), "n": torch.zeros(1).long()}, "is of C64, not F32"),
        ({"a": torch.zeros(3, 4, dtype=torch.bool), "n": torch.zeros(1).long()}, "is of BOOL, not F32"),
        ({"a": torch.zeros(3, 4).to(torch.float8_e4m3fn), "n": torch.zeros(1).long()}, "is of F8_E4M3, not F32"),
        ({"a": torch.zeros(3, 4), "n": torch.zeros(1)}, "is of F32, not I64"),
        ({"a": torch.zeros(3, 4), "n": torch.zeros(1).long(), "b": torch.zeros(1)}, "'b' is unknown"),
    ):
        weights.write(tmp_path / "w.safetensors", given)
        with pytest.raises(Error, match=said):
            weights.read_hashed(tmp_path / "w.safetensors", lambda found: weights.require(wanted, found, "w"))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        weights.write(tmp_path / "w.safetensors", {"a": torch.zeros(3, 4, dtype=dtype), "n": torch.zeros(1).long()})
        weights.read_hashed(tmp_path / "w.safetensors", lambda found: weights.require(wanted, found, "w"))


def test_a_file_whose_system_counts_no_blocks_is_opened_and_one_of_holes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounts such as sshfs report no blocks, compressing ones few; only a file with holes is refused."""
    size = (1 << 26) + 4096
    whole, holes = tmp_path / "whole", tmp_path / "holes"
    with whole.open("wb") as file:
        file.write(b"\1" * size)
    with holes.open("wb") as file:
        file.truncate(size)
    found = os.fstat

    class Uncounted:
        def __init__(self, stat: os.stat_result) -> None:
            self.st_mode, self.st_size, self.st_blocks = stat.st_mode, stat.st_size, 0

    monkeypatch.setattr("kuosan.regular.os.fstat", lambda handle: Uncounted(found(handle)))
    with regular.open_regular(whole) as stream:
        assert stream.read(1) == b"\1" and stream.seek(0, 2) == size
    with pytest.raises(Error, match="mostly holes"):
        regular.open_regular(holes)


def test_a_configuration_too_long_to_be_read_again_is_not_saved(tmp_path: Path) -> None:
    names = [f"{i:05}{'x' * 95}" for i in range(50_000)]
    tensors = {"w": torch.zeros(1)}
    with pytest.raises(Error, match="shorten the names"):
        checkpoint.save(
            tmp_path, 1, config={"model": {"task": {"class_names": names}}}, ema=tensors, network=tensors,
            optimizer=tensors, state={},
        )  # fmt: skip
    assert not checkpoint.checkpoints(tmp_path)
