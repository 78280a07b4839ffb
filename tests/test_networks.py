"""Do the networks have the promised shapes and sizes, and does `build` find them?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tritoncrf.networks import build, small, table1


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_small_keeps_the_resolution() -> None:
    network = small(1, 20)
    assert count(network) == 26_780
    assert network(torch.zeros(2, 1, 9, 13)).shape == (2, 20, 9, 13)
    assert small(3, 5, width=4)(torch.zeros(1, 3, 7, 6)).shape == (1, 5, 7, 6)


@pytest.mark.parametrize(("dilations", "view"), [((1, 2, 4, 8, 16, 1), 65), ((1, 2, 4, 8, 1, 1), 35)])
def test_small_sees_as_far_as_its_dilations_say(dilations: tuple[int, ...], view: int) -> None:
    network = small(1, 2, width=4, dilations=dilations).double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)  # positive everywhere, so that no relu hides a pixel
    image = torch.zeros(1, 1, 81, 81, dtype=torch.float64, requires_grad=True)
    network(image)[0, 0, 40, 40].backward()
    assert image.grad is not None
    assert torch.nonzero(image.grad[0, 0, 40]).flatten().tolist() == list(range(40 - view // 2, 41 + view // 2))
    with pytest.raises(ValueError, match="dilations: expected an integer of at least 1 for each layer, got \\(1, 0\\)"):
        small(1, 2, dilations=(1, 0))


def test_table1_is_the_papers() -> None:
    network = table1()
    assert count(network) == 1_134_220
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.out_channels) for layer in convolutions] == [
        (41, 50),
        (17, 50),
        (11, 50),
        (5, 20),
    ]
    assert [type(layer).__name__ for layer in network] == [
        *("Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "Conv2d")
    ]
    assert network(torch.zeros(1, 1, 6, 11)).shape == (1, 20, 6, 11)
    assert table1(3, 4)(torch.zeros(1, 3, 5, 5)).shape == (1, 4, 5, 5)


def test_build_finds_networks_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def linear(in_channels, num_labels):\n    return nn.Conv2d(in_channels, num_labels, 1)\n"
        "def wrong(in_channels, num_labels):\n    return 'network'\n"
        "number = 3\n"
    )
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert count(build("small", 1, 20)) == 26_780
    assert isinstance(build("table1", 1, 2), nn.Sequential)
    network = build("my_networks:linear", 2, 3)
    assert network(torch.zeros(1, 2, 4, 5)).shape == (1, 3, 4, 5)
    with pytest.raises(TypeError, match=r"expected 'my_networks:wrong' to return a torch\.nn\.Module, got str"):
        build("my_networks:wrong", 1, 2)
    with pytest.raises(TypeError, match="expected 'my_networks:number' to be a function, got int"):
        build("my_networks:number", 1, 2)
    with pytest.raises(ValueError, match="expected a function of my_networks, got 'gone', which it lacks"):
        build("my_networks:gone", 1, 2)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        build("needs_more:net", 1, 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("large", "name: expected 'small', 'small3d', 'table1' or 'module:factory', got 'large'"),
        ("module:", "name: expected 'small', 'small3d', 'table1' or 'module:factory', got 'module:'"),
        ("no_such_module:net", "name: expected a module that can be imported, got 'no_such_module' in"),
        ("no_such.module:net", "name: expected a module that can be imported, got 'no_such.module' in"),
    ],
)
def test_build_says_what_is_wrong_with_a_name(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build(name, 1, 2)


def test_networks_refuse_bad_arguments() -> None:
    with pytest.raises(ValueError, match="in_channels: expected at least 1, got 0"):
        small(0, 2)
    with pytest.raises(ValueError, match="num_labels: expected at least 1, got 0"):
        table1(1, 0)
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        small(1, 2, width=0)
    with pytest.raises(ValueError, match="in_channels: expected at least 1, got 0"):
        build("small", 0, 2)
