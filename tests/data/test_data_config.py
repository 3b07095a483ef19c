"""The settings of a data set are checked when they are made, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kuosan.data.config import DataConfig, rgb
from kuosan.errors import Error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": ""}, "is no path"),
        ({"path": 7}, "is no path"),
        ({"size": 0}, "size 0 must be a whole number from 8 to 1024"),
        ({"size": 33.0}, "size 33.0 must be"),
        ({"size": True}, "size True must be"),
        ({"channels": "gray"}, "did you mean 'grey'"),
        ({"resize": "crpo"}, "did you mean 'crop'"),
        ({"background": "withe"}, "did you mean 'white'"),
        ({"background": "#12345"}, "unknown background"),
        ({"flip": 1}, "flip 1 must be true or false"),
        ({"hold_out": 1.0}, "hold_out 1.0 must be a number from 0 to 0.9"),
        ({"hold_out": float("nan")}, "hold_out nan"),
        ({"memory_gib": -1}, "memory_gib -1"),
        ({"workers": -1}, "workers -1"),
        ({"max_pixels": 10**9}, "max_pixels 1000000000"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(settings: dict[str, object], says: str) -> None:
    with pytest.raises(Error, match=says.replace("(", r"\(")):
        DataConfig(**settings)  # type: ignore[arg-type]


def test_colours_by_name_and_number() -> None:
    assert rgb("white") == (255, 255, 255) and rgb("#0a141E") == (10, 20, 30)


def test_settings_decoding_and_the_doctor_leave_torch_unimported() -> None:
    code = "import sys, kuosan.data.config, kuosan.data.pixels, kuosan.data.doctor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
