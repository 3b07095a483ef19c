"""All that an evaluation needs, opened and checked before anything is made: what cannot be measured is refused here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import checkpoint, trained
from kuosan import config as trees
from kuosan.data.config import DataConfig
from kuosan.device import choose as choose_compute
from kuosan.errors import Error
from kuosan.evaluate import asking, bits, measures, real, remarks, sweep
from kuosan.evaluate.config import HELD_OUT, TRAIN, EvaluateConfig
from kuosan.evaluate.images import Images, open_images
from kuosan.evaluate.judging import Judge, open_judge
from kuosan.evaluate.making import Job, about
from kuosan.evaluate.memorisation import LEAST, NEIGHBOURS
from kuosan.evaluate.real import Side
from kuosan.evaluate.rows import Memory
from kuosan.evaluate.store import Store, key
from kuosan.features import features
from kuosan.model import require_pixels, require_whole, require_wordless
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import sizes
from kuosan.sample.plan import check_guides

if TYPE_CHECKING:
    from kuosan.data.pictures import Pictures
    from kuosan.evaluate.sweep import Point
    from kuosan.features.network import Features
    from kuosan.sample.plan import Choice
    from kuosan.tasks import Task
    from kuosan.trained import Trained

FOLDER = "evaluations"
FEW = 10_000  # training pictures up to which memorisation is looked for unasked: it reads them all
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What is measured, against what, by what; and where it is kept."""

    target: str
    config: EvaluateConfig
    folder: Path  # where the result is written
    home: Path  # where pictures and features are kept
    network: Features | None  # None: nothing is compared
    metrics: tuple[str, ...]
    reference: Side
    floor: tuple[Side, Side]
    model: Trained | None = None  # None: the pictures of `made` are judged
    jobs: tuple[Job, ...] = ()
    made: Side | None = None
    own: Pictures | None = None  # what the model was trained on
    bits: Side | None = None  # pictures whose likelihood is told
    judge: Judge | None = None
    warnings: tuple[str, ...] = ()
    memory: Memory = field(default_factory=dict, repr=False)  # rows that were read

    @property
    def distances(self) -> list[str]:
        """The metrics of two sets of feature rows."""
        return [name for name in self.metrics if name in measures.DISTANCES]

    @property
    def lacking(self) -> tuple[int, int]:
        """Pictures and network evaluations still to be made."""
        missing = [each.request.n - each.store.whole(each.request.n) for each in self.jobs]
        return sum(missing), sum(n * each.choice.evaluations for n, each in zip(missing, self.jobs))


def is_run(target: str | Path) -> bool:
    """Whether a path is a run or a checkpoint, not pictures."""
    path = Path(target)
    return any((path / name).exists() for name in (checkpoint.FOLDER, "manifest.json", checkpoint.CONFIG))


def prepare(
    target: str | Path | Trained,
    config: EvaluateConfig,
    progress: Progress = lambda what, done, of: None,
    *,
    network: Features | None = None,
) -> Prepared:
    """Open the target, the real pictures and the networks; `network` replaces the feature network that config names.

    Raises:
        Error: something cannot be opened, sampled or measured.
    """
    points = sweep.points(config.request, config.sweep)
    if isinstance(target, str | Path) and not is_run(target):
        return _of_pictures(str(target), config, network or features(config.features), progress)
    network = (network or features(config.features)) if config.sampled else None
    return _of_model(target, config, points, network, progress)


def _of_model(
    target: str | Path | Trained,
    config: EvaluateConfig,
    points: Sequence[Point],
    network: Features | None,
    progress: Progress,
) -> Prepared:
    model = target if isinstance(target, trained.Trained) else trained.load(target, compute=choose(config))
    if isinstance(model.model.config.network, ClassifierConfig):
        raise Error(f"{model.name} is a classifier, which makes no pictures: `kuosan train` reports its accuracy, and "
                    "--judge takes it as the judge of another run.")  # fmt: skip
    require_whole(model.model.config, "an evaluation")
    if config.likelihood:
        require_pixels(model.model.config, "a likelihood")
        require_wordless(model.model.config, "a likelihood")
    model = replace(model, model=sizes.asked(model.model, config.request))
    choices = sweep.check(model.model.config, points)
    pictures, own, warnings = _real_pictures(model, config, progress)
    reference, floor = real.sides(pictures, config.against, config.real, config.request.n)
    prompts = asking.captions(model, config, reference)
    path = Path(model.name).resolve()
    home = checkpoint.home(Path(model.name)) / FOLDER
    if checkpoint.is_exported(path):  # which holds nothing else
        home = Path(FOLDER) / path.name
    jobs = _jobs(model, points, choices, home, pictures, prompts) if config.sampled else ()
    judge = None if config.judge is None else _judge(config, pictures, model.compute, [each.task for each in jobs])
    metrics = () if network is None else _metrics(config, config.request.n, len(reference), network.dim, own, judge)
    return Prepared(
        model.name,
        config,
        Path(config.out) if config.out else home / _name(config, jobs, model.weights, pictures.fingerprint),
        home,
        network,
        metrics,
        reference,
        floor,
        model,
        jobs,
        own=own,
        judge=judge,
        bits=bits.asked(config, own),
        warnings=(*model.warnings, *warnings, *remarks.warnings(None, reference, config.request.n, metrics)),
    )


