"""Machine code is read as it is: loops, unrolling, kinds of instructions, and what follows for occupancy."""

from __future__ import annotations

import pytest

from bench.compiled import resident
from bench.machine_code import costs, regions

NVIDIA = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   IMAD.HI.U32 R3, R3, -0x2daee0ad, RZ ;
.L_x_0:
        /*0020*/              @P0 LDG.E.U8 R7, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R4.64] ;
        /*0040*/                   FADD R8, R8, R12 ;
        /*0050*/              @P0 LDG.E.U8 R7, desc[UR4][R2.64+0x4] ;
        /*0060*/                   LDG.E.128 R8, desc[UR4][R6.64] ;
        /*0070*/                   FADD R8, R8, R12 ;
        /*0080*/                   IADD3 R9, R9, 0x1, RZ ;
        /*0090*/              @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*00a0*/                   LDG.E.U8 R7, desc[UR4][R2.64] ;
        /*00b0*/                   LDG.E.128 R8, desc[UR4][R4.64] ;
        /*00b8*/                   IADD3 R9, R9, R8, RZ ;
        /*00c0*/              @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*00d0*/                   LDG.E R7, desc[UR4][R2.64] ;
        /*00e0*/                   REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R4 ;
        /*00f0*/              @P1 BRA `(.L_x_2) ;
        /*0100*/                   EXIT ;
.L_x_3:
        /*0110*/                   BRA `(.L_x_3);
        /*0120*/                   NOP;
"""
AMD = """
\tv_mul_hi_u32 v1, v2, s3
.LBB0_1:
\tglobal_load_ubyte v1, v[2:3], off
\tglobal_load_dwordx4 v[4:7], v[2:3], off
\tv_pk_add_f32 v[4:5], v[4:5], v[8:9]
\tv_add_u32_e32 v1, v2, v3
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_loops_and_kinds_of_nvidia() -> None:
    root = regions(NVIDIA)
    assert [(len(region.own), len(region.inner)) for region in root.walk()] == [(4, 3), (8, 0), (4, 0), (3, 0)]
    assert costs(NVIDIA) == {
        "site": 4.0, "redraw": 0.0, "shared_redraw": 0.0, "row": 4.0, "row_float": 1.0, "row_memory": 2.0, "row_integer": 0.5,
        "row_bytes": 16.0, "packed": 4.0, "packed_shared": 0.0, "push": 3.0,
    }  # fmt: skip


# Two looks at a site in one turn, then a redraw by a lane and one by several, each with its neighbours inside, and a push.
LOOKS = "".join(f"        IMAD.HI.U32 R{place}, R3, -0x2daee0ad, RZ ;\n" for place in range(40))
REDRAW = """.L_x_{0}:
        FMUL R1, R2, R3 ;
        FMUL R1, R2, R3 ;
.L_x_{1}:
        LDG.E.U8 R7, desc[UR4][R2.64] ;
        LDG.E.128 R8, desc[UR4][R4.64] ;
{2}        IADD3 R9, R9, R8, RZ ;
        BRA `(.L_x_{1}) ;
        REDG.E.ADD.64.STRONG.GPU desc[UR4][R2.64], R4 ;
        BRA `(.L_x_{0}) ;
"""
MORE = "        NOP ;\n        IADD3 R9, R9, R8, RZ ;\n"
LAZY = f""".L_x_1:
{LOOKS}        FMUL R1, R2, R3 ;
        ATOMG.E.ADD.STRONG.GPU PT, R1, desc[UR4][R2.64], R4 ;
        BRA `(.L_x_1) ;
{REDRAW.format(2, 3, "")}{REDRAW.format(4, 5, MORE)}.L_x_6:
        LDG.E R7, desc[UR4][R2.64] ;
        LDG.E R8, desc[UR4][R2.64] ;
        REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R4 ;
        BRA `(.L_x_6) ;
        EXIT ;
"""


def test_looks_redraws_and_pushes_of_a_sweep() -> None:
    lines = enumerate(LAZY.splitlines())
    listing = "\n".join(line if line.startswith(".L") else f"        /*{16 * place:04x}*/ {line}" for place, line in lines)
    found = costs(listing)
    assert {name: found[name] for name in ("site", "redraw", "shared_redraw", "packed", "packed_shared", "row", "push")} == {
        "site": 21.5, "redraw": 4.0, "shared_redraw": 4.0, "packed": 4.0, "packed_shared": 5.0, "row": 0.0, "push": 4.0,
    }  # fmt: skip


def test_a_redraw_of_every_site_is_what_a_site_takes() -> None:
    """Random numbers and draws in one loop, and in another one by several lanes a site."""
    numbers = "".join(f"        IMAD.HI.U32 R{place}, R3, -0x2daee0ad, RZ ;\n" for place in range(20))
    both = [REDRAW.format(2 * place, 2 * place + 1, "").replace(":\n", ":\n" + numbers, 1) for place in range(2)]
    lines = enumerate("".join(both).splitlines())
    listing = "\n".join(line if line.startswith(".L") else f"        /*{16 * place:04x}*/ {line}" for place, line in lines)
    found = costs(listing)
    assert {name: found[name] for name in ("site", "redraw", "shared_redraw", "packed", "packed_shared")} == {
        "site": 24.0, "redraw": 0.0, "shared_redraw": 24.0, "packed": 4.0, "packed_shared": 4.0,
    }  # fmt: skip


def test_loops_and_kinds_of_amd() -> None:
    found = costs(AMD)
    assert (found["site"], found["row"], found["row_bytes"]) == (2.0, 5.0, 16.0)
    assert (found["row_float"], found["row_memory"], found["row_integer"]) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "held"),
    [
        ("sm_90", 32, 0, 4, 64), ("sm_90", 64, 32, 4, 32), ("sm_90", 255, 0, 8, 8), ("sm_90", 32, 100 << 10, 4, 8),
        ("sm_80", 32, 100 << 10, 4, 4), ("gfx942", 64, 0, 2, 32), ("gfx942", 130, 0, 4, 12),
    ],
)  # fmt: skip
def test_warps_that_fit(target: str, registers: int, shared: int, warps: int, held: int) -> None:
    assert resident(target, registers, shared, warps) == held
