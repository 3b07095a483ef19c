"""A data set's captions as a person looks at them: how many, the longest, the first few beside their images.

What will be used, resized, converted and skipped, and why: `examine(config) -> Report`, nothing changed.

The report of an opened data set is the same one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from kuosan.data.captions import ENDINGS, WORDS
from kuosan.data.config import CHANNELS_OF, COLOUR_WORDS, HOLD_OUT, Buckets, DataConfig, cut, sorted_into
from kuosan.data.layers import LAID
from kuosan.data.near_duplicates import Near
from kuosan.data.scan import Progress, Scan, by_content, scan
from kuosan.data.sources import find_source
from kuosan.data.walk import TEST, TRAIN, VALIDATION, Entry, Role
from kuosan.errors import plural
from kuosan.storage.cache import Results
from kuosan.storage.files import write_atomic

CAPTIONS_SHOWN = 5  # rows
WIDE = 120  # characters shown of a caption


def rows(entries: Sequence[Entry], n: int = CAPTIONS_SHOWN) -> list[str]:
    """The first images by number, `name -> caption` each; none where nobody has a caption."""
    return [_row(entry) for entry in entries[:n]] if any(entry.caption for entry in entries) else []


def summary(entries: Sequence[Entry]) -> str:
    """How many images have a caption, and the longest."""
    texts = [(len(entry.caption), entry.name, entry.caption) for entry in entries if entry.caption]
    if not texts:
        return "No image has a caption."
    count, name, text = max(texts, key=lambda item: item[0])
    different = len({caption for _, _, caption in texts})
    return (
        f"{plural(len(texts), 'image', 'has', of=len(entries))} a caption, {plural(different, 'different one')}; the "
        f"longest has {plural(count, 'character')}: {_printable(name)} -> {_shown(text)}"
    )


def without(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The images that have no caption, where others have one: (name, '')."""
    some = any(entry.caption for entry in entries)
    return [(entry.name, "") for entry in entries if some and not entry.caption]


def _row(entry: Entry) -> str:
    return f"{_printable(entry.name)} -> {_shown(entry.caption) if entry.caption else '(no caption)'}"


def _shown(text: str) -> str:
    return _printable(text if len(text) <= WIDE else text[: WIDE - 3] + "...")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # names may be no text at all


NUMBER = r"-?[0-9]{1,300}(\.[0-9]+)?"  # a class that is a number, and no infinite one
SHOWN = 5  # examples a kind in `lines`; the written list has all


