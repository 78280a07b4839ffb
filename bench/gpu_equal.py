"""Does the Triton engine give the torch engine's bits on this card? Jobs over the bodies of `tests/on_device.py`.

Labels, flips, conditionals, energies and counts against the torch engine on the CPU, by updates and launch shapes; 10^9 updates by
both shapes; steps that never wait, that are captured, and that bad values void; drawn labellings against listed probabilities.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.gpu_jobs import Job, Row, Setting

if TYPE_CHECKING:
    from tests.on_device import Place
    from tests.test_kernels_interpret import Case

UPDATES = ("gather", "incremental")
EIGHT = ((0, 1), (1, 0), (1, 1), (1, -1))


# Programs that go through a chain together: one large one, or several small ones.
TEAMS = (1, 3)


@contextlib.contextmanager
def forced(team: int) -> Iterator[None]:
    """Sweeps inside run by teams of so many programs. The one place that knows how to ask for it."""
    from triton import knobs
    from tritoncrf.kernels import shapes

    kept = shapes.TEAM
    # Interpreted programs run one after another: in a team the first would wait for ever.
    shapes.TEAM = 1 if knobs.runtime.interpret else team
    try:
        yield
    finally:
        shapes.TEAM = kept


def placed(setting: Setting) -> Place:
    # The tests' modules import tritoncrf, which a bare machine finds only after `bench.bare.provide`.
    from tests.on_device import Place

    return Place(setting.device, setting.toy)


def cases(labels: int, group: str, toy: bool) -> list[Case]:
    """Problems of so many labels: of one chain an image ("single"), of "several", or whose tables see the image ("seeing")."""
    from tests.test_kernels_interpret import CASES, FAR, FIVE, SEEING, SLOW, Case

    listed = [case for case in (SEEING if group == "seeing" else (*CASES, *SLOW)) if case.labels == labels]
    if group == "seeing":
        return listed
    if group == "single":
        # Larger than a program of any launch shape; with forbidden labels too, and with the standard problem's neighbourhood.
        listed += [Case((130, 110), labels, FIVE, images=2, clamps=True, holes=True, ragged=True, forbidden=True)]
        listed += [Case((90, 77), labels, FAR, images=3, sweeps=3)] if labels == 20 else []
    else:
        listed += [Case((33, 41), labels, EIGHT, images=3, replicas=100, clamps=True, sweeps=3)]
    chosen = [case for case in listed if (case.replicas == 1) == (group == "single") and not case.seeing]
    return chosen[:1] if toy else chosen


def equal(setting: Setting, labels: int, update: str, team: int, groups: tuple[str, ...]) -> Row:
    """Every case of the groups by one update and launch shape; raises at the first bit that differs."""
    from tests import on_device

    asked = [case for group in groups for case in cases(labels, group, setting.toy)]
    if not asked:
        raise RuntimeError(f"labels: expected some that a case has, got {labels} in {groups}")
    with forced(team):
        sites = [on_device.equal_to_torch(placed(setting), case, update) for case in asked]
    return {"cases": len(sites), "sites": sum(sites)}


def named(labels: int, update: str, team: int, groups: tuple[str, ...]) -> str:
    return f"{labels} labels, {update}, {f'teams of {team}' if team > 1 else 'alone'}, {' and '.join(groups)}"


def equality(setting: Setting) -> list[Job]:
    """20 labels first, in jobs of their own: speed and profile read their compiled kernels later."""
    rows: list[tuple[int, str, int, tuple[str, ...]]]
    if setting.toy:
        rows = [(2, "gather", 1, ("single",)), (2, "incremental", 1, ("seeing",))]
    else:
        every = [(update, team) for team in TEAMS for update in UPDATES]
        groups: list[tuple[int, tuple[str, ...]]] = [
            (20, ("single",)), (20, ("several",)), (20, ("seeing",)), (5, ("single", "several")), (5, ("seeing",)),
            (2, ("single", "several")), (2, ("seeing",)),
        ]  # fmt: skip
        rows = [(labels, update, team, group) for labels, group in groups for update, team in every]
    return [(named(*row), partial(equal, setting, *row)) for row in rows]


def rare(setting: Setting) -> list[Job]:
    """33 and 64 labels, whose kernels compile for half a minute each."""
    rows: list[tuple[int, str, int, tuple[str, ...]]]
    if setting.toy:
        rows = [(33, "gather", 1, ("single",))]
    else:
        every = [(update, team) for team in TEAMS for update in UPDATES]
        groups: list[tuple[int, tuple[str, ...]]] = [(64, ("single",)), (33, ("several",))]
        rows = [(labels, update, team, group) for labels, group in groups for update, team in every]
        rows += [(labels, update, 3, ("seeing",)) for labels in (64, 33) for update in UPDATES]
    return [(named(*row), partial(equal, setting, *row)) for row in rows]


def agree(setting: Setting, update: str) -> Row:
    from tests import on_device

    with contextlib.ExitStack() as stack:
        done = on_device.launches_agree(placed(setting), update, lambda team: stack.enter_context(forced(team)))
    return {"updates": done, "launch_shapes": 2}


def updates(setting: Setting) -> list[Job]:
    return [(update, partial(agree, setting, update)) for update in UPDATES]


def body(setting: Setting, name: str, arguments: tuple[str, ...]) -> Row:
    """One of the bodies after another, with each of the arguments."""
    from tests import on_device

    for argument in arguments:
        getattr(on_device, name)(placed(setting), argument)
    return {"passed": list(arguments)}


def steps(setting: Setting) -> list[Job]:
    from bench.gpu_training import never_waits
    from tests.on_device import FAULTS

    # The interpreter's own tests have both.
    methods = ("pcd",) if setting.toy else ("pcd", "cd")
    rows: list[tuple[str, tuple[str, ...]]] = [
        (name, (method,)) for name in ("steps_never_wait", "captured_steps_agree") for method in methods
    ]  # fmt: skip
    rows += [("loss_is_voided", FAULTS), ("chains_are_voided", UPDATES)]
    jobs: list[Job] = [(f"{name}, {', '.join(given)}", partial(body, setting, name, given)) for name, given in rows]
    return [("the paper's network never waits", partial(never_waits, setting)), *jobs]


def listed(setting: Setting) -> Row:
    """Chains of a 2 x 2 lattice with 3 labels against the probabilities of its 81 labellings."""
    import tritoncrf as tc

    chains, sweeps, offsets = *((600, 3) if setting.toy else (1 << 20, 12)), [(0, 1), (1, 0), (1, 1), (1, -1)]
    generator = torch.Generator().manual_seed(3)
    tables = torch.round(torch.randn(len(offsets), 3, 3, generator=generator) * 2048) / 4096
    logits = torch.round(torch.randn(1, 3, 2, 2, generator=generator) * 4096) / 4096
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    energy = -torch.stack([logits[0].double().flatten(1)[every[:, site], site] for site in range(4)]).sum(0)
    for c, (i, j) in ((0, (0, 1)), (0, (2, 3)), (1, (0, 2)), (1, (1, 3)), (2, (0, 3)), (3, (1, 2))):
        energy = energy + tables[c].double()[every[:, i], every[:, j]]
    crf = tc.GridCRF(3, tc.Neighborhood.from_offsets(offsets), tables).to(setting.device)
    sampler, images = tc.Sampler(crf, "triton", seed=9), -(-chains // (1 << 16))
    replicas = chains // images
    state = sampler.init(logits.to(setting.device).expand(images, -1, -1, -1), replicas=replicas)
    drawn = sampler.run(state, sweeps).labels.flatten(2).flatten(0, 1).long().cpu()
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
    expected = (-energy).softmax(0) * len(drawn)
    enough = expected >= 5
    chi = float(((counts - expected) ** 2 / expected)[enough].sum())
    p = float(torch.special.gammaincc((enough.sum() - 1) / 2.0, torch.tensor(chi / 2)))
    if p < 1e-6:
        raise RuntimeError(f"samples are not exact: chi-square {chi}, p = {p}")
    return {"chains": len(drawn), "sweeps": sweeps, "chi_square": chi, "p": p}


def exactness(setting: Setting) -> list[Job]:
    return [("exactness", partial(listed, setting))]
