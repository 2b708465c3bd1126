import math

import pytest

from compress.distill import DistillConfig
from compress.errors import CompressError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"patience": -1}, "patience is -1: it must be at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: it must be above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0: it must be at least 0"),
        ({"warmup": 1.0}, r"warmup is 1.0: it must be in \[0, 1\)"),
        ({"average": math.nan}, "average is nan"),
        ({"feature_weight": -1.0}, "feature_weight is -1.0: it must be at least 0"),
        ({"logit_weight": math.nan}, "logit_weight is nan"),
        (
            {"logit_weight": 0.0, "feature_weight": 0.0, "similarity_weight": 0.0},
            "every weight of the loss is 0: one must be above 0",
        ),
        ({"loss": "hinge"}, "loss is 'hinge': expected 'auto' or 'kl' or 'mse'"),
        ({"schedule": "steps"}, "schedule is 'steps': expected 'cosine' or 'linear' or 'constant'"),
        ({"precision": "fp16"}, "precision is 'fp16': expected 'fp32' or 'bf16'"),
        ({"component_weights": ("vision",)}, "component_weights has 'vision': expected NAME=WEIGHT"),
        ({"component_weights": ("=2",)}, "component_weights has '=2'"),
        ({"component_weights": ("vision=-1",)}, "component_weights has 'vision=-1'"),
        ({"component_weights": ("vision=much",)}, "component_weights has 'vision=much'"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(CompressError, match=message):
        DistillConfig(**settings)


def test_weights_of_components():
    assert DistillConfig(component_weights=("vision=2", "a=b=0.5")).of_components() == {"vision": 2.0, "a=b": 0.5}