class DataReport:
    """Every file of a data set accounted for."""

    def __init__(self, config: DataConfig, scanned: Scan) -> None:
        self.config, self.scan, self.plan = config, scanned, scanned.plan

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels: the source's own order, else numbers by value, names by letter."""
        found = {entry.label for entry in self.scan.entries if entry.label is not None}
        if self.scan.listing.classes:
            return self.scan.listing.classes
        numbers = all(re.fullmatch(NUMBER, name) for name in found)
        return tuple(sorted(found, key=lambda name: (float(name), name) if numbers else (0, name)))

    @cached_property
    def duplicates(self) -> list[tuple[str, str]]:
        """(name, the earlier one of the same content); they are used, and fall on the same side of the split."""
        first: dict[str, str] = {}
        pairs = []
        for i, entry in enumerate(self.scan.entries):
            key = self.scan.identity(i)
            if first.setdefault(key, entry.name) != entry.name:
                pairs.append((entry.name, first[key]))
        return pairs

    @property
    def near(self) -> Near | None:
        """The near duplicates; None where images are not compared."""
        return self.scan.near

    def parted(self) -> list[tuple[str, str]]:
        """Near duplicates that lie on different sides: of the data set's own split, or ends of a chain."""
        pairs, entries = [] if self.near is None else self.near.parted(self.roles), self.scan.entries
        return [(entries[i].name, entries[j].name) for i, j in pairs]

    @cached_property
    def buckets(self) -> Buckets:
        """The shapes that images are resized to, and each image's; one square without buckets."""
        looks, square = self.scan.looks, (self.plan.size, self.plan.size)
        return sorted_into(self.plan.shapes or (square,), [(look.height, look.width) for look in looks])

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (held out, train): as the source says, else by content; a group of near duplicates as its leader."""
        return self._of_role(VALIDATION), self._of_role(TRAIN)

    def test(self) -> np.ndarray:
        """Numbers of the images that are neither, as the data set keeps them for testing."""
        return self._of_role(TEST)

    @cached_property
    def roles(self) -> list[Role]:
        """What each image is for: what the data set says, else by content.

        Given `hold_out`, only test images keep their role. Without images for validation those for testing are held out
        instead; where nothing would be left to train on, everything is trained on.
        """
        asked = self.config.hold_out
        said = [entry.role if asked is None or entry.role == TEST else None for entry in self.scan.entries]
        fraction = HOLD_OUT if asked is None else asked
        if asked is not None or all(role is None for role in said):
            own = [self.scan.identity(i) for i in range(len(said))] if self.near is None else self.near.keys()
            content = [int(key[:13], 16) / 16**13 < fraction for key in own]
            roles = [role or (VALIDATION if out else TRAIN) for role, out in zip(said, content)]
        else:
            roles = [role or TRAIN for role in said]
            if VALIDATION not in roles:
                roles = [VALIDATION if role == TEST else role for role in roles]
        return roles if TRAIN in roles else [TRAIN] * len(roles)

    def _of_role(self, role: Role) -> np.ndarray:
        return np.flatnonzero(np.array([each == role for each in self.roles], bool))

    def summary(self) -> dict[str, object]:
        """The counts, as written to summary.json."""
        held, train = self.split()
        labels = Counter(entry.label for entry in self.scan.entries)
        resized, enlarged = self._changed()
        return {
            "path": self.config.path,
            "used": len(self.scan.entries),
            "train": len(train),
            "held_out": len(held),
            "test": len(self.test()),
            "skipped": len(self.scan.refused),
            "size": self.config.size if isinstance(self.config.size, str) else self.plan.size,
            "why_this_size": self.plan.why,
            "resize": self.plan.rule,
            "channels": CHANNELS_OF[self.plan.channels],
            **self._buckets(),
            "resized": resized,
            "enlarged": enlarged,
            "sizes": len({(look.width, look.height) for look in self.scan.looks}),
            "modes": dict(Counter(look.mode for look in self.scan.looks).most_common()),
            "converted": dict(Counter(note for look in self.scan.looks for note in look.notes).most_common()),
            "classes": {name: labels[name] for name in self.classes},
            "without_class": labels[None] if self.classes else 0,
            "captions": sum(entry.caption is not None for entry in self.scan.entries),
            "longest_caption": max((len(entry.caption or "") for entry in self.scan.entries), default=0),
            "texts_without_image": len(self._orphans()),
            "caption_problems": [f"{name}: {reason}" for name, reason in self.scan.listing.missing],
            "duplicates": len(self.duplicates),
            **self._compared(),
            "reasons": dict(Counter(_kind(reason) for _, reason in self.scan.refused).most_common()),
        }

    def _columns(self) -> str:
        """What could be the class, where nothing is."""
        columns, own = self.scan.listing.columns, self.config.label_column
        if own in columns:
            return f"No classes: a list has a column {own}, but names no image here that has anything in it."
        return (
            f"No classes; columns beside the images: {', '.join(columns[:12])}. Set label_column to one of them to "
            f"take it as the class."
        )

    def _aside(self) -> list[str]:
        """That the data set's own split is put aside, where a fraction is asked for instead."""
        if self.config.hold_out is None or not any(entry.role for entry in self.scan.entries):
            return []
        lines = [f"The images' own split is not used, because hold_out is {self.config.hold_out:g}."]
        if kept := len(self.test()):
            lines.append(f"{plural(kept, 'image')} that it keeps for testing: never trained on all the same.")
        return lines

    def _compared(self) -> dict[str, object]:
        """Where images are compared: groups of near duplicates, their images, and pairs that the split parts."""
        if self.near is None:
            return {}
        found = self.near.groups
        return {"near_groups": len(found), "near_images": sum(map(len, found)), "near_parted": len(self.parted())}

    def _changed(self) -> tuple[int, int]:
        """How many images are not shown as they are, and how many of these are enlarged."""
        looks, plan = self.scan.looks, self.plan
        if plan.shapes:
            pairs = [(look, plan.shape_of(look)) for look in looks]
            resized = sum((look.height, look.width) != shape for look, shape in pairs)
            short = [(look.height < h) + (look.width < w) for look, (h, w) in pairs]
            enlarged = sum(sides > (plan.rule == "pad") for sides in short)
            return resized, 0 if plan.rule == "centre" else enlarged
        resized = sum((look.width, look.height) != (plan.size, plan.size) for look in looks)
        shown = max if plan.rule == "pad" else min  # the side that is resized
        enlarged = sum(shown(look.width, look.height) < plan.side for look in looks)
        return resized, 0 if plan.rule == "centre" else enlarged

    def _buckets(self) -> dict[str, object]:
        """With buckets: how many images each holds (width x height), and how much is cut of images."""
        if self.plan.rule != "buckets":
            return {}
        shapes = (self.buckets.shapes[i] for i in self.buckets.of)
        cuts = [cut(shape, look.height, look.width) for shape, look in zip(shapes, self.scan.looks)]
        counts = self.buckets.counts(np.arange(len(cuts)))
        return {
            "buckets": {_text(shape): int(count) for shape, count in zip(self.buckets.shapes, counts)},
            "cut_at_most": round(max(cuts, default=0.0), 4),
            "cut_on_average": round(sum(cuts) / max(1, len(cuts)), 4),
        }

    def lines(self) -> list[str]:
        """The report in sentences, the first what was found, the last what was skipped."""
        facts = self.summary()
        if not self.scan.entries:
            return [f"{self.scan.listing.says}.", "No image can be used.", *self._noted()]
        lines = [f"{self.scan.listing.says}.", self._use(facts), self._size(facts)]
        if self.classes:
            counts = [f"{name} {count:,}" for name, count in facts["classes"].items()]  # type: ignore[attr-defined]
            shown = ", ".join(counts[:12]) + (f", and {len(counts) - 12} more" if len(counts) > 12 else "")
            lines.append(f"{plural(len(counts), 'class')}: {shown}.")
        elif self.scan.listing.columns:
            lines.append(self._columns())
        lines += [*self.scan.listing.notes, *self._aside(), summary(self.scan.entries)]
        ranged = [*self.scan.listing.notes, *facts["converted"]]  # type: ignore[misc]
        if self.config.range != "auto" and not any("read from" in line for line in ranged):
            lines.append(f"range {self.config.range} changes nothing: these images say which number is white.")
        mirrored = "Half are mirrored, drawn at random (flip)."
        lines.append(mirrored if self.config.flip else "Not mirrored; set flip if left and right may swap.")
        for note, count in facts["converted"].items():  # type: ignore[attr-defined]
            cure = " Set channels to rgba to keep it." * (note == LAID)
            lines.append(f"{converted(note, count, self.config.background)}.{cure}")
        return lines + self._noted()

    def _noted(self) -> list[str]:
        """What a person may want to mend, with the first examples of each."""
        reasons = Counter(_kind(reason) for _, reason in self.scan.refused).most_common()
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        own = by_content(self.config, self.scan.entries)
        apart = ", never split apart" if own else ""
        parted = "on both sides of the split" + (
            ", as each resembles an image of another group (nobody is moved)"
            if own
            else " that the data set has, unmoved"
        )
        same = f"the same {'pixels' if self.scan.by_pixels else 'content'} as another (used{apart})"
        found = (
            (self.duplicates, ("image", "has"), same),
            (self.parted(), ("near duplicate", "lies"), parted),
            (self._without_class(), ("image", "has"), "no class: a model with labels learns such under the null label"),
            (self._without_split(), ("image", "says"), "nothing of a split where others do: trained on"),
            (without(self.scan.entries), ("image", "has"), "no caption, or an empty one"),
            (self._orphans(), ("file", "is"), "text that is no image's caption: there is no image of that name beside"),
            (
                self._lists(),
                ("file", "is"),
                "not read as a list of images (a list names each image in a column file_name, filename or file and "
                f"has a column text, split or {self.config.label_column}, or the one that --label-column names; beside "
                "a metadata.csv or .jsonl no other is read)",
            ),
            (self.scan.listing.missing, ("caption or label", "is"), "not used"),
            (self.scan.refused, (), f"skipped ({why})"),
        )
        counts = [plural(len(pairs), *noun) if noun else f"{len(pairs):,}" for pairs, noun, _ in found]
        lines = [f"{count} {what}: {_few(pairs)}" for count, (pairs, _, what) in zip(counts, found) if pairs]
        return self._near_line() + lines

    def _near_line(self) -> list[str]:
        found, names = [] if self.near is None else self.near.groups, [entry.name for entry in self.scan.entries]
        crowded = 0 if self.near is None else self.near.found.crowded
        many = (
            f"{plural(crowded, 'image', 'is')} at a glance like so many others that "
            f"{'they are' if crowded > 1 else 'it is'} "
            "compared with the nearest alone: copies among them may lie on both sides of the split."
        )
        return self._groups_line(found, names) + ([many] if crowded else [])

    def _groups_line(self, found: list[list[int]], names: list[str]) -> list[str]:
        if not found:
            return []
        count, many = len(found), sum(map(len, found))
        kept = (
            "each kept on one side" if by_content(self.config, self.scan.entries) else "left where the split has them"
        )
        if self.config.hold_out == 0:
            kept = "all are trained on"
        shown = [(names[ids[0]], ", ".join(names[i] for i in ids[1:4]) + " ..." * (len(ids) > 4)) for ids in found]
        return [f"{plural(count, 'group')} of near duplicates, {plural(many, 'image')}; {kept}: {_few(shown)}"]

    def _without_class(self) -> list[tuple[str, str]]:
        """The images that have no class where others have one."""
        return [(entry.name, "") for entry in self.scan.entries if self.classes and entry.label is None]

    def _without_split(self) -> list[tuple[str, str]]:
        """The images that no split names where there is one."""
        some = self.config.hold_out is None and any(entry.role for entry in self.scan.entries)
        return [(entry.name, "") for entry in self.scan.entries if some and entry.role is None]

    def _orphans(self) -> list[tuple[str, str]]:
        """The files of captions that no image has the name of."""
        return [(name, "") for name, _ in self.scan.refused if name.lower().endswith(WORDS)]

    def _lists(self) -> list[tuple[str, str]]:
        """The files of tables that were taken for no list of images."""
        return [(name, "") for name, _ in self.scan.refused if name.lower().endswith(ENDINGS)]

    def _use(self, facts: dict[str, object]) -> str:
        held = f"{facts['held_out']:,} held out" if facts["held_out"] else "none held out"
        if not facts["held_out"] and self.config.hold_out != 0:
            marked = not facts["test"] and all(entry.held_out for entry in self.scan.entries)
            held += " (their split holds out every one, so all are used)" if marked else " (too few images)"
        kept = f", {facts['test']:,} kept for testing (never trained on)" if facts["test"] else ""
        return f"{plural(len(self.scan.entries), 'image')} used: {facts['train']:,} to train on, {held}{kept}."

    def _size(self, facts: dict[str, object]) -> str:
        plan, count, buckets = self.plan, facts["used"], facts.get("buckets")
        colour, filled = COLOUR_WORDS[plan.channels], self.config.background if plan.background else "transparency"
        done = {
            "crop": "shorter side scaled, centre cut",
            "pad": f"longer side scaled, rest filled with {filled}",
            "stretch": "stretched, aspect ignored",
            "nearest": "shorter side scaled to the nearest pixels, centre cut",
            "centre": "not scaled; cut, or edges repeated, about the centre",
            "buckets": "scaled to cover theirs, centre cut",
        }[plan.rule]
        if plan.shapes and plan.rule in ("crop", "nearest"):
            done = done.replace("shorter side scaled", "scaled to cover it")
        if plan.side != plan.size:
            done += f" at {plan.side}, a window drawn at random"
        changed = f"{facts['resized']:,} of {count:,} resized to it ({done})" if facts["resized"] else "none resized"
        enlarged = int(str(facts["enlarged"]))
        be = ("is", "was") if enlarged == 1 else ("are", "were")
        small = f"; {enlarged:,} {be[0]} smaller and {be[1]} enlarged" if enlarged else ""
        if not isinstance(buckets, dict):
            shape = plan.shapes[0] if plan.shapes else (plan.size, plan.size)
            return f"Size {_text(shape)}, {colour} ({plan.why}): {changed}{small}."
        every = ", ".join(f"{shape} {held:,}" for shape, held in buckets.items())
        lost = f"at most {facts['cut_at_most']:.1%} of an image is cut, {facts['cut_on_average']:.1%} on average"
        return (
            f"{plural(len(buckets), 'bucket')} of about {plan.size}x{plan.size} pixels, {colour} "
            f"({plan.why}): {every}; {changed}, {lost}{small}."
        )


