"""Which networks does the experiment add? The small one with the paper's view at half scale, and a strong one, a U-Net.

Table 1's network (Kirillov et al. 2016) sees 73 pixels of figures about 330 tall. At half scale that is 37; the library's small
network sees 65 by default, so that little is left that a neighbourhood could tell it. A U-Net (Ronneberger et al. 2015) on
ResNet-18 (He et al. 2016) sees the whole image: what a CRF gains over it is not what the network could not see.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import networks

# A U-Net on ResNet-18 halves its images five times.
STRIDE = 32
# Channels that one group of a normalization shares, as Wu and He 2018 have it.
GROUP = 16


def half(in_channels: int, num_labels: int) -> nn.Module:
    """The small network with dilations 1, 2, 4, 8, 1 and 1: 35 pixels across, as many parameters and as much work."""
    return networks.small(in_channels, num_labels, dilations=(1, 2, 4, 8, 1, 1))


def unet(in_channels: int, num_labels: int) -> nn.Module:
    """The U-Net on ResNet-18 of segmentation_models_pytorch, from random weights: 14.3 million parameters.

    Batch norm gives way to group norm: one image is visited at a time, and a network that learns beside its chains should give
    them the logits that it answers with. Raises ImportError without ``pip install segmentation-models-pytorch``.
    """
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        raise ImportError(
            f"network: expected segmentation_models_pytorch (pip install segmentation-models-pytorch), got no {error.name}"
        ) from None
    network = grouped(smp.Unet("resnet18", encoder_weights=None, in_channels=in_channels, classes=num_labels))
    padded = Padded(network, STRIDE)
    padded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return padded


def grouped(network: nn.Module) -> nn.Module:
    """The same network, in place, with group norm wherever it had batch norm, 16 channels a group."""
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.BatchNorm2d):
                channels = part.num_features
                setattr(module, name, nn.GroupNorm(math.gcd(max(1, channels // GROUP), channels), channels))
    return network


class Padded(nn.Module):
    """A network for images whose sides are multiples of ``stride``, for any: zeros below and to the right, cut off again."""

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to logits ``[N, L, H, W]``."""
        height, width = image.shape[-2:]
        wide = F.pad(image, (0, -width % self.stride, 0, -height % self.stride))
        logits: Tensor = self.network(wide)[..., :height, :width]
        return logits
