"""`kuosan restore` as a person uses it: masks of every form, folders, answers, sheets, and the same image again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kuosan import seeds
from kuosan.data.decoding import decode
from shell import kuosan, refused

STEPS = ["--steps", "3", "--precision", "fp32", "--threads", "1"]


def photo(path: Path, height: int = 12, width: int = 15, seed: int = 0) -> Path:
    pixels = seeds.rng(seed, "test/photo").integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def white(path: Path, height: int = 12, width: int = 15) -> Path:
    mask = np.zeros((height, width), np.uint8)
    mask[3:7, 4:9] = 255
    Image.fromarray(mask).save(path)
    return path


def known_and_made(
    before: Path, after: Path, left: int = 4, top: int = 3, wide: int = 5, high: int = 4
) -> tuple[bool, bool]:
    old, new = decode(before).pixels, decode(after).pixels
    mask = np.zeros(old.shape[:2], bool)
    mask[top : top + high, left : left + wide] = True
    return bool((old[~mask] == new[~mask]).all()), bool((old[mask] != new[mask]).any())


def test_a_hole_is_filled_by_a_mask_file_a_box_or_transparency_alike(trained_run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "p.png")
    clear = np.dstack([decode(image).pixels, 255 - np.asarray(Image.open(white(tmp_path / "m.png")))])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    found = []
    for i, (file, mask) in enumerate([("p.png", tmp_path / "m.png"), ("p.png", "4,3,5,4"), ("clear.png", "alpha")]):
        out = tmp_path / f"out{i}"
        said = kuosan("restore", trained_run, tmp_path / file, "--mask", mask, "--out", out, *STEPS)
        assert said.code == 0, said
        assert known_and_made(image, out / file) == (True, True)
        found.append(decode(out / file).pixels)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_folder_gives_an_answer_for_each_image_and_seed_and_a_sheet(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        photo(tmp_path / "in" / f"{i}.png", seed=i)
    photo(tmp_path / "in" / "1.bmp", 9, 9)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    said = kuosan("restore", trained_run, tmp_path / "in", "--deblur", 1, "--variants", 2, "--seed", 5,
                  "--out", tmp_path / "out", *STEPS)  # fmt: skip
    assert said.code == 0, said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    made = {f"{stem}-seed-0000000{s}.png" for stem in ("0", "1", "1-png") for s in (5, 6)}
    assert names == made | {"sheet.png", "request.json"}
    assert "3 network evaluations" in said.out and "tiles of 8x8" in said.out


@pytest.mark.parametrize("how", [["--mask", "4,3,5,4"], ["--upscale", "2"], ["--noise", "12", "--method", "pigdm"]])
def test_a_restored_image_can_be_made_again_from_its_own_recipe(
    how: list[str], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = photo(tmp_path / "p.png")
    said = kuosan("restore", trained_run, image, *how, "-n", 3, "--batch", 4, "--out", tmp_path / "out", *STEPS)
    assert said.code == 0, said
    one = tmp_path / "out" / "p-seed-00000002.png"
    refused("sample", "--like", one, "--out", tmp_path / "again.png", naming=["outside", "--allow-path"])
    said = kuosan("sample", "--like", one, "--out", tmp_path / "again.png", "--allow-path", trained_run)
    assert said.code == 0, said
    assert one.read_bytes() == (tmp_path / "again.png").read_bytes()
    photo(image, seed=9)
    refused("sample", "--like", one, trained_run, "--out", tmp_path / "b.png", naming=["is not the image", "p.png"])


def test_repaint_says_what_it_will_cost_before_it_starts(trained_run: Path, tmp_path: Path) -> None:
    said = kuosan("restore", trained_run, photo(tmp_path / "p.png", 8, 8), "--mask", "1,1,3,3", "--method", "repaint",
                  "--jumps", 2, "--jump-length", 4, "--out", tmp_path / "out", *STEPS[2:], "--steps", 10)  # fmt: skip
    assert said.code == 0, said
    assert "RePaint" in said.out and "18 network evaluations" in said.out


@pytest.mark.parametrize(
    "words, naming",
    [
        (["--mask", "m.png"], ["m.png is 8x8", "p.png 15x12", "as large as its image"]),
        (["--mask", "gone.png"], ["gone.png", "no such file"]),
        (["--mask", "black.png"], ["marks nothing"]),
        (["--mask", "full.png"], ["marks everything", "invert"]),
        (["--mask", "12,0,5,5"], ["not inside", "15x12"]),
        (["--mask", "alpha"], ["no transparency"]),
        (["--outpaint", "1,2"], ["outpaint", "LEFT,TOP,RIGHT,BOTTOM"]),
        (["--colorise", "--method", "repaint"], ["repaint", "ddnm"]),
        (["--deblur", "1", "--overlap", "7"], ["overlap = 7", "0 to 4"]),
        (["--deblur", "1", "--guidance", "3"], ["guidance", "without classes"]),
        (["--deblur", "1", "--variants", "0"], ["n = 0"]),
    ],
)
def test_bad_input_is_one_clear_sentence(words: list[str], naming: list[str], trained_run: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "p.png")
    white(tmp_path / "m.png", 8, 8)
    Image.fromarray(np.zeros((12, 15), np.uint8)).save(tmp_path / "black.png")
    Image.fromarray(np.full((12, 15), 255, np.uint8)).save(tmp_path / "full.png")
    refused("restore", trained_run, "p.png", *words, "--out", "out", naming=naming)


def test_a_broken_image_of_a_folder_is_left_out_aloud_and_the_originals_are_never_written_over(
    trained_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    before = photo(folder / "a.png").read_bytes()
    (folder / "b.png").write_text("text")
    said = kuosan("restore", trained_run, folder, "--deblur", 1, "--out", tmp_path / "out", *STEPS)
    assert said.code == 1 and "left out: " in said.out and "b.png" in said.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "sheet.png", "request.json"}
    (folder / "b.png").unlink()
    refused("restore", trained_run, folder, "--deblur", 1, "--out", folder, naming=["written over", "name another"])
    assert (folder / "a.png").read_bytes() == before
    photo(folder / "sheet.png")
    assert kuosan("restore", trained_run, folder, "--deblur", 1, "--out", tmp_path / "out", *STEPS).code == 0
    assert (tmp_path / "out" / "sheet-png.png").is_file()


def test_answers_of_other_settings_never_mix(trained_run: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", photo(tmp_path / "p.png", 8, 8)
    shutil.copytree(trained_run, run)
    for words in (["--deblur", 1], ["--deblur", 1], ["--deblur", 2], ["--mask", "1,1,3,3"]):
        assert kuosan("restore", run, image, *words, *STEPS).code == 0
    names = sorted(path.name for path in (run / "restored").iterdir())
    assert names == ["deblur-ddnm-ddim-seed0", "deblur-ddnm-ddim-seed0-2", "mask-pigdm-ddim-seed0"]


def test_an_image_is_no_mask_of_its_own_and_a_fitted_hole_is_not_cut_away(trained_run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "p.png", 64, 32)
    refused("restore", trained_run, image, "--mask", tmp_path, "--out", tmp_path / "o", naming=["its own mask"])
    refused(
        "restore", trained_run, image, "--mask", "0,0,4,4", "--fit", "--out", tmp_path / "o", naming=["fit", "crop"]
    )


def test_what_is_no_image_is_named(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("hello")
    refused("restore", trained_run, tmp_path / "empty", "--deblur", 1, naming=["holds no image"])
    refused("restore", trained_run, tmp_path / "gone.png", "--deblur", 1, naming=["there is no image"])
    refused("restore", trained_run, tmp_path / "text.png", "--deblur", 1, "--out", tmp_path / "o", naming=["text.png"])
    refused("restore", trained_run, naming=["no images given"])


def test_images_are_fitted_to_the_model_when_asked_and_it_is_said(trained_run: Path, tmp_path: Path) -> None:
    said = kuosan("restore", trained_run, photo(tmp_path / "p.png", 40, 30), "--mask", "8,8,10,10", "--fit",
                  "--out", tmp_path / "out", *STEPS)  # fmt: skip
    assert said.code == 0, said
    assert "scaled from 30x40 to 8x8" in said.out
    assert decode(tmp_path / "out" / "p.png").pixels.shape == (8, 8, 3)


def test_two_images_and_the_way_between_them(trained_run: Path, tmp_path: Path) -> None:
    ends = [photo(tmp_path / f"{i}.png", 8, 8, seed=i) for i in range(2)]
    said = kuosan("invert", trained_run, *ends, "--between", 4, "--steps", 5, "--out", tmp_path / "out", *STEPS[2:])
    assert said.code == 0, said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"between-{i:04d}.png" for i in range(4)), "between.png"]  # fmt: skip
    refused("invert", trained_run, ends[0], "--between", 4, "--out", tmp_path / "o", naming=["give two"])
    refused("invert", trained_run, *ends, "--between", 1, "--out", tmp_path / "o", naming=["between = 1"])
