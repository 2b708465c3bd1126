"""What attention heads have outside their attention: biases by relative position, a channel for each head.

They are a table or a parameter, as in Swin, or one of the first layer that all layers add, as in T5, whose heads go
together then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compress.prune.channels import Place
from compress.prune.groups import Edit, Group, joined
from compress.prune.tracing import Readers


def with_biases(
    heads: Sequence[tuple[Group, ...]], sources: Mapping[Place, Readers],
) -> tuple[list[tuple[Group, ...]], set[Place]]:
    """The groups ``heads``, alternatives of each, with what their units have of ``sources``; and which those are.

    Args:
        sources: what makes channels that attention's output layers read, and who reads each.
    """
    sets = [({number}, list[Edit]()) for number in range(len(heads))]
    found = set[Place]()
    for place, readers in sources.items():
        paths = {path for read in readers.read for path in read}
        own = {number for number, (group, *_) in enumerate(heads) if paths & {e.path for e in group.consumers}}
        if not own or _columns([heads[number][0] for number in own]) != [dict(read) for read in readers.read]:
            continue
        found.add(place)
        edits = [Edit(path=place.path, role=place.role, tensor=place.tensor,
                      index=tuple((unit,) for unit in range(len(readers.read))))]
        for one in [one for one in sets if one[0] & own]:
            sets.remove(one)
            own, edits = own | one[0], [*one[1], *edits]
        sets.append((own, edits))
    sets.sort(key=lambda one: min(one[0]))
    return [tuple(replace(group, edits=(*group.edits, *edits)) for group in joined([heads[n] for n in sorted(numbers)]))
            for numbers, edits in sets], found


def _columns(groups: Sequence[Group]) -> list[dict[str, tuple[int, ...]]] | None:
    """By unit, the columns that are its in each layer that reads heads; None where there are not as many everywhere."""
    if len({group.units for group in groups}) > 1:
        return None
    return [{edit.path: edit.index[unit] for group in groups for edit in group.consumers}
            for unit in range(groups[0].units)]
