"""Pages say what a segment held whose own index is gone: then it costs only what was read from it.

Without a page a segment that cannot be used may have held anything, and stands for the whole disk until all
of it was written again. A page of merged indexes (`journal.pages`) still tells which bytes a view reads from
it, so that the other ones are known to be good, and the source is asked for little.
"""

from __future__ import annotations

import numpy as np

from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import DiskIndex, open_disk_index
from secondsite.journal.keys import KeyRing
from secondsite.journal.names import pages_prefix
from secondsite.journal.scrub_disk import DiskWalk, Loss
from secondsite.journal.scrub_segment import UNUSABLE
from secondsite.journal.state import State
from secondsite.model.extents import Extents

# Each costs the opening of an index. Older points than these stay called lost, which is never wrong for long:
# retention merges or promotes them.
POINTS_MAX = 500


def see_through_pages(journal: Journal, state: State, walk: DiskWalk, keys: KeyRing) -> None:
    """Narrow what the walk holds for lost to unusable segments, where pages tell."""
    blind = [loss for loss in walk.losses if loss.blind and loss.kind == "segment"]
    numbers = sorted({number for loss in blind for number in loss.points}, reverse=True)
    if not numbers or not any(True for _ in journal.store.list(pages_prefix(journal.machine, walk.disk))):
        return
    for place, number in enumerate(numbers[:POINTS_MAX]):
        try:
            index = open_disk_index(journal, walk.disk, state, number, keys)
        except UNUSABLE:
            continue  # no view of it opens
        for loss in blind:
            if number in loss.points:
                _narrow(journal, index, loss, number, newest=place == 0)
    walk.settle()


def _narrow(journal: Journal, index: DiskIndex, loss: Loss, number: int, *, newest: bool) -> None:
    ours = [n for n in range(len(index.readers)) if journal.segment_name(index.readers.ref(n)) == loss.object]
    layer = index.layer
    # of zeros the page says everything
    seen = np.isin(index.segments[layer.blocks], ours) & ~index.zeros[layer.blocks]
    where = Extents.from_arrays(layer.starts[seen], layer.ends[seen])
    loss.widest = where  # of the oldest that was looked at, in the end
    if newest:
        loss.where = where
    if not len(where):
        loss.points.discard(number)
