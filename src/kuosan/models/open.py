"""What a path holds, from headers and configurations alone: `describe(path) -> Checkpoint`. No weight is read.

A single `.safetensors` file of Stable Diffusion 1, 2 or XL; a diffusers folder of one (in shards, in its `fp16`
variant, its CLIP with `text_model.` or without), or of a `UNet2DModel` or an `AutoencoderKL`; a run or an exported
model of kuosan's own. Whatever it is, a `Checkpoint` has parts with their configurations, and each part its tensors by
the names that diffusers and transformers have for them, with the place where each lies.

Every tensor is accounted for: a known extra is counted (`convert/families.py`), any other that is unknown or missing is
an `Error` that names it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from kuosan.convert import families, sgm, shapes
from kuosan.convert.diffusers import modern
from kuosan.errors import Error, shown
from kuosan.models.prediction import Kind, Prediction, recognised, schedule_of, sheet_of
from kuosan.regular import SMALL, open_regular, read_regular
from kuosan.storage import tensors as weights
from kuosan.storage.files import explained
from kuosan.storage.tensors import FileHead, TensorPlace

Layout = Literal["single file", "diffusers folder", "run", "exported model"]
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # of files of weights; of texts, `model`
MODEL_INDEX = "model_index.json"
MARKERS = ("v_pred", "ztsnr")  # empty tensors that say what a network predicts
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


class StoredTensor(NamedTuple):
    """A tensor of a part, and where it lies: in a file under `key`, whole, or one of several stacked there."""

    path: Path
    key: str
    shape: tuple[int, ...]  # as the part has it
    dtype: torch.dtype  # as it is stored
    piece: sgm.Piece
    scale: str | None = None  # of a float8 tensor: the key of what it is multiplied by


@dataclass(frozen=True)
class Part:
    """A network of a model: its configuration and its tensors, by the names that diffusers and transformers have."""

    name: str  # unet, vae, text_encoder, text_encoder_2
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    folder: Path | None = None  # of a diffusers folder

    @property
    def files(self) -> tuple[Path, ...]:
        """Where its tensors lie."""
        return tuple(dict.fromkeys(each.path for each in self.tensors.values()))

    @property
    def scaled(self) -> bool:
        """Whether it is of float8 numbers that are multiplied by scales."""
        return any(each.scale is not None for each in self.tensors.values())


@dataclass(frozen=True)
class Checkpoint:
    """What a path holds."""

    path: Path
    layout: Layout
    family: str  # sd1, sd2, sdxl; unet2d, autoencoder; own
    parts: Mapping[str, Part]
    kind: Kind | None = None  # of Stable Diffusion: what it predicts, and why it is taken to
    inpainting: bool = False  # 9 channels: latents, a mask, and the latents of what is known
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # what is said of the noise, in scheduler_config's words
    extras: Mapping[str, int] = field(default_factory=dict)  # tensors that nothing here uses: what they are, how many
    heads: Mapping[Path, FileHead] = field(default_factory=dict)  # of every file
    index: Mapping[str, Any] = field(default_factory=dict)  # model_index.json

    @property
    def title(self) -> str:
        """What it is, for a person."""
        own = {"unet2d": "a UNet2DModel", "autoencoder": "an AutoencoderKL", "own": "a model of kuosan"}
        name = own.get(self.family) or families.TITLES[self.family]
        return name + (" inpainting" if self.inpainting else "")

    def lines(self) -> list[str]:
        """What was found, for a person: the family, the kind with its reason, and what is passed over."""
        found = [f"{self.path}: {self.title}, {self.layout}"]
        found += self.kind.lines() if self.kind else []
        found += [f"passed over: {count:,} of {title}" for title, count in self.extras.items()]
        return found


def describe(
    path: str | Path,
    *,
    prediction: Prediction | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """What a file or a folder holds.

    Args:
        prediction: what it predicts, where a person says so; else its marks do.
        variant: of a diffusers folder's files, as `fp16`; None: the plain ones, or where there are none, `fp16`.

    Raises:
        Error: another family, numbers that are packed otherwise than known, a tensor that is unknown, missing or of
            another shape, a damaged file; each is named.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, prediction, variant)
    if variant is not None:
        raise Error(f"variant = {variant!r} has no effect for {path}: only folders have variants; leave it out.")
    return _single(path, prediction)


