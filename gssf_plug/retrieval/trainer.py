"""RetrievalTrainer: the loop, with evaluation, checkpoints and resume, on Accelerate.

    for every batch:   embed → gather over processes → score all pairs → loss → clip → step

Promises. A run killed at any moment, also while it writes, goes on with `train(resume=True)` from its last checkpoint,
and on CPU ends in the very bits of an unbroken run. SIGTERM finishes the step, writes a checkpoint and ends the process
with code 143. The batches of a run do not depend on the number of processes. The library's own models, losses,
metrics and samplers keep this; a data set with hidden state of its own cannot.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from gssf_plug.errors import ArgumentError
from gssf_plug.files import CardFacts
from gssf_plug.retrieval.data.batches import BatchReader, BatchSampler, ReadBatch, ordered_batches
from gssf_plug.retrieval.data.digest import describe_rows
from gssf_plug.retrieval.data.feeds import Collate, PlannedFeed, check_map_style, make_feed
from gssf_plug.retrieval.data.images import Rows
from gssf_plug.retrieval.evaluation import (
    Evaluation,
    checked_measures,
    document_measures,
    embed_rows,
    image_text_measures,
)
from gssf_plug.retrieval.models.two_tower import Embedding, RetrievalModel
from gssf_plug.retrieval.options import check_parts
from gssf_plug.retrieval.plots import draw_run
from gssf_plug.retrieval.training.accelerator import check_accelerator, make_accelerator, prepare
from gssf_plug.retrieval.training.best_weights import BestWeights
from gssf_plug.retrieval.training.checkpoints import Checkpoints, check_folder, make_folder
from gssf_plug.retrieval.training.config import RetrievalConfig
from gssf_plug.retrieval.training.gradcache import check_chunks
from gssf_plug.retrieval.training.optimizer import rate_factor, set_rates, take_step
from gssf_plug.retrieval.training.progress import EXIT_CODE, Interruption, NotFiniteError, Progress
from gssf_plug.retrieval.training.recipe import check_recipe, describe_module
from gssf_plug.retrieval.training.run_log import Reports

__all__ = ["RetrievalTrainer"]

logger = logging.getLogger(__name__)


class RetrievalTrainer:
    """Trains a retrieval model.

    Args:
        model: a `TwoTower`, `OneTower`, or any `RetrievalModel`.
        loss: loss on a score matrix or on embeddings, see `gssf_plug.losses`; its parameters are trained, too.
        config: recipe of the run.
        train_data: map-style data set: a `datasets.Dataset`, a list of dicts, a torch Dataset, `ImageRows`, …; or a
            stream, such as a `datasets.IterableDataset`, with `config.max_steps`. Every process reads a stream whole
            and keeps its part of each batch.
        collate: function that makes of a list of rows a batch with the keys that `model` reads.
        eval_data: map-style data set to evaluate on; None (default) trains without evaluation.
        eval_gallery: map-style data set of documents: every row of `eval_data` is a query that ranks all of them, and
            relevant are those of its id. `eval_collate` then makes batches of their "items" and "item_ids" alone. None
            (default) ranks the rows of `eval_data` among themselves.
        eval_collate: collate function of the evaluation; None (default) takes `collate`.
        batches: batch sampler with `set_epoch`, the same on every process; None (default) takes `RandomBatches`.
        evaluation: function `(embedding, metric) -> measures`; None (default) takes `image_text_measures`, or
            `document_measures()` where there is an `eval_gallery`.
        accelerator: accelerator to run on; None (default) makes one from `config`.

    Raises:
        ArgumentError: the parts do not fit together.

    Example:
        >>> import tempfile, torch; from gssf_plug import GSSFMetric
        >>> from gssf_plug.losses import InfoNCE
        >>> from gssf_plug.retrieval import TwoTower
        >>> rows = [{"image": x, "text": x.roll(1), "id": torch.tensor(i)} for i, x in enumerate(torch.randn(64, 8))]
        >>> def collate(rows):
        ...     image, text, ids = (torch.stack([row[key] for row in rows]) for key in ("image", "text", "id"))
        ...     return {"images": image, "image_ids": ids, "texts": text, "text_ids": ids}
        >>> trainer = RetrievalTrainer(
        ...     model=TwoTower(None, None, GSSFMetric(8, block_size=8)),  # features as they are, a metric to learn
        ...     loss=InfoNCE(),
        ...     config=RetrievalConfig(output_dir=tempfile.mkdtemp(), batch_size=16, metric_learning_rate=0.1),
        ...     train_data=rows,
        ...     eval_data=rows,
        ...     collate=collate,
        ... )
        >>> before = trainer.evaluate()["rsum"]
        >>> trainer.train(resume=True).best_score > before + 100
        True
    """

    def __init__(
        self,
        *,
        model: RetrievalModel,
        loss: nn.Module,
        config: RetrievalConfig,
        train_data: Rows,
        collate: Collate,
        eval_data: Rows | None = None,
        eval_gallery: Rows | None = None,
        eval_collate: Collate | None = None,
        batches: BatchSampler | None = None,
        evaluation: Evaluation | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        check_parts(model, loss, config, collate, eval_collate, evaluation, (eval_data, eval_gallery))
        self.config = config
        self.model = model
        self.train_data, self.collate = train_data, collate
        self.eval_data, self.eval_gallery, self.eval_collate = eval_data, eval_gallery, eval_collate or collate
        self.evaluation = evaluation or (image_text_measures if eval_gallery is None else document_measures())
        self.folder = Path(config.output_dir)
        check_folder(self.folder)
        self.accelerator = make_accelerator(config) if accelerator is None else accelerator
        check_accelerator(self.accelerator, config)
        check_chunks(model, self.accelerator, config.chunk_size)
        self.feed = make_feed(
            train_data,
            collate,
            batches,
            batch_size=config.batch_size,
            max_steps=config.max_steps,
            workers=config.num_workers,
            **self._reading(),
        )
        self.batches = getattr(self.feed, "batches", None)  # None where the rows are a stream
        self.steps = config.max_steps or config.epochs * -(-self.feed.length // config.accumulation)
        self._made_of = {"model": describe_module(model), "loss": describe_module(loss)}  # FSDP2 changes classes
        self.objective, self.optimizer, self.weights = prepare(model, loss, config, self.accelerator)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.keep_checkpoints)
        self.reports = Reports(self.folder, self.accelerator, config)
        self.best = BestWeights(self.folder / "best.safetensors", config.best)
        self.progress = Progress()

    def train(self, *, resume: bool | Literal["anyway"] = False) -> Progress:
        """Train to the last step; weights, optimizer and generators are then those of it.

        Args:
            resume: False (default) starts anew. True goes on from the last checkpoint in `output_dir`, or starts where
                there is none; "anyway" does so with another recipe, model, loss or data, too, and warns of each
                difference.

        Returns:
            Where the run is: steps, best score, what was skipped. `load_best` reads the best weights.

        Raises:
            ArgumentError: `resume=False` meets a folder with checkpoints; `resume=True` meets another recipe, model,
                loss or data, of which every difference is named; or a batch sampler gives not as many batches as it
                says.
            CheckpointError: a checkpoint is damaged, of another model or loss, or cannot be written.
            DataError: the data set raises at a row, which is named.
            NotFiniteError: a loss or gradient is NaN or infinite, with `on_nan="stop"`.
            UnreadableError: a row cannot be read, with `on_unreadable="raise"`.
            SystemExit: SIGTERM came; the code is 143.
        """
        self._begin(resume)
        with Interruption() as interruption, self.reports.bar(self.steps, self.progress):
            while not self._done():
                self.objective.train()
                before = self.progress.step
                for group in self._groups_of_epoch():
                    loss = self._optimize(group)
                    self._record()
                    self.reports.step(loss, self.progress)
                    self._save_if_due(interruption.requested(self.accelerator.device))
                    if self._done():
                        break
                assert self.progress.step > before, "an epoch without a step would be repeated for ever"
        self.reports.finish()
        if self.config.plot and self.accelerator.is_main_process:
            draw_run(self.folder, measure=self.config.best)
        return self.progress

    def embed(self, data: Rows) -> Embedding:
        """Features and ids of all rows, in order, on every process; what cannot be read is missing, if skipped."""
        check_map_style("data", data)
        accelerator, config = self.accelerator, self.config
        plan = ordered_batches(len(data), config.eval_batch_size, accelerator.num_processes)
        reader = BatchReader(data, self.eval_collate, plan, **self._reading())
        embedding, unreadable = embed_rows(
            self.weights, reader, accelerator, workers=config.num_workers, progress=self.reports.shows
        )
        _warn_unreadable(unreadable)
        return embedding

    def evaluate(self, data: Rows | None = None, *, evaluation: Evaluation | None = None) -> dict[str, float]:
        """Measures of the present weights.

        Args:
            data: data set to evaluate on; None (default) takes `eval_data`.
            evaluation: function of embedding and metric; None (default) takes the trainer's.

        Raises:
            ArgumentError: there is nothing to evaluate on, or the evaluation does not give numbers by name.
        """
        data = data if data is not None else self.eval_data
        if data is None:
            raise ArgumentError("data", "be given where the trainer has no eval_data", None, "Pass a data set.")
        embedding, metric = self.embed(data), self.model.metric
        if self.eval_gallery is not None:
            documents = self.embed(self.eval_gallery)
            embedding = embedding._replace(gallery=documents.gallery, gallery_ids=documents.gallery_ids)
        with self.weights.gathered():
            measures = [checked_measures((evaluation or self.evaluation)(embedding, metric))]
        broadcast_object_list(measures)  # processes that compared other measures would part at the best weights
        return measures[0]

    def load_best(self) -> None:
        """Put the best weights of the run into the model.

        Raises:
            CheckpointError: there are no best weights, or they are damaged.
        """
        self.weights.replace(self.best.load)

    def save_model(self, folder: str | os.PathLike[str], *, model_card_kwargs: CardFacts | None = None) -> None:
        """Write the model with its present weights as a folder that loads without the trainer; every process calls it.

        Args:
            folder: folder for `type(model).from_pretrained(folder)`. After `load_best()` it holds the best weights.
            model_card_kwargs: facts for the model card, as in `save_pretrained`.

        Raises:
            CheckpointError: the disk refuses.
        """
        plain = self.weights.plain_model()
        if plain is not None:
            plain.save_pretrained(folder, model_card_kwargs=model_card_kwargs)
        self.accelerator.wait_for_everyone()

    def _begin(self, resume: bool | Literal["anyway"]) -> None:
        """Restore the last checkpoint, or seed everything."""
        if not isinstance(resume, bool) and not (isinstance(resume, str) and resume == "anyway"):
            raise ArgumentError("resume", "be True, False or 'anyway'", repr(resume), "See RetrievalTrainer.train.")
        if self.accelerator.is_main_process:
            make_folder(self.folder)
            self.checkpoints.clean()
        self.accelerator.wait_for_everyone()
        latest = self.checkpoints.latest()
        if latest is not None and not resume:
            raise ArgumentError(
                "resume", f"be True, since '{latest}' exists", False, "Resume, delete it, or choose another output_dir."
            )
        self._made_of["data"] = describe_rows(self.train_data)
        if latest is None:
            self.progress = Progress()
            set_seed(self.config.seed, device_specific=True)
        else:
            self._restore(latest, anyway=resume == "anyway")
        self.reports.begin(self.progress)

    def _restore(self, latest: Path, *, anyway: bool) -> None:
        saved = self.checkpoints.describe(latest)
        check_recipe(saved["recipe"], self._recipe(), self.folder, anyway=anyway)
        self.checkpoints.load(self.accelerator, latest)
        if self.accelerator.is_main_process:
            self.checkpoints.prune()
        self.progress = Progress(**saved["progress"])
        if isinstance(self.feed, PlannedFeed) and self.progress.batch >= self.feed.length:  # its epoch was longer
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
        logger.info("resumed '%s' at step %d of %d", self.folder, self.progress.step, self.steps)

    def _reading(self) -> dict[str, Any]:
        """How every data set of the run is read."""
        return {
            "process": self.accelerator.process_index,
            "processes": self.accelerator.num_processes,
            "seed": self.config.seed,
            "skip_unreadable": self.config.on_unreadable == "skip",
        }

    def _recipe(self) -> dict[str, Any]:
        return {**self.config.changes_results(), **self.feed.describe(), **self._made_of}

    def _done(self) -> bool:
        """Whether the last step is taken, or patience is at its end."""
        patience = self.config.patience
        waited = patience is not None and self.progress.evaluations_since_best >= patience
        return waited or self.progress.step >= self.steps

    def _groups_of_epoch(self) -> Iterator[list[ReadBatch]]:
        """The batches of each optimizer step, from where the run is to the end of its epoch."""
        loaded = self.feed.epoch(self.progress.epoch, start=self.progress.batch)
        while group := list(islice(loaded, self.config.accumulation)):
            yield group

    def _optimize(self, group: list[ReadBatch]) -> float | None:
        """One optimizer step, on the mean loss of the batches of `group`, which is returned; None if it is skipped."""
        progress, config = self.progress, self.config
        for read in group:
            _warn_unreadable(read.unreadable)
            progress.unreadable_rows += len(read.unreadable)
        factor = rate_factor(progress.step, self.steps, config)
        set_rates(self.optimizer, factor, frozen=progress.epoch < config.frozen_encoder_epochs)
        batches = [read.batch for read in group]
        outcome = take_step(self.objective, self.optimizer, self.accelerator, batches, config)
        if outcome.failure:
            self._pass_over(outcome.failure)
        else:
            progress.loss_sum += sum(outcome.losses)
            progress.loss_count += len(outcome.losses)
        progress.advance(len(group), epoch_ended=group[-1].last)
        return None if outcome.failure else sum(outcome.losses) / len(outcome.losses)

    def _pass_over(self, failure: str) -> None:
        """Stop or go on, as the recipe says."""
        if self.config.on_nan == "stop":
            raise NotFiniteError(f"{failure} in {self.progress.next_step()}")
        logger.warning("%s in %s; the step is skipped", failure, self.progress.next_step())
        self.progress.skipped_steps += 1

    def _record(self) -> None:
        """Log and evaluate where they are due."""
        progress = self.progress
        done = self._done()
        if done or progress.step % self.config.log_every == 0:
            self.reports.train(progress, self.optimizer)
        if self.eval_data is not None and (done or self._due(self.config.eval_every)):
            measures = self.evaluate()
            self.reports.write("eval", measures, progress)
            if self.best.improved(measures, progress):
                self.best.write(self.weights.plain_model())
            self.reports.evaluation(measures, progress)

    def _save_if_due(self, stop: bool) -> None:
        done = self._done()
        if done or stop or self._due(self.config.checkpoint_every):
            self.reports.tick(self.progress)
            state = {"progress": asdict(self.progress), "recipe": self._recipe()}
            self.checkpoints.write(self.accelerator, self.progress.step, state)
        if stop and not done:
            logger.warning("SIGTERM: stopped after step %d; resume with train(resume=True)", self.progress.step)
            self.accelerator.end_training()  # one that exits inside its process group may abort, with another code
            raise SystemExit(EXIT_CODE)

    def _due(self, every: int | None) -> bool:
        return self.progress.batch == 0 if every is None else self.progress.step % every == 0


def _warn_unreadable(unreadable: list[str]) -> None:
    for text in unreadable:
        logger.warning("skipped: %s", text)
