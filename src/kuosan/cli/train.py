"""`kuosan train`: from a folder of pictures to a trained model; the same command again goes on where it stopped."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from cyclopts import Parameter

from kuosan import config as trees
from kuosan import options
from kuosan.cli.console import console, counting, duration, say
from kuosan.data.config import PORTRAITS, as_begun
from kuosan.errors import Error, unknown
from kuosan.files import size_text
from kuosan.networks.config import Size
from kuosan.train.config import SHORT, RunConfig, check, encoder_named

OWN = ("out", "config", "network", "init", "accept-new-data", "dry-run")  # options that are no settings of a run


def train(
    *tokens: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    config: str | None = None,
    network: Size | None = None,
    init: Path | None = None,
    accept_new_data: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a diffusion model on DATA: a folder, a zip, tar, IDX, npz or npy file of pictures, or `portraits`.

    The same command again, or `kuosan train --out RUN` alone, goes on where the run stopped, bit for bit.
    Every setting below can be given as --key value, by its last part alone where that is unique (--max-steps 5000).

    Parameters
    ----------
    tokens
        The pictures, and options of the configuration.
    out
        The run's folder; runs/NAME OF THE DATA if not given.
    config
        A YAML file of options, or a recipe by name (portraits); options given here win.
    network
        The network's size where its fields are not given: tiny, small (if not said), medium or large.
    init
        Start from the averaged weights of this run.
    accept_new_data
        Go on although the pictures are not the ones the run was trained on.
    dry_run
        Say what would be done, and do nothing.
    """
    tree, words = options.parse(list(tokens), RunConfig, SHORT, OWN)
    if len(words) > 1:
        raise Error(f"one data set at a time: {words[0]!r} and {words[1]!r} were given.")
    if words and "path" in tree.get("data", {}):
        raise Error(f"the pictures are given twice: {words[0]!r} and --data.path {tree['data']['path']!r}.")
    if words:
        tree.setdefault("data", {})["path"] = words[0]
    typed = encoder_named(tree)
    if config is not None:
        tree = trees.merge(_groups(trees.load(recipe(config))), tree)
    going_on = "path" not in tree.get("data", {})
    out, tree = _place(out, tree)
    if network is not None and going_on:
        raise Error(f"--network {network} has no effect on {out}, which has its network already; leave it out.")
    if tree.get("model", {}).get("network", {}).get("kind") == "own":
        raise Error(
            "model.network.kind = own: a network of your own is brought from Python: "
            "kuosan.fit(MyNetwork(...), data, out=RUN); docs/python.md shows how."
        )
    check(tree)  # what can be refused before torch and the pictures load, is
    return _run(out, tree, network or "small", init, accept_new_data, dry_run, typed)


def _groups(tree: trees.Tree) -> trees.Tree:
    """A configuration file's tree, once each of its top keys is a known group of settings."""
    trees.build(RunConfig, {key: value for key, value in tree.items() if not isinstance(value, dict)})
    return tree


def recipe(name: str) -> Path:
    """A YAML file by its path, or one of kuosan's own recipes by its name.

    Raises:
        Error: neither.
    """
    own = Path(__file__).parent.parent / "recipes"
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    names = sorted(path.stem for path in own.glob("*.yaml"))
    if name not in names:
        raise unknown("recipe", name, names)
    return own / f"{name}.yaml"


def _place(out: Path | None, tree: trees.Tree) -> tuple[Path, trees.Tree]:
    """The run's folder, and the configuration with the data filled in from a run that is there already."""
    path = tree.get("data", {}).get("path")
    if out is None and path is None:
        raise Error(
            "no pictures given: kuosan train FOLDER (or a zip, tar, IDX, npz or npy file; `portraits` are built in)."
        )
    if out is None:
        name = re.sub(r"[^\w.-]+", "-", Path(path).resolve().name).strip("-.") or "pictures"
        return Path("runs") / name.removesuffix(".zip"), tree
    if path is None:
        from kuosan import checkpoint  # a save's own configuration: the run's copy may be lost, damaged or edited

        if checkpoint.checkpoints(out):
            before = checkpoint.load_config(out)
        elif (out / "config.yaml").is_file():
            from kuosan.train.folder import is_whole

            before = trees.load(out / "config.yaml")
            before = as_begun(before) if is_whole(before) else before
        else:
            raise Error(
                f"no pictures given, and {out} holds no run to go on with: kuosan train FOLDER --out {quote(str(out))}."
            )
        tree = trees.merge(before, tree)
        _check_there(str(tree.get("data", {}).get("path", PORTRAITS)), out)
    return out, tree


def _check_there(path: str, out: Path) -> None:
    """Refuse to go on where a run's images are no longer where they were."""
    if path == PORTRAITS or Path(path).expanduser().exists():
        return
    place = "" if Path(path).expanduser().is_absolute() else f" (seen from {Path.cwd()})"
    raise Error(
        f"{out} was trained on {path}, which is not here{place}: name where the images are now: "
        f"kuosan train IMAGES --out {quote(str(out))}. A data set of your own from Python goes on there: "
        f"kuosan.fit(DATASET, out={str(out)!r})."
    )


