"""Every kind of file means what a good viewer shows, within 2/255 of a float64 reference, or is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from made_files import (
    P3_D50,
    chunk,
    drawn,
    grey_profile,
    lab_to_srgb,
    lut_profile,
    matrix_profile,
    over,
    png,
    png16,
    saved,
    smooth,
    through_matrix,
    tiff,
    turned,
)
from PIL import Image, ImageCms

from kuosan.data.decoding import FORMATS, decode, read_header
from kuosan.data.doctor import converted
from kuosan.data.headers import Refused

Case = tuple[bytes, np.ndarray]  # file, expected (H, W, 1 or 3)
CASES: dict[str, Callable[[], Case]] = {}
P = drawn()
GREY, ALPHA = drawn(channels=1, name="grey"), drawn(channels=1, name="alpha")
WIDE = drawn(name="high").astype(np.uint16) * 256 + drawn(name="low")  # 16 bits


def case(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def add(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[name] = make
        return make

    return add


for kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP"):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    CASES[f"{kind} rgb"] = lambda kind=kind, options=lossless: (saved(P, kind, **options), P)
    if kind != "WEBP":
        CASES[f"{kind} grey"] = lambda kind=kind: (saved(GREY, kind), GREY)
        CASES[f"{kind} one bit"] = lambda kind=kind: (
            saved(Image.fromarray(GREY[..., 0]).point(lambda v: 255 * (v > 127)).convert("1"), kind),
            255.0 * (GREY > 127),
        )
for kind in ("PNG", "TIFF", "WEBP"):
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    CASES[f"{kind} rgba"] = lambda kind=kind, options=lossless: (
        saved(np.concatenate([P, ALPHA], 2), kind, **options),
        over(P, ALPHA),
    )
for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
    CASES[f"TIFF {kind}"] = lambda kind=kind: (saved(P, "TIFF", compression=kind), P)


@case("PNG grey with alpha")
def _() -> Case:
    return saved(Image.merge("LA", [Image.fromarray(c[..., 0]) for c in (GREY, ALPHA)]), "PNG"), over(GREY, ALPHA)[
        ..., :1
    ]


def _palette() -> tuple[Image.Image, np.ndarray]:
    indices = drawn(channels=1, name="indices") % 16
    colours = drawn(16, 1, 3, "colours")[:, 0]
    image = Image.fromarray(indices[..., 0]).convert("L")
    image.putpalette(colours.flatten().tolist())
    return image, colours[indices[..., 0]].astype(float)


for kind in ("PNG", "GIF", "BMP", "TIFF"):
    CASES[f"{kind} palette"] = lambda kind=kind: (saved(_palette()[0], kind), _palette()[1])


@case("PNG palette, one colour clear")
def _() -> Case:
    image, colours = _palette()
    clear = np.asarray(image)[..., None] == 3
    return saved(image, "PNG", transparency=3), np.where(clear, 255.0, colours)


@case("PNG palette, alpha a colour")
def _() -> Case:
    image, colours = _palette()
    alphas = np.arange(16) * 17
    return saved(image, "PNG", transparency=bytes(alphas.tolist())), over(colours, alphas[np.asarray(image)][..., None])


@case("GIF, one colour clear")
def _() -> Case:
    image, colours = _palette()
    clear = np.asarray(image)[..., None] == 5
    return saved(image, "GIF", transparency=5), np.where(clear, 255.0, colours)


@case("PNG rgb, one colour clear")
def _() -> Case:
    clear = (P[2, 3] == P).all(2, keepdims=True)
    return saved(P, "PNG", transparency=tuple(int(v) for v in P[2, 3])), np.where(clear, 255.0, P)


@case("PNG grey, one level clear")
def _() -> Case:
    return saved(GREY, "PNG", transparency=int(GREY[1, 1, 0])), np.where(GREY[1, 1, 0] == GREY, 255.0, GREY)


@case("PNG 16-bit grey")
def _() -> Case:
    return png16(WIDE[..., :1], 0), WIDE[..., :1] / 257.0


@case("PNG 16-bit grey, one level clear")
def _() -> Case:
    level = int(WIDE[4, 4, 0])
    made = png16(WIDE[..., :1], 0, chunk(b"tRNS", struct.pack(">H", level)))
    return made, np.where(WIDE[..., :1] == level, 255.0, WIDE[..., :1] / 257.0)


@case("PNG 16-bit grey from Pillow")
def _() -> Case:
    return saved(Image.fromarray(WIDE[..., 0]), "PNG"), WIDE[..., :1] / 257.0


@case("PNG 16-bit rgb")
def _() -> Case:
    return png16(WIDE, 2), WIDE / 257.0


@case("PNG 16-bit grey with alpha")
def _() -> Case:
    return png16(WIDE[..., :2], 4), over(WIDE[..., :1] / 257.0, WIDE[..., 1:2] / 257.0)


@case("PNG 16-bit rgba")
def _() -> Case:
    alpha = drawn(channels=1, name="alpha16").astype(np.uint16) * 257
    return png16(np.concatenate([WIDE, alpha], 2), 6), over(WIDE / 257.0, alpha / 257.0)


for depth in (1, 2, 4):

    @case(f"PNG {depth}-bit grey")
    def _(depth: int = depth) -> Case:
        levels = drawn(8, 8, 1, "levels")[..., 0] % 2**depth
        bits = ((levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(8, -1).astype(np.uint8)
        rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
        return png(8, 8, depth, 0, rows), levels[..., None] * 255.0 / (2**depth - 1)


@case("TIFF 16-bit grey, little endian")
def _() -> Case:
    return tiff(WIDE[..., :1].astype("<u2"), 1), WIDE[..., :1] / 257.0


@case("TIFF 16-bit grey, big endian")
def _() -> Case:
    image = Image.frombytes("I;16B", (12, 10), WIDE[..., 0].astype(">u2").tobytes())
    return saved(image, "TIFF"), WIDE[..., :1] / 257.0


@case("TIFF 16-bit rgb")
def _() -> Case:
    return tiff(WIDE.astype("<u2"), 2), WIDE / 257.0


@case("TIFF float in [0, 1]")
def _() -> Case:
    values = (GREY / 255.0).astype(np.float32)
    return tiff(values, 1, sample_format=3, bits=32), values * 255.0


@case("TIFF Lab")
def _() -> Case:
    lab = np.stack([np.full((4, 6), 50.0), np.full((4, 6), 20.0), np.full((4, 6), -30.0)], 2)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], 2).round().astype(np.uint8)
    return tiff(stored, 8, bits=8), lab_to_srgb(lab)


@case("PGM 16-bit")
def _() -> Case:
    return b"P5 12 10 65535\n" + WIDE[..., 0].astype(">u2").tobytes(), WIDE[..., :1] / 257.0


@case("PGM of 1000 levels")
def _() -> Case:
    levels = WIDE[..., 0] % 1001
    return b"P5 12 10 1000\n" + levels.astype(">u2").tobytes(), levels[..., None] / 1000 * 255


@case("PPM 16-bit")
def _() -> Case:
    return b"P6 12 10 65535\n" + WIDE.astype(">u2").tobytes(), WIDE / 257.0


@case("PBM")
def _() -> Case:
    return b"P4 8 1\n\xa5", 255.0 * (1 - np.array([[1, 0, 1, 0, 0, 1, 0, 1]]))[..., None]


@case("PFM in [0, 1]")
def _() -> Case:
    values = (GREY[::-1, :, 0] / 255).astype("<f4")  # rows from the bottom
    return b"Pf\n12 10\n-1.0\n" + values.tobytes(), GREY.astype(float)


def _cmyk(inks: np.ndarray) -> Image.Image:
    return Image.merge("CMYK", [Image.fromarray(inks[..., i]) for i in range(4)])


def _without_profile(inks: np.ndarray) -> np.ndarray:
    return (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255


@case("TIFF CMYK")
def _() -> Case:
    inks = drawn(channels=4, name="inks")
    return saved(_cmyk(inks), "TIFF"), _without_profile(inks)


@case("JPEG CMYK, Adobe's inverted")
def _() -> Case:
    inks = np.concatenate([smooth(), np.full((32, 48, 1), 60, np.uint8)], 2)
    return saved(_cmyk(inks), "JPEG", quality=100, subsampling=0), _without_profile(inks)


@case("TIFF CMYK with its profile")
def _() -> Case:
    # inks full or none, so that the profile's 16 corners are the whole truth; the inks lie about their colours
    corners = np.zeros((2, 2, 2, 2, 3), np.uint8)
    lab = np.zeros((2, 2, 2, 2, 3))
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        corners[c, m, y, k] = (230 - 50 * c - 40 * m - 30 * y - 60 * k, 128 + 8 * (c - m), 128 + 6 * (y - k))
        if c + m + y + k == 4 or k:
            corners[c, m, y, k] = (0, 128, 128)  # black is black, so that its compensation changes nothing
        elif c + m + y == 0:
            corners[c, m, y, k] = (255, 128, 128)  # paper is white
        lab[c, m, y, k] = corners[c, m, y, k] * [100 / 255, 1, 1] - [0, 128, 128]
    inks = drawn(channels=4, name="corners") % 2
    want = lab_to_srgb(lab[tuple(inks.transpose(2, 0, 1))])
    return saved(_cmyk(inks * 255), "TIFF", icc_profile=lut_profile(corners)), want


@case("PNG Display P3 gamma 2.2")
def _() -> Case:
    calm = 60 + drawn() // 2  # inside sRGB, where no clipping rule matters
    return saved(calm, "PNG", icc_profile=matrix_profile(P3_D50, 2.2)), through_matrix(calm, P3_D50, 2.2)


@case("JPEG Display P3 gamma 1.8")
def _() -> Case:
    calm = 80 + smooth() // 4
    made = saved(calm, "JPEG", quality=100, subsampling=0, icc_profile=matrix_profile(P3_D50, 1.8))
    return made, through_matrix(calm, P3_D50, 1.8)


@case("PNG P3 with alpha")
def _() -> Case:
    calm = 60 + drawn() // 2
    made = saved(np.concatenate([calm, ALPHA], 2), "PNG", icc_profile=matrix_profile(P3_D50, 2.2))
    return made, over(through_matrix(calm, P3_D50, 2.2), ALPHA)


@case("PNG grey gamma 1.4 profile")
def _() -> Case:
    made = saved(GREY, "PNG", icc_profile=grey_profile(1.4))
    return made, through_matrix(np.repeat(GREY, 3, 2), np.linalg.inv(np.linalg.inv(SRGB)), 1.4)[..., :1]


@case("PNG with an sRGB profile")
def _() -> Case:
    return saved(P, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), P


@case("PNG with a broken profile")
def _() -> Case:
    return saved(P, "PNG", icc_profile=b"this is no profile at all" * 9), P


@case("PNG rgb with a CMYK profile")
def _() -> Case:
    return saved(P, "PNG", icc_profile=lut_profile(np.full((2, 2, 2, 2, 3), 128))), P


for turn in range(1, 9):

    @case(f"JPEG orientation {turn}")
    def _(turn: int = turn) -> Case:
        exif = Image.Exif()
        exif[0x0112] = turn
        return saved(smooth(), "JPEG", quality=100, subsampling=0, exif=exif), turned(smooth(), turn)

    @case(f"PNG orientation {turn}")
    def _(turn: int = turn) -> Case:
        exif = Image.Exif()
        exif[0x0112] = turn
        return saved(P, "PNG", exif=exif), turned(P, turn)

    @case(f"TIFF orientation {turn}")
    def _(turn: int = turn) -> Case:
        return saved(P, "TIFF", tiffinfo={274: turn}), turned(P, turn)

    @case(f"WEBP orientation {turn}")
    def _(turn: int = turn) -> Case:
        exif = Image.Exif()
        exif[0x0112] = turn
        return saved(P, "WEBP", lossless=True, exif=exif), turned(P, turn)


@case("PNG with an orientation that is none")
def _() -> Case:
    exif = Image.Exif()
    exif[0x0112] = 77
    return saved(P, "PNG", exif=exif), P


@case("16-bit PNG turned")
def _() -> Case:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(WIDE[..., 0]), "PNG", exif=exif), turned(WIDE[..., :1], 6) / 257.0


for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):

    @case(f"{kind} animation")
    def _(kind: str = kind, options: dict[str, object] = options) -> Case:
        first, colours = _palette()
        others = [first.transpose(Image.Transpose.ROTATE_180)]
        frames = [image.convert("RGB") if kind != "GIF" else image for image in (first, *others)]
        return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options), colours


@case("MPO")
def _() -> Case:
    frames = [Image.fromarray(p) for p in (smooth(), 255 - smooth())]
    return saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100, subsampling=0), smooth()


@case("JPEG rgb")
def _() -> Case:
    return saved(smooth(), "JPEG", quality=100, subsampling=0), smooth()


@case("JPEG progressive")
def _() -> Case:
    return saved(smooth(), "JPEG", quality=100, subsampling=0, progressive=True), smooth()


@case("JPEG grey")
def _() -> Case:
    return saved(smooth()[..., :1], "JPEG", quality=100), smooth()[..., :1]


@case("AVIF")
def _() -> Case:
    return saved(smooth(), "AVIF", quality=100, subsampling="4:4:4"), smooth()


@case("PNG one pixel")
def _() -> Case:
    return saved(P[:1, :1], "PNG"), P[:1, :1]


for h, w in ((1, 20000), (20000, 1)):
    CASES[f"PNG {w}x{h}"] = lambda h=h, w=w: (saved(drawn(h, w), "PNG"), drawn(h, w))

SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])


def test_there_are_sixty_golden_files_at_least() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_file_means_what_a_viewer_shows(name: str) -> None:
    content, want = CASES[name]()
    header = read_header(content)
    decoded = decode(content)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape == want.shape
    assert (header.height, header.width) == want.shape[:2]
    assert np.abs(decoded.pixels - want.astype(np.float64)).max() <= 2


@pytest.mark.parametrize("colour", [(0, 0, 0), (10, 200, 90)])
def test_transparency_lies_on_the_background_asked_for(colour: tuple[int, int, int]) -> None:
    grey_alpha = saved(Image.merge("LA", [Image.fromarray(c[..., 0]) for c in (GREY, ALPHA)]), "PNG")
    for content, under in ((saved(np.concatenate([P, ALPHA], 2), "PNG"), P), (grey_alpha, GREY)):
        pixels = decode(content, colour).pixels
        want = over(under, ALPHA, np.array(colour, float))
        assert np.abs(pixels - want[..., : pixels.shape[2]]).max() <= 1
    assert pixels.shape[2] == (1 if len(set(colour)) == 1 else 3)


def test_what_was_done_is_noted() -> None:
    notes = {
        name: decode(CASES[name]()[0]).notes for name in ("TIFF CMYK", "PNG 16-bit grey", "GIF animation", "PNG rgba")
    }
    notes["turned"] = decode(CASES["JPEG orientation 6"]()[0]).notes
    assert notes["TIFF CMYK"] == ("CMYK converted to sRGB",)
    assert notes["PNG 16-bit grey"] == ("16 bits scaled to 8",)
    assert notes["GIF animation"] == ("first of several frames",)
    assert notes["PNG rgba"] == ("transparency laid on the background",)
    assert notes["turned"] == ("turned upright (orientation 6)",)
    assert decode(CASES["PNG rgb"]()[0]).notes == ()


def test_sixteen_bits_reach_black_and_white_exactly() -> None:
    levels = np.array([[[0], [128], [129], [32767], [65406], [65407], [65535]]], np.uint16)
    assert decode(png16(levels, 0)).pixels[0, :, 0].tolist() == [0, 0, 1, 127, 254, 255, 255]


def test_the_darkest_colour_of_a_profile_is_black_and_its_paper_white() -> None:
    corners = np.full((2, 2, 2, 3), 128, np.uint8)
    corners[..., 0] = 150
    corners[0, 0, 0, 0], corners[1, 1, 1, 0] = 60, 235  # L* 23.5 and 92, as a scanner sees ink and paper
    made = saved(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), "PNG", icc_profile=lut_profile(corners))
    dark, bright = decode(made).pixels[0].astype(int)
    assert dark.max() <= 2 and bright.min() >= 253


REFUSED = {
    "empty": (b"", "not an image"),
    "text": (b"hello, I am text\n" * 9, "not an image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not an image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "ICO": (saved(P, "ICO"), "not an image"),
    "TGA": (saved(P, "TGA"), "not an image"),
    "JPEG 2000": (saved(P, "JPEG2000"), "not an image"),
    "TIFF float beyond 1": (tiff(np.full((4, 4, 1), 7.5, np.float32), 1, 3, 32), "floating point outside"),
    "TIFF float below 0": (tiff(np.full((4, 4, 1), -0.1, np.float32), 1, 3, 32), "floating point outside"),
    "TIFF NaN": (tiff(np.full((4, 4, 1), np.nan, np.float32), 1, 3, 32), "floating point outside"),
    "TIFF 32-bit integers": (tiff(np.full((4, 4, 1), 70000, np.int32), 1, 2, 32), "which value is white"),
    "PNG cut in its pixels": (saved(drawn(64, 64), "PNG")[:-4000], "damaged"),
    "JPEG cut in its pixels": (saved(drawn(64, 64), "JPEG")[:-900], "damaged"),
    "PNG's first bytes only": (saved(P, "PNG")[:20], "not an image|damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_agreed_meaning_is_refused_by_name(name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason):
        decode(content)


def test_only_the_formats_of_the_list_are_opened() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"}


@pytest.mark.parametrize(
    ("note", "one", "many"),
    [
        ("transparency laid on the background", "1 image had transparency, laid on white", None),
        ("turned upright (orientation 6)", "1 image was turned upright (orientation 6)", "were turned upright"),
        ("first of several frames", "1 image had several frames, the first is used", None),
        ("colour profile converted to sRGB", "1 image had a colour profile, converted to sRGB", None),
        ("CMYK converted to sRGB", "1 image was CMYK, converted to sRGB", "were CMYK, converted to sRGB"),
        ("gamma converted to sRGB", "1 image had gamma of their own, converted to sRGB", None),
        ("16 bits scaled to 8", "1 image had 16 bits, scaled to 8", None),
        ("read from 0 (black) to 4095", "1 image was read from 0 (black) to 4095", "were read from 0"),
        ("floating point, 1 is white", "1 image was floating point, 1 is white", "were floating point"),
        ("something new", "1 image: something new", "5,551 images: something new"),
    ],
)
def test_what_was_done_to_images_is_said_of_one_and_of_several(note: str, one: str, many: str | None) -> None:
    assert converted(note, 1, "white") == one
    text = converted(note, 5551, "white")
    assert text.startswith("5,551 images") and (many or one.removeprefix("1 image")) in text
    assert not any(wrong in text for wrong in ("images was", "images has", "image s"))


@pytest.mark.parametrize("name", CASES)
def test_every_note_that_decoding_makes_is_a_sentence_about_images(name: str) -> None:
    said = [converted(note, 2, "white") for note in decode(CASES[name]()[0]).notes]
    assert not any(text.startswith("2 images:") for text in said), said
