"""Which launch shape? A static table by labels and way; no kernel that writes labels is ever tuned by running it.

None of the rows was measured: they are chosen from registers and instructions of the compiled code. A lane holds a site, so a
program of ``block`` sites runs on ``block / 32`` warps (of 64 lanes on AMD: half as many).
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_LABELS = 64
MEASURED = False
# Chains from which one program an image, with no launch between phases, keeps most multiprocessors of a large GPU busy.
FUSED_PROGRAMS = 64


@dataclass(frozen=True)
class Launch:
    """How a sweep is launched."""

    block: int
    """Sites a program redraws at once."""
    warps: int
    fused: bool
    """One program for all phases and sweeps of a group of chains, instead of a launch a phase."""

    @property
    def scan(self) -> int:
        """Sites whose stay bounds a fused program looks at at once."""
        return 2 * self.block

    def together(self, replicas: int, length: int) -> int:
        """Replicas of an image in one fused program: as many as fill a block with phases of ``length`` sites."""
        return max(1, min(replicas, self.block // max(length, 1)))

    def options(self, roomy: bool = False) -> dict[str, int | bool]:
        """Compiler options. roomy: as many registers as one program on a multiprocessor may have.

        Left to itself the assembler spills a few bytes of the longest kernels to fit a second program that never comes.
        """
        found: dict[str, int | bool] = {"num_warps": self.warps, "enable_fp_fusion": False}
        if roomy and self.block < 64 * self.warps:
            found["maxnreg"] = min(255, 65536 // (32 * self.warps))
        return found


# (most labels, way, fused) -> sites a program redraws at once.
TABLE: dict[tuple[int, str, bool], int] = {
    (8, "gather", False): 128,
    (8, "gather", True): 512,
    (8, "incremental", False): 128,
    (8, "incremental", True): 256,
    (32, "gather", False): 128,
    (32, "gather", True): 512,
    (32, "incremental", False): 128,
    (32, "incremental", True): 256,
    (64, "gather", False): 64,
    (64, "gather", True): 256,
    (64, "incremental", False): 64,
    (64, "incremental", True): 256,
}


def launch(labels: int, way: str, fused: bool, wide: bool) -> Launch:
    """The row of the table; wide: warps have 64 lanes (AMD) instead of 32."""
    block = TABLE[next(most for most, *_ in TABLE if labels <= most), way, fused]
    return Launch(block, max(1, block // (64 if wide else 32)), fused)


def choose(labels: int, way: str, images: int, replicas: int, length: int, wide: bool = False) -> Launch:
    """The shape for ``images`` images of ``replicas`` chains whose phases have ``length`` sites."""
    fused = launch(labels, way, True, wide)
    programs = images * -(-replicas // fused.together(replicas, length))
    return fused if programs >= FUSED_PROGRAMS else launch(labels, way, False, wide)
