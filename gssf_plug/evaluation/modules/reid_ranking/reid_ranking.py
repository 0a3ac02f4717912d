"""`gssf_plug.evaluation.reid_ranking` as an `evaluate` module: batches and processes only append rows."""

from typing import Any

import datasets
import evaluate
import torch

from gssf_plug.evaluation import reid_ranking

_DESCRIPTION = "Re-identification by the protocol of Market-1501: mAP, CMC (R@k) and mINP in %, exactly."

_INPUTS = """
One row per image, queries and gallery mixed in any order:
    features: the feature vector.
    identities: identity of the image; -1 in the gallery is junk.
    cameras: its camera.
    queries: True for a query, False for a gallery image.
Options of `compute`: `metric` (a GSSFMetric, default cosine), `ranks` (default 1, 5, 10), `rerank`.
"""

_CITATION = """
@inproceedings{zheng2015scalable, title={Scalable person re-identification: A benchmark},
  author={Zheng, Liang and Shen, Liyue and Tian, Lu and Wang, Shengjin and Wang, Jingdong and Tian, Qi},
  booktitle={ICCV}, year={2015}}
"""


class ReidRanking(evaluate.Metric):
    """mAP, CMC and mINP over rows gathered from batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "features": datasets.Sequence(datasets.Value("float32")),
            "identities": datasets.Value("int64"),
            "cameras": datasets.Value("int64"),
            "queries": datasets.Value("bool"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
        )

    def _compute(self, features: Any, identities: Any, cameras: Any, queries: Any, **options: Any) -> dict[str, float]:
        features, identities, cameras = (torch.as_tensor(x) for x in (features, identities, cameras))
        query = torch.as_tensor(queries).bool()
        sides = [(x[query], x[~query]) for x in (features, identities, cameras)]
        return reid_ranking(*sides[0], *sides[1], *sides[2], **options)
