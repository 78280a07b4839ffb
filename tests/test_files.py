"""Files as people have them: what is read rightly, what is said, and what is refused before anything is written."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import checkpoint
from tritoncrf.cli import main
from tritoncrf.commands import meanings, models, options
from tritoncrf.datasets import VOID, Figures, FolderDataset, Indexed, NpzDataset, VolumeDataset, collate, volumefiles
from tritoncrf.datasets.base import IndexedSample, Sample, unpack

SHORT = ["--neighborhood", "nearest:2", "--pretrain-epochs", "1", "--epochs", "0", "--sweeps", "1", "--engine", "torch",
         "--device", "cpu", "--network", "tiny_net:make"]  # fmt: skip
QUICK = ["--sweeps", "1", "--burn-in", "0", "--engine", "torch", "--device", "cpu", "--network", "tiny_net:make"]
NETWORKS = """
from torch import nn
from tritoncrf import networks

def make(channels, labels):
    return networks.small(channels, labels, 4, (1,))

def more(channels, labels):
    return nn.Conv2d(channels, labels + 1, 1)

def stride(channels, labels):
    return nn.Conv2d(channels, labels, 3, 4, padding=1)

class Named(nn.Module):
    def __init__(self, channels, labels):
        super().__init__()
        self.layer = nn.Conv2d(channels, labels, 1)

    def forward(self, image):
        return {"segmentation": self.layer(image)}
