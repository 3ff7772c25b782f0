"""Training rows that are read while training: an index of blocks, made in one pass, and batches drawn from it.

Every epoch has a permutation of the blocks; some that follow one another in it are a pool, whose rows are permuted together. Which
rows a step trains on is a function of (seed, step), and at most two pools are in memory.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from olivine_api.data import Data
from olivine_api.reasons import Reason
from olivine_trainer.data.augment import Augmenter
from olivine_trainer.data.batches import epoch_order
from olivine_trainer.data.blocks import Block, LoadedBlock, Place, blocks_of
from olivine_trainer.data.clean import Removed
from olivine_trainer.data.labels import Labels, find_labels
from olivine_trainer.data.maker import RowMaker
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate, as_text, require_fields, require_in_row
from olivine_trainer.data.workers import Workers
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example
from olivine_trainer.storage.ranges import RangeFile

POOL = 16 << 20  # bytes whose rows are permuted together, at least one block
_STREAM = 2  # keeps these permutations apart from other random numbers


@dataclass(frozen=True)
class IndexedBlock:
    """A block with rows to train on."""

    block: Block
    kept: npt.NDArray[np.int32]
    """[rows]; which of its rows these are"""


@dataclass(frozen=True)
class StreamIndex:
    """Where all training rows lie."""

    blocks: tuple[IndexedBlock, ...]
    digest: str
    """sha256 (hex) over the canonical JSON of the rows."""

    @cached_property
    def firsts(self) -> list[int]:
        """Rows before each block, and all at last."""
        return [0, *accumulate(len(one.kept) for one in self.blocks)]

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.firsts[-1]


def index_training_rows(
    data: Data,
    template: RowTemplate,
    augmenter: Augmenter | None,
    files: Sequence[RangeFile],
    measured: Sequence[tuple[str, Sequence[Row]]],
    *,
    written: Callable[[Row], Row],
) -> tuple[StreamIndex, Labels | None, Removed]:
    """The index, the labels that were met, and what is left out; every row is checked. See `clean` for `measured`.

    `written`: a row as the template takes it.
    """
    named = template.named_fields | (augmenter.named_fields if augmenter is not None else {})
    if data.labels is not None:
        named |= {"data.labels.field": (data.labels.field,)}
    known = {template.identity(row) for _, rows in measured for row in rows}
    given = find_labels(data, template, ()) if data.labels is not None and data.labels.names else None
    met: set[str] = set()
    empty = leaked = seen = 0

    def keep(row: Row) -> bool:
        nonlocal empty, leaked, seen
        seen += 1
        for where, fields in named.items():
            if seen == 1:
                require_fields([row], fields, where, "data.train")
            require_in_row(row, fields, where, "data.train")
        if data.clean is not None and data.clean.drop_empty and template.is_empty(row):
            empty += 1
            return False
        if template.identity(row) in known:
            leaked += 1
            return False
        if given is not None:
            given.index(row, "data.train")
        elif data.labels is not None:
            met.add(as_text(row.fields[data.labels.field]))
        return True

    index = index_rows(files, "data.train", keep, written=written)
    if not index.rows:
        raise DataError(
            Reason.DATA_EMPTY,
            f"no training row is left: of {seen} rows of data.train {empty} are empty and {leaked} are in data.validation or data.test too",
        )
    return index, given or find_labels(data, template, met), Removed(empty=empty, leaked=leaked)


def index_rows(
    files: Sequence[RangeFile], field_name: str, keep: Callable[[Row], bool], *, written: Callable[[Row], Row]
) -> StreamIndex:
    """Read all files once. `keep` looks at each row: it raises for one that is wrong, and says whether it is trained on.

    Raises DataError: a line that cannot be read, a file without rows.
    """
    indexed: list[IndexedBlock] = []
    digest = hashlib.sha256()
    for file in files:
        place = Place(field_name, file.name, alone=len(files) == 1)
        found = 0
        for block in blocks_of(file, place):
            loaded = block.load()
            found += len(loaded)
            kept = _kept(loaded, keep, written, digest.update)
            if kept:
                indexed.append(IndexedBlock(block, np.asarray(kept, dtype=np.int32)))
        if not found:
            raise DataError(Reason.DATA_EMPTY, f"{field_name}: {file.name} has no rows")
    return StreamIndex(tuple(indexed), digest.hexdigest())


def _kept(
    loaded: LoadedBlock, keep: Callable[[Row], bool], written: Callable[[Row], Row], write: Callable[[bytes], None]
) -> list[int]:
    kept: list[int] = []
    for index in range(len(loaded)):
        row = written(loaded.row(index))
        if keep(row):
            kept.append(index)
            write(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return kept


@dataclass(frozen=True)
class _Pools:
    """One epoch's order."""

    members: tuple[tuple[int, ...], ...]
    """Blocks by pool."""
    firsts: tuple[int, ...]
    """Places in the epoch before each pool, and all at last."""


