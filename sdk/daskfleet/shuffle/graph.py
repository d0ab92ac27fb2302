"""The three kinds of tasks of a shuffle, as nodes of dask's graphs, and what they run."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from dask._task_spec import Task

from daskfleet.protocol.frames import Buffer
from daskfleet.worker import pieces
from daskfleet.worker.pieces import Card, Pieces, card_of

#: Barriers whose lists a process remembers.
LISTS = 32


class Split(Task):
    """Leaves its input in pieces on its worker."""

    __slots__ = ()
    daskfleet_options = {"pinned": True}

    @property
    def block_fusion(self) -> bool:
        """What it leaves counts for itself."""
        return True


class Barrier(Split):
    """Gathers where the pieces are."""

    __slots__ = ()
    daskfleet_options = {"pinned": True, "borrows": True}


def barrier(info: Any, *splits: Pieces | Card) -> Pieces:
    """The list of `splits`, and whatever the tasks that read them have to know.

    It is a piece itself, so that the tasks carry no more than where it is.
    """
    listed = pieces.write([(0, [pickle.dumps(([card_of(split) for split in splits], info), 5)])])
    listed.lent = splits
    return listed


def read(barrier: Pieces | Card, number: int, of: Iterable[int] | None = None) -> tuple[list[Buffer], Any]:
    """Piece `number` of all that the barrier lists, or of some by their positions, and what it says beside."""
    cards, info = _contents(card_of(barrier))
    wanted = cards if of is None else [cards[at] for at in of]
    return pieces.read(wanted, number), info


_lists: OrderedDict[str, tuple[Sequence[Card], Any]] = OrderedDict()
_lists_lock = threading.Lock()


def _contents(card: Card) -> tuple[Sequence[Card], Any]:
    with _lists_lock:
        known = _lists.get(card.path)
        if known is not None:
            _lists.move_to_end(card.path)
            return known
    [pickled] = pieces.read([card], 0)
    contents: tuple[Sequence[Card], Any] = pickle.loads(pickled)
    with _lists_lock:
        _lists[card.path] = contents
        while len(_lists) > LISTS:
            _lists.popitem(last=False)
    return contents
