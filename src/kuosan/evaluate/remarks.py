"""What is to be said of the images of an evaluation: what was done to them, and what makes its figures mean less.

Sentences, each of one thing; those of `warnings` are about something that a person may want to mend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan.errors import plural
from kuosan.evaluate.eval_images import Side
from kuosan.evaluate.images import SHOWN, ImageFiles
from kuosan.evaluate.train_overlap import counted, resized_notes
from kuosan.storage import outputs

if TYPE_CHECKING:
    from kuosan.data.dataset import Images
    from kuosan.metrics.features.network import FeatureNetwork

LOSSY = ("JPEG", "WEBP", "AVIF", "GIF", "MPO")
MADE = "samples"


def described(side: Side, network: FeatureNetwork | None) -> list[str]:
    """What the images of a side are, and how they come to the feature network."""
    match side.images:
        case ImageFiles() as images:
            return _of_images(side, images, network)
        case _:
            return [f"{side.what}: {'; '.join(notes)}." for notes in [_of_run(side.images)] if notes]


def _of_run(images: Images) -> list[str]:
    """Of a run's own data: from which sizes and formats they come."""
    return [*resized_notes(images), *(f"the files are {kinds}" for kinds in [_suffixes(images)] if kinds)]


def _suffixes(images: Images) -> str:
    kinds = Counter(Path(entry.name).suffix.lower().lstrip(".") for entry in images.scan.entries)
    lossy = {kind: count for kind, count in kinds.items() if kind in ("jpg", "jpeg", "webp", "avif", "gif")}
    return ", ".join(f"{kind} ({count:,})" for kind, count in sorted(lossy.items()))


def _of_images(side: Side, images: ImageFiles, network: FeatureNetwork | None) -> list[str]:
    facts_ = images.summary()
    sizes = ", ".join(counted(Counter(facts_["sizes"])))
    formats = ", ".join(counted(Counter(facts_["formats"])))
    how = "as they are"
    if images.size is not None:
        rule = _rule_of(images)
        how = f"resized to {facts_['measured_at']} as the run's training images were ({rule})"
    drawn = f", {len(side):,} of them drawn by a fixed key" if len(side) < len(images) else ""
    lines = [f"{side.what}: {len(images):,} in {images.path}{drawn}; {sizes}; {formats}; {how}."]
    done = [f"{count:,} {note}" for note, count in facts_["done"].items()]
    if done:
        lines.append(f"{side.what}: {', '.join(done)}.")
    if network is not None and network.size:
        shapes = [images.size or (fact.height, fact.width) for fact in images.facts]
        other = sum(shape != (network.size, network.size) for shape in shapes)
        square = all(h == w for h, w in shapes)
        if other:
            stretched = "" if square else ", their aspect ignored"
            lines.append(
                f"{side.what}: {other:,} are resized whole to {network.size}x{network.size} by the feature network"
                f"{stretched}."
            )
    return lines


def _rule_of(images: ImageFiles) -> str:
    """The rule of the run that images stand against, in words."""
    reading = images.reading
    assert reading is not None
    rule = reading.data.resize if reading.data.resize != "auto" or reading.rule is None else reading.rule
    return f"{rule}, transparency {'kept' if reading.background is None else f'on {reading.data.background}'}"


def warnings(made: Side | None, reference: Side, n: int, metrics: Sequence[str]) -> list[str]:
    """What makes the figures mean less, a sentence each."""
    found = []
    for side in (made, reference):
        if side is not None:
            match side.images:
                case ImageFiles() as images:
                    found += _counting(side, images)
                case _:
                    pass
    if made is not None:
        found += _fewer(made, n)
        match (made.images, reference.images):
            case (ImageFiles() as one, ImageFiles() as other):
                found += [*_apart(one, other), *_shared(made, reference)]
            case _:
                pass
    many = len(made) if made is not None else n
    if "prdc" in metrics and many != len(reference):
        found.append(
            f"{many:,} {MADE} against {len(reference):,} real images: precision, recall, density and coverage depend "
            f"on these counts; compare them only with figures of the same counts"
        )
    return found


