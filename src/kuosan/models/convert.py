"""`convert` as a job: a Stable Diffusion checkpoint from a single file to a diffusers folder, or back.

Every tensor keeps its numbers and its type, and what the other layout has no place for goes along, so that the way back
gives the same bytes:

    FOLDER/single_file/header.json          the single file's own header: names, their order, metadata
    FOLDER/single_file/extras.safetensors   its tensors that no part has: averages, buffers, marks
    kuosan_folder, in a file's header       the folder's configurations as they were, and the names of its tensors

A file that comes from a folder gets its kind written down (modelspec 1.0.1, and for SDXL the marker tensors), a folder
that comes from a file its scheduler_config.json. Nothing is written over: what is there already is an `Error`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kuosan.errors import Error, shown
from kuosan.events import Event, Finished, Progress, Wrote

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kuosan.models.open import Checkpoint, StoredTensor
    from kuosan.storage.tensors import TensorPlace

SINGLE = ".safetensors"
BESIDE = "single_file"  # the folder of what a single file had beside its parts
RECORD = "kuosan_folder"  # the metadata of what a folder had beside its tensors
_TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class ConvertJob:
    """A checkpoint in another layout, with every number that it has."""

    source: Path  # a .safetensors file of Stable Diffusion, or a diffusers folder
    out: Path  # what is written: NAME.safetensors is a single file, another name a folder; it must not be there yet
    precision: Literal["keep", "fp16", "bf16", "fp32"] = "keep"  # of the stored weights; keep: each as it is
    prediction: Literal["eps", "v"] | None = None  # what it predicts, where no mark of it says so
    variant: str | None = None  # of a folder's files: fp16
    allow_pickle: bool = False  # take plain tensors out of a .ckpt, .bin or .pt, in a process of its own with limits

    def __post_init__(self) -> None:
        _refuse_existing(self.out)


@dataclass(frozen=True)
class ConvertPlan:
    """An opened checkpoint, and what it becomes."""

    job: ConvertJob
    checkpoint: Checkpoint
    single: bool  # whether a single file is written
    notes: tuple[str, ...] = ()
    scratch: TemporaryDirectory[str] | None = None  # of what was taken out of a pickle, gone with the plan

    @property
    def lines(self) -> tuple[str, ...]:
        """What was found, and what is written."""
        to = "a single file" if self.single else "a diffusers folder"
        return (*self.checkpoint.lines(), f"to {self.job.out}: {to}, {self.job.precision} precision")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before."""
        return self.notes


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    nbytes: int
    tensors: int


class _Written(NamedTuple):
    """A tensor to write: its place, and what it is made of."""

    place: TensorPlace
    pieces: tuple[StoredTensor, ...]


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise Error(f"{out} is there already, and nothing is ever written over: give another name.")


def plan_convert(job: ConvertJob) -> ConvertPlan:
    """Look at the checkpoint and refuse what cannot become the other. Raises: Error."""
    from kuosan.models.open import describe
    from kuosan.models.prediction import undecided

    if job.allow_pickle:
        scratch = _scratch(job)
        try:
            plain = _unpickled(job, Path(scratch.name))
            plan = plan_convert(replace(job, source=plain, allow_pickle=False))
        except BaseException:
            scratch.cleanup()
            raise
        return replace(plan, job=job, scratch=scratch)
    found = describe(job.source, prediction=job.prediction, variant=job.variant)
    if found.kind is None:
        raise Error(f"{job.source} is {found.title}; what is converted is Stable Diffusion 1, 2 and XL.")
    single = job.out.suffix == SINGLE
    if found.kind.prediction is None:
        raise undecided(str(job.source))
    if job.precision == "keep" and (scaled := [name for name, part in found.parts.items() if part.scaled]):
        raise Error(
            f"{job.source}: its {scaled[0]} is of float8 with scales, which other layouts have no place for: give "
            f"--precision bf16 (or fp16, fp32), in which each weight is multiplied by its scale."
        )
    notes = []
    if not single and found.layout == "diffusers folder":
        raise Error(f"{job.source} is a diffusers folder already: give {job.out}{SINGLE} for a single file.")
    if single and any(title.startswith("a folder") for title in found.extras):
        notes.append("a single file has no safety checker: that folder stays behind")
    return ConvertPlan(job, found, single, tuple(notes))


