"""Do the data sets give the pixels and labels that the files hold, and say what is wrong with a bad file?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler, random_split

from tritoncrf.datasets import (
    VOID,
    DepthScale,
    Extras,
    Figures,
    Flipped,
    FolderDataset,
    HorizontalFlip,
    Indexed,
    IndexedSample,
    NpzDataset,
    RandomCrop,
    Sample,
    Transformed,
    collate,
    concat,
    left_right_pairs,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CLASSES = ("head", "leg0L", "leg0R", "background")


def parts(sample: Sample) -> tuple[Tensor, Tensor, Extras]:
    return (sample[0], sample[1], sample[2]) if len(sample) == 3 else (sample[0], sample[1], {})


def says(text: str) -> str:
    return re.escape(text)


class Plain:
    """A user's own data set: no attributes, items of the given sizes."""

    def __init__(self, *sizes: tuple[int, int], extras: Callable[[int, int], Extras] | None = None) -> None:
        self.given, self.extras = sizes, extras

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, i: int) -> Sample:
        h, w = self.given[i]
        image = torch.arange(1, h * w + 1, dtype=torch.float32).reshape(1, h, w)
        target = torch.full((h, w), i, dtype=torch.int64)
        return (image, target) if self.extras is None else (image, target, self.extras(h, w))


# --- items and batches


def test_indexed_puts_the_number_beside_the_item_and_forwards() -> None:
    figures = Figures(3, size=(24, 16))
    indexed = Indexed(figures)
    assert len(indexed) == 3
    assert indexed[2][2] == 2
    assert indexed[-1][2] == 2
    assert len(indexed[0]) == 4
    assert len(Indexed(Plain((2, 2)))[0]) == 3
    assert (indexed.sizes, indexed.num_labels, indexed.class_names) == ([(24, 16)] * 3, 20, figures.class_names)
    assert (indexed.channels, indexed.background) == (1, 19)
    assert [item[2] for item in indexed] == [0, 1, 2]  # type: ignore[attr-defined]


def test_indexed_refuses_what_it_cannot_use() -> None:
    with pytest.raises(IndexError, match=says("i: expected an index below 1, got 1")):
        Indexed(Plain((2, 2)))[1]
    with pytest.raises(AttributeError, match=says("dataset: Plain has no attribute 'background' to forward")):
        _ = Indexed(Plain((2, 2))).background
    assert not hasattr(Indexed(Plain((2, 2))), "num_labels")
    with pytest.raises(TypeError, match=says("dataset: expected an object with a length and items by number, got int")):
        Indexed(3)  # type: ignore[arg-type]


def test_indexed_refuses_items_of_another_form() -> None:
    class Bad(Plain):
        item: object = None

        def __getitem__(self, i: int) -> Sample:
            return self.item  # type: ignore[return-value]

    bad = Bad((2, 2))
    bad.item = (torch.zeros(1, 2, 2),)
    with pytest.raises(ValueError, match=says("(image, target, extras) or a mapping, got a tuple of 1")):
        Indexed(bad)[0]
    bad.item = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match=says("(image, target, extras) or a mapping, got Tensor")):
        Indexed(bad)[0]
    bad.item = (torch.zeros(1, 2, 2), torch.zeros(2, 2), 7)
    with pytest.raises(ValueError, match=says("expected a dict of extras in third place, got int")):
        Indexed(bad)[0]


def test_collate_of_equal_sizes_without_extras_has_three_parts() -> None:
    data = Indexed(Plain((2, 3), (2, 3)))
    batch = collate([data[i] for i in (1, 0)])
    assert len(batch) == 3
    assert batch[0].shape == (2, 1, 2, 3)
    assert batch[1].shape == (2, 2, 3)
    assert batch[2].tolist() == [1, 0]
    assert batch[2].dtype == torch.int64


def test_collate_pads_at_the_bottom_and_the_right() -> None:
    data = Indexed(Plain((2, 3), (4, 1)))
    batch = collate([data[0], data[1]])
    assert len(batch) == 4
    image, target, _, extras = batch
    assert image.shape == (2, 1, 4, 3)
    assert torch.equal(image[0, :, :2, :3], data[0][0])
    assert torch.equal(image[1, :, :4, :1], data[1][0])
    assert (image == 0).sum() == 24 - 6 - 4
    assert (target[0, :2, :3] == 0).all()
    assert (target[1, :4, :1] == 1).all()
    assert (target == VOID).sum() == 24 - 6 - 4
    assert set(extras) == {"sizes"}
    assert extras["sizes"].tolist() == [[2, 3], [4, 1]]
    assert extras["sizes"].dtype == torch.int64