def _run(
    out: Path, tree: trees.Tree, network: Size, init: Path | None, accept_new_data: bool, dry_run: bool, typed: str
) -> int:
    from kuosan import checkpoint
    from kuosan.cli.console import TrainingReport
    from kuosan.data.captioned import first_rows
    from kuosan.train import api
    from kuosan.train.report import Silent

    if init is not None:
        checkpoint.load_config(init)  # refused before anything is written
    with counting("pictures") as progress:
        asked = api.prepare(out, tree, size=network, progress=progress, typed=typed)
    first = asked.world.first
    if first:
        say(f"compute: {asked.compute}")
        for line in asked.pictures.describe():
            say(f"pictures: {line}")
        if asked.config.model.task.text:
            for row in first_rows(asked.pictures):
                say(f"caption: {row}")
    if dry_run:
        run = api.start(asked, Silent(), init=init, accept_new_data=accept_new_data, dry=True)
        if first:
            _plan(run, asked)
            say("dry run: nothing was written.")
        api.let_go(run)
        return 0
    with TrainingReport() if first else _Nobody() as report:
        heard: Any = report if first else Silent()
        run = api.start(asked, heard, init=init, accept_new_data=accept_new_data)
        if first:
            _plan(run, asked)
        asked_to_stop = api.train(run)
    if first:
        _say_end(run, asked_to_stop, out)
    return 128 + asked_to_stop if asked_to_stop else 0


def _plan(run: Any, asked: Any) -> None:
    """Say what will be done; where that fails, the run's other processes are given the reason."""
    from kuosan.train import api

    try:
        _say_plan(run, asked)
    except BaseException as error:
        api.let_go(run, error)
        raise


class _Nobody:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _say_plan(run: Any, asked: Any) -> None:
    from kuosan.train.estimate import measure

    config = run.config
    if run.state.step >= config.train.max_steps:
        return
    cost = measure(run)
    left = config.train.max_steps - run.state.step
    epochs = config.train.max_steps * config.train.batch / len(asked.pictures.train)
    say(
        f"model: {cost.parameters / 1e6:.2f} M parameters for {'x'.join(map(str, config.model.shape))} pictures"
        f"{_latents(config.model)}, {_purpose(config.model)}"
    )
    say(
        f"training: {left} steps of {config.train.batch} ({epochs:.1f} epochs in all), "
        f"about {duration(cost.seconds * left)}, about {size_text(cost.memory)} of memory"
    )
    say(f"run: {run.folder} (saved every {config.train.save_every} steps; Ctrl-C saves and stops)")


def _latents(model: Any) -> str:
    """What is denoised of pictures, where it is not they themselves."""
    if model.codec.kind == "pixels":
        return ""
    return f" as {'x'.join(map(str, model.walk_shape))} latents of {model.codec.run}"


def _purpose(model: Any) -> str:
    """What a model is for: what it predicts, how many classes it tells apart, or the latents it makes."""
    schedule, network = model.schedule, model.network
    if network.kind == "autoencoder":
        latent = "x".join(map(str, network.latent_shape(model.shape)))
        return f"turns them into latents of {latent} (factor {network.factor}) and back"
    detail = f"{schedule.betas}, T={schedule.T}" if schedule.kind == "discrete" else schedule.kind
    if network.kind != "classifier":
        return f"predicts {model.prediction}, schedule {detail}"
    return f"tells {network.classes} classes apart, " + (
        f"schedule {detail}" if network.noisy else "clean pictures only"
    )


def _say_end(run: Any, stopped: int, out: Path) -> None:
    folder, step, last = run.folder, run.state.step, run.config.train.max_steps
    if stopped:
        console.print()
        say(
            f"stopped by {signal.Signals(stopped).name} at step {step} of {last}, saved. "
            f"{'The same command' if folder == out else f'kuosan train --out {quote(str(folder))}'} goes on from there."
        )
        return
    say(f"done: {folder}, {step} steps. The curve is {folder / 'curve.png'}.")
    if run.config.train.objective == "classifier":
        _say_accuracy(run)
        return
    if run.config.train.objective == "autoencoder":
        _say_reconstruction(run)
        return
    task = run.config.model.task
    use = {
        "super_resolution": f"restore {quote(str(folder))} PICTURE --upscale {getattr(task, 'scale', 0)}",
        "inpainting": f"restore {quote(str(folder))} PICTURE --mask MASK",
    }.get(task.kind, f"sample {quote(str(folder))} " + ('"WHAT TO MAKE" --guidance 3' if task.text else "-n 16"))
    say(f"next: kuosan {use}   (longer training: the same command with --max-steps {2 * last})")


def _say_reconstruction(run: Any) -> None:
    """An autoencoder's last judgement, and what to do with it."""
    rows = [row for row in run.log.rows() if row.get("held_out")]
    if rows:
        held, network = rows[-1]["held_out"], run.config.model.network
        say(
            f"reconstruction: PSNR {held['psnr']:.2f} dB of held-out pictures at step {rows[-1]['step']}, latents "
            f"{'x'.join(map(str, network.latent_shape(run.config.model.shape)))}."
        )
    folder = quote(str(run.folder))
    say(f"next: kuosan reconstruct {folder} PICTURES, and kuosan train PICTURES --codec {folder}")


def _say_accuracy(run: Any) -> None:
    """A classifier's last judgement, and what to do with it."""
    rows = [row for row in run.log.rows() if row.get("held_out")]
    if rows:
        held = rows[-1]["held_out"]
        bands = [f"{value:.1%}" for value in held.get("accuracy_by_noise", []) if value is not None]
        by_noise = f"; from least to most noise: {', '.join(bands)}" if bands else ""
        say(f"accuracy: {held['accuracy']:.1%} of held-out pictures at step {rows[-1]['step']}{by_noise}.")
    if run.config.model.network.noisy:
        say(f"next: kuosan sample GENERATOR --classifier {quote(str(run.folder))} --class NAME")
