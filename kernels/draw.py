"""How is a label drawn? Rules 2 and 3 of the bit contract as device functions: one lane per site, labels in registers.

A site's energies are L tensors of shape [B] in a tuple, so every sum over labels runs in label order inside one thread. All
arithmetic is float32 with one rounding per operation: launchers pass ``enable_fp_fusion=False``, without which the compiler
would contract products and sums. With ``low = min_l e_l``, ``w_l = 2^((low - e_l) * scale)`` and ``x = u * sum_l w_l`` the
label stays if ``x < w_current``; else the others are walked in label order until their weights pass ``x - w_current``.

A draw leaves an upper bound of the new label's odds against staying behind, ``sum of the other weights / own weight``, as a
whole number of units: ``1024 log2 odds``, rounded up (`tritoncrf.kernels.odds` has what becomes of it).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

MIN_EXPONENT = tl.constexpr(-100.0)
CUTOFF = tl.constexpr(1024.0)
INITIAL = tl.constexpr(128)
A5 = tl.constexpr(0.0018793180352076888)
A4 = tl.constexpr(0.008990994654595852)
A3 = tl.constexpr(0.05581868067383766)
A2 = tl.constexpr(0.240159273147583)
A1 = tl.constexpr(0.6931517124176025)
# Of log2 odds; and how many of them stand for odds that no u can be covered by, whatever is added.
UNITS = tl.constexpr(1024.0)
MOST = tl.constexpr(float(1 << 18))
# What each addition may lose of a sum; a weight's own error, now and when next looked at; what is cut off may come back.
LOST = tl.constexpr(2.0**-23)
INFLATE = tl.constexpr(1.0 + 2.0**-14)
FLOOR = tl.constexpr(2.0**-90)


def far(scale: float) -> bool:
    """Whether the cut at 1024 nat is felt, as at small scales; then no bound of odds holds either."""
    return bool(scale * CUTOFF.value <= 1.0 - MIN_EXPONENT.value)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 words (tensors or scalars that broadcast) -> four uint32 words."""
    M0: tl.constexpr = 0xD2511F53
    M1: tl.constexpr = 0xCD9E8D57
    W0: tl.constexpr = 0x9E3779B9
    W1: tl.constexpr = 0xBB67AE85
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, M0, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c2.shape, M1, tl.uint32))
        low0 = tl.mul(c0, tl.full(c0.shape, M0, tl.uint32), sanitize_overflow=False)
        low1 = tl.mul(c2, tl.full(c2.shape, M1, tl.uint32), sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, tl.full(k0.shape, W0, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.full(k1.shape, W1, tl.uint32), sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def uniform(site, sweep, index, replica, purpose, key0, key1):
    """Rule 2: float32 [B] in (0, 1).

    site: int32 [B], the bits of a uint32; sweep, index: int64 scalars; replica: int32 [B]; purpose, key0, key1: int32 scalars,
    the keys being the bits of uint32 words.
    """
    zero = site.to(tl.uint32, bitcast=True) & 0
    c0 = zero + site.to(tl.uint32, bitcast=True)
    c1 = zero + ((sweep >> 2) & 0xFFFFFFFF).to(tl.uint32)
    c2 = zero + (index & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + ((purpose << 24) | (replica << 8) | (index >> 32).to(tl.int32)).to(tl.uint32, bitcast=True)
    k0 = zero + key0.to(tl.uint32, bitcast=True)
    k1 = zero + key1.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
    lane = (sweep & 3).to(tl.int32)
    word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    # 23 bits: exact as a signed integer, whose conversion every target has.
    return ((word >> 9).to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def exp2(t):
    """2^t of rule 3 for float32 ``t`` in [-100, 0]; outside of it some number."""
    whole = tl.floor(t)
    part = t - whole
    value = A5 * part
    value = (value + A4) * part
    value = (value + A3) * part
    value = (value + A2) * part
    value = (value + A1) * part
    value = value + 1.0
    # value lies in [1, 2]: adding to its exponent bits multiplies by the power of two, exactly.
    return (value.to(tl.int32, bitcast=True) + (whole.to(tl.int32) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def weigh(energies, scale, LABELS: tl.constexpr, FAR: tl.constexpr):
    """Rule 3's weights of a tuple of L float32 [B], and their sum in label order.

    FAR: whether a label 1024 nat above the best could have a weight at this scale, which rule 3 takes from it (`far`).
    """
    low = energies[0]
    for label in tl.static_range(1, LABELS):
        low = tl.minimum(low, energies[label])
    weights = ()
    total = low * 0.0
    for label in tl.static_range(LABELS):
        gap = low - energies[label]
        t = gap * scale
        allowed = t >= MIN_EXPONENT
        if FAR:
            allowed = allowed & (gap > -CUTOFF)
        weight = tl.where(allowed, exp2(t), 0.0)
        weights = weights + (weight,)  # noqa: RUF005
        total = weight if label == 0 else total + weight
    return weights, total


@triton.jit
def draw(energies, current, u, scale, LABELS: tl.constexpr, FAR: tl.constexpr):
    """Rule 3: new labels int32 [B], and bounds of their odds against staying int32 [B] in units.

    energies: tuple of L float32 [B]; current: int32 [B]; u: float32 [B]; scale: float32 scalar; FAR: as in `weigh`.
    """
    weights, total = weigh(energies, scale, LABELS, FAR)
    own = total * 0.0
    for label in tl.static_range(LABELS):
        own = tl.where(current == label, weights[label], own)
    x = u * total
    rest = x - own
    passed, taken = total * 0.0, own
    chosen = current
    for label in tl.static_range(LABELS):
        weight = tl.where(current == label, 0.0, weights[label])
        # The last label of positive weight met before the walk has passed: the one that passes, or the last resort.
        takes = (passed <= rest) & (weight > 0.0)
        chosen = tl.where(takes, label, chosen)
        taken = tl.where(takes, weight, taken)
        passed = passed + weight
    stays = x < own
    others = tl.where(stays, passed, total - taken + total * (LABELS * LOST))
    against = tl.log2(others * INFLATE + FLOOR) - tl.log2(tl.where(stays, own, taken))
    # Infinite where the label has no weight.
    bound = tl.minimum(against * UNITS, MOST).to(tl.int32) + 2
    return tl.where(stays, current, chosen), bound
