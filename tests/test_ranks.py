"""The same chains on any number of ranks: 1 x 8, 2 x 4 and 4 x 2 images a step, whoever holds the chains, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import tritoncrf as tc
from tests.warm import Program, Started, Warm
from tritoncrf.ranks import Meeting, Ranks
from tritoncrf.sharding import Share, unpack

ROOT = Path(__file__).parent.parent
CASES = ("whole", "borrowed", "moved", "cd", "soft", "paced")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)


def start(
    warm: Warm, ranks: int, folder: Path, *words: str, real: bool = False, **more: str
) -> list[Program | Started]:
    """`rank_worker` on so many ranks, which meet at a file; real: each with hashes of strings and addresses of its own."""
    environment = {**os.environ, **more, "WORLD_SIZE": str(ranks), "MEETING": str(folder / f"meeting_{uuid.uuid4()}")}
    command = ["-W", "ignore", "-m", "tests.rank_worker", str(folder), *words]
    return [warm.start(command, env=environment | {"RANK": str(rank)}, real=real) for rank in range(ranks)]


def finish(*jobs: list[Program | Started]) -> None:
    for job in jobs:
        for done in [rank.wait() for rank in job]:
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def results(folder: Path, case: str, rank: int = 0) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = torch.load(folder / f"{case}_{rank}.pt", weights_only=True)
    return found


def differences(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> list[tuple[int, str]]:
    pairs = zip(one[-len(other) :], other, strict=True)
    return [
        (int(a["epoch"]), name) for a, b in pairs for name in a if name != "bytes" and not torch.equal(a[name], b[name])
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") for ranks in (1, 2, 4)}
    finish(*(start(warm, ranks, folder, *CASES, real=ranks == 2) for ranks, folder in folders.items()))
    return folders


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_makes_the_same_chains_tables_and_weights(runs: dict[int, Path], ranks: int, case: str) -> None:
    alone = results(runs[1], case)
    assert len(alone) == 3
    assert bool(alone[-1]["loss.crf.pairwise"].any())
    for rank in range(ranks):
        assert differences(alone, results(runs[ranks], case, rank)) == []


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_shared_store_holds_its_share(runs: dict[int, Path], ranks: int) -> None:
    total = int(results(runs[1], "whole")[0]["bytes"])
    shares = [int(results(runs[ranks], "borrowed", rank)[0]["bytes"]) for rank in range(ranks)]
    # Two spare bytes a rank, one for each phase.
    assert sum(shares) - 2 * ranks == total - 2
    assert max(shares) < 1.1 * total / ranks


@pytest.mark.parametrize(("wrote", "goes_on"), [(2, 1), (2, 4)])
def test_a_state_goes_on_on_another_number_of_ranks(
    warm: Warm, runs: dict[int, Path], tmp_path: Path, wrote: int, goes_on: int
) -> None:
    shutil.copy(runs[wrote] / "moved_after_one.pt", tmp_path / "state.pt")
    finish(start(warm, goes_on, tmp_path, "moved"))
    assert differences(results(runs[1], "moved"), results(tmp_path, "moved")) == []


def test_a_mean_is_over_the_pixels_of_all_ranks(warm: Warm, runs: dict[int, Path], tmp_path: Path) -> None:
    """Weights as far as sums of a network's own gradients are exact; the first epoch's chains and all tables' factors are."""
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    finish(*(start(warm, ranks, folder, "mean") for ranks, folder in folders.items()))
    one, two = (results(folder, "mean") for folder in folders.values())
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["labelled"], b["labelled"])
        assert torch.allclose(a["network.weight"], b["network.weight"], atol=1e-6)
        assert torch.equal(a["grad"], b["grad"])
        assert torch.equal(a["loss.chains.labels"], b["loss.chains.labels"])


def test_an_image_on_two_ranks_keeps_one_chain_and_ranks_may_hold_unlike_numbers(warm: Warm, tmp_path: Path) -> None:
    finish(start(warm, 2, tmp_path, "twice"))
    for share in ("whole", "shared"):
        one, two = results(tmp_path, f"twice_{share}", 0), results(tmp_path, f"twice_{share}", 1)
        assert torch.equal(one[0]["labels"], two[0]["labels"])
        assert one[0]["sweeps"].tolist() == [3, 3, 3, 0, 3]
        # That of the first rank, whose logits forbade all but label 1.
        assert bool((one[0]["labels"][0, : 4 * 5] == 1).all())


def test_losses_that_are_not_alike_are_refused_on_every_rank(warm: Warm, tmp_path: Path) -> None:
    finish(start(warm, 2, tmp_path, "unlike"))
    for rank in range(2):
        sentences = torch.load(tmp_path / f"unlike_{rank}.pt", weights_only=True)
        assert sentences == [
            "tables: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "chains' sizes: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "seed: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "reduction: expected 'mean' or 'sum' on 2 ranks, got 'none'",
            "chains' replicas, latent and shared: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "chains' replicas, latent and shared: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "weight: expected the same on every rank, got other ones on rank 1 than on rank 0",
            "chains' sweeps: expected the same on every rank, got other ones on rank 1 than on rank 0",
        ]


