"""What does a program do? All its threads in step, an instruction at a time; a branch must go one way for all of them.

A step is a function of the program, made once from the text. A register nobody wrote holds 0x7F in every byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.compiled import matrices
from tests.compiled.arithmetic import MEANINGS, PREDICATE, TYPES, Lanes
from tests.compiled.memory import GAP, Memory
from tests.compiled.parse import Instruction, Kernel, words

CLASSES = {"%p": PREDICATE, "%rs": np.dtype("u2"), "%rd": np.dtype("u8"), "%r": np.dtype("u4")}
WAITS = re.compile(r"fence\.proxy\.async\.shared::cta|wgmma\.(fence|commit_group|wait_group)\.sync\.aligned")


class Program:
    """Its registers and memories."""

    def __init__(self, number: int, threads: int, parameters: list[Lanes], memory: Memory, shared: Memory) -> None:
        self.threads, self.parameters, self.memory, self.shared = np.arange(threads), parameters, memory, shared
        self.number = np.full(threads, number, np.uint32)
        self.registers: dict[str, Lanes] = {}
        self.executed = 0


Step = Callable[[Program], None]


def kind_of(register: str) -> np.dtype[Any]:
    return CLASSES[register.rstrip("0123456789")]


def unset(kind: np.dtype[Any], threads: int) -> Lanes:
    return np.zeros(threads, bool) if kind == PREDICATE else np.full(threads * kind.itemsize, 0x7F, np.uint8).view(kind)


def write(program: Program, register: str, value: Lanes) -> None:
    """Narrower numbers are extended as their sign asks."""
    kind = kind_of(register)
    if kind != PREDICATE and value.dtype.itemsize != kind.itemsize:
        value = value.astype(np.dtype(f"{'i' if value.dtype.kind == 'i' else 'u'}{kind.itemsize}"))
    program.registers[register] = value if kind == PREDICATE else value.view(kind)


def reader(operand: str, kind: np.dtype[Any], threads: int) -> Callable[[Program], Lanes]:
    """How an operand, a register or a number, is read as ``kind``."""
    if operand == "%tid.x":
        return lambda program: program.threads.astype(np.uint32).view(kind)
    if operand == "%ctaid.x":
        return lambda program: program.number.view(kind)
    if operand.startswith("%"):
        own = kind_of(operand)
        blank = unset(own, threads)
        if own == kind:
            return lambda program: program.registers.get(operand, blank)
        if own.itemsize == kind.itemsize:
            return lambda program: program.registers.get(operand, blank).view(kind)
        narrow = np.dtype(f"u{kind.itemsize}")
        return lambda program: program.registers.get(operand, blank).astype(narrow).view(kind)
    if operand == "global_smem":
        # Shared addresses begin where a memory's first block does.
        constant = np.full(threads, GAP, np.uint32).view(kind)
    elif operand[:2] in ("0f", "0d"):
        constant = np.full(threads, int(operand[2:], 16), np.uint32 if operand[1] == "f" else np.uint64).view(kind)
    elif kind == PREDICATE:
        constant = np.full(threads, int(operand) != 0)
    else:
        bits = int(operand.rstrip("U"), 0) & (1 << 8 * kind.itemsize) - 1
        constant = np.full(threads, bits, np.dtype(f"u{kind.itemsize}")).view(kind)
    return lambda _: constant



def address_of(operand: str, shared: bool, threads: int) -> Callable[[Program], Lanes]:
    """``[register + offset]`` as int64."""
    base, _, offset = operand.strip("[] ").partition("+")
    read = reader(base.strip(), np.dtype("u4") if shared else np.dtype("u8"), threads)
    further = int(offset or 0)
    return lambda program: read(program).astype(np.int64) + further


def chosen(instruction: Instruction) -> Callable[[Program], Lanes]:
    """Which threads an instruction holds for."""
    name, negated = instruction.predicate, instruction.negated
    if not name:
        return lambda program: np.ones(len(program.threads), bool)
    return lambda program: ~program.registers[name] if negated else program.registers[name]


def step(instruction: Instruction, threads: int) -> Step:
    """What an instruction other than a branch does; Unknown is raised for what is outside of the subset."""
    opcode, given = instruction.opcode, instruction.operands
    access = re.fullmatch(
        r"(ld|st)\.(global|shared(?:::cta)?)(?:\.cg)?(?:\.v([24]))?\.([bus](?:8|16|32|64))"
        r"|(red|atom)\.(global)\.gpu\.relaxed\.add(?:\.v([24]))?\.(u64|f32|f64)", opcode,
    )  # fmt: skip
    if access:
        verb, space, _, kind = (one or other for one, other in zip(access.groups()[:4], access.groups()[4:], strict=True))
        return _access(instruction, verb, space != "global", TYPES[kind], threads)
    if instruction.predicate:
        raise instruction.unknown()
    if opcode in ("bar.sync", "bar.warp.sync"):
        return lambda program: _barrier(program, opcode == "bar.sync")
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
    clock = program.memory.clock
    clock.warp_interval += 1
    clock.interval += whole


def _access(instruction: Instruction, verb: str, shared: bool, kind: np.dtype[Any], threads: int) -> Step:
    operands, results = instruction.operands, []
    if verb == "atom":
        # What it returns, which no kernel uses, is lost here.
        verb, operands, results = "red", operands[1:], words(operands[0])
    place, group = (1, 0) if verb == "ld" else (0, 1)
    registers = words(operands[group])
    address, which = address_of(operands[place], shared, threads), chosen(instruction)
    sources = [] if verb == "ld" else [reader(operand, kind, threads) for operand in registers]
    width = kind.itemsize * len(registers)

    def load(program: Program) -> None:
        who = program.threads[which(program)]
        memory = program.shared if shared else program.memory
        content, who = memory.load(address(program)[who], who, width, kind.itemsize)
        for column, register in enumerate(registers):
            if register != "_":
                own = kind_of(register)
                value = program.registers.get(register, unset(own, threads)).copy()
                value[who] = np.ascontiguousarray(content[:, column * kind.itemsize :][:, : kind.itemsize]).view(kind)[:, 0]
                program.registers[register] = value

    def store(program: Program) -> None:
        who = program.threads[which(program)]
        memory = program.shared if shared else program.memory
        values = np.stack([read(program)[who] for read in sources], 1)
        if verb == "red":
            memory.add_to(address(program)[who], who, values)
            for register in results:
                program.registers.pop(register, None)
        else:
            memory.store(address(program)[who], who, values.view(np.uint8), kind.itemsize)

    return load if verb == "ld" else store


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
        self.blocks: list[tuple[list[tuple[Step, str]], Instruction | None]] = []
        for block in kernel.blocks:
            last = block[-1] if block and re.match(r"bra|ret", block[-1].opcode) else None
            inner = block[:-1] if last else block
            self.blocks.append(([(step(one, kernel.threads), one.line) for one in inner], last))

    def run(self, program: Program) -> None:
        """Until it returns; raises ValueError where threads of a program part."""
        at, clock = 0, program.memory.clock
        while True:
            steps, last = self.blocks[at]
            at += 1
            program.executed += len(steps)
            for do, clock.line in steps:
                do(program)
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
                at = self.kernel.starts[last.operands[0]]
