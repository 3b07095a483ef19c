"""Folders, zips and tars of images: every file is an entry, a caption, or skipped with a reason.

The data set inside the package: 4,096 Toon Head portraits, 32 x 32, with exact attributes and captions.

One lossless sheet of 64 x 64 images and one JSON of attributes, made by `tools/build_portraits.py` from the design
Toon Head by Johan Melin (CC BY 4.0), see LICENSES-DATA.md. A tenth of all heads, by the combination of hair, hair
colour, hair at the back, beard and skin, is never in the training part.

Which source a path names, decided from what lies there; its listing says so in a sentence.

Files (folders, zips, tars) are decoded later; arrays (IDX, npz, the portraits) are pixels already.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from kuosan.data.archives import BLOCK, PACKED_TAR, Tar, Zip, is_tar, packed
from kuosan.data.arrays import Arrays, Idx, is_idx, is_idx_folder
from kuosan.data.captions import METADATA, SPLIT, read_beside
from kuosan.data.config import LABEL, PORTRAITS, DataConfig
from kuosan.data.headers import Refused, read_image
from kuosan.data.text_files import CAPTIONS, IMAGES, Beside, Read
from kuosan.data.walk import TRAIN, VALIDATION, Entry, Listing, Role, Skipped, Source, Stamps, walk
from kuosan.errors import Error, plural, unknown

BYTES_A_PIXEL = 8  # RGBA of 16 bits: a file longer than this times max_pixels holds no image that is let in
# What img2dataset writes beside each shard
SHARD_TABLE = re.compile(r"(.*/)?([0-9]+)(_stats\.json|\.parquet)")


def most_bytes(config: DataConfig) -> int:
    """Bytes of the largest file of an image that is let in."""
    return min(BYTES_A_PIXEL * config.max_pixels, config.max_bytes)


class Folder:
    """All files below a folder, and the members of tars where there are no images but in tars; nothing is written."""

    def __init__(self, path: Path, config: DataConfig, outputs: Collection[Path] = ()) -> None:
        self.path, self.config, self.outputs = path, config, outputs
        self.inside: dict[str, tuple[Tar, str]] = {}  # a tar's member -> the tar, and the member's name in it

    def listing(self) -> Listing:
        """Every file below the folder; links to folders are followed, but never in a circle.

        Raises:
            Error: nothing beside the images has the column asked for, or a list of them is not read.
        """
        stamps, skipped = walk(self.path, self.outputs, self.config.layout)
        if self.config.layout > 1:
            self._open_tars(stamps, skipped)
        home = self.path.resolve().name
        return _listing(f"folder {self.path}", self.path, home, stamps, skipped, self._read, self.config)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one file.

        Raises:
            Refused: it has gone, or may not be read, or is no image, or too large.
        """
        try:
            if entry.name in self.inside:
                tar, member = self.inside[entry.name]
                return tar.image(member)
            return read_image(self.path / entry.name, most_bytes(self.config))
        except OSError as reason:
            raise Refused(f"unreadable: {reason.strerror}") from None

    def _open_tars(self, stamps: Stamps, skipped: Skipped) -> None:
        """Put the members of tars in their place, if no image lies outside of them."""
        loose = next((name for name in stamps if posixpath.splitext(name)[1].lower() in IMAGES), None)
        for name in [name for name in stamps if PACKED_TAR.fullmatch(name) or name.lower().endswith(".tar")]:
            if PACKED_TAR.fullmatch(name):
                skipped.append((name, "compressed tar: unpack it, or store it as .tar"))
            elif loose is not None:
                skipped.append((name, f"a tar beside images that are files ({loose}): unpack it, or give it alone"))
            else:
                tar = Tar(self.path / name, most_bytes(self.config))
                try:
                    inside, passed = tar.files()
                except Refused as reason:
                    skipped.append((name, str(reason)))
                else:
                    self.inside |= {f"{name}/{member}": (tar, member) for member in inside}
                    stamps |= {f"{name}/{member}": stamp for member, stamp in inside.items()}
                    skipped += [(f"{name}/{member}", reason) for member, reason in passed]
            del stamps[name]

    def _read(self, name: str, limit: int) -> bytes:
        if name in self.inside:
            tar, member = self.inside[name]
            return tar.read(member, limit)
        with (self.path / name).open("rb") as file:
            return file.read(limit)


