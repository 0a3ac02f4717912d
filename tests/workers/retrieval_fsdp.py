"""Run by test_fsdp.py: RetrievalTrainer under Accelerate's FSDP2, on CPU processes.

Accelerate shards on several GPUs only: on CPUs it ignores FSDP. Its own code for it runs on CPUs too, so the state that
it would have after `accelerate launch --config_file examples/accelerate/fsdp2.yaml` is set here by hand; everything
after that is Accelerate's and ours.
"""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from retrieval import toy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertModel

from gssf_plug import GSSFMetric
from gssf_plug.losses import Hinge
from gssf_plug.retrieval import OneTower, Tower, TwoTower

CONFIGURATION = Path(__file__).parents[2] / "examples" / "accelerate" / "fsdp2.yaml"
FOLDERS = {"resumed_by_another": "sharded_states"}


def rows(count: int = toy.ROWS, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Toy rows whose texts are token numbers, one a feature."""
    return [{**row, "text": (row["text"].clamp(-2, 2) * 4 + 10).long()} for row in toy.rows(count, seed)]


def model() -> TwoTower:
    torch.manual_seed(3)
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 8}
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, **options
    )
    text = Tower(BertModel(config, add_pooling_layer=False), projection=nn.Linear(8, 8))
    image = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8))
    return toy.perturbed(TwoTower(image, text, GSSFMetric(8, block_size=4)))


def trainer(folder: Path, **changes: object):
    """No dropout, no augmentation: those differ between processes by design."""
    epochs = {"epochs": 3, "eval_batch_size": 7, "checkpoint_every": 2, "learning_rate": 2e-3}
    parts = {"model": model(), "loss": Hinge(warmup_steps=3, learned_scale=True), "collate": toy.collate}
    data = {"train_data": rows(), "eval_data": rows(20, seed=2)}
    return toy.trainer(folder, changes={**epochs, **changes}, **parts, **data)


def shard(precision: str = "no", **options: str) -> Accelerator:
    """Accelerate as fsdp2.yaml makes it on GPUs, read from the environment as its launcher passes it."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    assert configuration["distributed_type"] == "FSDP"
    for name, value in {**configuration["fsdp_config"], **options}.items():
        os.environ[name.upper()] = str(value)
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    plugin = FullyShardedDataParallelPlugin()
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator


def embedded(made) -> list[torch.Tensor]:
    return [side.clone() for side in made.embed(made.eval_data)]


def is_sharded(made, blocks: int) -> None:
    assert all(isinstance(parameter, DTensor) for parameter in made.objective.parameters())
    units = [module for module in made.objective.modules() if isinstance(module, FSDPModule)]
    assert len(units) == 1 + blocks, len(units)


def whole_states(folder: Path) -> dict[str, object]:
    """Blocks sharded one by one, full state dicts: train, lose the last checkpoint, resume, best weights, publish."""
    shard()
    made = trainer(folder / "run")
    is_sharded(made, blocks=3)  # two layers and the embeddings
    before = made.evaluate()
    progress = made.train()
    found = {"before": before, "after": made.evaluate(), "features": embedded(made), "step": progress.step}
    made.save_model(folder / "last")
    if made.accelerator.is_main_process:
        shutil.rmtree(max((folder / "run" / "checkpoints").iterdir()))
    made.accelerator.wait_for_everyone()
    shard()
    resumed = trainer(folder / "run")
    resumed.train(resume=True)
    found["resumed"] = embedded(resumed)
    shard()
    best = trainer(folder / "run")
    best.load_best()
    found["best"] = best.evaluate()["rsum"], progress.best_score
    best.save_model(folder / "best")
    return found


def sharded_states(folder: Path) -> dict[str, object]:
    """One unit, states in parts, batches in chunks; the last checkpoint is taken away, for another to go on."""
    shard(fsdp_auto_wrap_policy="NO_WRAP", fsdp_state_dict_type="SHARDED_STATE_DICT")
    made = trainer(folder / "run", chunk_size=3)
    is_sharded(made, blocks=0)
    made.train()
    features = embedded(made)
    if made.accelerator.is_main_process:
        shutil.rmtree(max((folder / "run" / "checkpoints").iterdir()))
    made.accelerator.wait_for_everyone()
    return {"features": features}


def resumed_by_another(folder: Path) -> dict[str, object]:
    """What `sharded_states` left, by as many processes as there are now."""
    shard(fsdp_auto_wrap_policy="NO_WRAP", fsdp_state_dict_type="SHARDED_STATE_DICT")
    made = trainer(folder / "run", chunk_size=3)
    made.train(resume=True)
    return {"features": embedded(made), "step": made.progress.step}


def mixed_precision(folder: Path) -> dict[str, object]:
    """Encoders in bfloat16 by autocast; metric and loss stay in float32."""
    shard("bf16")
    made = trainer(folder / "run", mixed_precision="bf16", epochs=1)
    seen = set()
    made.model.metric.register_forward_hook(
        lambda metric, given, scores: seen.add((given[0].dtype, scores.dtype, next(metric.parameters()).dtype))
    )
    made.model.text_tower.projection.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    made.train()
    return {"dtypes": seen, "features": embedded(made)}


def one_tower(folder: Path) -> dict[str, object]:
    """Items compared with one another, in chunks: never with themselves."""
    features = {}
    for name, chunk_size in (("direct", None), ("chunks", 2)):
        shard()
        torch.manual_seed(3)
        model = OneTower(nn.Linear(10, 8), GSSFMetric(8, block_size=4, constraint="symmetric"))
        data, parts = toy.Labelled(), {"collate": toy.collate_labelled, "eval_collate": toy.collate_labelled}
        changes = {"chunk_size": chunk_size, "epochs": 2, "batch_size": 8}
        made = toy.trainer(
            folder / name, changes=changes, model=toy.perturbed(model), train_data=data, eval_data=None, **parts
        )
        made.train()
        features[name] = made.embed(data).queries.clone()
    return features


def main(folder: Path, processes: int, *names: str) -> None:
    if processes == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == dist.get_world_size() == processes
    found = {name: globals()[name](folder / FOLDERS.get(name, name)) for name in names}
    if accelerator.is_main_process:
        torch.save({"processes": processes, **found}, folder / f"got{processes}.pt")
        print(json.dumps({"processes": processes}))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="No device id is provided via `init_process_group` or `barrier")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    PartialState().destroy_process_group()
