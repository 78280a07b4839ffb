"""How is a launch emulated? Each is compiled for sm_90 as Triton would for these arguments, and its PTX run on CPU tensors.

Programs run one after the other in an order of chance, or in turns where the launch is cooperative. What a kernel's launcher
made with ``torch.empty`` counts as unwritten until a kernel wrote it, and is filled with what no answer looks like.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.compiled.memory import Memory
from tests.compiled.order import Clock, Ordered, Unordered
from tests.compiled.parse import parse
from tests.compiled.program import Code
from tests.compiled.registers import Program
from tests.compiled.turns import alone, together

TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1",
}  # fmt: skip
SCALARS = {"i32": np.uint32, "i64": np.uint64, "fp32": np.float32}
WARP = 32
# Who makes tensors that only kernels write.
LAUNCHERS = "tritoncrf.kernels."


@dataclass
class Emulator:
    """What was compiled, run and found."""

    edits: dict[str, str] = field(default_factory=dict)
    """PTX -> PTX to run in its place, to plant a fault."""
    seed: int = 0
    """Of the order of programs."""
    contract: str = ""
    """The kernel to compile with contraction, as no launcher does."""
    cooperative: bool = True
    """Whether launches may be, as their launchers ask."""
    found: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """(what, kernel, line, tensor) -> how often."""
    executed: Counter[str] = field(default_factory=Counter)
    """Warp instructions, by kernel."""
    launches: Counter[str] = field(default_factory=Counter)
    programs: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    texts: dict[tuple[str, ...], tuple[str, int]] = field(default_factory=dict)
    """PTX and bytes of shared memory, by kernel and what it was compiled for; emulators may have one in common."""
    code: dict[tuple[str, ...], tuple[Code, int]] = field(default_factory=dict)
    fresh: dict[int, tuple[Tensor, NDArray[np.uint8]]] = field(default_factory=dict)
    """By storage: the tensor, which keeps it, and 1 for each byte written."""

    def faults(self) -> list[str]:
        """All findings that are no equal stores."""
        return sorted(
            f"{what} ({kernel}, {line}, {where}): {times}" for (what, kernel, line, where), times in self.found.items()
            if not what.startswith("equal")
        )  # fmt: skip

    def launch(self, kernel: Any, grid: tuple[int, ...], given: dict[str, Any], options: dict[str, Any]) -> None:
        signature, constants, aligned, running = arguments(kernel, given)
        # Of no matter to the code.
        cooperative = self.cooperative and bool(options.get("launch_cooperative_grid"))
        options = {name: value for name, value in options.items() if name != "launch_cooperative_grid"}
        if self.contract == kernel.__name__:
            options = options | {"enable_fp_fusion": True}
        key = (kernel.__name__, *map(str, (signature, constants, aligned, options)))
        if key not in self.code:
            began = time.perf_counter()
            if key not in self.texts:
                self.texts[key] = compiled(kernel, signature, constants, aligned, options)
            text, shared = self.texts[key]
            self.code[key] = Code(parse(self.edits.get(text, text))), shared
            self.seconds["compile"] += time.perf_counter() - began
        began = time.perf_counter()
        self.run(*self.code[key], grid[0], running, cooperative)
        self.seconds[kernel.__name__] += time.perf_counter() - began

    def run(self, code: Code, shared: int, programs: int, running: list[tuple[str, Any]], cooperative: bool = False) -> None:
        kernel = code.kernel
        clock = Clock(kernel.name, found=self.found)
        # Each storage once, whatever tensors see it; cells of a byte where one holds bytes.
        tensors = [value for _, value in running if isinstance(value, Tensor)]
        memory = Memory(clock, 4 if kernel_words(tensors) else 1)
        starts: dict[int, int] = {}
        for name, value in running:
            if isinstance(value, Tensor) and (storage := value.untyped_storage()).data_ptr() not in starts:
                content = bytes_of(storage)
                written = self.fresh.get(storage.data_ptr(), (None, None))[1]
                starts[storage.data_ptr()] = memory.add(name, content, written)
        memory.open(partial(Ordered, programs=programs, threads=kernel.threads) if cooperative else Unordered)
        values = []
        for _, value in running:
            if isinstance(value, Tensor):
                offset = value.storage_offset() * value.element_size()
                value = np.array([starts[value.untyped_storage().data_ptr()] + offset], np.uint64)
            values.append(np.repeat(value, kernel.threads))
        # Behind the kernel's own come pointers to scratch that it does not use.
        values += [np.zeros(kernel.threads, np.uint64)] * (len(kernel.parameters) - len(values))

        def made(number: int) -> Program:
            own = Memory(clock, 1)
            own.add("shared", np.zeros(shared, np.uint8), np.zeros(shared, np.uint8))
            own.open()
            return Program(number, kernel.threads, values, memory, own)

        rng = np.random.default_rng([self.seed, programs])
        order = rng.permutation(programs).tolist()
        with np.errstate(all="ignore"):
            for program in together(code, order, made, rng) if cooperative else alone(code, order, made):
                self.executed[kernel.name] += program.executed * kernel.threads // WARP
        memory.close()
        self.launches[kernel.name] += 1
        self.programs[kernel.name] += programs


def compiled(kernel: Any, signature: Any, constants: Any, aligned: Any, options: dict[str, Any]) -> tuple[str, int]:
    """PTX for sm_90, and bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, signature, constants, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, WARP), options=options)
    return binary.asm["ptx"], binary.metadata.shared


def bytes_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    seen: NDArray[np.uint8] = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy()
    return seen


def kernel_words(tensors: list[Tensor]) -> bool:
    return all(tensor.element_size() >= 4 for tensor in tensors)


def arguments(kernel: Any, given: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any], list[Any]]:
    """Triton's specialisation: types, constants (None and 1 too), what is a multiple of 16; and what a launch passes."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int], Any] = {}
    running: list[Any] = []
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        whole = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (whole and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name], sixteenth = "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
            running.append((name, value))
        else:
            kind = "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"
            signature[name], sixteenth = kind, whole and value % 16 == 0
            wrapped = value if kind == "fp32" else value % (1 << int(kind[1:]))
            running.append((name, np.array([wrapped], SCALARS[kind])))
        if sixteenth:
            aligned[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, aligned, running


@contextlib.contextmanager
def emulated(emulator: Emulator) -> Iterator[Emulator]:
    """Every Triton launch inside goes through ``emulator``, and the Triton engine takes CPU tensors."""
    from triton.runtime.jit import JITFunction

    from tritoncrf.engines import load

    engine: Any = load("triton")
    empty, run, missing = torch.empty, JITFunction.run, engine.missing

    def launch(kernel: Any, *positional: Any, grid: tuple[int, ...], warmup: bool = False, **named: Any) -> None:
        given = dict(zip(kernel.arg_names, positional, strict=False))
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        emulator.launch(kernel, grid, given | {name: named[name] for name in named if name in kernel.arg_names}, options)

    def fresh(*size: Any, **options: Any) -> Tensor:
        made = empty(*size, **options)
        if sys._getframe(1).f_globals.get("__name__", "").startswith(LAUNCHERS) and made.device.type == "cpu":
            storage = made.untyped_storage()
            bytes_of(storage)[:] = 0x7F
            emulator.fresh[storage.data_ptr()] = made, np.zeros(storage.nbytes(), np.uint8)
        return made

    try:
        JITFunction.run, torch.empty, engine.missing = launch, fresh, lambda *asked: None
        yield emulator
    finally:
        JITFunction.run, torch.empty, engine.missing = run, empty, missing
        emulator.fresh.clear()