def _single(path: Path, asked: Prediction | None) -> Checkpoint:
    _check_file(path)
    head = weights.read_head(path)
    where = str(path)
    families.refuse_foreign(where, head.places, head.metadata)
    _check_schemes(path, head)
    sizes = {name: place.shape for name, place in head.places.items()}
    family = families.of_single(where, sizes)
    scales = _scales(where, head.places)
    parts: dict[str, Part] = {}
    extras: Counter[str] = Counter()
    unknown: list[str] = []
    grouped: dict[str, list[str]] = {part: [] for part in sgm.PREFIXES[family]}
    for name in head.places:
        part = next((part for part, stem in sgm.PREFIXES[family].items() if name.startswith(stem)), None)
        if name in scales.values():
            extras["scales of float8 weights"] += 1
        elif name in MARKERS:
            continue
        elif part is None or families.known_extra(name) is not None:
            unknown += [] if _counted(extras, name) else [name]
        else:
            grouped[part].append(name)
    for part, names in grouped.items():
        stem = sgm.PREFIXES[family][part]
        pieces = sgm.to_diffusers(family, part, [name[len(stem) :] for name in names])
        found: dict[str, StoredTensor] = {}
        for name in names:
            own = pieces[name[len(stem) :]]
            if not own:
                unknown += [] if _counted(extras, name) else [name]
            for piece in own:
                if piece.name in found:
                    raise Error(f"{where}: {shown(name)} and {shown(found[piece.name].key)} are one tensor twice.")
                found[piece.name] = _stored(path, head.places[name], part, piece, scales.get(name))
        own_shapes = {name: each.shape for name, each in found.items()}
        config = _config(part, own_shapes, family, f"{where} ({stem}*)")
        parts[part] = _complete(Part(part, config, found), where, unknown, family)
    scheduler = schedule_of(sheet := sheet_of(path))
    kind = recognised(family, head.places, head.metadata, sheet, None, asked)
    return _checkpoint(path, "single file", family, parts, kind, scheduler, extras, {path: head}, {})


def _counted(extras: Counter[str], name: str) -> bool:
    title = families.known_extra(name)
    if title is not None:
        extras[title] += 1
    return title is not None


def _scales(where: str, names: Iterable[str]) -> dict[str, str]:
    """{float8 weight: its scale}. Raises: Error for a scale without its weight."""
    names = set(names)
    found: dict[str, str] = {}
    for name in sorted(names):
        for suffix in families.SCALES:
            if name.endswith(suffix):
                weight = name.removesuffix(suffix) + ".weight"
                if weight not in names or weight in found:
                    raise Error(f"{where}: {shown(name)} is a scale, and there is no one weight {shown(weight)} of it.")
                found[weight] = name
    return found


