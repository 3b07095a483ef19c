"""A model's weights as the beginning of another: what is added changes no output, what cannot be said is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kuosan import Error
from kuosan.models.codec import Latents
from kuosan.models.grow import begun_from, grown, require_growth
from kuosan.models.model import ModelConfig, OwnNetwork, build
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import DiTConfig, UNetConfig
from kuosan.networks.text_config import ByteText
from kuosan.tasks import Generation, Inpainting, SuperResolution
from kuosan.text.tokens import NoText, TextEncoderConfig
from tiny_models import with_weights

SIDE, B = 8, 2
UNET = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(False, True), head_channels=8, groups=8)
BLOCK = replace(UNET, resample="block", time_conditioning="scale_shift")
DIT = DiTConfig(patch=2, width=32, depth=2, heads=2)
NETWORKS = {"unet": UNET, "adm": BLOCK, "dit": DIT}
AB, BCD = (Generation(labels=True, class_names=tuple(names)) for names in ("ab", "bcd"))
BYTES = ByteText(length=8, width=16, depth=1, heads=2)
ENCODER = TextEncoderConfig(encoder="minilm", width=24, weights="1f")
Inputs = dict[str, Tensor]


def model(network: Any, *, channels: int = 3, side: int = SIDE, task: Any = Generation(), text: Any = NoText(),  # noqa: B008 (frozen)
          variance: bool = False, **more: Any) -> ModelConfig:  # fmt: skip
    """A configuration, the network's fields that follow from the rest filled in."""
    follows: dict[str, Any] = {"in_channels": channels, "out_channels": channels * (1 + variance)}
    follows |= {"classes": len(task.class_names), "concat_channels": task.concat_channels(channels)}
    if not isinstance(text, NoText):
        follows |= {"context_width": text.width, "context_vector": True}
        task = replace(task, text=True)
    return ModelConfig((channels, side, side), replace(network, **follows | more), task=task, text=text,
                       learned_variance=variance)  # fmt: skip


def drawn(config: ModelConfig, seed: int = 0) -> Inputs:
    """All that a network of this configuration is given, float64."""
    g = torch.Generator().manual_seed(seed)
    assert config.shape is not None
    C, H, W = config.shape
    found: Inputs = {"x": torch.randn(B, C, H, W, generator=g, dtype=torch.float64)}
    if config.task.class_names:
        found["label"] = torch.tensor([0, len(config.task.class_names)])
    if joined := config.task.concat_channels(C):
        found["concat"] = torch.randn(B, joined, H, W, generator=g, dtype=torch.float64)
    if isinstance(config.text, ByteText):
        found["tokens"] = torch.randint(1, 257, (B, 5, 16), generator=g)
    elif not isinstance(config.text, NoText):
        found["context"] = torch.randn(B, 5, config.text.width, generator=g, dtype=torch.float64)
    return found


def out(network: torch.nn.Module, given: Inputs) -> Tensor:
    """Its output, in float64."""
    with torch.no_grad():
        more = {name: value for name, value in given.items() if name != "x"}
        made: Tensor = network.double()(given["x"], torch.tensor([3.0, 800.0], dtype=torch.float64), **more)
        return made


def begin(old: ModelConfig, new: ModelConfig) -> tuple[torch.nn.Module, torch.nn.Module, list[str]]:
    """A network with no weight at zero, and one of `new` that began with its weights."""
    require_growth(old, new, "runs/old")
    before, after = with_weights(old).network, build(new, seed=3).network
    found = grown(before.state_dict(), after.state_dict(), old, new)
    after.load_state_dict(found.weights)
    return before, after.eval(), found.news


def without(*names: str) -> Callable[[Inputs], Inputs]:
    """Inputs without some."""
    return lambda given: {name: value for name, value in given.items() if name not in names}


def nulled(given: Inputs) -> Inputs:
    """The inputs of a model of classes a, b, for labels of b, c, d: b, then none (c is new: as none)."""
    return given | {"label": torch.tensor([1, 2])}