def _counting(side: Side, images: ImageFiles) -> list[str]:
    """What was left out, what only sounds like no sample, repeats, several recipes, an unfinished set."""
    found = []
    if images.left_out:
        found.append(
            f"{images.path}: {plural(len(images.left_out), 'file', 'is')} not counted: {_named(images.left_out)}"
        )
    if images.sound:
        found.append(
            f"{images.path}: {plural(len(images.sound), 'image', 'is')} counted although called as what is no sample: "
            f"{_named([(name, '') for name in images.sound])}; move away what is none"
        )
    first: dict[str, str] = {}
    again = [
        (fact.name, first[fact.pixels])
        for fact in images.facts
        if first.setdefault(fact.pixels, fact.name) != fact.name
    ]
    if again:
        pairs = [(name, f"as {other}") for name, other in again]
        found.append(
            f"{images.path}: {plural(len(again), 'image', 'repeats')} another, and counted all the same: "
            f"{_named(pairs)}"
        )
    recipes = Counter(fact.recipe for fact in images.facts)
    if len(recipes) > 1:
        plain = f", and {recipes['']:,} without a recipe" if recipes[""] else ""
        kinds = [count for recipe, count in recipes.most_common() if recipe]
        found.append(
            f"{images.path} holds images of {plural(len(kinds), 'recipe')} "
            f"({', '.join(f'{count:,}' for count in kinds[:SHOWN])} images){plain}: they are measured as one set"
        )
    base = Path(images.path).expanduser()
    if base.is_dir() and outputs.unfinished(base):
        found.append(f"{images.path} holds an unfinished set ({outputs.UNFINISHED}): images may be missing")
    moving = [fact.name for fact in images.facts if "first of several frames" in fact.notes]
    if moving:
        found.append(
            f"{images.path}: of {plural(len(moving), 'animation')} the first frame is counted: "
            f"{_named([(name, '') for name in moving])}"
        )
    return found


def _fewer(made: Side, n: int) -> list[str]:
    have = len(made)
    return [f"{made.what}: there are {have:,}, fewer than n = {n:,}; all are taken"] if have < n else []


def _apart(one: ImageFiles, other: ImageFiles) -> list[str]:
    """What the files of the two sides differ in, beside what they show."""
    found = []
    sizes = [Counter(f"{fact.width}x{fact.height}" for fact in each.facts) for each in (one, other)]
    if set(sizes[0]) != set(sizes[1]):
        a, b = (", ".join(counted(each)) for each in sizes)
        found.append(
            f"the sides are of different sizes ({one.path}: {a}; {other.path}: {b}): sharpness is measured, too"
        )
    formats = [Counter(fact.format for fact in each.facts) for each in (one, other)]
    if set(formats[0]) != set(formats[1]) and any(kind in LOSSY for each in formats for kind in each):
        a, b = (", ".join(counted(each)) for each in formats)
        found.append(
            f"the sides are of different formats ({one.path}: {a}; {other.path}: {b}): compression is measured, too"
        )
    grey = [all(fact.grey for fact in each.facts) for each in (one, other)]
    if grey[0] != grey[1]:
        name = one.path if grey[0] else other.path
        found.append(f"all images of {name} are grey, those of the other side are not: colour is measured, too")
    return found


def _shared(made: Side, reference: Side) -> list[str]:
    """Images that are on both sides."""
    one, other = made.images, reference.images
    assert isinstance(one, ImageFiles) and isinstance(other, ImageFiles), "the caller has looked"
    there = set(other.contents)  # all of them, whichever are drawn
    both = [int(i) for i, content in zip(made.ids, made.contents) if content in there]
    paths = [Path(each.path).expanduser() for each in (one, other)]
    found = []
    if all(path.exists() for path in paths):
        a, b = (path.resolve() for path in paths)
        if a == b:
            found.append(f"{one.path} is measured against itself")
        elif a.is_relative_to(b) or b.is_relative_to(a):
            inner, outer = (one.path, other.path) if a.is_relative_to(b) else (other.path, one.path)
            found.append(f"{inner} lies inside {outer}")
    if both:
        named = _named([(one.facts[i].name, "") for i in both])
        found.append(
            f"{len(both):,} of the {len(made):,} {MADE} {'is an image' if len(both) == 1 else 'are images'} of the "
            f"reference, too ({named}): the sides are no "
            f"independent sets, and the figures flatter"
        )
    return found


def facts(side: Side) -> dict[str, Any]:
    """What a side is of, as plain values for result.json."""
    match side.images:
        case ImageFiles() as images:
            return {**images.summary(), "measured": len(side)}
        case _:
            own = side.images
            return {
                "path": own.config.path,
                "images": len(own),
                "measured": len(side),
                "done": _of_run(own),
            }


def file_format(made: Side | None, reference: Side) -> str:
    """What the files of both sides are, in words."""
    words = ["8-bit"] if made is not None else ["8-bit images, lossless"]
    for name, side in ((MADE, made), ("real", reference)):
        if side is None:
            continue
        match side.images:
            case ImageFiles() as images:
                words.append(f"{name}: {', '.join(counted(Counter(fact.format for fact in images.facts)))}")
            case _:
                words.append(f"{name}: as trained on")
    return "; ".join(words)


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    shown = [f"{name} ({reason})" if reason else name for name, reason in pairs[:SHOWN]]
    more = f", and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else ""
    return (", ".join(shown) + more).encode("utf-8", "backslashreplace").decode()
