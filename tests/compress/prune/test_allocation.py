from __future__ import annotations

import itertools

import numpy as np
import pytest

from compress.errors import CompressError
from compress.prune.allocation import allocate as allocate_units
from compress.prune.branches import Branch
from compress.prune.channels import Place
from compress.prune.costs import Costs, Item, Resource
from compress.prune.groups import Edit, Group
from compress.prune.rounding import Rounding


def allocate(costs, importance, *, macs, round_to, **settings):
    goals = {"macs": macs * costs.resources["macs"].total}
    return allocate_units(costs, importance, goals, rounding=Rounding(multiple=round_to), **settings)


def chain(*widths):
    """Linear layers 0, 1, ..; group i is the hidden units between layers i and i + 1; a layer's MACs are in x out."""
    groups, sides, items = [], {}, []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        both = Place(str(layer), "in"), Place(str(layer), "out")
        items.append(Item(inputs * outputs, both))
        sides |= dict(zip(both, (inputs, outputs), strict=True))
    for hidden, width in enumerate(widths[1:-1]):
        index = tuple((unit,) for unit in range(width))
        groups.append(
            Group(
                name=str(hidden),
                kind="channels",
                units=width,
                edits=(
                    Edit(path=str(hidden), role="out", index=index),
                    Edit(path=str(hidden + 1), role="in", index=index),
                ),
            )
        )
    return Costs(groups, sides, [Resource(name="macs", items=tuple(items))])


def left(costs, removed):
    """What is left of the MACs without these units."""
    for group, units in enumerate(removed):
        costs.take(group, units)
    reached = costs.reached["macs"]
    for group, units in enumerate(removed):
        costs.give(group, units)
    return reached


def test_costs_of_a_chain():
    costs = chain(8, 32, 16, 4)
    assert costs.reached["macs"] == 8 * 32 + 32 * 16 + 16 * 4
    assert costs.unit(0, "macs") == 8 + 16
    assert costs.share(1, ["macs"]) == (32 + 4) / costs.resources["macs"].total
    assert left(costs, [range(8), range(4)]) == 8 * 24 + 24 * 12 + 12 * 4
    assert costs.reached["macs"] == costs.resources["macs"].total  # all was given back


def test_an_item_with_the_same_place_twice_shrinks_with_its_square():
    edit = Edit(path="h", role="out", index=((0,), (1,), (2,), (3,)))
    group = Group(name="h", kind="recurrent", units=4, edits=(edit,))
    costs = Costs([group], {edit.place: 4}, [
        Resource(name="macs", items=(Item(16, (edit.place, edit.place)),), fixed=3)])
    assert costs.unit(0, "macs") == 8
    assert left(costs, [[0, 2]]) == 3 + 2 * 2


def test_the_least_important_go_first_and_no_more_than_needed():
    importance = [np.array([5.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0])]  # 160 MACs, 20 a unit
    assert allocate(chain(10, 8, 10), importance, macs=1.0, round_to=1, max_share=0.9) == [()]
    assert allocate(chain(10, 8, 10), importance, macs=0.75, round_to=1, max_share=0.9) == [(1, 3)]
    assert allocate(chain(10, 8, 10), importance, macs=0.74, round_to=1, max_share=0.9) == [(1, 3, 5)]


def test_channels_go_in_steps_and_heads_one_at_a_time():
    importance = [np.arange(20.0)]
    assert allocate(chain(10, 20, 10), importance, macs=0.9, round_to=8, max_share=0.9) == [(0, 1, 2, 3)]  # 20 -> 16
    assert allocate(chain(10, 20, 10), importance, macs=0.5, round_to=8, max_share=0.9) == [tuple(range(12))]  # 20 -> 8


def test_importance_is_weighed_against_the_macs_saved():
    costs = chain(100, 8, 100, 8, 4)  # groups cost 200, 16 and 104 MACs a unit
    importance = [np.full(8, 2.0), np.full(100, 1.0), np.full(8, 1.0)]
    # 0.01, 0.0625 and 0.0096 per MAC: the third to its floor (2432 -> 2016), then one of the first (1816), the second
    # not at all; 1945 are allowed, so one unit of the third comes back (1920)
    removed = allocate(costs, importance, macs=0.8, round_to=1, max_share=0.5)
    assert [len(units) for units in removed] == [1, 0, 3]
    assert costs.reached["macs"] == 100 * 7 + 7 * 100 + 100 * 5 + 5 * 4


