"""What does an access to memory do? Loads, stores and atomic operations, as steps of a program."""

from __future__ import annotations

import re

import numpy as np

from tests.compiled.approximate import Lanes
from tests.compiled.arithmetic import TYPES
from tests.compiled.parse import Instruction, words
from tests.compiled.registers import Program, Step, address_of, chosen, kind_of, reader, unset

SEM = "relaxed|acquire|release|acq_rel"
# How strong an access is, and for whom, stands before or behind where it goes.
FORM = re.compile(
    r"(?P<verb>ld|st)\.(?P<space>global|shared(?:::cta)?)(?:\.cg)?(?:\.v[24])?\.(?P<kind>[bus](?:8|16|32|64))"
    rf"|(?P<strong>ld|st)\.(?:global\.gpu\.(?P<one>{SEM})|(?P<two>{SEM})\.gpu\.global|(?P<six>{SEM})\.global\.gpu"
    rf"|global\.(?P<three>{SEM})\.gpu)\.(?P<all>[busf](?:32|64))"
    rf"|(?P<atomic>red|atom)\.(?:global\.gpu\.(?P<four>{SEM})|global\.(?P<five>{SEM})\.gpu|(?P<seven>{SEM})\.gpu\.global)"
    r"\.(?P<action>(?:add(?:\.v[24])?)\.(?:s32|u32|u64|f32|f64)|(?:min|max)\.[us](?:32|64)|(?:and|or|xor|exch)\.b(?:32|64))"
)
# What a plain access must not be, by verb.
NEVER = {"ld": ("release", "acq_rel"), "st": ("acquire", "acq_rel")}


def access(instruction: Instruction, threads: int) -> Step | None:
    """None where it is no access."""
    form = FORM.fullmatch(instruction.opcode)
    if form is None:
        return None
    named = form.groupdict()
    sem = next((named[name] for name in ("one", "two", "three", "four", "five", "six", "seven") if named[name]), "")
    verb = named["verb"] or named["strong"] or named["atomic"]
    if sem in NEVER.get(verb, ()):
        raise instruction.unknown()
    shared = (named["space"] or "global") != "global"
    if verb in ("red", "atom"):
        action, _, kind = named["action"].replace(".v2", "").replace(".v4", "").partition(".")
        return _atomic(instruction, action, sem, TYPES[kind], threads)
    kind = TYPES[named["kind"] or named["all"]]
    if verb == "ld":
        return _load(instruction, shared, sem, kind, threads)
    return _atomic(instruction, "store", sem, kind, threads) if sem else _store(instruction, shared, kind, threads)


def _assign(program: Program, register: str, who: Lanes, value: Lanes) -> None:
    """To some threads."""
    if register != "_":
        content = program.registers.get(register, unset(kind_of(register), len(program.threads))).copy()
        # Narrower numbers are extended as their sign asks.
        content[who] = value.view(f"u{value.itemsize}") if value.dtype.kind == "f" else value
        program.registers[register] = content


def _load(instruction: Instruction, shared: bool, sem: str, kind: np.dtype[np.generic], threads: int) -> Step:
    registers = words(instruction.operands[0])
    address, which = address_of(instruction.operands[1], shared, threads), chosen(instruction)
    size = kind.itemsize

    def load(program: Program) -> None:
        who = program.threads[which(program)]
        memory = program.shared if shared else program.memory
        content, who = memory.load(address(program)[who], who, size * len(registers), size, sem)
        for column, register in enumerate(registers):
            own = np.ascontiguousarray(content[:, column * size :][:, :size]).view(kind)[:, 0]
            _assign(program, register, who, own)
        if sem:
            program.poll(instruction, content.tobytes())

    return load


def _store(instruction: Instruction, shared: bool, kind: np.dtype[np.generic], threads: int) -> Step:
    address, which = address_of(instruction.operands[0], shared, threads), chosen(instruction)
    sources = [reader(operand, kind, threads) for operand in words(instruction.operands[1])]

    def store(program: Program) -> None:
        who = program.threads[which(program)]
        values = np.stack([read(program)[who] for read in sources], 1).view(np.uint8)
        memory = program.shared if shared else program.memory
        if memory.store(address(program)[who], who, values, kind.itemsize) and not shared:
            program.change()

    return store


def _atomic(instruction: Instruction, action: str, sem: str, kind: np.dtype[np.generic], threads: int) -> Step:
    """On global memory."""
    operands = instruction.operands
    results = words(operands[0]) if instruction.opcode.startswith("atom") else []
    place, group = operands[1:] if results else operands
    address, which = address_of(place, False, threads), chosen(instruction)
    sources = [reader(operand, kind, threads) for operand in words(group)]

    def atomic(program: Program) -> None:
        who = program.threads[which(program)]
        values = np.stack([read(program)[who] for read in sources], 1)
        before, kept, changed = program.memory.atomic(address(program)[who], who, values, action, sem, bool(results))
        for column, register in enumerate(results):
            _assign(program, register, who[kept], np.ascontiguousarray(before[:, column]))
        if changed:
            program.change()
        elif results:
            program.poll(instruction, before.tobytes())

    return atomic
