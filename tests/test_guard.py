"""When a bad value is heard of: flags leave at the end of a call, and the next one that finds them arrived raises."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from tritoncrf import guard
from tritoncrf.guard import FlagBuffer, Guard

GOOD, BAD = torch.tensor([True, True]), torch.tensor([True, False])


class Card:
    """What a GPU has not done yet: verdicts arrive when somebody waits for it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.done = 0

    def synchronize(self) -> None:
        self.done = len(self.sent)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()

    class Late(guard.Deferred):
        def __init__(self, sentences: tuple[str, ...], good: Tensor, spare: list[FlagBuffer]) -> None:
            super().__init__(sentences, good, spare)
            card.sent.append(sentences)
            self.number = len(card.sent)

        @property
        def copied(self) -> bool:
            return card.done >= self.number

        def failed(self) -> list[str]:
            card.done = max(card.done, self.number)
            return super().failed()

    monkeypatch.setattr(guard, "Deferred", Late)
    return card


def call(watch: Guard, ok: Tensor, name: str = "labels") -> None:
    with watch.call(torch.device("cpu")):
        watch.require(ok, f"{name}: expected others", lambda: "")


def test_flags_leave_at_the_end_of_a_call(card: Card) -> None:
    watch = Guard(immediate=False)
    call(watch, BAD)
    assert card.sent == [("labels: expected others",)]
    card.synchronize()
    with pytest.raises(ValueError, match="labels: expected others, got otherwise in an earlier call"):
        call(watch, GOOD)
    call(watch, GOOD)


def test_a_call_that_finds_nothing_arrived_goes_on(card: Card) -> None:
    watch = Guard(immediate=False)
    call(watch, GOOD)
    call(watch, BAD, "index")
    call(watch, GOOD)
    assert len(card.sent) == 3
    card.synchronize()
    with pytest.raises(ValueError, match="index: expected"):
        call(watch, GOOD)


def test_settling_waits(card: Card) -> None:
    watch = Guard(immediate=False)
    call(watch, BAD)
    with pytest.raises(ValueError, match="labels: expected"):
        watch.settle()
    watch.settle()


def test_a_call_that_raises_sends_what_it_had_found(card: Card) -> None:
    watch = Guard(immediate=False)
    with pytest.raises(KeyError), watch.call():
        watch.require(BAD, "sizes: expected others", lambda: "")
        raise KeyError
    assert card.sent == [("sizes: expected others",)]


def test_only_the_outermost_call_sends_and_only_where_there_are_flags(card: Card) -> None:
    watch = Guard(immediate=False)
    with watch.call():
        pass
    with watch.call():
        call(watch, GOOD)
        assert not card.sent
    assert len(card.sent) == 1
    with watch.call():
        pass
    assert len(card.sent) == 1


def test_the_flag_stays_up_until_the_next_call(card: Card) -> None:
    watch, device = Guard(immediate=False), torch.device("cpu")
    assert not bool(watch.flag(device))
    with watch.call():
        watch.require(BAD, "labels: expected others", lambda: "")
        assert bool(watch.flag(device))
    assert bool(watch.flag(device))
    call(watch, GOOD)
    assert not bool(watch.flag(device))


def test_a_captured_call_sends_nothing(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Guard(immediate=False)
    monkeypatch.setattr(guard, "capturing", lambda device: True)
    call(watch, BAD)
    watch.settle()
    assert not card.sent


def test_a_copy_is_not_told_what_was_on_its_way(card: Card) -> None:
    watch = Guard(immediate=False)
    call(watch, BAD)
    for other in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        other.settle()
        call(other, GOOD)
    with pytest.raises(ValueError, match="labels: expected"):
        watch.settle()


class Event:
    """A CUDA event's part in it."""

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class OnCard:
    """Flags that say they are on a card."""

    is_cuda = True

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags

    def __len__(self) -> int:
        return len(self.flags)


def test_a_buffer_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FlagBuffer] = []

    class Plain(FlagBuffer):
        def __init__(self, flags: int) -> None:
            self.flags, self.event = torch.zeros(max(self.ROOM, flags), dtype=torch.bool), Event()  # type: ignore[assignment]
            made.append(self)

    monkeypatch.setattr(guard, "FlagBuffer", Plain)
    monkeypatch.setattr(Tensor, "copy_", lambda self, other, **given: torch.add(self, other.flags, out=self.zero_()))
    spare: list[FlagBuffer] = []
    for flags, found in ((~GOOD, ["a", "b"]), (BAD, ["b"])):
        assert guard.Deferred(("a", "b"), OnCard(flags), spare).failed() == found  # type: ignore[arg-type]
    assert spare == made
    assert len(made) == 1
    first, second = (guard.Deferred(("a", "b"), OnCard(flags), spare) for flags in (BAD, ~GOOD))  # type: ignore[arg-type]
    assert (first.failed(), second.failed(), len(made)) == (["b"], ["a", "b"], 2)


def test_what_a_kernel_looked_at_is_stated_beside_what_is_required(card: Card) -> None:
    watch = Guard(immediate=False)
    for first in (False, True):
        with watch.call(torch.device("cpu")):
            if first:
                watch.require(GOOD, "labels: expected others", lambda: "")
            watch.take(("logits: expected numbers", "index: expected less"), torch.tensor([True, first]))
            assert bool(watch.flag(torch.device("cpu"))) is not first
    assert card.sent == [
        ("logits: expected numbers", "index: expected less"),
        ("labels: expected others", "logits: expected numbers", "index: expected less"),
    ]
    with pytest.raises(ValueError, match="index: expected less, got otherwise"):
        watch.settle()
