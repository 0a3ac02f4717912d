"""What every teacher of a `Distiller` must hold, inherited by one test class per source of features.

A subclass makes its teacher out of a plain model, and a batch of it. The slow reference runs that model in float64 on
one example after the other, without padding, and looks its features up where the model itself returns them.
"""

from typing import Any

import pytest
import torch
from distillation.models import bert
from torch import Tensor, nn

from gssf_plug.distillation import Distiller, Tap
from gssf_plug.distillation.teacher import Teacher
from gssf_plug.errors import ArgumentError
from gssf_plug.features import mean_pool

CPU = torch.device("cpu")
LENGTHS = (6, 2, 4, 3, 5)
TAPS = {
    "tokens": Tap("encoder.layer.2"),
    "first": Tap("encoder.layer.0", token=0),
    "mean": Tap("", pooling=mean_pool),
}


def examples() -> list[dict[str, list[int]]]:
    """Five sentences of different lengths, as rows of a data set."""
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(1, 50, (n,), generator=generator).tolist()} for n in LENGTHS]


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows as a collator makes it; whatever else a row holds becomes a column of numbers."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row["input_ids"]) for row in rows])[:, None]
    others = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
    return {"input_ids": ids, "attention_mask": mask.long(), **others}


class TeacherContract:
    kind: type

    @pytest.fixture
    def teacher(self, tmp_path: Any) -> Teacher:
        """The features of `model()` over `examples()`, by all of TAPS."""
        raise NotImplementedError

    def batch(self, teacher: Teacher, rows: list[int]) -> dict[str, Tensor]:
        """The examples of these numbers, with whatever column the teacher looks for."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        return bert(24, 4, seed=2).eval()

    def reference(self, row: int) -> dict[str, Tensor]:
        """The features of one example alone, in float64, from what the model returns."""
        ids = torch.tensor([examples()[row]["input_ids"]])
        with torch.no_grad():
            states = self.model().double()(ids, output_hidden_states=True).hidden_states
        return {"tokens": states[3][0], "first": states[1][0, 0], "mean": states[4][0].mean(0)}

    def read(self, teacher: Teacher, rows: list[int]) -> dict[str, Any]:
        return teacher.features(self.batch(teacher, rows), CPU)

    def test_it_is_what_the_suite_says(self, teacher: Teacher) -> None:
        assert type(teacher) is self.kind

    def test_features_are_those_of_each_example_alone(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        rows = [3, 0, 4, 1]
        found = self.read(teacher, rows)
        for number, row in enumerate(rows):
            expected = self.reference(row)
            tokens = found["tokens"].tensor[number][found["tokens"].mask[number]]
            torch.testing.assert_close(tokens.double(), expected["tokens"], rtol=1e-4, atol=1e-5)
            for name in ("first", "mean"):
                torch.testing.assert_close(
                    found[name].tensor[number].double(), expected[name], rtol=1e-4, atol=1e-5
                )  # fmt: skip

    def test_tokens_have_a_mask_and_vectors_have_none(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        found = self.read(teacher, [1, 2])
        assert found["tokens"].tensor.shape == (2, 4, 24)
        assert found["tokens"].mask.dtype == torch.bool
        assert found["tokens"].mask.sum(1).tolist() == [LENGTHS[1], LENGTHS[2]]
        assert found["first"].tensor.shape == found["mean"].tensor.shape == (2, 24)
        assert found["first"].mask is None
        assert found["mean"].mask is None

    def test_no_gradient_reaches_it(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        with torch.enable_grad():
            found = self.read(teacher, [0, 1])
        assert not any(feature.tensor.requires_grad for feature in found.values())

    def test_reading_twice_gives_the_same_and_draws_nothing(self, teacher: Teacher) -> None:
        """Dropout stays off and the global generator stays where it is, also behind the first forward."""
        teacher.watch(TAPS)
        state = torch.get_rng_state()
        first, second, third = (self.read(teacher, [2, 0, 1]) for _ in range(3))
        assert torch.equal(torch.get_rng_state(), state)
        for name, feature in first.items():
            assert torch.equal(feature.tensor, second[name].tensor)
            assert torch.equal(feature.tensor, third[name].tensor)

    def test_the_order_of_the_batch_is_the_order_of_the_features(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        forth, back = self.read(teacher, [0, 1, 2]), self.read(teacher, [2, 1, 0])
        for name in TAPS:
            torch.testing.assert_close(forth[name].tensor.flip(0), back[name].tensor)

    def test_it_says_which_columns_it_needs(self, teacher: Teacher) -> None:
        """Those alone suffice, and come in the order in which they are offered."""
        teacher.watch(TAPS)
        batch = self.batch(teacher, [0, 3])
        offered = ["something_else", *reversed(batch)]
        columns = teacher.columns(offered)
        assert columns
        assert "something_else" not in columns
        assert columns == [name for name in offered if name in columns]
        whole, alone = (teacher.features(given, CPU) for given in (batch, {name: batch[name] for name in columns}))
        for name in TAPS:
            assert torch.equal(whole[name].tensor, alone[name].tensor)

    def test_a_batch_without_its_columns_is_named(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        with pytest.raises(ArgumentError):
            teacher.features({"something_else": torch.zeros(2)}, CPU)

    def test_an_empty_batch_is_named(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        batch = {name: column[:0] for name, column in self.batch(teacher, [0, 1]).items()}
        with pytest.raises(ArgumentError, match="`batch` must hold at least one example"):
            teacher.features(batch, CPU)

    def test_what_is_watched_last_is_what_it_reads(self, teacher: Teacher) -> None:
        teacher.watch(TAPS)
        teacher.watch({"alone": TAPS["mean"]})
        assert set(self.read(teacher, [0])) == {"alone"}

    def test_two_distillers_read_their_own_features_from_it(self, teacher: Teacher) -> None:
        batch = self.batch(teacher, [0, 1, 2])
        pairs = [{"encoder.layer.1": f"encoder.layer.{layer}"} for layer in (2, 1)]
        low, high = (Distiller(bert(seed=1), teacher, pair, "mse") for pair in pairs)
        for distiller in (low, high):
            distiller.plan(batch)
        found = [one.teacher.features(batch, CPU)["encoder.layer.1"].tensor for one in (low, high, low, high)]
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])
        assert not torch.allclose(found[0], found[1], atol=1e-2)

    def test_paths_that_a_rule_may_choose_are_found(self, teacher: Teacher) -> None:
        paths = teacher.layers()
        assert len(paths) > 1
        assert all(teacher.find(path) == [path] for path in paths)

    def test_a_feature_that_is_not_there_is_named(self, teacher: Teacher) -> None:
        with pytest.raises(ArgumentError, match=r"encoder\.layer\.9"):
            teacher.watch({"missing": Tap("encoder.layer.9")})

    def test_a_student_learns_from_it(self, teacher: Teacher) -> None:
        distiller = Distiller(bert(seed=1), teacher, {"encoder.layer.1": "encoder.layer.2"}, "gssf")
        batch = self.batch(teacher, [0, 1, 2, 3])
        distiller.plan(batch)
        distiller(batch)["loss"].backward()
        gradient = distiller.student.encoder.layer[0].output.dense.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
