"""Every command runs for real at toy size; a stopped run resumes to the same bits; errors are one sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.warm import Warm
from tritoncrf import checkpoint, engines
from tritoncrf.checkpoint import Tree
from tritoncrf.cli import main
from tritoncrf.commands import doctor, meanings, models, neighborhoods, options
from tritoncrf.datasets import Figures
from tritoncrf.lattice import Neighborhood

ROOT = Path(__file__).parent.parent
TOY = ["--generated", "6", "--generated-size", "24x20", "--neighborhood", "grid:4:2+grid:1", "--pretrain-epochs", "1",
       "--epochs", "2", "--sweeps", "2", "--batch-size", "2", "--device", "cpu", "--engine", "torch"]  # fmt: skip
QUICK = ["--sweeps", "2", "--burn-in", "1", "--engine", "torch"]
# Stops itself by Ctrl-C after so many forward passes, as a user would.
FACTORY = """
import os, signal
from tritoncrf import networks

def make(channels, labels):
    network, left = networks.small(channels, labels, 4), [int(os.environ.get("STOP_AFTER", "-1"))]
    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
    network.register_forward_pre_hook(count)
    return network
"""

Say = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TOY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """16-bit depth images of several sizes, and their masks."""
    root = tmp_path_factory.mktemp("folders")
    images, masks = root / "images", root / "masks"
    images.mkdir()
    masks.mkdir()
    figures = Figures(3, 5, (28, 24), ragged=True)
    for i in range(3):
        depth, label = figures.depth_and_labels(i)
        Image.fromarray(depth).save(images / f"person{i}.png")
        Image.fromarray(label).save(masks / f"person{i}.png")
    return images, masks


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    figures = Figures(4, 6, (24, 20), ragged=True)
    pairs = [figures.depth_and_labels(i) for i in range(4)]
    path = tmp_path_factory.mktemp("npz") / "bodies.npz"
    np.savez(
        path, depth=np.concatenate([depth.ravel() for depth, _ in pairs]),
        label=np.concatenate([label.ravel() for _, label in pairs]), size=np.array(figures.sizes),
        offset=np.cumsum([0] + [h * w for h, w in figures.sizes]), class_names=np.array(figures.class_names), background=19,
        split=np.array(["train", "train", "train", "test"]),
    )  # fmt: skip
    return path


def flat(tree: Tree, name: str = "") -> dict[str, Tree]:
    """The leaves of a checkpoint by dotted name, but for its history, which tells clock times too."""
    if isinstance(tree, dict):
        parts = [(str(key), part) for key, part in tree.items()]
    elif isinstance(tree, list | tuple):
        parts = [(str(place), part) for place, part in enumerate(tree)]
    else:
        return {name: tree}
    return {key: leaf for own, part in parts if own != "history" for key, leaf in flat(part, f"{name}.{own}").items()}


def assert_same(one: Path, other: Path) -> None:
    left, right = (flat(checkpoint.read(folder / "checkpoint.safetensors", kind="training")) for folder in (one, other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]  # type: ignore[arg-type]
        assert same, name


def test_demo_writes_a_report(tmp_path: Path, capsys: Say) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--small", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "control" in said
    assert str(out / "report.md") in said
    page = (out / "report.md").read_text()
    names = {path.name for path in out.iterdir()}
    for name in [*(line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")), "demo.json"]:
        assert name in names
        assert name in page
    found = json.loads((out / "demo.json").read_text())
    assert all(0 <= found[who] <= 1 for who in ("network", "control", "crf"))
    with Image.open(out / "labels.png") as image:
        assert image.width > 300
    # Its own report may be written over; what is not its own is left alone.
    assert models.new_folder(str(out), allow="demo.json") == out
    (out / "demo.json").unlink()
    assert main(["demo", "--small", "--out", str(out)]) == 2


def test_train_writes_what_it_says(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == {"checkpoint.safetensors", "config.toml", "log.jsonl"}
    stages = [json.loads(line)["stage"] for line in (model / "log.jsonl").read_text().splitlines()]
    assert stages == ["pretrain", "joint", "joint"]


@pytest.mark.parametrize(("edges", "shape"), [("steps:0.2", [16, 3, 20, 20]), ("gaussian:0.3", [1, 16, 20, 20])])
def test_tables_that_see_the_image(edges: str, shape: list[int], tmp_path: Path, capsys: Say) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    assert main(["train", *TOY, "--edges", edges, "--out", str(out)]) == 0
    assert ("3 kinds" if "steps" in edges else "1 gate") in capsys.readouterr().out
    tree = checkpoint.read(out / "checkpoint.safetensors", kind="training")
    learned = checkpoint.group(tree, "crf")["pairwise" if "steps" in edges else "gated"]
    assert isinstance(learned, torch.Tensor)
    assert list(learned.shape) == shape
    assert bool(learned.any())
    # The model folder says what its tables see: nothing has to be said again.
    assert main(["evaluate", "--model", str(out), "--generated", "2", *QUICK]) == 0
    assert main(["train", "--config", str(out / "config.toml"), "--out", str(again)]) == 0
    assert_same(out, again)


def test_edges_that_are_none(tmp_path: Path, capsys: Say) -> None:
    assert main(["train", *TOY, "--edges", "stairs:0.2", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "edges: expected" in said
    assert "steps:" in said
    assert not (tmp_path / "run").exists()


def test_config_goes_round(model: Path, tmp_path: Path) -> None:
    given = tomllib.loads((model / "config.toml").read_text())
    wanted = {"generated": 6, "neighborhood": "grid:4:2+grid:1", "pretrain_rate": 3e-3}
    assert given.items() >= wanted.items()
    settings = options.resolve(str(model / "config.toml"), {})
    assert settings.values().items() >= given.items()
    assert options.resolve(str(model / "config.toml"), {"epochs": 9}).epochs == 9
    again = tmp_path / "again"
    assert main(["train", "--config", str(model / "config.toml"), "--out", str(again)]) == 0
    assert_same(model, again)


def test_paths_in_a_config_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('npz = "data/x.npz"\n')
    assert options.resolve(str(tmp_path / "run.toml"), {}).npz == str(tmp_path / "data" / "x.npz")
    assert options.resolve(None, {"npz": "x.npz"}).npz == str(Path.cwd() / "x.npz")


def test_odd_strings_survive_toml(tmp_path: Path) -> None:
    settings = options.Settings(npz='/a "b" \\c\n\t\u00e9\U0001f600.npz', pretrain_rate=1e-05)
    options.write_toml(tmp_path / "x.toml", settings)
    assert options.resolve(str(tmp_path / "x.toml"), {}) == settings


@pytest.mark.parametrize("passes", [2, 5, 8])
def test_ctrl_c_then_resume_gives_the_same_bits(
    passes: int, tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    toy = [*TOY, "--network", "cli_net:make", "--method", "cd" if passes == 5 else "pcd"]
    assert main(["train", *toy, "--out", "whole"]) == 0
    monkeypatch.setenv("STOP_AFTER", str(passes))
    assert main(["train", *toy, "--out", "stopped"]) == 130
    monkeypatch.delenv("STOP_AFTER")
    said = capsys.readouterr().out
    assert "tritoncrf train --resume stopped --network cli_net:make" in said
    assert main(["train", "--resume", "stopped", "--network", "cli_net:make"]) == 0
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    assert main(["train", "--resume", "stopped"]) == 2
    assert "expected --network cli_net:make" in capsys.readouterr().err
    sys.modules.pop("cli_net")
    sys.path.remove(str(tmp_path))


def test_ctrl_c_in_a_process_of_its_own(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_net.py").write_text(FACTORY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def go(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return warm.run(["-m", "tritoncrf.cli", *words], cwd=tmp_path, env=environment | extra)

    toy = ["train", *TOY, "--network", "cli_net:make"]
    stopped = go(*toy, "--out", "stopped", STOP_AFTER="6")
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr
    command = stopped.stdout.splitlines()[-1].split()
    assert command[:2] == ["tritoncrf", "train"]
    assert go(*command[1:]).returncode == 0

    # One thread here too: the order of a convolution's sums may depend on how many share them.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert main([*toy, "--out", str(tmp_path / "whole")]) == 0
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("cli_net")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_predict_on_a_folder(model: Path, pictures: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["predict", "--model", str(model), str(pictures[0]), "--out", str(out), "--marginals", "--entropy"]
    assert main([*words, *QUICK]) == 0
    for path in pictures[0].iterdir():
        grey = out / f"{path.stem}.entropy.png"
        with Image.open(path) as image, Image.open(out / path.name) as labels, Image.open(grey) as entropy:
            assert (labels.mode, entropy.mode) == ("P", "L")
            assert labels.size == entropy.size == image.size
            given, depth = np.array(labels), np.array(image)
        assert (given[depth == 0] == 19).all()
        marginals = np.load(out / f"{path.stem}.npz")["marginals"]
        assert marginals.dtype == np.float16
        assert marginals.shape == (20, *given.shape)
        assert np.allclose(marginals.astype(np.float32).sum(0), 1, atol=0.01)
        assert (marginals.argmax(0) == given).mean() > 0.99


def test_predict_on_an_archive(model: Path, archive: Path, tmp_path: Path) -> None:
    words = ["predict", "--model", str(model), str(archive), *QUICK]
    assert main([*words, "--out", str(tmp_path / "all")]) == 0
    assert main([*words, "--split", "test", "--out", str(tmp_path / "test")]) == 0
    assert len(list((tmp_path / "all").iterdir())) == 4
    assert [path.name for path in (tmp_path / "test").iterdir()] == ["000003.png"]


def test_evaluate(model: Path, pictures: tuple[Path, Path], archive: Path, capsys: Say) -> None:
    folders = ["--images", str(pictures[0]), "--masks", str(pictures[1])]
    for source, count in ((["--npz", str(archive)], 1), (folders, 3), (["--generated", "2"], 2)):
        capsys.readouterr()
        assert main(["evaluate", "--model", str(model), *source, *QUICK, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["images"], found["background"]) == (count, "background")
        for who in ("network", "crf"):
            assert 0 <= found[who]["accuracy"] <= 1
            assert len(found[who]["per_class"]) == 20
    assert main(["evaluate", "--model", str(model), "--generated", "2", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "mean IoU" in said
    assert "torso0L" in said


def test_train_on_folders_with_a_palette(tmp_path: Path, capsys: Say) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    for i in range(4):
        label = rng.integers(0, 3, (12 + i, 16))
        Image.fromarray(rng.integers(0, 256, (12 + i, 16, 3), dtype=np.uint8)).save(images / f"{i}.png")
        Image.fromarray(colours[label]).save(masks / f"{i}.png")
    (tmp_path / "palette.toml").write_text('"#000000" = 255\n"#ff0000" = 0\n"#0000ff" = 1\n')
    (tmp_path / "held.txt").write_text("3\n")
    (tmp_path / "palette.json").write_text('{"#000000": 255, "#ff0000": 0, "#0000ff": 1}')
    assert meanings.read_palette(str(tmp_path / "palette.json")) == meanings.read_palette(str(tmp_path / "palette.toml"))
    folders = ["--images", str(images), "--masks", str(masks), "--palette", str(tmp_path / "palette.toml")]
    short = ["--labels", "2", "--neighborhood", "nearest:4", "--pretrain-epochs", "1", "--epochs", "1", "--mode", "separate",
             "--engine", "torch"]  # fmt: skip
    held = ["--validation-files", str(tmp_path / "held.txt")]
    assert main(["train", *folders, *short, *held, "--out", str(tmp_path / "run")]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    tree = checkpoint.read(tmp_path / "run" / "checkpoint.safetensors", kind="training")
    # Pixels without a label make the run keep their chains as well.
    assert checkpoint.tensors(tree, "chains")["labels"].shape[0] == 2
    assert main(["evaluate", "--model", str(tmp_path / "run"), *folders[:4], *QUICK]) == 0


def test_doctor(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHAINS", 4096)
    monkeypatch.setattr(engines, "report", lambda device: {"numba": "not today", "torch": "ready"})
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "triton", "not today", "exact: 4096 chains", "all is well"):
        assert word in said


@pytest.mark.parametrize(
    ("triton", "numpy", "named"),
    [
        ("3.6.0", "2.4.6", True), ("3.6.0+git1", "3.0.0", True), ("3.6.0", "2.3.5", False), ("3.7.0", "2.4.6", False),
        ("4.0.0", "2.10.0", False), ("3.6.0", "2.10.0", True), ("not installed", "2.4.6", False),
    ],
)  # fmt: skip
def test_doctor_names_a_numpy_that_triton_cannot_interpret_with(
    triton: str, numpy: str, named: bool, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "report", lambda device: {"torch": "not today"})
    monkeypatch.setattr(doctor, "_version", {"triton": triton, "numpy": numpy}.get)
    assert main(["doctor"]) == 0
    sentence = f"Triton {triton} cannot interpret kernels (TRITON_INTERPRET=1) with NumPy {numpy}, though it compiles them"
    assert (sentence in (said := capsys.readouterr().out)) == named
    assert ("pip install 'numpy<2.4'" in said) == named


def test_doctor_warms_the_kernels(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are compiled it says how long each took, or that it was kept; Triton is told by a stand-in."""
    doctor._warm(torch.device("cpu"))
    assert "nothing to compile" in capsys.readouterr().out
    compilation = SimpleNamespace(listener=None)
    importing = "tritoncrf.commands.doctor.importlib.import_module"
    monkeypatch.setattr(importing, lambda name: SimpleNamespace(compilation=compilation))

    def compiles(device: torch.device) -> None:
        for name, hit in (("gather_phase", False), ("gather_phase", False), ("initial_draw", True)):
            times = SimpleNamespace(total=1_500_000)
            compilation.listener(src=SimpleNamespace(name=name), metadata={}, metadata_group={}, times=times, cache_hit=hit)

    monkeypatch.setattr(doctor, "sweep_all", compiles)
    doctor._warm(torch.device("cuda"))
    assert "compiled: gather_phase 3.0 s, initial_draw cached" in capsys.readouterr().out
    assert compilation.listener is None


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
def test_what_doctor_warms_runs() -> None:
    code = "import torch; from tests.quick_interpreter import install; from tritoncrf.commands import doctor; install()"
    code += "; doctor.sweep_all(torch.device('cpu'), 2, 2)"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_doctor_finds_a_fault(capsys: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CHAINS", 16384)
    chi, freedom, apart, limit = doctor.exactness("torch", torch.device("cpu"), fault=1.0)
    assert apart > limit
    monkeypatch.setattr(engines, "report", lambda device: {"torch": "ready"})
    monkeypatch.setattr(doctor, "exactness", lambda *_: (chi, freedom, apart, limit))
    assert main(["doctor"]) == 1
    assert "NOT EXACT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nearest:64", Neighborhood.nearest(64)),
        ("grid:24:8+grid:1+grid:2:2", Neighborhood.grid(24, 8) | Neighborhood.grid(1) | Neighborhood.grid(2, 2)),
        ("rays:32", Neighborhood.rays(32)),
        ("rays:32:4 + nearest:8", Neighborhood.rays(32, 4) | Neighborhood.nearest(8)),
        ("log_polar:40", Neighborhood.log_polar(40)),
        ("log_polar:40:4:6", Neighborhood.log_polar(40, 4, 6)),
    ],
)
def test_neighbourhood_expressions(text: str, expected: Neighborhood) -> None:
    assert neighborhoods.parse(text) == expected


