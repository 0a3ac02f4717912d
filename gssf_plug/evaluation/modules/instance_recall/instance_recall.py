"""`gssf_plug.evaluation.instance_recall` as an `evaluate` module: batches and processes only append rows."""

from typing import Any

import datasets
import evaluate
import torch

from gssf_plug.evaluation import instance_recall

_DESCRIPTION = "Fine-grained retrieval of a set against itself: R@K, MAP@R and R-precision in %, exactly."

_INPUTS = """
One row per image:
    features: the feature vector.
    labels: its class.
Options of `compute`: `metric` (a GSSFMetric, default cosine), `ks` (default 1, 2, 4, 8).
"""

_CITATION = """
@inproceedings{musgrave2020metric, title={A metric learning reality check},
  author={Musgrave, Kevin and Belongie, Serge and Lim, Ser-Nam}, booktitle={ECCV}, year={2020}}
"""


class InstanceRecall(evaluate.Metric):
    """R@K, MAP@R and R-precision over rows gathered from batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "features": datasets.Sequence(datasets.Value("float32")),
            "labels": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
        )

    def _compute(self, features: Any, labels: Any, **options: Any) -> dict[str, float]:
        return instance_recall(torch.as_tensor(features), torch.as_tensor(labels), **options)