def _stored(path: Path, place: TensorPlace, part: str, piece: sgm.Piece, scale: str | None) -> StoredTensor:
    """A tensor of a part, of a tensor of a file."""
    shape = place.shape
    if piece.of > 1:
        if not shape or shape[0] % piece.of:
            raise Error(f"{path}: {shown(place.name)} has the shape {shown(shape)}: q, k and v need three equal parts.")
        shape = (shape[0] // piece.of, *shape[1:])
    if piece.transposed:
        shape = shape[::-1]
    if part == "vae" and sgm.LINEAR_IN_VAE.search(piece.name) and len(shape) == 4 and shape[2:] == (1, 1):
        shape = shape[:2]
    if scale is not None and place.dtype not in FLOAT8:
        raise Error(f"{path}: {shown(scale)} is a scale of {shown(place.name)}, which is no float8 tensor.")
    if not place.dtype.is_floating_point:
        raise Error(
            f"{path}: {shown(place.name)} is of {str(place.dtype).removeprefix('torch.')}, which are packed numbers or "
            f"none of a network; read are floats, and float8 with or without scales."
        )
    return StoredTensor(path, place.name, shape, place.dtype, piece, scale)


def _config(part: str, own: shapes.Shapes, family: families.Family, where: str) -> dict[str, Any]:
    if part == "unet":
        return shapes.unet_config(own, family, where)
    if part == "vae":
        return shapes.vae_config(own, family, where)
    return shapes.clip_config(own, open_clip=family == "sd2" or part == "text_encoder_2", where=where)


def _complete(part: Part, where: str, unknown: Iterable[str], family: str) -> Part:
    """The part, once its tensors are exactly its configuration's. Raises: Error that names the first that are not."""
    place = f"{where} ({part.name})"
    try:
        if part.name == "unet":
            wanted = shapes.unet_shapes(part.config, place)
        elif part.name == "vae":
            wanted = shapes.vae_shapes(part.config)
        else:
            projected = "text_projection.weight" in part.tensors or part.name == "text_encoder_2"
            wanted = shapes.clip_shapes(part.config, projected)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Error(f"{place}: its configuration is damaged or of another network ({shown(str(error))}).") from None
    wrong = [f"{shown(name)} is unknown" for name in unknown]
    wrong += [f"{shown(each.key)} is unknown" for name, each in part.tensors.items() if name not in wanted]
    wrong += [f"{_spelled(part, name, family)} is missing" for name in wanted if name not in part.tensors]
    wrong += [
        f"{shown(each.key)} has the shape {shown(each.shape)}, not {shown(wanted[name])}"
        for name, each in part.tensors.items()
        if name in wanted and each.shape != wanted[name]
    ]
    if wrong:
        more = f", and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise Error(f"{place}: not the tensors of {families.TITLES[family]}: {'; '.join(wrong[:3])}{more}.")
    return part


def _spelled(part: Part, name: str, family: str) -> str:
    """A missing tensor by the name that it would have in the file."""
    if part.folder is not None:
        return shown(name)
    return shown(sgm.to_single(family, part.name, [*part.tensors, name])[name][0])


def _check_file(path: Path) -> None:
    """Refuse what is not there, or no safetensors, by what it is. Raises: Error."""
    with explained(path, doing="read"), open_regular(path) as stream:
        magic = stream.read(4)
    if magic == b"GGUF":
        raise Error(f"{path} is a GGUF file, quantised in blocks, which is not opened: use the model in fp16 or fp8.")
    found = weights.kind(path)
    if found not in ("safetensors", "unknown") or (found == "unknown" and path.suffix in _PICKLED):
        raise Error(
            f"{path} is {found if found != 'unknown' else 'no safetensors'}, which may hold code and is not opened "
            f"here: kuosan convert {path.name} {path.stem}.safetensors --allow-pickle takes plain tensors out of it, "
            f"in a process of its own with limits."
        )


def _check_schemes(path: Path, head: FileHead) -> None:
    """Refuse what a file itself says of how it is quantised, where that is no float8. Raises: Error."""
    where = str(path)
    if text := head.metadata.get("_quantization_metadata"):
        try:
            layers = json.loads(text)["layers"]
            for name, scheme in layers.items():
                families.check_scheme(where, name, scheme)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Error(f"{path}: _quantization_metadata in its header cannot be read: it is damaged.") from None
    notes = [name for name in head.places if name.endswith(".comfy_quant")]
    with explained(path, doing="read"), open_regular(path) as stream:
        start = 8 + len(head.text)
        for name in notes:
            place = head.places[name]
            if place.end - place.start > 4096:
                raise Error(
                    f"{path}: {shown(name)} has {place.end - place.start:,} bytes; such a note has 4,096 at most."
                )
            stream.seek(start + place.start)
            try:
                families.check_scheme(where, name, json.loads(stream.read(place.end - place.start)))
            except (ValueError, AttributeError, RecursionError):
                raise Error(f"{path}: {shown(name)} is no JSON: the file is damaged.") from None


def _checkpoint(
    path: Path,
    layout: Layout,
    family: str,
    parts: Mapping[str, Part],
    kind: Kind,
    scheduler: Mapping[str, Any],
    extras: Counter[str],
    heads: Mapping[Path, FileHead],
    index: Mapping[str, Any],
) -> Checkpoint:
    """The checkpoint, once its parts fit each other. Raises: Error."""
    unet = parts["unet"].config
    full = {**shapes.UNET_DEFAULTS, **unet}
    inpainting = families.check_channels(str(path), full["in_channels"], full["out_channels"])
    texts = [part for name, part in parts.items() if name.startswith("text_encoder")]
    width = sum(part.config["hidden_size"] for part in texts)
    if full["cross_attention_dim"] != width:
        raise Error(
            f"{path}: the U-Net attends to {full['cross_attention_dim']} channels, and its text network has {width}: "
            f"they do not belong together."
        )
    if family == "sdxl":
        pooled = parts["text_encoder_2"].config["projection_dim"]
        wanted = pooled + 6 * unet.get("addition_time_embed_dim", 256)
        if (found := full["projection_class_embeddings_input_dim"]) != wanted:
            raise Error(
                f"{path}: the U-Net's vector has {found} channels, and a pooled "
                f"text with six sizes {wanted}: they do not belong together."
            )
    return Checkpoint(path, layout, family, parts, kind, inpainting, scheduler, dict(extras), heads, index)


def _folder(path: Path, asked: Prediction | None, variant: str | None) -> Checkpoint:
    if (path / MODEL_INDEX).exists():
        return _pipeline(path, asked, variant)
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        name = config.get("_class_name")
        family = {"UNet2DModel": "unet2d", "AutoencoderKL": "autoencoder"}.get(str(name))
        if family is None:
            raise families.foreign(str(path), f"a {shown(name or config.get('model_type'))}", "its config.json")
        part, heads, _ = _component(path, "unet" if family == "unet2d" else "vae", variant, config)
        return Checkpoint(path, "diffusers folder", family, {part.name: part}, heads=heads)
    from kuosan.storage import checkpoint, manifest

    if checkpoint.checkpoints(path) or (path / manifest.NAME).is_file():
        layout: Layout = "exported model" if (path / checkpoint.EXPORTED).is_file() else "run"
        return Checkpoint(path, layout, "own", {})
    parts = [name for name in ("unet", "vae", "text_encoder") if (path / name).is_dir()]
    about = f"it has {', '.join(parts)}, and {MODEL_INDEX} is missing" if parts else f"{MODEL_INDEX} is missing"
    raise Error(
        f"{path} holds no model that is known here ({about}): give a .safetensors file, a diffusers folder, a run, or "
        f"an exported model."
    )


def _pipeline(path: Path, asked: Prediction | None, variant: str | None) -> Checkpoint:
    """A folder with model_index.json."""
    index = read_json(path / MODEL_INDEX)
    unet = read_json(path / "unet" / "config.json") if (path / "unet").is_dir() else {}
    if index.get("_class_name") in ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline"):
        part, heads, _ = _component(path / "unet", "unet", variant, unet)
        scheduler = read_json(path / "scheduler" / "scheduler_config.json")
        own = {"unet": part}
        return Checkpoint(path, "diffusers folder", "unet2d", own, None, False, scheduler, {}, heads, index)
    return _stable_diffusion(path, index, unet, asked, variant)


def _stable_diffusion(
    path: Path, index: Mapping[str, Any], unet: Mapping[str, Any], asked: Prediction | None, variant: str | None
) -> Checkpoint:
    family, name = families.of_folder(str(path), index, unet)
    parts: dict[str, Part] = {}
    heads: dict[Path, FileHead] = {}
    extras: Counter[str] = Counter()
    for wanted in sgm.PREFIXES[family]:
        folder = path / wanted
        if not folder.is_dir():
            raise Error(f"{path}: {wanted}/ is missing, which {families.TITLES[family]} needs; copy the folder again.")
        config = read_json(folder / "config.json")
        part, files, passed = _component(folder, wanted, variant, config)
        parts[wanted] = _complete(part, str(path), (), family)
        heads |= files
        extras += passed
    for other in ("safety_checker", "image_encoder"):
        if (path / other).is_dir():
            extras[f"a folder {other}, which is not opened"] += 1
    metadata = next((heads[each].metadata for each in parts["unet"].files), {})
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file) if file.exists() else None
    kind = recognised(family, (), metadata, None, scheduler, asked)
    made = _checkpoint(path, "diffusers folder", family, parts, kind, scheduler or {}, extras, heads, index)
    if families.CLASSES[name][1] and not made.inpainting and name != "StableDiffusionXLInpaintPipeline":
        raise Error(f"{path}: model_index.json names a {name}, and the U-Net takes 4 channels, not 9.")
    return made


