"""Run by test_distributed.py in two processes: a process group is left again and again with a DDP module in hand.

`FOLDER 2 PORT`: the port that they meet at; the folder is not used.
"""

import faulthandler
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gssf_plug.distributed import hold_group


def enter_and_leave(store: dist.Store, rank: int) -> None:
    """The last collective is a broadcast, as that of `RetrievalTrainer.evaluate`; DDP is freed after the group."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    hold_group()
    module = DistributedDataParallel(nn.Linear(4, 4))
    module(torch.ones(2, 4)).sum().backward()
    dist.broadcast(torch.zeros(4), 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    process = int(os.environ["RANK"])
    meeting = dist.TCPStore("127.0.0.1", int(sys.argv[3]), 2, process == 0)
    for turn in range(30):
        faulthandler.dump_traceback_later(20, exit=True)
        enter_and_leave(dist.PrefixStore(str(turn), meeting), process)
        faulthandler.cancel_dump_traceback_later()
    print("both came to the end")
