"""The leaves of a configuration class as options: what each is called, takes and means, and reading them from a shell.

One override syntax everywhere: `--key value`, nested by dots (`--model.network.channels 64`), lists by repetition.

When a field of a settings class counts, and which values it may have: declared at the field, checked in one place.

    vlb_weight: float = field(default=0.001, metadata=only(loss="hybrid"))
    lr_shape: str = field(default="constant", metadata=one_of("constant", "cosine"))

A field that counts only beside others' values must have its default without them: what has no effect is refused. What
takes more than the fields of one class stays a function of its own. Torch-free.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from kuosan.errors import Error, unknown

Tree = dict[str, Any]
_EPOCHS = "Steps are counted, not epochs: an epoch is the number of images / --batch."
_RESUME = "The same command again, or `kuosan train --out RUN`, goes on where the run stopped."
_LOG = "Every run writes log.jsonl (a row a step) and curve.png into its folder; nothing is sent anywhere."
_LORA = "There are no adapters yet: --init RUN begins from another run's weights."
_DATA = "The images are named without an option: kuosan train FOLDER."
_MODEL = "The run is named without an option: kuosan sample RUN."
_PROCESSES = "Several processes are started by torchrun: torchrun --nproc-per-node 2 -m kuosan.cli.main train FOLDER."
_SIZE = "Training takes one number, sampling WIDTHxHEIGHT, as 96x64."
_PARTS = "It is how many images are computed at once; the rest of --batch is accumulated."

# What other tools call an option: which of ours is meant (the first that a verb has), and what else there is to know.
ELSEWHERE: Mapping[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(("learning_rate", "base_lr"), (("lr",), "")),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), (("max_steps",), _EPOCHS)),
    **dict.fromkeys(
        ("num_steps", "train_steps", "max_train_steps", "num_train_steps", "train_num_steps", "iterations", "max_iter"),
        (("max_steps", "steps"), ""),
    ),
    **dict.fromkeys(("steps", "total_steps"), (("max_steps",), "")),
    **dict.fromkeys(("image_size", "img_size"), (("size",), "")),
    "resolution": (("size",), ""),
    **dict.fromkeys(("height", "width"), (("size",), _SIZE)),
    **dict.fromkeys(("output", "output_dir", "outdir", "save_dir", "logdir", "results_folder"), (("out",), "")),
    **dict.fromkeys(("batch_size", "train_batch_size", "per_device_train_batch_size"), (("batch",), "")),
    "gradient_accumulation_steps": (("micro_batch",), _PARTS),
    "gradient_accumulate_every": (("micro_batch",), _PARTS),
    "microbatch": (("micro_batch",), _PARTS),
    "gradient_checkpointing": (
        ("micro_batch",),
        "Nothing is recomputed; fewer images at once take less.",
    ),
    **dict.fromkeys(("mixed_precision", "dtype", "bf16", "fp16", "amp"), (("precision",), "It is auto, bf16 or fp32.")),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint", "resume_checkpoint"), ((), _RESUME)),
    **dict.fromkeys(("wandb", "report_to", "use_wandb", "tensorboard", "logger", "log_with"), ((), _LOG)),
    **dict.fromkeys(("lora", "lora_rank", "use_lora", "rank"), ((), _LORA)),
    **dict.fromkeys(("data_dir", "dataset", "dataset_name", "train_data_dir", "data_path"), ((), _DATA)),
    **dict.fromkeys(("pretrained", "pretrained_model_name_or_path", "init_from"), (("init",), "")),
    **dict.fromkeys(("model_path", "checkpoint", "ckpt", "ckpt_path"), (("init",), _MODEL)),
    **dict.fromkeys(("gpus", "num_gpus", "num_processes", "nproc_per_node"), ((), _PROCESSES)),
    **dict.fromkeys(("num_workers", "dataloader_num_workers"), (("workers",), "")),
    **dict.fromkeys(("lr_scheduler", "lr_schedule"), (("lr_shape",), "")),
    **dict.fromkeys(("warmup_steps", "lr_warmup_steps"), (("warmup",), "")),
    **dict.fromkeys(("ema_decay", "ema_rate", "use_ema"), (("ema",), "It is a width: a share of the run.")),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad"), (("clip",), "")),
    **dict.fromkeys(("adam_weight_decay", "wd"), (("weight_decay",), "")),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (("train.betas",), "Both are given, as 0.9,0.99.")),
    **dict.fromkeys(("save_interval", "save_steps", "checkpointing_steps"), (("save_every",), "")),
    "checkpoints_total_limit": (("keep",), ""),
    **dict.fromkeys(("validation_steps", "eval_every", "eval_steps", "log_interval"), (("evaluate_every",), "")),
    **dict.fromkeys(("sample_every", "save_and_sample_every", "sample_interval"), (("preview_every",), "")),
    **dict.fromkeys(("random_flip", "horizontal_flip"), (("flip",), "")),
    "center_crop": (("resize",), "The centre is cut by `crop`, which scales first, or `centre`, which does not."),
    **dict.fromkeys(("class_cond", "class_conditional", "conditional"), (("labels",), "")),
    **dict.fromkeys(("cond_drop_prob", "class_dropout_prob", "p_uncond"), (("drop",), "")),
    **dict.fromkeys(("prediction_type", "parameterization", "objective_type"), (("prediction",), "")),
    **dict.fromkeys(("num_train_timesteps", "timesteps", "diffusion_steps"), (("T",), "")),
    **dict.fromkeys(("beta_schedule", "noise_schedule"), (("model.schedule.betas",), "")),
    **dict.fromkeys(("num_inference_steps", "ddim_steps", "sampling_steps"), (("steps", "preview_steps"), "")),
    **dict.fromkeys(("guidance_scale", "cfg", "cfg_scale", "cond_scale"), (("guidance",), "")),
    **dict.fromkeys(("negative_prompt", "neg_prompt"), (("negative",), "")),
    **dict.fromkeys(("num_images", "num_samples", "n_samples", "num_images_per_prompt"), (("n",), "")),
    **dict.fromkeys(("scheduler", "sampler_name"), (("sampler", "schedule"), "")),
    **dict.fromkeys(("init_image", "input_image"), (("image",), "")),
    "denoising_strength": (("strength",), ""),
    **dict.fromkeys(("class_label", "class_labels", "class_name"), (("class", "classes"), "")),
    "mask_image": (("mask",), ""),
    "outscale": (("upscale",), ""),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One leaf of a configuration: its dotted key, type, default (or MISSING) and the line that documents it.

    Attributes:
        key: as files have it. A field with metadata {"key": KEY} is stored under that name, which it had before.
        field: the field's own name, which options and help show.
        flags: further names, which win over the search ("class", "-n"): a field's metadata {"flags": (...)}.
        whole: a value is taken as it is, commas and all, as prompts are: metadata {"whole": True}.
        read: from what was typed to a value, where the type alone does not say how: metadata {"read": function}.
    """

    key: str
    type: Any
    default: Any
    doc: str
    field: str = ""
    flags: tuple[str, ...] = ()
    whole: bool = False
    read: Callable[[str], Any] | None = None

    @property
    def name(self) -> str:
        """The dotted name that is typed; its stored key is read too."""
        group, dot, last = self.key.rpartition(".")
        return f"{group}{dot}{self.field or last}"

    @property
    def type_text(self) -> str:
        """The type as a reader wants it: `int`, `linear|cosine`, `list of bool`."""
        return type_text(self.type)

    @property
    def default_text(self) -> str:
        """The default as one would type it; empty where there is none."""
        if self.default is dataclasses.MISSING or self.default is None:
            return ""
        if isinstance(self.default, tuple | list):
            return ",".join(_typed(value) for value in self.default)
        return _typed(self.default)


