"""Train and measure a published retrieval setting, or its GSSF twin, on the usual downloads.

    python examples/train_retrieval.py vse_infinity_f30k_regions_bigru --data_dir data/f30k_precomp
    python examples/train_retrieval.py vse_infinity_f30k_regions_bigru_gssf --data_dir data/f30k_precomp
    python examples/train_retrieval.py bot_market1501 --data_dir data/Market-1501-v15.09.15 --dry-run
    accelerate launch examples/train_retrieval.py scan_f30k_t2i_avg --data_dir data/f30k_precomp --mixed_precision bf16

The first argument is a recipe of examples/recipes or a YAML file of your own; every key of it can be given anew as
--name value. --dry-run prints the plan: counts, parameters, steps, memory. Into output_dir go checkpoints (--resume
goes on with them), log.jsonl, the trained model, and results.json with the measures on the test split. Validation data,
where a recipe has them, choose the epoch; test data are measured once.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.data import RecipeData, load_data
from recipes.models import build_parts
from recipes.options import Recipe
from recipes.plan import render_plan
from recipes.reading import RECIPES, load_recipe

from gssf_plug.errors import GSSFError
from gssf_plug.retrieval import IdentityBatches, RandomBatches, RetrievalTrainer


def make_trainer(recipe: Recipe, data: RecipeData) -> RetrievalTrainer:
    """The parts of a recipe in a trainer."""
    config, images = recipe.training, recipe.loss.images_per_identity
    if images:
        identities = config.batch_size // images
        batches = IdentityBatches(data.labels, identities=identities, images=images, seed=config.seed, resample=True)
    else:
        batches = RandomBatches(len(data.train), config.batch_size, seed=config.seed)
    parts = build_parts(recipe, data, len(batches))
    held = data.validation
    return RetrievalTrainer(
        model=parts.model,
        loss=parts.loss,
        config=config,
        train_data=data.train,
        collate=parts.collate,
        eval_data=held.rows if held else None,
        eval_collate=parts.eval_collate,
        batches=batches,
        **({"evaluation": held.evaluation(parts.model)} if held else {}),
    )


def run(recipe: Recipe) -> Mapping[str, float]:
    """Train, choose the epoch on validation data where there are any, measure on test data, write results.json."""
    data = load_data(recipe)
    trainer = make_trainer(recipe, data)
    main = trainer.accelerator.is_main_process
    if recipe.run.dry_run:
        print(render_plan(recipe, data, trainer) if main else "", end="\n" if main else "")
        return {}
    skipped = 0
    if recipe.run.train:
        progress = trainer.train(resume=recipe.run.resume)
        skipped = progress.unreadable_rows
        if data.validation is not None:
            trainer.load_best()
    measures = {}
    if data.test is not None:
        measures = trainer.evaluate(data.test.rows, evaluation=data.test.evaluation(trainer.model))
    folder = Path(recipe.training.output_dir)
    trainer.save_model(folder / "model", model_card_kwargs={"data": recipe.data.dataset, "measures": measures})
    if main:
        results = {
            "recipe": recipe.name,
            "test": measures,
            "rows that could not be read": skipped,
            "processes": trainer.accelerator.num_processes,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        print("\n".join(f"{name:16} {value:8.2f}" for name, value in measures.items()))
        if skipped:
            print(f"{skipped} rows could not be read and were left out; each is named above and in the log.")
    trainer.accelerator.end_training()
    return measures


def main(arguments: Sequence[str]) -> int:
    """Command line; 2 where the recipe or its data are wrong."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        print("Recipes:", ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))))
        return 0 if "--help" in arguments or "-h" in arguments else 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        run(load_recipe(arguments[0], arguments[1:]))
    except GSSFError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; checkpoints are kept. The same with --resume goes on from the last one.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
