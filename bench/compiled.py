"""What does the compiler make of the kernels? ``python -m bench.compiled`` compiles ahead of time, with no GPU at hand.

For each kernel: registers a thread, bytes spilled and shared, instructions, how many of them contract a product and a sum
(where labels are decided none may), how many warps a multiprocessor then holds, and what a site and a neighbour cost
(`bench.machine_code`). ``+kinds`` and ``+gates`` mark a kernel as it is for a model with three kinds, or with one gate an edge.
``--write`` puts the figures under the Triton version in ``bench/results/compiled.json``, makes the page beside it and the table
of predictions in ``docs/gpu.md``. It must run without TRITON_INTERPRET: an interpreted kernel cannot be compiled.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import predicted
from bench.machine_code import costs, gated_costs

RESULTS = Path(__file__).parent / "results" / "compiled.json"
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_90": ("cuda", 90, 32), "sm_80": ("cuda", 80, 32), "gfx942": ("hip", "gfx942", 64),
}  # fmt: skip
# Registers a multiprocessor (a lane of a SIMD on AMD) has, warps it holds, bytes of shared memory.
LIMITS = {"sm_90": (65536, 64, 228 << 10), "sm_80": (65536, 64, 164 << 10), "gfx942": (512, 32, 64 << 10)}
POINTERS = {
    "labels": "u8", "unary": "fp32", "rows": "fp32", "displacements": "i32", "phases": "i32", "position": "i32", "site": "i32",
    "words": "i32", "fits": "i32",
    "slot": "i32", "counts": "i32", "tables": "i32", "index": "i64", "count": "i64", "flips": "i64", "field": "fp32",
    "bounds": "fp32", "lookup": "i32", "scratch": "i32", "logits": "fp32", "pixels": "i64", "energy": "fp64",
    "free": "u8", "data": "u8", "factor": "fp32", "kinds": "u8", "gates": "u8", "gated": "fp32", "gating": "i32",
    "places": "i64", "kinded": "i32", "values": "u8", "chosen": "i32", "steps": "i32",
}  # fmt: skip
# Kernels of models that have these, and what then is None in the others.
VARIANTS: dict[str, dict[str, int]] = {
    "": {"KINDS": 0, "GATES": 0}, "kinds": {"KINDS": 3, "GATES": 0}, "gates": {"KINDS": 0, "GATES": 1},
}  # fmt: skip
ABSENT = {"KINDS": ("kinds", "kinded"), "GATES": ("gates", "gated", "gating")}
# Outputs whose type differs from kernel to kernel.
OUT = {
    "add_conditionals": "fp64", "pair_products": "i64", "unary_differences": "fp32", "edge_bytes": "u8",
    "gated_products": "i64",
}  # fmt: skip
FLOATS, LONGS = ("scale", "share"), ("stride_image", "stride_label")
# Kernel -> (module, way of the launch table, fused).
KERNELS: dict[str, tuple[str, str, bool]] = {
    "unary_rows": ("initial", "gather", False),
    "initial_draw": ("initial", "gather", False),
    "gather_phase": ("gather", "gather", False),
    "gather_fused": ("gather", "gather", True),
    "build_field": ("incremental", "incremental", False),
    "incremental_phase": ("incremental", "incremental", False),
    "incremental_fused": ("incremental", "incremental", True),
    "add_conditionals": ("conditionals", "gather", False),
    "pair_products": ("counts", "", False),
    "unary_differences": ("errors", "", False),
    "edge_bytes": ("edges", "", False),
    "gated_products": ("counts", "", False),
}
SEEING = ("gather_phase", "gather_fused", "build_field", "incremental_phase", "incremental_fused", "add_conditionals")
KERNELS |= {f"{kernel}+{variant}": KERNELS[kernel] for variant in ("kinds", "gates") for kernel in SEEING}
KERNELS["pair_products+kinds"] = KERNELS["pair_products"]
FUSED = r"v_(pk_)?(fma|mad|fmac|mac)_.*f32|v_fmaak|v_fmamk"
# Launched with room for registers.
ROOMY = ("gather_fused", "incremental_fused", "add_conditionals")
# Those that decide labels. A correctly rounded quotient, as of `add_conditionals`, is made of contracted operations.
EXACT = ("unary_rows", "initial_draw", "gather_phase", "gather_fused", "build_field", "incremental_phase", "incremental_fused")


@dataclass(frozen=True)
class Figures:
    """Of one kernel on one target."""

    registers: int
    spilled: int
    """Bytes of the stack frame and of spills, a thread."""
    shared: int
    """Bytes a program."""
    instructions: int
    fused_multiply_adds: int
    """In float32; of a kernel with a draw none are allowed."""
    wide_addresses: int
    """64-bit integer multiplications or additions with carry that addresses are made of."""
    barriers: int
    """Waits of a program for its own threads."""
    warps: int
    block: int
    resident_warps: int
    """That a multiprocessor holds at once, by registers, shared memory and its own limit."""
    site: float
    """Instructions of a lane for every site; the next as `bench.machine_code` says."""
    redraw: float
    row: float
    row_float: float
    row_memory: float
    row_integer: float
    row_bytes: float
    narrow: float
    push: float
    gated: float


def resident(target: str, registers: int, shared: int, warps: int) -> int:
    """Warps that a multiprocessor holds of programs of ``warps`` warps: its occupancy, as a number."""
    pool, most, memory = LIMITS[target]
    if target.startswith("sm_"):
        # Handed out to warps in units of 256; a program takes a KiB of shared memory for the driver.
        programs = min(pool // (-(-32 * registers // 256) * 256 * warps), memory // (shared + 1024), 32)
    else:
        # A SIMD, of four, holds 8 waves, and registers are handed out in units of 8.
        programs = min(4 * min(8, pool // (-(-registers // 8) * 8)) // warps, memory // max(shared, 1))
    return min(programs, most // warps) * warps


def compiled(kernel: str, labels: int, target: str, single: bool = True, contract: bool = False) -> Figures:
    """Compiles ``kernel`` for ``labels`` labels as its launcher would (one replica if ``single``), and reads the machine code.

    contract: leave contraction on, as no launcher does, to see that it would be found.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from tritoncrf.kernels.rows import padded, width
    from tritoncrf.kernels.shapes import launch

    name, way, fused = KERNELS[kernel]
    kernel, _, variant = kernel.partition("+")
    seen = VARIANTS[variant] if kernel != "gated_products" else VARIANTS["gates"]
    function = getattr(importlib.import_module(f"tritoncrf.kernels.{name}"), kernel)
    backend, architecture, lanes = TARGETS[target]
    shape = launch(labels, way, fused, lanes == 64) if way else None
    block = shape.block if shape else 256
    if kernel in ("pair_products", "gated_products"):
        block = importlib.import_module("tritoncrf.kernels.counts").BLOCK
    fixed: dict[str, int | None] = {
        "LABELS": labels, "PAD": padded(labels), "WIDTH": width(labels), "BLOCK": block, "SINGLE": single, "GATHER": True,
        "TILE": max(16, triton.next_power_of_2(labels)), "stride_pixel": 1, "SPREAD": 64,
        "SCAN": shape.scan if shape else 0, **seen,
    }  # fmt: skip
    fixed |= {argument: None for flag, arguments in ABSENT.items() if not seen[flag] for argument in arguments}
    if kernel == "pair_products" and not seen["KINDS"]:
        fixed["places"] = None
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, argument in enumerate(function.arg_names):
        pointer = OUT.get(kernel) if argument == "out" else POINTERS.get(argument)
        if argument in fixed:
            signature[argument] = "constexpr"
        elif pointer is not None:
            signature[argument] = f"*{pointer}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "fp32" if argument in FLOATS else "i64" if argument in LONGS else "i32"
    constants = {argument: value for argument, value in fixed.items() if argument in function.arg_names}
    source = ASTSource(function, signature, constants, aligned)
    roomy = kernel in ROOMY or (kernel == "build_field" and seen["GATES"] > 0)
    options = shape.options(roomy=roomy) if shape else {"num_warps": 4, "enable_fp_fusion": False}
    # Else what the launcher asks for stands: a launcher that contracts has to show.
    if contract:
        options["enable_fp_fusion"] = True
    binary = triton.compile(source, target=GPUTarget(backend, architecture, lanes), options=options)
    read = _nvidia if backend == "cuda" else _amd
    found, listing = read(binary)
    shared, warps = binary.metadata.shared, options["num_warps"]
    held = resident(target, found["registers"], shared, warps)
    # Where rows are gathered, a neighbour's label is a byte, and its edge's kind another.
    gathers = kernel in SEEING and not kernel.startswith("incremental")
    of_lanes = costs(listing, 2 if gathers and seen["KINDS"] else 1, seen["GATES"] if gathers else 0)
    gated = gated_costs(listing, 1 + seen["GATES"]) if gathers and seen["GATES"] else 0.0
    return Figures(**found, shared=shared, warps=warps, block=block, resident_warps=held, **of_lanes, gated=gated)  # type: ignore[arg-type]


