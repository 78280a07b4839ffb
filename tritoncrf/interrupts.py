"""When is a Ctrl-C heard? Not between labels that moved and the count that says how far, and not in the middle of a step.

Python raises KeyboardInterrupt between any two instructions of the main thread. What changes several things that belong
together runs inside of `unbroken`, and the interrupt comes after it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Lets what runs inside come to its end before a Ctrl-C is heard."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(*pressed[0])


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Lets a first Ctrl-C finish the step, so that what is saved lies between two steps; a second one breaks off."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
