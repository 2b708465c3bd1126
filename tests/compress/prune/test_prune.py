from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from calibration.dataset import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.model import Factory, Input, Quantization
from compress.modelfile import read_model, write_model
from compress.program import module_path, run_program
from compress.prune import PruneConfig, load_into, prunable, prune
from compress.prune import structured as structured_module
from compress.prune.rounding import Rounding
from compress.saving import export_model
from compress.zoo import digits_questions, digits_vqa
from runtimes.spec import Dim

SIZE = {
    "width": 32,
    "head_dim": 8,
    "image_heads": [4, 4],
    "image_hidden": [64, 64],
    "text_heads": [4],
    "text_hidden": [64],
    "fusion_heads": [4],
    "fusion_hidden": [64],
}


@pytest.fixture(scope="module")
def demo():
    torch.manual_seed(0)
    module = digits_vqa.build(**SIZE).eval()
    generator = np.random.default_rng(0)
    example = {"image": generator.random((2, 1, 8, 8), np.float32), "question": generator.integers(1, 30, (2, 8))}
    return export_model(
        module,
        name="digits-vqa",
        example=example,
        factory=Factory(reference="compress.zoo.digits_vqa:build", kwargs=SIZE),
        inputs={"question": Input(modality="text", dims=("batch", Dim("length", 4, 8, 12)))},
        labels={"output": digits_questions.ANSWERS},
    )


@pytest.fixture(scope="module")
def samples(demo):
    generator = np.random.default_rng(1)
    return open_set(
        [{"image": generator.random((24, 1, 8, 8), np.float32), "question": generator.integers(1, 30, (24, 8))}],
        demo.inputs,
        name="samples",
    )


@pytest.fixture(scope="module")
def halved(demo, samples):
    before = {name: value.clone() for name, value in demo.weights.items()}
    result = prune(demo, samples, PruneConfig(macs=0.5))
    assert equal(before, demo.weights)  # the input is left as it was
    assert demo.module.image_encoder.blocks[0].attention.heads == 4
    return result


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def call(module, feed):
    with torch.no_grad():
        return module(**{name: torch.from_numpy(value) for name, value in feed.items()})


