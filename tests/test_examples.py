"""Does every recipe run as it stands? Some steps of each, in a process of its own; without its package a recipe is skipped."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.warm import Warm

ROOT = Path(__file__).parent.parent
# What each recipe prints last, and the packages that it needs.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain_loop": (r"a new image: [\d.]+% of the pixels right", ()),
    "frozen_network": (r"network alone: .*\nwith the CRF: [\d.]+% of the body pixels right", ()),
    "sampler_backend": (r"chain: marginals within 0\.\d+ of forward-backward", ()),
    "torchvision_reference": (r"4 steps, [\d.]+% of an image's pixels right", ("torchvision",)),
    "lightning_module": (r"4 steps, 160 sweeps, accuracy [\d.]+%", ("lightning",)),
    "accelerate_segformer": (r"4 steps, labels of \[1, 64, 64\], 160 sweeps", ("accelerate", "transformers")),
    "smp_unet": (r"4 steps, micro IoU [\d.]+%", ("segmentation_models_pytorch",)),
    "monai_volumes": (r"tiles: [\d.]+% of the voxels right", ("monai",)),
    "superpixels": (r"best of superpixels: [\d.]+% of the pixels right, [\d.]+ ms a picture", ("skimage",)),
    "skip_chain": (r"chain with skips: [\d.]+% of the places right, [\d.]+% of those with a name", ()),
    "cliques": (r"pairs and triples: [\d.]+% of the pixels wrong, .* added", ()),
}


def test_every_recipe_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, warm: Warm, tmp_path: Path) -> None:
    last, packages = RECIPES[name]
    picture = tmp_path / "picture.png"
    run(warm, name, last, packages, "--picture", str(picture))
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 600


def test_lightning_runs_on_two_processes(warm: Warm) -> None:
    """DDP: eight images a step, whose chains are in the checkpoint that the second half goes on from."""
    last, packages = RECIPES["lightning_module"]
    run(warm, "lightning_module", last.replace("160", "320"), packages, "--devices", "2")


def run(warm: Warm, name: str, last: str, packages: tuple[str, ...], *more: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[examples]'")
    # From the sources, wherever the package is installed from.
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    found = warm.run([str(ROOT / "examples" / f"{name}.py"), "--steps", "4", *more], env=environment)
    assert found.returncode == 0, found.stderr
    # Each of several processes may print.
    assert re.search(last + r"\n\Z", found.stdout), found.stdout