class Archive:
    """A zip or tar of the same; read in place, never unpacked."""

    def __init__(self, path: Path, config: DataConfig, *, zipped: bool) -> None:
        self.path, self.config = path, config
        self.most = most_bytes(config)
        self.archive = Zip(path, self.most, config.layout) if zipped else Tar(path, self.most)

    def listing(self) -> Listing:
        """Every member; a member packed twice under one name counts once.

        Raises:
            Error: nothing beside the images has the column asked for, or the archive cannot be read.
        """
        try:
            stamps, skipped = self.archive.files()
        except Refused as reason:
            raise Error(f"{self.path} cannot be read ({reason}): copy or make it again.") from None
        what = f"{self.archive.kind} {self.path}"
        return _listing(what, self.path, self.path.stem, stamps, skipped, self.archive.read, self.config)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one member.

        Raises:
            Refused: it is damaged, or longer than it said.
        """
        return self.archive.image(entry.name)


def _listing(
    what: str, path: Path, home: str, stamps: Stamps, skipped: Skipped, read: Read, config: DataConfig
) -> Listing:
    """The listing of files, once what lies beside them is read."""
    beside = read_beside(stamps, read, config.label_column, version=config.layout, root=home)
    _check_column(path, config.label_column, beside)
    skipped = [*skipped, *((name, "the mask of another image") for name in beside.masks)]
    shards = frozenset(found[2] for name in stamps if (found := SHARD_TABLE.fullmatch(name)))
    tables = sorted(name for name in stamps if name not in beside.taken and SHARD_TABLE.fullmatch(name))
    if tables and config.layout > 1:
        skipped += [(name, "a table of img2dataset: what it says stands beside the images too") for name in tables]
    passed = {name for name, _ in skipped}
    names = sorted(name for name in stamps if name not in beside.taken and name not in passed)
    entries = [
        Entry(name, beside.labels.get(name), beside.captions.get(name), beside.splits.get(name), stamps[name])
        for name in names
    ]
    return Listing(
        entries,
        sorted(skipped),
        beside.problems,
        f"{what}: {plural(len(entries) + len(skipped), 'file')}",
        by_folder=True,
        columns=_columns(beside),
        notes=tuple(beside.notes),
        shards=shards,
    )


def _columns(beside: Beside) -> tuple[str, ...]:
    """What could be a class: every column but the captions' and the split's."""
    return tuple(column for column in beside.columns if column not in (*CAPTIONS, SPLIT))


def _check_column(path: Path, column: str, beside: Beside) -> None:
    """Refuse a column that nobody has; `label` is where classes are looked for unasked."""
    if column == LABEL or column in beside.columns:
        return
    if beside.columns:
        raise unknown("label_column", column, beside.columns)
    raise Error(
        f"label_column is {column!r}, but no {' or '.join(METADATA)} with columns is in {path}: write one "
        f"(file_name,{column}), or leave label_column out to take folders as classes."
    )


SIDE = 32
HEAD = ("hair", "hair_color", "rear_hair", "beard", "skin")  # what the held-out combinations are made of
CLASS = "hair_color"  # the attribute that is the class where nobody says

# attribute -> value -> the words of the caption; the order is the order of the code letters in the JSON
WORDS: dict[str, dict[str, str]] = {
    "hair": {
        "side-combed": "side-combed {} hair",
        "undercut": "{} hair in an undercut",
        "spiky": "spiky {} hair",
        "bun": "{} hair in a bun",
    },
    "hair_color": {name: name for name in ("black", "auburn", "light brown", "blond", "brown")},
    "rear_hair": {
        "none": "",
        "long straight": "long and straight at the back",
        "long wavy": "long and wavy at the back",
        "shoulder-length": "shoulder-length at the back",
        "neck-length": "neck-length at the back",
    },
    "beard": {
        "none": "",
        "twirled moustache": "a twirled moustache",
        "full beard": "a full beard",
        "chin beard": "a chin beard",
        "moustache and chin beard": "a moustache and a chin beard",
        "long beard": "a long beard",
    },
    "skin": {name: f"{name} skin" for name in ("light", "rosy", "tan", "brown", "dark")},
    "eyes": {
        "open": "open eyes",
        "wide": "wide eyes",
        "smiling": "smiling closed eyes",
        "lowered": "lowered closed eyes",
        "winking": "a winking eye",
    },
    "eyebrows": {name: f"{name} eyebrows" for name in ("raised", "angry", "happy", "sad", "neutral")},
    "mouth": {
        "laughing": "laughing",
        "angry": "with an angry mouth",
        "agape": "with the mouth agape",
        "smiling": "smiling",
        "sad": "with a sad mouth",
    },
    "clothes": {name: name for name in ("turtleneck", "open jacket", "dress", "shirt", "t-shirt")},
    "clothes_color": {
        name: name for name in ("grey", "red", "blue", "green", "yellow", "purple", "pink", "orange", "black", "white")
    },
}


def caption(attributes: Mapping[str, str]) -> str:
    """The sentence that says exactly these attributes; what is `none` is not spoken of."""
    words = {name: WORDS[name][value] for name, value in attributes.items()}
    looks = [words["skin"], words["hair"].format(words["hair_color"]), words["rear_hair"], words["beard"]]
    looks.append(f"{words['eyebrows']} and {words['eyes']}")
    article = "an" if words["clothes_color"][0] in "aeiou" else "a"
    wears = f"wearing {article} {words['clothes_color']} {words['clothes']}"
    return ", ".join(["a portrait of a person with " + ", ".join(filter(None, looks)), words["mouth"], wears])


@cache
def load_sheet() -> tuple[np.ndarray, list[dict[str, str]], np.ndarray]:
    """Images (N, 32, 32, 3) uint8, the attributes of each, and which are held out (N,) bool."""
    assets = files("kuosan.data") / "assets"
    facts = json.loads((assets / "portraits.json").read_text("utf-8"))
    with (assets / "portraits.webp").open("rb") as file, Image.open(file, formats=["WEBP"]) as image:
        sheet: np.ndarray = np.asarray(image.convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    images = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    images = np.ascontiguousarray(images[: len(facts["codes"])])
    values = {name: list(words) for name, words in WORDS.items()}
    attributes = [
        {name: options[int(digit)] for (name, options), digit in zip(values.items(), code)} for code in facts["codes"]
    ]
    kept_out = set(facts["held_out_heads"])
    held_out = np.array([code[: len(HEAD)] in kept_out for code in facts["codes"]])
    return images, attributes, held_out


class Portraits:
    """The portraits as a source: label = one attribute (hair colour), caption = all attributes in a sentence."""

    def __init__(self, hold_out: float | None, label_column: str = LABEL) -> None:
        if hold_out not in (None, 0, 0.0):
            raise Error(
                f"hold_out {hold_out!r}: the portraits have their own held-out part (a tenth of all combinations of "
                "hair, beard and skin); leave hold_out out to use it, or set 0 to train on all."
            )
        if label_column != LABEL and label_column not in WORDS:
            raise unknown("label_column", label_column, [LABEL, *WORDS])
        self.attribute = CLASS if label_column == LABEL else label_column
        self.images, self.attributes, held_out = load_sheet()
        self.roles: list[Role | None] = [None] * len(held_out)
        if hold_out is None:
            self.roles = [VALIDATION if held else TRAIN for held in held_out]

    def listing(self) -> Listing:
        """All portraits in the order of the sheet."""
        entries = [
            Entry(f"portrait {i}", attributes[self.attribute], caption(attributes), role)
            for i, (attributes, role) in enumerate(zip(self.attributes, self.roles))
        ]
        says = f"the embedded portraits: {len(entries):,} Toon Heads of {SIDE}x{SIDE} (Johan Melin, CC BY 4.0)"
        return Listing(entries, says=says, classes=tuple(WORDS[self.attribute]), in_order=True)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (32, 32, 3) of the i-th."""
        pixels: np.ndarray = self.images[i]
        return pixels


