from itertools import combinations

from compress.report.plots import HEIGHT, WIDTH, Point, lines, scatter


def _scatter(*xy: tuple[float, float]):  # type: ignore[no-untyped-def]
    points = [
        Point(x=x, y=y, label=f"engine {i}", title="", y_interval=(y - 0.01, y + 0.01)) for i, (x, y) in enumerate(xy)
    ]
    return scatter(points, x_label="ms", y_label="accuracy", y_text=str)


def test_labels_cover_neither_each_other_nor_a_marker() -> None:
    plot = _scatter((1.0, 0.98), (1.05, 0.98), (2.0, 0.97), (2.0, 0.971), (2.02, 0.969), (8.0, 0.99), (8.1, 0.99))
    width = len("engine 0") * 6.6
    left = {"start": 0.0, "middle": -width / 2, "end": -width}
    boxes = [
        (m.text_x + left[m.anchor], m.text_y - 11, m.text_x + left[m.anchor] + width, m.text_y + 4)
        for m in plot.markers
    ]
    for a, b in combinations(boxes, 2):
        assert (
            min(a[2], b[2]) - max(a[0], b[0]) < 0.5 or min(a[3], b[3]) - max(a[1], b[1]) < 0.5
        )  # coordinates are rounded
    for a in boxes:
        assert a[0] >= 0
        assert a[1] >= 0
        assert a[2] <= WIDTH
        assert a[3] <= HEIGHT
        assert not any(a[0] < m.x < a[2] and a[1] < m.y < a[3] for m in plot.markers)


def test_error_bars_are_in_pixels_of_their_axis() -> None:
    marker = _scatter((1.0, 0.5), (10.0, 0.6)).markers[0]
    low, high = marker.y_bar
    assert high < marker.y < low  # pixels grow downwards
    assert abs((low + high) / 2 - marker.y) <= 0.1
    assert marker.x_bar is None


def test_one_point_can_be_drawn() -> None:
    assert len(_scatter((3.0, 0.9)).markers) == 1


def test_a_curve_goes_through_its_points_from_left_to_right() -> None:
    plot = lines("loss", [(2, 0.5), (1, 1.0), (3, 0.25)], x_label="epoch", rule=(1.2, "before"))
    xs = [x for x, _, _ in plot.dots]
    ys = [y for _, y, _ in plot.dots]
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    assert plot.path == "M" + " L".join(f"{x},{y}" for x, y, _ in plot.dots)
    assert plot.dots[0][2] == "epoch 1: 1"
    assert plot.rule is not None
    assert plot.rule[0] < ys[0]


def test_a_label_is_not_struck_through_by_a_wide_interval() -> None:
    """The first marker's label would stand right of it, where the bar of its own latency runs."""
    points = [Point(x=2.0, y=0.5, label="shipped int8", title="", x_interval=(1.0, 5.0)),
              Point(x=9.0, y=0.7, label="original", title="")]
    marker = scatter(points, x_label="ms", y_label="accuracy", y_text=str).markers[0]
    bottom, top = marker.text_y + 4, marker.text_y + 4 - 15
    assert not top < marker.y < bottom


def test_the_text_of_a_rule_covers_no_marker_and_no_label() -> None:
    """The last point lies just above the end of the line, and its label would stand there."""
    points = [Point(x=x, y=y, label=f"{number}, fp32", title="") for number, (x, y) in enumerate(
        ((0.04, 0.0), (0.046, -16.0), (0.07, 0.0)))]  # fmt: skip
    plot = scatter(points, x_label="ms", y_label="points", y_text=str, rule=(-1.0, "the budget"))
    assert plot.rule is not None
    left, top, bottom = plot.x.end - 4 - len("the budget") * 6.6, plot.rule_y - 11, plot.rule_y + 4
    for marker in plot.markers:
        assert not (left < marker.x < plot.x.end and top < marker.y < bottom)
        starts = marker.text_x - (0 if marker.anchor == "start" else 6 * 6.6)
        ends = starts + 7 * 6.6
        assert ends < left or starts > plot.x.end or not top - 4 < marker.text_y - 4 < bottom
    free = scatter(points[:2], x_label="ms", y_label="points", y_text=str, rule=(-8.0, "the budget"))
    assert free.rule is not None
    assert free.rule_y == free.rule[0] - 6
