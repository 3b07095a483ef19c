"""The leaves of a configuration class as options: what each is called, takes and means, and reading them from a shell.

One override syntax everywhere: `--key value`, nested by dots (`--model.network.channels 64`), lists by repetition.
When a field counts, and which values it may have, is declared at the field and checked in one place:

    vlb_weight: float = field(default=0.001, metadata=only(loss="hybrid"))
    lr_shape: str = field(default="constant", metadata=one_of("constant", "cosine"))

What has no effect is refused. A rule over the fields of several classes stays a function of its own. Torch-free.
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
_LOG = "Every run writes log.jsonl and log.csv (a row a step) and curve.png into its folder; nothing is sent anywhere."
_LORA = "There are no adapters yet: --init RUN begins from another run's weights."
_DATA = "The images are named without an option: kuosan train FOLDER."
_MODEL = "The run is named without an option: kuosan sample RUN."
_PROCESSES = "Several processes are started by torchrun: torchrun --nproc-per-node 2 -m kuosan.cli.main train FOLDER."
_SIZE = "Training takes one number or WIDTHxHEIGHT, sampling WIDTHxHEIGHT, as 96x64."
_PARTS = "It is how many images are computed at once; the rest of --batch is accumulated."

# What other tools call an option of ours, or the first of some that a verb has.
_NAMES = {
    "lr": "learning_rate base_lr",
    "max_steps steps": "num_steps train_steps max_train_steps num_train_steps train_num_steps iterations max_iter",
    "minutes": "time_limit time_budget max_time max_minutes",
    "max_steps": "steps total_steps", "size": "image_size img_size resolution",
    "out": "output output_dir outdir save_dir logdir results_folder",
    "batch": "batch_size train_batch_size per_device_train_batch_size",
    "init": "pretrained pretrained_model_name_or_path init_from", "workers": "num_workers dataloader_num_workers",
    "lr_shape": "lr_scheduler lr_schedule", "warmup": "warmup_steps lr_warmup_steps",
    "clip": "max_grad_norm grad_clip gradient_clip_val clip_grad", "weight_decay": "adam_weight_decay wd",
    "save_every": "save_interval save_steps checkpointing_steps", "keep": "checkpoints_total_limit",
    "evaluate_every": "validation_steps eval_every eval_steps log_interval",
    "preview_every": "sample_every save_and_sample_every sample_interval", "flip": "random_flip horizontal_flip",
    "labels": "class_cond class_conditional conditional", "drop": "cond_drop_prob class_dropout_prob p_uncond",
    "prediction": "prediction_type parameterization objective_type",
    "T": "num_train_timesteps timesteps diffusion_steps", "model.schedule.betas": "beta_schedule noise_schedule",
    "steps preview_steps": "num_inference_steps ddim_steps sampling_steps",
    "guidance": "guidance_scale cfg cfg_scale cond_scale", "negative": "negative_prompt neg_prompt",
    "n": "num_images num_samples n_samples num_images_per_prompt", "sampler schedule": "scheduler sampler_name",
    "image": "init_image input_image", "strength": "denoising_strength",
    "class classes": "class_label class_labels class_name", "mask": "mask_image", "upscale": "outscale",
}  # fmt: skip
# The same, and what else there is to know.
ELSEWHERE: Mapping[str, tuple[tuple[str, ...], str]] = {
    **{name: (tuple(ours.split()), "") for ours, names in _NAMES.items() for name in names.split()},
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), (("max_steps",), _EPOCHS)),
    **dict.fromkeys(("height", "width"), (("size",), _SIZE)),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "gradient_accumulate_every", "microbatch"), (("micro_batch",), _PARTS)
    ),
    "gradient_checkpointing": (("micro_batch",), "Nothing is recomputed; fewer images at once take less."),
    **dict.fromkeys(("mixed_precision", "dtype", "bf16", "fp16", "amp"), (("precision",), "It is auto, bf16 or fp32.")),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint", "resume_checkpoint"), ((), _RESUME)),
    **dict.fromkeys(("report_to", "tensorboard", "logger", "log_with"), (("log_to",), "It is files or tensorboard.")),
    **dict.fromkeys(("wandb", "use_wandb"), ((), _LOG)),
    **dict.fromkeys(("lora", "lora_rank", "use_lora", "rank"), ((), _LORA)),
    **dict.fromkeys(("data_dir", "dataset", "dataset_name", "train_data_dir", "data_path"), ((), _DATA)),
    **dict.fromkeys(("model_path", "checkpoint", "ckpt", "ckpt_path"), (("init",), _MODEL)),
    **dict.fromkeys(("gpus", "num_gpus", "num_processes", "nproc_per_node"), ((), _PROCESSES)),
    **dict.fromkeys(("ema_decay", "ema_rate", "use_ema"), (("ema",), "It is a width: a share of the run.")),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (("train.betas",), "Both are given, as 0.9,0.99.")),
    "center_crop": (("resize",), "The centre is cut by `crop`, which scales first, or `centre`, which does not."),
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
        typed: what is typed then, as WIDTHxHEIGHT, for the help: metadata {"typed": ...}.
    """

    key: str
    type: Any
    default: Any
    doc: str
    field: str = ""
    flags: tuple[str, ...] = ()
    whole: bool = False
    read: Callable[[str], Any] | None = None
    typed: str = ""

    @property
    def name(self) -> str:
        """The dotted name that is typed; its stored key is read too."""
        group, dot, last = self.key.rpartition(".")
        return f"{group}{dot}{self.field or last}"

    @property
    def type_text(self) -> str:
        """The type as a reader wants it: `int`, `linear|cosine`, `list of bool`, `WIDTHxHEIGHT`."""
        return self.typed or type_text(self.type)

    @property
    def default_text(self) -> str:
        """The default as one would type it; empty where there is none."""
        if self.default is dataclasses.MISSING or self.default is None:
            return ""
        several = self.default if isinstance(self.default, tuple | list) else (self.default,)
        return ",".join(map(_typed, several))


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
    found = [get_args(member) for member in members(annotation) if get_origin(member) is tuple] or [(...,)]
    return 0 if Ellipsis in found[0] else len(found[0])


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
            each = [type_text(item) for item in inner]
            names.append(",".join(each) if fixed else f"list of {'/'.join(dict.fromkeys(each))}")
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
            about = {
                name: field.metadata[name] for name in ("flags", "whole", "read", "typed") if name in field.metadata
            }
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
SET = "set"  # any value that was given, 0 too: `only(guidance=SET)`
_ONLY, _ONE_OF = "only", "one_of"


