"""What does a thread hold? A program's registers, and how operands are read from them and written, for all threads at once.

A register nobody wrote holds 0x7F in every byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tests.compiled.approximate import Lanes
from tests.compiled.arithmetic import PREDICATE
from tests.compiled.memory import GAP, Memory
from tests.compiled.parse import Instruction

CLASSES = {"%p": PREDICATE, "%rs": np.dtype("u2"), "%rd": np.dtype("u8"), "%r": np.dtype("u4")}


class Program:
    """Its registers and memories, and how long it has waited."""

    def __init__(self, number: int, threads: int, parameters: list[Lanes], memory: Memory, shared: Memory) -> None:
        self.threads, self.parameters, self.memory, self.shared = np.arange(threads), parameters, memory, shared
        self.place, self.number = number, np.full(threads, number, np.uint32)
        self.registers: dict[str, Lanes] = {}
        self.executed = 0
        self.polled: tuple[str, str, bytes] | None = None
        self.idle, self.version, self.changes = 0, 0, 0
        """How often the last poll gave again what it gave before, with nothing done in between; what had changed by then."""
        self.line = ""

    def change(self) -> None:
        """It did something that others can see."""
        self.polled, self.idle, self.changes = None, 0, self.changes + 1

    def poll(self, instruction: Instruction, content: bytes) -> None:
        """An atomic that changed nothing told it this."""
        seen = instruction.text, instruction.line, content
        self.idle = self.idle + 1 if seen == self.polled else 0
        self.polled, self.line = seen, instruction.line
        self.version = 0 if self.memory.between is None else self.memory.between.version


Step = Callable[[Program], None]


@cache
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
