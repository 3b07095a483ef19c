"""Damaged, hostile and odd files: none stops the doctor or the loader, none is changed, each is accounted for."""

from __future__ import annotations

import os
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_files import chunk, grey_profile, picture, png, saved, smooth, tiff
from PIL import Image, ImageFile, PngImagePlugin

from kuosan.data.config import DataConfig
from kuosan.data.decoding import decode
from kuosan.data.doctor import examine, write
from kuosan.data.headers import Refused
from kuosan.data.pictures import open_pictures
from kuosan.errors import Error
from kuosan.seeds import rng
from work import instructions

COUNT = 2000  # damaged files in the test below
MOST = 50_000  # of Python's instructions for a file of a few kB; 19,000 are needed


def bases() -> dict[str, bytes]:
    """21 sound files of every format."""
    small, grey, rgba = picture(40, 48), picture(40, 48, 1), picture(40, 48, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(picture(20, 20, 3, f"frame {i}")) for i in range(3)]
    animated: dict[str, object] = {"save_all": True, "append_images": frames[1:], "duration": 40}
    return {
        "rgb.png": saved(small, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "rgba.png": saved(rgba, "PNG"),
        "wide.png": saved(Image.fromarray(grey[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette.png": saved(Image.fromarray(small).quantize(32), "PNG", transparency=3),
        "profile.png": saved(grey, "PNG", icc_profile=grey_profile(1.8), exif=exif),
        "animated.png": saved(frames[0], "PNG", **animated),
        "rgb.jpg": saved(smooth(), "JPEG"),
        "progressive.jpg": saved(smooth(), "JPEG", progressive=True, exif=exif),
        "grey.jpg": saved(smooth()[..., :1], "JPEG"),
        "cmyk.jpg": saved(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
        "mpo.jpg": saved(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "still.gif": saved(Image.fromarray(small), "GIF"),
        "animated.gif": saved(frames[0], "GIF", **animated),
        "lossy.webp": saved(smooth(), "WEBP"),
        "animated.webp": saved(frames[0], "WEBP", **animated),
        "rgb.bmp": saved(small, "BMP"),
        "raw.tif": saved(small, "TIFF"),
        "lzw.tif": saved(small, "TIFF", compression="tiff_lzw"),
        "float.tif": tiff((grey / 255).astype(np.float32), 1, 3, 32),
        "rgb.ppm": saved(small, "PPM"),
    }


def damage(content: bytes, kind: int, draw: np.random.Generator) -> bytes:
    """One of seven ways a file goes bad."""
    body = bytearray(content)
    at = int(draw.integers(len(body)))
    length = int(draw.integers(1, 64))
    if kind == 0:
        return bytes(body[:at])  # cut short
    if kind == 1:
        body[at] ^= 1 << int(draw.integers(8))  # one bit
    elif kind == 2:
        for place in draw.integers(0, len(body), 16):  # sixteen bytes
            body[place] = int(draw.integers(256))
    elif kind == 3:
        body[at : at + length] = bytes(len(body[at : at + length]))  # a hole of zeros
    elif kind == 4:
        del body[at : at + length]  # bytes lost
    elif kind == 5:
        body[at:at] = draw.integers(0, 256, length).astype(np.uint8).tobytes()  # bytes gained
    else:
        head = min(64, len(body))
        body[int(draw.integers(head))] = 255  # the header lies
    return bytes(body)


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything a change would show in."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_mode, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("count", [COUNT, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_damaged_files_are_all_accounted_for_and_none_is_fatal(tmp_path: Path, count: int) -> None:
    sound = bases()
    assert len(sound) == 21
    names = sorted(sound)
    (tmp_path / "sound.png").write_bytes(sound["rgb.png"])
    for i in range(count):
        name = names[i % len(names)]
        stem, suffix = name.split(".")
        content = damage(sound[name], i // len(names) % 7, rng(1, "damage", 0, i))
        (tmp_path / f"{stem}-{i}.{suffix}").write_bytes(content)
    before = tree(tmp_path)
    config = DataConfig(path=str(tmp_path), size=16, workers=0)
    report = examine(config)
    used = {entry.name for entry in report.scan.entries}
    skipped = {name for name, _ in report.scan.refused}
    assert used | skipped == set(before) and not used & skipped
    assert all(reason for _, reason in report.scan.refused)
    assert len(skipped) > count / 4 and len(used) > count / 20  # the mutations bite, and do not bite everything
    pictures = open_pictures(config)
    assert len(pictures) == len(used)
    assert pictures.batch(np.arange(len(pictures))).x0.isfinite().all()
    assert tree(tmp_path) == before


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of all images whose pixels Pillow was asked for from here on."""
    sizes: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> object:
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return sizes


def test_each_damaged_file_is_judged_with_little_work(loaded: list[tuple[int, int]]) -> None:
    def judge(content: bytes) -> None:
        try:
            assert decode(content).pixels.dtype == np.uint8
        except Refused as reason:
            assert str(reason)

    for i, (name, content) in enumerate(sorted(bases().items())):
        for kind in range(7):
            damaged = damage(content, kind, rng(2, name, 0, i))
            assert instructions(lambda damaged=damaged: judge(damaged)) < MOST, (name, kind)  # type: ignore[misc]
    assert len(loaded) > 21
    assert max(w * h for w, h in loaded) < 20_000, "a size that only a damaged header claims was decoded"


def _claims(w: int, h: int) -> dict[str, bytes]:
    """Small files whose headers claim w x h pixels."""
    tif = bytearray(saved(picture(4, 4), "TIFF"))
    at = struct.unpack_from("<I", tif, 4)[0] + 2
    for i in range(struct.unpack_from("<H", tif, at - 2)[0]):
        tag = struct.unpack_from("<H", tif, at + 12 * i)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", tif, at + 12 * i, tag, 4, 1, w if tag == 256 else h)
    jpg = bytearray(saved(picture(16, 16), "JPEG"))
    struct.pack_into(">HH", jpg, jpg.index(b"\xff\xc0") + 5, min(h, 65535), min(w, 65535))
    gif = bytearray(saved(picture(4, 4), "GIF"))
    struct.pack_into("<HH", gif, 6, min(w, 65535), min(h, 65535))
    bmp = bytearray(saved(picture(4, 4), "BMP"))
    struct.pack_into("<ii", bmp, 18, w, h)
    side = min(w, h, 16383) - 1
    body = b"\x2f" + struct.pack("<I", side | side << 14) + bytes(16)
    webp = b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return {
        "png": png(w, h, 8, 2, b"\0" * 100),
        "grey png": png(w, h, 1, 0, b"\0" * 100),
        "tiff": bytes(tif),
        "jpeg": bytes(jpg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "ppm": f"P6 {w} {h} 255\n".encode() + bytes(100),
        "pbm": f"P4 {w} {h}\n".encode() + bytes(100),
    }


def bombs() -> dict[str, bytes]:
    """Small files that would take gigabytes."""
    made = {f"{kind} of {w}x{h}": body for w, h in SIDES for kind, body in _claims(w, h).items()}
    zeros = zlib.compress(bytes(200 << 20), 9)
    for name, before in (
        ("zTXt", chunk(b"zTXt", b"Comment\0\0" + zeros)),
        ("iTXt", chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)),
        ("iCCP", chunk(b"iCCP", b"profile\0\0" + zeros)),
    ):
        made[f"png with a {name} bomb"] = png(4, 4, 8, 2, b"\0" * 52, before)
    big = tiff(np.zeros((256, 1024, 1), np.uint8), 1, bits=8)
    (at,) = struct.unpack_from("<I", big, 4)
    count = struct.unpack_from("<H", big, at)[0]
    more = b"".join(struct.pack("<HHII", 40000 + i, 1, 250_000, 8) for i in range(4000))
    tags = big[at + 2 : at + 2 + 12 * count] + more
    made["tiff of 4000 tags on the same bytes"] = big[:at] + struct.pack("<H", count + 4000) + tags + bytes(4)
    return made


SIDES = ((60_000, 60_000), (16_300, 16_300), (100_000, 100_000), (30_000, 9_000), (8_500, 8_500))
BOMBS = bombs()


def test_fifty_bombs_are_refused_before_they_are_decoded(loaded: list[tuple[int, int]]) -> None:
    assert len(BOMBS) >= 49
    decode(saved(picture(), "PNG"))  # what is loaded once is not the bomb's
    assert loaded
    loaded.clear()

    def refuse(name: str, content: bytes) -> None:
        harmless = "bomb" in name
        try:
            pixels = decode(content).pixels
            assert harmless and pixels.shape == (4, 4, 3), f"{name}: let in"
        except Refused as reason:
            assert "too large" in str(reason) or "damaged" in str(reason) or "not a picture" in str(reason), name

    for name, content in BOMBS.items():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work = instructions(lambda name=name, content=content: refuse(name, content))  # type: ignore[misc]
        assert work < MOST and all(w * h <= 16 for w, h in loaded), name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10, name  # kB


def test_a_larger_limit_lets_a_large_picture_in() -> None:
    content = saved(np.zeros((900, 1000, 1), np.uint8), "PNG")
    assert decode(content, max_pixels=900_000).pixels.shape == (900, 1000, 1)
    with pytest.raises(Refused, match="1000x900 is more than 899,999"):
        decode(content, max_pixels=899_999)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"max_pixels": 899_999}, "scale it down, or let it in where data are chosen (kuosan train and doctor: "
                                  "--max-pixels 900000)"),
        ({"max_bytes": 1 << 20}, "(kuosan train and doctor: --max-bytes "),
    ],
)  # fmt: skip
def test_what_is_refused_as_too_large_says_which_option_lets_it_in(
    settings: dict[str, int], cure: str, tmp_path: Path
) -> None:
    (tmp_path / "a.webp").write_bytes(saved(np.zeros((900, 1000, 3), np.uint8), "WEBP"))
    report = examine(DataConfig(str(tmp_path), **settings))  # type: ignore[arg-type]
    (line,) = [line for line in report.lines() if "skipped (1 too large)" in line]
    assert cure in line
    option, value = line.split("doctor: --")[1].split(")")[0].split()
    assert examine(DataConfig(str(tmp_path), **{option.replace("-", "_"): int(value)})).scan.refused == []  # type: ignore[arg-type]


def test_what_no_option_lets_in_is_to_be_scaled_down() -> None:
    with pytest.raises(Refused, match=r"more than 64,000,000 pixels \(max_pixels\): scale it down$"):
        decode(b"P5 20000 20000 255 ")


def test_a_zip_member_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ok.png", saved(picture(), "PNG"))
        with file.open("bomb.png", "w") as member:
            for _ in range(40):
                member.write(bytes(1 << 20))
    report = examine(DataConfig(path=str(path), max_pixels=1_000_000))
    assert [entry.name for entry in report.scan.entries] == ["ok.png"]
    assert report.scan.refused == [("bomb.png", "too large: 41,943,040 bytes unpacked")]


def test_odd_things_in_a_folder_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    (folder / "named.png").mkdir(parents=True)
    (folder / "named.png" / "inside.png").write_bytes(saved(picture(), "PNG"))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture at all")
    (folder / "jpeg_inside.png").write_bytes(saved(smooth(), "JPEG"))
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"no\xfftext.png")).write_bytes(b"x")
    report = examine(DataConfig(path=str(folder), workers=0))
    assert sorted(entry.name for entry in report.scan.entries) == ["jpeg_inside.png", "named.png/inside.png"]
    reasons = dict(report.scan.refused)
    assert reasons["empty.png"] == "empty file"
    assert reasons["text.jpg"].startswith("not a picture")
    assert reasons[".DS_Store"] == "hidden"
    assert reasons["a/b/up"] == "link in a circle"
    assert reasons["dangling.png"].startswith("unreadable")
    assert reasons["self.png"].startswith("unreadable")
    assert reasons["pipe.png"] == "not a regular file"
    assert len(reasons) == 8
    assert "\n".join(report.lines()).encode()  # what is said can be printed
    write(report, tmp_path / "lists")
    assert b"no\xfftext.png" in (tmp_path / "lists" / "rejected.csv").read_bytes()


def test_a_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ok.png", "shut.png"):
        (tmp_path / name).write_bytes(saved(picture(), "PNG"))
    opened = os.open

    def forbidden(file: os.PathLike[str], *rest: int, **more: int) -> int:  # root may read everything
        if os.fspath(file).endswith("shut.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *rest, **more)

    monkeypatch.setattr(os, "open", forbidden)
    report = examine(DataConfig(path=str(tmp_path)))
    assert report.scan.refused == [("shut.png", "unreadable: Permission denied")]


def test_a_file_that_goes_after_the_scan_is_an_error_that_names_it(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(saved(picture(name=f"{i}"), "PNG"))
    config = DataConfig(path=str(tmp_path), size=8, memory_gib=0, hold_out=0)
    for spoil in (Path.unlink, lambda file: file.write_bytes(saved(picture(name="other"), "PNG"))):
        pictures = open_pictures(config)
        gone = tmp_path / pictures.name(2)
        kept = gone.read_bytes()
        spoil(gone)
        with pytest.raises(Error, match=gone.name):
            list(pictures.batches([([0, 1], None), ([2, 3], None), ([4, 5], None)]))
        gone.write_bytes(kept)


def test_pillows_warnings_stay_inside_and_the_filters_are_left_as_they_were() -> None:
    import warnings

    before = list(warnings.filters)
    with pytest.raises(Refused):
        decode(_claims(12_000, 12_000)["png"])  # between Pillow's warning and its error
    assert warnings.filters == before


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {"quality": 90},
    "baseline, 4:2:0": {"quality": 75, "subsampling": 2},
    "progressive": {"quality": 80, "progressive": True},
    "with restarts": {"quality": 85, "restart_marker_blocks": 3},
    "grey": {"quality": 70, "grey": True},
}


def jpeg(kind: str) -> tuple[bytes, np.ndarray]:
    """A JPEG of noise, and its pixels."""
    options = dict(JPEGS[kind])
    content = saved(picture(45, 70, 1 if options.pop("grey", False) else 3), "JPEG", **options)
    assert content.endswith(b"\xff\xd9")
    return content, decode(content).pixels


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_nothing_but_its_end_marker_is_read(kind: str) -> None:
    content, pixels = jpeg(kind)
    for end in (content[:-2], content[:-1]):
        found = decode(end)
        assert np.array_equal(found.pixels, pixels)
        assert "without the marker at its end, and whole all the same" in found.notes and found.reading == 2


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_any_pixels_is_refused(kind: str) -> None:
    content, pixels = jpeg(kind)
    for missing in (4, 5, 6, 8, 12, 20, 50, 100, 200, 400, len(content) // 2):
        try:
            found = decode(content[: len(content) - missing])
        except Refused as reason:
            assert "damaged" in str(reason)
        else:  # padding, or a last bit that no pixel shows
            assert missing <= 6 and np.array_equal(found.pixels, pixels), missing


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    content = jpeg("progressive")[0]
    scans = [i for i in range(len(content) - 1) if content[i : i + 2] == b"\xff\xda"]
    tables = [i for i in range(len(content) - 1) if content[i : i + 2] == b"\xff\xc4"]
    assert len(scans) > 3
    for scan in scans[1:]:
        cut = max((table for table in tables if scans[scans.index(scan) - 1] < table < scan), default=scan)
        with pytest.raises(Refused, match="damaged"):
            decode(content[:cut])


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
def test_packed_texts_of_a_png_are_read_up_to_the_bound_of_all_texts(kind: str) -> None:
    plain, bound = saved(picture(), "PNG"), PngImagePlugin.MAX_TEXT_CHUNK

    def with_text(count: int) -> bytes:
        packed = zlib.compress(b"a" * count)
        body = b"key\0\0" + packed if kind == "zTXt" else b"key\0\1\0\0\0" + packed
        chunk = struct.pack(">I", len(body)) + kind.encode() + body
        return plain[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + plain[33:]

    for count in (1000, 1 << 20, (1 << 20) + 1, 3 << 20, (8 << 20) - 1):
        assert np.array_equal(decode(with_text(count)).pixels, decode(plain).pixels), count
    with pytest.raises(Refused, match="texts unpack to more than 8,388,608 bytes"):
        decode(with_text((8 << 20) + 1))
    assert bound == PngImagePlugin.MAX_TEXT_CHUNK  # of whoever else uses Pillow in this process
