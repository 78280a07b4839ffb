"""The bit contract, version 1: which float32 operations turn logits, tables and a seed into labels.

Every engine gives the labels that these reference functions give, bit for bit. All arithmetic is float32 with one
rounding per operation and no fused multiply-add. Version numbers travel in every checkpoint.

Rule 1, energies on a grid of 2^-12. With ``m = max_l logit_l``: ``unary_l = round(min(m - logit_l, 1023))``, 3071 for a
forbidden label (logit -inf); tables are rounded likewise, and ``2 * sum_c max|psi_c| <= 1023``. Partial sums stay below
4096, so float32 addition is exact and its order never matters.

Rule 2, counted randomness. Philox4x32-10 (Salmon et al., SC 2011) keyed by the seed, at the counter
``(site, sweep >> 2, index low 32, purpose << 24 | replica << 8 | index high 8)``, output word ``sweep & 3``;
``u = ((word >> 9) + 0.5) * 2^-23``.

Rule 3, the draw, current label first. ``w_l = 2^((low - e_l) * scale)`` by a polynomial; ``x = u * sum_l w_l`` in label
order; the label stays if ``x < w_current``; else the other labels are walked in label order until their weights pass
``x - w_current``.

Extension, replicas that change places (`tempering`). The swap of replicas r and r + 1 of an image after s sweeps reads rule 2
at site r, sweep s, replica 0 and purpose 3 (free phase 0, data phase 1, inference 2), which nothing else reads. It is made if
``t >= 0``, or if ``t >= -100`` and ``u < 2^t`` by rule 3's polynomial: ``t = float32((scale_r - scale_(r+1)) (E_r - E_(r+1)))``
with the rounded energies' exact sums, difference and product in float64. Pairs with r even are asked in turns 0, 2, .., the
others in turns 1, 3, ...

Extension, tables that see the image. An edge may read one of several tables of its class, by the *kind* kept at its first end:
no new arithmetic, and rule 1's bound takes a class's largest entry over its kinds. A *gate* in [0, 1] becomes
``b / 128`` with ``b = floor(gate * 128 + 0.5)``; gated tables are rounded as tables are and hold at most 16 in size, so that
``x = (b / 128) * entry`` is exact (24 bits), and ``(x + 3072) - 3072`` puts it on the grid, halves to the even multiple of
2^-12, the same with a fused multiply-add. Then ``2 * sum_c (max|psi_c| + sum_r max|gated_(r, c)|) <= 1023``. Labels of a model
with neither are those of the rules above.

Extension, graphs. A factor adds the entry of its table at its members' labels, weighed by its gate as above where that is not 1
(then the table's entries are at most 16 in size); a factor with a member that does not exist adds nothing. Of each node
``sum_f 2 max|g_f T_f| <= 1023`` over its factors, each with its own kind's table. Rule 2's site is the node's number in its own
graph, its index the graph's position in the data set. Colours are first fit in node order: node 0, 1, .. takes the least colour
that no lower node has with which it shares a factor; a sweep runs them in increasing number.
"""

from __future__ import annotations

import numbers
import struct

import torch
from torch import Tensor

VERSION = 1
GRID = 4096.0
UNARY_CAP = 1023.0
FORBIDDEN = 3071.0
TABLE_BOUND = 1023.0
GATE_STEPS = 128
GATED_BOUND = 16.0
GATE_SHIFT = 3072.0
CUTOFF = 1024.0
MIN_EXPONENT = -100.0
LOG2E = 1.4426950408889634
MAX_LABELS = 255
VOID = 255
MAX_BETA = 1e6
SWEEP_BITS, INDEX_BITS, REPLICA_BITS, SITE_BITS = 34, 40, 16, 32
PURPOSES = {"free": 0, "data": 1, "inference": 2}
INITIAL = 128
# Of swaps between replicas at several temperatures (`tempering`); no phase of a chain.
SWAP = 3
# Of which pixels a visit's cross-entropy asks (`objective`).
ASKED = 4
# Coefficients a5 .. a1 of 2^f on [0, 1); each is exactly a float32.
POLYNOMIAL = (0.0018793180352076888, 0.008990994654595852, 0.05581868067383766, 0.240159273147583, 0.6931517124176025)

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def round_unary(logits: Tensor, dim: int = 1) -> Tensor:
    """Rule 1 for unaries: logits with the labels on axis ``dim``, any float type -> float32 energies, lowest 0."""
    logits = logits.detach().to(torch.float32)
    distance = (logits.amax(dim, keepdim=True) - logits).clamp(max=UNARY_CAP)
    rounded = torch.floor(distance * GRID + 0.5) / GRID
    return rounded.masked_fill(torch.isneginf(logits), FORBIDDEN)


def round_pairwise(pairwise: Tensor) -> Tensor:
    """Rule 1 for tables: ``[C, ..., L, L]`` of any float type -> float32 multiples of 2^-12."""
    return torch.floor(pairwise.detach().to(torch.float32) * GRID + 0.5) / GRID


def table_mass(rounded: Tensor) -> Tensor:
    """``2 max|psi_c|`` of each rounded table, float32 ``[C]``; rule 1 wants their sum to be at most 1023."""
    largest: Tensor = torch.linalg.vector_norm(rounded.flatten(1), torch.inf, 1)
    return largest.mul_(2.0)


