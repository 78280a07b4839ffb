"""How fast are graphs? ``python -m bench.graphs [--threads N] [--only lattice random ising triples build]``

The standard lattice given as a graph beside the lattice engine, and random graphs beside others' programs: all take turns from
the same settled labels, a chain for each thread. Beside each rate stand the flip rate and the mean energy a node of the labels
left behind, in which all must agree. At last, what 10^7 edges take to build and to colour. Writes results/graphs.json and
graphs.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc
from bench.graph_peers import Task, start
from bench.memory import peak, reset_peak
from bench.peers import Array, Chains
from bench.problem import HEIGHT, KINDS, LABELS, WIDTH, standard
from bench.turns import RESULTS, Row, Turn, arguments, ratios, save, spread, sweeps_for, table, take_turns
from tritoncrf.chains import ChainState
from tritoncrf.graph_builders import from_edges, grid

NODES, DEGREE, TURNS, SECONDS, BURN_IN = 100_000, 8, 9, 0.5, 60
EDGES = 10_000_000
# By how much a network prefers one label of each node, in nats: few labels change a sweep, as with a trained model, or many do.
MARGINS = {"calm": 8.0, "busy": 6.0, "hot": 0.0}
PULL = 0.2
PARTS = ("lattice", "random", "ising", "triples", "build")


class Ours:
    """Chains of an engine, one a thread."""

    def __init__(
        self, crf: tc.FactorCRF, graph: tc.FactorGraph, logits: Tensor, update: str, labels: Tensor | None = None
    ) -> None:
        self.sampler: tc.Sampler[tc.FactorCRF] = tc.Sampler(crf, "numba", seed=1, update=update)
        self.state: ChainState = self.sampler.init(logits, labels, graph=graph, replicas=torch.get_num_threads())

    def run(self, sweeps: int) -> int:
        return int(self.sampler.run(self.state, sweeps).flips.sum())

    def labels(self) -> Array:
        found: Array = self.state.labels.numpy()
        return found


def lattice() -> list[Row]:
    """The standard problem both updates: images and nodes."""
    rows = []
    for kind in KINDS:
        problem = standard(kind)
        hood, threads = problem.crf.neighborhood, torch.get_num_threads()
        graph = grid((HEIGHT, WIDTH), [((0, 0), offset) for offset in hood.offsets])
        crf = tc.FactorCRF(LABELS, [2] * len(hood), factors=[part[None] for part in problem.crf.pairwise.detach()])
        logits = problem.logits[0].flatten(1).T.contiguous()
        for update in ("gather", "incremental"):
            sampler = tc.Sampler(problem.crf, "numba", seed=1, update=update)
            images = sampler.run(sampler.init(problem.logits, replicas=threads), BURN_IN)
            ours = Ours(crf, graph, logits, update)
            ours.run(BURN_IN)
            sweeps = sweeps_for(ours.run, SECONDS)
            found = take_turns(
                {"lattice": lambda s=sampler, c=images, n=sweeps: int(s.run(c, n).flips.sum()),  # type: ignore[misc]
                 "graph": partial(ours.run, sweeps)}, TURNS
            )  # fmt: skip
            y = torch.stack([images.labels[0].flatten(1), ours.state.labels]).long()
            energy = [float(crf.energy(logits, part, graph).mean().detach()) / len(logits) for part in y]
            updates = {name: sweeps * threads * len(logits) for name in found}
            rows += _rows(f"standard, {kind}", update, found, updates, dict(zip(found, energy, strict=True)), "lattice")
    return rows


def random_graph(nodes: int = NODES, degree: int = DEGREE, seed: int = 0) -> tc.FactorGraph:
    """The union of random cycles through all nodes: nearly every node has ``degree`` neighbours."""
    random = np.random.default_rng(seed)
    cycles = [random.permutation(nodes) for _ in range(degree // 2)]
    edges = np.concatenate([np.stack([cycle, np.roll(cycle, 1)]) for cycle in cycles], 1)
    return from_edges(nodes, torch.from_numpy(edges))


def compare(
    name: str, graph: tc.FactorGraph, labels: int, margin: float, peers: list[str], turns: int = TURNS,
    seconds: float = SECONDS, pull: float = PULL,
) -> list[Row]:  # fmt: skip
    """Our ways and peers on a graph of one class, where like labels in a factor cost ``-pull``."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(graph.num_nodes, labels, generator=random)
    logits += margin * torch.eye(labels)[torch.randint(labels, (len(logits),), generator=random)]
    arity = graph.arities[0]
    energies = torch.zeros([labels] * arity)
    energies[(torch.arange(labels),) * arity] = -pull
    if arity > 2:
        noise = 0.1 * torch.randn([labels] * arity, generator=random)
        energies += noise
    # What the sampler reads, for all.
    energies = torch.floor(energies * 4096 + 0.5) / 4096
    crf = tc.FactorCRF(labels, [arity], factors=[energies[None]])
    settled = Ours(crf, graph, logits, "auto")
    settled.run(BURN_IN)
    begun = settled.state.labels
    task = Task(logits.numpy(), graph.members[0].numpy(), energies.numpy(), graph.coloring().numpy(), begun.numpy())
    chains: dict[str, Chains] = {f"tritoncrf {update}": Ours(crf, graph, logits, update, begun) for update in _ways(arity)}
    for peer in peers:
        made = start(peer, task)
        if isinstance(made, str):
            print(f"left out: {made}", file=sys.stderr)
        else:
            chains[peer] = made
    sweeps = {peer: getattr(made, "least", 0) or sweeps_for(made.run, seconds) for peer, made in chains.items()}
    found = take_turns({peer: partial(made.run, sweeps[peer]) for peer, made in chains.items()}, turns)
    energy = {
        peer: float(crf.energy(logits, torch.from_numpy(made.labels()), graph).mean().detach()) / graph.num_nodes
        for peer, made in chains.items()
    }
    updates = {peer: count * len(begun) * graph.num_nodes for peer, count in sweeps.items()}
    return _rows(name, "", found, updates, energy, "tritoncrf gather")