def test_collate_pads_extras_and_fills_those_that_an_item_lacks() -> None:
    with_both = Plain(
        (2, 2),
        extras=lambda h, w: {"known": torch.full((h, w), 3, dtype=torch.uint8), "mask": torch.eye(h).bool()},
    )
    both = concat(Indexed(with_both), Indexed(Plain((1, 3))))
    batch = collate([both[0], both[1]])
    assert len(batch) == 4
    extras = batch[3]
    assert extras["known"].tolist() == [[[3, 3, 255], [3, 3, 255]], [[255, 255, 255], [255, 255, 255]]]
    assert extras["mask"].tolist() == [[[True, False, False], [False, True, False]], [[True] * 3, [False] * 3]]
    assert (extras["known"].dtype, extras["mask"].dtype) == (torch.uint8, torch.bool)
    equal = collate([Indexed(with_both)[0]])
    assert len(equal) == 4
    assert set(equal[3]) == {"known", "mask"}


def test_collate_serves_a_data_loader() -> None:
    loader = DataLoader(Indexed(Figures(5, size=(32, 24), ragged=True)), batch_size=2, collate_fn=collate)
    batches = list(loader)
    assert [len(batch[0]) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch[2] for batch in batches]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "items: expected at least one item, got none"),
        ([(torch.zeros(1, 2, 2), torch.zeros(2, 2))], "items: expected (image, target, index) or"),
        ([(torch.zeros(2, 2), torch.zeros(2, 2), 0)], "a target [W] at place 0, got [2, 2] and [2, 2]"),
        ([(torch.zeros(1, 2, 2), torch.zeros(2, 3), 0)], "at place 0, got [1, 2, 2] and [2, 3]"),
        (
            [(torch.zeros(1, 2, 2), torch.zeros(2, 2), 0), (torch.zeros(3, 2, 2), torch.zeros(2, 2), 1)],
            "items: expected 1 channels as in the first item, got 3 at place 1",
        ),
        (
            [(torch.zeros(1, 2, 2), torch.zeros(2, 2), 0, {"depth": torch.zeros(2, 2)})],
            "items: expected extras among ['known', 'mask', 'view'], got 'depth' at place 0",
        ),
        (
            [(torch.zeros(1, 2, 2), torch.zeros(2, 2), 0, {"known": torch.zeros(2, 2)})],
            "expected extras['known'] of torch.uint8 [2, 2] at place 0, got torch.float32 [2, 2]",
        ),
    ],
)
def test_collate_says_what_is_wrong(items: list[IndexedSample], sentence: str) -> None:
    with pytest.raises(ValueError, match=says(sentence)):
        collate(items)


# --- foreign data sets


class Given:
    """A data set of given items and attributes."""

    def __init__(self, *items: object, **attributes: object) -> None:
        self.items = items
        self.looks = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        self.looks += 1
        return self.items[i]


def test_indexed_takes_mappings_by_their_keys() -> None:
    image, label = torch.rand(3, 4, 5), torch.ones(4, 5).long()
    known = torch.zeros(4, 5, dtype=torch.uint8)
    item = Indexed(Given({"image": image, "label": label, "mask": 7, "known": known}), target="label")[0]
    assert len(item) == 4
    assert torch.equal(item[0], image)
    assert torch.equal(item[1], label)
    assert set(item[3]) == {"known"}
    assert len(Indexed(Given({"image": image, "target": label}))[0]) == 3
    with pytest.raises(ValueError, match=says("item: expected keys 'image' and 'target', got ['image', 'mask']")):
        Indexed(Given({"image": image, "mask": label}))[0]


def test_indexed_takes_arrays_and_volumes() -> None:
    image = np.random.default_rng(0).random((1, 2, 3, 4), dtype=np.float32)
    item = Indexed(Given((image[:, ::-1], np.ones((1, 2, 3, 4), dtype=np.uint16))))[0]
    assert torch.equal(item[0], torch.from_numpy(image[:, ::-1].copy()))
    assert (item[1].shape, item[1].dtype) == ((2, 3, 4), torch.int64)
    flags = Indexed(Given((torch.zeros(1, 4), torch.ones(4).bool())))[0]
    assert flags[1].dtype == torch.uint8
    with pytest.raises(TypeError, match=says("target: expected a tensor or an array of numbers, got an array of <U1")):
        Indexed(Given((image, np.array(["a"]))))[0]
    with pytest.raises(TypeError, match=says("image: expected a tensor or an array of numbers, got list")):
        Indexed(Given(([1], torch.zeros(1))))[0]


