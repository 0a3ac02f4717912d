"""The promises that all batch samplers share, one class each."""

import torch
from contracts.batch_sampler import ROWS, BatchSamplerContract

from gssf_plug.retrieval import IdentityBatches, LengthBatches, RandomBatches
from gssf_plug.retrieval.data.samplers import ProcessPart

LABELS = torch.arange(13).repeat_interleave(4)[torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))]
LENGTHS = torch.randint(4, 60, (ROWS,), generator=torch.Generator().manual_seed(0))


class TestRandomBatches(BatchSamplerContract):
    def make(self, *, seed=0):
        return RandomBatches(ROWS, 9, seed=seed)


class TestIdentityBatches(BatchSamplerContract):
    def make(self, *, seed=0):
        return IdentityBatches(LABELS, identities=4, images=2, seed=seed)


class TestLengthBatches(BatchSamplerContract):
    def make(self, *, seed=0):
        return LengthBatches(LENGTHS, 9, pool=3, seed=seed)


class TestProcessPart(BatchSamplerContract):
    """What one of two processes reads of batches of whole identities."""

    def make(self, *, seed=0):
        return ProcessPart(IdentityBatches(LABELS, identities=4, images=2, seed=seed), process=1, processes=2)
