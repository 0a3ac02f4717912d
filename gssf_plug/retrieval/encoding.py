"""A whole data set through a model: features and ids of all rows, in order, on every process."""

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from tqdm import tqdm

from gssf_plug.retrieval.batches import BatchReader, load_batches
from gssf_plug.retrieval.embedding import Embedding, gather_embedding, join_embeddings
from gssf_plug.retrieval.placement import WholeWeights

__all__ = ["embed_rows"]


@torch.no_grad()
def embed_rows(
    weights: WholeWeights, reader: BatchReader, accelerator: Accelerator, *, workers: int = 0, progress: bool = False
) -> tuple[Embedding, list[str]]:
    """Encode every batch of `reader` in evaluation mode.

    Args:
        weights: whose model is left in the mode it was in.
        reader: reads this process's part of each batch.
        accelerator: device and mixed precision.
        workers: processes that read ahead.
        progress: show a bar.

    Returns:
        The embedding of all rows that could be read, in their order, and a text for each row of this process's part
        that could not.
    """
    model, parts, unreadable = weights.model, [], []
    training = model.training
    model.eval()
    batches = load_batches(reader, workers=workers)
    for read in tqdm(
        batches, total=len(reader), disable=not progress, leave=False, delay=3, unit="batch", desc="encoding"
    ):
        unreadable += read.unreadable
        with accelerator.autocast():
            own = weights.encode(send_to_device(read.batch, accelerator.device))
        parts.append(gather_embedding(own))
    model.train(training)
    return join_embeddings(parts), unreadable