"""
Say = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in an empty folder beside a module of small networks."""
    (tmp_path / "tiny_net.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.modules.pop("tiny_net", None)
    sys.path[:] = before


def colour(path: str, size: tuple[int, int] = (6, 8), turn: int = 1, seed: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    if turn > 1:
        picture.getexif()[ExifTags.Base.Orientation] = turn
    picture.save(path, exif=picture.getexif())


def mask(path: str, values: Sequence[int] = (0, 1), size: tuple[int, int] = (6, 8)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pattern = np.resize(np.array(values, dtype=np.uint8), size)
    Image.fromarray(pattern).save(path)


def train(*words: str, labels: int = 2, out: str = "run") -> int:
    return main(["train", "--images", "images", "--masks", "masks", "--labels", str(labels), *SHORT, *words, "--out", out])


def refused(capsys: Say, sentence: str) -> None:
    """The last command ended with one sentence, and wrote nothing."""
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("tritoncrf: error: ")
    assert sentence in said[-1]
    assert not Path("run").exists()


# --- the census of labels


def test_masks_of_0_and_255_are_not_learned_as_one_label(capsys: Say) -> None:
    for stem in "ab":
        colour(f"images/{stem}.png")
        mask(f"masks/{stem}.png", (0, 255))
    assert train() == 2
    refused(capsys, "got label 0 alone and 50.0 % without a label: if 255 means label 1 and not 'no label', say --map 255=1")
    assert train("--map", "255=1") == 0
    assert "pixels by label: label 0 50.0 %, label 1 50.0 %" in capsys.readouterr().out
    # The map is kept: evaluation reads masks as training did, and warns where it is told to read them otherwise.
    assert main(["evaluate", "--model", "run", "--images", "images", "--masks", "masks", *QUICK]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["evaluate", "--model", "run", "--images", "images", "--masks", "masks", "--map", "0=0", *QUICK]) == 0
    assert "expected several labels to tell apart, got label 0 alone" in capsys.readouterr().err


def test_a_label_that_no_mask_has_is_named(capsys: Say) -> None:
    colour("images/a.png")
    mask("masks/a.png", (0, 1, 255, 0))
    assert train(labels=4) == 0
    said = capsys.readouterr()
    assert "label 0 50.0 %, label 1 25.0 %, no label 25.0 %" in said.out
    assert "warning: masks: no pixel of the images to learn from has label 2, label 3" in said.err


def test_training_or_validation_without_any_label_is_refused(capsys: Say) -> None:
    for stem, values in (("a", (255,)), ("b", (0, 1))):
        colour(f"images/{stem}.png")
        mask(f"masks/{stem}.png", values)
    for name in "ab":
        Path(f"{name}.txt").write_text(name)
    assert train("--files", "a.txt") == 2
    refused(capsys, "expected pixels with a label in the images to learn from, got none but 255")
    assert train("--files", "b.txt", "--validation-files", "a.txt") == 2
    refused(capsys, "expected pixels with a label in the validation images, got none")


def test_the_census_decodes_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    read: list[int] = []
    inner = FolderDataset.__getitem__

    def count(self: FolderDataset, i: int) -> Sample:
        read.append(i)
        return inner(self, i)

    monkeypatch.setattr(FolderDataset, "__getitem__", count)
    assert train() == 0
    # The census, a look at what the network makes of the image, and one epoch.
    assert len(read) == 3


# --- kinds of images


def test_a_grey_image_that_sorts_first_drops_no_colour(capsys: Say) -> None:
    for stem in "abc":
        colour(f"images/{stem}.png")
        mask(f"masks/{stem}.png")
    Image.new("L", (8, 6), 9).save("images/a.png")
    Path("list.txt").write_text("b\nc\n")
    assert train("--files", "list.txt") == 0
    assert "grey" not in capsys.readouterr().err
    assert models.read("run").kind.channels == 3
    assert train(out="all") == 0
    assert "note: images: 1 of 3 are grey (first" in capsys.readouterr().err
    assert models.read("all").kind.channels == 3
    Path("list.txt").write_text("a\n")
    assert train("--files", "list.txt", out="grey") == 0
    assert models.read("grey").kind.channels == 1
    capsys.readouterr()
    assert main(["predict", "--model", "grey", "images", "--out", "labels", *QUICK]) == 0
    assert "note: images: 2 of 3 are in colour (first images/b.png); all are read as grey" in capsys.readouterr().err


def test_depth_among_others_is_refused(capsys: Say) -> None:
    colour("images/a.png")
    Image.fromarray(np.full((6, 8), 2000, dtype=np.uint16)).save("images/b.png")
    for stem in "ab":
        mask(f"masks/{stem}.png")
    with pytest.raises(ValueError, match=r"expected 8-bit brightness or colour as in images/a\.png, got mode I;16 in images/b"):
        FolderDataset("images", "masks", num_labels=2, channels=None)
    assert train("--channels", "1") == 2
    refused(capsys, "expected 8-bit brightness or colour as in training, got mode I;16 in")


@pytest.mark.parametrize("turn", [2, 3, 6, 8])
def test_an_image_is_turned_upright_as_its_mask_is(turn: int) -> None:
    colour("images/a.png", (4, 6), turn)
    upright = (6, 4) if turn > 4 else (4, 6)
    mask("masks/a.png", size=upright)
    data = FolderDataset("images", "masks", num_labels=2)
    stored = np.asarray(Image.open("images/a.png"))
    turned = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}[turn]
    assert data.sizes == [upright]
    assert np.allclose(unpack(data[0])[0].permute(1, 2, 0), (turned / 255 - 0.5) * 4, atol=1e-6)
    assert "images: 1 of 1 turned upright by EXIF orientation" in data.notes[0]
    # As stored, which is how runs from before images were turned see it.
    if turn < 5:
        plain = FolderDataset("images", "masks", num_labels=2, exif=False)
        assert np.allclose(unpack(plain[0])[0].permute(1, 2, 0), (stored / 255 - 0.5) * 4, atol=1e-6)
        assert plain.notes == ()


def test_an_image_whose_mask_was_drawn_on_stored_pixels_stays_as_it_is() -> None:
    colour("images/a.jpg", (4, 6), 6)
    mask("masks/a.png", size=(4, 6))
    data = FolderDataset("images", "masks", num_labels=2)
    assert data.sizes == [(4, 6)]
    assert unpack(data[0])[0].shape == (3, 4, 6)
    assert "1 of 1 left as stored" in data.notes[0]


def test_a_square_image_is_turned_as_the_others_are() -> None:
    colour("images/a.jpg", (4, 4), 6)
    mask("masks/a.png", size=(4, 4))
    stored = np.asarray(Image.open("images/a.jpg")).astype(np.float64)

    def as_stored() -> bool:
        found = FolderDataset("images", "masks", num_labels=2, files=list(listed))
        assert any("the masks of 1 of" in line for line in found.notes)
        return bool(np.allclose(unpack(found[0])[0].permute(1, 2, 0), (stored / 255 - 0.5) * 4, atol=1e-6))

    listed = ["a"]
    assert not as_stored()
    colour("images/lies.jpg", (4, 6), 6)
    mask("masks/lies.png", size=(4, 6))
    listed = ["a", "lies"]
    assert as_stored()
    colour("images/stands.jpg", (4, 6), 6)
    mask("masks/stands.png", size=(6, 4))
    listed = ["a", "stands"]
    assert not as_stored()
    listed = ["a", "lies", "stands"]
    with pytest.raises(ValueError, match=r"expected masks that were all drawn upright, or all on stored .*a\.jpg, whose"):
        as_stored()


def test_a_mask_that_fits_neither_way_is_refused() -> None:
    colour("images/a.jpg", (4, 6), 6)
    mask("masks/a.png", size=(5, 5))
    with pytest.raises(ValueError, match=r"expected 6 x 4 pixels as .*a\.jpg has \(or 4 x 6, without its EXIF .*got 5 x 5"):
        FolderDataset("images", "masks", num_labels=2)


def test_predictions_are_upright(capsys: Say) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    assert train() == 0
    colour("new/b.jpg", (4, 6), 8)
    assert main(["predict", "--model", "run", "new", "--out", "labels", *QUICK]) == 0
    assert "1 of 1 turned upright by EXIF orientation; so are their labels" in capsys.readouterr().err
    with Image.open("labels/b.png") as found:
        assert found.size == (4, 6)
    # One file alone.
    assert main(["predict", "--model", "run", "images/a.png", "--out", "one", *QUICK]) == 0
    assert [path.name for path in Path("one").iterdir()] == ["a.png"]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_image_past_pillows_limit_is_named(capsys: Say, recwarn: pytest.WarningsRecorder) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    Path("images/a.png").write_bytes(png(20000, 10000, 8, b""))
    assert train() == 2
    refused(capsys, "images/a.png: expected at most 179 megapixels")
    # Half as large, which pillow only warns of, without a name.
    Path("images/a.png").write_bytes(png(10000, 10000, 8, b""))
    assert FolderDataset("images", None, num_labels=2).sizes == [(10000, 10000)]
    assert not [line for line in recwarn if "Decompression" in line.category.__name__]


def test_grey_levels_of_few_bits_are_label_numbers() -> None:
    """Tools that make PNGs smaller store few labels in few bits, which pillow spreads over 0 to 255."""
    for bits, row, values in ((4, b"\x01\x23", [0, 1, 2, 3]), (2, b"\x1b", [0, 1, 2, 3]), (1, b"\x50", [0, 1, 0, 1])):
        colour("images/a.png", (1, 4))
        mask("masks/a.png", size=(1, 4))
        Path("masks/a.png").write_bytes(png(4, 1, bits, b"\0" + row))
        assert unpack(FolderDataset("images", "masks", num_labels=4)[0])[1].tolist() == [values]


# --- names and lists


@pytest.fixture
def two() -> None:
    for stem in ("a", "\u00e9"):
        colour(f"images/{stem}.png")
        mask(f"masks/{stem}.png")


@pytest.mark.usefixtures("two")
def test_a_list_may_begin_with_a_byte_order_mark() -> None:
    Path("list.txt").write_bytes("\ufeffa\r\n\u00e9\r\n".encode())
    assert FolderDataset("images", "masks", num_labels=2, files="list.txt").stems == ["a", "\u00e9"]
    Path("list.txt").write_text("a.png\n")
    assert FolderDataset("images", "masks", num_labels=2, files="list.txt").stems == ["a"]


@pytest.mark.usefixtures("two")
def test_a_list_in_latin_1_is_named(capsys: Say) -> None:
    Path("list.txt").write_bytes("a\n\u00e9\n".encode("latin-1"))
    assert train("--files", "list.txt") == 2
    refused(capsys, "list.txt, whose line 2 has the byte 0xe9, as Latin-1 or UTF-16 would: save it as UTF-8")


@pytest.mark.usefixtures("two")
def test_what_macos_leaves_beside_an_image_is_passed_over() -> None:
    Path("images/._a.png").write_bytes(b"no picture")
    Path("masks/._a.png").write_bytes(b"no picture")
    colour("images/.cache/b.png")
    assert FolderDataset("images", "masks", num_labels=2, recursive=True).stems == ["a", "\u00e9"]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_jpeg_is_no_mask(name: str, capsys: Say) -> None:
    Path("masks/a.png").unlink()
    Image.new("L", (8, 6)).save(f"masks/{name}", format="JPEG")
    assert train() == 2
    refused(capsys, f"masks/{name}: JPEG" if name == "a.jpg" else "got JPEG in")


def cities() -> None:
    for city in ("aachen", "bonn"):
        for n in range(2):
            colour(f"images/{city}/{city}_{n}_leftImg8bit.png")
            mask(f"masks/{city}/{city}_{n}_gtFine_labelIds.png", (0, 7, 3, 8))
            colour(f"masks/{city}/{city}_{n}_gtFine_color.png")


def test_nested_folders_with_suffixes_as_in_cityscapes(capsys: Say) -> None:
    cities()
    assert train() == 2
    refused(capsys, "aachen_0_leftImg8bit.png in a folder of its own: --recursive reads those)")
    # A mask's suffix with its ending, an image's without.
    layout = ["--recursive", "--image-suffix", "_leftImg8bit", "--mask-suffix", "_gtFine_labelIds.png", "--map", "7=0,8=1"]
    assert train(*layout) == 2
    refused(capsys, "masks: expected 0 in the label map or void, as label 0 is what 7 means")
    assert train(*layout, "--void", "0", "3") == 0
    assert "label 0 25.0 %, label 1 25.0 %, no label 50.0 %" in capsys.readouterr().out
    assert options.resolve("run/config.toml", {}).void == (0, 3)
    assert main(["train", "--config", "run/config.toml", "--out", "again"]) == 0
    assert train(*layout[:-1], "7=0,8=1,*=255", out="rest") == 0
    assert main(["evaluate", "--model", "run", "--images", "images", "--masks", "masks", *QUICK]) == 0
    assert "4 images" in capsys.readouterr().out
    words = ["predict", "--model", "run", "images", "--recursive", "--image-suffix", "_leftImg8bit", *QUICK]
    assert main([*words, "--out", "labels"]) == 0
    assert sorted(path.as_posix() for path in Path("labels").rglob("*.png"))[0] == "labels/aachen/aachen_0.png"


def test_folders_that_lie_in_a_circle() -> None:
    cities()
    Path("images/aachen/back").symlink_to(Path("images").resolve())
    assert len(FolderDataset("images", None, num_labels=2, recursive=True).stems) == 4


def test_lists_of_pairs_as_those_of_voc(capsys: Say) -> None:
    for n in range(3):
        colour(f"voc/JPEGImages/2007_{n}.jpg")
        mask(f"voc/SegmentationClass/2007 {n}.png", (0, 1, 255))
    line = "/JPEGImages/2007_{0}.jpg\t/SegmentationClass/2007 {0}.png"
    Path("pairs.txt").write_text("\n".join(line.format(n) for n in (2, 0)))
    data = FolderDataset("voc", "voc", num_labels=2, files="pairs.txt")
    assert data.stems == ["JPEGImages/2007_2", "JPEGImages/2007_0"]
    given = [("JPEGImages/2007_1.jpg", "SegmentationClass/2007 1.png")]
    assert unpack(FolderDataset("voc", "voc", num_labels=2, files=given)[0])[1].flatten()[:4].tolist() == [0, 1, 255, 0]
    assert len(FolderDataset("voc", None, num_labels=2, files=given)) == 1
    with pytest.raises(FileNotFoundError, match=r"files: expected masks below voc, got 'SegmentationClass/1\.png', which"):
        FolderDataset("voc", "voc", num_labels=2, files=[("JPEGImages/2007_1.jpg", "SegmentationClass/1.png")])
    Path("plain.txt").write_text("2007_0\n2007_1\n")
    for path in Path("voc/SegmentationClass").iterdir():
        path.rename(path.with_name(path.name.replace(" ", "_")))
    assert len(FolderDataset("voc/JPEGImages", "voc/SegmentationClass", num_labels=2, files="plain.txt")) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [("255=1", {255: 1}), (" 7 = 0, 8=255", {7: 0, 8: 255}), ("*=255,1=0", dict.fromkeys(range(256), 255) | {1: 0})],
)
def test_maps_as_text_and_as_files(text: str, found: dict[int, int]) -> None:
    assert meanings.read_map(text) == found
    pairs = [part.split("=") for part in text.replace(" ", "").split(",")]
    Path("map.toml").write_text("\n".join(f'"{number}" = {label}' for number, label in pairs))
    assert meanings.read_map("map.toml") == found
    # A file counts from the settings' own folder; a text is none.
    Path("deep").mkdir()
    Path("deep/run.toml").write_text(f'map = "{text}"')
    assert options.resolve("deep/run.toml", {}).map == text
    Path("deep/run.toml").write_text('map = "map.toml"')
    assert options.resolve("deep/run.toml", {}).map == str(Path.cwd() / "deep" / "map.toml")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("7=", "map: expected NUMBER=LABEL joined by commas, got '7=' in '7='"),
        ("7=0,7=1", "map: expected every number once, got 7 twice"),
        ("x=0", "map: expected whole numbers to map, got 'x'"),
        ("none.toml", "map: expected a JSON or TOML file, or NUMBER=LABEL joined by commas, got none.toml, which does not"),
    ],
)
def test_bad_maps(given: str, sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        meanings.read_map(given)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"label_map": {7: 2}}, "label_map: expected numbers of at least 0 with labels below 2 or 255, got 7=2"),
        ({"label_map": {7: 0}, "palette": {(0, 0, 0): 0}}, "label_map: expected it for masks of label numbers"),
        ({"void": (0, 256)}, "void: expected 0 to 255, got 256"),
        ({"limit": 0}, "limit: expected a number of images of at least 1, or None, got 0"),
    ],
)
@pytest.mark.usefixtures("two")
def test_bad_readings(option: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        FolderDataset("images", "masks", num_labels=2, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["several", [1.5], [], True])
def test_bad_voids(value: object) -> None:
    with pytest.raises(ValueError, match="void: expected a whole number, or several, got"):
        options.from_values({"generated": 1, "void": value}, "flags")


# --- what is written


def test_two_predictions_never_share_a_file(capsys: Say) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    assert train() == 0
    for stem in ("a", "a.entropy"):
        colour(f"new/{stem}.png")
    words = ["predict", "--model", "run", "new", *QUICK]
    assert main([*words, "--entropy", "--out", "labels"]) == 2
    assert "expected names of their own, got labels/a.entropy.png for both entropy and labels" in capsys.readouterr().err
    assert not Path("labels").exists()
    assert main([*words, "--out", "labels"]) == 0


# --- networks


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("more", "expected logits [1, 2, 6, 8] for this batch, got [1, 3, 6, 8]: 2 labels need 2 channels"),
        ("stride", "expected logits [1, 2, 6, 8] for this batch, got [1, 2, 2, 2]: a network with a stride has to"),
        ("Named", "in what it returns, got keys ['segmentation']"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(name: str, sentence: str, capsys: Say) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    assert train("--network", f"tiny_net:{name}") == 2
    refused(capsys, sentence)


def test_the_look_at_a_network_draws_and_changes_nothing() -> None:
    class Drawing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image + torch.rand(())

    network = nn.Sequential(Drawing(), nn.Conv2d(1, 20, 1), nn.BatchNorm2d(20))
    states = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    models.probe(network, torch.device("cpu"), Figures(1, size=(20, 16)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in network.state_dict().items())
    assert network.training


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nn.Conv2d(1, 21, 1), "expected logits [2, 20, 20, 16] for this batch, got [2, 21, 20, 16]"),
        (lambda: nn.Conv2d(1, 20, 3, 4, padding=1), "expected logits [2, 20, 20, 16] for this batch, got [2, 20, 5, 4]"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "fit", "evaluate"])
def test_a_network_that_does_not_fit_is_named_at_the_first_step(
    make: Callable[[], nn.Module], sentence: str, stage: str
) -> None:
    loader = DataLoader(Indexed(Figures(2, size=(20, 16))), 2, collate_fn=collate)
    trainer = tc.Trainer(make(), tc.GridCRF(20, tc.Neighborhood.nearest(2)), quiet=True)
    with pytest.raises(ValueError, match="network: " + re.escape(sentence)):
        getattr(trainer, stage)(loader, **({} if stage == "evaluate" else {"epochs": 1}))


def test_a_target_of_another_shape_is_not_called_the_networks_fault() -> None:
    def channelled(items: list[IndexedSample]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])[:, None], torch.arange(1)

    loader = DataLoader(Indexed(Figures(1, size=(20, 16))), 1, collate_fn=channelled)
    trainer = tc.Trainer(nn.Conv2d(1, 20, 1), tc.GridCRF(20, tc.Neighborhood.nearest(2)), quiet=True)
    with pytest.raises(ValueError, match=re.escape("target: expected [1, 20, 16] as the image is, got [1, 1, 20, 16]")):
        trainer.pretrain(loader, 1)


