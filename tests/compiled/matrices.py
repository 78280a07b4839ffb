"""What do the matrix units compute? ``mma`` of a warp, ``wgmma`` of four, ``ldmatrix``, ``stmatrix``: who holds which number.

Of 16 x 16 halves A thread t of a warp holds rows g = t / 4 and g + 8, columns 2 (t % 4) and one more, then those 8 further on;
of a result rows g and g + 8 of each 8 columns. Sums are exact here: the kernels multiply small whole numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WARP = 32
Words = NDArray[np.uint32]
Floats = NDArray[np.float64]
_ROW, _COLUMN = np.arange(WARP) // 4, 2 * (np.arange(WARP) % 4)
_CORNERS = ((0, 0), (8, 0), (0, 8), (8, 8))


def halves(words: Words) -> tuple[Floats, Floats]:
    """The lower and the upper float16 of each, [warps, 32]."""
    both = words.reshape(-1, WARP, 1).view(np.uint16).view(np.float16).astype(np.float64)
    return both[..., 0], both[..., 1]


def left(words: list[Words]) -> Floats:
    """A [warps, 16, 16] of four registers."""
    found = np.zeros((len(words[0]) // WARP, 16, 16))
    for register, (down, right) in zip(words, _CORNERS, strict=True):
        found[:, _ROW + down, _COLUMN + right], found[:, _ROW + down, _COLUMN + right + 1] = halves(register)
    return found


def result(product: Floats, before: list[Words]) -> list[Words]:
    """``product`` [warps, 16, columns] added to the registers ``before``, as float32."""
    found = []
    for place, register in enumerate(before):
        right, (down, one) = place // 4 * 8, divmod(place % 4, 2)
        own = product[:, _ROW + 8 * down, _COLUMN + right + one].reshape(-1)
        found.append((own + register.view(np.float32)).astype(np.float32).view(np.uint32))
    return found


def multiply(a: list[Words], b: list[Words], before: list[Words]) -> list[Words]:
    """mma.m16n8k16."""
    right = np.zeros((len(a[0]) // WARP, 16, 8))
    for place, register in enumerate(b):
        right[:, _COLUMN + 8 * place, _ROW], right[:, _COLUMN + 8 * place + 1, _ROW] = halves(register)
    return result(left(a) @ right, before)


def multiply_group(a: list[Words], b: Floats, before: list[Words]) -> list[Words]:
    """wgmma.m64n64k16 with A in registers; b [16, 64], the same for four warps, each of which has 16 rows."""
    return result(left(a) @ b, before)


def described(descriptor: int) -> NDArray[np.int64]:
    """Addresses [16, 64] of B's halves, 64 of a row one behind the other, swizzled in 128 bytes, as a descriptor tells."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    if descriptor >> 62 != 1:
        raise ValueError(f"wgmma: expected a swizzle of 128 bytes, got mode {descriptor >> 62}")
    k, n = np.arange(16)[:, None], np.arange(64)[None, :]
    plain = start + k // 8 * stride + k % 8 * 128 + 2 * n
    return plain ^ (plain >> 7 & 7) << 4


def load_matrices(rows: NDArray[np.uint8], count: int, transposed: bool) -> list[Words]:
    """ldmatrix: of bytes [warps * 8 * count, 16], eight rows a matrix, each thread gets two neighbours of each of them."""
    tiles = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, count, 8, 8)
    if transposed:
        tiles = tiles.transpose(0, 1, 3, 2)
    pairs = np.stack([tiles[:, :, _ROW, _COLUMN], tiles[:, :, _ROW, _COLUMN + 1]], -1).view(np.uint32)[..., 0]
    return [np.ascontiguousarray(pairs[:, matrix]).reshape(-1) for matrix in range(count)]


def store_matrices(words: list[Words], transposed: bool) -> NDArray[np.uint8]:
    """stmatrix: the bytes [warps, 8 * matrices, 16] of the rows that as many threads of a warp give addresses of."""
    warps = len(words[0]) // WARP
    tiles = np.zeros((warps, len(words), 8, 8), np.uint16)
    for matrix, register in enumerate(words):
        pairs = register.reshape(warps, WARP, 1).view(np.uint16)
        tiles[:, matrix, _ROW, _COLUMN], tiles[:, matrix, _ROW, _COLUMN + 1] = pairs[..., 0], pairs[..., 1]
    if transposed:
        tiles = tiles.transpose(0, 1, 3, 2)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(warps, 8 * len(words), 16)
