"""Which launch shape? A static table by labels and update; no kernel that writes labels is ever tuned by running it.

A program of ``lanes`` lanes runs on ``lanes / 32`` warps (of 64 lanes on AMD: half as many). A large program fills a
multiprocessor alone; of small ones several share it, so that one image's sites go over the whole device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_LABELS = 64
# Programs of a team; 0: by the table. For tests, which no label depends on.
TEAM = 0
# Registers of a multiprocessor.
REGISTERS = 65536


@dataclass(frozen=True)
class Launch:
    """How chains are swept."""

    lanes: int
    """Sites a program redraws at once."""
    warps: int
    split: int = 1
    """Lanes to a site where few sites are left."""
    scan: int = 1024
    """Sites whose odds a program looks at at once."""
    ahead: int = 2
    """Classes whose neighbours' labels and rows a lane asks for at once."""
    resident: int = 1
    """Programs that a multiprocessor holds."""
    team: int = 1
    """Programs that go through a group of chains together."""

    def together(self, replicas: int, length: int) -> int:
        """Replicas of an image in one team: as many as fill its lanes with colours of ``length`` sites."""
        return max(1, min(replicas, self.lanes // max(length, 1)))

    def asked(self, classes: int, split: int, kinded: bool) -> int:
        """Classes asked for at once where ``split`` lanes share a list of them: a power of two that divides theirs."""
        turns = classes // split
        # Kinds take registers of their own.
        return max(1, min(self.ahead // 2 if kinded else self.ahead, turns & -turns))

    def options(self) -> dict[str, int | bool]:
        """Compiler options: as many registers as leave room for all resident programs."""
        found: dict[str, int | bool] = {"num_warps": self.warps, "enable_fp_fusion": False}
        found["maxnreg"] = min(255, REGISTERS // (32 * self.warps * self.resident))
        return found | ({"launch_cooperative_grid": True} if self.team > 1 else {})


# (most labels, lazy) -> of large programs, and of small ones. Those of 20 labels were measured on an H200 (docs/gpu.md).
TABLE: dict[tuple[int, bool], tuple[Launch, Launch]] = {
    (32, False): (Launch(512, 16), Launch(128, 4, 8, ahead=4, resident=4)),
    (32, True): (Launch(512, 16, 4), Launch(128, 4, 8, scan=512, ahead=4, resident=4)),
    (64, False): (Launch(256, 8), Launch(64, 2, 4, resident=4)),
    (64, True): (Launch(256, 8, 4), Launch(64, 2, 4, scan=256, resident=4)),
}


def plain(labels: int, wide: bool = False) -> tuple[int, int]:
    """Sites and warps of a program that visits each site once."""
    block = 128 if labels <= 32 else 64
    return block, max(1, block // (64 if wide else 32))


def choose(
    labels: int, lazy: bool, images: int, replicas: int, length: int, processors: int = 1, wide: bool = False
) -> Launch:
    """The shape for ``images`` images of ``replicas`` chains whose colours have ``length`` sites, on some multiprocessors."""
    large, small = TABLE[next(most for most, _ in TABLE if labels <= most), lazy]
    if wide:
        large, small = (replace(one, warps=max(1, one.warps // 2)) for one in (large, small))
    if TEAM:
        return replace(small, team=TEAM) if TEAM > 1 else large
    # More than half as many groups as multiprocessors: a second program would find no room of its own.
    if 2 * images * -(-replicas // large.together(replicas, length)) > processors or wide:
        return large
    together = small.together(replicas, length)
    # By gather half as many as lanes can hold, and fewer did no worse; where few are redrawn, as many as there are lanes.
    share = small.lanes if lazy else small.lanes // small.split // 2
    fits = processors * small.resident // (images * -(-replicas // together))
    return replace(small, team=max(1, min(fits, -(-length * together // share))))
