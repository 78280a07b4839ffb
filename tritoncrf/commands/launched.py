"""Was this command started on several ranks? What `torchrun` says in the environment, and what follows for a run.

One rank speaks: the others print nothing but errors. A run's `--batch-size` is that of all ranks, so that the same settings
make the same run on any number of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from tritoncrf.ranks import Ranks


@contextlib.contextmanager
def together(device: str) -> Iterator[Ranks]:
    """The ranks that `torchrun` started, which leave together; one alone without it. device: as of `device_for`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    if not dist.is_available():
        raise ValueError("torchrun: expected a torch with torch.distributed, got one without")
    where = torch.device(device_for(device))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    with contextlib.ExitStack() as stack:
        if dist.get_rank() > 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield Ranks.of(None)
        dist.barrier()


def device_for(name: str) -> str:
    """The device of that name for this rank: "auto" and "cuda" are the one of its number on the machine."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name if name != "auto" or torch.cuda.is_available() else "cpu"


def share(batch_size: int, ranks: Ranks) -> int:
    """A rank's images of an update. Raises ValueError unless they come out even."""
    if batch_size % ranks.size:
        raise ValueError(f"batch_size: expected a multiple of the {ranks.size} ranks, got {batch_size}")
    return batch_size // ranks.size


def leave(status: int) -> int:
    """The exit status; a rank ends here, for DDP over gloo at times aborts an interpreter that ends in the usual way."""
    if dist.is_available() and dist.is_initialized() and "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