ADDED = {
    "classes": ({}, {"task": AB}, without("label"), "2 classes, which begin as no class"),
    "captions": ({}, {"text": BYTES}, without("tokens"), "captions, whose attention begins at zero"),
    "an encoder": ({}, {"text": ENCODER}, without("context"), "captions, whose attention begins at zero"),
    "classes and captions": ({}, {"task": AB, "text": BYTES}, without("label", "tokens"), "captions"),
    "captions beside classes": ({"task": AB}, {"task": AB, "text": BYTES}, without("tokens"), "captions"),
    "inpainting": ({}, {"task": Inpainting()}, without("concat"), "task inpainting joins"),
    "super-resolution": ({}, {"task": SuperResolution(noise=5)}, without("concat"), "task super_resolution joins"),
    "no classes": ({"task": AB}, {}, lambda given: given | {"label": torch.tensor([2, 2])}, "no classes"),
    "nothing": ({"task": AB, "text": BYTES}, {"task": AB, "text": BYTES}, lambda given: given, ""),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("what", ADDED)
def test_what_is_added_changes_no_output(name: str, what: str) -> None:
    was, now, shown, words = ADDED[what]
    network = NETWORKS[name]
    more = {"context_attention": "cross"} if name != "dit" and "text" in now and "text" not in was else {}
    old, new = model(network, **was), model(network, **now, **more)
    before, after, news = begin(old, new)
    given = drawn(new)
    torch.testing.assert_close(out(after, given), out(before, shown(given)), rtol=0, atol=1e-9)
    assert words in "; ".join(news) and bool(words) == bool(news)


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_are_known_by_their_names(name: str) -> None:
    old, new = model(NETWORKS[name], task=AB), model(NETWORKS[name], task=BCD)
    before, after, news = begin(old, new)
    given = drawn(new)
    for label, known in ((0, 1), (1, 2), (2, 2), (3, 2)):  # b; c and d, which are new, and none as none
        here, there = (given | {"label": torch.tensor([each, each])} for each in (label, known))
        torch.testing.assert_close(out(after, here), out(before, there), rtol=0, atol=1e-9)
    assert news == ["2 of 3 classes (c, d), which begin at the null label's row"]


COLOURS = {  # channels: of the old, of the new; which image of the new is which of the old; which output is which
    "1 to 3": (1, 3, lambda x: x[:, :1].expand(-1, 3, -1, -1), lambda x: x[:, :1], lambda y: y.expand(-1, 3, -1, -1)),
    "3 to 1": (3, 1, lambda x: x, lambda x: x.expand(-1, 3, -1, -1), lambda y: y.mean(1, keepdim=True)),
    "3 to 4": (3, 4, lambda x: x, lambda x: x[:, :3], lambda y: torch.cat([y, 0 * y[:, :1]], 1)),
    "1 to 4": (1, 4, lambda x: torch.cat([x[:, :1].expand(-1, 3, -1, -1), x[:, 3:]], 1), lambda x: x[:, :1],
               lambda y: torch.cat([y.expand(-1, 3, -1, -1), 0 * y], 1)),
    "4 to 3": (4, 3, lambda x: x, lambda x: torch.cat([x, 0 * x[:, :1]], 1), lambda y: y[:, :3]),
}  # fmt: skip


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("what", COLOURS)
def test_a_grey_image_gives_what_it_gave(name: str, what: str, variance: bool) -> None:
    c, n, here, there, answer = COLOURS[what]
    network = replace(NETWORKS[name], patch=2)
    before, after, news = begin(model(network, channels=c, variance=variance), model(network, channels=n))
    x = drawn(model(network, channels=n))["x"]
    made, wanted = out(after, {"x": here(x)}), out(before, {"x": there(here(x))})
    if what == "4 to 3":  # of an alpha of 0
        made, wanted = out(after, {"x": x}), out(before, {"x": there(x)})
    torch.testing.assert_close(made, answer(wanted[:, :c]), rtol=1e-5, atol=1e-6)  # w/3 in float32
    names = {1: "grey", 3: "RGB", 4: "RGBA"}
    assert f"{names[n]} images for {names[c]}" in news[0]
    assert ("no learned variance" in news) == variance


@pytest.mark.parametrize("name", NETWORKS)
def test_a_learned_variance_begins_at_zero(name: str) -> None:
    before, after, news = begin(model(NETWORKS[name]), model(NETWORKS[name], variance=True))
    given = drawn(model(NETWORKS[name]))
    made = out(after, given)
    torch.testing.assert_close(made[:, :3], out(before, given), rtol=0, atol=1e-9)
    assert not made[:, 3:].any() and news == ["a learned variance, which begins at zero"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("task", [Generation(), Inpainting()], ids=["whole", "inpainting"])
def test_larger_patches_see_an_enlarged_image_as_they_saw_it(name: str, task: Any) -> None:
    def enlarged(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    small = model(replace(NETWORKS[name], patch=2), task=task)
    large = model(replace(NETWORKS[name], patch=4), task=task, side=2 * SIDE)
    given = drawn(small)
    more = {key: enlarged(value) for key, value in given.items()}
    before, after, news = begin(small, large)
    torch.testing.assert_close(out(after, more), enlarged(out(before, given)), rtol=1e-5, atol=1e-6)
    assert "patches of 4 x 4 pixels for 2 x 2, each pixel as 2 x 2 were" in news
    before, after, news = begin(large, small)
    mean = torch.nn.functional.avg_pool2d(out(before, more), 2)
    torch.testing.assert_close(out(after, given), mean, rtol=1e-5, atol=1e-6)
    assert "patches of 2 x 2 pixels for 4 x 4, each pixel as the mean of 2 x 2" in news


def test_another_size_has_the_same_network_and_says_so() -> None:
    for name, words in (
        ("unet", "the same network: 8 cells a side at its coarsest for 4"),
        ("dit", "stretched over 4"),
    ):
        more = {"grid": 4} if name == "dit" else {}
        old, new = model(NETWORKS[name]), model(NETWORKS[name], side=2 * SIDE, **more)
        before, after, news = begin(old, new)
        given = drawn(old)
        torch.testing.assert_close(out(after, given), out(before, given), rtol=0, atol=1e-9)  # also of the old size
        assert words in news[0] and f"{2 * SIDE} x {2 * SIDE} pixels for {SIDE} x {SIDE}" in news[0]


def test_positions_stretch_over_the_grid() -> None:
    from kuosan.networks.dit import positions

    def at(rows: int, columns: int, grid: int) -> Tensor:
        return positions(rows, columns, 8, torch.device("cpu"), torch.float64, grid).view(rows, columns, 8)

    assert torch.equal(at(8, 8, 4)[::2, ::2], at(4, 4, 0)) and torch.equal(at(4, 4, 4), at(4, 4, 0))
    assert torch.equal(at(8, 4, 4)[::2, ::2], at(4, 2, 0))


@pytest.mark.parametrize("network", [UNET, BLOCK, replace(UNET, resample="conv_asymmetric")])
def test_a_level_behind_the_coarsest_is_a_mean_and_back(network: UNetConfig) -> None:
    more = replace(network, multipliers=(1, 2, 2, 2), attention=(False, True, True, False))
    old, new = model(network, side=16), model(more, side=16)
    before, after, news = begin(old, new)
    assert news == ["2 levels behind the coarsest: a mean of 2 x 2 cells and back at first"]
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}

    def watch(where: str) -> Callable[..., None]:
        return lambda module, inputs: seen[where].append(inputs[0])

    for where, net, i in (("before", before, 0), ("after", after, 2)):
        net.encoder.middle[0].register_forward_pre_hook(watch(where))
        net.decoder.levels[i].blocks[0].register_forward_pre_hook(watch(where))
    for net in (before, after):  # a middle that changes nothing: then all that is added is a mean and back
        for block in (net.encoder.middle[0], net.encoder.middle[2]):
            torch.nn.init.zeros_(block.conv2.weight), torch.nn.init.zeros_(block.conv2.bias)
        torch.nn.init.zeros_(net.encoder.middle[1].out.weight), torch.nn.init.zeros_(net.encoder.middle[1].out.bias)
    given = drawn(old)
    out(before, given), out(after, given)
    (coarse, joined), (mean, back) = seen["before"], seen["after"]
    wanted = torch.nn.functional.avg_pool2d(coarse, 4)
    torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-9)
    wanted = wanted.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(back, torch.cat([wanted, joined[:, wanted.shape[1] :]], 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("network", [UNET, BLOCK])
def test_attention_is_added_without_effect(network: UNetConfig) -> None:
    old, new = model(network), model(replace(network, attention=(True, True)))
    before, after, news = begin(old, new)
    given = drawn(old)
    torch.testing.assert_close(out(after, given), out(before, given), rtol=0, atol=1e-9)
    assert news == ["attention at level 1, which begins at zero"]


def test_longer_texts_are_read_as_before() -> None:
    old, new = model(UNET, text=BYTES), model(UNET, text=replace(BYTES, length=16))
    before, after, news = begin(old, new)
    given = drawn(old)
    torch.testing.assert_close(out(after, given), out(before, given), rtol=0, atol=1e-9)
    assert news == ["captions of 15 tokens for 7"]


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_another_encoder_begins_without_effect(name: str) -> None:
    old, new = model(NETWORKS[name], text=BYTES), model(NETWORKS[name], text=ENCODER)
    _, after, news = begin(old, new)
    one, other = drawn(new), drawn(new, seed=1)
    assert torch.equal(out(after, one), out(after, other | {"x": one["x"]}))
    assert news == ["another reading of captions, whose attention begins at zero"]


def test_an_image_joined_is_taken_over_from_task_to_task() -> None:
    old, new = model(UNET, task=SuperResolution(noise=5)), model(UNET, task=Inpainting())
    before, after, _ = begin(old, new)
    given = drawn(new)
    silent = given | {"concat": given["concat"] * torch.tensor([1, 1, 1, 0]).view(1, 4, 1, 1)}
    torch.testing.assert_close(out(after, given), out(before, silent), rtol=0, atol=1e-9)


def test_a_classifier_keeps_the_classes_that_it_knows() -> None:
    network = ClassifierConfig(channels=16, multipliers=(1, 2), attention=(False, True), groups=8, classes=2)
    old = ModelConfig((3, 8, 8), network, task=AB)
    new = ModelConfig((1, 8, 8), replace(network, classes=3, in_channels=1), task=BCD)
    before, after, news = begin(old, new)
    x = drawn(model(UNET, channels=1))["x"]
    made, was = out(after, {"x": x}), out(before, {"x": x.expand(-1, 3, -1, -1)})
    torch.testing.assert_close(made[:, 0], was[:, 1], rtol=1e-5, atol=1e-6)
    assert not made[:, 1:].any() and "2 of 3 classes (c, d), which begin at zero" in news


def test_an_autoencoder_goes_on_in_colour_and_without_its_discriminator() -> None:
    network = AutoencoderConfig(1, latent_channels=2, channels=16, multipliers=(1, 2), blocks=1, groups=8)  # type: ignore[arg-type]
    network = replace(network, kind="autoencoder", in_channels=1, critic_channels=8, critic_layers=1)
    old = ModelConfig((1, 8, 8), network)
    new = ModelConfig((3, 8, 8), replace(network, in_channels=3, critic_channels=0, critic_layers=3))
    before, after, _ = begin(old, new)
    x = drawn(model(UNET, channels=1))["x"].float()
    with torch.no_grad():
        was, made = (net.float().encode(each).mean for net, each in ((before, x), (after, x.expand(-1, 3, -1, -1))))
        torch.testing.assert_close(made, was, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.decode(was)[:, 1:2], before.decode(was), rtol=1e-4, atol=1e-4)


LATENTS = Latents(network=AutoencoderConfig(latent_channels=3))
REFUSED: dict[str, tuple[ModelConfig, ModelConfig, str]] = {
    "width": (model(UNET), model(replace(UNET, channels=32)), "channels 32 against 16"),
    "depth": (model(UNET), model(replace(UNET, blocks=2)), "blocks 2 against 1"),
    "levels": (model(UNET), model(replace(UNET, multipliers=(1, 4))), r"multipliers \(1, 4\) against \(1, 2\)"),
    "attention": (model(UNET), model(replace(UNET, attention=(False, False))), r"attention \(false, false\) against"),
    "kind": (model(UNET), model(DIT), "kind dit against unet"),
    "tokens": (model(DIT), model(replace(DIT, depth=3, heads=4)), "depth 3 against 2; heads 4 against 2"),
    "patch": (model(replace(UNET, patch=2)), model(replace(UNET, patch=3), side=12), "patch 3 against 2"),
    "transformer": (model(UNET), model(UNET, text=BYTES), "context_attention transformer against"),
    "no captions": (model(UNET, text=BYTES), model(UNET), "it reads captions"),
    "skip": (model(UNET, task=SuperResolution(), concat_skip=True), model(UNET), "concat_skip = true"),
    "own": (ModelConfig((3, 8, 8), OwnNetwork(name="Mine")), model(UNET), r"its owner's own \(Mine\), .*kuosan's unet"),
    "channels": (model(UNET, channels=5), model(UNET), "images of 5 channels, not of 3"),
    "latents": (model(UNET, channels=4), replace(model(UNET), codec=LATENTS), "4 channels, not of 3"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_beginning_is_refused_in_our_words(what: str) -> None:
    old, new, words = REFUSED[what]
    with pytest.raises(Error, match=words) as caught:
        require_growth(old, new, "runs/old")
    assert "--init runs/old" in str(caught.value) and "size mismatch" not in str(caught.value)
    assert "leave --init" in str(caught.value)


def test_ones_own_network_must_be_the_same() -> None:
    own = ModelConfig((3, 8, 8), OwnNetwork(name="Mine"))
    one, other = ({"w": torch.zeros(n, 2), "b": torch.zeros(1)} for n in (3, 4))
    assert begun_from(one, one, own, own, "runs/old").weights == one
    with pytest.raises(Error, match=r"w 3x2 there, 4x2 here; c is not there, 1 here"):
        begun_from(one, other | {"c": torch.zeros(1)}, own, own, "runs/old")