def test_loaders_of_unlike_lengths_are_refused_and_a_save_is_waited_for(warm: Warm, tmp_path: Path) -> None:
    finish(start(warm, 2, tmp_path, "uneven"))
    for rank in range(2):
        assert torch.load(tmp_path / f"uneven_{rank}.pt", weights_only=True) == [
            "loader: expected as many epochs and batches on every rank, got 1 x 2, 1 x 3", "no file"
        ]  # fmt: skip


def test_a_network_in_shards_and_tables_in_shards_learn_alike(warm: Warm, tmp_path: Path) -> None:
    """FSDP2: `fully_shard` on the network, and on the loss too."""
    pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP2")
    finish(start(warm, 2, tmp_path, "fsdp"))
    plain, sharded, tables = (results(tmp_path, f"fsdp_{name}")[0] for name in ("plain", "network", "both"))
    for name, part in plain.items():
        assert torch.equal(part, sharded[name]), name
        assert torch.equal(part, tables[name]), name


def test_a_trainer_on_two_ranks_makes_one_log_one_checkpoint_and_the_figures_of_one(warm: Warm, tmp_path: Path) -> None:
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    finish(*(start(warm, ranks, folder, "trainer", DROPOUT="0") for ranks, folder in folders.items()))
    one, two, other = results(folders[1], "trainer")[0], results(folders[2], "trainer")[0], results(folders[2], "trainer", 1)[0]
    for name, part in two.items():
        assert torch.equal(part, other[name]), name
    assert sorted(file.name for file in folders[2].iterdir() if file.suffix in (".jsonl", ".safetensors")) == [
        "log_0.jsonl", "run.safetensors"
    ]  # fmt: skip
    lines = [(folder / "log_0.jsonl").read_text().splitlines() for folder in folders.values()]
    assert len(lines[0]) == len(lines[1]) == 4
    # As far as the sums of a network's gradients are exact.
    assert torch.allclose(one["loss"], two["loss"], atol=1e-3)
    assert torch.allclose(one["3.weight"], two["3.weight"], atol=1e-3)
    assert int(one["confusion"].sum()) == int(two["confusion"].sum())
    assert int((one["labels"] != two["labels"]).sum()) <= one["labels"].numel() // 100


