#!/usr/bin/env bash
# Found: SentenceTransformerTrainingArguments takes `train_sampling_strategy="group_by_length"`, keeps it, and trains as if it
# were not there: the trainer builds its batches by samplers of its own, and nothing is said. With sentences of 4 to 64 words
# transformers' own Trainer goes from 59.5% padding to 9%, sentence-transformers stays at 59.5%. Why it matters: whoever sets it to
# save time saves none, and a comparison of two trainers "with the same arguments" compares different work: at such lengths
# a factor of two. Seen with sentence-transformers 6.2.0 on transformers 5.24.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.*" "transformers==5.24.0" "sentence-transformers==6.2.0" "accelerate==1.15.0" "datasets==5.2.0" 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - 2> said <<'PY' || { tail -20 said; exit 1; }
import os; os.environ["TOKENIZERS_PARALLELISM"]="false"
import random, tempfile
from importlib.metadata import version
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

words = [f"w{n}" for n in range(50)]
vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: 2 + n for n, word in enumerate(words)}}
draw = random.Random(0)
texts = [" ".join(draw.choices(words, k=draw.choice([4, 8, 16, 32, 64]))) for _ in range(512)]
lengths = [len(text.split()) for text in texts]
options = dict(per_device_train_batch_size=16, report_to="none", use_cpu=True, disable_tqdm=True, seed=0)

def padded(batches):
    """Share of padding: what is left of (longest × rows) of each batch once the words are taken off."""
    batches = [list(batch) for batch in batches]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)

def with_transformers(strategy, folder):
    data = Dataset.from_dict({"input_ids": [[vocabulary[word] for word in text.split()] for text in texts]})
    model = BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    args = TrainingArguments(folder, train_sampling_strategy=strategy, remove_unused_columns=False, **options)
    loader = Trainer(model, args, train_dataset=data, data_collator=lambda rows: {"n": [len(row["input_ids"]) for row in rows]}).get_train_dataloader()
    return padded(batch["n"] for batch in loader)

def with_sentence_transformers(strategy, folder):
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")); tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    os.makedirs(f"{folder}/bert", exist_ok=True)
    BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(f"{folder}/bert")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=128).save_pretrained(f"{folder}/bert")
    model = SentenceTransformer(f"{folder}/bert", device="cpu")
    data = Dataset.from_dict({"anchor": texts, "positive": texts})
    args = SentenceTransformerTrainingArguments(folder, train_sampling_strategy=strategy, **options)
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=MultipleNegativesRankingLoss(model))
    assert args.train_sampling_strategy == strategy
    def counted(batch):
        return batch["anchor_attention_mask"].sum(1).tolist()
    return padded(counted(batch) for batch in trainer.get_train_dataloader())

with tempfile.TemporaryDirectory() as folder:
    found = {
        (tool.__name__, strategy): tool(strategy, folder)
        for tool in (with_transformers, with_sentence_transformers) for strategy in ("random", "group_by_length")
    }
print({name: version(name) for name in ("transformers", "sentence-transformers")})
for (tool, strategy), share in found.items():
    print(f"{tool}, {strategy}: {share:.1%} of the batches is padding")
assert found["with_transformers", "group_by_length"] < found["with_transformers", "random"] / 3, "transformers has changed"
theirs = [found["with_sentence_transformers", strategy] for strategy in ("random", "group_by_length")]
assert theirs[0] == theirs[1], "sentence-transformers has changed: it groups by length now"
PY
