"""Memory: what decoding takes is said from the header, refused by name above `max_bytes`, and never more than that."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from golden_files import png_file, tiff_file
from made_files import picture, saved
from PIL import Image

import kuosan.data.aside as beside
from kuosan.data.aside import aside, check_tags, without_mark
from kuosan.data.config import DataConfig
from kuosan.data.decoding import decode, decode_to, read_header
from kuosan.data.doctor import examine
from kuosan.data.footprint import Room, needed
from kuosan.data.headers import Refused
from kuosan.data.layers import Layers
from kuosan.data.pictures import open_pictures
from kuosan.data.tiff import sheet
from kuosan.errors import Error

ROOT = Path(__file__).parents[2]
SAMPLE = (
    "png with 3,000 EXIF,png with EXIF in a loop,png with EXIF in a packed,png with 60,png of one column,"
    "jpeg with EXIF tags,jpeg with EXIF in 16,jpeg with 12 MB,jpeg with an MPF,jpeg progressive claims 8000,"
    "webp with EXIF,webp claims,gif whose,tiff of 4,000,big tiff,tiff of a depth,tiff of a tile,"
    "tiff 12 bits,zip of LZMA with,zip of deflate that says,500 MB of holes,npz"
)


def test_a_sample_of_the_bombs_keeps_the_rule() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/image_bombs.py"), "--only", SAMPLE, "--slack", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 20


def opened_needs(content: bytes) -> int:
    with Image.open(io.BytesIO(content)) as image:
        return needed(image, content, sheet(content))


@pytest.mark.parametrize(
    ("content", "each"),
    [
        (lambda: saved(picture(64, 64), "PNG"), 4),
        (lambda: saved(picture(64, 64, 1), "PNG"), 1),
        (lambda: saved(picture(64, 64), "JPEG"), 4),
        (lambda: saved(picture(64, 64), "JPEG", progressive=True, subsampling=0), 4 + 6),
        (lambda: saved(picture(64, 64), "JPEG", progressive=True, subsampling=2), 4 + 3),
        (lambda: saved(picture(64, 64, 1), "JPEG", progressive=True), 1 + 2),
        (lambda: saved(picture(64, 64), "WEBP"), 16),
        (lambda: saved(picture(64, 64), "AVIF", subsampling="4:4:4"), 4 + 1.5 + 3 + 3),
        (lambda: saved(picture(64, 64), "AVIF", subsampling="4:2:0"), 4 + 1.5 + 1.5 + 3),
        (lambda: saved(picture(64, 64), "PPM"), 4),
    ],
)
def test_what_decoding_takes_is_said_from_the_header(content: object, each: float) -> None:
    made = content()  # type: ignore[operator]
    assert opened_needs(made) == pytest.approx(each * 64 * 64, rel=0.02)
    with pytest.raises(Refused, match=r"max_bytes"):
        decode(made, max_bytes=int(0.9 * each * 64 * 64))
    with pytest.raises(Refused, match=r"max_bytes"):
        read_header(made, max_bytes=int(0.9 * each * 64 * 64))
    assert decode(made, max_bytes=3 * int(each * 64 * 64) + (1 << 16)).pixels.shape[:2] == (64, 64)


def test_a_folder_refuses_by_max_bytes_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(saved(picture(16, 16), "PNG"))
    (tmp_path / "large.png").write_bytes(png_file(np.zeros((700, 700, 3), np.int64), 8, 2))
    report = examine(DataConfig(path=str(tmp_path), max_bytes=1 << 20, workers=2))
    assert [entry.name for entry in report.scan.entries] == ["small.png"]
    ((name, reason),) = report.scan.refused
    assert name == "large.png" and "max_bytes" in reason
    with pytest.raises(Error, match="max_bytes 5 must be"):
        DataConfig(max_bytes=5)


def test_only_the_beginning_is_read_of_what_is_no_image(tmp_path: Path) -> None:
    with (tmp_path / "film.mp4").open("wb") as file:
        file.write(b"\0\0\0\x18moov" + bytes(100))
        file.truncate(50 << 20)
    (tmp_path / "ok.png").write_bytes(saved(picture(16, 16), "PNG"))
    report = examine(DataConfig(path=str(tmp_path), workers=0))
    assert report.scan.refused == [("film.mp4", "not a picture of a known format")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_packed_in_any_way_are_read_alike(tmp_path: Path, method: int) -> None:
    contents = {f"{i}.png": saved(picture(40, 40, 3, f"{i}"), "PNG") for i in range(3)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        for name, content in contents.items():
            file.writestr(name, content)
        file.writestr("0.txt", "a caption")
        file.writestr("empty.png", b"")
        file.writestr("film.mp4", bytes(1 << 20))
    opened = open_pictures(DataConfig(path=str(tmp_path / "a.zip"), size=40, resize="centre", hold_out=0, workers=2))
    got = {opened.name(i): opened.pixels(i) for i in range(len(opened))}
    assert all(np.array_equal(got[name], decode(content).pixels) for name, content in contents.items())
    assert dict(opened.scan.refused) == {"empty.png": "empty file", "film.mp4": "not a picture of a known format"}
    assert opened.captions is not None and "a caption" in opened.captions


def test_threads_that_decode_large_images_share_the_memory() -> None:
    room, most, now, lock = Room(), 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal most, now
        with room.hold(size, 100):
            with lock:
                now += size
                most = max(most, now)
            threading.Event().wait(0.002)
            with lock:
                now -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (60, 50, 30, 100, 10, 70, 90, 20) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 100 and room.used == 0
    with room.hold(500, 100):  # more than there is: alone
        assert room.used == 500


def test_who_needs_much_memory_is_not_passed_by_those_that_come_later_and_need_little() -> None:
    room, order, there = Room(), list[str](), threading.Event()

    def work(name: str, size: int) -> None:
        with room.hold(size, 100):
            order.append(name)

    def come(name: str, size: int) -> threading.Thread:
        before = len(room.waiting)
        thread = threading.Thread(target=work, args=(name, size))
        thread.start()
        while len(room.waiting) == before and thread.is_alive():
            there.wait(0.001)
        return thread

    with room.hold(30, 100):
        threads = [come("large", 90), *(come(f"small {i}", 1) for i in range(5))]
        assert order == []  # each of the small ones has room, and comes after the large one
    for thread in threads:
        thread.join()
    assert order[0] == "large" and len(order) == 6 and room.used == 0 and not room.waiting


def test_a_wait_for_memory_that_is_given_up_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    monkeypatch.setattr(room.changed, "wait_for", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), room.hold(1, 100):
        pass
    monkeypatch.undo()
    with room.hold(100, 100):
        assert room.used == 100 and not room.waiting


def of_directories(directories: int, tags: int) -> bytes:
    """A TIFF of directories that each lead to the next by a tag, of so many tags."""
    content, at = b"II*\0" + struct.pack("<L", 8), 8
    for left in reversed(range(directories)):
        at += 2 + 12 * tags + 4
        content += struct.pack("<H", tags) + struct.pack("<HHLL", 0x8769, 4, 1, at if left else 0)
        content += struct.pack("<HHLL", 1, 1, 1, 0) * (tags - 1) + bytes(4)
    return content


@pytest.mark.parametrize("kind", ["one block of directories", "AVIF of many marks"])
def test_tags_are_counted_over_all_directories_of_a_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(directories: int, tags: int) -> None:
        if kind == "AVIF of many marks":
            block = of_directories(1, tags) * directories
            aside(saved(picture(16, 16), "AVIF") + struct.pack(">I4s", 8 + len(block), b"free") + block)
        else:
            check_tags(of_directories(directories, tags), "its EXIF")

    looked(30, 2_000)
    with pytest.raises(Refused, match="more than 65,536 tags"):
        looked(60, 2_000)
    monkeypatch.setattr(beside, "MOST_TAGS", 100)
    looked(10, 10)
    with pytest.raises(Refused, match="more than 100 tags"):
        looked(11, 10)


def test_honest_exif_is_read_and_turns_an_image() -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "camera"
    tags.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    for kind in ("PNG", "JPEG", "WEBP", "AVIF"):
        content = saved(picture(16, 24), kind, exif=tags)
        assert decode(content).pixels.shape[:2] == (24, 16), kind
        assert (read_header(content).width, read_header(content).height) == (16, 24), kind
    assert 0 < check_tags(without_mark(tags.tobytes()), "its EXIF") < 200


def test_an_npz_is_converted_chunk_by_chunk_and_reads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kuosan.data.arrays.CHUNK", 1000)
    rng = np.random.default_rng(0)
    values = rng.random((30, 9, 11, 3)).astype(np.float32)
    for name, stored in (
        ("last", values),
        ("first", np.moveaxis(values, 3, 1)),
        ("fortran", np.asfortranarray(values)),
    ):
        np.savez_compressed(tmp_path / f"{name}.npz", x=stored, y=np.arange(30) % 3)
        got = open_pictures(DataConfig(path=str(tmp_path / f"{name}.npz"), size=16, resize="centre", hold_out=0))
        want = np.rint(values.astype(np.float32) * 255.0).astype(np.uint8)
        assert np.array_equal(np.stack([got.pixels(i)[3:12, 2:13] for i in range(30)]), want), name
        assert got.classes == ("0", "1", "2")


def test_a_tiff_of_several_images_is_known_without_following_the_chain() -> None:
    frames = [Image.fromarray(picture(8, 8, 3, f"{i}")) for i in range(3)]
    several = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert "first of several frames" in decode(several).notes
    assert "first of several frames" not in decode(saved(frames[0], "TIFF")).notes


def test_a_tiff_read_here_is_read_band_by_band() -> None:
    values = np.arange(1200 * 1100).reshape(1200, 1100, 1) % 4096
    want = np.rint(values * (255 / 4095))
    for rows in (1, 7, 1200):
        got = decode(tiff_file(values, 1, 12, rows=rows, compression=8)).pixels
        assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("mark", [b"II*\0", b"MM\0*"])
def test_an_avif_of_many_marks_of_exif_is_refused_after_a_few(mark: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(picture(16, 16), "AVIF")
    few, many = (content + struct.pack(">I4s", 8 + 4 * n, b"free") + mark * n for n in (60, 4 << 20))
    assert decode(few).pixels.shape[:2] == (16, 16)
    looked: list[int] = []
    monkeypatch.setattr(beside, "check_tags", lambda view, *_: looked.append(len(view)))
    with pytest.raises(Refused, match=r"beginnings of EXIF"):
        aside(many)
    assert len(looked) == beside.MOST_DIRECTORIES
    assert max(looked) <= beside.MOST_EXIF


@pytest.mark.parametrize("decoys", [0, 30])
def test_exif_in_the_pixels_box_of_an_avif_is_looked_at_behind_other_marks(decoys: int) -> None:
    tags = b"".join(struct.pack("<HHLL", 0x9000 + i, 7, 60_000, 8) for i in range(3000))
    exif = b"II*\0" + struct.pack("<LH", 8, 3000) + tags + bytes(60_000)
    box = struct.pack(">I4s", 8 + 4 * decoys, b"free") + b"II*\0" * decoys
    content = saved(picture(16, 16), "AVIF") + box + struct.pack(">I4s", 8 + len(exif), b"mdat") + exif
    with pytest.raises(Refused, match=r"its EXIF tags promise"):
        aside(content)


def out_of_memory(*_: object) -> None:
    raise MemoryError("Unable to allocate 1.2 GiB for an array")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_memory_that_runs_out_says_nothing_of_a_file_that_was_decoded_before(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(picture(16, 16), kind)
    monkeypatch.setattr(Layers, "laid_on", out_of_memory)
    with pytest.raises(MemoryError, match=r"1.2 GiB"):
        decode_to(content, lambda decoded: decoded, known=True)
    with pytest.raises(Refused, match=r"damaged: MemoryError"):
        decode_to(content, lambda decoded: decoded)
    with pytest.raises(Refused, match=r"damaged: MemoryError"):
        decode(content)


@pytest.mark.parametrize("error", [ValueError("of kuosan"), KeyError("of kuosan"), MemoryError("of kuosan")])
@pytest.mark.parametrize("known", [False, True])
def test_an_error_of_what_is_done_with_an_image_is_not_its_files(error: Exception, known: bool) -> None:
    cause = OSError("below")

    def use(decoded: object) -> None:
        raise error from cause

    with pytest.raises(type(error), match=r"of kuosan") as found:
        decode_to(saved(picture(16, 16), "PNG"), use, known=known)
    assert found.value is error and error.__cause__ is cause


def test_an_image_of_a_run_for_which_memory_runs_out_is_no_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(saved(picture(16, 16, 3, name), "PNG"))
    pictures = open_pictures(DataConfig(path=str(tmp_path), hold_out=0, workers=0, memory_gib=0))
    monkeypatch.setattr(Layers, "laid_on", out_of_memory)
    with pytest.raises(MemoryError, match=r"1.2 GiB"):
        pictures.pixels(0)