@functools.cache
def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _nvidia(binary: Any) -> tuple[dict[str, int], str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # One instruction a line, behind its address; what follows the closing jump to itself is padding.
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", code)
    opcodes = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in lines]
    opcodes = [opcode for opcode in opcodes if opcode != "NOP"]
    figures = {
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"],
        "instructions": len(opcodes),
        "fused_multiply_adds": sum(opcode.startswith("FFMA") for opcode in opcodes),
        "barriers": sum(opcode.startswith("BAR.") for opcode in opcodes),
        "wide_addresses": sum(".WIDE" in opcode or ".64" in opcode or opcode.endswith(".X") for opcode in opcodes),
    }
    return figures, code


def _amd(binary: Any) -> tuple[dict[str, int], str]:
    code = binary.asm["amdgcn"]

    def number(key: str) -> int:
        return max(map(int, re.findall(rf"\.{key}:\s+(\d+)", code)), default=0)

    # A quotient in float32 (of a stay bound, which any rounding serves) takes five of them.
    quotients = len(re.findall(r"\bv_div_fixup_f32\b", code))
    opcodes = re.findall(r"^\s+((?:[vs]|global|ds|buffer|flat|scratch)_\w+)", code, re.MULTILINE)
    figures = {
        "registers": number("vgpr_count"),
        "spilled": 4 * number("vgpr_spill_count") + number("private_segment_fixed_size"),
        "instructions": len(opcodes),
        "fused_multiply_adds": sum(re.match(FUSED, opcode) is not None for opcode in opcodes) - 5 * quotients,
        "barriers": opcodes.count("s_barrier"),
        "wide_addresses": sum("_u64" in opcode or "addc" in opcode for opcode in opcodes),
    }
    return figures, code


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=True).stdout