@pytest.mark.parametrize("text", ["", "grid", "grid:", "grid:x", "grid:1:2:3", "near:4", "grid:4+", "nearest:-4", "grid:4:8",
                                  "nearest:3", "grid:4;grid:1", "grid:\u0664"])  # fmt: skip
def test_bad_neighbourhood_expressions(text: str) -> None:
    with pytest.raises(ValueError, match=r"neighborhood: .*expected"):
        neighborhoods.parse(text)


# Command lines, with {tmp}, {model} and what the makers above return in place of their names.
ERRORS: dict[str, tuple[str, str]] = {
    "no data": ("train --out {tmp}/x", "data: expected just one of --npz"),
    "missing file": ("train --npz {tmp}/no.npz --out {tmp}/x", "does not exist"),
    "missing config": ("train --config no.toml --out {tmp}/x", "config: expected a TOML file"),
    "unknown key": ("train --config {tmp}/unknown.toml --out {tmp}/x", "got the key 'epoch'"),
    "wrong type": ("train --config {tmp}/wrong.toml --out {tmp}/x", "epochs: expected a whole number, got 3.5"),
    "no TOML": ("train --config {tmp}/none.toml --out {tmp}/x", "config: expected TOML"),
    "unknown network": ("train {toy} --network huge --out {tmp}/x", "expected 'small', 'small3d', 'table1' or"),
    "unknown module": ("train {toy} --network no_such:net --out {tmp}/x", "a module that can be imported"),
    "bad neighbourhood": (
        "train {toy} --neighborhood grid:a --out {tmp}/x",
        "neighborhood: expected grid:REACH[:STEP] with whole numbers, got 'grid:a'",
    ),
    "missing engine": ("train {toy} --engine {absent} --out {tmp}/x", "engine: expected"),
    "missing device": ("train {toy} --device tpu9 --out {tmp}/x", "device: expected"),
    "flag of another source": ("train {toy} --labels 3 --out {tmp}/x", "labels: expected"),
    "no out": ("train {toy}", "out: expected --out FOLDER"),
    "folder in use": ("train {toy} --out {model}", "tritoncrf train --resume"),
    "resume with settings": ("train --resume {model} --epochs 9", "got --epochs"),
    "resume nothing": ("train --resume {tmp}", "expected a folder with checkpoint.safetensors"),
    "foreign checkpoint": ("evaluate --model {tmp}/foreign --generated 2", "expected a tritoncrf training file, got chains"),
    "truncated checkpoint": ("evaluate --model {tmp}/truncated --generated 2", "truncated or foreign"),
    "another's run": ("evaluate --model {tmp}/bare --generated 2", "expected a run of `tritoncrf train`"),
    "unreadable image": ("predict --model {model} {tmp}/broken --out {tmp}/x", "a.png: expected an image"),
    "brightness for depth": ("predict --model {model} {tmp}/bright --out {tmp}/x", "expected 16-bit depth"),
    "no sweeps": ("predict --model {model} {tmp}/foreign --out {tmp}/x --sweeps 0", "sweeps: expected an integer of at"),
    "no images": ("predict --model {model} {tmp}/foreign --out {tmp}/x", "expected at least one image"),
    "masks missing": ("evaluate --model {model} --images {tmp}", "masks: expected --masks"),
    "unknown command": ("trian", "invalid choice: 'trian'"),
    "no command": ("", "required: COMMAND"),
    "not a number": ("train --epochs many", "invalid int value: 'many'"),
}


