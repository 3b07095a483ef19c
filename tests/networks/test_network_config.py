"""UNetConfig refuses what cannot be built, and the default shapes fit their images."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from kuosan.errors import Error
from kuosan.networks.autoencoder_config import AutoencoderConfig
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import DiTConfig, Size, UNetConfig, default_dit, default_unet, network_line
from kuosan.networks.unet import parameter_count

BAD: list[tuple[dict[str, Any], str]] = [
    ({"channels": 0}, "channels is 0"),
    ({"channels": 33, "groups": 33}, "channels is 33.*even"),
    ({"channels": 128.0}, "channels is 128.0"),
    ({"in_channels": True}, "in_channels is True"),
    ({"blocks": 0}, "blocks is 0"),
    ({"groups": 48}, r"groups is 48.*divisors of every level's channels \(128, 256, 256, 256\).*divide 128"),
    ({"multipliers": ()}, "multipliers is"),
    ({"multipliers": (1, 0)}, "multipliers is"),
    ({"attention": (True,)}, r"attention is \(True,\).*4 entries, not 1"),
    ({"attention": (1, 0, 0, 0)}, "attention is"),
    ({"head_channels": 48}, "head_channels is 48.*divisors of.*256"),
    ({"head_channels": 0}, "head_channels is 0"),
    ({"time_conditioning": "multiply"}, "unknown time_conditioning 'multiply'"),
    ({"resample": "conf"}, "unknown resample 'conf': did you mean 'conv'"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"dropout": float("nan")}, "dropout is nan"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ({"freq_shift": 64}, "freq_shift is 64"),
    ({"classes": -1}, "classes is -1"),
    ({"concat_channels": -1}, "concat_channels is -1"),
    ({"patch": 0}, "patch is 0"),
    ({"context_attention": "crossed"}, "unknown context_attention 'crossed': did you mean 'cross'"),
    ({"context_attention": "cross", "transformer_mlp": 2}, "context_attention is 'cross'.*cross has no transformer"),
    ({"context_width": 0}, "context_width is 0.*whole numbers from 1, or None"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_value_is_refused_with_its_field_value_and_cure(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        UNetConfig(**fields)


def test_lists_become_tuples_so_that_yaml_and_python_give_equal_configs() -> None:
    lists = UNetConfig(multipliers=[1, 2], attention=[False, True])  # type: ignore[arg-type]
    assert lists == UNetConfig(multipliers=(1, 2), attention=(False, True))
    assert hash(lists)


SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 64), (3, 64, 64), (4, 128, 96), (3, 256, 256), (3, 512, 512)]


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_shape_takes_its_images(shape: tuple[int, int, int], size: Any) -> None:
    config = default_unet(shape, size, classes=3)
    _, height, width = shape
    assert height % config.factor == 0 and width % config.factor == 0
    assert (config.in_channels, config.out_channels, config.classes) == (shape[0], shape[0], 3)
    finest = max(height, width) / config.patch
    assert finest <= 64
    assert finest / 2 ** (config.levels - 1) <= 16
    assert all(finest / 2**i <= 16 for i, on in enumerate(config.attention) if on)
    assert parameter_count(config) > 1e5


@pytest.mark.parametrize(("version", "millions"), [(1, 2.7), (2, 4.5)])
def test_the_small_shape_for_32_pixels_and_each_size_more_than_the_last(version: int, millions: float) -> None:
    counts = [parameter_count(default_unet((1, 32, 32), size, version=version)) for size in get_args(Size)]
    assert counts[1] == pytest.approx(millions * 1e6, rel=0.02)
    assert counts == sorted(counts)


FAMILY = [  # side, patch, multipliers, attention
    (4, 1, (1,), (False,)),
    (8, 1, (1, 2), (True, False)),
    (15, 1, (1,), (True,)),
    (16, 2, (1, 2), (True, False)),
    (18, 2, (1,), (True,)),
    (28, 2, (1, 2), (True, True)),
    (32, 2, (1, 2, 2), (True, True, False)),
    (64, 2, (1, 2, 2), (False, True, True)),
    (128, 2, (1, 2, 2, 2), (False, False, True, True)),
    (256, 4, (1, 2, 2, 2), (False, False, True, True)),
]


@pytest.mark.parametrize(("side", "patch", "multipliers", "attention"), FAMILY)
def test_images_enter_in_patches_where_they_have_the_pixels(
    side: int, patch: int, multipliers: Any, attention: Any
) -> None:
    config = default_unet((3, side, side))
    assert (config.patch, config.multipliers, config.attention) == (patch, multipliers, attention)


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_latents_are_patches_already(side: int) -> None:
    config = default_unet((4, side, side), latent=True)
    assert config.patch == 1
    assert 4 <= side >> (config.levels - 1) <= 8


def test_both_versions_take_the_same_sides() -> None:
    def taken(shape: tuple[int, int, int], version: int) -> bool:
        try:
            config = default_unet(shape, version=version)
        except Error:
            return False
        assert shape[1] % config.factor == shape[2] % config.factor == 0
        return True

    shapes = [(3, side, other) for side in range(1, 140) for other in (side, 16, 24, 7)]
    assert [shape for shape in shapes if taken(shape, 1) != taken(shape, 2)] == []


ODD = [((3, 33, 32), r"33x32.*multiples of 4.*32x32 or 36x32"), ((3, 130, 130), r"130x130.*128x128 or 144x144")]


@pytest.mark.parametrize(("shape", "message"), ODD)
def test_a_side_that_cannot_be_halved_is_refused_with_the_nearest_sizes(shape: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        default_unet(shape)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(Error, match="unknown network size 'smal': did you mean 'small'"):
        default_unet((3, 32, 32), "smal")  # type: ignore[arg-type]


def test_configuring_a_network_does_not_import_torch() -> None:
    code = "import sys, kuosan.networks.config, kuosan.convert.diffusers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("side", "line"),
    [
        (8, "2 levels of 8 x 8, 4 x 4 cells, attention at 8 x 8"),
        (28, "2 levels of 14 x 14, 7 x 7 cells, in patches of 2 x 2 pixels, attention at 14 x 14, 7 x 7"),
        (32, "3 levels of 16 x 16, 8 x 8, 4 x 4 cells, in patches of 2 x 2 pixels, attention at 16 x 16, 8 x 8"),
        (48, "3 levels of 24 x 24, 12 x 12, 6 x 6 cells, in patches of 2 x 2 pixels, attention at 12 x 12, 6 x 6"),
    ],
)
def test_a_usual_network_is_shown_in_a_line(side: int, line: str) -> None:
    assert network_line(default_unet((3, side, side)), (side, side)) == line


@pytest.mark.parametrize("side", [14, 15, 26, 30, 36, 44, 52, 60])
def test_what_an_odd_size_costs_the_network_is_said_with_the_next_size_that_has_it_all(side: int) -> None:
    network = default_unet((3, side, side))
    line = network_line(network, (side, side))
    hindered = " is no multiple of " in line
    assert hindered == (side != 14), line  # 14 halves to 7, and 3.5 would be too few cells
    if hindered:
        size = int(line.partition(", and ")[2].split()[0])
        assert line.startswith(f"{network.levels} level") and size <= -(-side // 8) * 8
        assert default_unet((3, size, size)).levels > network.levels


@pytest.mark.parametrize(("side", "odd"), [(16, False), (31, True), (32, False), (50, True), (64, False)])
def test_a_transformers_line_says_where_small_patches_make_many_tokens(side: int, odd: bool) -> None:
    network = default_dit((3, side, side))
    line = network_line(network, (side, side))
    assert line.startswith(f"transformer, {side // network.patch} x {side // network.patch} tokens of ")
    assert (" is no multiple of " in line) == odd, line


def test_a_network_that_was_asked_for_is_shown_without_advice() -> None:
    network = UNetConfig(channels=32, multipliers=(1,), attention=(False,), groups=8)
    assert network_line(network, (30, 30)) == "1 level of 30 x 30 cells"


@pytest.mark.parametrize("config", [UNetConfig, DiTConfig, AutoencoderConfig, ClassifierConfig])
def test_every_field_of_a_network_is_on_its_page_with_its_default(config: type) -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    assert not [each.name for each in fields(config) if f"`{each.name}`" not in page]
    if config is not UNetConfig:
        return
    section = page.partition("## Fields of `UNetConfig`")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, flags=re.MULTILINE))
    for each in fields(config):
        shown = rows[each.name].strip('`" ')
        default = each.default
        if isinstance(default, tuple):
            assert shown == f"({', '.join(str(v)[0] if isinstance(v, bool) else str(v) for v in default)})", each.name
        elif isinstance(default, float):
            assert float(shown) == default, each.name
        else:
            assert shown == (str(default).lower() if isinstance(default, bool) else str(default)), each.name
