"""Folders, zips, IDX, npz and Python data sets: what is found in them, and what is said when nothing is."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import drawn, saved
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from kuosan.data.config import DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.data.doctor import examine
from kuosan.errors import Error


def put(folder: Path, *names: str, size: int = 16) -> None:
    """A different small image under each name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(saved(drawn(size, size, 3, name), "PNG"))


def opened(path: Path, **settings: object) -> Images:
    return open_images(DataConfig(path=str(path), **{"hold_out": 0, "workers": 0, **settings}))  # type: ignore[arg-type]


def by_name(images: Images) -> dict[str, str | None]:
    """name -> class."""
    assert images.labels is not None
    return {images.name(i): images.classes[label] if label >= 0 else None for i, label in enumerate(images.labels)}


def test_classes_are_first_level_folders(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/deep/2.png", "dog/1.png")
    (tmp_path / "README.md").write_text("no image, so it says nothing about classes")
    images = opened(tmp_path)
    assert images.classes == ("cat", "dog")
    assert by_name(images) == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/1.png": "dog"}
    assert images.batch(range(3)).label.dtype == torch.int64  # type: ignore[union-attr]


def test_an_image_outside_the_folders_means_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png", "loose.png")
    assert opened(tmp_path).classes == ()
    assert opened(tmp_path).labels is None and opened(tmp_path).batch([0]).label is None


def test_one_folder_that_holds_everything_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, "all/cat/1.png", "all/dog/1.png")
    assert opened(tmp_path).classes == ("cat", "dog")
    assert opened(tmp_path / "all" / "cat").classes == ()


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, "10/a.png", "9/b.png", "0/c.png")
    assert opened(tmp_path).classes == ("0", "9", "10")


def test_captions_come_from_metadata_and_from_text_beside(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png", "sub/d.png")
    (tmp_path / "a.txt").write_text("beside\n a ")
    (tmp_path / "b.txt").write_text("loses")
    rows = [{"file_name": "b.png", "text": "wins"}, {"file_name": "sub/d.png", "caption": "deep é"}]
    lines = [json.dumps(row) for row in rows]
    lines += ["{broken", '{"text": "nobody"}', '{"file_name": "gone.png", "text": "x"}', "[1]", '{"file_name": 7}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    images = opened(tmp_path)
    assert images.captions is not None
    captions = {images.name(i): text for i, text in enumerate(images.captions)}
    assert captions == {"a.png": "beside a", "b.png": "wins", "c.png": None, "sub/d.png": "deep é"}
    assert images.report.scan.refused == []  # captions are no skipped images
    places = [place for place, _ in images.report.scan.listing.missing]
    assert places == [f"metadata.jsonl line {n}" for n in (3, 4, 5, 6, 7)]
    ids = [i for i in range(4) if images.name(i) in ("a.png", "c.png")]
    assert sorted(images.batch(ids).caption or []) == ["", "beside a"]


def test_labels_may_come_from_metadata(tmp_path: Path) -> None:
    put(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    rows = [{"file_name": "a.png", "label": "sun"}, {"file_name": "b.png", "label": 3}]
    (tmp_path / "x" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert by_name(opened(tmp_path)) == {"x/a.png": "sun", "x/b.png": "3", "x/c.png": None}
    assert opened(tmp_path).report.summary()["without_class"] == 1


def test_captions_that_are_no_text_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    images = opened(tmp_path)
    assert images.captions is None
    assert "not readable" in images.report.scan.listing.missing[0][1]


def test_a_zip_is_the_same_as_the_folder_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    put(folder, "cat/1.png", "cat/2.png", "dog/1.png")
    (folder / "cat" / "1.txt").write_text("a cat")
    (folder / "bad.png").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for each in sorted(folder.rglob("*.*")):
            file.write(each, each.relative_to(tmp_path))
        file.writestr("__MACOSX/1.png", "x")
        file.writestr("../outside.png", "x")
    one, other = opened(folder), opened(tmp_path / "photos.zip")
    assert by_name(other) == {f"photos/{name}": label for name, label in by_name(one).items()}
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.batch(range(3)).x0, other.batch(range(3)).x0)
    assert one.captions == other.captions
    reasons = dict(other.report.scan.refused)
    assert set(reasons) == {"photos/bad.png", "__MACOSX/1.png", "../outside.png"}


def test_a_damaged_zip_member_is_skipped_and_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a.png", saved(drawn(name="a"), "PNG"))
        file.writestr("b.png", saved(drawn(name="b"), "PNG"))
    content = bytearray(path.read_bytes())
    content[120] ^= 255
    path.write_bytes(content)
    images = opened(path)
    assert [entry.name for entry in images.scan.entries] == ["b.png"]
    assert "damaged in the zip" in dict(images.report.scan.refused)["a.png"]
    path.write_bytes(content[:60])
    with pytest.raises(Error, match="no readable zip"):
        opened(path)


def test_a_damaged_caption_in_a_zip_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a.txt", "a caption that will be damaged")
        file.writestr("a.png", saved(drawn(name="a"), "PNG"))
    path.write_bytes(path.read_bytes().replace(b"caption that", b"caption THAT"))
    images = opened(path)
    assert images.captions is None and len(images) == 1
    assert "Bad CRC" in images.report.scan.listing.missing[0][1]


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def test_idx_files_give_images_labels_and_a_test_part(tmp_path: Path) -> None:
    train, test = drawn(40, 9, 9, "idx"), drawn(10, 9, 9, "idx test")
    labels = np.arange(40, dtype=np.uint8) % 10
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(train)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(test))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[:10]))
    images = opened(tmp_path, hold_out=None)
    assert images.shape == (1, 16, 16)  # 9 is bordered to the next multiple of 8
    assert images.classes == tuple("0123456789")
    assert images.train.tolist() == list(range(40)) and images.held_out.tolist() == list(range(40, 50))
    assert (images.pixels(3)[3:12, 3:12, 0] == train[3]).all()
    assert images.labels is not None and images.labels[:12].tolist() == [*range(10), 0, 1]
    alone = opened(tmp_path / "train-images-idx3-ubyte.gz", hold_out=0.5)
    assert len(alone) == 40 and 8 < len(alone.held_out) < 32
    assert len(opened(tmp_path, hold_out=0.5)) == 40  # the test part stays out when a fraction is asked for


