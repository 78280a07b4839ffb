"""Machine code is read as it is: loops, unrolling, kinds of instructions, and what follows for occupancy and speed."""

from __future__ import annotations

import json

import pytest

from bench import predicted
from bench.compiled import RESULTS, resident
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
        /*00b0*/                   LDG.E.64 R8, desc[UR4][R4.64] ;
        /*00c0*/              @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*00d0*/                   LDG.E R7, desc[UR4][R2.64] ;
        /*00e0*/                   REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4 ;
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
    assert [(len(region.own), len(region.inner)) for region in root.walk()] == [(4, 3), (8, 0), (3, 0), (3, 0)]
    assert costs(NVIDIA) == {
        "site": 4.0, "redraw": 0.0, "row": 4.0, "row_float": 1.0, "row_memory": 2.0, "row_integer": 0.5, "row_bytes": 16.0,
        "narrow": 3.0, "push": 3.0,
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


def test_turns_of_a_push() -> None:
    assert predicted.turns(1, 0.25, 4) == pytest.approx(0.25)
    # Of two sites none, one or both flip.
    assert predicted.turns(2, 0.5, 1) == pytest.approx(1.0)
    assert predicted.turns(2, 0.5, 2) == pytest.approx(0.75)


def test_a_range_has_the_slowest_limit_at_its_top() -> None:
    low, high = predicted.between({"one": 2.0, "other": 6.0})
    assert low == pytest.approx(1.5)
    assert high == 2.0


def test_the_page_is_what_the_committed_figures_give() -> None:
    kept = json.loads(RESULTS.read_text())
    text = predicted.PAGE.read_text()
    generated = text[text.index(predicted.BEGIN) : text.index(predicted.END)]
    for card in predicted.CARDS:
        for row in predicted.table(kept["3.9.0"], card):
            assert row in generated, "python -m bench.compiled --write"
