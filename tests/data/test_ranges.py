"""Which number is black and which is white: read rightly and said in a line, or refused with the cure; never guessed
in silence. One table for .npz, .npy and Python data sets; the expected bytes are computed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import png_file
from PIL import Image
from torch.utils.data import Dataset

from kuosan.data.config import DataConfig, scale_of
from kuosan.data.dataset import Images, open_images
from kuosan.data.doctor import examine
from kuosan.errors import Error
from kuosan.seeds import rng

U = rng(0, "ranges").random((12, 16, 16, 3))  # in [0, 1)
U[3, 0, 0], U[4, 0, 0] = 0.0, 1.0
B = np.rint(U * 255)
G = U[..., :1]


def with_values(base: np.ndarray, share: float, low: float, high: float | None = None) -> np.ndarray:
    """The same with a share of the values drawn from low to high."""
    values, draw = base.copy(), rng(1, "ranges")
    places = draw.random(base.shape) < share
    values[places] = low if high is None else draw.uniform(low, high, base.shape)[places]
    return values


def one(base: np.ndarray, value: float) -> np.ndarray:
    """The same with one value changed."""
    values = base.copy()
    values[0, 0, 0, 0] = value
    return values


def mixed(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


# name: (numbers, black, white) where they are read so, or (numbers, words) where they are refused
READ: dict[str, tuple[np.ndarray, float, float]] = {
    "floats in [0, 1]": (U, 0, 1),
    "float32": (U.astype(np.float32), 0, 1),
    "float16": (U.astype(np.float16), 0, 1),
    "big-endian floats": (U.astype(">f4"), 0, 1),
    "Fortran's order": (np.asfortranarray(U), 0, 1),
    "grey with an axis": (G, 0, 1),
    "one value of -0.002": (one(U, -0.002), 0, 1),
    "one value of 1.004": (one(U, 1.004), 0, 1),
    "one value of -0.08, as resampling overshoots": (one(U, -0.08), 0, 1),
    "a hundredth from -0.1 to 0": (with_values(U, 0.01, -0.1, 0), 0, 1),
    "a third at -0.002": (with_values(U, 0.33, -0.002), 0, 1),
    "rounding beyond both ends": (one(one(U, -1e-7), 1 + 1e-7), 0, 1),
    "masks of 0.0 and 1.0": (np.rint(U), 0, 1),
    "all black floats": (0 * U, 0, 1),
    "all white floats": (0 * U + 1, 0, 1),
    "all grey floats": (0 * U + 0.5, 0, 1),
    "dark floats to 0.4": (U * 0.4, 0, 1),
    "floats in [-1, 1]": (U * 2 - 1, -1, 1),
    "float16 in [-1, 1]": ((U * 2 - 1).astype(np.float16), -1, 1),
    "[-1, 1] overshot by 0.004": (one(U * 2 - 1, -1.004), -1, 1),
    "[-1, 1], a hundredth overshot to 1.1": (with_values(U * 2 - 1, 0.01, 1.0, 1.1), -1, 1),
    "[-1, 1] dark": (U * 1.5 - 1, -1, 1),
    "[-1, 1] of white paper": (np.where(U < 0.05, -1.0, 1.0), -1, 1),
    "all at -1": (0 * U - 1, -1, 1),
    "floats in [0, 255]": (B, 0, 255),
    "float32 in [0, 255]": (B.astype(np.float32), 0, 255),
    "floats in [0, 255] that are not whole": (U * 254.9, 0, 255),
    "[0, 255] overshot": (one(one(B, -3.0), 258.0), 0, 255),
    "[0, 255], a hundredth overshot by 10": (with_values(B, 0.01, -10, 0), 0, 255),
    "all at 255.0": (0 * U + 255, 0, 255),
    "bytes": (B.astype(np.uint8), 0, 255),
    "bytes to 100": (np.rint(U * 100).astype(np.uint8), 0, 255),
    "bytes, all black": (0 * B.astype(np.uint8), 0, 255),
    "bytes, all white": ((0 * B + 255).astype(np.uint8), 0, 255),
    "bool": (U > 0.5, 0, 1),
    "16 bits": ((U * 65535).astype(np.uint16), 0, 65535),
    "big-endian 16 bits": ((U * 65535).astype(">u2"), 0, 65535),
    "16 bits of 14": ((U * 16383).astype(np.uint16), 0, 65535),
}
FIT = r"fit none of"
REFUSED: dict[str, tuple[np.ndarray, str]] = {
    "one value of -0.3": (one(U, -0.3), FIT),
    "one value of -1, as a mark of nothing": (one(U, -1.0), FIT),
    "one value of 3": (one(U, 3.0), FIT),
    "one value of 255 among [0, 1]": (one(U, 255.0), r"nothing above 1|fit none"),
    "a tenth from -0.1 to 0": (with_values(U, 0.1, -0.1, -0.02), FIT),
    "floats in [0, 2]": (U * 2, FIT),
    "floats in [0, 16]": (U * 16, FIT),
    "floats in [0, 100]": (U * 100, FIT),
    "floats in [0, 127]": (U * 127, FIT),
    "floats in [0, 1000]": (U * 1000, FIT),
    "floats in [0, 65535]": (U * 65535, FIT),
    "floats in [-0.5, 0.5]": (U - 0.5, FIT),
    "floats in [-128, 127]": (B - 128, FIT),
    "floats in [-2, 2]": (U * 4 - 2, FIT),
    "normalised by mean and deviation": ((U - U.mean()) / U.std(), "undo the normalisation"),
    "normalised as ImageNet": ((U - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], "undo the normalisation"),
    "[0, 1] divided by 255 again": (U / 255, "nearly black"),
    "all at -0.3": (0 * U - 0.3, FIT),
    "all at 7.0": (0 * U + 7, FIT),
    "half in [0, 1], half in [-1, 1]": (mixed(U[:6], U[6:] * 2 - 1), r"no number below 0"),
    "one in [-1, 1] among [0, 1]": (mixed(U[:11], U[11:] * 2 - 1), r"no number below 0|fit none"),
    "one in [0, 1] among [-1, 1]": (mixed(U[3:4], U[:11] * 2 - 1), "no number below 0"),
    "one in [0, 1] among [0, 255]": (mixed(B[:11], U[11:]), "nothing above 1"),
    "one in [0, 255] among [0, 1]": (mixed(U[:11], B[11:]), r"nothing above 1"),
    "a first item in [0, 1], others normalised": (mixed(U[:1], (U[1:] - 0.5) / 0.25), "undo the normalisation"),
    "bytes of 0 and 1": ((U > 0.5).astype(np.uint8), "nearly black"),
    "bytes from 0 to 15": (np.rint(U * 15).astype(np.uint8), "nearly black"),
    "digits from 0 to 16": (np.rint(G * 16).astype(np.uint8), "nearly black"),
    "16 bits that hold bytes": (B.astype(np.uint16), "nearly black"),
    "16 bits that hold 10": (np.rint(U * 1023).astype(np.uint16), "nearly black"),
    "16 bits that hold 12": (np.rint(U * 4095).astype(np.uint16), "nearly black"),
    "int64 from 0 to 255": (B.astype(np.int64), "int64 from 0 to 255"),
    "int32 of 0 and 1": ((U > 0.5).astype(np.int32), "int32 from 0 to 1"),
    "int16": (B.astype(np.int16), "int16"),
    "int8": ((B - 128).astype(np.int8), "int8 from -128 to 127"),
    "uint32": (B.astype(np.uint32), "uint32"),
}
GIVEN: dict[str, tuple[np.ndarray, str]] = {  # what was refused, read by the setting range
    "digits": (np.rint(G * 16).astype(np.uint8), "0,16"),
    "masks": ((U > 0.5).astype(np.uint8), "0,1"),
    "12 bits": (np.rint(U * 4095).astype(np.uint16), "0,4095"),
    "int64": (B.astype(np.int64), "0,255"),
    "int8": ((B - 128).astype(np.int8), "-128,127"),
    "centred": (U - 0.5, "-0.5,0.5"),
    "one of -1": (one(U, -1.0), "0,1"),
    "mixed, said to be signed": (mixed(U[3:4], U[:11] * 2 - 1), "-1,1"),
    "high": (U * 1000, "0,1000"),
    "negatives of film": (U, "1,0"),
    "a window": (U * 1000 - 200, "-100,400"),
    "dark bytes that are dark": (np.rint(U * 15).astype(np.uint8), "0,255"),
    "dark 16 bits that are dark": (np.rint(U * 4095).astype(np.uint16), "0,65535"),
}


class Items(Dataset):  # type: ignore[type-arg]
    """Arrays as the items of a data set."""

    def __init__(self, values: np.ndarray, tensors: bool = False) -> None:
        self.values, self.tensors = values, tensors

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> object:
        item = self.values[i]
        if not self.tensors:
            return item
        return torch.from_numpy(np.moveaxis(item, 2, 0).astype(item.dtype.newbyteorder("=")))


def opened(values: np.ndarray, kind: str, folder: Path, **settings: object) -> Images:
    """The same numbers as an .npz, an .npy, in the order (N, C, H, W), as items of arrays or of tensors."""
    config = DataConfig(path="mine", hold_out=0, workers=0, **settings)  # type: ignore[arg-type]
    if kind in ("items", "tensors"):
        return open_images(Items(values, kind == "tensors"), config)
    path = folder / ("a.npy" if kind == "npy" else "a.npz")
    values = np.moveaxis(values, 3, 1) if kind == "channels first" else values
    np.save(path, values) if kind == "npy" else np.savez(path, x=values)
    return open_images(DataConfig(path=str(path), hold_out=0, workers=0, **settings))  # type: ignore[arg-type]


def expected(values: np.ndarray, black: float, white: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - black) / (white - black), 0, 1) * 255


def shown(images: Images, like: np.ndarray) -> np.ndarray:
    return np.stack([images.pixels(i) for i in range(len(like))])[..., : like.shape[3]].astype(float)


def test_there_are_sixty_ranges_at_least() -> None:
    assert len(READ) + len(REFUSED) + len(GIVEN) >= 60


@pytest.mark.parametrize("kind", ["npz", "npy", "channels first", "items", "tensors"])
@pytest.mark.parametrize("name", READ)
def test_numbers_that_fit_a_range_are_read_so_and_the_line_says_it(name: str, kind: str, tmp_path: Path) -> None:
    values, black, white = READ[name]
    images = opened(values, kind, tmp_path)
    assert np.abs(shown(images, values) - expected(values, black, white)).max() <= 1
    (line,) = [line for line in images.describe() if line.startswith("Numbers: ")]
    if values.dtype == bool:
        assert "true is white" in line
        return
    assert f"read from {black} (black) to {white} (white)" in line
    assert f"go from {values.astype(float).min():g} to {values.astype(float).max():g}" in line
    beyond = int(((values < black) | (values > white)).sum())
    assert ("clipped" in line) == (beyond > 0)
    assert beyond < 2 or f"{beyond:,} of {values.size:,} values" in line


@pytest.mark.parametrize("kind", ["npz", "npy", "channels first", "items", "tensors"])
@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_fit_no_range_are_refused_with_the_cure(name: str, kind: str, tmp_path: Path) -> None:
    values, words = REFUSED[name]
    with pytest.raises(Error, match=words) as refusal:
        opened(values, kind, tmp_path)
    assert "setting range: --range=" in str(refusal.value)


@pytest.mark.parametrize("kind", ["npz", "npy", "channels first", "items", "tensors"])
@pytest.mark.parametrize("name", GIVEN)
def test_the_setting_range_decides_where_it_is_given(name: str, kind: str, tmp_path: Path) -> None:
    values, scale = GIVEN[name]
    images = opened(values, kind, tmp_path, range=scale)
    black, white = scale_of(scale) or (0, 0)
    assert np.abs(shown(images, values) - expected(values, black, white)).max() <= 1
    assert any(f"read from {black:g} (black) to {white:g} (white)" in line for line in images.describe())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_arrays_with_nan_are_refused_and_items_with_nan_are_skipped(value: float, tmp_path: Path) -> None:
    values = one(U, value)
    with pytest.raises(Error, match="1 of 12 images has NaN or infinite values, the first is number 0"):
        opened(values, "npz", tmp_path)
    images = opened(values, "items", tmp_path)
    assert len(images) == 11 and "NaN" in images.report.scan.refused[0][1]


def test_the_range_is_decided_over_the_test_part_as_well(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=U[4:8] * 0.5, x_test=U[:4] * 2 - 1)
    with pytest.raises(Error, match=r"no number below 0|fit none"):
        open_images(DataConfig(path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        (np.full((12, 16, 16, 1), 1), "transparency"),  # bytes of colour, alpha of 0 and 1
        (np.full((12, 16, 16, 1), 300), "transparency"),
    ],
)
def test_transparency_of_another_range_than_the_colours_is_refused(
    alpha: np.ndarray, words: str, tmp_path: Path
) -> None:
    with pytest.raises(Error, match=words):
        opened(np.concatenate([B, alpha], 3), "npz", tmp_path)


def test_transparency_of_floats_from_minus_one_is_refused_and_from_zero_is_laid_on_the_background(
    tmp_path: Path,
) -> None:
    alpha = rng(2, "ranges").random((12, 16, 16, 1))
    with pytest.raises(Error, match="nobody has agreed what is clear"):
        opened(np.concatenate([U * 2 - 1, alpha], 3), "npz", tmp_path)
    images = opened(np.concatenate([U, alpha], 3), "npz", tmp_path, background="black")
    assert np.abs(shown(images, U) - 255 * U * alpha).max() <= 2
    assert any("red, green, blue and transparency" in line for line in images.describe())


AXES = {  # shape of an .npy: how it is read, or words of the refusal
    (20, 16, 16): "(N, H, W)",
    (20, 16, 16, 1): "(N, H, W, C)",
    (20, 16, 16, 3): "(N, H, W, C)",
    (20, 16, 16, 4): "(N, H, W, C)",
    (20, 1, 16, 16): "(N, C, H, W)",
    (20, 3, 16, 16): "(N, C, H, W)",
    (20, 4, 16, 16): "(N, C, H, W)",
    (2, 16, 16): "(N, H, W)",
    (16, 16, 3): "may be 1 image",
    (16, 16, 4): "may be 1 image",
    (16, 16, 1): "may be 1 image",
    (3, 16, 16): "may be 1 image",
    (20, 3, 3, 3): r"may be \(N, H, W, C\) or",
    (20, 1, 16, 3): r"may be \(N, H, W, C\) or",
    (20, 4, 16, 4): r"may be \(N, H, W, C\) or",
    (20, 16, 16, 2): "has shape",
    (16, 16): "has shape",
    (20, 2, 16, 16): "has shape",
    (16, 16, 3, 20): "has shape",
}


@pytest.mark.parametrize("shape", AXES, ids=str)
def test_axes_are_read_and_said_or_refused_where_they_may_be_two(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = rng(0, "axes").integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "a.npy", values)
    config = DataConfig(path=str(tmp_path / "a.npy"), hold_out=0, background="black")
    if not AXES[shape].startswith("("):
        with pytest.raises(Error, match=AXES[shape]):
            open_images(config)
        return
    images = open_images(config)
    assert f"The axes {shape} are read as {AXES[shape]}." in images.describe()
    item = (
        values[1][..., None]
        if len(shape) == 3
        else values[1]
        if "H, W, C" in AXES[shape]
        else values[1].transpose(1, 2, 0)
    )
    want = item[..., :3] * (item[..., 3:] / 255.0) if item.shape[2] == 4 else item
    assert np.abs(images.pixels(1).astype(float) - want).max() <= 1


ITEMS = {  # shape of an item: how an array and how a tensor of it is read
    (16, 16): ("(H, W)", "(H, W)"),
    (3, 16, 16): ("(C, H, W)", "(C, H, W)"),
    (1, 28, 28): ("(C, H, W)", "(C, H, W)"),
    (28, 28, 1): ("(H, W, C)", "(H, W, C)"),
    (16, 16, 3): ("(H, W, C)", "(H, W, C)"),
    (4, 16, 16): ("(C, H, W)", "(C, H, W)"),
    (3, 3, 3): ("may be", "(C, H, W)"),
    (1, 28, 1): ("may be", "(C, H, W)"),
    (4, 16, 3): ("may be", "may be"),
    (2, 16, 16): ("has shape", "has shape"),
    (16,): ("has shape", "has shape"),
    (2, 3, 16, 16): ("has shape", "has shape"),
}


@pytest.mark.parametrize("shape", ITEMS, ids=str)
@pytest.mark.parametrize("tensor", [False, True], ids=["array", "tensor"])
def test_axes_of_items_are_read_and_said_or_refused(shape: tuple[int, ...], tensor: bool) -> None:
    values = rng(0, "axes").integers(0, 256, (2, *shape)).astype(np.uint8)
    items = [torch.from_numpy(value) if tensor else value for value in values]
    how = ITEMS[shape][tensor]
    if not how.startswith("("):
        with pytest.raises(Error, match=how):
            open_images(items, DataConfig(path="mine", hold_out=0))
        return
    assert f"2 items are read as {how}." in open_images(items, DataConfig(path="mine", hold_out=0)).describe()


@pytest.mark.parametrize(
    "item",
    [
        torch.full((1, 8, 8), 0.5, dtype=torch.bfloat16),
        torch.full((1, 8, 8), 0.5, requires_grad=True),
        torch.full((1, 8, 8), True),
        Image.fromarray(np.full((8, 8), 0.5, np.float32)),
    ],
    ids=["bfloat16", "with gradient", "bool", "float image"],
)
def test_items_that_numpy_does_not_take_as_they_are_are_read(item: object) -> None:
    images = open_images([item, item], DataConfig(path="mine", hold_out=0))
    assert int(images.pixels(0)[0, 0, 0]) in (128, 255)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (np.ma.masked_array(np.zeros((8, 8)), True), "masked array"),
        (Image.fromarray(np.full((8, 8), 7000, np.int32)), "int32 from 7000"),
        (Image.fromarray(np.full((8, 8), 200.5, np.float32)).resize((9, 9)).point(lambda v: v * 0.1), "fit none"),
    ],
)
def test_items_without_an_agreed_meaning_are_errors(item: object, words: str) -> None:
    with pytest.raises(Error, match=words):
        open_images([item], DataConfig(path="mine", hold_out=0))


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=B.astype(np.uint8), y=np.arange(12), images=B.astype(np.uint8), extra=np.zeros(3))
    lines = open_images(DataConfig(path=str(tmp_path / "a.npz"), hold_out=0)).describe()
    assert "Of its arrays x, y are read, and not images, extra." in lines


def test_a_label_that_is_none_is_reported() -> None:
    items = [(B[i].astype(np.uint8), torch.eye(3)[i % 3]) for i in range(12)]
    lines = open_images(items, DataConfig(path="mine", hold_out=0)).describe()
    assert any("12 captions or labels are not used: item 0 (has no class" in line for line in lines)


@pytest.mark.parametrize("range", ["0", "0,0", "a,b", "0,1,2", "nan,1", "", "0;1", 7, None])
def test_a_range_that_is_none_is_an_error(range: object) -> None:
    with pytest.raises(Error, match=r"range .* must be auto"):
        DataConfig(range=range)  # type: ignore[arg-type]


def test_the_doctor_says_the_range(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=one(U, -0.002))
    lines = examine(DataConfig(path=str(tmp_path / "a.npz"))).lines()
    assert any("1 value beyond this range clipped (the farthest is -0.002)" in line for line in lines)


def test_the_range_of_float_files_may_be_given_and_files_of_bytes_keep_their_own(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tiff")
    (tmp_path / "b.png").write_bytes(png_file(np.full((8, 8, 1), 200), 8, 0))
    assert len(open_images(DataConfig(path=str(tmp_path), hold_out=0))) == 1
    images = open_images(DataConfig(path=str(tmp_path), hold_out=0, range="0,255"))
    assert {images.name(i): int(images.pixels(i).max()) for i in (0, 1)} == {"a.tiff": 255, "b.png": 200}


@pytest.mark.parametrize("kind", ["npz", "items"])
def test_the_range_of_old_runs_gives_their_fingerprint_and_auto_that_of_the_right_reading(
    kind: str, tmp_path: Path
) -> None:
    x = np.linspace(0, 1, 12 * 8 * 8, dtype=np.float32).reshape(12, 8, 8, 1).copy()
    right, before = "856065c3ee4ccfa1573877a967bd1ac1", "609a08bb56a164e9a3739f9383cfd63c"  # of the version before
    assert opened(x, kind, tmp_path, split_version=1).fingerprint == right
    x[0, 0, 0, 0] = -0.002  # which made it read all of them from -1 to 1
    assert opened(x, kind, tmp_path, split_version=1).fingerprint == right != before
    assert opened(x, kind, tmp_path, split_version=1, range="-1,1").fingerprint == before


def test_a_range_that_changes_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png_file(np.full((8, 8, 1), 200), 8, 0))
    lines = open_images(DataConfig(path=str(tmp_path), hold_out=0, range="0,16")).describe()
    assert "range 0,16 changes nothing: these images say which number is white." in lines


@pytest.mark.parametrize("kind", ["npy", "npz", "items"])
@pytest.mark.parametrize(
    ("dtype", "high", "says"),
    [
        (
            "float32",
            0.2,
            "read from 0 (black) to 1 (white); they go from 0 to 0.2. None is above 0.2: if that is white",
        ),
        ("float32", 0.6, "read from 0 (black) to 1 (white); they go from 0 to 0.6."),
        ("uint8", 50, "read from 0 (black) to 255 (white); they go from 0 to 50. None is above 50: if that is white"),
        ("uint8", 128, "read from 0 (black) to 255 (white); they go from 0 to 128."),
        ("uint16", 30000, "they go from 0 to 30000. None is above 30000: if that is white"),
        ("uint16", 40000, "read from 0 (black) to 65535 (white); they go from 0 to 40000."),
    ],
)
def test_dark_numbers_are_read_by_one_rule_whatever_they_lie_in_and_the_line_says_so(
    dtype: str, high: float, says: str, kind: str, tmp_path: Path
) -> None:
    values = (np.linspace(0, high, 6 * 8 * 8).reshape(6, 8, 8)).astype(dtype)
    if kind == "items":
        lines = open_images(list(values)).describe()
    else:
        path = tmp_path / f"a.{kind}"
        np.save(path, values) if kind == "npy" else np.savez(path, x=values)
        lines = open_images(DataConfig(str(path))).describe()
    (line,) = [line for line in lines if line.startswith("Numbers: ")]
    assert says in line
    assert ("None is above" in line) == ("None is above" in says)


def test_files_of_floats_that_are_nearly_black_are_counted_with_the_cure(tmp_path: Path) -> None:
    for i, high in enumerate((0.02, 0.03, 0.2)):
        Image.fromarray(np.linspace(0, high, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / f"{i}.tiff")
    lines = examine(DataConfig(str(tmp_path))).lines()
    assert "1 image was floating point, 1 is white." in lines
    assert any(
        line.startswith("2 images were floating point, 1 is white, and nearly black: if another") for line in lines
    )
    assert not any("nearly black" in line for line in examine(DataConfig(str(tmp_path), range="0,0.05")).lines())
