"""What does the compiler make of the kernels? ``python -m bench.compiled`` compiles ahead of time, with no GPU at hand.

For each kernel: registers a thread, bytes spilled and shared, instructions, how many of them contract a product and a sum
(where labels are decided none may), how many warps a multiprocessor then holds, and what a site and a neighbour cost
(`bench.machine_code`). Sweeps are ``gather`` and ``lazy``, by large programs and, with ``_team``, by small ones that meet.
``+kinds`` and ``+gates`` mark a kernel as it is for a model with three kinds, or with one gate an edge. ``--write`` puts the
figures under the Triton version in ``bench/results/compiled.json``, makes the page beside it and the table in ``docs/gpu.md``.
It must run without TRITON_INTERPRET: an interpreted kernel cannot be compiled.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import marked
from bench.launches import KERNELS, SEEING, SWEEPS, TARGETS, form, launched, source
from bench.machine_code import costs, gated_costs

RESULTS = Path(__file__).parent / "results" / "compiled.json"
# Registers a multiprocessor (a lane of a SIMD on AMD) has, warps it holds, bytes of shared memory.
LIMITS = {"sm_90": (65536, 64, 228 << 10), "sm_80": (65536, 64, 164 << 10), "gfx942": (512, 32, 64 << 10)}
FUSED = r"v_(pk_)?(fma|mad|fmac|mac)_.*f32|v_fmaak|v_fmamk"


@dataclass(frozen=True)
class Figures:
    """Of one kernel on one target."""

    registers: int
    spilled: int
    """Bytes of the stack frame and of spills, a thread."""
    shared: int
    """Bytes a program."""
    instructions: int
    contracted: int
    """Fused multiply-adds in float32 that the text does not ask for, as a logarithm's does; where labels are decided none."""
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
    shared_redraw: float
    row: float
    row_float: float
    row_memory: float
    row_integer: float
    row_bytes: float
    packed: float
    packed_shared: float
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

    what, options, block = source(kernel, labels, target, single)
    # Else what the launcher asks for stands: a launcher that contracts has to show.
    if contract:
        options["enable_fp_fusion"] = True
    binary = triton.compile(what, target=GPUTarget(*TARGETS[target]), options=options)
    read = _nvidia if TARGETS[target][0] == "cuda" else _amd
    name, seen = kernel.partition("+")[0], form(kernel)
    found, listing = read(binary)
    shared, warps = binary.metadata.shared, options["num_warps"]
    held = resident(target, found["registers"], shared, warps)
    # A neighbour's label is a byte, and its edge's kind another.
    of_lanes = costs(listing, 2 if seen["KINDS"] else 1, seen["GATES"])
    if name not in SEEING:
        # No rows, whatever their loops load.
        of_lanes |= {name: 0.0 for name in of_lanes if name.startswith(("row", "packed", "push"))}
    gated = gated_costs(listing, 1 + seen["GATES"]) if name in SEEING and seen["GATES"] else 0.0
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
        "contracted": sum(opcode.startswith("FFMA") for opcode in opcodes) - binary.asm["ptx"].count("fma.rn.ftz.f32"),
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
        "contracted": sum(re.match(FUSED, opcode) is not None for opcode in opcodes) - 5 * quotients,
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


def newest(kept: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return kept[max(kept, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])]


def table(kept: dict[str, dict[str, float]]) -> list[str]:
    """The sweeps of 20 labels for sm_90, as a page has them."""
    heads = (
        "registers", "warps a multiprocessor", "a site", "a redraw", "by several lanes", "a neighbour, packed",
        "by several lanes", "as float32", "a gate more", "a neighbour of a flip",
    )  # fmt: skip
    keys = ("registers", "resident_warps", "site", "redraw", "shared_redraw", "packed", "packed_shared", "row", "gated", "push")
    lines = [f"| kernel | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for kernel in (name + variant for variant in ("", "+kinds", "+gates") for name in SWEEPS):
        figures = kept[f"{kernel} 20 sm_90"]
        lines.append(f"| `{kernel}` | {' | '.join(f'{figures[key]:g}' if figures[key] else '' for key in keys)} |")
    return lines


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
        for target in options.targets for labels in options.labels for kernel in options.kernels if launched(kernel, target)
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.write:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept.setdefault(triton.__version__, {}).update(found)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(kept))
        marked.write(marked.GPU, "compiled", table(newest(kept)))


if __name__ == "__main__":
    main()