def test_collate_pads_volumes() -> None:
    data = Indexed(Given(*((torch.ones(2, *s), torch.zeros(s).bool()) for s in ((2, 3, 4), (3, 2, 5)))))
    batch = collate([data[0], data[1]])
    assert len(batch) == 4
    assert (batch[0].shape, batch[1].shape) == ((2, 2, 3, 3, 5), (2, 3, 3, 5))
    assert batch[3]["sizes"].tolist() == [[2, 3, 4], [3, 2, 5]]
    assert (batch[1] == VOID).sum() == 2 * 45 - 24 - 30


def test_sizes_are_found_by_one_look() -> None:
    inner = Given(*((torch.zeros(1, n, 2, 3), torch.zeros(1, n, 2, 3).long()) for n in (4, 5)))
    data = Indexed(inner)
    assert inner.looks == 0
    assert data.sizes == [(4, 2, 3), (5, 2, 3)]
    assert data.sizes == [(4, 2, 3), (5, 2, 3)]
    assert inner.looks == 2
    part = Indexed(Subset(inner, [1]))  # type: ignore[arg-type]
    assert part.sizes == [(5, 2, 3)]


def test_parts_within_and_around_are_numbered_right() -> None:
    ragged = Figures(6, size=(32, 24), ragged=True)
    around = Subset(Indexed(ragged), [4, 1])
    assert [around[i][2] for i in range(2)] == [4, 1]
    within = Indexed(Subset(ragged, np.array([4, 1])))  # type: ignore[arg-type]
    assert [within[i][2] for i in range(2)] == [0, 1]
    assert within.sizes == [ragged.sizes[4], ragged.sizes[1]]
    assert (within.background, within.num_labels, within.channels) == (19, 20, 1)
    first, second = random_split(Indexed(ragged), [2, 4], torch.Generator().manual_seed(0))
    assert sorted(split[i][2] for split in (first, second) for i in range(len(split))) == list(range(6))
    sampler = WeightedRandomSampler([0, 0, 1, 0, 0, 0], 5)
    (batch,) = DataLoader(Indexed(ragged), batch_size=5, sampler=sampler, collate_fn=collate)
    assert batch[2].tolist() == [2] * 5


def test_joined_data_sets_are_numbered_once_or_refused() -> None:
    one, two = Figures(2, size=(24, 16)), Figures(3, seed=1, size=(32, 16))
    for both in (concat(Indexed(one), Indexed(two)), concat(one, two), Indexed(one) + Indexed(two),
                 Indexed(ConcatDataset([Indexed(one), Subset(Indexed(two), [0, 1, 2])]))):  # fmt: skip
        assert [both[i][2] for i in range(5)] == list(range(5))
        assert both.sizes == [(24, 16)] * 2 + [(32, 16)] * 3
        assert both.background == 19
        assert torch.equal(both[3][0], two[1][0])
    wrong: ConcatDataset[object] = ConcatDataset([Indexed(one), Indexed(two)])
    with pytest.raises(ValueError, match=says("images numbered by one Indexed, got those of 2, each of which counts from 0")):
        next(iter(DataLoader(wrong, batch_size=5, collate_fn=collate)))
    for workers in (0, 2):
        loader = DataLoader(Indexed(two), batch_size=1, num_workers=workers, collate_fn=collate)
        assert [int(batch[2]) for batch in loader] == [0, 1, 2]
    parts = [Given(1, background=0), Given(1, background=3)]
    with pytest.raises(ValueError, match=says("datasets: expected the same background in all parts, got [0, 3]")):
        _ = concat(*parts).background  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="datasets: expected one at least, got none"):
        concat()


# --- depth


def test_depth_scale_centres_the_foreground() -> None:
    depth = np.array([[0, 2000], [2600, 0]], dtype=np.uint16)
    assert DepthScale()(depth).tolist() == [[[3.0, -1.0], [1.0, 3.0]]]
    assert DepthScale(unit_mm=100, background=-9)(depth).tolist() == [[[-9.0, -3.0], [3.0, -9.0]]]
    assert DepthScale()(np.zeros((2, 2), dtype=np.uint16)).tolist() == [[[3.0, 3.0], [3.0, 3.0]]]
    with pytest.raises(ValueError, match=says("unit_mm: expected a positive number of millimetres, got 0")):
        DepthScale(unit_mm=0)
    with pytest.raises(ValueError, match=says("background: expected a finite number, got nan")):
        DepthScale(background=float("nan"))


# --- .npz


