"""How does a launcher call each kernel? Types, constants and options to compile it as a launch would, with no GPU at hand."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_90": ("cuda", 90, 32), "sm_80": ("cuda", 80, 32), "gfx942": ("hip", "gfx942", 64),
}  # fmt: skip
POINTERS = {
    "labels": "u8", "unary": "fp32", "rows": "fp32", "words": "i32", "spreads": "fp32", "steepest": "i32", "steps": "i32",
    "color_bounds": "i32", "slot": "i32", "position": "i32", "site": "i32", "counts": "i32", "lookup": "i32", "index": "i64",
    "count": "i64", "flips": "i64", "bad": "i1", "odds": "i32", "tags": "i32", "scratch": "i32", "arrivals": "i32",
    "kinds": "u8", "gates": "u8", "gated": "fp32", "gating": "i32", "steep": "fp32", "displacements": "i32", "tables": "i32",
    "logits": "fp32", "pixels": "i64", "energy": "fp64", "free": "u8", "data": "u8", "places": "i64", "kinded": "i32",
    "values": "u8", "chosen": "i32", "sites": "i64", "positions": "i64", "before": "u8", "marks": "u8", "since": "i32",
    "pointer": "i32", "base": "i32", "others": "i32", "first_node": "i64", "starts": "i32", "members": "i32", "graph": "i32",
    "start": "i64",
    "pairwise": "fp32", "target": "i64", "visits": "i64", "holds": "u8", "place": "i64", "known": "u8",
    "labelled": "u8", "kept": "u8", "gaps": "fp64", "pairs": "i64", "errors": "fp32", "whole": "fp64", "value": "fp32",
    "factor": "fp32",
}  # fmt: skip
# What differs from kernel to kernel.
OWN: dict[str, dict[str, str]] = {
    "add_conditionals": {"out": "fp64"}, "pair_products": {"out": "i64"}, "unary_differences": {"out": "fp32"},
    "edge_bytes": {"out": "u8"}, "gated_products": {"out": "i64"}, "table_rows": {"tables": "fp32", "kinds": ""},
    "settle": {"out": "fp64"}, "add_graph_conditionals": {"out": "fp64"}, "count_factors": {"counts": "i64", "free": "u8"},
    "tell_pixels": {"out": "fp32"}, "tell_once": {"bad": "u8", "labelled": "i64", "sweeps": "i64"},
    "look_once": {"sweeps": "i64"},
}  # fmt: skip
# Kernels of models that have these, and what then is None in the others.
VARIANTS: dict[str, dict[str, int]] = {
    "": {"KINDS": 0, "GATES": 0}, "kinds": {"KINDS": 3, "GATES": 0}, "gates": {"KINDS": 0, "GATES": 1},
}  # fmt: skip
ABSENT = {
    "KINDS": ("kinds", "kinded"), "GATES": ("gates", "gated", "gating", "steep"), "LAZY": ("odds", "tags", "scratch"),
    "TEAMED": ("arrivals",),
}  # fmt: skip
FLOATS, LONGS = ("scale", "share", "bound"), ("stride_image", "stride_label", "most")
# Classes of the standard problem, its sites of a colour, images of a full device, multiprocessors.
CLASSES, LENGTH, FULL, PROCESSORS = 32, 130 * 330 // 20, 1 << 10, 132


@dataclass(frozen=True)
class Kernel:
    """Where a kernel is, and how a launcher calls it."""

    module: str
    function: str
    warps: str = "four"
    """"four"; "plain": as `tritoncrf.kernels.shapes.plain` says; "sweep": by its table."""
    block: int = 256
    lazy: bool = False
    team: bool = False


def _sweeps(**how: bool) -> Kernel:
    return Kernel("sweeps", "sweep_chains", "sweep", **how)


KERNELS = {
    "gather": _sweeps(), "gather_team": _sweeps(team=True),
    "lazy": _sweeps(lazy=True), "lazy_team": _sweeps(lazy=True, team=True),
    "unary_rows": Kernel("initial", "unary_rows", "plain"), "initial_draw": Kernel("initial", "initial_draw", "plain"),
    "add_conditionals": Kernel("conditionals", "add_conditionals", "plain"),
    "pair_products": Kernel("counts", "pair_products", block=128),
    "gated_products": Kernel("counts", "gated_products", block=128),
    "unary_differences": Kernel("errors", "unary_differences"), "edge_bytes": Kernel("edges", "edge_bytes"),
    "list_sites": Kernel("listing", "list_sites", block=1024), "table_rows": Kernel("tables", "table_rows"),
    "mark_stale": Kernel("standing", "mark_stale", lazy=True), "settle": Kernel("standing", "settle", "plain", lazy=True),
    "graph": Kernel("graphs", "sweep_graphs", "sweep"), "graph_team": Kernel("graphs", "sweep_graphs", "sweep", team=True),
    "add_graph_conditionals": Kernel("graphs", "add_graph_conditionals", "plain"),
    "count_factors": Kernel("factor_counts", "count_factors", block=128),
    "look_once": Kernel("looks", "look_once", block=512), "look_at_pixels": Kernel("looks", "look_at_pixels"),
    "tell_pixels": Kernel("tells", "tell_pixels"), "tell_once": Kernel("tells", "tell_once", block=512),
}  # fmt: skip
SWEEPS = ("gather", "gather_team", "lazy", "lazy_team")
GRAPHS = ("graph", "graph_team")
SEEING = (*SWEEPS, "add_conditionals", "settle")
KERNELS |= {f"{kernel}+{variant}": KERNELS[kernel] for variant in ("kinds", "gates") for kernel in SEEING}
KERNELS["pair_products+kinds"] = KERNELS["pair_products"]
# Those that decide labels. A correctly rounded quotient, as of averages, is made of contracted operations.
EXACT = ("unary_rows", "initial_draw", *SWEEPS, *GRAPHS)


def launched(kernel: str, target: str) -> bool:
    """Whether the launch table has the kernel for that target: with warps of 64 lanes programs never meet."""
    return not (KERNELS[kernel].team and TARGETS[target][2] == 64)


def form(kernel: str) -> dict[str, int]:
    """KINDS and GATES that a kernel is compiled for."""
    name, _, variant = kernel.partition("+")
    return VARIANTS["gates" if name == "gated_products" else variant]


def source(kernel: str, labels: int, target: str, single: bool = True) -> tuple[Any, dict[str, Any], int]:
    """What to compile, with which options, and lanes a program; for one replica if ``single``."""
    import triton
    from triton.compiler import ASTSource
    from tritoncrf.kernels import shapes
    from tritoncrf.kernels.rows import padded, pitch, width

    what = KERNELS[kernel]
    seen = form(kernel)
    kernel = kernel.partition("+")[0]
    function = getattr(importlib.import_module(f"tritoncrf.kernels.{what.module}"), what.function)
    lanes = TARGETS[target][2]
    options: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
    options |= {"maxnreg": 255} if kernel in ("add_conditionals", "mark_stale", "settle") else {}
    block, flags = what.block, {"LAZY": int(what.lazy), "TEAMED": int(what.team), **seen}
    fixed: dict[str, int | None] = {
        "LABELS": labels, "PAD": padded(labels), "PITCH": pitch(labels), "WIDTH": width(labels), "SINGLE": single, "FAR": False,
        "TILE": max(16, triton.next_power_of_2(labels + (kernel == "table_rows"))), "stride_pixel": 1, "SPREAD": 2 * CLASSES,
        "LANES": 128, "SCAN": 1024, "EVERY": False, "MEMBERS": 1, "ARITY": 2, "DIFFERENCE": True, "GATED": bool(seen["GATES"]),
        "CHECKS": 8, "MEAN": True,
        **flags,
    }  # fmt: skip
    if what.warps == "plain":
        block, options["num_warps"] = shapes.plain(labels, lanes == 64)
    if what.warps == "sweep":
        shape = shapes.choose(labels, what.lazy, 1 if what.team else FULL, 1, LENGTH, PROCESSORS, lanes == 64)
        options |= shape.options()
        block = shape.lanes
        fixed |= {
            "LANES": block, "SPLIT": shape.split, "SCAN": shape.scan, "WIDE": shape.asked(CLASSES, 1, bool(seen["KINDS"])),
            "AHEAD": shape.asked(CLASSES, shape.split, bool(seen["KINDS"])),
        }  # fmt: skip
    fixed |= {"BLOCK": block}
    if kernel != "table_rows":
        fixed |= {argument: None for flag, arguments in ABSENT.items() if not flags[flag] for argument in arguments}
    if kernel == "pair_products" and not seen["KINDS"]:
        fixed["places"] = None
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, argument in enumerate(function.arg_names):
        pointer = OWN.get(kernel, {}).get(argument, POINTERS.get(argument))
        if argument in fixed:
            signature[argument] = "constexpr"
        elif pointer:
            signature[argument] = f"*{pointer}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "fp32" if argument in FLOATS else "i64" if argument in LONGS else "i32"
    constants = {argument: value for argument, value in fixed.items() if argument in function.arg_names}
    # Of no matter to the code.
    options.pop("launch_cooperative_grid", None)
    return ASTSource(function, signature, constants, aligned), options, block
