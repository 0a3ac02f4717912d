"""`gssf_plug.evaluation.image_text_recall` as an `evaluate` module: batches and processes only append rows."""

from typing import Any

import datasets
import evaluate
import torch

from gssf_plug.errors import ArgumentError
from gssf_plug.evaluation import image_text_recall

_DESCRIPTION = "Image-text retrieval: R@1, 5, 10 in both directions, rSum and median ranks, exactly."

_INPUTS = """
One row per image and one per caption, mixed in any order:
    features: the feature vector.
    images: a number of the image that the row is, or belongs to. The images of a fold are consecutive in this number.
    texts: True for a caption, False for an image.
Options of `compute`: `metric` (a GSSFMetric, default cosine), `folds` (5 for COCO 1K).
"""

_CITATION = """
@inproceedings{faghri2018vse, title={VSE++: Improving visual-semantic embeddings with hard negatives},
  author={Faghri, Fartash and Fleet, David J and Kiros, Jamie Ryan and Fidler, Sanja}, booktitle={BMVC}, year={2018}}
"""


class ImageTextRecall(evaluate.Metric):
    """Recall, rSum and median ranks over rows gathered from batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "features": datasets.Sequence(datasets.Value("float32")),
            "images": datasets.Value("int64"),
            "texts": datasets.Value("bool"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
        )

    def _compute(self, features: Any, images: Any, texts: Any, **options: Any) -> dict[str, float]:
        features, images, text = torch.as_tensor(features), torch.as_tensor(images), torch.as_tensor(texts).bool()
        numbers, order = images[~text].sort()
        if len(numbers.unique()) < len(numbers):
            repeated = int(numbers[1:][numbers.diff() == 0][0])
            remedy = "Add each image once; a sampler that pads its last batch repeats rows (use gather_for_metrics)."
            raise ArgumentError("images", "hold every image once", f"image {repeated} more than once", remedy)
        place = torch.searchsorted(numbers, images[text]).clamp_max(max(0, len(numbers) - 1))
        if len(numbers) and not bool((numbers[place] == images[text]).all()):
            missing = int(images[text][numbers[place] != images[text]][0])
            raise ArgumentError(
                "images", "name an image that was added", f"{missing} of a caption", "Add its row of features too."
            )
        return image_text_recall(features[~text][order], features[text], place, **options)
