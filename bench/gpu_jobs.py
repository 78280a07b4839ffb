"""How does work that hangs or breaks its device cost no more than its time? Jobs in processes of their own, with a bound.

A job is a name and a function without arguments that can be pickled; what it answers is a dictionary that JSON holds. Workers
are spawned, so each has a CUDA context of its own and compiles kernels for itself: many side by side fill Triton's cache
on disk, from which a later process reads. A job that fails answers with its error, one that is late with that.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench import bare

Row = dict[str, Any]
Job = tuple[str, Callable[[], Row]]
FAILED, SKIPPED, TRACE = "failed", "skipped", "trace"
MOST_WORKERS = 14


@dataclass(frozen=True)
class Setting:
    """Where the check runs and how large."""

    device: torch.device
    toy: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of one run; by events on a GPU, from an idle device."""
        self.wait()
        if self.device.type != "cuda":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        events: Any = torch.cuda.Event
        begin, end = events(enable_timing=True), events(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Median of several runs, of one at toy size."""
        return median([self.once(work) for _ in range(1 if self.toy else repeats)])

    def host_seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Median of what the host takes to hand the work over, which it does not wait for; from an idle device."""
        found = []
        for _ in range(1 if self.toy else repeats):
            self.wait()
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
        self.wait()
        return median(found)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def workers() -> int:
    """Two processors are left to the command itself and to the rest of the machine."""
    return max(1, min((os.cpu_count() or 1) - 2, MOST_WORKERS))


def ready() -> None:
    """A worker's start."""
    torch.set_num_threads(1)
    bare.provide()


def answer(job: Job) -> tuple[str, Row]:
    """What a job found and the seconds it took; its error where it failed."""
    name, work = job
    began = time.perf_counter()
    try:
        if torch.cuda.is_available():
            # Raises what an earlier job of this process left behind, before it is taken for this one's.
            torch.cuda.synchronize()
    except Exception as error:
        return name, {FAILED: f"not run: an earlier job broke this process's device ({said(error)})"}
    try:
        found = work()
    except Exception as error:
        found = {FAILED: said(error), TRACE: traceback.format_exc()[-3000:]}
    return name, found | {"seconds": round(time.perf_counter() - began, 2)}


def said(error: Exception) -> str:
    """An error in a line; of an assertion without words the line that stands in the code."""
    place = traceback.extract_tb(error.__traceback__)
    text = str(error) or (str(place[-1].line) if place else "")
    return f"{type(error).__name__}: {' '.join(text.split())[:500]}"


class Workers:
    """Processes that do jobs side by side; one process does them in turn. Started at once, ended by `close`."""

    def __init__(self, count: int) -> None:
        self.pool: multiprocessing.pool.Pool = multiprocessing.get_context("spawn").Pool(count, initializer=ready)

    def answers(self, jobs: list[Job], seconds: float) -> Iterator[tuple[str, Row]]:
        """As they come; after ``seconds`` those that are left are called late, and the processes are ended."""
        until, left = time.monotonic() + seconds, [name for name, _ in jobs]
        coming = self.pool.imap_unordered(answer, jobs)
        while left:
            try:
                name, found = coming.next(max(0.0, until - time.monotonic()))
            except multiprocessing.TimeoutError:
                self.close()
                yield from ((name, {FAILED: f"not done after {seconds:.0f} s"}) for name in left)
                return
            left.remove(name)
            yield name, found

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class Here:
    """Jobs in this process, in turn and without a bound: for a dry run, whose kernels Triton interprets."""

    def answers(self, jobs: list[Job], seconds: float) -> Iterator[tuple[str, Row]]:
        yield from map(answer, jobs)

    def close(self) -> None:
        pass