def test_the_demo_model_loses_half_of_its_macs(demo, samples, halved):
    assert 0.4 < halved.macs_after / halved.macs_before <= 0.5
    assert halved.check < 1e-4
    assert (halved.model.inputs, halved.model.outputs) == (demo.inputs, demo.outputs)
    assert (halved.model.labels, halved.model.components) == (demo.labels, demo.components)
    assert sum(c.macs_before for c in halved.components) == halved.macs_before
    assert sum(c.macs_after for c in halved.components) == halved.macs_after
    assert sum(c.params_after for c in halved.components) == sum(p.numel() for p in halved.model.module.parameters())
    assert "head" in halved.gave_nothing
    for group in halved.groups:
        if group.kind == "heads":
            layer = halved.model.module.get_submodule(group.name)
            assert (layer.heads, layer.q.out_features, layer.out.in_features) == (group.after, *[8 * group.after] * 2)
    feed = samples.first(3)
    np.testing.assert_allclose(
        run_program(halved.model, feed)["output"], call(halved.model.module, feed), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_pruned_model_is_saved_loaded_rebuilt_and_pruned_again(samples, halved, tmp_path):
    write_model(halved.model, tmp_path / "pruned.model.pt")
    loaded = read_model(tmp_path / "pruned.model.pt")
    rebuilt = build_module(loaded)
    assert equal(dict(rebuilt.state_dict()), dict(halved.model.module.state_dict()))
    feed = samples.first(3)
    np.testing.assert_allclose(run_program(loaded, feed)["output"], call(rebuilt, feed), rtol=1e-4, atol=1e-5)
    again = prune(loaded, samples, PruneConfig(macs=0.8, importance="magnitude"))
    assert again.macs_before == halved.macs_after
    assert again.macs_after <= 0.8 * halved.macs_after
    assert equal(dict(build_module(again.model).state_dict()), dict(again.model.module.state_dict()))


def test_into_the_users_own_class(samples, halved):
    mine = load_into(digits_vqa.build(**SIZE), halved.model)
    assert mine.image_encoder.blocks[0].attention.heads == halved.model.module.image_encoder.blocks[0].attention.heads
    feed = samples.first(3)
    np.testing.assert_allclose(
        run_program(halved.model, feed)["output"], call(mine, feed), rtol=1e-4, atol=1e-5)
    with pytest.raises(CompressError, match="Linear is not the class of model 'digits-vqa', which has no weight"):
        load_into(torch.nn.Linear(2, 2), halved.model)


@pytest.mark.parametrize(("goal", "message"), [
    ({"params": 0.02}, r"cannot prune to 2% of the parameters: the smallest share that can be reached is"),
    ({"size_mb": 0.001}, r"cannot prune to 0.001 MB: the least that can be reached is 0\.\d+ MB of 0\.\d+ MB"),
])
def test_a_goal_out_of_reach_says_the_best(demo, samples, goal, message):
    with pytest.raises(CompressError, match=message):
        prune(demo, samples, PruneConfig(**goal))


def test_goals_in_parameters_and_megabytes(demo, samples):
    total = sum(p.numel() for p in demo.module.parameters())
    most = 4e-6 * total * 0.8
    result = prune(demo, samples, PruneConfig(size_mb=most, macs=0.9, importance="magnitude"))
    assert 4e-6 * sum(p.numel() for p in result.model.module.parameters()) <= most
    assert result.macs_after <= 0.9 * result.macs_before
    fewer = prune(demo, samples, PruneConfig(params=0.75, importance="activation"))
    left = sum(c.params_after for c in fewer.components)
    assert 0.6 * total < left <= 0.75 * total


def test_the_targets_row_says_how_to_round():
    assert PruneConfig().rounding == Rounding(multiple=8, exact=False)
    assert PruneConfig(target="onnxruntime-cpu").rounding == Rounding(multiple=16, exact=False)
    assert PruneConfig(target="onnxruntime-cpu", round_near=4).rounding == Rounding(multiple=4, exact=False)
    assert PruneConfig(target="onnxruntime-cpu", round_to=4).rounding == Rounding(multiple=4)
    with pytest.raises(CompressError, match="unknown target 'toaster'"):
        _ = PruneConfig(target="toaster").rounding


def weaken(module, *branches):
    """The last layers of these branches add next to nothing."""
    with torch.no_grad():
        for path in branches:
            module.get_submodule(path).weight.mul_(1e-3)
            module.get_submodule(path).bias.zero_()


GONE = "image_encoder.blocks.1.attention.out", "image_encoder.blocks.0.down"


@pytest.fixture(scope="module")
def without_blocks(demo, samples):
    module = copy.deepcopy(demo.module)
    weaken(module, *GONE)
    weak = dataclasses.replace(demo, module=module, weights=dict(module.state_dict()))
    return weak, prune(weak, samples, PruneConfig(macs=0.75, structures=("blocks", "recurrent")))


def test_whole_blocks_that_add_nothing_go_first(demo, samples, without_blocks):
    weak, result = without_blocks
    gone = {group.name for group in result.groups if group.kind == "blocks" and group.after == 0}
    assert gone == set(GONE)
    assert result.macs_after <= 0.75 * result.macs_before
    lost = {f"image_encoder.blocks.1.{name}" for name in ("norm1", "attention.q", "attention.k", "attention.v",
                                                          "attention.out")}
    lost |= {f"image_encoder.blocks.0.{name}" for name in ("norm2", "up", "down")}
    left = {name.rpartition(".")[0] for name in result.model.weights}
    assert {name.rpartition(".")[0] for name in weak.weights} - left == lost
    assert set(result.model.channels["absent"]) == {f"{path}.{name}" for path in lost for name in ("weight", "bias")}
    for graph in result.model.graphs.values():               # nothing of them is computed
        modules = {module_path(node) for node in graph.program.graph.nodes}
        assert not modules & (lost | {"image_encoder.blocks.1.attention"})
    feed = samples.first(3)
    np.testing.assert_allclose(run_program(result.model, feed)["output"], call(result.model.module, feed), rtol=1e-4,
                               atol=1e-5)


def test_a_component_may_be_gone_as_a_whole():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)

        def forward(self, x):
            x = x + self.one(x).relu()
            return self.head(x + self.two(x).relu())

    module = Net().eval()
    weaken(module, "one")
    x = torch.randn(8, 8)
    model = export_model(module, name="net", example={"x": x})
    result = prune(model, open_set([{"x": x.numpy()}], model.inputs, name="noise"),
                   PruneConfig(macs=0.6, structures=("blocks",)))
    assert {change.name: (change.macs_before, change.macs_after, change.params_after)
            for change in result.components} == {"one": (64, 0, 0), "two": (64, 64, 72), "head": (16, 16, 18)}


