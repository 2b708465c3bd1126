"""Which samples a smaller set keeps: by label, by the inputs they have, and by length; the same ones every time.

1. A label's share of the places is its share of the samples; where that is less than one place, and there are no more
   labels than places, it has one, and the others share what is left.
2. Shares become whole places by rounding their running total, label after label: each is rounded up or down.
3. A label's places are divided among its kinds of samples, those with the same inputs, by their numbers; what is
   rounded away in one label counts in the next.
4. Of one label and kind, ordered by length, samples are taken at equal distances. Where the first one is taken differs
   from group to group, so that groups with one place each do not all give their middle.

Everything is integers: no seed, and nothing that a machine could round in another way.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction

_PHASES = 1 << 16
_GOLDEN = 40503         # of _PHASES: steps of the golden ratio leave no large gap on a circle (Knuth, TAOCP 3, 6.4)


def choose(
    labels: Sequence[Hashable], count: int, *, kinds: Sequence[Hashable] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """The places of the ``count`` samples that stand for ``len(labels)`` ones, in order; all where there are no more.

    Args:
        labels: of each sample; what is equal is one stratum.
        count: how many are kept.
        kinds: of each sample; all alike by default.
        lengths: of each sample; in the order they come by default.
    """
    if count >= len(labels):
        return list(range(len(labels)))
    groups: dict[Hashable, dict[Hashable, list[int]]] = {}
    order: dict[Hashable, None] = {}
    for index, label in enumerate(labels):
        kind = None if kinds is None else kinds[index]
        order[kind] = None
        groups.setdefault(label, {}).setdefault(kind, []).append(index)
    totals = [sum(map(len, of.values())) for of in groups.values()]
    places = _rounded(_shares(totals, count))
    divided = _divided([[len(of.get(kind, ())) for kind in order] for of in groups.values()], places)
    kept: list[int] = []
    taken = 0
    for of, wanted in zip(groups.values(), divided, strict=True):
        for kind, share in zip(order, wanted, strict=True):
            if share:
                rows = of[kind] if lengths is None else sorted(of[kind], key=lambda row: (lengths[row], row))
                kept += _spaced(rows, share, taken)
                taken += 1
    return sorted(kept)


def _shares(totals: Sequence[int], count: int) -> list[Fraction]:
    """Places of each label by its number of samples, at least one where there are enough."""
    if count < len(totals):
        return [Fraction(count * total, sum(totals)) for total in totals]
    small: set[int] = set()
    while True:
        left, rest = count - len(small), sum(total for i, total in enumerate(totals) if i not in small)
        less = {i for i, total in enumerate(totals) if i not in small and left * total < rest}
        if not less:
            return [Fraction(1) if i in small else Fraction(left * total, rest) for i, total in enumerate(totals)]
        small |= less


def _rounded(shares: Sequence[Fraction]) -> list[int]:
    whole, total, before = [], Fraction(0), 0
    for share in shares:
        total += share
        now = _nearest(total)
        whole.append(now - before)
        before = now
    return whole


def _divided(sizes: Sequence[Sequence[int]], places: Sequence[int]) -> list[list[int]]:
    """The ``places`` of each label by kind, for ``sizes`` of labels by kinds."""
    kinds = len(sizes[0])
    due, given = [Fraction(0)] * kinds, [0] * kinds
    found = []
    for numbers, left in zip(sizes, places, strict=True):
        row, rest = [], sum(numbers)
        for kind in range(kinds - 1):
            due[kind] += Fraction(left * numbers[kind], rest) if rest else 0
            row.append(_nearest(due[kind]) - given[kind])
            given[kind] += row[-1]
            left -= row[-1]
            rest -= numbers[kind]
        found.append([*row, left])
    return found


def _spaced(rows: Sequence[int], share: int, group: int) -> list[int]:
    phase = (_PHASES // 2 + group * _GOLDEN) % _PHASES
    return [rows[(i * _PHASES + phase) * len(rows) // (share * _PHASES)] for i in range(share)]


def _nearest(value: Fraction) -> int:
    """The nearest integer, the larger one of two."""
    return int((value * 2 + 1) // 2)
