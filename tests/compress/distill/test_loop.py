"""The loop's settings, each by what it must give."""

import dataclasses

import numpy as np
import pytest
import torch

from compress.distill import DistillConfig, distill, loop
from compress.distill.bound import bind
from compress.distill.losses import divergence
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.program import run_program
from compress.quantize import quantize
from compress.weights import with_weights

QUICK = DistillConfig(epochs=2, batch_size=32, learning_rate=5e-3, feature_weight=0.0)


def same_weights(left, right):
    return all(torch.equal(left.weights[key], right.weights[key]) for key in left.weights)


def close(left, right, atol=1e-6):
    for key, value in left.weights.items():
        np.testing.assert_allclose(value, right.weights[key], atol=atol, err_msg=key)


@pytest.fixture
def pair(build, perturb):
    return perturb(build(), 0.3), build()


def whole(feeds, teacher):
    """64 samples: batches of 32 and of 16 that divide them."""
    return feeds(teacher, count=64)


def test_one_step_by_hand(pair, feeds):
    """AdamW's first step is the learning rate times the gradient's sign, however large the gradient; it is clipped."""
    student, teacher = pair
    data = whole(feeds, teacher)
    config = dataclasses.replace(QUICK, epochs=1, batch_size=64, learning_rate=1e-3, warmup=0.0, schedule="constant")
    result = distill(student, teacher, data, config=config)
    feed = {name: torch.from_numpy(array) for name, array in next(data.batches(64)).items()}
    mine = bind(student)
    divergence(mine(feed)[0], bind(teacher)(feed)[0].detach(), 2.0).backward()
    norm = torch.stack([value.grad.square().sum() for value in mine.named().values()]).sum().sqrt()
    for name, value in mine.named().items():
        gradient = value.grad / max(1.0, float(norm))
        expected = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        np.testing.assert_allclose(result.model.weights[name], expected, atol=1e-6)


@pytest.mark.parametrize(("size", "among"), [(16, 4), (28, 3)])
def test_accumulated_gradients_are_those_of_the_larger_batch(pair, feeds, size, among):
    """Also where the batches differ: of 64 samples by 28 the last 8 are not worth as much as the 28 before."""
    student, teacher = pair
    data = whole(feeds, teacher)
    one = dataclasses.replace(QUICK, epochs=3, batch_size=64, schedule="constant", warmup=0.0)
    large = distill(student, teacher, data, config=one)
    small = distill(student, teacher, data, config=dataclasses.replace(one, batch_size=size, accumulate=among))
    close(small.model, large.model, atol=1e-5)
    if 64 % size == 0:      # the history has means over batches, which are those over samples only where all are equal
        for ours, theirs in zip(small.history, large.history, strict=True):
            np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


def test_what_an_epoch_has_left_is_a_step_of_its_own(pair, feeds):
    """Of 4 batches by 3: the last alone, with its gradient whole."""
    student, teacher = pair
    data = whole(feeds, teacher)
    kept = dataclasses.replace(QUICK, epochs=1, batch_size=16, schedule="constant", warmup=0.0)
    short = distill(student, teacher, data, config=dataclasses.replace(kept, accumulate=3)).model
    long = distill(student, teacher, data, config=dataclasses.replace(kept, accumulate=4)).model
    moved = {name: (short.weights[name] - student.weights[name]).abs().max() for name in short.weights}
    once = {name: (long.weights[name] - student.weights[name]).abs().max() for name in long.weights}
    assert all(moved[name] > 1.5 * once[name] for name in ("head.0.weight", "head.2.weight"))


def test_no_limit_to_the_gradient(pair, feeds):
    """AdamW forgets a gradient's size but for its changes: a limit that never holds changes nothing."""
    student, teacher = pair
    data = whole(feeds, teacher)
    free = distill(student, teacher, data, config=dataclasses.replace(QUICK, clip_norm=0.0))
    loose = distill(student, teacher, data, config=dataclasses.replace(QUICK, clip_norm=1e6))
    tight = distill(student, teacher, data, config=dataclasses.replace(QUICK, clip_norm=1e-9))
    assert same_weights(free.model, loose.model)
    assert not same_weights(free.model, tight.model)


def test_the_average_is_kept_and_scored(pair, feeds):
    """At decay 0 < d < 0.1 the average after one step is d of the student and 1 - d of the weights that were learned.
    """
    student, teacher = pair
    data = whole(feeds, teacher)
    one = dataclasses.replace(QUICK, epochs=1, batch_size=64)
    plain = distill(student, teacher, data, config=one).model
    result = distill(student, teacher, data, validation=data, metric=get_metric("accuracy"),
                     config=dataclasses.replace(one, average=0.05))  # fmt: skip
    expected = {name: 0.05 * student.weights[name] + 0.95 * value for name, value in plain.weights.items()}
    assert result.kept == 1
    for name, value in expected.items():
        np.testing.assert_allclose(result.model.weights[name], value, atol=1e-7)
    feed = {"picture": np.concatenate([f["picture"] for f in data.batches(64)]),
            "sound": np.concatenate([f["sound"] for f in data.batches(64)])}  # fmt: skip
    said = run_program(result.model, feed)["output"].argmax(-1)
    assert result.history[0]["metric"] == (said == data.targets()).mean()


