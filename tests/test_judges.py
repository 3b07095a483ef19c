"""The arithmetic of the benchmarks that judge text models: places among real images, shares of attributes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kuosan.data.sources import WORDS, load_sheet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return {name: importlib.import_module(name) for name in ("emoji_retrieval", "portrait_attributes", "captioned")}
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_place_counts_roots_that_are_nearer_by_their_nearest_image(benchmarks: dict[str, ModuleType]) -> None:
    gallery = np.eye(4)
    of = ["fox", "cat", "cat", "owl"]
    queries = np.array([[1.0, 0.0, 0.9, 0.0], [0.5, 0.6, 0.7, 0.1], [0.3, 0.2, 0.1, 0.0]])
    at, among = benchmarks["emoji_retrieval"].places(queries, ["fox", "fox", "owl"], gallery, of)
    assert among == 3  # roots, not images
    assert at.tolist() == [1, 2, 3]  # two cats that are nearer than the fox are one root


def test_places_at_random_have_the_chance_that_is_told(benchmarks: dict[str, ModuleType]) -> None:
    module = benchmarks["emoji_retrieval"]
    draw = np.random.default_rng(0)
    roots = [f"root {i}" for i in range(40)]
    queries, gallery = draw.normal(size=(4000, 16)), draw.normal(size=(40, 16))
    asked = [roots[i] for i in draw.integers(0, 40, 4000)]
    told = module.Places(*module.places(queries, asked, gallery, roots)).figures()
    for value, error, chance in told.values():
        assert abs(value - chance) < 4 * error
    assert told["top1"][2] == 1 / 40
    assert told["top5"][2] == 5 / 40
    assert told["mrr"][2] == pytest.approx(sum(1 / i for i in range(1, 41)) / 40)


def test_every_prompt_names_its_style_and_no_root_comes_twice(benchmarks: dict[str, ModuleType]) -> None:
    module = benchmarks["emoji_retrieval"]
    rows = [
        {
            "text": f"thing {i}" + (", noto style" if i % 2 else ""),
            "style": style,
            "root": f"{i // 2}",
            "split": "train",
        }
        for i in range(20)
        for style in ("noto", "3d")
    ]
    rows += [{**row, "root": "held", "split": "test"} for row in rows[:2]]
    real = module.Real(rows, np.zeros((len(rows), 2, 2, 3), np.uint8), np.zeros((len(rows), 3)))
    prompts = module.choose(real, "train", ["noto", "3d"], None, seed=1)
    assert sorted(prompt.root for prompt in prompts) == sorted(map(str, range(10)))
    for i, prompt in enumerate(prompts):
        assert prompt.style == ("noto", "3d")[i % 2] == rows[prompt.image]["style"]
        assert prompt.text.endswith(f", {prompt.style} style")
        assert rows[prompt.image]["root"] == prompt.root
    assert len(module.choose(real, "train", ["noto"], 3, seed=1)) == 3
    assert module.choose(real, "train", ["noto"], 3, seed=2) != module.choose(real, "train", ["noto"], 3, seed=1)


def test_concepts_are_ordered_by_place_then_by_how_far_they_are_ahead(benchmarks: dict[str, ModuleType]) -> None:
    module = benchmarks["emoji_retrieval"]
    roots = ["fox", "cat", "owl"]
    rows = [{"root": root, "style": "noto", "split": "train"} for root in roots]
    rows += [{"root": "cat", "style": "3d", "split": "train"}]  # of another style: never nearer than the own root
    real = module.Real(rows, np.zeros((4, 2, 2, 3), np.uint8), np.array([*np.eye(3), np.eye(3)[0]]))
    prompts = [module.Prompt(root, i, root, "noto") for i, root in enumerate(roots)]
    made = np.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.5], [0.9, 0.5, 0.0]])  # a fox, hardly a cat, an owl like a fox
    order, at = module.order_of(real, prompts, made)
    assert order == [0, 1, 2]
    assert at.tolist() == [1, 1, 3]


def test_only_what_a_caption_names_is_judged(benchmarks: dict[str, ModuleType]) -> None:
    module = benchmarks["portrait_attributes"]
    _, attributes, _ = load_sheet()
    wanted = module.values(attributes[:200])
    names = list(WORDS)
    read = module.compare(wanted, wanted)
    assert read.all_named.value == read.whole.value == read.unsaid.value == 1
    beard = names.index("beard")
    bare = np.flatnonzero(wanted[:, beard] == 0)
    seen = wanted.copy()
    seen[bare, beard] = 1  # a moustache that nobody asked for
    read = module.compare(seen, wanted)
    assert read.all_named.value == read.whole.value == read.each["beard"].value == 1
    silent = (wanted[:, [beard, names.index("rear_hair")]] == 0).sum()
    assert read.unsaid.value == pytest.approx(1 - len(bare) / silent)
    seen = wanted.copy()
    seen[:50, names.index("mouth")] = (seen[:50, names.index("mouth")] + 1) % 5
    read = module.compare(seen, wanted)
    assert read.each["mouth"].value == read.whole.value == pytest.approx(0.75)
    assert read.all_named.value == pytest.approx(1 - 50 / module.named_in(wanted).sum())
    assert 0.75 < read.shut.value < 1  # some of those are sad where smiling was asked for
    assert module.wrong_words(seen[0], wanted[0]).startswith("mouth: ")


def test_the_judge_reads_real_portraits_that_were_held_out(benchmarks: dict[str, ModuleType]) -> None:
    judge = importlib.import_module("portrait_judge")
    images, attributes, held_out = load_sheet()
    seen = judge.read(judge.load(), images[held_out])
    right = seen == judge.values(attributes)[held_out]
    assert right.mean() >= 0.998
    assert right.mean(0).min() >= 0.99
    assert (judge.read(judge.load(), images[:50]) == judge.values(attributes[1:51])).mean() < 0.5  # others' captions


def test_the_error_of_a_share_is_that_of_independent_images(benchmarks: dict[str, ModuleType]) -> None:
    module = benchmarks["portrait_attributes"]
    draw = np.random.default_rng(7)
    right = draw.random((500, 1)) < 0.8
    told = module.share(right, np.ones_like(right))
    assert told.value == right.mean()
    assert told.error == pytest.approx(right.std(ddof=1) / 500**0.5, rel=1e-6)
    tied = np.repeat(right, 10, axis=1)  # ten attributes that are right together: no more is known than by one
    assert module.share(tied, np.ones_like(tied)).error == pytest.approx(told.error, rel=1e-6)
    assert np.isnan(module.share(right, np.zeros_like(right)).value)


def test_a_sheet_has_a_cell_a_prompt(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    from PIL import Image

    red = np.zeros((32, 32, 3), np.uint8) + np.array([250, 0, 0], np.uint8)
    rows = [(f"a prompt of some length, number {i}", [(red, ""), (red, "mouth: sad")]) for i in range(5)]
    benchmarks["captioned"].sheet(tmp_path / "sheet.png", ["real", "made"], rows, across=2)
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    assert (pixels == (250, 0, 0)).all(-1).sum() == 10 * 96 * 96  # enlarged from 32 to 96
    below = pixels[12 + 96 : 12 + 96 + 24].astype(int)
    assert (below[..., 0] > below[..., 1] + 60).any()  # the remark, in red
