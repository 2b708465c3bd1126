from __future__ import annotations

import numpy as np

from calibration import open_set
from calibration.coverage import Finding, coverage_of
from calibration.facts import Facts, read_facts
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)
IMAGE = TensorSpec(name="image", dtype="float32", shape=(BATCH, 2, 2), modality="image")
TEXT = TensorSpec(name="text", dtype="int64", shape=(BATCH, Dim("length", 1, 4, 8)), modality="text")


def facts(image: np.ndarray, text: np.ndarray, target: np.ndarray | None = None) -> Facts:
    feed = {"image": image.astype(np.float32), "text": text}
    return read_facts(open_set([feed | ({} if target is None else {"target": target})], [IMAGE, TEXT], name="set"))


def pictures(count: int) -> np.ndarray:
    return np.arange(count * 4).reshape(count, 2, 2) + 1


def kinds(findings: list[Finding]) -> dict[str, str]:
    return {finding.kind: finding.text for finding in findings}


def test_a_good_set() -> None:
    text = np.tile([1, 2, 3, 4, 5, 0, 0, 0], (20, 1)) * (1 + np.arange(20)[:, None] % 3)
    text[4:, 3:] = 0
    record, findings = coverage_of(facts(pictures(20), text, np.arange(20) % 4 // 3), range(20), [IMAGE, TEXT], "set")
    assert findings == []
    assert record == {
        "set": "set", "samples": 20, "of": 20,
        "inputs": {"image": {"modality": "image", "present": 20, "present_of": 20, "distinct": 20},
                   "text": {"modality": "text", "present": 20, "present_of": 20, "distinct": 6}},
        "sizes": {"length": {"min": 1, "opt": 4, "max": 8, "least": 8, "most": 8}},
        "lengths": [3, 3, 5], "labels": {"classes": 2, "lost": 0, "fewest": ["1", 5], "most": ["0", 15]},
    }  # fmt: skip


def test_inputs_that_never_change() -> None:
    record, findings = coverage_of(facts(np.zeros((20, 2, 2)), np.full((20, 8), 7)), range(20), [IMAGE, TEXT], "set")
    assert [finding.text for finding in findings] == [
        "image input 'image' is zero in all 20 samples used: add samples that differ in it, unless it never changes in "
        "use",
        "text input 'text' is the same in all 20 samples used: add samples that differ in it, unless it never changes "
        "in use"]  # fmt: skip
    assert record["inputs"]["image"] == {"modality": "image", "present": 0, "present_of": 0, "distinct": 1}


def test_sizes_that_are_not_reached() -> None:
    _, findings = coverage_of(facts(pictures(20), np.arange(60).reshape(20, 3)), range(20), [IMAGE, TEXT], "set")
    assert [(one.kind, one.where, one.text) for one in findings] == [(
        "size", "length", "dimension 'length' is 3 in every sample, declared 1 to 8, usually 4: add samples of the "
        "sizes it has in use")]  # fmt: skip
    longest = facts(pictures(20), np.arange(160).reshape(20, 8))
    assert coverage_of(longest, range(20), [IMAGE, TEXT], "set")[1] == []
    two = [{"image": pictures(10).astype(np.float32), "text": np.arange(10 * size).reshape(10, size)}
           for size in (2, 3)]  # fmt: skip
    found = read_facts(open_set(two, [IMAGE, TEXT]))
    record, findings = coverage_of(found, range(20), [IMAGE, TEXT], "set")
    assert record["sizes"] == {"length": {"min": 1, "opt": 4, "max": 8, "least": 2, "most": 3}}
    assert findings[0].text.startswith("dimension 'length' is 2 to 3, declared 1 to 8, usually 4")


def test_what_a_small_choice_loses() -> None:
    image = pictures(40)
    image[7] = 0
    found = facts(image, np.arange(320).reshape(40, 8) + 1, np.arange(40) // 2)
    record, findings = coverage_of(found, range(10, 20), [IMAGE, TEXT], "set")
    said = kinds(findings)
    assert said["few samples"] == "ranges come of 10 samples of 'set': use at least 16, better a few hundred"
    assert said["lost kind"] == (
        "image input 'image' is missing in 1 sample of the set, in none of the 10 used: use more samples")
    assert said["lost label"] == ("15 of 20 labels ('0', '1', '2', ...) have none of the 10 samples used: use at least "
                                  "20")
    assert record["inputs"]["image"]["present_of"] == 39
    assert record["labels"] == {"classes": 20, "lost": 15, "fewest": ["0", 0], "most": ["9", 2]}
    assert (record["samples"], record["of"], record["lengths"]) == (10, 40, [8, 8, 8])