def read_json(path: Path) -> dict[str, Any]:
    """A configuration. Raises: Error: missing, damaged, or no mapping."""
    with explained(path, doing="read"):
        content = read_regular(path, 4 * SMALL)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Error(f"{path} is damaged: it is no JSON of names and values.")
    return found


def _component(
    folder: Path, name: str, variant: str | None, config: Mapping[str, Any]
) -> tuple[Part, dict[Path, FileHead], Counter[str]]:
    """A part of a diffusers folder: its tensors, the headers of its files, and what is passed over in them."""
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise families.packed(str(folder), shown(method), "quantization_config in its config.json")
    heads = {file: weights.read_head(file) for file in _weight_files(folder, name, variant)}
    extras: Counter[str] = Counter()
    found: dict[str, StoredTensor] = {}
    for file, head in heads.items():
        families.refuse_foreign(str(file), head.places, {})
        _check_schemes(file, head)
        scales = _scales(str(file), head.places)
        for key, place in head.places.items():
            if key in scales.values():
                extras["scales of float8 weights"] += 1
                continue
            own = _modern(key) if name in ("unet", "vae") else sgm.clip_name(key)
            if own is None or families.known_extra(key) is not None:
                if not _counted(extras, key):
                    own = key  # unknown, and said where all is compared
                else:
                    continue
            if own in found:
                raise Error(f"{file}: {shown(key)} and {shown(found[own].key)} are one tensor twice.")
            found[own] = _stored(file, place, name, sgm.Piece(own), scales.get(key))
    return Part(name, config, found, folder), heads, extras


