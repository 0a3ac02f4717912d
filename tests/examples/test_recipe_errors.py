"""A wrong recipe, a misspelt path, a damaged part: each is answered with what was wrong, where, and what to do."""

import json
from pathlib import Path

import pytest
import train_retrieval
from examples.recipe_runs import small
from recipes.reading import check_value, load_recipe, recipe_path
from retrieval.data import miniature

from gssf_plug.errors import ArgumentError, DataError


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "lerning_rate: 0.1",
            r"`lerning_rate` must be a key that recipes have, but got 0\.1\. Did you mean 'learning_rate'",
        ),
        (
            "learning_rate: 5e-4",
            r"`learning_rate` must be of type float, but got '5e-4' of type str\. In YAML write 0\.0005",
        ),
        ("epochs: '3'", "`epochs` must be of type int, but got '3' of type str"),
        ("epochs: 2.5", "`epochs` must be of type int, but got 2.5 of type float"),
        ("epochs: true", "`epochs` must be of type int, but got True of type bool"),
        ("progress: 1", "`progress` must be of type bool, but got 1 of type int"),
        ("schedule: stepp", r"`schedule` must be one of \['cosine', .* but got 'stepp'\. Did you mean 'step'\?"),
        ("framework: vsee", r"`framework` must be one of .* but got 'vsee'\. Did you mean 'vse'\?"),
        ("decay_at: 0.5", r"`decay_at` must be of type list\[float\], but got 0\.5 of type float"),
        ("decay_at: [0.5, half]", r"`decay_at` must be of type list\[float\], but got \[0\.5, 'half'\]"),
        ("data_dir: null", "`data_dir` must be of type str, but got None"),
        ("margin: {a: 1}", r"`margin` must be of type float, but got \{'a': 1\} of type dict"),
        ("3: epochs", "`3` must be a key that recipes have, but got 'epochs'. Choose from"),
        ("batch_size: 0", "`batch_size` must be at least 1"),
    ],
)
def test_a_wrong_line_of_a_recipe(line, message, write):
    path = write(f"base: bot_market1501\n{line}\n")
    with pytest.raises(ArgumentError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("base: bot_market1501\nepochs: 3\nepochs: 4\n", "epochs"),
        ("base: bot_market1501\nmargin: {a: 1, a: 2}\n", "a"),
        ("base: bot_market1501\nbase: vse_f30k_precomp\n", "base"),
    ],
)
def test_a_key_that_stands_there_twice(text, key, write):
    with pytest.raises(DataError, match=f"is not YAML .*the key '{key}' stands there twice"):
        load_recipe(write(text))


def test_a_recipe_that_is_no_text(write, tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\x80\x04\x95\xff\xfe")
    with pytest.raises(DataError, match="is not YAML"):
        load_recipe(str(path))


def test_right_values_pass():
    for name, value in {"learning_rate": 1, "max_gradient_norm": None, "decay_at": [0, 1], "image_model": None}.items():
        check_value(name, value)


def test_what_must_be_given(write):
    with pytest.raises(ArgumentError, match="`dataset` must be given, but got nothing. Write it into the recipe, or"):
        load_recipe(write("framework: vse\ndata_dir: here\n"))
    assert load_recipe(write("framework: vse\n"), ["--dataset", "coco", "--data_dir", "x"]).data.dataset == "coco"


def test_options_of_the_command_line(capsys):
    recipe = load_recipe("bot_market1501", ["--learning_rate", "5e-4", "--decay_at", "0.1", "0.2", "--resume"])
    assert (recipe.training.learning_rate, recipe.training.decay_at, recipe.run.resume) == (5e-4, (0.1, 0.2), True)
    with pytest.raises(
        ArgumentError, match=r"`epoch` must be a key that recipes have, but got --epoch\. Did you mean 'ep"
    ):
        load_recipe("bot_market1501", ["--epoch", "3"])
    with pytest.raises(SystemExit):
        load_recipe("bot_market1501", ["--epochs", "three"])
    assert "argument --epochs: invalid int value: 'three'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        load_recipe("bot_market1501", ["--schedule", "stepp"])
    assert "argument --schedule: invalid choice: 'stepp'" in capsys.readouterr().err


def test_a_misspelt_recipe():
    with pytest.raises(
        ArgumentError, match=r"`recipe` must be .* but got bot_markt1501\. Did you mean 'bot_market1501'"
    ):
        recipe_path("bot_markt1501")
    with pytest.raises(ArgumentError, match="but got recipes/bot_market1501.yml"):
        recipe_path("recipes/bot_market1501.yml")
    assert recipe_path("bot_market1501.yaml").stem == "bot_market1501"


def test_no_yaml_and_no_base(write, tmp_path):
    with pytest.raises(DataError, match=r"mine\.yaml' is not YAML \(.*line 2"):
        load_recipe(write("epochs: 1\n  - broken: [\n"))
    with pytest.raises(DataError, match="holds list, expected lines `key: value`"):
        load_recipe(write("- epochs\n"))
    with pytest.raises(DataError, match=r"mine\.yaml' is its own base"):
        load_recipe(write("base: mine\n"))
    with pytest.raises(ArgumentError, match=r"but got bot_market\. Did you mean"):
        load_recipe(write("base: bot_market\n"))


def said(arguments, capsys):
    """The error of a call, its status 2."""
    assert train_retrieval.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]  # the loading of weights shows its bar before it
    assert last.startswith("error: ")
    return last


