"""Prompts from a request to what the network is told, with networks that hear them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error
from kuosan.evaluate.likelihood import likelihood
from kuosan.models.model import Model, ModelConfig
from kuosan.networks.text import TextTransformer
from kuosan.networks.text_config import ByteText
from kuosan.sample.generate import sample
from kuosan.sample.guidance_models import Guides
from kuosan.sample.inversion import round_trip
from kuosan.sample.plan import choose, refuse_to_itself
from kuosan.sample.recipe import Recipe
from kuosan.sample.request import Request
from kuosan.tasks.task import Generation
from kuosan.text.encoder import count_bytes, read_bytes
from kuosan.text.tokens import TextEncoderConfig
from tiny_models import UNET, with_weights

TEXT = ByteText(length=16, width=16, depth=1, heads=2)


def _model(drop: float = 0.1) -> Model:
    unet = replace(UNET, context_width=16, context_vector=True)
    task = Generation(text=True, drop=drop)
    return with_weights(ModelConfig((3, 8, 8), unet, Discrete(), "v", task=task, text=TEXT))


MODEL = _model()


def _made(prompts: tuple[str, ...], n: int = 1, **options: object) -> torch.Tensor:
    return sample(MODEL, Request(n=n, steps=3, prompts=prompts, **options))  # type: ignore[arg-type]


def test_words_change_the_image_and_prompts_take_turns() -> None:
    fox, cat = _made(("a fox",), seed=4), _made(("a cat",), seed=5)
    assert (fox - _made(("a cat",), seed=4)).abs().max() > 1e-2
    both = _made(("a fox", "a cat"), n=3, seed=4)
    assert torch.allclose(both[:1], fox, atol=1e-4)
    assert torch.allclose(both[1:2], cat, atol=1e-4)
    assert torch.allclose(both[2:], _made(("a fox",), seed=6), atol=1e-4)


def test_no_prompt_is_the_empty_text_and_guidance_one_changes_nothing() -> None:
    nothing = sample(MODEL, Request(n=1, steps=3))
    assert torch.equal(nothing, _made(("(fox:0)",))[:1]) is False  # a text of no weight still has its pieces
    assert torch.equal(_made(("a fox",)), _made(("a fox",), guidance=1.0))
    assert torch.allclose(_made(("a fox",), guidance=0.0), nothing, atol=1e-5)


def test_guidance_goes_from_the_negative_prompt_to_the_prompt() -> None:
    away = _made(("a fox",), guidance=0.0, negative="a cat")
    assert torch.allclose(away, _made(("a cat",)), atol=1e-4)
    assert (_made(("a fox",), guidance=3.0) - _made(("a fox",), guidance=3.0, negative="red")).abs().max() > 1e-3


def test_weight_one_is_the_prompt_itself_and_others_are_not() -> None:
    plain = _made(("a fox",))
    assert torch.equal(plain, _made(("a (fox:1)",)))
    assert torch.equal(plain, _made(("a (fox:1.0)",)))
    heavier, lighter = _made(("a (fox:1.6)",)), _made(("a [fox]",))
    assert not torch.equal(plain, heavier)
    assert not torch.equal(plain, lighter)
    assert torch.equal(_made((r"a \(fox\)",)), _made((r"a \(fox\)",)))


def test_a_batch_is_told_the_same_whatever_stands_beside_it() -> None:
    prompts = ("a fox", "a very long prompt of many words indeed", "cat")
    whole = _made(prompts, n=6, exact=True)
    parts = sample(MODEL, Request(n=6, steps=3, prompts=prompts, exact=True, batch=1))
    assert torch.equal(whole, parts)


def test_a_reference_model_reads_the_prompt_too() -> None:
    other = _model()
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(0.9)
    request = Request(n=1, steps=3, prompts=("a fox",), guidance=2.0, reference="weaker")
    led = sample(MODEL, request, guides=Guides(reference=other))
    assert (led - _made(("a fox",))).abs().max() > 1e-4
    same = sample(MODEL, request, guides=Guides(reference=MODEL))
    assert torch.allclose(same, _made(("a fox",)), atol=1e-4)


def _refused(config: ModelConfig, words: str, **options: object) -> None:
    with pytest.raises(Error, match=words):
        request = Request(n=1, **options)  # type: ignore[arg-type]
        choose(config, request)
        refuse_to_itself(config, request)


def test_prompts_that_cannot_be_are_refused() -> None:
    config = MODEL.config
    _refused(config, "the prompt is empty", prompts=("  ",))
    _refused(config, "the negative is empty", prompts=("a",), guidance=2.0, negative="")
    _refused(config, "131,073 characters", prompts=("a" * 131_073,))
    _refused(config, "16 words and marks, and this model reads 15 at most", prompts=("a " * 16,))
    _refused(config, "leads to a prompt, and none is given", guidance=2.0)
    _refused(config, "from a prompt to itself", prompts=("fox",), guidance=2.0, negative="fox")
    _refused(config, "negative = cat has no effect without guidance", prompts=("fox",), negative="cat")
    _refused(config, "without its partner", prompts=("a (fox",))
    _refused(ModelConfig((3, 8, 8), UNET), "trained without captions", prompts=("fox",))
    never = replace(config, task=Generation(text=True, drop=0.0))
    _refused(never, "makes no image without a prompt")
    _refused(never, "knows no image without its", prompts=("fox",), guidance=2.0)
    choose(never, Request(n=1, prompts=("fox",), guidance=2.0, negative="cat"))


def test_the_recipe_says_prompt_and_negative_first_as_other_tools_read_it() -> None:
    request = Request(n=4, prompts=("a fox", "a\ncat"), guidance=2.0, negative="red")
    recipe = Recipe("run", 1, "0" * 64, request, 1, "cpu", "fp32", (8, 8), 3)
    told = recipe.text()
    assert told["parameters"].startswith("a cat\nNegative prompt: red\nSteps: 3")
    assert json.loads(told["kuosan"])["request"]["prompts"] == ["a fox", "a\ncat"]
    part, row = replace(recipe, request=replace(request, batch=1)).batch_request()
    assert (part.prompts, part.seed, row) == (("a\ncat", "a fox"), 1, 0)


def test_what_tells_a_model_no_captions_refuses_one_that_is_told_them() -> None:
    with pytest.raises(Error, match="inversion of a model conditioned on captions is not built yet"):
        round_trip(MODEL, torch.zeros(1, 3, 8, 8), steps=2)
    with pytest.raises(Error, match="a likelihood of a model conditioned on captions is not built yet"):
        likelihood(MODEL, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_an_encoders_words_go_to_where_the_network_is() -> None:
    class Here:
        device = torch.device("cpu")

        def read(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(prompt), 16), torch.ones(len(prompt), dtype=torch.bool)

        def count_read(self, prompt: str) -> int:
            return len(prompt)

    config = replace(MODEL.config, text=TextEncoderConfig(encoder="here", width=16))
    elsewhere = Model(config, torch.nn.Linear(1, 1, device="meta"), encoder=Here())  # type: ignore[arg-type]
    assert {told.device.type for told in elsewhere.read(["fox", "a"], ["fox", "a"]).values()} == {"meta"}


def test_a_batch_reads_its_own_prompts_alone_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(text: TextTransformer, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(prompt)
        return read_bytes(text, prompt)

    monkeypatch.setattr("kuosan.text.encoder.read_bytes", reading)
    prompts = ("a fox", "a (red:1.2) cat", "bird", "a dog in the snow")
    made = _made(prompts, n=4, batch=1)
    assert read == list(prompts)
    assert torch.allclose(made, _made(prompts, n=4), atol=1e-4)
    assert [count_bytes(prompt) for prompt in prompts] == [len(read_bytes(MODEL.network.text, p)[1]) for p in prompts]