class StreamedRows:
    """Training rows that are read, put and tokenised when a step needs them. See TrainingRows."""

    def __init__(self, index: StreamIndex, workers: Workers, *, written: Callable[[Row], Row]) -> None:
        """`written`: a row as the template takes it."""
        self._index = index
        self._workers = workers
        self._written = written
        # Two of each, since a batch may straddle two pools and two epochs.
        self._pools = lru_cache(maxsize=2)(self._find_pools)
        self._order = lru_cache(maxsize=2)(_pool_order)
        self._load = lru_cache(maxsize=2)(self._load_pool)

    def __len__(self) -> int:
        return self._index.rows

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """See TrainingRows."""
        places = (divmod(position, len(self)) for position in range(step * size, (step + 1) * size))
        return self._workers.map(RowMaker.read, [self._row(seed, epoch, place) for epoch, place in places])

    def some(self, count: int) -> list[Example]:
        """Rows of the first block, to look at before training."""
        first = self._index.blocks[0]
        loaded = first.block.load()
        return self._workers.map(RowMaker.kept, [(self._written(loaded.row(int(place))),) for place in first.kept[:count]])

    def _row(self, seed: int, epoch: int, place: int) -> tuple[Row, int, int, int]:
        """The row, the seed, the epoch, and its index among all rows: what RowMaker.read takes."""
        pools = self._pools(seed, epoch)
        pool = bisect_right(pools.firsts, place) - 1
        start, end = pools.firsts[pool], pools.firsts[pool + 1]
        drawn = int(self._order(seed, epoch, pool, end - start)[place - start])
        members = pools.members[pool]
        at = 0
        while drawn >= (rows := len(self._index.blocks[members[at]].kept)):
            drawn -= rows
            at += 1
        row = self._written(self._load(members)[at].row(int(self._index.blocks[members[at]].kept[drawn])))
        return row, seed, epoch, self._index.firsts[members[at]] + drawn

    def _find_pools(self, seed: int, epoch: int) -> _Pools:
        blocks = self._index.blocks
        members: list[tuple[int, ...]] = []
        gathered: list[int] = []
        for block in epoch_order(seed, epoch, len(blocks)).tolist():
            gathered.append(block)
            if sum(blocks[one].block.bytes for one in gathered) >= POOL:
                members.append(tuple(gathered))
                gathered = []
        if gathered:
            members.append(tuple(gathered))
        return _Pools(tuple(members), (0, *accumulate(sum(len(blocks[one].kept) for one in pool) for pool in members)))

    def _load_pool(self, members: tuple[int, ...]) -> list[LoadedBlock]:
        return [self._index.blocks[member].block.load() for member in members]


def _pool_order(seed: int, epoch: int, pool: int, rows: int) -> npt.NDArray[np.int64]:
    """[rows]; the order within a pool."""
    key, counter = (np.array(words, dtype=np.uint64) for words in ([seed, epoch], [0, pool, 0, _STREAM]))
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(rows), kind="stable")