def _real_pictures(
    model: Trained, config: EvaluateConfig, progress: Progress
) -> tuple[Pictures | Images, Pictures | None, tuple[str, ...]]:
    """The data set to compare with, the one trained on where it is at hand, and warnings."""
    saved = checkpoint.load(model.name, parts=())
    data = trees.build(DataConfig, saved.config.get("data", {}))
    if config.against not in (TRAIN, HELD_OUT):
        found = open_images(config.against, model.reading, model.model.shape, progress, data.label_column)
        return found, None, model.damaged
    every = real.own(data, config.data, model.name, progress)
    pictures, noted = _of_one_shape(model, every)
    if pictures.shape != model.model.shape:
        raise Error(f"{pictures.config.path} gives pictures {pictures.shape}, the model makes {model.model.shape}.")
    known = saved.state.get("data")
    if known is None or pictures.has_fingerprint(known):
        return pictures, pictures, (*model.damaged, *noted)
    text = f"{pictures.config.path} does not hold the pictures that {model.name} was trained on"
    if not config.force:
        raise Error(
            f"{text}: give --data PATH for where they are now, --against PATH to compare with others, or --force."
        )
    return pictures, pictures, (*model.damaged, *noted, text)


def _of_one_shape(model: Trained, pictures: Pictures) -> tuple[Pictures, tuple[str, ...]]:
    """Of aspect-ratio buckets the one whose shape is made: others are not compared with it; and that it is so."""
    if not model.model.config.shapes:
        return pictures, ()
    _, height, width = model.model.shape
    some = pictures.only((height, width))
    return some, (
        f"{model.name} was trained on {len(model.model.config.shapes)} shapes; pictures of {width}x{height} alone are "
        f"made and compared ({len(some.train):,} of {len(pictures.train):,} trained on): --size W,H measures another",
    )


def _jobs(
    model: Trained,
    points: Sequence[Point],
    choices: Sequence[Choice],
    home: Path,
    pictures: Pictures | Images,
    prompts: tuple[str, ...],
) -> tuple[Job, ...]:
    """Each point ready to be sampled. Helpers that several points name are opened once."""
    opened: dict[tuple[str, str], Trained] = {}
    found = []
    for point, choice in zip(points, choices):
        named = {name: getattr(point.request, name) for name in ("classifier", "reference")}
        for name, path in named.items():
            if path is not None and (name, path) not in opened:
                opened[name, path] = trained.load(path, compute=model.compute)
        helpers = {name: opened[name, path] for name, path in named.items() if path is not None}
        known = {name: helpers[name].model.config if name in helpers else None for name in named}
        check_guides(model.model.config, point.request, known["classifier"], known["reference"])
        teller = model if model.model.config.task.labels else helpers.get("classifier")
        task = None if teller is None else teller.model.config.task
        shares = () if task is None or point.request.classes else asking.shares(task, pictures)
        own = () if point.request.prompts else prompts
        told = about(model, point, choice, helpers, shares, own)
        store = Store(home / "pictures" / f"{choice.sampler}-{choice.steps}-{key(told)}", told)
        found.append(Job(point, choice, store, helpers, task, shares, own))
    return tuple(found)


def _judge(config: EvaluateConfig, pictures: Pictures | Images, compute: Any, tasks: Sequence[Task | None]) -> Judge:
    """The judge, where there are classes to judge."""
    assert config.judge is not None
    told = next((task.class_names for task in tasks if task is not None), tuple(pictures.classes))
    if any(task is None for task in tasks) or not told:
        raise Error(f"judge {config.judge!r} has nothing to judge: the pictures are asked to be of no class.")
    assert pictures.shape is not None, "images against a model have its shape"
    return open_judge(config.judge, pictures.shape, told, compute)


