"""Ctrl-C leaves labels and counts that belong together; threads share a model; numpy's integers are integers."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf import chain_lookup, engines, visit
from tritoncrf.chains import ChainState
from tritoncrf.layout import Layout, LayoutCache

HOOD = tc.Neighborhood.nearest(8)
ENGINES = [name for name, state in engines.report(torch.device("cpu")).items() if state == "ready"]


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, shape)).float()


def begun(engine: str, update: str) -> tuple[tc.Sampler, ChainState]:
    sampler = tc.Sampler(tc.GridCRF(5, HOOD, 0.3 * noise(4, 5, 5)), engine, update=update)
    return sampler, sampler.init(noise(2, 5, 12, 9))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("update", ["gather", "incremental", "auto"])
@pytest.mark.parametrize("averaging", [False, True])
def test_ctrl_c_leaves_labels_and_counts_together(
    engine: str, update: str, averaging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed just before and just after the engine has moved the labels."""
    sampler, chains = begun(engine, update)
    name = "average" if averaging else "sweep"
    original: Callable[..., Any] = getattr(sampler.engine, name)
    calls = 0

    def pressed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        found = original(*given)
        if calls == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    out = torch.zeros((*chains.plan.free.shape, 5), dtype=torch.float64)
    monkeypatch.setattr(sampler.engine, name, pressed)
    handler = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sampler.average(chains, 200, out) if averaging else sampler.run(chains, 200)
        assert signal.getsignal(signal.SIGINT) is handler
        done = int(chains.sweeps[0])
        assert 0 < done < 200
        again, expected = begun(engine, update)
        monkeypatch.setattr(sampler.engine, name, original)
        again.run(expected, done)
        assert torch.equal(expected.labels, chains.labels)
        monkeypatch.setattr(sampler.engine, name, pressed)


def test_ctrl_c_at_any_moment() -> None:
    """From outside, ten times: what went on is what one run gives."""
    sampler, chains = begun("torch", "auto")
    stopped = 0
    for k in range(10):
        timer = threading.Timer(0.001 + 0.001 * k, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            sampler.run(chains, 40)
        except KeyboardInterrupt:
            stopped += 1
        try:
            timer.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            pass
    again, expected = begun("torch", "auto")
    again.run(expected, int(chains.sweeps[0]))
    assert stopped
    assert torch.equal(expected.labels, chains.labels)


def test_ctrl_c_in_a_visit_keeps_chains_and_counts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    crf = tc.GridCRF(5, HOOD, 0.3 * noise(4, 5, 5))

    def visited(press: bool) -> tc.ChainStore:
        store = tc.ChainStore([(12, 9)] * 2, seed=1)
        loss = tc.CRFLoss(crf, chains=store, sweeps=2)
        renew = chain_lookup.renew

        def pressed(*given: Any, **more: Any) -> None:
            renew(*given, **more)
            os.kill(os.getpid(), signal.SIGINT)

        given = noise(2, 5, 12, 9), torch.zeros(2, 12, 9, dtype=torch.long), torch.arange(2)
        with monkeypatch.context() as patch:
            if press:
                patch.setattr(visit, "renew", pressed)
                with pytest.raises(KeyboardInterrupt):
                    loss(*given)
            else:
                loss(*given)
        return store

    one, other = visited(True), visited(False)
    assert torch.equal(one.labels, other.labels)
    assert one.sweeps.tolist() == other.sweeps.tolist() == [2, 2]


def test_chains_that_two_threads_move_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, chains = begun("torch", "gather")
    original, inside, go = sampler.engine.sweep, threading.Event(), threading.Event()

    def waits(*given: Any) -> Tensor:
        inside.set()
        assert go.wait(10)
        return original(*given)

    monkeypatch.setattr(sampler.engine, "sweep", waits)
    first = threading.Thread(target=sampler.run, args=(chains, 3))
    first.start()
    assert inside.wait(10)
    out = torch.zeros((*chains.plan.free.shape, 5), dtype=torch.float64)
    for name, given in (("run", [1]), ("average", [1, out]), ("conditionals", [out])):
        with pytest.raises(RuntimeError, match="chains: expected chains that nobody else moves meanwhile"):
            getattr(sampler, name)(chains, *given)
    go.set()
    first.join()
    assert chains.sweeps.tolist() == [3, 3]
    again, expected = begun("torch", "gather")
    again.run(expected, 3)
    assert torch.equal(expected.labels, chains.labels)
    sampler.run(copy.deepcopy(chains), 1)


def test_threads_may_share_a_cache_of_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, faults = LayoutCache(HOOD, limit=3), list[BaseException]()
    every = sys.getswitchinterval()
    # Another thread comes between any two that are counted.
    def slowly(self: Layout) -> int:
        time.sleep(1e-6)
        return 1

    monkeypatch.setattr(Layout, "nbytes", property(slowly))

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                n = int(rng.integers(1, 7))
                assert cache.get((n, 2), torch.device("cpu")).shape == (n, 2)
                assert cache.nbytes >= 0
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(every)
    assert not faults
    assert len(cache) <= 3


def test_a_used_model_pickles_to_its_tables() -> None:
    crf = tc.GridCRF(5, HOOD)
    fresh = len(pickle.dumps(crf))
    logits = noise(1, 5, 300, 200)
    labels = tc.max_marginal(crf, logits, sweeps=1, burn_in=0)
    assert crf.layouts.nbytes > 1_000_000
    assert len(pickle.dumps(crf)) < fresh + 100
    for other in (pickle.loads(pickle.dumps(crf)), copy.deepcopy(crf)):
        assert torch.equal(tc.max_marginal(other, logits, sweeps=1, burn_in=0), labels)


def test_integers_of_numpy_are_integers() -> None:
    three, seed = np.int64(3), np.uint64(2**64 - 1)
    crf = tc.GridCRF(np.int32(5), HOOD, 0.3 * noise(4, 5, 5))  # type: ignore[arg-type]
    logits = noise(2, 5, 6, 7)
    for update in (int, lambda n: n):
        store = tc.ChainStore([(6, 7)] * 2, seed=update(seed), replicas=update(np.int8(2)))
        loss = tc.CRFLoss(crf, chains=store, sweeps=update(three))
        loss(logits, torch.zeros(2, 6, 7, dtype=torch.long), torch.arange(2))
        answer = tc.max_marginal(crf, logits, sweeps=update(three), burn_in=update(np.int16(1)), seed=update(np.int64(-4)))
        found = store.labels, store.sweeps, answer, loss.get_extra_state()
        if update is int:
            expected = found
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    for bad in (True, 1.0, "1", np.bool_(True), np.float32(1)):
        with pytest.raises(TypeError, match="seed: expected an integer or None, got"):
            tc.Sampler(crf, seed=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: [(0, 2**70)], lambda: [(-(2**32), 1)], lambda: [(0, 1), (2**63, 0)]])
def test_offsets_beyond_any_image_are_a_sentence(make: Callable[[], list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match=r"offsets\[\d\]: expected steps of at most 4294967295 sites, got"):
        tc.Neighborhood.from_offsets(make())
