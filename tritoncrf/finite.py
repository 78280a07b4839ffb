"""Is all that learns still a number? Gradients are looked at before a step takes them, what a checkpoint holds before it is
written.

One NaN among a step's gradients makes a weight NaN, and from there everything. On a CPU a step with such a gradient is refused
before it is taken. A GPU is not asked at every step: the first step at which each gradient was no number is noted on the
device, an optimizer that can is told to leave that step out, and the host hears of it at the end of the epoch or at a save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tritoncrf.checkpoint import Tree


class GradientWatch:
    """Of one stage: the first step at which each parameter's gradient was not finite.

    named: what learns, by the names that a sentence shall call it; others are called by their place in the optimizer.
    """

    def __init__(self, stage: str, optimizer: Optimizer, named: Mapping[str, Tensor], done: int) -> None:
        self._stage, self._step = stage, done
        self._parameters = parameters_of(optimizer, named)
        self._first: Tensor | None = None
        # Elsewhere a look at the values would stall the device.
        self.immediate = all(part.device.type == "cpu" for part in self._parameters.values())

    def observe(self, flag: Tensor | None) -> Tensor | None:
        """Once a step, between backward and the optimizer; ``flag``, bool ``[]``, is up where the loss itself was void.

        Raises FloatingPointError on a CPU, where it looks at once; elsewhere returns whether to leave the step out.
        """
        self._step += 1
        grads = [None if part.grad is None else part.grad.detach() for part in self._parameters.values()]
        there = [part._values() if part.is_sparse else part for part in grads if part is not None]
        there = [part for part in there if part.numel()]
        if not there:
            return flag
        device = there[0].device
        # The largest entry is finite if all are, and costs least to find.
        sizes = iter(torch._foreach_norm(there, torch.inf))
        zero = torch.zeros((), dtype=torch.float32, device=device)
        found = [next(sizes) if part is not None and part.numel() else zero for part in grads]
        bad = ~torch.stack([part.to(device, torch.float32) for part in found]).isfinite()
        if flag is not None:
            bad &= ~flag.to(device)
        if self._first is None:
            self._first = torch.zeros(len(grads), dtype=torch.int64, device=device)
        self._first = torch.where(bad & (self._first == 0), self._step, self._first)
        if self.immediate:
            self.settle()
            return flag
        return bad.any() if flag is None else bad.any() | flag.to(device)

    def settle(self) -> None:
        """Raises FloatingPointError for a gradient that was no number, and for a parameter that is none; waits."""
        steps = [] if self._first is None else self._first.tolist()
        wrong = [(step, name) for step, name in zip(steps, self._parameters, strict=False) if step]
        if wrong:
            step, name = min(wrong, key=lambda pair: pair[0])
            where = f"at step {step} of {self._stage!r}"
            raise FloatingPointError(f"{name}: expected a finite gradient, got NaN or infinity {where}")
        for name, part in self._parameters.items():
            if not part.requires_grad:
                continue
            _require_finite(name, part.detach(), f" after step {self._step} of {self._stage!r}")


def parameters_of(optimizer: Optimizer, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's parameters in its own order, by name."""
    names = {id(part): name for name, part in named.items()}
    places = (
        (f"optimizer.param_groups[{g}]['params'][{k}]", part)
        for g, group in enumerate(optimizer.param_groups)
        for k, part in enumerate(group["params"])
    )
    return {names.get(id(part), place): part for place, part in places}


def names_of(**modules: nn.Module) -> dict[str, Tensor]:
    """The parameters of modules, each under its module's name and its own."""
    return {f"{module}.{name}": part for module, whole in modules.items() for name, part in whole.named_parameters()}


def check_tree(path: object, tree: Tree, name: str, named: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError, before ``path`` is written, unless what stands in a tree below ``name`` is finite.

    named: what learns. What else a network keeps may be infinite, a mask for instance, but not NaN.
    """
    for at, part in _tensors(tree, name):
        own = named.get("network" + at.removeprefix(name))
        loose = name in ("network", "pretrained") and not (own is not None and own.requires_grad)
        _require_finite(at, part.nan_to_num(torch.nan, 0.0, 0.0) if loose else part, f"; {path} was not written")


def check_moments(path: object, state: Mapping[str, Tree], optimizer: Optimizer, named: Mapping[str, Tensor]) -> None:
    """As `check_tree`, for what an optimizer's ``state_dict`` keeps of each parameter."""
    kept = state["state"]
    names = list(parameters_of(optimizer, named))
    for place, part in kept.items() if isinstance(kept, Mapping) else ():
        check_tree(path, part, f"optimizer's state of {names[int(place)]}", named)


def _tensors(tree: Tree, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        if tree.is_floating_point() or tree.is_complex():
            yield name, tree
    elif isinstance(tree, Mapping):
        for key, part in tree.items():
            yield from _tensors(part, f"{name}.{key}")
    elif isinstance(tree, list | tuple):
        for place, part in enumerate(tree):
            yield from _tensors(part, f"{name}[{place}]")


def _require_finite(name: str, part: Tensor, where: str) -> None:
    if not bool(part.isfinite().all()):
        what = "NaN" if bool(part.isnan().any()) else "infinity"
        raise FloatingPointError(f"{name}: expected finite numbers, got {what}{where}")