def test_idx_files_that_lie_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte"
    good = idx(drawn(4, 5, 6))
    for content, reason in (
        (good[:-1], "cut short"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "more than memory_gib"),
        (b"\0\0\x08\x01" + struct.pack(">I", 4) + b"abcd", "is it the labels"),
        (b"\0\0\x08\x09" + bytes(80), "no IDX file"),
    ):
        path.write_bytes(content)
        with pytest.raises(Error, match=reason):
            opened(path)
    path.write_bytes(good)
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(Error, match="3 labels for 4 images"):
        opened(path)
    gz = tmp_path / "x-images-idx3-ubyte.gz"
    gz.write_bytes(gzip.compress(good)[:-12])
    with pytest.raises(Error, match=r"damaged|cut short"):
        opened(gz)


ARRAY = drawn(6, 8 * 8 * 3, 1, "array").reshape(6, 8, 8, 3)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (ARRAY, True),
        (ARRAY.transpose(0, 3, 1, 2), True),
        (ARRAY / 255, True),
        ((ARRAY / 127.5 - 1).astype(np.float32), True),
        (ARRAY.astype(np.uint16) * 257, True),
        (ARRAY[..., 0], False),
    ],
    ids=["bytes", "channels first", "floats to 1", "floats from -1", "16 bits", "grey"],
)
def test_arrays_mean_what_their_type_says(tmp_path: Path, values: np.ndarray, exact: bool) -> None:
    np.savez(tmp_path / "a.npz", x=values, y=np.array([0, 1, 2, 0, 1, 2]))
    images = opened(tmp_path / "a.npz")
    want = ARRAY if exact else ARRAY[..., :1]
    assert images.classes == ("0", "1", "2")
    assert all((images.pixels(i) == want[i]).all() for i in range(6))
    np.save(tmp_path / "a.npy", values)
    assert (opened(tmp_path / "a.npy").pixels(5) == want[5]).all()