def test_wrong_data(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "vse_infinity_f30k_regions_bert"
    right = small(name, folders, tmp_path)
    place = folders[0]["f30k_precomp"]
    assert f"Did you mean '{place}'?" in said([*right, "--data_dir", place + "s"], capsys)
    text = said([*right, "--region_width", "2048"], capsys)
    assert "`region_width` must be the width of the features that the encoder is built for, but got 2048" in text
    assert "Pass --region_width 24." in text
    model = folders[1]["bert"]
    assert f"Did you mean '{model}'?" in said([*right, "--text_model", model + "t"], capsys)
    text = said([*right, "--text_model", "nobody/no-such-model"], capsys)
    assert "`text_model` must be a folder, or the id of a model that the hub has and that can be reached" in text
    assert "`split` must be one of" in said([*right, "--validation_split", "val"], capsys)
    text = said([*small("bot_msmt17", folders, tmp_path), "--validation_split", "val"], capsys)
    assert "`validation_split` must be test, the only split of msmt17 with queries and a gallery, but got 'val'" in text
    text = said([*right, "--dataset", "market1501", "--data_dir", folders[0]["market1501"]], capsys)
    assert "`rows` must have a column 'captions'" in text
    assert "`image_width` must equal image_height=32 here, but got 16" in said(
        [*small("proxy_anchor_cub200", folders, tmp_path), "--image_width", "16"], capsys
    )


def test_training_goes_on_over_damaged_images_by_choice(folders, tmp_path, capsys, caplog):
    root = Path(miniature.market1501(tmp_path))
    broken = sorted((root / "bounding_box_train").iterdir())[5]
    broken.write_bytes(broken.read_bytes()[:200])
    lost = sorted((root / "bounding_box_test").glob("0004*.jpg"))[0]
    lost.write_bytes(b"")
    arguments = [*small("bot_market1501", folders, tmp_path / "run"), "--data_dir", str(root), "--epochs", "2"]
    text = said(arguments, capsys)
    assert broken.name in text
    assert "cannot be read" in text
    assert train_retrieval.main([*arguments, "--on_unreadable", "skip", "--output_dir", str(tmp_path / "again")]) == 0
    assert caplog.text.count(broken.name) == 2  # once in each epoch
    assert lost.name in caplog.text
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    assert results["rows that could not be read"] == 2
    assert "2 rows could not be read and were left out" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "again" / "log.jsonl").read_text().splitlines()]
    assert max(line["unreadable_rows"] for line in lines if line["kind"] == "train") == 2


def test_help_names_the_recipes_and_their_keys(capsys):
    with pytest.raises(SystemExit) as ended:
        train_retrieval.main(["bot_market1501", "--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--images_per_identity" in printed
    assert "(default: 0.00035)" in printed  # the recipe's own
    assert train_retrieval.main([]) == 2
    assert train_retrieval.main(["--help"]) == 0
    assert "vse_infinity_f30k_regions_bert_gssf" in capsys.readouterr().out