def _scratch(job: ConvertJob) -> TemporaryDirectory[str]:
    """A folder beside what is written, for what is taken out of a pickle. Raises: Error: nothing is pickled there."""
    from kuosan.storage import tensors as weights
    from kuosan.storage.files import explained

    if job.source.is_dir() or weights.kind(job.source) == "safetensors":
        raise Error(f"--allow-pickle has no effect for {job.source}, which is no pickled file: leave it out.")
    with explained(job.out.parent):
        job.out.parent.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".kuosan-unpickled-", dir=job.out.parent)


def _unpickled(job: ConvertJob, scratch: Path) -> Path:
    """The plain tensors of a pickled file as a safetensors file. Raises: Error."""
    from kuosan.storage.unpickle import unpickle

    plain = scratch / (job.source.stem + SINGLE)
    unpickle(job.source, plain)
    for suffix in (".yaml", ".yml"):  # what lies beside it says what it predicts
        if (beside := job.source.with_suffix(suffix)).is_file():
            plain.with_suffix(suffix).write_bytes(beside.read_bytes())
    return plain


def run_convert(plan: ConvertPlan) -> Iterator[Event]:
    """Write it, whole or not at all. Raises: Error: it is there meanwhile, no room, the disk fails."""
    try:
        yield from _run(plan)
    finally:
        if plan.scratch is not None:
            plan.scratch.cleanup()


def _run(plan: ConvertPlan) -> Iterator[Event]:
    from kuosan.storage import files

    heads = plan.checkpoint.heads.values()
    total = sum(max((place.end for place in head.places.values()), default=0) for head in heads) + (8 << 20)
    factor = 4 if plan.job.precision == "fp32" else 1
    count = 0
    if plan.single:
        with files.staged_file(plan.job.out, factor * total) as partial:
            for done in _write_single(plan, partial):
                count += 1
                yield Progress("convert", done, total)
    else:
        with files.staged(plan.job.out, factor * total, new=True) as staging:
            for done in _write_folder(plan, staging):
                count += 1
                yield Progress("convert", done, total)
    yield Wrote(plan.job.out)
    out = plan.job.out
    nbytes = sum(path.stat().st_size for path in ([out] if plan.single else out.rglob("*")) if path.is_file())
    yield Finished(Converted(out, nbytes, count))


def _dtype(stored: torch.dtype, precision: str) -> torch.dtype:
    """The type that a stored tensor gets."""
    import torch

    if precision == "keep" or not stored.is_floating_point:
        return stored
    found: torch.dtype = getattr(torch, _TYPES[precision])
    return found


