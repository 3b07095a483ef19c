"""Inception-v3 (Szegedy et al. 2016) as FID reads it: 2048 features after the last pool.

FID's network is TensorFlow's of 2015. Its public port (pytorch-fid's file) differs from torchvision's in two places:
average pools do not count the padding, and the last block pools by the maximum. Which of the two a file is, the classes
of its last layer say (1008 or 1000). Input [-1, 1]. Module names are the files' own.

Weights of known networks from a user's file: plain tensors by name, never code.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan.errors import Error
from kuosan.metrics.features.names import Family
from kuosan.metrics.features.network import FeatureNetwork
from kuosan.storage import pickled
from kuosan.storage import tensors as weights

DIM = 2048
STANDARD_CLASSES = 1008  # TensorFlow's; torchvision's has 1000


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """A block of branches side by side; `standard` has FID's pools."""

    def __init__(self, standard: bool) -> None:
        super().__init__()
        self.average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=not standard)

    def chain(self, x: Tensor, branch: str, count: int) -> Tensor:
        """x through branch_1, branch_2, ... branch_count."""
        for i in range(1, count + 1):
            x = getattr(self, f"{branch}_{i}")(x)
        return x


class A(Mixed):
    """35 x 35: branches of 1x1, 5x5, two 3x3, and a pool."""

    def __init__(self, inside: int, pooled: int, standard: bool) -> None:
        super().__init__(standard)
        self.branch1x1 = Conv(inside, 64, 1)
        self.branch5x5_1 = Conv(inside, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inside, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = self.branch_pool(self.average(x))
        return torch.cat([self.branch1x1(x), self.chain(x, "branch5x5", 2), self.chain(x, "branch3x3dbl", 3), pool], 1)


class B(Mixed):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, inside: int) -> None:
        super().__init__(standard=True)
        self.branch3x3 = Conv(inside, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inside, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.chain(x, "branch3x3dbl", 3), F.max_pool2d(x, 3, 2)], 1)


class C(Mixed):
    """17 x 17: 7x7 filters as 1x7 and 7x1."""

    def __init__(self, width: int, standard: bool) -> None:
        super().__init__(standard)
        wide, tall = partial(Conv, kernel=(1, 7), padding=(0, 3)), partial(Conv, kernel=(7, 1), padding=(3, 0))
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, width, 1)
        self.branch7x7_2 = wide(width, width)
        self.branch7x7_3 = tall(width, 192)
        self.branch7x7dbl_1 = Conv(768, width, 1)
        self.branch7x7dbl_2 = tall(width, width)
        self.branch7x7dbl_3 = wide(width, width)
        self.branch7x7dbl_4 = tall(width, width)
        self.branch7x7dbl_5 = wide(width, 192)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = self.branch_pool(self.average(x))
        return torch.cat([self.branch1x1(x), self.chain(x, "branch7x7", 3), self.chain(x, "branch7x7dbl", 5), pool], 1)


class D(Mixed):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__(standard=True)
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.chain(x, "branch3x3", 2), self.chain(x, "branch7x7x3", 4), F.max_pool2d(x, 3, 2)]
        return torch.cat(branches, 1)


class E(Mixed):
    """8 x 8: branches that fork at their end; `maximum` pools by the maximum."""

    def __init__(self, inside: int, standard: bool, maximum: bool) -> None:
        super().__init__(standard)
        self.branch1x1 = Conv(inside, 320, 1)
        self.branch3x3_1 = Conv(inside, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inside, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inside, 192, 1)
        self.pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1) if maximum else self.average

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.chain(x, "branch3x3dbl", 2)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self.pool(x))], 1)


class InceptionV3(nn.Module):
    """Images (B, 3, S, S) in [0, 255], S at least 75, to pooled features (B, 2048)."""

    def __init__(self, standard: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = A(192, 32, standard)
        self.Mixed_5c = A(256, 64, standard)
        self.Mixed_5d = A(288, 64, standard)
        self.Mixed_6a = B(288)
        self.Mixed_6b = C(128, standard)
        self.Mixed_6c = C(160, standard)
        self.Mixed_6d = C(160, standard)
        self.Mixed_6e = C(192, standard)
        self.Mixed_7a = D()
        self.Mixed_7b = E(1280, standard, maximum=False)
        self.Mixed_7c = E(2048, standard, maximum=standard)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (2 / 255) - 1
        for name, block in self.named_children():
            x = block(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean(dim=(2, 3))


def load(family: str, path: Path, config: Family) -> FeatureNetwork:
    """Reads pytorch-fid's file or torchvision's; the latter's features are named "inception-torchvision".

    Raises:
        Error: no such weights in the file.
    """
    tensors, digest = read(path)
    classes = len(tensors["fc.bias"]) if "fc.bias" in tensors else 0
    if classes not in (STANDARD_CLASSES, 1000):
        raise Error(f"{path} is no Inception-v3: its last layer, fc, must have 1008 or 1000 classes, not {classes}.")
    standard = classes == STANDARD_CLASSES
    network = InceptionV3(standard)
    fill(network, tensors, path, ignored=("fc.", "AuxLogits."))
    name = family if standard else family.replace("inception", "inception-torchvision")
    return FeatureNetwork(name, DIM, config.size, digest, network, config.resize)


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file or a `torch.save` state dict, and the file's SHA-256.

    The latter is read by `pickled`, which builds tensors and knows nothing else.

    Raises:
        Error: unreadable, damaged, a TorchScript program, or anything but tensors by name.
    """
    return weights.read_hashed(path) if weights.kind(path) == "safetensors" else pickled.read(path)


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path, *, ignored: tuple[str, ...] = ()) -> None:
    """Put tensors into a network by name, all of both; prefixes in `ignored` may be in the file and are left out.

    Raises:
        Error: the first few names that are missing, extra or of another shape.
    """
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(ignored or ("\0",))}
    wrong = [f"{name} missing" for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    wrong += [f"{name} unknown" for name in given if name not in wanted]
    wrong += [
        f"{name} {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in given
        if name in wanted and given[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Error(f"{path} does not fit {type(network).__name__}: {', '.join(wrong[:3])}{more}.")
    network.load_state_dict({**wanted, **given})
    network.eval().requires_grad_(False)