@dataclasses.dataclass(frozen=True)
class Only:
    """What a field needs: one of some values of each of other fields of its class, and why."""

    owners: Mapping[str, tuple[Any, ...]]
    because: str = ""
    idle: tuple[Any, ...] = ()  # values that, beside the default, ask for nothing
    otherwise: str = ""  # how the sentence that begins with `... has no effect` ends, where the owners say too little


def only(*, because: str = "", otherwise: str = "", idle: tuple[Any, ...] = (), **owners: Any) -> dict[str, Any]:
    """Metadata of a field that counts only where each of these fields has one of these values, or ANY, or is SET.

    Of a list one value among them is enough.
    """
    several = {name: value if isinstance(value, tuple) and value else (value,) for name, value in owners.items()}
    return {_ONLY: Only(several, because, idle, otherwise)}


def one_of(*values: Any) -> dict[str, Any]:
    """Metadata of a field that may have these values, or that lists some of them, or names none."""
    return {_ONE_OF: values}


def check(config: Any, prefix: str = "", given: Mapping[str, Any] | None = None) -> None:
    """Check what the fields of a settings object declare; `prefix` stands before their names in messages.

    Args:
        given: what a person typed, as a tree by stored keys: without effect it is refused even where it is the default.

    Raises:
        Error: a value that is not one of those allowed, or one without effect. It names the field, its value, what it
            belongs to and what to do.
    """
    for each in dataclasses.fields(config):
        value, default = getattr(config, each.name), _default(each)
        if _ONE_OF in each.metadata:
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and one not in each.metadata[_ONE_OF]:
                    raise unknown(f"{prefix}{each.name}", one, each.metadata[_ONE_OF])
        rule: Only | None = each.metadata.get(_ONLY)
        if rule is None or value in rule.idle:
            continue
        typed = {} if given is None else given.get(stored_key(each), {})
        if value != default or (typed and value not in (None, False, ())):
            _check_owners(config, prefix, f"{prefix}{_leaf(each.name, value, default, typed)}", rule)


def _check_owners(config: Any, prefix: str, said: str, rule: Only) -> None:
    why = f": {rule.because}" if rule.because else ""
    for owner, values in rule.owners.items():
        now = getattr(config, owner)
        if _owned(now, values):
            continue
        option = f"--{prefix}{owner}"
        if rule.otherwise:
            raise Error(f"{said} has no effect {rule.otherwise}.")
        if values in ((ANY,), (SET,), (True,)):
            lacking = f"without {owner}" if now is False or now != 0 else f"with {owner} = {now}"
            cure = option if now is False else f"{option} a value"
            raise Error(f"{said} has no effect {lacking}{why}: leave it out, or give {cure}.")
        if values in ((None,), (False,), ((),)):
            raise Error(f"{said} has no effect with {option} {_worded(now)}{why}; leave one of them out.")
        wanted = " or ".join(_worded(each) for each in values if each is not None and each != ())
        raise Error(
            f"{said} has no effect with {owner} {_worded(now)}: it belongs to {owner} {wanted}{why}; leave it out, or "
            f"set {prefix}{owner}."
        )


def _owned(now: Any, values: tuple[Any, ...]) -> bool:
    """Whether an owner's value is one of those that a field needs."""
    if values in ((ANY,), (SET,)):
        return bool(now) if values == (ANY,) else now is not None
    return now in values or (isinstance(now, tuple) and any(each in values for each in now))


def _leaf(name: str, value: Any, default: Any, typed: Any) -> str:
    """A field with its value in a message; of a group of settings the first that was asked for."""
    if not dataclasses.is_dataclass(value):
        return f"{name} = {_worded(value)}"
    given = typed if isinstance(typed, Mapping) else {}
    for each in dataclasses.fields(value):
        inner, usual = getattr(value, each.name), getattr(default, each.name, None)
        if inner != usual or stored_key(each) in given:
            return _leaf(f"{name}.{each.name}", inner, usual, given.get(stored_key(each), {}))
    return name


def _worded(value: Any) -> str:
    """A value as a message says it: `not set` for none, a list with commas."""
    if value is None or value == ():
        return "not set"
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
