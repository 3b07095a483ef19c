"""The transforms of denoising-diffusion-pytorch's Dataset, on PIL images, as torchvision's behave by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image


class Compose:
    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        return self.function(image)


class Resize:
    """To (height, width), bilinear."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        size = (self.size[1], self.size[0])
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


class CenterCrop:
    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        flip = torch.rand(1).item() < self.p
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


class ToTensor:
    """To float32 (C, H, W) in [0, 1]."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        array = np.array(image)
        array = array[..., None] if array.ndim == 2 else array
        return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