def test_a_trainer_on_two_ranks_stopped_on_one_goes_on_on_the_same_bits(warm: Warm, tmp_path: Path) -> None:
    """Ctrl-C on the second rank alone, in the middle of an epoch: both stop, and both go on with their own generators."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    finish(start(warm, 2, whole, "trainer"), start(warm, 2, broken, "trainer", STOP_AT="1"))
    assert not (broken / "trainer_0.pt").exists()
    finish(start(warm, 2, broken, "trainer"))
    one, two = results(whole, "trainer")[0], results(broken, "trainer")[0]
    for name, part in one.items():
        assert torch.equal(part, two[name]), name


SMALL = (
    "-m", "tritoncrf", "train", "--generated", "8", "--generated-size", "40x30", "--pretrain-epochs", "1", "--epochs", "1",
    "--sweeps", "3", "--neighborhood", "nearest:8",
)  # fmt: skip


def test_the_command_line_on_two_ranks_is_one_run(warm: Warm, tmp_path: Path) -> None:
    more = [*SMALL, "--batch-size", "2", "--test-split", "t", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, "-W", "ignore", *launch, *more, str(tmp_path / "2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = warm.start([*more, str(tmp_path / "1")])
    two = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    said = []
    for done in (alone.wait(), two):
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (done.stdout + done.stderr).splitlines()
        said.append([line for line in lines if line.startswith(("pretrain", "joint", "test", "done"))])
    assert len(said[1]) == len(said[0]) == 4
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("1", "2")]
    for one, other in zip(*logs, strict=True):
        # As far as the sums of a network's gradients are exact.
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-3)
    assert sorted(file.name for file in (tmp_path / "2").iterdir()) == ["checkpoint.safetensors", "config.toml", "log.jsonl"]


def test_the_command_line_refuses_a_batch_that_ranks_cannot_share(warm: Warm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [*SMALL, "--batch-size", "3", "--out", str(tmp_path / "3")]
    ranks = [warm.start(command, env={**os.environ, **meeting, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    for done in [rank.wait() for rank in ranks]:
        assert done.returncode == 2
        assert done.stderr == "tritoncrf: error: batch_size: expected a multiple of the 2 ranks, got 3\n"
    assert not (tmp_path / "3").exists()


def test_planted_faults_are_caught(warm: Warm, runs: dict[int, Path], tmp_path: Path) -> None:
    finish(start(warm, 2, tmp_path, "faults", "mean"))
    right = {"no turns": results(runs[1], "cd"), "mean of one rank": results(tmp_path, "mean")}
    for fault in ("tables of one rank", "no turns", "mean of one rank", "stale chains"):
        assert differences(right.get(fault, results(runs[1], "whole")), results(tmp_path, fault)) != [], fault


def test_one_alone_asks_nobody() -> None:
    ranks = Ranks.of(None)
    part = torch.tensor([3, 1, 3])
    assert ranks == Ranks()
    assert ranks.sum(part) is part
    meeting = ranks.meet(part)
    assert meeting.again.tolist() == [False, False, True]
    assert meeting.offsets.tolist() == [0, 1, 2]
    assert meeting.own(part) is part


def test_ranks_take_turns_in_a_step() -> None:
    heads = [torch.tensor([count, 0, *range(100 * count, 100 * count + count), *[0] * (3 - count)]) for count in (3, 1, 3)]
    meetings = [Meeting(Ranks(None, rank, 3), heads[rank][2 : 2 + heads[rank][0]], lambda: heads) for rank in range(3)]
    places = [meeting.offsets.tolist() for meeting in meetings]
    assert meetings[0].lists == [[300, 301, 302], [100], [300, 301, 302]]
    assert meetings[0].again.tolist() == [False] * 4 + [True] * 3
    assert [meeting.first for meeting in meetings] == [0, 3, 4]
    assert places == [[0, 3, 5], [1], [2, 4, 6]]


def test_shares_are_even_and_cut_what_they_own() -> None:
    areas, whole = [5, 1, 1, 9, 2, 2], torch.arange(21, dtype=torch.uint8)[None]
    cuts = [Share.even(Ranks(None, rank, 3), areas).cut(whole) for rank in range(3)]
    assert sorted(torch.cat([cut[0, :-1] for cut in cuts]).tolist()) == list(range(20))
    assert max(cut.shape[1] for cut in cuts) <= 10
    assert all(int(cut[0, -1]) == 20 for cut in cuts)


def test_the_order_is_that_of_a_shuffling_loader() -> None:
    numbers = list(range(10))
    generator = torch.Generator().manual_seed(4)
    loader: DataLoader[int] = DataLoader(numbers, 1, shuffle=True, generator=generator)  # type: ignore[arg-type]
    sampler = tc.DistributedIndexSampler(numbers, seed=4)
    other: DataLoader[int] = DataLoader(numbers, 1, sampler=sampler, generator=sampler.generator)  # type: ignore[arg-type]
    epochs = [[int(n) for n in loader] for _ in range(3)]
    assert [[int(n) for n in other] for _ in range(3)] == epochs
    sampler.set_epoch(1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first
    assert sorted(first) == numbers
    assert list(tc.DistributedIndexSampler(numbers, shuffle=False)) == numbers


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="seed: expected an integer from 0"):
        tc.DistributedIndexSampler(range(3), seed=-1)
    with pytest.raises(ValueError, match="owner: expected a rank for each of 2 images, got 3"):
        tc.ChainStore([(2, 2)] * 2).hand_over([0, 0, 0])
    with pytest.raises(ValueError, match="owner: expected ranks from 0 to 0, got 1"):
        tc.ChainStore([(2, 2)] * 2).hand_over([0, 1])
    with pytest.raises(ValueError, match="chains: expected a ChainStore of at least 3 images, got 2"):
        tc.DistributedIndexSampler(range(3), chains=tc.ChainStore([(2, 2)] * 2))
    monkeypatch.setattr("tritoncrf.ranks.Ranks.of", lambda group: Ranks(None, 0, 4))
    with pytest.raises(ValueError, match="dataset: expected at least 4 images, one a rank, got 3"):
        tc.DistributedIndexSampler(range(3))


def test_a_bad_step_moves_no_chain_on_any_rank() -> None:
    """As on a GPU, where a fault is known only after the step."""
    labels, good = torch.zeros(1, 7, dtype=torch.uint8), torch.tensor(False)
    heads = [torch.tensor([1, 0, 0]), torch.tensor([1, 0, 1])]
    meeting = Meeting(Ranks(None, 0, 2), heads[0][2:], lambda: heads)
    parcels = [torch.ones(3, dtype=torch.uint8)] * 2
    unpack(parcels, labels, [0, 3], [3, 3], meeting, good)
    share = Share(Ranks(None, 0, 2), (3, 3), (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Share, "_send", lambda *given: {1: torch.ones(1, 3, dtype=torch.uint8)})
        share.give_back(labels, meeting, {0: torch.ones(1, 3, dtype=torch.uint8)}, good)
        assert not bool(labels.any())
        share.give_back(labels, meeting, {0: torch.ones(1, 3, dtype=torch.uint8)}, ~good)
    assert labels.tolist() == [[1] * 6 + [0]]