def options(cls: type) -> dict[str, Option]:
    """Every leaf of a configuration class by its dotted key, in the order of definition; a union gives all kinds.

    A field with metadata {"option": False} is filled in by kuosan, and is none.
    """
    return {option.key: option for option in _leaves(cls, "")}


def stored_key(field: dataclasses.Field[Any]) -> str:
    """What files call a field: its name, or the one it had before (metadata {"key": ...})."""
    key: str = field.metadata.get("key", field.name)
    return key


def parse(
    tokens: Sequence[str],
    cls: type,
    short: Mapping[str, str] | None = None,
    others: Collection[str] = (),
    hidden: Collection[str] = (),
) -> tuple[Tree, list[str]]:
    """`["--model.network.channels", "64", ...]` as a tree, and the words that belong to no option.

    A key may be given by its last parts where that is unambiguous (`--max-steps` for `train.max_steps`), with `-` for
    `_`. Lists are given by repetition or with commas; a bare `--flag` is true and `--no-flag` false.

    Args:
        short: names that win over the search, short -> dotted.
        hidden: keys, or groups of keys, that are no options here.
        others: further options of the verb, which others read: an unknown one may be meant as one of them.

    Raises:
        Error: an unknown or ambiguous key, or a key without a value.
    """
    known = {key: option for key, option in options(cls).items() if not within(key, hidden)}
    flags = {flag.replace("-", "_"): key for key, option in known.items() for flag in option.flags}
    short = flags | dict(short or {})
    tree: Tree = {}
    words: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if token == "--":  # noqa: S105 (all that follows are words)
            words += rest
            break
        if not token.startswith("-"):
            words.append(token)
            continue
        letter = f"_{token[1:2]}" in short and not token.startswith("--")
        if not _is_key(token) and not letter:
            raise Error(
                f"{token!r} is no option; options are written --key value. A word that begins so stands behind `--`."
            )
        name, equals, attached = (f"-{token[1]}", "", token[2:].lstrip("=")) if letter else token[2:].partition("=")
        if equals and not attached:
            raise Error(f"--{name}= has no value behind the equals sign.")
        typed = name if letter else f"--{name}"
        key, negated = _resolve(name, known, short, others)
        option = known[key]
        if is_bool(option.type):
            follows = bool(rest) and rest[0].lower() in _BOOLEANS and not attached and not negated
            if negated and rest and rest[0].lower() in _BOOLEANS:
                raise Error(f"{typed} says no already: leave {rest[0]!r} out.")
            value: Any = attached or (rest.pop(0) if follows else "true")
            value = boolean(key, value) is not negated
        elif attached or (rest and not _begins_option(rest[0], short)):
            value = attached or rest.pop(0)
        else:
            raise Error(f"{typed} needs a value ({option.type_text}).")
        if option.read is not None:
            value = option.read(value)
        elif (more := pair_of(option.type) - 1) > 0 and "," not in value and not attached:
            taken = [rest.pop(0) for _ in range(more) if rest and not _begins_option(rest[0], short)]
            if len(taken) < more:
                raise Error(f"{typed} {value} needs {more + 1} values, as in {typed} 3 7.")
            value = ",".join([value, *taken])
        _put(tree, key, value, typed, repeated=is_list(option.type) and option.read is None, whole=option.whole)
    return tree, words


