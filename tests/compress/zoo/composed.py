"""A reference model of several graphs, small and through every stage of its recipe."""

import dataclasses

import yaml
from small_recipe import BENCH

import compress
from compress.zoo.reference import make_reference


def small(reference, counts, epochs=2):
    """``reference`` with the last samples of each split, as many as ``counts`` says, and little training."""
    splits = {split: [({key: array[-counts[split]:] for key, array in rows.items()}, target[-counts[split]:])
                      for rows, target in parts] for split, parts in reference.samples().items()}  # fmt: skip
    return dataclasses.replace(reference, samples=lambda: splits, fit=dataclasses.replace(reference.fit, epochs=epochs))


def through_every_stage(reference, folder):
    """The record of its training, and the result of its recipe with an epoch of each distillation."""
    record = make_reference(reference, folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for stage in recipe["stages"]:
        if "distill" in stage:
            stage["distill"]["epochs"] = 1
        if "bench" in stage:
            stage["bench"] = BENCH
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = compress.run(folder / "recipe.yaml")
    assert engines_that_disagree(result.record) == []
    export = next(stage for stage in result.record["stages"] if stage["stage"] == "export")
    assert [entry["reason"] for entry in export["summary"]["not_built"] if entry["target"] != "rtx"] == []
    return record, result


def engines_that_disagree(record):
    """The engines whose answers are not those of the program they were built from, and in which way."""
    engines = [step for step in record["parity"]["steps"] if step["kind"] != "torch"]
    return [(step["name"], step["flags"]) for step in engines if step["flags"]]
