"""What does a program do? All its threads in step, an instruction at a time; a branch must go one way for all of them.

A step is a function of the program, made once from the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from tests.compiled import matrices
from tests.compiled.access import access
from tests.compiled.approximate import Lanes
from tests.compiled.arithmetic import MEANINGS, PREDICATE
from tests.compiled.parse import LEAVES, PAUSES, Instruction, Kernel, words
from tests.compiled.registers import Program, Step, address_of, chosen, kind_of, reader, write

WARP = 32
WAITS = re.compile(r"fence\.proxy\.async\.shared::cta|wgmma\.(fence|commit_group|wait_group)\.sync\.aligned")


def step(instruction: Instruction, threads: int) -> Step:
    """What an instruction other than a branch does; Unknown is raised for what is outside of the subset."""
    opcode, given = instruction.opcode, instruction.operands
    touch = access(instruction, threads)
    if touch is not None:
        return touch
    if instruction.predicate:
        raise instruction.unknown()
    if opcode in ("bar.sync", "bar.warp.sync"):
        return lambda program: _barrier(program, opcode == "bar.sync" or threads == WARP)
    if WAITS.fullmatch(opcode):
        return lambda program: None
    if opcode.startswith("ld.param."):
        place = int(given[1].strip("[]").rpartition("_")[2])
        (register,) = words(given[0])
        return lambda program: write(program, register, program.parameters[place])
    if opcode.startswith(("ldmatrix.", "stmatrix.", "mma.", "wgmma.")):
        return _matrix(instruction, threads)
    if opcode.startswith("mov.b") and "{" in instruction.text:
        return _repack(instruction, threads)
    meaning = MEANINGS.get(opcode)
    if meaning is None or len(given) != 1 + len(meaning.sources):
        raise instruction.unknown()
    result, of = given[0], meaning.of
    sources = [reader(operand, kind, threads) for operand, kind in zip(given[1:], meaning.sources, strict=True)]
    return lambda program: write(program, result, of(*(read(program) for read in sources)))


def _barrier(program: Program, whole: bool) -> None:
    program.memory.clock.barrier(whole)
    if whole and program.memory.between is not None:
        program.memory.between.barrier()


def _repack(instruction: Instruction, threads: int) -> Step:
    """mov between a register and the two halves of it."""
    result, source = instruction.operands
    if source.startswith("{"):
        parts = words(source)
        kind = np.dtype(f"u{kind_of(result).itemsize // len(parts)}")
        reads = [reader(part, kind, threads) for part in parts]
        return lambda program: write(
            program, result, np.stack([read(program) for read in reads], 1).view(kind_of(result))[:, 0]
        )
    parts = words(result)
    kind = np.dtype(f"u{kind_of(source).itemsize // len(parts)}")
    read = reader(source, kind_of(source), threads)

    def split(program: Program) -> None:
        columns = np.ascontiguousarray(read(program)).view(kind).reshape(threads, len(parts))
        for place, part in enumerate(parts):
            if part != "_":
                write(program, part, np.ascontiguousarray(columns[:, place]))

    return split


def _matrix(instruction: Instruction, threads: int) -> Step:
    word, opcode, given = np.dtype("u4"), instruction.opcode, instruction.operands
    results = words(given[0])  # Of stmatrix an address, which is no result.

    def read(group: str) -> list[Callable[[Program], Lanes]]:
        return [reader(operand, word, threads) for operand in words(group)]

    def finish(program: Program, values: list[Lanes]) -> None:
        for register, value in zip(results, values, strict=True):
            write(program, register, value)

    if re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16", opcode):
        address = address_of(given[1], True, threads)

        def load(program: Program) -> None:
            who = program.threads.reshape(-1, 32)[:, : 8 * len(results)].reshape(-1)
            content, _ = program.shared.load(address(program)[who], who, 16, 16)
            finish(program, matrices.load_matrices(content, len(results), ".trans" in opcode))

        return load
    if re.fullmatch(r"stmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16", opcode):
        row, sources = address_of(given[0], True, threads), read(given[1])

        def store(program: Program) -> None:
            content = matrices.store_matrices([source(program) for source in sources], ".trans" in opcode)
            who = program.threads.reshape(-1, 32)[:, : content.shape[1]].reshape(-1)
            program.shared.store(row(program)[who], who, content.reshape(-1, 16), 16)

        return store
    if opcode == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32":
        a, b, c = (read(group) for group in given[1:])
        return lambda program: finish(
            program, matrices.multiply(*([source(program) for source in group] for group in (a, b, c)))
        )
    # A in registers, B where a descriptor says, added to what stands, nothing negated, B's rows along its 64 columns.
    if opcode != "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16" or threads != 128 or given[4:] != ("1", "1", "1"):
        raise instruction.unknown()
    left, before = read(given[1]), read(given[0])
    descriptor, adds = reader(given[2], np.dtype("u8"), threads), reader(given[3], PREDICATE, threads)

    def multiply(program: Program) -> None:
        if not adds(program).all():
            raise instruction.unknown()
        spread = matrices.described(int(descriptor(program)[0])).reshape(-1)
        # Every warp reads all of it; any thread that wrote since the last barrier is another's.
        content, _ = program.shared.load(spread, np.arange(len(spread)) % threads, 2, 2)
        right = content.view(np.float16).astype(np.float64).reshape(16, 64)
        finish(program, matrices.multiply_group([x(program) for x in left], right, [x(program) for x in before]))

    return multiply


class Code:
    """A kernel made ready to run."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.ran: Counter[int] = Counter()
        """How often a program came to a block."""
        self.blocks: list[tuple[list[tuple[Step, str]], Instruction | None, bool]] = []
        for block in kernel.blocks:
            last = block[-1] if block and LEAVES.match(block[-1].opcode) else None
            inner = block[:-1] if last else block
            pauses = bool(inner) and PAUSES.match(inner[-1].opcode) is not None
            self.blocks.append(([(step(one, kernel.threads), one.line) for one in inner], last, pauses))

    @property
    def instructions(self) -> int:
        """Branches apart."""
        return sum(len(steps) for steps, _, _ in self.blocks)

    def missed(self) -> list[str]:
        """Lines of instructions that no program came to."""
        return [line for at, (steps, _, _) in enumerate(self.blocks) if at not in self.ran for _, line in steps]

    def executed(self) -> Counter[str]:
        """Warp instructions by line, branches apart."""
        found: Counter[str] = Counter()
        for at, times in self.ran.items():
            for _, line in self.blocks[at][0]:
                found[line] += times * self.kernel.threads // WARP
        return found

    def turns(self, program: Program) -> Iterator[None]:
        """Runs it until it returns, with a pause where others may go on: behind barriers, atomics, and jumps back.

        Raises ValueError where threads of a program part.
        """
        at, clock = 0, program.memory.clock
        while True:
            steps, last, pauses = self.blocks[at]
            self.ran[at] += 1
            at += 1
            program.executed += len(steps)
            for do, clock.line in steps:
                do(program)
            if pauses:
                yield
            if last is None:
                continue
            program.executed += 1
            which = chosen(last)(program)
            if which.any() != which.all():
                raise ValueError(f"branch: expected all threads to go one way, got both: '{last.text}' ({last.line})")
            if which[0]:
                if last.opcode == "ret":
                    return
                if last.opcode not in ("bra", "bra.uni"):
                    raise last.unknown()
                back, at = at, self.kernel.starts[last.operands[0]]
                if at < back:
                    yield