def within(key: str, groups: Collection[str]) -> bool:
    """Whether a dotted key is one of some, or below one."""
    return any(key == each or key.startswith(f"{each}.") for each in groups)


def pair_of(annotation: Any) -> int:
    """How many values a tuple of a fixed length takes; 0 for all else."""
    found = [get_args(member) for member in members(annotation) if get_origin(member) is tuple]
    return len(found[0]) if found and Ellipsis not in found[0] else 0


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def words(key: str, value: Any) -> list[str]:
    """A key and its Python value as the tokens that `parse` reads back."""
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{key}={_typed(item)}" for item in values]


def _typed(value: Any) -> str:
    """A value as one types it in a shell."""
    return str(value).lower() if isinstance(value, bool | None) else str(value)


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _is_key(token: str) -> bool:
    return token.startswith("--") and len(token) > 2 and not token[2].isdigit()


def _begins_option(token: str, short: Mapping[str, str]) -> bool:
    """Whether a token is an option's name, a letter's included."""
    return _is_key(token) or (token[:1] == "-" and token[1:2] != "-" and f"_{token[1:2]}" in short)


def boolean(key: str, text: str) -> bool:
    """Yes or no as a person writes it. Raises: Error."""
    if text.lower() not in _BOOLEANS:
        raise Error(f"{key} = {text!r} is not a yes or no; allowed: true, false.")
    return _BOOLEANS[text.lower()]