def test_a_block_that_saved_more_than_needed_gives_smaller_ones_back():
    costs = chain(10, 16, 100, 16, 1)  # units cost 110, 32 and 101
    importance = [np.full(16, 10.0), np.full(100, 1.0), np.full(16, 1000.0)]
    # columns of 1 per 32 first, until the floor of 50; then whole blocks of the first group
    removed = allocate(costs, importance, macs=0.5, round_to=8, max_share=0.9)
    assert costs.reached["macs"] <= 0.5 * costs.resources["macs"].total
    fresh = chain(10, 16, 100, 16, 1)
    for group, units in enumerate(removed):  # nothing more can be put back
        if units:
            back = [u[:-8] if g == group else u for g, u in enumerate(removed)]
            assert left(fresh, back) > 0.5 * fresh.resources["macs"].total


def test_a_layer_is_never_emptied_and_the_best_reachable_share_is_named():
    (removed,) = allocate(chain(10, 32, 10), [np.arange(32.0)], macs=0.25, round_to=8, max_share=0.9)
    assert removed == tuple(range(24))
    with pytest.raises(CompressError, match=r"cannot prune to 20% of the MACs: the smallest share .* is 25.0%"):
        allocate(chain(10, 32, 10), [np.arange(32.0)], macs=0.2, round_to=8, max_share=0.9)
    with pytest.raises(CompressError, match=r"is 50.0%, .* max_share=0.5"):
        allocate(chain(10, 32, 10), [np.arange(32.0)], macs=0.2, round_to=8, max_share=0.5)


def test_equal_units_are_taken_in_their_order():
    assert allocate(chain(4, 8, 4), [np.ones(8)], macs=0.5, round_to=1, max_share=0.9) == [(0, 1, 2, 3)]


def blocks(*hidden):
    """Branches ``x + down(up(x))`` on a stream of 10, with so many hidden units: group 2 i is one, 2 i + 1 its units.

    A branch has 20 MACs for each unit.
    """
    groups, widths, items = [], {}, []
    for number, width in enumerate(hidden):
        branch = Branch(last=(f"{number}",), tensors=(f"{number}.weight",), modules=())
        index = tuple((unit,) for unit in range(width))
        edit = Edit(path=f"up{number}", role="out", index=index)
        groups += [Group(name=f"{number}", kind="blocks", units=1, edits=(), branch=branch),
                   Group(name=f"up{number}", kind="channels", units=width, edits=(edit,))]
        ((whole, _),) = groups[-2].sides
        widths |= {whole: 1, edit.place: width}
        items.append(Item(20 * width, (edit.place, whole)))
    return Costs(groups, widths, [Resource(name="macs", items=tuple(items))])


def test_a_branch_goes_as_a_whole_where_it_is_missed_less_than_its_units():
    costs = blocks(8, 8)
    importance = [np.array([4.0]), np.full(8, 1.0), np.array([40.0]), np.full(8, 2.0)]
    # 4 for 160 MACs are less than 1 for 20; its units are then worth nothing, and are left
    assert allocate(costs, importance, macs=0.5, round_to=1, max_share=0.9) == [(0,), (), (), ()]
    assert costs.reached["macs"] == 160
    # half of it would do: units that were missed less went before, and the whole is given back
    removed = allocate(blocks(8, 8), [np.array([9.0]), *importance[1:]], macs=0.8, round_to=1, max_share=0.9)
    assert removed == [(), (0, 1, 2, 3), (), ()]


def test_what_is_left_of_a_branch_is_what_it_saves():
    # 8 for 160 MACs is less than 1.1 for 20; but 7 of the other's units at 0.1 go first, and of its own two at 0.1 too
    units = np.array([0.1, 0.1, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2])
    removed = allocate(blocks(8, 8), [np.array([8.0]), units, np.array([100.0]), np.full(8, 1.1)], macs=0.5, round_to=1,
                       max_share=0.9)
    # after two of its units are gone it saves 120 MACs for 8, 1.33 for 20: the other's units are cheaper
    assert removed == [(), (0, 1), (), (0, 1, 2, 3, 4, 5)]


def test_no_more_branches_go_than_max_share_and_none_that_may_not():
    importance = [np.array([1.0]), np.full(8, 9.0)] * 2
    with pytest.raises(CompressError, match=r"cannot prune to 10% of the MACs: the smallest share .* is 12.5%"):
        allocate(blocks(8, 8), importance, macs=0.1, round_to=2, max_share=0.75)  # one of 2 branches, 6 of 8 units
    seen = []
    removed = allocate(blocks(8, 8), importance, macs=0.5, round_to=1, max_share=0.9,
                       allowed=lambda branches: seen.append(list(branches)) or branches != [0])
    assert removed == [(), (), (0,), ()]
    assert seen == [[0], [2]]