def _modern(name: str) -> str:
    """A tensor by the name that diffusers has for it now."""
    return next(iter(modern({name: None})))  # type: ignore[dict-item]


def _weight_files(folder: Path, name: str, variant: str | None) -> list[Path]:
    """The files of a part's weights: one, or its shards. Raises: Error: none of them is there, or one is missing."""
    stem = STEMS.get(name, "model")
    for each in [variant] if variant is not None else [None, "fp16"]:
        suffix = f".{each}" if each else ""
        whole = folder / f"{stem}{suffix}.safetensors"
        if whole.exists():
            return [whole]
        for index in (f"{stem}.safetensors.index{suffix}.json", f"{stem}{suffix}.safetensors.index.json"):
            if (folder / index).exists():
                return list(_shards(folder / index))
    there = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".json")
    pickled = next((file for file in there if Path(file).suffix in _PICKLED), None)
    if pickled is not None:
        raise Error(
            f"{folder} has its weights in {pickled} alone, which may hold code and is not opened here: kuosan convert "
            f"{pickled} {stem}.safetensors --allow-pickle takes plain tensors out of it."
        )
    asked = f" in its variant {variant}" if variant else ""
    others = f" (it has {', '.join(there[:5])})" if there else ""
    raise Error(f"{folder} has no {stem}.safetensors{asked}, and no index of shards{others}.")


def _shards(index: Path) -> Iterator[Path]:
    """The shards of an index, once each of its tensors is where it says. Raises: Error that names what is not."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise Error(f"{index} lists no tensors (weight_map): it is damaged.")
    for name in sorted({str(file) for file in listed.values()}):
        if name != Path(name).name or name in (".", ".."):
            raise Error(f"{index}: {shown(name)} is no file of this folder; shards lie beside their index.")
        file = index.parent / name
        if not file.is_file():
            raise Error(f"{index.parent}: the shard {name} is missing, which {index.name} lists; copy it again.")
        there = set(weights.read_header(file))
        wanted = {key for key, own in listed.items() if own == name}
        if odd := sorted(there ^ wanted):
            where = f"in {name} and not in {index.name}" if odd[0] in there else f"in {index.name} and not in {name}"
            raise Error(f"{index.parent}: {shown(odd[0])} is {where}.")
        yield file