def round_gates(gates: Tensor) -> Tensor:
    """Gates of any float type -> uint8 ``b = floor(gate * 128 + 0.5)``, 0 to 128; a NaN becomes 0, what lies outside an end."""
    steps = torch.floor(gates.detach().to(torch.float32) * float(GATE_STEPS) + 0.5)
    return steps.nan_to_num(0.0).clamp_(0.0, float(GATE_STEPS)).to(torch.uint8)


def gate(steps: Tensor, entries: Tensor) -> Tensor:
    """What gated entries add: ``b / 128`` times rounded entries, on the grid; uint8 and float32 that broadcast -> float32."""
    product = (steps.to(torch.float32) * (1.0 / GATE_STEPS)) * entries
    return (product + GATE_SHIFT) - GATE_SHIFT


def scale_of(beta: float) -> float:
    """Rule 3's float32 factor from nats to bits at inverse temperature ``beta``, as a Python float."""
    value: float = struct.unpack("f", struct.pack("f", beta * LOG2E))[0]
    return value


def key_of(seed: int) -> tuple[int, int]:
    """Philox key words (low, high) of a seed, taken modulo 2^64."""
    seed %= 1 << 64
    return seed & _MASK, seed >> 32


def seed_of(seed: object) -> int:
    """A seed modulo 2^64, a fresh one for None. Raises TypeError for what is no whole number, Python's or numpy's."""
    if seed is None:
        return fresh_seed()
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed: expected an integer or None, got {seed!r}")
    return int(seed) % (1 << 64)


def fresh_seed() -> int:
    """64 bits from torch's default generator: what ``seed=None`` means."""
    low, high = torch.randint(0, 1 << 32, (2,), dtype=torch.int64, device="cpu").tolist()
    return int(high) << 32 | int(low)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10. Counter words are int64 tensors holding 32-bit values (broadcast against each other)."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    c0, c2, (k0, k1) = c0.clone(), c2.clone(), key
    for _ in range(10):
        # An int64 product wraps modulo 2^64: its halves are the 32-bit high and low words once masked.
        p0, p1 = c0.mul_(_M0), c2.mul_(_M1)
        c0 = (p1 >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def high_word(index: Tensor, replica: Tensor | int, purpose: int) -> Tensor:
    """Counter word 3 of rule 2."""
    return (purpose << 24) | (replica << 8) | (index >> 32)


def uniform(word: Tensor) -> Tensor:
    """float32 in (0, 1) from a 32-bit word in an int64 tensor."""
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def draw_uniform(
    site: Tensor, sweep: Tensor, index: Tensor, replica: Tensor | int, purpose: int, key: tuple[int, int]
) -> Tensor:
    """Rule 2's uniform number of each site at a sweep; int64 tensors that broadcast -> float32."""
    words = philox4x32((site, (sweep >> 2) & _MASK, index & _MASK, high_word(index, replica, purpose)), key)
    lane = sweep & 3
    low = torch.where(lane == 0, words[0], words[1])
    high = torch.where(lane == 2, words[2], words[3])
    return uniform(torch.where(lane < 2, low, high))


def exp2(t: Tensor) -> Tensor:
    """2^t of rule 3 for float32 ``t`` in [-100, 0], within 1.8e-7, monotone, 1 at 0."""
    whole = torch.floor(t)
    part = t - whole
    value = POLYNOMIAL[0] * part
    for coefficient in POLYNOMIAL[1:]:
        value = (value + coefficient) * part
    value = value + 1.0
    return value * ((whole.to(torch.int32) + 127) << 23).view(torch.float32)


def weights(energies: Tensor, scale: float) -> Tensor:
    """Rule 3's unnormalised weights of float32 energies ``[L, ...]``, labels first."""
    t = (energies.amin(0) - energies) * scale
    allowed = (energies - energies.amin(0) < CUTOFF) & (t >= MIN_EXPONENT)
    return exp2(t.clamp_(min=MIN_EXPONENT)).masked_fill_(~allowed, 0.0)


def in_label_order(weight: Tensor) -> Tensor:
    """``w_0 + w_1 + ...`` one by one: torch.sum and torch.cumsum add in an order of their own."""
    total = weight[0].clone()
    for row in weight[1:]:
        total += row
    return total


def draw(energies: Tensor, current: Tensor, u: Tensor, scale: float) -> Tensor:
    """Rule 3: the new label of each site.

    energies: float32 ``[L, ...]``; current: int64 ``[...]`` labels; u: float32 ``[...]``; returns int64 ``[...]``.
    """
    weight = weights(energies, scale)
    x = u * in_label_order(weight)
    own = weight.gather(0, current[None])[0]
    rest = x - own
    # Without its own weight the current label adds 0, so it can never be the first to pass.
    weight.scatter_(0, current[None], 0.0)
    passed = torch.zeros_like(rest)
    chosen = torch.zeros_like(current)
    for row in weight:
        passed += row
        chosen += passed <= rest
    labels = len(weight)
    if chosen.device.type != "cpu" or bool((chosen == labels).any()):
        order = torch.arange(labels, device=chosen.device).view(-1, *[1] * current.dim())
        last = torch.where(weight > 0, order, 0).amax(0)
        chosen = torch.where(chosen == labels, last, chosen)
    return torch.where(x < own, current, chosen)