def write_bodies(path: Path, **changes: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    size = np.array([[2, 3], [1, 2], [3, 1]], dtype=np.int32)
    arrays: dict[str, NDArray[np.generic]] = {
        "depth": np.array([0, 2000, 2300, 0, 2600, 0, 0, 1000, 5, 0, 7], dtype=np.uint16),
        "label": np.array([3, 0, 1, 3, 2, 1, 255, 0, 0, 3, 2], dtype=np.uint8),
        "size": size,
        "offset": np.array([0, 6, 8, 11]),
        "split": np.array(["train", "test", "train"]),
        "split_by_clip": np.array(["test", "test", "train"]),
        "class_names": np.array(CLASSES),
        "background": np.array(3, dtype=np.uint8),
    }
    arrays |= changes
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return arrays


def write_photos(path: Path, **changes: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    labels = np.full((3, 4, 5), VOID, dtype=np.uint8)
    labels[0, :4, :5] = rng.integers(0, 4, (4, 5))
    labels[1, :2, :3] = 1
    labels[2, :4, :1] = 2
    arrays: dict[str, NDArray[np.generic]] = {
        "images": rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8),
        "labels": labels,
        "sizes": np.array([[4, 5], [2, 3], [4, 1]], dtype=np.int16),
        "split": np.array(["train", "val", "test"]),
        "class_names": np.array(CLASSES),
    }
    arrays |= changes
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return arrays


def test_npz_reads_flat_depth(tmp_path: Path) -> None:
    path = tmp_path / "bodies.npz"
    write_bodies(path)
    data = NpzDataset(path)
    assert (len(data), data.sizes, data.indices.tolist()) == (2, [(2, 3), (3, 1)], [0, 2])
    assert (data.num_labels, data.class_names, data.channels, data.background) == (4, CLASSES, 1, 3)
    image, target, extras = parts(data[0])
    assert (image.dtype, target.dtype, extras["known"].dtype) == (torch.float32, torch.int64, torch.uint8)
    assert image.tolist() == [[[3.0, -1.0, 0.0], [3.0, 1.0, 3.0]]]
    assert target.tolist() == [[3, 0, 1], [3, 2, 1]]
    # the last pixel has no depth but is labelled a leg: nothing is known of it
    assert extras["known"].tolist() == [[3, 255, 255], [3, 255, 255]]
    assert parts(data[1])[1].tolist() == [[0], [3], [2]]
    assert parts(NpzDataset(path, "test")[0])[2]["known"].tolist() == [[3, 255]]


def test_npz_chooses_splits(tmp_path: Path) -> None:
    path = tmp_path / "bodies.npz"
    write_bodies(path)
    assert NpzDataset(path, "test", split_key="split_by_clip").indices.tolist() == [0, 1]
    assert NpzDataset(path, "test", split_key="split_by_clip", limit=1).indices.tolist() == [0]
    assert NpzDataset(path, None).indices.tolist() == [0, 1, 2]
    assert len(NpzDataset(path, None, limit=99)) == 3


def test_npz_reads_photographs_without_their_padding(tmp_path: Path) -> None:
    path = tmp_path / "photos.npz"
    arrays = write_photos(path)
    data = NpzDataset(path, "val")
    assert (data.sizes, data.channels, data.background, data.num_labels) == ([(2, 3)], 3, None, 4)
    image, target, extras = parts(data[0])
    assert image.shape == (3, 2, 3)
    expected = arrays["images"][1, :2, :3].astype(np.float64).transpose(2, 0, 1) / 255 * 4 - 2
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
    assert target.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert extras == {}


@pytest.mark.parametrize(
    ("write", "changes", "options", "sentence"),
    [
        (write_bodies, {}, {"split": "val"}, "split: expected one of test, train or None, got 'val'"),
        (write_bodies, {}, {"split_key": "fold"}, "such as split, split_by_clip, got 'fold'"),
        (write_bodies, {}, {"limit": 0}, "limit: expected a number of images of at least 1, or None, got 0"),
        (
            write_bodies,
            {"split": np.zeros(3)},
            {},
            "one string per image, 3 in all, got float64 [3] in 'split'",
        ),
        (
            write_bodies,
            {"offset": np.array([0, 5, 8, 11])},
            {},
            "'offset' to be the running sum of the areas in",
        ),
        (write_bodies, {"depth": np.zeros(11)}, {}, "expected uint16 [11] as 'depth' in"),
        (write_bodies, {"size": np.zeros((3, 2))}, {}, "expected positive integers [N, 2] as 'size' in"),
        (write_bodies, {"label": np.full(11, 4, np.uint8)}, {}, "expected labels 0 to 3 or 255 in"),
        (write_bodies, {"background": np.array(4)}, {}, "expected 'background' below 4 in"),
        (write_bodies, {"class_names": np.array([{}])}, {}, "array 'class_names' of"),
        (write_photos, {"images": np.zeros((3, 4, 5), np.uint8)}, {}, "expected uint8 [N, H, W, 3] as 'images' in"),
        (write_photos, {"labels": np.zeros((3, 4, 4), np.uint8)}, {}, "expected uint8 [3, 4, 5] as 'labels' in"),
        (write_photos, {"sizes": np.full((3, 2), 6)}, {}, "got 6 x 6 for image 0"),
    ],
)
def test_npz_says_what_is_wrong(
    tmp_path: Path,
    write: Callable[..., object],
    changes: dict[str, NDArray[np.generic]],
    options: dict[str, str],
    sentence: str,
) -> None:
    path = tmp_path / "data.npz"
    write(path, **changes)
    with pytest.raises(ValueError, match=says(sentence)):
        NpzDataset(path, **options)  # type: ignore[arg-type]


def test_npz_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: expected a \.npz file, got .*none\.npz, which does not exist"):
        NpzDataset(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"expected a \.npz archive, got .*text\.npz, which numpy cannot read"):
        NpzDataset(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="which holds a single array"):
        NpzDataset(tmp_path / "one.npy")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=says("expected the arrays depth, label, size, offset, class_names or images")):
        NpzDataset(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("name", "split", "count", "labels", "background"),
    [
        ("bodyparts_depth", "test", 500, 20, 19),
        ("cmp_facade", "val", 37, 12, None),
        ("fasseg_frontal02", "train", 20, 6, None),
    ],
)
def test_npz_reads_the_real_files(name: str, split: str, count: int, labels: int, background: int | None) -> None:
    path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    data = NpzDataset(path, split)
    assert (len(data), data.num_labels, data.background) == (count, labels, background)
    for i in range(0, count, 7):
        image, target, extras = parts(data[i])
        assert image.shape == (data.channels, *data.sizes[i])
        assert target.shape == data.sizes[i]
        assert torch.isfinite(image).all()
        if background is None:
            assert ((target < labels) | (target == VOID)).all()
            assert extras == {}
        else:
            assert torch.equal(extras["known"] == background, target == background)
            assert image[0][target != background].mean().abs() < 1e-3
    if background is not None:
        assert data.class_names == Figures.class_names
        assert len(NpzDataset(path, "test", split_key="split_by_clip", limit=2)) == 2