def _resolve(
    name: str, known: Mapping[str, Option], short: Mapping[str, str], others: Collection[str] = ()
) -> tuple[str, bool]:
    wanted = name.replace("-", "_")
    names = {option.name: key for key, option in known.items()} | {key: key for key in known}
    for candidate, negated in ((wanted, False), (wanted.removeprefix("no_"), True)):
        if negated and candidate == wanted:
            continue
        found = [short[candidate]] if candidate in short else [names[candidate]] if candidate in names else []
        found = found or list(dict.fromkeys(key for each, key in names.items() if each.endswith("." + candidate)))
        if negated:
            found = [key for key in found if is_bool(known[key].type)]
        if len(found) > 1:
            raise Error(
                f"--{name} could be any of {', '.join('--' + known[key].name for key in found)}; write one of them "
                f"in full."
            )
        if found:
            return found[0], negated
    own = [option.name for option in known.values()]  # a stored key that is another is read, and not offered
    tails = [each.rsplit(".", 1)[-1] for each in own]
    words_of = [each for each in short if not each.startswith("_")]
    shown_names = {each.replace("-", "_"): each for each in [*others, *words_of, *tails, *own]}
    ours, cure = ELSEWHERE.get(wanted, ((), ""))
    near = [name for name in ours if name in shown_names][:1]
    if cure and not near and (not ours or cure == _MODEL):
        raise Error(f"there is no option --{name}. {cure}")
    cure = f" {cure}" if cure and near else ""
    near = near or difflib.get_close_matches(wanted, shown_names, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(wanted.rpartition(".")[2], shown_names, n=1, cutoff=0.6)
    guess = f" Did you mean --{shown_names[near[0]].replace('_', '-')}?" if near else ""
    typed = name if re.fullmatch("-.", name) else f"--{name}"
    raise Error(f"unknown option {typed}.{guess}{cure} `--help` lists all options.")


def _put(tree: Tree, key: str, value: Any, typed: str, repeated: bool, whole: bool = False) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    if repeated:
        parts = [value] if whole else [part for part in value.split(",") if part]
        tree[last] = [*tree.get(last, []), *parts]
    elif last in tree:
        raise Error(f"{typed} is given twice: {tree[last]} and {value}.")
    else:
        tree[last] = value


@functools.cache
def hints(cls: type) -> Mapping[str, Any]:
    """The types of a configuration class's fields; evaluating their text takes longer than all else of a reading."""
    return typing.get_type_hints(cls)


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def dataclasses_in(annotation: Any) -> list[type]:
    return [member for member in members(annotation) if isinstance(member, type) and dataclasses.is_dataclass(member)]


def is_bool(annotation: Any) -> bool:
    return bool in members(annotation)


def is_list(annotation: Any) -> bool:
    return any(get_origin(member) in (tuple, list) for member in members(annotation))


def type_text(annotation: Any) -> str:
    names = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            names.append("|".join(str(choice) for choice in get_args(member)))
        elif get_origin(member) in (tuple, list):
            inner = [item for item in get_args(member) if item is not Ellipsis]
            fixed = get_origin(member) is tuple and Ellipsis not in get_args(member)
            many = f"{len(inner)} of " if fixed else "list of "
            names.append(many + "/".join(dict.fromkeys(type_text(item) for item in inner)))
        elif member is types.NoneType:
            continue
        else:
            names.append({"str": "text", "Path": "path"}.get(member.__name__, member.__name__))
    return "|".join(names)


def _leaves(cls: type, prefix: str) -> Iterator[Option]:
    docs, seen = field_docs(cls), set()
    for field in dataclasses.fields(cls):
        annotation = hints(cls)[field.name]
        nested = dataclasses_in(annotation)
        if not field.metadata.get("option", True):  # filled in by kuosan, never typed
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not nested:
            about = {name: field.metadata[name] for name in ("flags", "whole", "read") if name in field.metadata}
            yield Option(prefix + stored_key(field), annotation, default, docs.get(field.name, ""), field.name, **about)
            continue
        kinds = [get_args(hints(member)["kind"])[0] for member in nested if "kind" in hints(member)]
        if len(nested) > 1:
            kind = getattr(default, "kind", None)
            yield Option(f"{prefix}{field.name}.kind", Literal[tuple(kinds)], kind, docs.get(field.name, ""))
        for member in nested:
            for option in _leaves(member, f"{prefix}{field.name}."):
                if not option.key.endswith(f"{field.name}.kind") and option.key not in seen:
                    seen.add(option.key)
                    yield option


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """What documents each field of a dataclass: its line under `Attributes:`, or the comment behind it."""
    docs = _attribute_docs(inspect.getdoc(cls) or "")
    for parent in cls.__mro__[1:]:
        if dataclasses.is_dataclass(parent):
            docs = {**field_docs(parent), **docs}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # defined where no file is
        return docs
    lines, body = source.splitlines(), ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("#")[2].strip()
            docs.setdefault(node.target.id, comment)
    return docs


def _attribute_docs(docstring: str) -> dict[str, str]:
    section = docstring.partition("Attributes:\n")[2]
    docs: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.strip() or not line.startswith("    "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
        docs[name] = f"{docs.get(name, '')} {start[2] if start else line.strip()}".strip()
    return docs


ANY = "any"  # any value but 0, none and nothing: `only(perceptual=ANY)`
_ONLY, _ONE_OF = "only", "one_of"


@dataclasses.dataclass(frozen=True)
class Only:
    """What a field needs: one of some values of each of other fields of its class, and why."""

    owners: Mapping[str, tuple[Any, ...]]
    because: str = ""
    idle: tuple[Any, ...] = ()  # values that, beside the default, ask for nothing


def only(*, because: str = "", idle: tuple[Any, ...] = (), **owners: Any) -> dict[str, Any]:
    """Metadata of a field that counts only where each of these fields has one of these values, or ANY."""
    several = {name: value if isinstance(value, tuple) else (value,) for name, value in owners.items()}
    return {_ONLY: Only(several, because, idle)}


def one_of(*values: Any) -> dict[str, Any]:
    """Metadata of a field that may have these values."""
    return {_ONE_OF: values}


def check(config: Any, prefix: str = "") -> None:
    """Check what the fields of a settings object declare; `prefix` stands before their names in messages.

    Raises:
        Error: a value that is not one of those allowed, or one without effect. It names the field, its value, what it
            belongs to and what to do.
    """
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if _ONE_OF in each.metadata and value not in each.metadata[_ONE_OF]:
            raise unknown(f"{prefix}{each.name}", value, each.metadata[_ONE_OF])
        rule: Only | None = each.metadata.get(_ONLY)
        if rule is not None and value != _default(each) and value not in rule.idle:
            _check_owners(config, prefix, each.name, value, rule)


def _check_owners(config: Any, prefix: str, name: str, value: Any, rule: Only) -> None:
    said = f"{prefix}{name}" if dataclasses.is_dataclass(value) else f"{prefix}{name} = {value}"
    why = f": {rule.because}" if rule.because else ""
    for owner, values in rule.owners.items():
        now = getattr(config, owner)
        if values == (ANY,) and not now:
            raise Error(
                f"{said} has no effect with {owner} = {now}{why}: leave it out, or give --{prefix}{owner} a value."
            )
        if values != (ANY,) and now not in values:
            wanted = " or ".join(str(each) for each in values)
            raise Error(
                f"{said} has no effect with {owner} {now}: it belongs to {owner} {wanted}{why}; leave it out, or set "
                f"{prefix}{owner}."
            )


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