def examine(
    config: DataConfig, *, progress: Progress | None = None, cache: Path | None = None, memory: Results | None = None
) -> DataReport:
    """Look at every file that `config` names as training would, keeping nothing.

    Raises:
        Error: the path names no data set. A data set without one usable image is a report, not an error.
    """
    return DataReport(
        config, scan(find_source(config), config, keep=False, progress=progress, cache=cache, memory=memory)
    )


def write(report: DataReport, folder: Path) -> list[Path]:
    """accepted.csv, rejected.csv and summary.json into `folder`, which is made.

    Raises:
        Error: they cannot be written.
    """
    held, test = set(report.split()[0].tolist()), set(report.test().tolist())
    twin = dict(report.duplicates)
    near = _groups_of(report)
    accepted = [["name", "from", "to", "mode", "done", "class", "caption", "held_out", "same_as", "content", "near"]]
    for i, (entry, look) in enumerate(zip(report.scan.entries, report.scan.looks)):
        size = _text(report.buckets.shapes[report.buckets.of[i]])
        kept = "test" if i in test else str(i in held).lower()
        row = [entry.name, f"{look.width}x{look.height}", size, look.mode, "; ".join(look.notes), entry.label or ""]
        accepted.append([*row, entry.caption or "", kept, twin.get(entry.name, ""), look.key, near.get(i, "")])
    rejected = [["name", "reason"], *map(list, report.scan.refused)]
    folder = Path(folder)
    contents = {
        "accepted.csv": _csv(accepted),
        "rejected.csv": _csv(rejected),
        "summary.json": json.dumps(report.summary(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in contents.items():
        write_atomic(folder / name, text.encode("utf-8", "surrogateescape"))
    return [folder / name for name in contents]


def _groups_of(report: DataReport) -> dict[int, str]:
    """The name of the leader of each image that has near duplicates."""
    found, names = report.near, [entry.name for entry in report.scan.entries]
    return {} if found is None else {i: names[int(found.found.leader[i])] for ids in found.groups for i in ids}


def _text(shape: tuple[int, int]) -> str:
    """(H, W) as people write it."""
    return f"{shape[1]}x{shape[0]}"


def _csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _few(pairs: list[tuple[str, str]]) -> str:
    more = f"; and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else ""
    shown = "; ".join(f"{name} ({reason})" if reason else name for name, reason in pairs[:SHOWN])
    return shown.encode("utf-8", "backslashreplace").decode() + more + "."  # names may be no text at all


# What was done to an image on its way to sRGB bytes, of several: how it is counted. Another note stands behind a colon.
_DONE = (
    ("transparency laid on the background", "had transparency, laid on {background}"),
    ("transparency kept", "had transparency, kept"),
    ("colour profile converted to sRGB", "had a colour profile, converted to sRGB"),
    ("colour profile not usable, taken as sRGB", "had a colour profile that is not usable, taken as sRGB"),
    ("without the marker at its end, and whole all the same", "had no marker at the end, whole all the same"),
    ("first of several frames", "had several frames, the first is used"),
    ("values beyond range clipped", "had values beyond range, clipped"),
    (r"(turned upright .*)", "{be} {0}"),
    (r"(\d+ bits) scaled to 8", "had {0}, scaled to 8"),
    (r"(CMYK|Lab) converted to sRGB", "{be} {0}, converted to sRGB"),
    (r"(gamma|code points) converted to sRGB", "had {0} of their own, converted to sRGB"),
    (r"(floating point, .*|read from .*)", "{be} {0}"),
)


def converted(note: str, count: int, background: str) -> str:
    """What was done to `count` images, in words: `5,551 images had transparency, laid on white`."""
    for pattern, said in _DONE:
        if found := re.fullmatch(pattern, note, re.DOTALL):
            done = said.format(*found.groups(), background=background, be="was" if count == 1 else "were")
            return f"{plural(count, 'image')} {done}"
    return f"{plural(count, 'image')}: {note}"


def _kind(reason: str) -> str:
    return reason.split(":")[0].split("(")[0].strip()
