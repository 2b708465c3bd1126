"""Task metrics: what is counted in each sample, and the value of its sum, so that engines compare sample by sample.

Most metrics are means of one score per sample. Others are functions of sums (F1, word error rate, BLEU); some look at
the whole set at once (recall@k), some read texts as the model's processing makes them. ``docs/metrics.md`` lists them.
"""

from __future__ import annotations

from compress.metrics.estimates import drop_of, value_of
from compress.metrics.metric import Metric, Outputs
from compress.metrics.scoring import statistics_of
from compress.metrics.table import METRICS, find_metric, get_metric

__all__ = [
    "METRICS", "Metric", "Outputs", "get_metric", "find_metric",
    "statistics_of", "value_of", "drop_of",
]  # fmt: skip
