"""No verb writes over a file that is not provably the same result: another recipe's, or a person's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kuosan.storage import outputs
from shell import image_folder, kuosan, refused, tree

Words = Callable[[Path, Path, Path], list[object]]  # run, images, out -> the command
STEPS = ("--steps", 2, "--threads", 1)


def ends(images: Path) -> list[Path]:
    return [images / "0.png", images / "1.png"]


# Each verb: a command, the same with another result, and a file that it writes.
VERBS: dict[str, tuple[Words, Words, str]] = {
    "sample": (
        lambda run, images, out: ["sample", run, "-n", 1, *STEPS, "--out", out],
        lambda run, images, out: ["sample", run, "-n", 1, "--sampler", "euler", *STEPS, "--out", out],
        "seed-00000000.png",
    ),
    "sample's sheet": (
        lambda run, images, out: ["sample", run, "-n", 1, *STEPS, "--out", out],
        lambda run, images, out: ["sample", run, "-n", 1, "--seed", 9, *STEPS, "--out", out],
        "sheet.png",
    ),
    "sample --gif": (
        lambda run, images, out: ["sample", run, "-n", 1, "--gif", *STEPS, "--out", out],
        lambda run, images, out: ["sample", run, "-n", 1, "--gif", "--seed", 1, *STEPS, "--out", out],
        "denoising.gif",
    ),
    "sample --between": (
        lambda run, images, out: ["sample", run, "-n", 2, "--between", 0, 1, *STEPS, "--out", out],
        lambda run, images, out: ["sample", run, "-n", 2, "--between", 0, 2, *STEPS, "--out", out],
        "place-0000.png",
    ),
    "restore": (
        lambda run, images, out: ["restore", run, images / "0.png", "--noise", 5, *STEPS, "--out", out],
        lambda run, images, out: ["restore", run, images / "0.png", "--noise", 9, *STEPS, "--out", out],
        "0.png",
    ),
    "invert": (
        lambda run, images, out: ["invert", run, images / "0.png", *STEPS, "--out", out],
        lambda run, images, out: ["invert", run, images / "1.png", *STEPS, "--out", out],
        "noise.safetensors",
    ),
    "invert --between": (
        lambda run, images, out: ["invert", run, *ends(images), "--between", 2, *STEPS, "--out", out],
        lambda run, images, out: ["invert", run, *ends(images)[::-1], "--between", 2, *STEPS, "--out", out],
        "between.png",
    ),
    "doctor": (
        lambda run, images, out: ["doctor", images, "--out", out],
        lambda run, images, out: ["doctor", "portraits", "--out", out],
        "rejected.csv",
    ),
    "evaluate": (
        lambda run, images, out: ["evaluate", images, "--against", images, "--metrics", "kid", "--n", 3, "--out", out],
        lambda run, images, out: ["evaluate", images, "--against", images, "--metrics", "kid", "--n", 4, "--out", out],
        "result.json",
    ),
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.mark.parametrize("verb", VERBS)
def test_results_and_files_of_ones_own_stay(verb: str, trained_run: Path, images: Path, tmp_path: Path) -> None:
    first, other, name = VERBS[verb]
    out = tmp_path / "out"
    assert kuosan(*first(trained_run, images, out)).code == 0
    before = {path: content for path, content in tree(out).items() if not path.startswith("features")}
    assert name in before and outputs.UNFINISHED not in before

    said = refused(*other(trained_run, images, out), naming=[str(out), "nothing is written over", "--out"])
    assert name in said.err or len([word for word in before if word in said.err]) >= 1
    after = tree(out)
    assert {path: after[path] for path in before} == before and outputs.UNFINISHED not in after

    assert kuosan(*first(trained_run, images, out)).code == 0  # the same command again
    assert set(before) <= set(tree(out))

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text("my own")
    refused(*first(trained_run, images, mine), naming=[name, "of your own"])
    assert tree(mine) == {name: b"my own"}


def test_a_folder_that_is_a_file_or_a_dead_link_is_refused_by_every_verb(
    trained_run: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for first, _, _ in VERBS.values():
        refused(*first(trained_run, images, tmp_path / "file"), naming=["is a file"])
        refused(*first(trained_run, images, tmp_path / "link"), naming=["is a link to"])
    refused("export", trained_run, tmp_path / "link", naming=["there already"])
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_images_are_restored_one_by_one_into_a_folder(trained_run: Path, images: Path, tmp_path: Path) -> None:
    words = ["--noise", 5, *STEPS, "--out", tmp_path / "out"]
    for name in ("0.png", "1.png", "0.png"):
        assert kuosan("restore", trained_run, images / name, *words).code == 0
    assert {"0.png", "1.png", "sheet.png", "sheet-2.png", "request.json"} == set(tree(tmp_path / "out"))
    other = image_folder(tmp_path / "other", 2)
    (other / "1.png").rename(other / "0.png")  # another image of the first one's name
    refused("restore", trained_run, other / "0.png", *words, naming=["0.png", "nothing is written over"])


def test_a_recipe_of_a_folder_that_an_older_kuosan_wrote_is_known(trained_run: Path, tmp_path: Path) -> None:
    words = ["sample", trained_run, "-n", 2, *STEPS, "--out", tmp_path / "out"]
    assert kuosan(*words).code == 0
    for path in (tmp_path / "out").iterdir():
        for name in os.listxattr(path):
            os.removexattr(path, name)
    (tmp_path / "out" / outputs.RECORD).unlink(missing_ok=True)
    assert kuosan(*words).code == 0
    refused(*words, "--seed", 1, naming=["nothing is written over"])


def test_made_again_takes_nobodys_place(trained_run: Path, tmp_path: Path) -> None:
    assert kuosan("sample", trained_run, "-n", 2, *STEPS, "--out", tmp_path / "out").code == 0
    like, other = (tmp_path / "out" / f"seed-0000000{i}.png" for i in range(2))
    before = tree(tmp_path / "out")
    for _ in range(2):
        assert kuosan("sample", trained_run, "--like", like).code == 0
    assert tree(tmp_path / "out") == before | {"seed-00000000-again.png": before["seed-00000000.png"]}
    again = ["sample", trained_run, "--like", like, "--out"]
    refused(*again, other, naming=["seed-00000001.png", "nothing is written over"])
    assert "these very bytes" in kuosan(*again, like).out
    (tmp_path / "holiday.png").write_text("mine")
    refused(*again, tmp_path / "holiday.png", naming=["holiday.png", "of your own"])
    assert (tmp_path / "holiday.png").read_text() == "mine"


def test_a_strangers_config_is_no_run_to_be_written_over(images: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("theme: dark\n")
    refused("train", images, "--out", tmp_path / "project", naming=["config.yaml", "no run", "--out"])
    assert tree(tmp_path / "project") == {"config.yaml": b"theme: dark\n"}


def test_results_do_not_go_among_the_images_that_are_read(
    trained_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, before = image_folder(tmp_path / "other"), tree(images)
    refused("evaluate", images, "--against", other, "--metrics", "kid", "--out", images, naming=["that are read"])
    refused("evaluate", other, "--against", images, "--metrics", "kid", "--out", images, naming=["that are read"])
    refused("restore", trained_run, images, "--noise", 5, *STEPS, "--out", images, naming=["that are read"])
    monkeypatch.setenv("HOME", str(tmp_path))
    refused("evaluate", other, "--against", "~/images", "--metrics", "kid", "--out", images, naming=["that are read"])
    assert tree(images) == before


def test_the_demo_refuses_a_folder_with_a_page_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("home")
    refused("demo", "--out", tmp_path / "site", naming=["index.html", "of your own"])
    assert tree(tmp_path / "site") == {"index.html": b"home"}


def test_a_stopped_set_says_that_it_is_unfinished(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kuosan.sample import write

    words = ["sample", trained_run, "-n", 2, "--batch", 1, *STEPS, "--out", tmp_path / "out"]
    real = write.images

    def stopped(*given: object) -> list[Path]:
        real(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "images", stopped)
        assert kuosan(*words).code == 130
    assert set(tree(tmp_path / "out")) == {"recipe.json", "seed-00000000.png", outputs.UNFINISHED}
    assert kuosan(*words).code == 0
    assert set(tree(tmp_path / "out")) == {"recipe.json", "seed-00000000.png", "seed-00000001.png", "sheet.png"}
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["request"]["n"] == 2


def edited(path: Path, recipe_of: Path) -> bytes:
    """Replace an image as an editor does that keeps a PNG's text: another file of the name, without attributes."""
    with Image.open(recipe_of) as image:
        text = PngInfo()
        for key, value in image.info.items():
            text.add_text(key, value)
        image.point(lambda value: value // 2).save(path.with_name("temporary.png"), pnginfo=text)
    path.with_name("temporary.png").replace(path)
    return path.read_bytes()


def test_an_edited_image_stays_though_its_recipe_is_inside(trained_run: Path, images: Path, tmp_path: Path) -> None:
    words: dict[str, list[object]] = {
        "seed-00000000.png": ["sample", trained_run, "-n", 2, *STEPS, "--out", tmp_path / "out"],
        "0.png": ["restore", trained_run, images / "0.png", "--noise", 5, *STEPS, "--out", tmp_path / "restored"],
    }
    for name, command in words.items():
        assert kuosan(*command).code == 0
        path = Path(str(command[-1])) / name
        own = edited(path, path)
        refused(*command, naming=[name, "nothing is written over"])
        assert path.read_bytes() == own
    like = tmp_path / "out" / "seed-00000001.png"
    assert kuosan("sample", trained_run, "--like", like).code == 0
    path = like.with_name("seed-00000001-again.png")
    own = edited(path, like)
    refused("sample", trained_run, "--like", like, naming=[path.name, "nothing is written over"])
    assert path.read_bytes() == own