def page(kept: dict[str, dict[str, dict[str, float]]]) -> str:
    """The readable table of everything kept."""
    lines = ["# The kernels as compiled", "", "Made by `python -m bench.compiled --write`; nothing here was run on a GPU."]
    for version, found in kept.items():
        keys = list(Figures.__dataclass_fields__)
        names = [key.replace("_", " ") for key in keys]
        lines += ["", f"## Triton {version}", "", f"| kernel, labels, target | {' | '.join(names)} |"]
        lines += ["|---" * (1 + len(names)) + "|"]
        lines += [f"| {name} | {' | '.join(f'{figures.get(key, 0):g}' for key in keys)} |" for name, figures in found.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--labels", nargs="*", type=int, default=[20])
    parser.add_argument("--targets", nargs="*", default=["sm_90"], choices=list(TARGETS))
    parser.add_argument("--contract", action="store_true", help="let the compiler contract, to see that it shows")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULTS.name}")
    options = parser.parse_args()
    if options.write and options.contract:
        parser.error("--write keeps what the launchers compile, which contract nothing")
    import triton

    found = {
        f"{kernel} {labels} {target}": asdict(compiled(kernel, labels, target, contract=options.contract))
        for target in options.targets for labels in options.labels for kernel in options.kernels
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.write:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept.setdefault(triton.__version__, {}).update(found)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(kept))
        predicted.write(kept[triton.__version__])


if __name__ == "__main__":
    main()
