"""The most used architectures, tiny, on the device: neutral to the bit, alive when moved, merged = patched."""

import copy
import warnings

import torch
from tools.sweep import checks, find_calls
from tools.tiny import tiny_model

from device.record import Record
from gssf_plug.attention import patch_attention

MOST_USED = (
    "bert", "llama", "qwen2", "vit", "clip", "gpt2", "roberta", "t5", "mistral", "distilbert", "qwen3", "gemma3_text",
    "whisper", "deberta-v2", "bart", "phi3", "dinov2", "siglip", "electra", "albert", "mpnet", "modernbert", "mixtral",
    "qwen3_moe", "gemma2", "opt", "gpt_neox", "bloom", "falcon", "phi", "deit", "beit", "swin", "wav2vec2", "hubert",
    "detr", "blip", "marian", "xlm-roberta", "layoutlmv3",
)  # fmt: skip


def run(record: Record, device: torch.device, quick: bool) -> None:
    warnings.simplefilter("ignore")
    for model_type in MOST_USED[:3] if quick else MOST_USED:
        with record.step(model_type):
            torch.manual_seed(0)
            model = tiny_model(model_type).to(device)
            keys = set(model.state_dict())
            calls = find_calls(copy.deepcopy(model))
            patch = patch_attention(model, block_size=2)
            found = checks(model, patch, keys, calls)
            wrong = ", ".join(found.get("wrong", [])) or found.get("merge_refused", "")
            record.add(
                f"{model_type}: neutral, alive, gradients, merge, unmerge, remove",
                "passed" if found["status"] == "held" else "failed",
                found["status"], "held", wrong,
            )  # fmt: skip