# --- folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(1)
    for stem, size in (("a", (4, 5)), ("b", (3, 6))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(images / f"{stem}.png")
        label = rng.integers(0, 3, size, dtype=np.uint8)
        label[0, 0] = VOID
        Image.fromarray(label).save(masks / f"{stem}.png")
    (images / "notes.txt").write_text("not an image")
    return images, masks


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as file:
        return np.array(file).astype(np.int64)


def test_folders_read_photographs_and_index_masks(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    data = FolderDataset(images, masks, num_labels=3)
    assert (len(data), data.stems, data.sizes) == (2, ["a", "b"], [(4, 5), (3, 6)])
    assert (data.num_labels, data.channels, data.background) == (3, 3, None)
    assert data.class_names == ("label 0", "label 1", "label 2")
    image, target, extras = parts(data[1])
    np.testing.assert_allclose(image.numpy(), pixels(images / "b.png").transpose(2, 0, 1) / 255 * 4 - 2, atol=1e-6)
    assert np.array_equal(target.numpy(), pixels(masks / "b.png"))
    assert target[0, 0] == VOID
    assert extras == {}
    assert parts(FolderDataset(images, masks, num_labels=3, channels=1)[0])[0].shape == (1, 4, 5)


def test_folders_read_palette_pngs_as_numbers(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    label = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    picture = Image.fromarray(label)
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    picture.save(masks / "a.png")
    assert np.array_equal(parts(FolderDataset(images, masks, num_labels=3)[0])[1].numpy(), label)


def test_folders_turn_their_void_into_255(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    Image.fromarray(np.full((4, 5), 7, dtype=np.uint8)).save(masks / "a.png")
    data = FolderDataset(images, masks, num_labels=3, void=7)
    assert (parts(data[0])[1] == VOID).all()
    with pytest.raises(ValueError, match=r"masks: expected labels 0 to 2 or void 7, got 255 in .*b\.png"):
        data[1]


def test_folders_read_colour_masks(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    colours = {(0, 0, 0): VOID, (255, 0, 0): 0, (0, 128, 255): 2}
    table = np.array(list(colours), dtype=np.uint8)
    choice = np.arange(20).reshape(4, 5) % 3
    Image.fromarray(table[choice]).save(masks / "a.png")
    Image.fromarray(np.full((3, 6, 3), 5, dtype=np.uint8)).save(masks / "b.png")
    data = FolderDataset(images, masks, num_labels=3, palette=colours)
    assert np.array_equal(parts(data[0])[1].numpy(), np.array(list(colours.values()))[choice])
    with pytest.raises(ValueError, match=r"expected only colours of the palette, got \(5, 5, 5\) in .*b\.png"):
        data[1]
    with pytest.raises(ValueError, match=r"\(mode L or P\), or a palette for colours, got mode RGB in .*a\.png"):
        FolderDataset(images, masks, num_labels=3)[0]


def test_folders_read_16_bit_depth(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    depth = np.zeros((4, 5), dtype=np.uint16)
    depth[1, 1:3] = 2000, 2600
    label = np.where(depth > 0, 1, 2).astype(np.uint8)
    label[3, 3] = 0
    Image.fromarray(depth).save(images / "a.png")
    Image.fromarray(label).save(masks / "a.png")
    data = FolderDataset(images, masks, num_labels=3, files=["a"], channels=1, background=2)
    image, _, extras = parts(data[0])
    assert image[0, 1].tolist() == [3.0, -1.0, 1.0, 3.0, 3.0]
    assert np.array_equal(extras["known"].numpy(), np.where(label == 2, 2, VOID))
    assert parts(FolderDataset(images, masks, num_labels=3, files=["a"], channels=1)[0])[2] == {}
    # without masks the depth alone says where the background is
    blind = parts(FolderDataset(images, None, num_labels=3, files=["a"], channels=1, background=2)[0])
    assert (blind[1] == VOID).all()
    assert np.array_equal(blind[2]["known"].numpy(), np.where(depth == 0, 2, VOID))
    with pytest.raises(ValueError, match=r"channels: expected 1 for the 16-bit image .*a\.png, got 3"):
        FolderDataset(images, masks, num_labels=3)[0]


def test_folders_take_a_list_of_stems(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    listed = tmp_path / "train.txt"
    listed.write_text("b\n\n a \n")
    assert FolderDataset(images, masks, num_labels=3, files=listed).stems == ["b", "a"]
    assert FolderDataset(images, masks, num_labels=3, files=["b"]).sizes == [(3, 6)]
    (masks / "a.png").unlink()
    assert len(FolderDataset(images, masks, num_labels=3, files=["b"])) == 1
    listed.write_text("\n")
    with pytest.raises(ValueError, match=says("files: expected at least one stem, got none")):
        FolderDataset(images, masks, num_labels=3, files=listed)
    with pytest.raises(ValueError, match=says("files: expected every stem once, got 'b' twice")):
        FolderDataset(images, masks, num_labels=3, files=["b", "b"])
    with pytest.raises(FileNotFoundError, match=r"files: expected a text file with one stem a line, got .*none"):
        FolderDataset(images, masks, num_labels=3, files=tmp_path / "none.txt")


def test_folders_without_masks_have_void_targets(folders: tuple[Path, Path]) -> None:
    data = FolderDataset(folders[0], None, num_labels=3)
    assert (parts(data[0])[1] == VOID).all()
    assert parts(data[0])[1].shape == (4, 5)


def test_folders_name_files_without_partner(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    with pytest.raises(FileNotFoundError, match=r"images: expected a file for the stem 'c' in .*images, got none"):
        FolderDataset(images, masks, num_labels=3, files=["a", "c"])
    (masks / "c.png").write_bytes((masks / "a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"images: expected a file for the stem 'c' in .*images, got none"):
        FolderDataset(images, masks, num_labels=3)
    for stem in "abc":
        (masks / f"{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"masks: expected a file for the stem 'a' and 1 more in .*masks, got"):
        FolderDataset(images, masks, num_labels=3)
    with pytest.raises(FileNotFoundError, match=r"masks: expected a folder, got .*nowhere, which is none"):
        FolderDataset(images, tmp_path / "nowhere", num_labels=3)
    with pytest.raises(ValueError, match=r"images: expected at least one image in .*masks, got none"):
        FolderDataset(masks, None, num_labels=3)
    Image.new("L", (5, 4)).save(images / "a.bmp")
    with pytest.raises(ValueError, match=r"images: expected one file per stem, got .*a\.bmp and a\.png"):
        FolderDataset(images, None, num_labels=3)


def test_folders_name_files_that_do_not_fit(folders: tuple[Path, Path]) -> None:
    images, masks = folders
    Image.new("L", (5, 3)).save(masks / "a.png")
    with pytest.raises(ValueError, match=r"masks: expected 4 x 5 pixels as .*a\.png has, got 3 x 5 in .*a\.png"):
        FolderDataset(images, masks, num_labels=3)
    Image.new("L", (5, 4), 3).save(masks / "a.png")
    with pytest.raises(ValueError, match=r"masks: expected labels 0 to 2 or void 255, got 3 in .*a\.png"):
        FolderDataset(images, masks, num_labels=3)[0]
    whole = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"file .*b\.png: expected an image, got one that cannot be read"):
        FolderDataset(images, masks, num_labels=3)[1]
    (images / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"file .*b\.png: expected an image, got one that cannot be read"):
        FolderDataset(images, masks, num_labels=3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_labels": 0}, "num_labels: expected 1 to 255, got 0"),
        ({"num_labels": 256}, "num_labels: expected 1 to 255, got 256"),
        ({"void": 256}, "void: expected 0 to 255, got 256"),
        ({"channels": 2}, "channels: expected 1 or 3, got 2"),
        ({"background": 3}, "background: expected a label below 3 or None, got 3"),
        ({"class_names": ["one"]}, "class_names: expected 3 names, got 1"),
        ({"palette": {}}, "palette: expected at least one colour, got none"),
        ({"palette": {(0, 0, 256): 0}}, "palette: expected colours (r, g, b) of 0 to 255, got (0, 0, 256)"),
        ({"palette": {(0, 0, 1): 3}}, "palette: expected labels below 3 or 255, got 3 for (0, 0, 1)"),
    ],
)
def test_folders_refuse_bad_arguments(folders: tuple[Path, Path], options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=says(sentence)):
        FolderDataset(*folders, **({"num_labels": 3} | options))  # type: ignore[arg-type]


# --- figures


def test_figures_depend_on_seed_and_number_only() -> None:
    first, longer, other = Figures(4, seed=7), Figures(9, seed=7), Figures(4, seed=8)
    for i in (3, 0):
        (depth, label), (same_depth, same_label) = first.depth_and_labels(i), longer.depth_and_labels(i)
        assert np.array_equal(depth, same_depth)
        assert np.array_equal(label, same_label)
        assert not np.array_equal(first.depth_and_labels(i)[1], other.depth_and_labels(i)[1])
    assert not np.array_equal(first.depth_and_labels(0)[1], first.depth_and_labels(1)[1])


def test_figures_have_all_parts_and_a_known_background() -> None:
    figures = Figures(30)
    assert (figures.sizes[0], figures.num_labels, figures.class_names[19]) == ((96, 64), 20, "background")
    seen: set[int] = set()
    for i in range(len(figures)):
        depth, label = figures.depth_and_labels(i)
        image, target, extras = parts(figures[i])
        assert np.array_equal(depth == 0, label == 19)
        assert image.shape == (1, 96, 64)
        assert np.array_equal(target.numpy(), label)
        assert torch.equal(extras["known"] == 19, target == 19)
        assert 0.05 < (label != 19).mean() < 0.7
        assert depth[depth > 0].min() > 1000
        assert depth.max() < 4500
        seen |= set(np.unique(label).tolist())
    assert seen == set(range(20))


def test_figures_stand_upright_with_their_left_on_the_right() -> None:
    figures = Figures(40, yaw=20)
    names = figures.class_names
    where = np.full((len(figures), 19, 2), np.nan)
    for i in range(len(figures)):
        label = figures.depth_and_labels(i)[1]
        for part in range(19):
            if (label == part).any():
                where[i, part] = np.argwhere(label == part).mean(0)
    middle = {name: np.nanmean(where[:, part], axis=0) for part, name in enumerate(names[:19])}
    down = [middle[name][0] for name in ("head", "torso0L", "torso1L", "torso2L", "leg0L", "leg1L", "leg2L")]
    assert down == sorted(down)
    for left, right in left_right_pairs(names):
        assert middle[names[left]][1] > middle[names[right]][1] + 2


def test_figures_of_ragged_sizes() -> None:
    figures = Figures(12, size=(40, 32), ragged=True)
    assert len(set(figures.sizes)) > 3
    assert all(30 <= h <= 40 and 24 <= w <= 32 for h, w in figures.sizes)
    assert [tuple(parts(figures[i])[1].shape) for i in range(12)] == figures.sizes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": -1}, "count: expected a number of images of at least 0, got -1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"size": (96, 8)}, "size: expected (H, W) of at least 16 pixels each, got (96, 8)"),
        ({"yaw": -1}, "yaw: expected at least 0 degrees, got -1"),
        ({"noise_mm": -1}, "noise_mm: expected at least 0 millimetres, got -1"),
    ],
)
def test_figures_refuse_bad_arguments(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=says(sentence)):
        Figures(**({"count": 1} | options))  # type: ignore[arg-type]
    with pytest.raises(IndexError, match=says("i: expected an index below 2, got 2")):
        Figures(2)[2]


# --- transforms


def marked() -> Sample:
    """An item whose image, target and extras all hold the pixel's own number, so that they must stay together."""
    number = torch.arange(12).reshape(3, 4)
    return number[None].float(), number, {"known": number.to(torch.uint8), "mask": number % 2 == 0}


def test_random_crop_cuts_everything_alike() -> None:
    crop = RandomCrop((2, 3), generator=torch.Generator().manual_seed(0))
    corners = set()
    for _ in range(40):
        image, target, extras = parts(crop(marked()))
        assert target.shape == (2, 3)
        assert torch.equal(image[0], target.float())
        assert torch.equal(extras["known"], target.to(torch.uint8))
        assert torch.equal(extras["mask"], target % 2 == 0)
        corners.add(int(target[0, 0]))
    assert corners == {0, 1, 4, 5}
    assert parts(RandomCrop((9, 2))(marked()))[1].shape == (3, 2)
    with pytest.raises(ValueError, match=says("size: expected (H, W) of at least 1 pixel each, got (0, 3)")):
        RandomCrop((0, 3))


def test_horizontal_flip_swaps_labels() -> None:
    image, target, extras = parts(HorizontalFlip([(0, 3), (5, 6)], probability=1)(marked()))
    assert image[0, 0].tolist() == [3, 2, 1, 0]
    assert target.tolist() == [[0, 2, 1, 3], [7, 5, 6, 4], [11, 10, 9, 8]]
    assert extras["known"].tolist() == target.tolist()
    assert extras["known"].dtype == torch.uint8
    assert extras["mask"][0].tolist() == [False, True, False, True]
    void = (torch.zeros(1, 1, 2), torch.tensor([[VOID, 0]]))
    assert parts(HorizontalFlip([(0, 1)], probability=1)(void))[1].tolist() == [[1, VOID]]


def test_horizontal_flip_by_chance() -> None:
    assert parts(HorizontalFlip(probability=0)(marked()))[1][0, 0] == 0
    flip = HorizontalFlip(generator=torch.Generator().manual_seed(0))
    flipped = sum(int(parts(flip(marked()))[1][0, 0] != 0) for _ in range(200))
    assert 60 < flipped < 140
    with pytest.raises(ValueError, match=says("each label once, got [(0, 1), (1, 2)]")):
        HorizontalFlip([(0, 1), (1, 2)])
    with pytest.raises(ValueError, match=says("swap: expected pairs of labels 0 to 254")):
        HorizontalFlip([(0, 255)])
    with pytest.raises(ValueError, match=says("probability: expected 0 to 1, got 2")):
        HorizontalFlip(probability=2)


def test_flipped_gives_mirror_images_an_index_of_their_own() -> None:
    figures = Figures(3, size=(32, 24), ragged=True)
    pairs = left_right_pairs(figures.class_names)
    assert len(pairs) == 9
    both = Flipped(figures, pairs)
    assert (len(both), both.sizes, both.num_labels) == (6, figures.sizes * 2, 20)
    image, target, _ = parts(figures[1])
    mirrored, turned, extras = parts(both[4])
    assert torch.equal(parts(both[1])[1], target)
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(extras["known"] == 19, turned == 19)
    names = figures.class_names
    left, right = names.index("leg0L"), names.index("leg0R")
    assert torch.equal(turned == left, (target == right).flip(-1))
    assert Indexed(both)[5][2] == 5
    with pytest.raises(IndexError, match=says("i: expected an index below 6, got 6")):
        both[6]


def test_transformed_knows_the_sizes_that_come_out() -> None:
    cropped = Transformed(Figures(4, size=(40, 32), ragged=True), RandomCrop((36, 27)))
    assert [tuple(parts(cropped[i])[1].shape) for i in range(4)] == cropped.sizes
    assert Transformed(Figures(1, size=(40, 32)), HorizontalFlip()).sizes == [(40, 32)]
    assert len(cropped) == 4