def _metrics(
    config: EvaluateConfig, made: int, reference: int, dim: int, own: Pictures | None, judge: Judge | None
) -> tuple[str, ...]:
    """What is measured: what was asked for, or all that can be."""
    asked = config.metrics
    if "memorisation" in asked and own is None:
        raise Error("memorisation looks for copies of training pictures: it needs a run, --against train or held_out.")
    found = measures.chosen([name for name in asked if name in measures.DISTANCES], made, reference, dim, config.force)
    found = found if not asked or set(asked) & set(measures.DISTANCES) else ()
    lacking = "" if own is None else _lacking(made, own)
    if "memorisation" in asked and lacking:
        raise Error(f"memorisation has too few pictures: {lacking}. Give --n, or leave that metric out.")
    few = own is not None and len(own.train) <= FEW and not lacking
    memorised = "memorisation" in asked or (not asked and few and not config.sweep)
    return (*found, *(["memorisation"] if memorised else []), *(["labels"] if judge is not None else []))


def _lacking(made: int, own: Pictures) -> str:
    """Of which pictures memorisation has too few to tell anything; empty where it has enough."""
    sides = (
        (made, LEAST, "made"),
        (len(own.held_out), LEAST, "held out"),
        (len(own.train), NEIGHBOURS + 1, "trained on"),
    )
    return ", ".join(f"{count} {what}, at least {least} are needed" for count, least, what in sides if count < least)


def _of_pictures(target: str, config: EvaluateConfig, network: Features, progress: Progress) -> Prepared:
    """A folder of pictures against another."""
    usual = EvaluateConfig()
    if config.against in (TRAIN, HELD_OUT):
        raise Error(f"{target} is no run, so it has no pictures of its own to compare with: give --against PATH.")
    asked = replace(config.request, n=usual.request.n)
    given = [name for name in trees.plain(asked) if getattr(asked, name) != getattr(usual.request, name)]
    given += [name for name in ("sweep", "likelihood") if getattr(config, name)]
    if given:
        raise Error(f"{given[0]} has no effect on {target}, which holds pictures and no model; leave it out.")
    pictures = open_images(config.against, progress=progress)
    theirs = open_images(target, progress=progress)
    made = Side.of(f"images of {target}", theirs, real.shuffled(theirs, "all"), 0, config.request.n)
    if len(made) < real.LEAST:
        raise Error(f"{target} holds {len(made)} pictures, too few for a distance.")
    reference, floor = real.sides(pictures, config.against, config.real, len(made))
    judge = None
    if config.judge is not None:
        if not theirs.classes:
            raise Error(f"judge {config.judge!r} has nothing to judge: the pictures of {target} have no classes.")
        judge = _judge_of_images(config, theirs, pictures)
    home = Path(config.out or FOLDER)
    digest = _digest([theirs.fingerprint, pictures.fingerprint, trees.plain(replace(config, out=None))])
    name = f"{_word(target)}-against-{_word(config.against)}-{digest}"
    folder = Path(config.out) if config.out else home / name
    metrics = _metrics(config, len(made), len(reference), network.dim, None, judge)
    warnings = tuple(remarks.warnings(made, reference, config.request.n, metrics))
    return Prepared(target, config, folder, home, network, metrics, reference, floor, made=made, judge=judge,
                    warnings=warnings)  # fmt: skip


def _judge_of_images(config: EvaluateConfig, theirs: Images, pictures: Images) -> Judge:
    """The judge of a folder's classes, which reads images of its own size alone. Raises: Error for others."""
    assert config.judge is not None
    for images in (theirs, pictures):
        if images.shape is None:
            raise Error(f"judge {config.judge!r} reads images of one size, those of {images.path} are of several: "
                        "resize them first, or leave --judge out.")  # fmt: skip
    assert theirs.shape is not None
    return open_judge(config.judge, theirs.shape, theirs.classes, choose(config))


def choose(config: EvaluateConfig) -> Any:
    """The device and precision asked for."""
    return choose_compute(config.compute)


def _name(config: EvaluateConfig, jobs: Sequence[Job], *told: str) -> str:
    """A folder's name that no evaluation with other settings has."""
    digest = _digest([*told, trees.plain(replace(config, out=None))])
    if not jobs:
        return f"likelihood-n{config.likelihood_pictures}-{digest}"
    swept = list(dict.fromkeys(key for each in jobs for key in each.point.setting))
    first = jobs[0].choice
    what = f"sweep-{'-'.join(swept)}" if swept else f"{first.sampler}-{first.steps}"
    return f"{what}-n{config.request.n}-{_word(config.against)}-{digest}"


def _digest(told: Any) -> str:
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def _word(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", Path(text).name if "/" in text else text).strip("-.")[:40] or "pictures"
