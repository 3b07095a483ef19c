"""tools/build_starter.py: which images it takes, whom it names, and the way from images to weights in the package."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from kuosan.errors import Error
from kuosan.models import starter
from kuosan.seeds import rng
from kuosan.storage import checkpoint
from scripted import ROOT, load_script

FREE = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0"}
TINY = [
    *["--model.network.channels", "16", "--groups", "8", "--head-channels", "8", "--multipliers", "1,2"],
    *["--attention", "false,true", "--batch", "4", "--preview-every", "0", "--evaluate-every", "0"],
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("build_starter")


def image(seed: int) -> np.ndarray:  # (32, 32, 3)
    return rng(seed, "test/starter").integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_every_set_is_free_neither_share_alike_nor_gpl_and_has_its_credit(script: ModuleType) -> None:
    licences = {each.licence for each in (*script.SETS, *script.build_emoji.STYLES)}
    licences |= {licence for names in script.PHOTOGRAPHS.values() for licence in names.values()}
    assert licences <= FREE
    pages = (ROOT / "LICENSES-DATA.md").read_text(encoding="utf-8").split("\n## ")
    credits = " ".join(next(page for page in pages if page.startswith("Images that the starter")).split())
    for each in script.SETS:
        name, _, version = each.package.rpartition("@")
        for words in (each.title, each.author, f"`{name}` {version}"):
            assert words in credits, words
    for package, names in script.PHOTOGRAPHS.items():
        assert package in credits
        for name in names:
            assert re.sub("_by_.*", "", name).replace("_", " ") in credits, name


def test_brands_categories_and_other_names_are_left_out(script: ModuleType) -> None:
    each = script.Drawn("icons", "test", "p@1", "", "", "MIT", "", categories="Brand|Logos", most=4)
    categories = {"Animals": ["cat", "dog", "pineapple", "steamboat", "android-os", "usb-cable"], "Brand": ["zoom"]}
    names = [name for members in categories.values() for name in members]
    assert script.wanted(each, [*names, "of no category"], categories) == ["cat", "dog", "pineapple", "steamboat"]
    two = script.replace(each, most=2)
    assert len(script.wanted(two, names, categories)) == 2
    assert script.wanted(two, names, categories) == script.wanted(two, list(reversed(names)), categories)
    flags = script.replace(each, kind="flags", only="[a-z]{2}", without="^x", categories="")
    assert script.wanted(flags, ["de", "xx", "lang-de", "fr"], {}) == ["de", "fr"]


def test_windows_are_the_same_each_time_at_several_scales_and_none_is_flat(script: ModuleType) -> None:
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:, 100:] = rng(0, "test/starter").integers(0, 256, (120, 100, 3), dtype=np.uint8)
    found = list(script.windows(pixels, "half"))
    assert {name.split("/")[1].split("-")[0] for name, _ in found} == {"32", "48", "72", "108"}
    assert all(window.shape == (32, 32, 3) and script.luma(window).std() >= script.FLAT for _, window in found)
    again = list(script.windows(pixels, "half"))
    assert [name for name, _ in found] == [name for name, _ in again]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(found, again))
    assert not list(script.windows(np.full((64, 64, 3), 90, np.uint8), "flat"))


def test_empty_images_and_those_seen_before_are_left_out(script: ModuleType) -> None:
    row = script.Row("icons", "a", "A", "Somebody", "MIT", "", "p")
    blank = np.full((32, 32, 3), 255, np.uint8)
    sets = [(row, [("1", image(1)), ("2", image(1)), ("3", blank)]),
            (script.replace(row, name="b"), [("1", image(1)), ("4", image(2))])]  # fmt: skip
    rows, images, left_out = script.gathered(iter(sets))
    assert [each.images for each in rows] == [1, 1]
    assert list(images["icons"]) == ["a/1", "b/4"] and left_out == {"empty": 1, "seen before": 2}


def rows_of(script: ModuleType) -> list[object]:
    return [
        script.Row("portraits", "a", "A", "Ada", "CC-BY-4.0", "https://a.example", "p 1", 3),
        script.Row("icons", "b", "B", "Ada", "CC-BY-4.0", "https://a.example", "p 2", 3),
        script.Row("icons", "c", "C", "Bob", "MIT", "", "p 3", 3),
        script.Row("emoji", "d", "D", "Eve", "CC-BY-2.0", "", "p 4", 3),
        script.Row("emoji", "e", "E", "Nobody", "CC-BY-4.0", "", "p 5", 0),
    ]


def test_who_asks_to_be_named_has_one_line(script: ModuleType) -> None:
    assert script.named_credits(rows_of(script)) == [
        "A, B by Ada (https://a.example), CC BY 4.0 <https://creativecommons.org/licenses/by/4.0/>, reduced to 32 x 32 "
        "pixels",
        "D by Eve, CC BY 2.0 <https://creativecommons.org/licenses/by/2.0/>, reduced to 32 x 32 pixels",
    ]
    page = script.credits_page(rows_of(script))
    assert "| icons | C | 3 | Bob | MIT |" in page and page.count("\n- ") == 2


def test_a_photograph_under_another_licence_than_listed_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = SimpleNamespace(
        SOURCES=[script.build_photographs.Source("p", "folder", "cat")],
        fetch=lambda source, work: (work, "1"),
        contents=lambda source, extracted: {"cat": b""},
        credit=lambda source, extracted, name: ("Ada", "CC-BY-SA-4.0"),
    )
    monkeypatch.setattr(script, "build_photographs", build)
    monkeypatch.setattr(script, "PHOTOGRAPHS", {"p": {"cat": "CC-BY-4.0"}})
    with pytest.raises(Error, match=r"p: cat is under CC-BY-SA-4\.0, not CC-BY-4\.0: take it out"):
        list(script.photographs(tmp_path))


@pytest.fixture
def out(script: ModuleType, tmp_path: Path) -> Path:
    """Images as `build` leaves them: a few of three kinds."""
    home = tmp_path / "out"
    home.mkdir()
    kinds = {"portraits": 20, "emoji": 24, "icons": 20}
    arrays = {kind: np.stack([image(i + 100 * j) for i in range(count)]) for j, (kind, count) in
              enumerate(kinds.items())}  # fmt: skip
    for kind, pixels in arrays.items():
        np.savez(home / f"{kind}.npz", images=pixels)
    np.savez(home / "images.npz", images=np.concatenate(list(arrays.values())))
    record = {"counts": {"images": kinds}, "sets": [vars(row) for row in rows_of(script)]}
    (home / "starter.json").write_text(json.dumps(record))
    return home


def test_weights_are_trained_exported_and_put_into_the_package_with_their_credits(
    script: ModuleType, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(sys, "argv", ["build_starter.py", "train", str(out), "--steps", "2", "--install", *TINY])
    script.main()
    for folder in (out / "starter" / "export", tmp_path / "package"):
        saved = checkpoint.load(folder, parts=("ema",))
        assert saved.step == 2
        assert saved.state[starter.FACT] == script.named_credits(rows_of(script))
        assert "A, B by Ada" in (folder / starter.CREDITS).read_text()
        assert "12 images" in (folder / "README.md").read_text()
    script.main()  # again: nothing is left to train
    wide = ["--model.network.channels", "96", "--groups", "8"]
    monkeypatch.setattr(sys, "argv", ["build_starter.py", "train", str(out), "--steps", "3", *wide])
    with pytest.raises(SystemExit, match=r"MB in bf16, and 8 MB are allowed: say a smaller one"):
        script.main()


def test_the_comparison_trains_without_a_kind_and_then_on_it(
    script: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def measured(run: Path, path: Path, cache: Path, sheet: Path) -> SimpleNamespace:
        saved = checkpoint.load(run, parts=())
        seen.append((saved.step, path.name, saved.state["init"]))
        return SimpleNamespace(value=0.5 - 0.1 * len(seen), error=0.01)

    monkeypatch.setitem(sys.modules, "recipe_study", load_script("recipe_study", "benchmarks"))
    monkeypatch.setattr(sys.modules["recipe_study"], "measured", measured)
    (out / "compare-emoji").mkdir()
    (out / "compare-emoji" / "step.json").write_text('{"seconds": 60}')
    words = ["compare", str(out), "--steps", "2", "--minutes", "2", "3", *TINY]
    monkeypatch.setattr(sys, "argv", ["build_starter.py", *words])
    script.main()
    assert len(np.load(out / "without-emoji.npz")["images"]) == 40
    weights = str(out / "without-emoji" / "export")
    assert seen == [(2, "emoji.npz", weights), (2, "emoji.npz", None), (3, "emoji.npz", None)]
    assert "| weights that saw no emoji | 2 | 2 | 8 | 400 ± 10 |" in capsys.readouterr().out
    state = checkpoint.load(weights, parts=()).state
    assert not any("Eve" in line for line in state[starter.FACT])
    script.main()
    assert len(seen) == 3