def _place(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorPlace:
    from kuosan.storage.tensors import TensorPlace

    return TensorPlace(name, dtype, shape, 0, 0)


def _written(path: Path, entries: list[_Written], metadata: Mapping[str, str], text: bytes = b"") -> Iterator[int]:
    """Write a file of these tensors. Yields bytes."""
    from kuosan.models.parts import TensorReader
    from kuosan.storage import tensors as weights

    by_name = {entry.place.name: entry for entry in entries}
    with TensorReader() as reader:

        def tensor_of(name: str) -> Tensor:
            return _joined(reader, by_name[name])

        yield from weights.write_parts(path, [entry.place for entry in entries], tensor_of, metadata, text)


def _joined(reader: Any, entry: _Written) -> Tensor:
    """The tensor of one or several pieces, in the shape and type that is written."""
    import torch

    parts = [reader.read(piece, entry.place.dtype) for piece in entry.pieces]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    found: Tensor = whole.reshape(entry.place.shape)
    return found


def _write_folder(plan: ConvertPlan, staging: Path) -> Iterator[int]:
    """A single file as a folder."""
    found, precision = plan.checkpoint, plan.job.precision
    (path, head), done = next(iter(found.heads.items())), 0
    record = _record(head.metadata)
    keys = record.get("keys", {})
    beside = {name: own for part in record.get("extras", {}).values() for name, own in part.items()}
    for name, part in found.parts.items():
        folder = staging / name
        folder.mkdir()
        entries = []
        for own, stored in part.tensors.items():
            place = _place(keys.get(name, {}).get(own, own), _dtype(stored.dtype, precision), stored.shape)
            entries.append(_Written(place, (stored,)))
        for own, key in record.get("extras", {}).get(name, {}).items():
            if key in head.places:
                entries.append(_Written(_place(own, *head.places[key][1:3]), (_whole(path, head.places[key]),)))
        stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        metadata = record.get("metadata", {}).get(name, {"format": "pt"})
        for size in _written(folder / f"{stem}{SINGLE}", entries, metadata):
            done += size
            yield done
    used = {stored.key for part in found.parts.values() for stored in part.tensors.values()}
    scales = {stored.scale for part in found.parts.values() for stored in part.tensors.values()}
    added = set(record.get("added", ())) | set(beside.values())
    rest = [place for name, place in head.places.items() if name not in used | scales | added]
    if rest or not record:
        (staging / BESIDE).mkdir()
        (staging / BESIDE / "header.json").write_bytes(head.text)
        for size in _written(
            staging / BESIDE / "extras.safetensors",
            [_Written(_place(each.name, each.dtype, each.shape), (_whole(path, each),)) for each in rest],
            {"of": path.name},
        ):
            done += size
            yield done
    for name, text in _configurations(found, record).items():
        file = staging / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode())


def _whole(path: Path, place: TensorPlace) -> StoredTensor:
    """A tensor as it lies."""
    from kuosan.convert.sgm import Piece
    from kuosan.models.open import StoredTensor

    return StoredTensor(path, place.name, place.shape, place.dtype, Piece(place.name))


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a folder had beside its tensors, of a single file that was made of one. Raises: Error: damaged."""
    if RECORD not in metadata:
        return {}
    try:
        record = json.loads(metadata[RECORD])
        files = record["files"]
        fine = all(isinstance(name, str) and isinstance(text, str) for name, text in files.items())
        fine = fine and all(len(Path(name).parts) <= 2 and ".." not in Path(name).parts for name in files)
        fine = fine and not any(Path(name).is_absolute() or not name.endswith((".json", ".txt")) for name in files)
        fine = fine and all("/" not in name and ".." not in name for name in record["keys"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise Error(f"{RECORD} in its header is damaged: remove it, or convert the folder again.")
    return dict(record)


def _configurations(found: Checkpoint, record: Mapping[str, Any]) -> dict[str, str]:
    """The folder's configurations by name: as they were read from one, else by the file's own tensors and marks."""
    if record:
        return dict(record["files"])
    kind = found.kind
    assert kind is not None
    sheets: dict[str, Any] = {f"{name}/config.json": part.config for name, part in found.parts.items()}
    xl = found.family == "sdxl"
    scheduler = {
        "_class_name": "EulerDiscreteScheduler" if xl else "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        **found.scheduler,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[kind.prediction or "eps"],
        "steps_offset": 1,
        "timestep_spacing": "trailing" if kind.zero_snr else "leading",
        **({} if xl else {"clip_sample": False, "set_alpha_to_one": False}),
        **({"rescale_betas_zero_snr": True} if kind.zero_snr else {}),
    }
    sheets["scheduler/scheduler_config.json"] = scheduler
    name = f"StableDiffusion{'XL' * xl}{'Inpaint' * found.inpainting}Pipeline"
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.30.0"}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    for part, config in found.parts.items():
        if part.startswith("text_encoder"):
            index[part] = ["transformers", config.config["architectures"][0]]
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        else:
            index[part] = ["diffusers", config.config["_class_name"]]
    if not xl:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
    sheets["model_index.json"] = index
    return {name: json.dumps(sheet, indent=2) + "\n" for name, sheet in sheets.items()}


def _write_single(plan: ConvertPlan, path: Path) -> Iterator[int]:
    """A folder as a single file, or a single file in another precision."""
    found, precision = plan.checkpoint, plan.job.precision
    entries, metadata, text = _of_single(plan) if found.layout == "single file" else _of_folder(plan)
    own = {(each.path, each.key) for part in found.parts.values() for each in part.tensors.values()}
    for i, entry in enumerate(entries):  # what no part has stays as it is
        wanted = _dtype(entry.place.dtype, precision)
        if wanted != entry.place.dtype and all((each.path, each.key) in own for each in entry.pieces):
            entries[i], text = entry._replace(place=entry.place._replace(dtype=wanted)), b""
    done = 0
    for size in _written(path, entries, metadata, text):
        done += size
        yield done


_Entries = tuple[list[_Written], Mapping[str, str], bytes]


def _of_single(plan: ConvertPlan) -> _Entries:
    """The tensors of a single file as they lie, each weight with its scale."""
    path, head = next(iter(plan.checkpoint.heads.items()))
    scales = {s.key: s.scale for part in plan.checkpoint.parts.values() for s in part.tensors.values() if s.scale}
    marks = ("scaled_fp8",) if scales else ()
    kept = [p for n, p in head.places.items() if n not in scales.values() and n.rpartition(".")[2] not in marks]
    entries = [
        _Written(_place(p.name, p.dtype, p.shape), (_whole(path, p)._replace(scale=scales.get(p.name)),)) for p in kept
    ]
    return entries, head.metadata, head.text if len(kept) == len(head.places) else b""


def _of_folder(plan: ConvertPlan) -> _Entries:
    """The tensors of a single file, of a folder's parts."""
    found = plan.checkpoint
    pieces = {(name, own): stored for name, part in found.parts.items() for own, stored in part.tensors.items()}
    recorded = _recorded(found, pieces)
    return _from_parts(found, pieces) if recorded is None else recorded


