"""Who is compared, as a person types it: RUN[:METHOD][,key=value...], resolved to a request of each. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kuosan import config as trees
from kuosan import options
from kuosan.errors import Error, unknown
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.sample import restoration as restoring
from kuosan.sample.plan import Choice, choose
from kuosan.sample.request import Request
from kuosan.sample.restoration import METHODS, Restoration

if TYPE_CHECKING:
    from kuosan.evaluate.comparison import ComparisonConfig
    from kuosan.model import ModelConfig

CHECKPOINTS = "checkpoints"  # the folder of a run that holds its checkpoints
COMMON = ("n", "batch", "image", "strength", "between")  # of a request: one for all contestants, or of no use here
OWN = ("push", "jumps", "jump_length")  # of a restoration: what is a contestant's; the rest is the damage


@dataclass(frozen=True)
class Contestant:
    """One run and how it restores; `request` is one answer's, before the method's usual steps are filled in."""

    text: str  # as it was typed
    run: str
    method: str | None
    settings: dict[str, Any]  # as they were typed
    request: Request

    @property
    def name(self) -> str:
        """The run's folder and the method, where one was named."""
        return f"{_folder(self.run)}: {self.method}" if self.method else _folder(self.run)

    @property
    def asked(self) -> tuple[str, Request, bool]:
        """All that the answers follow from; a sampler that is named keeps a method from its usual one."""
        return self.run, self.request, "sampler" in self.settings

    def _shown(self, model: ModelConfig) -> Request:
        """The request; how the picture was shrunk is no news to a model that was trained to enlarge, and left out."""
        damage = self.request.restoration
        if damage is None or self.method is not None or model.task.kind != "super_resolution":
            return self.request
        return replace(self.request, restoration=replace(damage, down=None))

    @property
    def told(self) -> str:
        """The settings, in words."""
        return ", ".join(f"{key} {value}" for key, value in self.settings.items())

    def resolved(self, model: ModelConfig) -> tuple[Request, Choice]:
        """The request with its method's usual sampler and steps, and what that asks of the run's model.

        Raises:
            Error: a model that cannot undo this damage, or not so.
        """
        try:
            if isinstance(model.network, ClassifierConfig):
                raise Error("this is a classifier, which makes no pictures; name a run that does.")
            request = self._shown(model)
            request = restoring.usual(model, request, named="sampler" in self.settings)
            return request, choose(model, request)
        except Error as error:
            raise Error(f"--with {self.text}: {error}") from None


def contestants(config: ComparisonConfig) -> list[Contestant]:
    """Everybody that a comparison names.

    Raises:
        Error: an unknown method or setting, one that is no contestant's own, somebody twice.
    """
    found = [parse(text, config) for text in config.contestants]
    for i, one in enumerate(found):
        if any(one.asked == other.asked for other in found[:i]):
            raise Error(f"--with {one.text} is given twice: the answers would be the same; leave one out.")
    return found


def parse(text: str, config: ComparisonConfig) -> Contestant:
    """One contestant. Raises: Error, naming what was typed."""
    head, pairs = _split(text)
    run, method = _method(head, text)
    own = {option for option in (*(f.name for f in fields(Request)), *OWN)} - {*COMMON, "restoration"}
    for key, _ in pairs:
        if key in COMMON or (key not in own and key in {f.name for f in fields(Restoration)}):
            cure = f"{head}:{dict(pairs)[key]}" if key == "method" else f"--{key.replace('_', '-')}"
            raise Error(f"--with {text}: {key} is no setting of one contestant: all are compared alike; say {cure}.")
        if key not in own:
            raise unknown(f"setting of --with {text}:", key, sorted(own))
    try:
        tree, _ = options.parse([f"--{_key(key)}={value}" for key, value in pairs], Request)
        asked = trees.plain(config.restoration(method)) | tree.pop("restoration", {})
        whole = {"seed": config.seed, "n": 1, "batch": config.batch, **tree, "restoration": asked}
        request = trees.build(Request, whole)
    except Error as error:
        raise Error(f"--with {text}: {error}") from None
    if len(request.classes) > 1:
        raise Error(f"--with {text}: one class for all pictures, or none; compare several as contestants of their own.")
    return Contestant(text, run, method, dict(pairs), request)


def names(found: Sequence[Contestant]) -> list[str]:
    """What each is called: by its run and method, those that share both by their settings, then by the whole path."""
    plain = [one.name for one in found]
    named = [_with(name, one) if plain.count(name) > 1 else name for name, one in zip(plain, found)]
    twice = {name for name, count in Counter(named).items() if count > 1}
    paths = [f"{one.run}: {one.method}" if one.method else one.run for one in found]
    return [_with(path, one) if name in twice else name for name, path, one in zip(named, paths, found)]


def _with(name: str, one: Contestant) -> str:
    if not one.told:
        return name
    return f"{name}, {one.told}" if one.method else f"{name}: {one.told}"


def _key(key: str) -> str:
    return f"restoration.{key}" if key in OWN else key


def _split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The head, and keys with values; a comma that no `key=` follows belongs to what stands before it."""
    head, pairs = "", list[tuple[str, str]]()
    for i, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if i and equals and key.isidentifier():
            if key in dict(pairs):
                raise Error(f"--with {text}: {key} is given twice.")
            pairs.append((key, value.strip()))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part.strip()}")
        else:
            head = f"{head},{part}" if i else part
    return head.strip(), pairs


def _method(head: str, text: str) -> tuple[str, str | None]:
    """The run and the method of a head; a path may hold colons of its own."""
    run, colon, method = head.rpartition(":")
    if not colon or (Path(head).exists() and method not in METHODS):
        run, named = head, None
    elif method not in METHODS:
        raise unknown(f"method of --with {text}:", method, METHODS)
    else:
        named = method
    if not run:
        raise Error(f"--with {text!r} names no run: RUN, RUN:METHOD or RUN:METHOD,key=value, as runs/photos:ddnm.")
    return run, named


def _folder(run: str) -> str:
    """A run's own name; a checkpoint's with its step."""
    path = Path(run)
    if path.parent.name == CHECKPOINTS:
        return f"{path.parent.parent.resolve().name} {path.name}"
    return path.name or path.resolve().name
