"""Tars, zips' names, and folders that kuosan itself writes: what is read in place, and what is refused by name."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import drawn, saved
from test_sources import SETTINGS, Items, X, opened, put

from kuosan.data.archives import member_name
from kuosan.data.config import DataConfig
from kuosan.data.dataset import open_images
from kuosan.data.doctor import examine
from kuosan.errors import Error
from shell import kuosan


def image(name: str) -> bytes:
    return saved(drawn(8, 8, 3, name), "PNG")


def tar_of(path: Path, *names: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as pack:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(image(name))
            pack.addfile(info, io.BytesIO(image(name)))
    return path


def refused(path: Path) -> dict[str, str]:
    return dict(examine(DataConfig(path=str(path))).scan.refused)


def test_a_tar_is_the_same_as_the_folder_in_it_in_memory_and_out_of_it(tmp_path: Path) -> None:
    put(tmp_path / "pets", "cat/1.png", "cat/2.png", "dog/1.png")
    (tmp_path / "pets" / "cat" / "1.txt").write_text("a cat")
    with tarfile.open(tmp_path / "pets.tar", "w") as pack:
        pack.add(tmp_path / "pets", "pets")
    one, other = opened(tmp_path / "pets"), opened(tmp_path / "pets.tar", memory_gib=0.0, workers=2)
    assert one.fingerprint == other.fingerprint and one.captions == other.captions
    assert not other.in_memory and torch.equal(one.batch(range(3)).x0, other.batch(range(3)).x0)
    many = tmp_path / "tars"
    many.mkdir()
    for kind in ("cat", "dog"):
        with tarfile.open(many / f"{kind}.tar", "w") as pack:
            pack.add(tmp_path / "pets" / kind, ".")
    assert opened(many).fingerprint == one.fingerprint


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_with_the_cure(tmp_path: Path, ending: str) -> None:
    path = tar_of(tmp_path / f"a.tar.{ending}", "a.png", mode=f"w:{ending}")
    with pytest.raises(Error, match=r"a compressed tar, .* unpack it \(tar -xf a.tar"):
        opened(path)
    assert refused(tmp_path)[path.name] == "compressed tar: unpack it, or store it as .tar"


def test_tars_beside_images_that_are_files_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    tar_of(tmp_path / "cat.tar", "1.png")
    assert "a tar beside images that are files (cat/1.png)" in refused(tmp_path)["cat.tar"]
    assert len(opened(tmp_path)) == 1


def test_a_tar_that_is_cut_or_damaged_says_what_is_lost(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", "a.png", "b.png", "c.png").read_bytes()
    (tmp_path / "whole.tar").unlink()
    block = 512 + -(-len(image("a.png")) // 512) * 512
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: 2 * block + 600])
    assert [entry.name for entry in opened(cut).scan.entries] in (["a.png", "b.png"], ["b.png", "a.png"])
    assert "cut short: the tar ends before it" in refused(cut)["c.png"]
    cut.write_bytes(whole[:block] + b"?" * 512 + whole[block + 512 :])
    assert {entry.name for entry in opened(cut).scan.entries} == {"a.png"}
    assert refused(cut) == {f"after {block:,} bytes": "damaged tar: no header"}
    cut.write_bytes(b"no tar at all" * 100)
    with pytest.raises(Error, match="no data set kuosan knows"):
        opened(cut)
    put(tmp_path / "x", "y.txt")
    (tmp_path / "x" / "broken.tar").write_bytes(b"no tar at all" * 100)
    assert "unreadable tar" in refused(tmp_path / "x")["broken.tar"]


def test_members_of_a_tar_that_are_no_files_or_lead_out_are_refused_by_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", "ok.png", "../out.png", "/abs.png", "._ok.png")
    with tarfile.open(path, "a") as pack:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            pack.addfile(info)
    out = "a name that leads out of the tar"
    assert refused(path) == {
        "../out.png": out,
        "/abs.png": out,
        "._ok.png": "hidden",
        **dict.fromkeys(("link.png", "hard.png", "pipe"), "not a regular file"),
    }


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("a.png", "a.png"),
        ("./x//y.png", "x/y.png"),
        (".\\x\\y.png", "x/y.png"),
        ("..a/b..png", "..a/b..png"),
        ("../a.png", None),
        ("x/../../a.png", None),
        ("x\\..\\a.png", None),
        ("/a.png", None),
        ("\\a.png", None),
        ("\\\\host\\share\\a.png", None),
        ("C:\\a.png", None),
        ("c:a.png", None),
    ],
)
def test_names_of_members_are_read_as_unzip_reads_them(name: str, want: str | None) -> None:
    assert member_name(name) == want


def zip_of(path: Path, raw: bytes, extra: bytes = b"") -> Path:
    """A zip of one image under these very bytes as its name, not marked as UTF-8."""
    placeholder = "x" * len(raw)
    with zipfile.ZipFile(path, "w") as pack:
        info = zipfile.ZipInfo(placeholder)
        info.extra = extra
        pack.writestr(info, image("a"))
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), raw))
    return path


@pytest.mark.parametrize("codec", ["cp437", "utf-8"])
def test_a_zips_names_without_a_mark_are_utf_8_or_else_cp437(tmp_path: Path, codec: str) -> None:
    path = zip_of(tmp_path / "a.zip", "caf\u00e9.png".encode(codec))
    assert opened(path).name(0) == "caf\u00e9.png"


def test_a_zips_name_that_info_zip_gives_in_unicode_is_used(tmp_path: Path) -> None:
    raw, name = b"cat?.png", "cat\u732b.png".encode()
    extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(raw)) + name
    assert opened(zip_of(tmp_path / "a.zip", raw, extra)).name(0) == "cat\u732b.png"
    extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, 7) + name  # of another name: out of date
    assert opened(zip_of(tmp_path / "b.zip", raw, extra)).name(0) == "cat?.png"


def test_archives_within_archives_are_no_images(tmp_path: Path) -> None:
    inner = tar_of(tmp_path / "inner.tar", "a.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as pack:
        pack.writestr("inner.tar", inner)
        pack.writestr("b.png", image("b"))
    assert "not an image" in refused(tmp_path / "outer.zip")["inner.tar"]


def test_a_file_is_what_its_bytes_say_and_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "far", "x.png")
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "wrong.jpg").write_bytes(image("wrong"))
    (tmp_path / "data" / "no-suffix").write_bytes(image("no suffix"))
    (tmp_path / "data" / "no-suffix.txt").write_text("a caption")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "far" / "x.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "far")
    (tmp_path / "data" / ".hidden.png").write_bytes(image("hidden"))
    images = opened(tmp_path / "data")
    assert {images.name(i) for i in range(4)} == {"wrong.jpg", "no-suffix", "link.png", "folder/x.png"}
    assert {text for text in images.captions or []} == {None, "a caption"}
    assert refused(tmp_path / "data") == {".hidden.png": "hidden"}


def test_parquet_beside_images_is_refused_by_name_and_passed_over_where_a_list_is_read(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(Error, match=r"metadata.parquet lists images, but parquet is not read: write it as metadata"):
        opened(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\n")
    assert opened(tmp_path).captions == ["one"] and "metadata.parquet" in refused(tmp_path)


OWN = {
    "run/config.yaml": "data: {}",
    "run/data.json": json.dumps({"fingerprint": "x", "train": 1, "held_out": 0, "init": None}),
    "run2/config.yaml": "data: {}",
    "run2/checkpoints/step-00000003/manifest.json": "{}",
    "model/manifest.json": json.dumps({"format": 1, "files": {}, "sha256": ""}),
    "sampled/recipe.json": json.dumps({"weights": "", "request": {}, "format": 1}),
    "restored/request.json": json.dumps({"weights": "", "request": {}}),
    "evaluated/result.json": json.dumps({"fingerprint": ""}),
    "rebuilt/reconstruction.json": json.dumps({"fingerprint": ""}),
}


def test_what_kuosan_wrote_is_no_data_and_other_folders_with_such_files_are(tmp_path: Path) -> None:
    put(tmp_path, "a.png", *(f"{name.split('/')[0]}/deep/made.png" for name in OWN))
    put(tmp_path, "cook/soup.png", "dump/b.png")
    for name, text in {**OWN, "cook/recipe.json": '{"salt": 1}', "dump/data.json": "[1]"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    images = opened(tmp_path)
    assert {images.name(i) for i in range(len(images))} == {"a.png", "cook/soup.png", "dump/b.png"}
    folders = {name.split("/")[0] for name in OWN}
    found = {name: why for name, why in refused(tmp_path).items() if why.startswith("written by kuosan")}
    assert set(found) == folders and found["run2"] == "written by kuosan: a run"
    assert len(opened(tmp_path / "sampled")) == 1  # given itself, it is data like any other


def test_the_folder_that_is_written_to_is_no_data(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "out/b.png", "other/out/c.png")
    config = DataConfig(path=str(tmp_path), hold_out=0)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    images = open_images(config, outputs=[tmp_path / "link"])
    assert {images.name(i) for i in range(len(images))} == {"a.png", "other/out/c.png"}
    assert dict(images.report.scan.refused)["out"] == "the folder that is written to"


def test_labels_of_a_python_data_set_may_be_numbers_of_every_kind() -> None:
    labels = [3, 3.0, "3", np.int64(3), np.float32(3), torch.tensor(3.0), torch.tensor(3), 10]
    images = open_images(
        Items(*((X, label) if not isinstance(label, str) else {"image": X, "label": label} for label in labels)),
        SETTINGS,
    )
    assert images.classes == ("3", "10") and images.labels is not None
    assert images.labels.tolist() == [0] * 7 + [1]
    odd = open_images(Items((X, 0.25), (X, float("nan")), (X, True)), SETTINGS)
    assert odd.classes == ("true",) and odd.labels is not None and odd.labels.tolist() == [-1, -1, 0]
    assert odd.report.scan.listing.missing == [
        ("item 0", "has no class: a class is a whole number or text, not a float of float64")
    ]


def test_the_doctor_says_what_was_understood(tmp_path: Path) -> None:
    put(tmp_path / "pets", "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "test/dog/2.png")
    said = kuosan("doctor", tmp_path / "pets", "--out", tmp_path / "report")
    split = "Folders are a split: train to train on (2), val held out for validation (1), test kept for testing"
    assert said.code == 0 and split in " ".join(said.out.split())
    rows = (tmp_path / "report" / "accepted.csv").read_text().splitlines()
    assert {row.split(",")[0]: row.split(",")[7] for row in rows[1:]} == {
        "train/cat/1.png": "false",
        "train/dog/1.png": "false",
        "val/cat/2.png": "true",
        "test/dog/2.png": "test",
    }
