"""The command that runs transformers' own tests bare and patched, on a tree with one file of three tests."""

import json
from pathlib import Path

from tools.coverage import suite_section
from workers.launching import run

TOOL = Path(__file__).with_name("transformers_suite.py")
TESTS = """
import unittest
from transformers import BertConfig, BertModel

CONFIG = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


class ThingModelTest(unittest.TestCase):
    def test_runs(self):
        ids = BertModel(CONFIG).dummy_inputs["input_ids"]
        self.assertEqual(BertModel(CONFIG).eval()(ids).last_hidden_state.shape[-1], 16)

    def test_model_weights_reload_no_missing_tied_weights(self):
        for part in range(2):
            with self.subTest(part=part):
                self.assertFalse([name for name, _ in BertModel(CONFIG).named_parameters() if "gssf" in name])

    def test_strange(self):
        self.assertFalse("gssf" in str(BertModel(CONFIG)))

    def test_generate_with_quant_cache(self):
        raise RuntimeError("left out")
"""


def test_what_differs_is_found_and_counted(tmp_path: Path) -> None:
    folder, results = tmp_path / "tree" / "tests" / "models" / "thing", tmp_path / "results.json"
    folder.mkdir(parents=True)
    for package in (folder, *list(folder.parents)[:2]):
        (package / "__init__.py").touch()
    (folder / "test_modeling_thing.py").write_text(TESTS, encoding="utf-8")
    done = run(TOOL, str(tmp_path / "tree"), "thing", "absent", "--results", str(results), cwd=tmp_path)
    assert "absent: not run" in done.stdout, done.stdout + done.stderr
    found = json.loads(results.read_text(encoding="utf-8"))
    assert set(found) == {"thing"}
    assert found["thing"]["bare"] == {"passed": 3}
    assert found["thing"]["patched"] == {"passed": 1, "failed": 2}
    assert found["thing"]["models"] == {"patched": 5}
    both = [f"ThingModelTest::{name}" for name in ("test_model_weights_reload_no_missing_tied_weights", "test_strange")]
    assert list(found["thing"]["differing"]) == both
    assert all(outcome[:2] == ["passed", "failed"] for outcome in found["thing"]["differing"].values())

    lines = suite_section(found)
    assert "| thing | 3 | 0 | 0 | 1 | 2 | 0 | 5 | 2 |" in lines
    assert [line for line in lines if "test_strange" in line][0].endswith("| **not explained** |")
    assert not [line for line in lines if "no_missing_tied" in line and "not explained" in line]