@pytest.fixture
def bad(tmp_path: Path, model: Path) -> Path:
    """A folder of things that are wrong, each in its own way."""
    for name in ("foreign", "truncated", "bare", "broken", "bright"):
        (tmp_path / name).mkdir()
    name = "checkpoint.safetensors"
    checkpoint.write(tmp_path / "foreign" / name, {"labels": torch.zeros(2)}, kind="chains")
    checkpoint.write(tmp_path / "bare" / name, {"extra": {}, "offsets": torch.ones(1, 2)}, kind="training")
    whole = (model / name).read_bytes()
    (tmp_path / "truncated" / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    Image.new("L", (24, 20)).save(tmp_path / "bright" / "a.png")
    for kind, text in (("unknown", "epoch = 3"), ("wrong", "epochs = 3.5"), ("none", "epochs =")):
        (tmp_path / f"{kind}.toml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_sentence(name: str, bad: Path, model: Path, capsys: Say) -> None:
    line, expected = ERRORS[name]
    ready = engines.report(torch.device("cpu"))
    absent = next((engine for engine, state in ready.items() if state != "ready"), None)
    if "{absent}" in line and absent is None:
        pytest.skip("every engine runs here")
    words = line.format(tmp=bad, model=model, toy=" ".join(TOY), absent=absent).split()
    before = (model / "checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tritoncrf: error: ")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert not (bad / "x").exists(), "nothing is written"
    assert (model / "checkpoint.safetensors").read_bytes() == before


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(ValueError, match="out: expected"):
        main(["train", "--debug", *TOY])


def test_version_and_help(capsys: Say) -> None:
    commands = ("train", "predict", "evaluate", "demo", "doctor")
    for words in (["--version"], ["--help"], *([name, "--help"] for name in commands)):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
    assert "tritoncrf 0." in capsys.readouterr().out
