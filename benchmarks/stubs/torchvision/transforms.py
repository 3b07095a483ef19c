"""The transforms of denoising-diffusion-pytorch's Dataset, on PIL pictures, as torchvision's behave by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image


class Compose:
    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, picture: Any) -> Any:
        return self.function(picture)


class Resize:
    """To (height, width), bilinear."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        size = (self.size[1], self.size[0])
        return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)


class CenterCrop:
    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = (picture.width - self.width) // 2, (picture.height - self.height) // 2
        return picture.crop((left, top, left + self.width, top + self.height))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        flip = torch.rand(1).item() < self.p
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


class ToTensor:
    """To float32 (C, H, W) in [0, 1]."""

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        array = np.array(picture)
        array = array[..., None] if array.ndim == 2 else array
        return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
