"""Ours: tables, or tables and network, by sampled maximum likelihood (Kirillov et al. 2016, Algorithm 1; CD-K or PCD)."""

from __future__ import annotations

from pathlib import Path

import torch

import tritoncrf as tc
from bench.paper.problem import Predictor, Problem
from tritoncrf.training import Trainer


def learn(problem: Problem, work: Path, *, joint: bool, method: str, sweeps: int | None = None) -> Predictor:
    """joint: the network learns too; sweeps: K per visit, None takes the preset's."""
    preset = problem.preset
    network, crf = problem.network(), problem.crf()
    chains = tc.ChainStore(problem.train.sizes, seed=problem.seed, device=problem.device)
    loss = tc.CRFLoss(crf, chains=chains, method=method, sweeps=preset.visit_sweeps if sweeps is None else sweeps)
    groups = [{"params": list(loss.parameters()), "lr": preset.table_rate if joint else preset.separate_rate}]
    if joint:
        groups.append({"params": list(network.parameters()), "lr": preset.network_rate})
    optimizer: torch.optim.Optimizer
    if preset.momentum is None:
        optimizer = torch.optim.Adam(groups, fused=problem.device.type == "cuda")
    else:
        groups[0]["momentum"] = 0.0
        optimizer = torch.optim.SGD(groups, momentum=preset.momentum)
    trainer = Trainer(network, crf, loss=loss, chains=chains, optimizer=optimizer, log=work / "log.jsonl")
    saved = work / "model.safetensors"
    if saved.exists():
        trainer.load(saved)
    trainer.fit(problem.loader(), "joint" if joint else "separate", epochs=preset.epochs, checkpoint=saved)
    return lambda batch: trainer.answer(batch, preset.sweeps, preset.burn_in)
