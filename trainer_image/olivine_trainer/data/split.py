"""Holding rows back: seeded, the same share of every stratum, equal rows always on one side."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from olivine_trainer.data.rows import Row


@dataclass(frozen=True)
class Split:
    """Rows in the order of the file."""

    train: list[Row]
    validation: list[Row]


def split_rows(
    rows: Sequence[Row],
    fraction: float,
    seed: int,
    *,
    identity: Callable[[Row], str],
    stratum: Callable[[Row], str],
) -> Split:
    """Hold back `fraction` of every stratum, at least one group of it where it has two.

    Rows with the same `identity` form a group, which stays whole (its first row's stratum counts). A group's place in the draw
    is a hash of (seed, identity): neither the order of the rows nor the other rows change it.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(identity(row), []).append(row)
    strata: dict[str, list[str]] = {}
    for key, members in groups.items():
        strata.setdefault(stratum(members[0]), []).append(key)
    held: set[str] = set()
    for keys in strata.values():
        held |= _draw(keys, groups, fraction, seed)
    return Split(
        train=[row for row in rows if identity(row) not in held],
        validation=[row for row in rows if identity(row) in held],
    )


def _draw(keys: Sequence[str], groups: dict[str, list[Row]], fraction: float, seed: int) -> set[str]:
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    wanted = max(1, round(fraction * sum(len(groups[key]) for key in keys)))
    held: set[str] = set()
    taken = 0
    for key in order[:-1]:  # one group always stays for training
        if taken >= wanted:
            break
        held.add(key)
        taken += len(groups[key])
    return held