def test_a_model_without_some_blocks_is_saved_loaded_rebuilt_and_pruned_again(samples, without_blocks, tmp_path):
    _, result = without_blocks
    write_model(result.model, tmp_path / "pruned.model.pt")
    loaded = read_model(tmp_path / "pruned.model.pt")
    rebuilt = build_module(loaded)
    assert equal(dict(rebuilt.state_dict()), dict(result.model.module.state_dict()))
    feed = samples.first(3)
    expected = run_program(result.model, feed)["output"]
    np.testing.assert_array_equal(run_program(loaded, feed)["output"], expected)
    np.testing.assert_allclose(call(load_into(digits_vqa.build(**SIZE), loaded), feed), expected, rtol=1e-4, atol=1e-5)
    again = prune(loaded, samples, PruneConfig(
        macs=0.8, structures=("blocks", "channels", "width"), importance="activation"))
    assert again.macs_before == result.macs_after
    assert set(again.model.channels["absent"]) >= set(result.model.channels["absent"])
    assert not {group.name for group in again.groups} & {*GONE, "image_encoder.blocks.0.up"}
    np.testing.assert_allclose(
        run_program(again.model, feed)["output"], call(build_module(again.model), feed), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_blocks_by_every_measure(demo, samples, without_blocks):
    weak, _ = without_blocks
    for importance in ("fisher", "activation"):
        result = prune(weak, samples, PruneConfig(macs=0.75, structures=("blocks",), importance=importance))
        assert {group.name for group in result.groups if group.after == 0} == set(GONE), importance
    # by their weights alone: a block of which many are small
    with torch.no_grad():
        module = copy.deepcopy(demo.module)
        for name, value in module.image_encoder.blocks[1].named_parameters():
            if name.startswith(("up", "down", "norm2")):
                value.mul_(1e-3)
    light = dataclasses.replace(demo, module=module, weights=dict(module.state_dict()))
    result = prune(light, samples, PruneConfig(macs=0.9, structures=("blocks",), importance="magnitude"))
    assert {group.name for group in result.groups if group.after == 0} == {"image_encoder.blocks.1.down"}


def test_protect_keeps_a_block_of_which_it_names_a_part(demo):
    config = PruneConfig(structures=("blocks",), protect=("text_encoder", "*.norm1", "fusion.blocks.0.up"))
    groups, skipped = prunable(demo, config)
    assert {group.name for group in groups} == {"image_encoder.blocks.0.down", "image_encoder.blocks.1.down"}
    for name in ("text_encoder.blocks.0.attention.out", "fusion.blocks.0.down"):
        assert skipped[name] == "left whole by protect"
    assert skipped["fusion.blocks.0.attention.out"] == "nothing else reads input 'image'"


@pytest.mark.slow
def test_two_runs_give_the_same_model(demo, samples, halved):
    again = prune(demo, samples, PruneConfig(macs=0.5))
    assert again.to_json() == halved.to_json()
    assert equal(again.model.weights, halved.model.weights)


def test_prunable_tells_without_pruning(demo):
    groups, skipped = prunable(demo)
    heads = [(g.name, g.before, g.after) for g in groups if g.kind == "heads"]
    assert heads == [
        ("image_encoder.blocks.0.attention", 4, 4),
        ("image_encoder.blocks.1.attention", 4, 4),
        ("text_encoder.blocks.0.attention", 4, 4),
        ("fusion.blocks.0.attention", 4, 4),
    ]
    assert {g.name for g in groups} >= {"image_encoder.blocks.0.up", "text_encoder.blocks.0.up", "fusion.blocks.0.up"}
    assert skipped["image_encoder.position"] == "width is not among the structures that may shrink"
    assert "output of the model" in skipped["head.answer"]


def test_protect_leaves_a_component_whole(demo):
    groups, skipped = prunable(demo, PruneConfig(protect=("text_encoder", "fusion.*")))
    assert {demo.component_of(group.name) for group in groups} == {"image_encoder"}
    assert skipped["text_encoder.blocks.0.up"] == skipped["fusion.blocks.0.attention"] == "left whole by protect"


def test_the_check_stops_a_wrong_removal_and_names_it(demo, samples, monkeypatch):
    right = structured_module.find_groups

    def wrong(*args, **settings):
        groups, skipped = right(*args, **settings)
        first, *rest = groups
        edit = first.edits[0]
        turned = dataclasses.replace(edit, index=edit.index[1:] + edit.index[:1])
        return [dataclasses.replace(first, edits=(turned, *first.edits[1:])), *rest], skipped

    monkeypatch.setattr(structured_module, "find_groups", wrong)
    with pytest.raises(
        CompressError, match=r"pruning group 'image_encoder.blocks.0.attention' would change the function"
    ):
        prune(demo, samples, PruneConfig(macs=0.4))


def test_what_cannot_be_pruned_is_refused(demo, samples):
    quantized = dataclasses.replace(demo, quantization=Quantization(scheme="x86", ranges={}, settings={}))
    with pytest.raises(CompressError, match="'digits-vqa' is quantized: prune first"):
        prune(quantized, samples)
    nameless = dataclasses.replace(demo.graph, method=None)
    with pytest.raises(CompressError, match=r"has 2 graphs \(a, b\), and does not say which method 'b' is: save it"):
        prune(dataclasses.replace(demo, graphs={"a": demo.graph, "b": nameless}), samples)
    with pytest.raises(CompressError, match="cannot prune to 3% of the MACs: the smallest share"):
        prune(demo, samples, PruneConfig(macs=0.03))
    with pytest.raises(CompressError, match="has no factory"):
        prune(dataclasses.replace(demo, module=None, factory=None), samples)


def test_the_users_own_factory_is_called_when_named(demo, samples, monkeypatch):
    mine = types.ModuleType("mine_to_prune")
    mine.build = digits_vqa.build
    monkeypatch.setitem(sys.modules, "mine_to_prune", mine)
    theirs = dataclasses.replace(demo, module=None, factory=Factory(reference="mine_to_prune:build", kwargs=SIZE))
    with pytest.raises(CompressError, match="mine_to_prune:build"):
        prune(theirs, samples, PruneConfig(macs=0.7))
    assert prunable(theirs, factory="mine_to_prune:build") == prunable(demo)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": 0.0}, r"macs=0.0 is the share of MACs to keep"),
        ({"macs": 1.5}, r"macs=1.5"),
        ({"params": -1.0}, r"params=-1.0 is the share of parameters to keep"),
        ({"size_mb": 0.0}, r"size_mb=0.0 must be above 0"),
        ({"structures": ("channels", "bones")}, r"structures=\['channels', 'bones'\]: give some of channels, heads"),
        ({"structures": ()}, r"structures=\[\]: give some of"),
        ({"round_to": 0}, "round_to=0 must be at least 1"),
        ({"round_near": 0}, "round_near=0 must be at least 1"),
        ({"round_to": 8, "round_near": 16}, "round_to=8 holds in every layer, and leaves nothing to round_near=16"),
        ({"importance": "luck"}, "importance='luck' is unknown"),
        ({"max_share": 1.0}, r"max_share=1.0 must be in \(0, 1\)"),
        ({"samples": 0}, "samples=0 must be at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(CompressError, match=message):
        PruneConfig(**settings)


def test_importing_the_stage_loads_nothing_heavy():
    code = (
        "import sys; from compress.prune import prune; assert not {'torch', 'torch_pruning', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
