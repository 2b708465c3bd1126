from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.strata import choose

LABELS = st.lists(st.sampled_from("aaaabbcde"), min_size=1, max_size=80)


def test_each_label_by_its_share() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"] * 3          # 6, 3, 3 of 12: 4, 2, 2 of 8
    # a: half a distance in, at 0, 2, 3, 5 of 6. b: 0.118 of a distance in, at 0, 1 of 3. c: 0.736, at 1, 2 of 3.
    assert choose(labels, 8) == [0, 2, 3, 5, 6, 7, 10, 11]
    assert choose(labels, 4) == [1, 4, 6, 11]           # 2, 1, 1
    assert choose(labels, 1) == [3]                     # the running totals 0.5, 0.75, 1 are rounded to 1, 1, 1
    assert choose([None] * 10, 3) == [1, 5, 8]
    assert choose(labels, 12) == choose(labels, 99) == list(range(12))


def test_a_rare_label_has_one_place() -> None:
    labels = [0] * 996 + [1, 2, 3, 4]       # 4 of 10 places for the rare ones, 6 for the other
    assert Counter(labels[i] for i in choose(labels, 10)) == {0: 6, 1: 1, 2: 1, 3: 1, 4: 1}
    assert Counter(labels[i] for i in choose(labels, 4)) == {0: 4}      # fewer places than labels: by share alone


def test_kinds_keep_their_share_where_no_label_has_room_for_it() -> None:
    labels = [label for label in range(10) for _ in range(20)]
    kinds = ["silent" if index % 20 < 2 else "sound" for index in range(200)]       # 2 of 20 in each label
    kept = choose(labels, 20, kinds=kinds)                                          # 2 of each label
    assert Counter(labels[i] for i in kept) == dict.fromkeys(range(10), 2)
    assert Counter(kinds[i] for i in kept) == {"silent": 2, "sound": 18}


def test_lengths_are_taken_at_equal_distances() -> None:
    lengths = [(index * 37) % 100 for index in range(100)]      # each of 0 to 99 once
    kept = choose([0] * 100, 10, lengths=lengths)
    assert sorted(lengths[i] for i in kept) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    one_each = choose(list(range(100)) * 10, 100, lengths=[index // 100 for index in range(1000)])
    spread = Counter(index // 100 for index in one_each)        # ten lengths, one place for each of a hundred labels
    assert len(spread) == 10
    assert all(9 <= number <= 11 for number in spread.values())


@settings(deadline=None)
@given(LABELS, st.integers(1, 80), st.randoms())
def test_size_shares_and_labels(labels: list[str], count: int, random: object) -> None:
    kinds = [random.choice("xxxyz") for _ in labels]            # type: ignore[attr-defined]
    lengths = [random.randrange(9) for _ in labels]             # type: ignore[attr-defined]
    kept = choose(labels, count, kinds=kinds, lengths=lengths)
    assert kept == choose(list(labels), count, kinds=list(kinds), lengths=list(lengths))
    assert kept == sorted({*kept})
    assert len(kept) == min(count, len(labels))
    totals, found = Counter(labels), Counter(labels[i] for i in kept)
    for label, total in totals.items():
        share = len(kept) * total / len(labels)
        if all(len(kept) * other >= len(labels) for other in totals.values()) or count < len(totals):
            assert abs(found[label] - share) < 1
        if count >= len(totals):
            assert found[label] >= 1
            assert found[label] < share + 1


@settings(deadline=None)
@given(LABELS, st.integers(1, 80), st.randoms())
def test_two_kinds_within_one_of_their_share(labels: list[str], count: int, random: object) -> None:
    kinds = [random.random() < 0.2 for _ in labels]             # type: ignore[attr-defined]
    kept = choose(labels, count, kinds=kinds)
    totals, cells = Counter(labels), Counter(zip(labels, kinds, strict=True))
    places, found = Counter(labels[i] for i in kept), Counter((labels[i], kinds[i]) for i in kept)
    due = {cell: places[cell[0]] * number / totals[cell[0]] for cell, number in cells.items()}
    for cell, share in due.items():
        assert abs(found[cell] - share) < 1 + 1e-9
    for kind in (False, True):
        share = sum(value for cell, value in due.items() if cell[1] == kind)
        assert abs(sum(found[cell] for cell in cells if cell[1] == kind) - share) <= 0.5 + 1e-9


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 50))
def test_lengths_within_one_of_their_share(lengths: list[int], count: int, limit: int) -> None:
    kept = choose([0] * len(lengths), count, lengths=lengths)
    short = sum(length <= limit for length in lengths)
    assert abs(sum(lengths[i] <= limit for i in kept) - len(kept) * short / len(lengths)) <= 1


@pytest.mark.parametrize("count", [1, 7, 50])
def test_many_texts_are_taken_all_over(count: int) -> None:
    kept = choose([f"text {index}" for index in range(100)], count)
    assert len(kept) == count
    assert all(abs(place - (2 * i + 1) * 50 / count) <= 100 / count for i, place in enumerate(kept))