def test_training_stops_where_the_metric_gets_no_better(build, feeds):
    """Validated on a set of one sample, whose answer is right from the first: no epoch can improve on it."""
    teacher = build()
    data = whole(feeds, teacher)
    config = dataclasses.replace(QUICK, epochs=50, patience=3)
    result = distill(teacher, teacher, data, validation=data, metric=get_metric("accuracy"), config=config)
    assert len(result.history) == 3
    assert (result.before, result.after, result.kept) == (1.0, 1.0, 3)      # the later of equals


def test_an_improvement_begins_the_wait_again(pair, feeds):
    student, teacher = pair
    data = whole(feeds, teacher)
    config = dataclasses.replace(QUICK, epochs=40, learning_rate=2e-2, patience=4)
    result = distill(student, teacher, data, validation=data, metric=get_metric("accuracy"), config=config)
    scores = [result.before, *(entry["metric"] for entry in result.history)]
    better = [i for i in range(1, len(scores)) if scores[i] > max(scores[:i])]
    assert len(scores) - 1 == min(40, better[-1] + 4)
    assert all(b - a <= 4 for a, b in zip([0, *better], better, strict=False))


def test_patience_without_a_metric_is_refused(pair, feeds):
    student, teacher = pair
    with pytest.raises(CompressError, match="patience is 2, and there is no metric that could get better"):
        distill(student, teacher, feeds(teacher), config=DistillConfig(patience=2))


def test_weights_of_components_weigh_their_features(pair, feeds):
    student, teacher = pair
    data = whole(feeds, teacher)
    config = DistillConfig(epochs=1, batch_size=64, logit_weight=0.0)
    plain, none, heavy = (
        distill(student, teacher, data, config=dataclasses.replace(config, component_weights=weights)).history[0]
        for weights in ((), ("seen=0",), ("seen=3", "heard=0.5"))
    )
    heard = none["feature_loss"]                # the mean of two terms, one of them without weight
    seen = plain["feature_loss"] - heard
    np.testing.assert_allclose(heavy["feature_loss"], 3 * seen + 0.5 * heard, rtol=1e-6)
    assert seen > 0.0
    with pytest.raises(CompressError, match=r"names 'sen', and model 'tiny' has the components \['seen', 'heard', "):
        distill(student, teacher, data, config=dataclasses.replace(config, component_weights=("sen=1",)))


def test_products_in_bf16_teach_nearly_the_same(pair, feeds):
    student, teacher = pair
    data = whole(feeds, teacher)
    config = dataclasses.replace(QUICK, epochs=20, learning_rate=2e-2)
    results = {form: distill(student, teacher, data, config=dataclasses.replace(config, precision=form))
               for form in ("fp32", "bf16")}  # fmt: skip
    assert not same_weights(results["fp32"].model, results["bf16"].model)
    last = {form: result.history[-1]["loss"] for form, result in results.items()}
    assert last["bf16"] < results["bf16"].history[0]["loss"] / 20
    assert all(value.dtype == torch.float32 for value in results["bf16"].model.weights.values())


def test_a_quantized_student_is_not_trained_in_bf16(build, feeds):
    teacher = build()
    data = feeds(teacher)
    student = quantize(teacher, data, scheme="x86").model
    with pytest.raises(CompressError, match="precision is 'bf16', and student 'tiny' is quantized"):
        distill(student, teacher, data, config=DistillConfig(precision="bf16"))


def test_a_teacher_whose_answers_are_not_finite_stops_the_first_step(build, feeds):
    student = build(1)
    data = feeds(student, count=40)
    broken = with_weights(build(), {"head.2.bias": torch.full((3,), float("nan"))})
    with pytest.raises(CompressError, match=r"distilling model 'tiny' stopped at step 1 of 4: the loss is nan"):
        distill(student, broken, data, config=QUICK)


def test_checkpoints_are_written_the_more_seldom_the_longer_that_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop._Clock()

    def waits(seconds):
        now[0] += seconds - 0.01
        early = clock.due()
        now[0] += 0.02
        return not early and clock.due()

    def write(checkpoint, state):
        now[0] += checkpoint        # as long as it takes

    assert waits(30)
    clock.timed(write, 0.1, None)
    assert waits(30)
    clock.timed(write, 5.0, None)
    assert waits(100)               # of which 5 are 5 %
