"""Which networks come along? Fully convolutional ones at full resolution; users bring their own.

Each maps images [N, C, H, W] to logits [N, L, H, W], `small3d` volumes [N, C, D, H, W] to logits [N, L, D, H, W].
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import nn


def small(
    in_channels: int, num_labels: int, width: int = 24, dilations: Sequence[int] = (1, 2, 4, 8, 16, 1)
) -> nn.Sequential:
    """A small network: a 3x3 convolution with relu for each dilation, and a 1x1 head.

    Sees ``1 + 2 * sum(dilations)`` pixels across, 65 by default; 26,780 parameters for one channel, 20 labels and the
    default width. Hidden layers start as He et al. (2015) have it and the head as torch does; weights lie channels last, a
    third faster on CPUs.

    Raises:
        ValueError: if an argument is below 1, or the dilations are not whole numbers from 1 on, one at least.
    """
    network = _dilated(nn.Conv2d, in_channels, num_labels, width, dilations)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def small3d(in_channels: int, num_labels: int, width: int = 16, dilations: Sequence[int] = (1, 2, 4, 1)) -> nn.Sequential:
    """`small` for volumes: 3x3x3 convolutions. Sees 17 voxels across; 21,266 parameters for one channel and two labels.

    Raises:
        ValueError: as `small`.
    """
    return _dilated(nn.Conv3d, in_channels, num_labels, width, dilations)


def _dilated(
    convolution: type[nn.Conv2d] | type[nn.Conv3d], in_channels: int, num_labels: int, width: int, dilations: Sequence[int]
) -> nn.Sequential:
    _check(in_channels, num_labels)
    if width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")
    if not dilations or not all(isinstance(step, int) and step >= 1 for step in dilations):
        raise ValueError(f"dilations: expected an integer of at least 1 for each layer, got {tuple(dilations)}")
    layers: list[nn.Module] = []
    channels = in_channels
    for dilation in dilations:
        layers += [convolution(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        channels = width
    network = nn.Sequential(*layers, convolution(width, num_labels, 1))
    for layer in list(network)[:-1]:
        if isinstance(layer, convolution):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def table1(in_channels: int = 1, num_labels: int = 20) -> nn.Sequential:
    """The network of Table 1 of Kirillov et al., ACCV 2016: 41x41, 17x17, 11x11 (50 channels each), 5x5.

    Sees 73 x 73 pixels; 1,134,220 parameters for one channel and 20 labels.

    Raises:
        ValueError: if an argument is below 1.
    """
    _check(in_channels, num_labels)
    return nn.Sequential(
        nn.Conv2d(in_channels, 50, 41, padding=20),
        nn.ReLU(),
        nn.Conv2d(50, 50, 17, padding=8),
        nn.ReLU(),
        nn.Conv2d(50, 50, 11, padding=5),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.ReLU(),
        nn.Conv2d(50, num_labels, 5, padding=2),
    )


def build(name: str, in_channels: int, num_labels: int) -> nn.Module:
    """Makes a network by name: "small", "small3d", "table1", or "module:factory" for a user's own.

    The module is imported, and `factory(in_channels, num_labels)` called.

    Raises:
        ValueError: if the name is none of these, the module cannot be found, or it has no such factory.
        TypeError: if the factory cannot be called, or returns no `torch.nn.Module`.
    """
    _check(in_channels, num_labels)
    if name == "small":
        return small(in_channels, num_labels)
    if name == "small3d":
        return small3d(in_channels, num_labels)
    if name == "table1":
        return table1(in_channels, num_labels)
    module_name, colon, factory_name = name.partition(":")
    if not colon or not module_name or not factory_name:
        raise ValueError(f"name: expected 'small', 'small3d', 'table1' or 'module:factory', got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # an import that fails inside the user's module is theirs to see
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ValueError(f"name: expected a module that can be imported, got {module_name!r} in {name!r}") from error
    factory: object = getattr(module, factory_name, None)
    if factory is None:
        raise ValueError(f"name: expected a function of {module_name}, got {factory_name!r}, which it lacks")
    if not callable(factory):
        raise TypeError(f"name: expected {name!r} to be a function, got {type(factory).__name__}")
    network: object = factory(in_channels, num_labels)
    if not isinstance(network, nn.Module):
        raise TypeError(f"name: expected {name!r} to return a torch.nn.Module, got {type(network).__name__}")
    return network


def _check(in_channels: int, num_labels: int) -> None:
    if in_channels < 1:
        raise ValueError(f"in_channels: expected at least 1, got {in_channels}")
    if num_labels < 1:
        raise ValueError(f"num_labels: expected at least 1, got {num_labels}")