def _ways(arity: int) -> tuple[str, ...]:
    return ("gather", "incremental") if arity == 2 else ("gather",)


def _rows(
    problem: str, update: str, found: Mapping[str, list[Turn]], updates: Mapping[str, int], energy: Mapping[str, float],
    base: str,
) -> list[Row]:
    """A row a program: its rate, and the ratio of its rate to the base's within a turn."""
    rows: list[Row] = []
    for name, turns in found.items():
        flips = sum(count for _, count in turns)
        rows.append({
            "problem": problem, "program": f"{name} {update}".strip(),
            "rate": updates[name] / statistics.median(seconds for seconds, _ in turns) / 1e6,
            **spread(ratios(found[base], turns, updates[name] / updates[base]), "ratio"), "to": f"{base} {update}".strip(),
            "flip_rate": flips / (updates[name] * len(turns)) if flips >= 0 else None, "energy": energy[name],
        })  # fmt: skip
    return rows


def build(edges: int = EDGES) -> Row:
    """Seconds and bytes an edge of `from_edges` and colours, of a random graph of mean degree 8, in a process of its own."""
    command = [sys.executable, "-c", f"from bench.graphs import measure; measure({edges})"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    seconds, held, most, colors, joined = map(float, words[-5:])
    return {"edges": int(joined), "seconds": seconds, "kept": held, "most": most, "colors": int(colors)}


def measure(edges: int) -> None:
    """Prints processor seconds, bytes an edge that are kept and that are needed meanwhile, colours, and edges."""
    import time

    nodes = max(2, edges // (DEGREE // 2))
    from_edges(4, torch.tensor([[0, 1], [1, 2]])).coloring()
    edge_index = torch.from_numpy(np.random.default_rng(0).integers(nodes, size=(2, edges)))
    reset_peak()
    before, began = peak(), time.process_time()
    graph = from_edges(nodes, edge_index)
    colors = graph.num_colors
    taken = time.process_time() - began
    kept = graph.members[0].nbytes + graph.coloring().nbytes
    joined = len(graph.members[0])
    print(taken, kept / joined, (peak() - before) / joined, colors, joined)


def main() -> None:
    parser = arguments(__doc__, threads=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = lattice() if "lattice" in options.only else []
    loop = "user's numba loop"
    for kind, margin in MARGINS.items():
        if "random" in options.only:
            rows += compare(f"random graph, 5 labels, {kind}", random_graph(), 5, margin, [loop, "thrml"])
        if "ising" in options.only:
            rows += compare(f"random graph, 2 labels, {kind}", random_graph(), 2, margin, [loop, "dwave-samplers"])
    if "triples" in options.only:
        cliques = grid((317, 317), [((0, 0), (0, 1), (1, 0))])
        rows += compare("10^5 factors of three, 8 labels", cliques, 8, 0.0, ["torch, every label of every factor"])
    columns = {
        "problem": "problem", "program": "program", "rate": "M updates/s", "ratio": "ratio", "least": "least", "most": "most",
        "to": "to", "flip_rate": "flip rate", "energy": "energy per node",
    }  # fmt: skip
    lines = [
        f"{options.threads} threads, a chain each, medians of {TURNS} turns; ratio: of rates within a turn. dwave-samplers "
        "tells no flips.", "", *table(rows, columns),
    ]  # fmt: skip
    found: dict[str, object] = {"threads": options.threads, "rows": rows}
    if "build" in options.only:
        found["build"] = built = build()
        heads = {
            "edges": "edges", "seconds": "processor s", "most": "bytes an edge, at most", "kept": "bytes an edge, kept",
            "colors": "colours",
        }  # fmt: skip
        lines += ["", "Build and colour, the edge list that is given not counted:", "", *table([built], heads)]
    if set(options.only) == set(PARTS):
        save(RESULTS / "graphs", "python -m bench.graphs", found, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
