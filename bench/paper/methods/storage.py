"""What must learning remember? Dual variables of every factor, or one labelling: bytes, from the model's own factors.

Section 4 of Kirillov et al. 2016 on interleaving gradient steps with the minimisation over the dual variables of the LP
relaxation (Chen et al. 2015): their current values are kept for every training image. Each pairwise factor has a dual variable
for either end and each label, so an image has ``2 L |E|``, ``|E| = sum_c prod_j (size_j - |d_cj|)``. Persistent contrastive
divergence keeps the current labelling: a byte a pixel. The paper's own numbers: 2000 images "of the approximate size 320 x 120"
(section 5: "varying around 130 x 330"), 20 labels, "around 10^6" factors, "around 200MB per image and 0.4TB for the whole
dataset" against 78 MB. Both sizes are rows here, and bracket its figures.

``python -m bench.paper.methods.storage [--data FOLDER] [--write]`` prints rows of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tritoncrf as tc
from bench.paper.presets import PRESETS
from bench.paper.problem import read

# A dual variable is a float32.
FLOAT = 4


@dataclass(frozen=True)
class Storage:
    """What a training set needs; bytes an image are means."""

    name: str
    labels: int
    classes: int
    images: int
    pixels: int
    factors_per_image: float
    dual_bytes_per_image: float
    dual_bytes: int
    chain_bytes_per_image: float
    chain_bytes: int

    @property
    def ratio(self) -> float:
        """Dual variables' bytes to a labelling's."""
        return self.dual_bytes / self.chain_bytes


def storage(name: str, neighborhood: tc.Neighborhood, labels: int, sizes: Sequence[Sequence[int]]) -> Storage:
    """Counts for images of ``sizes``. Raises ValueError without any."""
    if not sizes:
        raise ValueError("sizes: expected at least one image, got none")
    pixels = sum(math.prod(size) for size in sizes)
    edges = sum(factors(neighborhood, size) for size in sizes)
    duals = 2 * labels * FLOAT * edges
    count = len(sizes)
    return Storage(
        name, labels, len(neighborhood), count, pixels, edges / count, duals / count, duals, pixels / count, pixels
    )  # fmt: skip


def factors(neighborhood: tc.Neighborhood, size: Sequence[int]) -> int:
    """Pairwise factors of an image: pairs of pixels, both inside."""
    return sum(
        math.prod(max(length - abs(step), 0) for length, step in zip(size, offset, strict=True))
        for offset in neighborhood.offsets
    )


def paper() -> list[Storage]:
    """The paper's own problem at both sizes it names: 2000 images, 20 labels, 64 neighbours (which, it does not say)."""
    closest = tc.Neighborhood.grid(15, 5) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)
    return [storage(f"paper, {h} x {w}", closest, 20, [(h, w)] * 2000) for h, w in ((320, 120), (330, 130))]


def table(row: Storage) -> list[dict[str, object]]:
    """The two lines of the report."""
    size = f"{row.images} images, {row.labels} labels, {row.classes} edge classes"
    duals = f"{size}; {round(row.factors_per_image)} pairwise factors an image, two ends each, a float32 a label"
    kinds = (
        ("dual variables", row.dual_bytes_per_image, row.dual_bytes, duals),
        ("one chain", row.chain_bytes_per_image, row.chain_bytes, f"{size}; a byte a pixel"),
    )
    return [
        {"what": f"{row.name}: {what}", "bytes_per_image": round(each), "bytes_total": total, "how": how}
        for what, each, total, how in kinds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the data folder; without it, the paper's own numbers alone")
    parser.add_argument("--write", action="store_true", help="into bench/paper/results/storage.json")
    options = parser.parse_args()
    rows = paper()
    for preset in PRESETS.values() if options.data is not None else ():
        train, _ = read(preset, preset.splits[0], options.data)
        rows.append(storage(preset.name, preset.neighborhood, train.num_labels, train.sizes))
    for row in rows:
        print(json.dumps({**asdict(row), "ratio": round(row.ratio, 1)}))
    if options.write:
        found = [part for row in rows for part in table(row)]
        (Path(__file__).parents[1] / "results" / "storage.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