def _recorded(found: Checkpoint, pieces: Mapping[tuple[str, str], StoredTensor]) -> _Entries | None:
    """The file that the folder was made of, tensor by tensor; None where none is recorded, or the parts are others."""
    from kuosan.convert import sgm
    from kuosan.models.prediction import recognised
    from kuosan.regular import read_regular
    from kuosan.storage import tensors as weights
    from kuosan.storage.files import explained

    folder = found.path / BESIDE
    if not (folder / "header.json").is_file() or not (folder / "extras.safetensors").is_file():
        return None
    with explained(folder / "header.json", doing="read"):
        text = read_regular(folder / "header.json", weights.HEADER_LIMIT)
    extras = weights.read_header(folder / "extras.safetensors")
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
        places = {n: _place(n, weights.DTYPES[e["dtype"]], tuple(e["shape"])) for n, e in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Error(f"{folder / 'header.json'} is damaged: delete {folder} to write the file without it.") from None
    stems = sgm.PREFIXES[found.family]
    entries = {name: _Written(places[name], (_whole(folder / "extras.safetensors", extras[name]),)) for name in extras}
    for part, stem in stems.items():
        names = [name for name in places if name.startswith(stem) and name not in extras]
        for name, own in sgm.to_diffusers(found.family, part, [n[len(stem) :] for n in names]).items():
            stored = tuple(pieces[part, p.name] for p in own if (part, p.name) in pieces)
            stored = tuple(_turned(each) if piece.transposed else each for each, piece in zip(stored, own))
            entries[stem + name] = _Written(places[stem + name], stored)
    used = [stored.key for entry in entries.values() for stored in entry.pieces]
    same = entries.keys() == places.keys() and len(used) == len(pieces) + len(extras)
    for entry in entries.values():
        count = sum(math.prod(stored.shape) for stored in entry.pieces)
        same = same and count == math.prod(entry.place.shape)
        same = same and all(stored.dtype == entry.place.dtype for stored in entry.pieces)
    kind = recognised(found.family, places, metadata)
    assert found.kind is not None
    same = same and kind.prediction in (None, found.kind.prediction)
    return ([entries[name] for name in places], metadata, text) if same else None


def _turned(stored: StoredTensor) -> StoredTensor:
    """A tensor transposed, as OpenCLIP has its projection."""
    return stored._replace(shape=stored.shape[::-1], piece=stored.piece._replace(transposed=True))


def _from_parts(found: Checkpoint, pieces: Mapping[tuple[str, str], StoredTensor]) -> _Entries:
    """A file of a folder that came from none."""
    import torch

    from kuosan.convert import families, sgm
    from kuosan.storage import tensors as weights

    grouped: dict[str, dict[int, tuple[str, StoredTensor]]] = {}
    for part in found.parts:
        names = [name for own, name in pieces if own == part]
        for name, (key, nth) in sgm.to_single(found.family, part, names).items():
            grouped.setdefault(key, {})[nth] = (part, pieces[part, name])
    entries = []
    for key, parts in grouped.items():
        stored = [parts[nth][1] for nth in sorted(parts)]
        part, first = parts[min(parts)]
        if len({each.dtype for each in stored}) > 1:
            raise Error(f"{first.path}: q, k and v of {shown(key)} are of different types: give --precision.")
        shape = (sum(each.shape[0] for each in stored), *first.shape[1:]) if len(stored) > 1 else first.shape
        if key.endswith("text_projection"):
            shape = shape[::-1]
            stored = [_turned(first)]
        if part == "vae" and ".mid.attn_1." in key and key.endswith(".weight") and len(shape) == 2:
            shape = (*shape, 1, 1)
        entries.append(_Written(_place(key, first.dtype, shape), tuple(stored)))
    record = _folder_record(found, entries)
    path, kind = found.path, found.kind
    assert kind is not None
    said = families.modelspec(path.name, found.family, found.inpainting, kind.prediction == "v", kind.zero_snr)
    marks = [("v_pred", kind.prediction == "v"), ("ztsnr", kind.zero_snr)] if found.family == "sdxl" else []
    for name, there in marks:
        if there:
            place = weights.TensorPlace(name, torch.float32, (0,), 0, 0)
            entries.append(_Written(place, (_whole(path, place),)))
            record["added"].append(name)
    return entries, {"format": "pt", **said, RECORD: json.dumps(record)}, b""


def _folder_record(found: Checkpoint, entries: list[_Written]) -> dict[str, Any]:
    """What a folder has beside its tensors; extras of its files become entries."""
    from kuosan.convert import sgm

    files = {}
    for path in sorted(found.path.rglob("*.json")):
        name = path.relative_to(found.path).as_posix()
        small = name.count("/") <= 1 and path.stat().st_size < 1 << 16
        owned = name.count("/") == 0 or name.partition("/")[0] in (
            *found.parts,
            "scheduler",
            "tokenizer",
            "tokenizer_2",
        )
        if small and owned and path.name != "manifest.json" and ".index." not in path.name:
            files[name] = path.read_text(encoding="utf-8")
    keys: dict[str, dict[str, str]] = {}
    extras: dict[str, dict[str, str]] = {}
    metadata: dict[str, dict[str, str]] = {}
    for name, part in found.parts.items():
        keys[name] = {own: stored.key for own, stored in part.tensors.items() if own != stored.key}
        used = {stored.key for stored in part.tensors.values()}
        stem = sgm.PREFIXES[found.family][name]
        for path in part.files:
            metadata[name] = found.heads[path].metadata
            for place in found.heads[path].places.values():
                if place.name not in used:
                    extras.setdefault(name, {})[place.name] = f"{stem}{place.name}"
                    own = _place(f"{stem}{place.name}", place.dtype, place.shape)
                    entries.append(_Written(own, (_whole(path, place),)))
    return {"files": files, "keys": keys, "extras": extras, "metadata": metadata, "added": []}
