"""Draw the pictures of the documentation again, from the root of a clone.

    python docs/figures.py          # those that take seconds, from bundled data and models: the functions below
    python docs/figures.py --all    # every one: hours of training on two cores, by the examples in BY_EXAMPLES

An example draws its pictures beside its table, so picture and numbers are of one run; here they are only put in place.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "examples"))

from data.emoji import load_emoji  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from shared.pretrained import load_text_encoder  # noqa: E402

from gssf_plug import GSSFMetric  # noqa: E402
from gssf_plug.distillation import Distiller, Tap  # noqa: E402
from gssf_plug.distillation.losses import Cosine, Relation  # noqa: E402
from gssf_plug.distillation.plots import plot_similarities  # noqa: E402
from gssf_plug.features import mean_pool  # noqa: E402
from gssf_plug.retrieval.plots import plot_structures  # noqa: E402

# The command, with {out} for a folder to write to -> the pictures in that folder, and their places in docs/
BY_EXAMPLES = {
    "examples/adapt_embeddings.py --out {out}": {"retrieved.png": "images/keywords.png"},
    "-m studies.three_tasks --output {out}": {
        "gains_frozen.png": "images/gains_frozen.png",
        "gains_scratch.png": "images/gains_scratch.png",
    },
    "-m studies.data_size --output {out}": {
        "data_size_text.png": "images/data_size_text.png",
        "data_size_re-id.png": "images/data_size_re-id.png",
    },
    "examples/image_text_retrieval.py --output {out}": {
        "retrieved.png": "images/retrieved.png",
        "learned.png": "images/learned.png",
        "training.png": "images/training.png",
    },
    "examples/re_identification.py --output {out}": {
        "ranked.png": "_static/reid_ranked.png",
        "cmc.png": "_static/reid_cmc.png",
    },
    "examples/fine_grained_retrieval.py --output {out}": {"ranked.png": "_static/fine_grained_ranked.png"},
    "examples/patch_decoder.py --out {out}": {  # after examples/data/build_smollm2.py
        "GSSF_B-Diag_8_in_the_score_heads.png": "images/decoder_heads.png",
        "GSSF_B-Diag_8_in_the_score_maps.png": "images/decoder_maps.png",
    },
    "tests/benchmarks/growth.py --figure {out}/growth.png": {"growth.png": "_static/growth.png"},
}
SUBGROUPS = (
    "animal-mammal", "animal-marine", "food-fruit", "food-vegetable", "drink", "transport-ground", "clothing", "office",
    "sport", "sky-weather",
)  # fmt: skip


def structures() -> dict[str, Figure]:
    """U of each structure at 32 channels."""
    shown = {
        "Diag": GSSFMetric(32, terms=("diagonal",)),
        "B-Diag 8": GSSFMetric(32, terms=("block_diagonal",), block_size=8),
        "B-Diag 8, grouped": GSSFMetric(32, terms=("block_diagonal",), block_size=8, grouping=torch.randperm(32)),
        "dense": GSSFMetric(32, terms=("dense",)),
    }
    return {"structures": plot_structures(shown, title="U: which entries of W are learned")}


def similarities(epochs: int = 3) -> dict[str, Figure]:
    """MiniLM and its first two layers, before and after a minute of distillation, on names that are not trained on."""
    tokenizer, teacher = load_text_encoder()
    _, student = load_text_encoder()
    student.encoder.layer = student.encoder.layer[:2]
    student.embeddings.requires_grad_(False)

    def batch_of(texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(texts, padding=True, return_tensors="pt"))

    @torch.no_grad()
    def draw(title: str) -> Figure:
        batch = batch_of([name for name, _ in shown])
        ours, theirs = (mean_pool(m(**batch).last_hidden_state, batch["attention_mask"]) for m in (student, teacher))
        return plot_similarities(ours, theirs, groups=[group for _, group in shown], title=title)

    shown = names_of("test")
    before = draw("The first 2 layers of MiniLM beside all 6")
    sentence = Tap("", pooling=mean_pool)
    losses = [Cosine(), Relation(GSSFMetric(384).requires_grad_(False), temperature=0.1)]
    distiller = Distiller(student, teacher, [(sentence, sentence)], losses, [1.0, 0.1])
    texts = sorted(set(load_emoji("train", "noto")["name"]))
    distiller.plan(batch_of(texts[:2]))
    optimizer = torch.optim.AdamW(student.encoder.parameters(), lr=3e-4)
    for _ in range(epochs):
        for rows in torch.randperm(len(texts)).split(64):
            loss = distiller(batch_of([texts[row] for row in rows]))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"similarities_before": before, "similarities_after": draw("The same after a minute of distillation")}


def names_of(split: str) -> list[tuple[str, str]]:
    """Names of emoji and their subgroups, a few of each."""
    rows = load_emoji(split, "noto").select_columns(["name", "subgroup"]).to_list()
    return [pair for group in SUBGROUPS for pair in [(r["name"], group) for r in rows if r["subgroup"] == group][:8]]


def by_example(command: str, pictures: dict[str, str]) -> None:
    """Run an example, and put what it drew into place."""
    with tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples")}
        subprocess.run([sys.executable, *command.format(out=out).split()], check=True, cwd=ROOT, env=environment)
        for drawn, place in pictures.items():
            shutil.copy(Path(out) / drawn, DOCS / place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="those of the examples, too")
    parser.add_argument("--folder", type=Path, default=DOCS / "images", help="for the pictures that take seconds")
    options = parser.parse_args()
    torch.manual_seed(0)
    for draw in (structures, similarities):
        for name, figure in draw().items():
            figure.savefig(options.folder / f"{name}.png", dpi=110)
    for command, pictures in BY_EXAMPLES.items() if options.all else ():
        by_example(command, pictures)


if __name__ == "__main__":
    main()
