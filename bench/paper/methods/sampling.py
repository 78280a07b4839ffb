"""Ours: tables, or tables and network, by sampled maximum likelihood (Kirillov et al. 2016, Algorithm 1; CD-K or PCD).

``edges`` lets the tables see the image; all of them start at zero.

- "kinds": an edge reads one of R tables of its class, chosen by the preset's recipe: by the signed step in depth, or by the
  distance of colours. Decision tree fields (Nowozin et al. 2011) choose so by trees.
- "network": the network weighs a table beside each of the nearest classes' plain ones by gates of its own (`gates`).
- "gaussian": the pairwise energy of pixel-adaptive CRFs (Su et al. 2019), a kernel of the two ends times a compatibility for
  each offset, ``K(f_i, f_j) W[c, y_i, y_j]``, over all classes and with our learning. As theirs it has nothing beside that
  product: the plain tables stay zero. K is Gaussian in the image itself, of the preset's bandwidth.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

import tritoncrf as tc
from bench.paper.edges import Maker, text_of
from bench.paper.gates import Gated
from bench.paper.problem import Predictor, Problem, descent
from tritoncrf.training import Trainer

EDGES = ("kinds", "network", "gaussian")


class Parts(NamedTuple):
    """A row's model before it learns."""

    network: nn.Module
    crf: tc.GridCRF
    edge_maker: Maker | None
    """What tells of the edges beside the network."""


def parts(problem: Problem, edges: str | None = None) -> Parts:
    """The pre-trained network and fresh tables. Raises ValueError for an unknown word."""
    if edges not in (None, *EDGES):
        raise ValueError(f"edges: expected None or one of {', '.join(EDGES)}, got {edges!r}")
    if edges == "network":
        gated = Gated(problem.network(), problem.preset.neighborhood)
        return Parts(gated, problem.crf(gated), None)
    edge_maker = None if edges is None else problem.edges(text_of(edges, problem.preset))
    crf = problem.crf(edge_maker)
    crf.pairwise.requires_grad_(edges != "gaussian")
    return Parts(problem.network(), crf, edge_maker)


def learn(
    problem: Problem, work: Path, *, joint: bool, method: str, sweeps: int | None = None, edges: str | None = None,
    cross_entropy: bool = False, every: int = 1, faster: float = 1.0,
) -> Predictor:  # fmt: skip
    """joint: the network learns too; sweeps: K per visit, None takes the preset's; edges: a word of `EDGES`; cross_entropy: of
    the conditionals averaged over four sweeps, with weight 1 beside the likelihood, of one pixel of every so many; faster: a
    factor on the preset's rates of a joint row."""
    preset = problem.preset
    network, crf, edge_maker = parts(problem, edges)
    chains = tc.ChainStore(problem.train.sizes, seed=problem.seed, device=problem.device)
    objective = tc.Objective(cross_entropy=1.0, every=every) if cross_entropy else None
    sweeps = preset.visit_sweeps if sweeps is None else sweeps
    loss = tc.CRFLoss(crf, chains=chains, method=method, sweeps=sweeps, objective=objective)
    tables = [table for table in loss.parameters() if table.requires_grad]
    weights = network.parameters() if joint else ()
    tables_rate = faster * preset.table_rate if joint else preset.separate_rate
    optimizer = descent(preset, tables=tables, rate=tables_rate, weights=weights, weights_rate=faster * preset.network_rate)
    trainer = Trainer(network, crf, loss=loss, chains=chains, optimizer=optimizer, log=work / "log.jsonl", edges=edge_maker)
    saved = work / "model.safetensors"
    if saved.exists():
        trainer.load(saved)
    trainer.fit(problem.loader(), "joint" if joint else "separate", epochs=preset.epochs, checkpoint=saved)
    return lambda batch: trainer.marginals(batch, preset.sweeps, preset.burn_in)