def test_an_npz_may_bring_a_test_part_and_transparency(tmp_path: Path) -> None:
    alpha = np.concatenate([ARRAY, np.zeros((6, 8, 8, 1), np.uint8)], 3)
    np.savez_compressed(tmp_path / "a.npz", x_train=alpha, x_test=ARRAY[:2], y_train=np.ones((6, 1), int))
    images = opened(tmp_path / "a.npz", hold_out=None)
    assert images.held_out.tolist() == [6, 7] and len(images.train) == 6
    assert (images.pixels(0) == 255).all() and (images.pixels(6) == ARRAY[0]).all()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": ARRAY.astype(float) * 3}, "floats from"),
        ({"x": np.full((2, 8, 8), np.nan)}, "floats from nan"),
        ({"x": ARRAY.astype(np.int64)}, "int64"),
        ({"x": ARRAY[0, 0]}, "shape"),
        ({"x": ARRAY[:0]}, "shape"),
        ({"x": ARRAY, "y": np.zeros(5, int)}, "labels are whole numbers"),
        ({"x": ARRAY, "y": np.zeros(6)}, "labels are whole numbers"),
        ({"weights": ARRAY}, "name the images one of"),
        ({"x": np.array([{}, {}], object)}, "never loaded"),
    ],
)
def test_arrays_without_agreed_meaning_are_errors(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(Error, match=reason):
        opened(tmp_path / "a.npz")


class Items(Dataset):  # type: ignore[type-arg]
    """Any items as a data set."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


X = torch.from_numpy(ARRAY[0].transpose(2, 0, 1).copy())  # (3, 8, 8) bytes
SETTINGS = DataConfig(path="mine", hold_out=0)


@pytest.mark.parametrize(
    "item",
    [
        X,
        X / 255,
        (X, 3),
        [X / 255, torch.tensor(3)],
        {"image": X, "label": 3},
        ARRAY[0],
        Image.fromarray(ARRAY[0]),
        (Image.fromarray(ARRAY[0]).convert("RGBA"), 3),
    ],
    ids=["tensor", "floats", "pair", "list", "dict", "array", "Pillow", "Pillow with alpha"],
)
def test_items_of_a_python_data_set_are_understood(item: object) -> None:
    images = open_images(Items(item, item), SETTINGS)
    assert (images.pixels(1) == ARRAY[0]).all()
    labelled = isinstance(item, tuple | list | dict)
    assert images.classes == (("3",) if labelled else ())


def test_floats_of_a_data_set_are_from_minus_one_if_any_item_is() -> None:
    dark, light = torch.full((1, 8, 8), -1.0), torch.full((1, 8, 8), 0.5)
    images = open_images(TensorDataset(torch.stack([light, dark])), SETTINGS)
    assert [int(images.pixels(i)[0, 0, 0]) for i in range(2)] == [191, 0]
    assert int(open_images(Items(light, light), SETTINGS).pixels(0)[0, 0, 0]) == 128


def test_a_data_set_may_carry_captions() -> None:
    assert open_images(Items((X, "a cat"), (X, "a dog")), SETTINGS).captions == ["a cat", "a dog"]


def test_data_sets_that_cannot_be_learned_from_are_errors() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> object:
            return iter([X])

    for dataset, reason in (
        (Stream(), "map-style"),
        (Items(), "empty"),
        (Items(X * 3.0), "floats from"),
        (Items(torch.zeros(8)), "has shape"),
        (Items({"pic": X}), "name the image 'image'"),
        (Items("text"), "str"),
    ):
        with pytest.raises(Error, match=reason):
            open_images(dataset, SETTINGS)


def test_a_path_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "flowers", "a.png")
    with pytest.raises(Error, match=r"Did you mean .*flowers\?"):
        opened(tmp_path / "flower")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", saved(drawn(), "PNG"), "the folder it lies in"),
        ("a.tar", b"x" * 600, "no data set kuosan knows"),
        ("empty", b"", "no data set kuosan knows"),
    ],
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Error, match=reason):
        opened(tmp_path / name)


def test_empty_folders_and_folders_of_text_are_errors_to_train_on_and_reports_to_the_doctor(tmp_path: Path) -> None:
    with pytest.raises(Error, match="is empty: put images"):
        opened(tmp_path)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("words")
    with pytest.raises(Error, match=r"no image .* can be used. 0.txt: not an image.*and 2 more.*kuosan doctor"):
        opened(tmp_path)
    report = examine(DataConfig(path=str(tmp_path)))
    assert report.summary()["used"] == 0 and report.summary()["skipped"] == 5
    assert any("5 skipped" in line for line in report.lines())


def test_one_image_is_trained_on_and_nothing_is_held_out(tmp_path: Path) -> None:
    put(tmp_path, "only.png")
    images = opened(tmp_path, hold_out=0.9)
    assert images.train.tolist() == [0] and len(images.held_out) == 0
    assert any("none held out (too few images)" in line for line in images.describe())


def test_a_test_file_of_idx_alone_is_split_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(drawn(200, 9, 9, "idx test")))
    for path in (tmp_path, tmp_path / "t10k-images-idx3-ubyte"):
        assert 0 < len(opened(path, hold_out=None).held_out) < 100
        assert 50 < len(opened(path, hold_out=0.5).held_out) < 150


def test_an_idx_file_that_hold_out_leaves_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(drawn(40, 9, 9, "idx")))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(drawn(10, 9, 9, "idx test")))
    assert "t10k-images-idx3-ubyte is not used" in opened(tmp_path, hold_out=0.5).describe()[0]


def test_arrays_without_a_known_name_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", faces=drawn(4, 9, 9, "a"), y=np.zeros(4, np.uint8))
    with pytest.raises(Error, match=r"holds faces, y; name the images one of x, images"):
        opened(tmp_path / "a.npz")


def test_the_files_counted_are_those_used_and_those_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(drawn(name="a"), "PNG"))
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "circle").symlink_to(".")
    lines = opened(tmp_path).describe()
    assert lines[0].endswith(": 4 files.") and lines[-1].startswith("3 skipped"), lines