def find_source(config: DataConfig, outputs: Collection[Path] = ()) -> Source:
    """The source that `config.path` names, by what lies there.

    Args:
        outputs: folders that are written to, which are no data where they lie below it.

    Raises:
        Error: nothing is there, or nothing that holds images.
    """
    if config.path == PORTRAITS:
        return Portraits(config.hold_out, config.label_column)
    path = Path(config.path).expanduser()
    try:
        if path.is_dir():
            return _numbered(Idx, path, config) if is_idx_folder(path) else Folder(path, config, outputs)
        if not path.exists():
            raise _not_there(path)
        if not path.is_file():
            raise Error(f"{path} is neither a file nor a folder.")
        with path.open("rb") as file:
            head = file.read(BLOCK)
    except PermissionError:
        raise Error(f"no permission to read {path}: change its mode, or run as a user who may.") from None
    if path.suffix.lower() in (".npz", ".npy"):
        return _numbered(Arrays, path, config)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return Archive(path, config, zipped=True)
    if PACKED_TAR.fullmatch(path.name):
        raise packed(path)
    if is_idx(path, head):
        return _numbered(Idx, path, config)
    if is_tar(path, head):
        return Archive(path, config, zipped=False)
    raise Error(
        f"{path} is no data set kuosan knows. Give a folder, .zip or .tar of images, an IDX file (.gz or not), "
        f"an .npz or .npy file, or {PORTRAITS!r}; for one image, give the folder it lies in."
    )


def _numbered(kind: Callable[[Path, DataConfig], Source], path: Path, config: DataConfig) -> Source:
    """Arrays, whose labels lie in an array of their own: there is no column to choose."""
    if config.label_column != LABEL:
        raise Error(
            f"label_column is {config.label_column!r}, but {path} holds arrays, and labels as one more array: "
            "leave label_column out. It chooses a column of metadata.csv or metadata.jsonl in a folder or zip."
        )
    return kind(path, config)


def _not_there(path: Path) -> Error:
    near: Sequence[str] = []
    if path.parent.is_dir():
        names = [other.name for other in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    guess = f" Did you mean {path.parent / near[0]}?" if near else ""
    return Error(
        f"there is no {path}.{guess} Allowed: a folder, a .zip or .tar, IDX, .npz or .npy file, or {PORTRAITS!r}."
    )