# --- resuming


class Noisy:
    """A user's data set that draws numbers in its workers."""

    def __init__(self) -> None:
        self.inner = Indexed(Figures(4, size=(20, 16)))
        self.sizes = self.inner.sizes

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        image, *rest = self.inner[i]
        return (image + torch.rand(()), *rest)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.parametrize("own", [False, True])
def test_a_run_with_persistent_workers_resumes_in_the_same_order(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def make() -> tuple[tc.Trainer, DataLoader[object]]:
        torch.manual_seed(0)
        network = nn.Conv2d(1, 20, 1)
        network.register_forward_pre_hook(lambda module, given: seen.append(float(given[0].double().sum())))
        trainer = tc.Trainer(network, tc.GridCRF(20, tc.Neighborhood.nearest(2)), quiet=True)
        generator = torch.Generator().manual_seed(1) if own else None
        return trainer, DataLoader(
            Noisy(), 2, shuffle=True, collate_fn=collate, num_workers=1, persistent_workers=True, generator=generator,  # type: ignore[arg-type]
            multiprocessing_context=multiprocessing.get_context("fork"),
        )  # fmt: skip

    trainer, loader = make()
    saves: list[int] = []
    inner = trainer.save

    def save(path: str) -> None:
        inner(path)
        saves.append(len(seen))
        shutil.copy(path, f"{path}.{len(saves)}")

    monkeypatch.setattr(trainer, "save", save)
    trainer.pretrain(loader, 3, checkpoint="run.safetensors", every=3)
    whole = list(seen)
    assert saves == [2, 3, 4, 6, 6]
    for place in (1, 2, 3):
        trainer, loader = make()
        torch.rand(5)
        trainer.load(f"run.safetensors.{place}")
        seen.clear()
        trainer.pretrain(loader, 3)
        assert seen == whole[saves[place - 1] :]


def old_data() -> None:
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        Path(name).mkdir()
    for i in range(3):
        label = rng.integers(0, 3, (7, 8 + i), dtype=np.uint8)
        label[0, 0] = 7
        Image.fromarray(rng.integers(0, 256, (7, 8 + i, 3), dtype=np.uint8)).save(f"images/{i}.png")
        Image.fromarray(label).save(f"masks/{i}.png")


def test_a_run_from_before_there_were_maps_and_volumes_goes_on() -> None:
    """Stopped in the middle of an epoch by the version before; its tables once that version had gone on are these."""
    old_data()
    Path("old").mkdir()
    shutil.copy(Path(__file__).parent / "saved" / "stopped_run.safetensors", "old/checkpoint.safetensors")
    found = models.read("old")
    assert (found.settings.void, found.settings.map, found.settings.recursive) == (7, None, False)
    assert (found.kind.exif, found.kind.ndim) == (False, 2)
    # The tests' own copy of the network under the name that the run knows.
    Path("cli_net.py").write_text(NETWORKS)
    assert main(["train", "--resume", "old", "--network", "cli_net:make"]) == 0
    tables = checkpoint.tensor(checkpoint.read("old/checkpoint.safetensors", kind="training"), "pairwise")
    expected = [
        [-0.003260559868067503, -0.0014321800554171205, 0.002941752318292856],
        [-0.000247107440372929, 0.000304575776681304, -0.0009921026648953557],
        [0.0020130781922489405, 0.0023615022655576468, -0.0007512978627346456],
    ]
    assert torch.allclose(tables, torch.tensor([expected]), rtol=0, atol=1e-6)
    assert main(["predict", "--model", "old", "images", "--out", "labels", *QUICK[:-1], "cli_net:make"]) == 0
    assert len(list(Path("labels").iterdir())) == 3
    sys.modules.pop("cli_net")


# --- volumes


VOLUMES = ["--network", "small3d", "--neighborhood", "nearest3d:6", "--epochs", "1"]
AFFINE = np.array([[1.5, 0, 0, -20], [0, 1.5, 0, 5], [0, 0, 3, 7], [0, 0, 0, 1]])


def volume(n: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    label = np.zeros((4, 5, 6 + n), dtype=np.uint8)
    label[1:3, 1:4, 2:5] = 1
    return (label * 50 + np.random.default_rng(n).normal(0, 10, label.shape)).astype(np.int16), label


def test_volumes_in_npz_files_are_learned_and_labelled(capsys: Say) -> None:
    for name in ("images", "masks"):
        Path(name).mkdir()
    for n in range(2):
        image, label = volume(n)
        np.savez(f"images/{n}.npz", image=image, affine=AFFINE)
        np.savez(f"masks/{n}.npz", label * 255)
    assert train("--map", "255=1") == 2
    refused(capsys, "expected one for volumes, such as nearest3d:26 (with --network small3d), got nearest:2")
    assert train("--map", "255=1", *VOLUMES[2:]) == 2
    refused(capsys, "got [1, 1, 4, 5, 6]") if False else capsys.readouterr()
    assert train("--map", "255=1", "--batch-size", "2", *VOLUMES) == 0
    assert "small3d of 21,266 parameters, Neighborhood(3 classes, 6 neighbours, reach (1, 1, 1))" in capsys.readouterr().out
    words = ["--model", "run", *QUICK[:-2]]
    assert main(["evaluate", "--images", "images", "--masks", "masks", *words]) == 0
    assert main(["predict", "images", "--out", "labels", "--marginals", "--entropy", *words]) == 0
    with np.load("labels/1.npz") as found, np.load("labels/1.marginals.npz") as shares, np.load("labels/1.entropy.npz") as grey:
        assert (found["labels"].shape, found["labels"].dtype) == ((4, 5, 7), np.uint8)
        assert np.array_equal(found["affine"], AFFINE)
        assert shares["marginals"].shape == (2, 4, 5, 7)
        assert grey["entropy"].shape == (4, 5, 7)
    assert main(["predict", "images/0.npz", "--out", "one", *words]) == 0
    with np.load("labels/0.npz") as found, np.load("one/0.npz") as one:
        assert [path.name for path in Path("one").iterdir()] == ["0.npz"]
        assert np.array_equal(found["labels"], one["labels"])
    # What was written is read again as masks.
    assert VolumeDataset("images", "labels", num_labels=2, files=["0", "1"]).sizes == [(4, 5, 6), (4, 5, 7)]


def test_volumes_in_one_archive_are_learned_and_labelled(capsys: Say) -> None:
    pairs = [volume(0) for _ in range(3)]
    arrays: dict[str, NDArray[np.generic]] = {
        "volumes": np.stack([image for image, _ in pairs]), "labels": np.stack([label for _, label in pairs]),
        "class_names": np.array(["rest", "box"]), "split": np.array(["train", "train", "test"]),
        "sizes": np.array([[4, 5, 6], [4, 4, 6], [3, 5, 6]]),
    }  # fmt: skip
    np.savez("all.npz", **arrays)  # type: ignore[arg-type]
    words = ["train", "--npz", "all.npz", *SHORT, "--batch-size", "2", "--test-split", "test", "--out", "run"]
    assert main(words) == 2
    refused(capsys, "expected one for volumes")
    assert main([*words, *VOLUMES]) == 0
    assert "pixels by label: rest" in capsys.readouterr().out
    assert main(["predict", "all.npz", "--out", "labels", "--model", "run", "--entropy", *QUICK[:-2]]) == 0
    with np.load("labels/000001.npz") as found:
        assert found["labels"].shape == (4, 4, 6)
    data = NpzDataset("all.npz", "test")
    assert (list(map(list, data.sizes)), data.channels, data.ndim) == ([[3, 5, 6]], 1, 3)
    assert np.array_equal(unpack(data[0])[1], pairs[2][1][:3])
    np.savez("few.npz", **(arrays | {"volumes": np.zeros((3, 3, 4, 5, 6), np.float32)}))  # type: ignore[arg-type]
    assert unpack(NpzDataset("few.npz")[1])[0].shape == (3, 4, 4, 6)
    for change, sentence in (
        ({"volumes": np.zeros((3, 4))}, "expected numbers [N, D, H, W] or [N, C, D, H, W] as 'volumes' in"),
        ({"labels": np.zeros((3, 4, 5, 5), np.uint8)}, "expected uint8 [3, 4, 5, 6] as 'labels' in"),
        ({"sizes": np.full((3, 3), 6)}, "got 6 x 6 x 6 for image 0"),
    ):
        np.savez("bad.npz", **(arrays | change))
        with pytest.raises(ValueError, match=re.escape(sentence)):
            NpzDataset("bad.npz")
    colour("images/a.png")
    mask("masks/a.png")
    assert train(out="flat") == 0
    assert main(["predict", "few.npz", "--out", "none", "--model", "flat", *QUICK]) == 2
    assert "data: expected images of 2 axes as the model has, got 3" in capsys.readouterr().err


def test_volumes_in_nifti_files_keep_their_place(capsys: Say) -> None:
    nibabel = pytest.importorskip("nibabel")
    for name in ("images", "masks"):
        Path(name).mkdir()
    for n in range(2):
        image, label = volume(n)
        nibabel.save(nibabel.Nifti1Image(np.stack([image, image // 2], 3), AFFINE), f"images/{n}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label.astype(np.int16) * 1000, AFFINE), f"masks/{n}_seg.nii.gz")
    layout = ["--mask-suffix", "_seg", "--map", "1000=1"]
    assert train(*layout, *VOLUMES) == 0
    assert models.read("run").kind.channels == 2
    assert main(["predict", "images", "--out", "labels", "--entropy", "--model", "run", *QUICK[:-2]]) == 0
    found = nibabel.load("labels/1.nii.gz")
    assert (found.shape, found.get_data_dtype()) == ((4, 5, 7), np.uint8)
    assert np.allclose(found.affine, AFFINE)
    assert Path("labels/1.entropy.nii.gz").is_file()
    elsewhere = AFFINE.copy()
    elsewhere[0] *= -1
    nibabel.save(nibabel.Nifti1Image(volume(1)[1].astype(np.int16), elsewhere), "masks/1_seg.nii.gz")
    with pytest.raises(ValueError, match=r"expected voxels where images/1\.nii\.gz has them, got them up to 40 mm apart"):
        VolumeDataset("images", "masks", num_labels=2, mask_suffix="_seg")


def test_nifti_without_nibabel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images").mkdir()
    Path("images/a.nii").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=re.escape('pip install "tritoncrf[volumes]"')):
        VolumeDataset("images", None, num_labels=2)


def test_volumes_that_cannot_be_read() -> None:
    Path("images").mkdir()
    image, label = volume(0)
    cases: list[tuple[dict[str, NDArray[np.generic]], str]] = [
        ({"a": image, "b": image}, "expected one array, or one called 'image', got a, b"),
        ({"image": image[0]}, "expected a volume of 3 axes, or of 4 with channels, got [5, 6]"),
        ({"image": image}, "masks: expected an array 'label' beside the volume's own, got none"),
        ({"image": image, "label": label[1:]}, "masks: expected 4 x 5 x 6 voxels as"),
        ({"image": image, "label": label * 0.5}, "masks: expected whole numbers, got float64 with others in"),
        ({"image": np.full(image.shape, np.inf), "label": label}, "images: expected finite numbers, got others in"),
        ({"image": image, "label": label + 7}, "masks: expected labels 0 to 1 or void 255, got 7 in"),
    ]
    for arrays, sentence in cases:
        np.savez("images/a.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(sentence)):
            VolumeDataset("images", "images", num_labels=2)[0]
    Path("images/a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.npz: expected a volume, got one that cannot be read"):
        VolumeDataset("images", None, num_labels=2)


def test_volumes_of_several_sizes_make_a_batch() -> None:
    Path("images").mkdir()
    for n in range(2):
        image, label = volume(n)
        np.savez(f"images/{n}.npz", image=image, label=label)
    data = VolumeDataset("images", "images", num_labels=2)
    numbered = Indexed(data)
    items = [numbered[i] for i in range(2)]
    batch = collate(items)
    assert len(batch) == 4
    images, target, index, extras = batch
    assert (list(images.shape), list(target.shape), index.tolist()) == ([2, 1, 4, 5, 7], [2, 4, 5, 7], [0, 1])
    assert extras["sizes"].tolist() == [[4, 5, 6], [4, 5, 7]]
    assert (target[0, :, :, 6] == VOID).all()
    assert torch.equal(images[1], items[1][0])
    assert abs(float(items[0][0].mean())) < 1e-6
    assert abs(float(items[0][0].std(correction=0)) - 1) < 1e-6
    assert len(collate(items[:1])) == 3
    assert volumefiles.affine(data.paths[0]) is None


def test_neighbourhoods_of_pictures_and_volumes_do_not_mix(capsys: Say) -> None:
    colour("images/a.png")
    mask("masks/a.png")
    assert train("--neighborhood", "nearest3d:6") == 2
    refused(capsys, "neighborhood: expected one for pictures, such as nearest:8 (with --network small), got nearest3d:6")
    assert train("--network", "small3d") == 2
    refused(capsys, "network: expected one for pictures, such as small, got small3d")
    assert train("--neighborhood", "nearest3d:6+grid:1") == 2
    refused(capsys, "neighborhood: expected parts all for images or all for volumes, got 'nearest3d:6+grid:1'")
