"""Retrieval models as folders: all come back the same, parts load by their own libraries, damage is named."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)

from gssf_plug import GSSFMetric
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.features import GPO, BNNeck, SizeAugmentation, last_pool
from gssf_plug.retrieval import (
    DualEncoder,
    ImageToText,
    LastStrideOne,
    LocalAlignment,
    LogSumExp,
    OneTower,
    ResidualMLP,
    RetrievalModel,
    TextToImage,
    Tower,
    TwoTower,
    WordGRU,
    average,
)


def bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=12, **sizes))


def resnet():
    return ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))


def clip():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 12, "max_position_embeddings": 8}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))


def tokenizer():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "dog": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def perturbed(model):
    """No weight stays at its start, nothing is its own default."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


IMAGES = {"pixel_values": torch.randn(3, 3, 32, 16)}
REGIONS = {"features": torch.randn(3, 5, 6), "attention_mask": torch.ones(3, 5).bool()}
TEXTS = {"input_ids": torch.randint(2, 12, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}


def vse():
    image = Tower(None, token_projection=ResidualMLP(6, 8), pooling=SizeAugmentation(GPO(code=6, hidden=4), share=0.1))
    text = Tower(WordGRU(12, 8, embedding=5, dropout=0.3), pooling=GPO())
    return TwoTower(image, text, GSSFMetric(8, block_size=4), processors={"tokenizer": tokenizer()})


def grids():
    image = Tower(
        resnet(),
        projection=nn.Sequential(nn.Linear(12, 8), *(nn.ReLU() for _ in range(10)), nn.Linear(8, 8, bias=False)),
    )
    return TwoTower(image, Tower(bert(), token_projection=nn.Linear(8, 8), output="last_hidden_state"))


def scan():
    metric = GSSFMetric(8, block_size=4)
    parts = [TextToImage(7.0, LogSumExp(3.0)), ImageToText(2.0, average)]
    gru = Tower(WordGRU(12, 8, bidirectional=False), pooling=last_pool)
    return LocalAlignment(nn.Linear(6, 8), gru, metric=metric, attention_metric=metric, alignments=parts)


def local():
    return LocalAlignment(nn.Linear(6, 8), WordGRU(12, 8), attention_metric=GSSFMetric(8, block_size=4))


def bot():
    metric = GSSFMetric(12, block_size=4, constraint="symmetric")
    return OneTower(Tower(LastStrideOne(resnet())), metric, neck=BNNeck(12))


def siamese():
    shared = bert()
    return TwoTower(shared, Tower(shared, projection=nn.Linear(8, 8)))


MODELS = [vse, grids, scan, local, bot, siamese]


def features(model):
    if isinstance(model, OneTower):
        return model.encode(IMAGES)
    if isinstance(model, DualEncoder):
        return model.score(model.encode_image({"pixel_values": torch.ones(2, 3, 8, 8)}), model.encode_text(TEXTS))
    if isinstance(model, LocalAlignment):
        return model.score(model.image_tower.fragments(REGIONS["features"]), model.encode_text(TEXTS))
    first = model.image_tower.encoder
    images = REGIONS if first is None else TEXTS if isinstance(first, BertModel) else IMAGES
    return model.score(model.encode_image(images), model.encode_text(TEXTS))


def given(model):
    return {"parts": {"image_tower.encoder": nn.Linear(6, 8)}} if isinstance(model, LocalAlignment) else {}


@pytest.mark.parametrize("make", [*MODELS, lambda: DualEncoder(clip(), GSSFMetric(6, block_size=2))])
def test_every_model_comes_back_the_same(make, tmp_path):
    model = perturbed(make())
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    torch.testing.assert_close(features(loaded), features(model))
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype, tmp_path):
    model = perturbed(grids()).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_shared_parts_stay_shared(tmp_path):
    scan().save_pretrained(tmp_path / "scan")
    loaded = LocalAlignment.from_pretrained(tmp_path / "scan")
    assert loaded.attention_metric is loaded.metric
    siamese().save_pretrained(tmp_path / "siamese")
    assert sorted(path.name for path in (tmp_path / "siamese").iterdir() if path.is_dir()) == ["image_tower.encoder"]
    twins = TwoTower.from_pretrained(tmp_path / "siamese")
    assert twins.image_tower.encoder is twins.text_tower.encoder


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / ".saving-abc" / "metric").mkdir(parents=True)
    vse().save_pretrained(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_parts_load_by_their_own_libraries(tmp_path):
    model = perturbed(grids())
    model.save_pretrained(tmp_path)
    plain = BertModel.from_pretrained(tmp_path / "text_tower.encoder").eval()
    torch.testing.assert_close(plain(**TEXTS).last_hidden_state, model.text_tower.encoder(**TEXTS).last_hidden_state)
    dual = perturbed(DualEncoder(clip(), GSSFMetric(6, block_size=2)))
    dual.save_pretrained(tmp_path / "clip")
    assert torch.equal(CLIPModel.from_pretrained(tmp_path / "clip" / "encoder").logit_scale, dual.encoder.logit_scale)
    metric = GSSFMetric.from_pretrained(tmp_path / "clip" / "metric")
    torch.testing.assert_close(metric.matrix(), dual.metric.matrix())
    assert metric.matrix().sub(torch.eye(6)).abs().max() > 0.01


def test_the_tokenizer_comes_back(tmp_path):
    vse().save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path).processors["tokenizer"]
    assert loaded("a dog barks", return_token_type_ids=False)["input_ids"] == [2, 3, 1]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "processor.tokenizer")) == len(loaded)


def test_unknown_modules_are_given_again(tmp_path):
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model = perturbed(TwoTower(cnn, nn.Linear(4, 8)))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"a part 'image_tower.encoder.0' of a class that .* \(torch.*Conv2d\)\. Build"
    ):
        TwoTower.from_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path, parts={"image_tower.encoder.0": nn.Conv2d(3, 8, 3)})
    torch.testing.assert_close(loaded.encode_image(IMAGES["pixel_values"]), model.encode_image(IMAGES["pixel_values"]))
    with pytest.raises(
        CheckpointError, match=r"has 'image_tower.encoder.0.weight' in shape \(8, 3, 3, 3\) where \(8, 3, 5"
    ):
        TwoTower.from_pretrained(tmp_path, parts={"image_tower.encoder.0": nn.Conv2d(3, 8, 5)})
    wrong = {"image_tower.encoder.0": nn.Conv2d(3, 8, 3), "txt": nn.Linear(4, 8)}
    with pytest.raises(ArgumentError, match=r"`parts` must hold parts that .* asks for, but got 'txt'"):
        TwoTower.from_pretrained(tmp_path, parts=wrong)


def test_saving_again_replaces_and_keeps_the_card(tmp_path):
    grids().save_pretrained(tmp_path)
    ModelCard((tmp_path / "README.md").read_text())
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine too")
    model = perturbed(vse())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(features(TwoTower.from_pretrained(tmp_path)), features(model))
    assert (tmp_path / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path, model_card_kwargs={"data": "Flickr30K", "measures": {"rsum": 400.5}})
    assert "| rsum | 400.5 |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "notes.txt").exists()
    assert not [path for path in (tmp_path / "text_tower.encoder").iterdir()]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_earlier_model(tmp_path, monkeypatch):
    model = perturbed(vse())
    model.save_pretrained(tmp_path)
    before = features(model)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="could not be written .*No space left"):
        perturbed(model).save_pretrained(tmp_path)
    monkeypatch.undo()
    torch.testing.assert_close(features(TwoTower.from_pretrained(tmp_path)), before)
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = perturbed(grids())
    model.processors = {"tokenizer": tokenizer()}
    model.metric = GSSFMetric(8, block_size=4)
    model.save_pretrained(folder)
    return folder


FILES = ["metric/model.safetensors", "text_tower.encoder/config.json", "text_tower.encoder/model.safetensors"]


@pytest.mark.parametrize("file", [*FILES, "processor.tokenizer/tokenizer.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_a_damaged_file_is_named(saved, tmp_path, file, how):
    folder = shutil.copytree(saved, tmp_path / "copy")
    content = (folder / file).read_bytes()
    if how == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content[:-9] if how == "cut" else content + b" ")
    problem = "is missing" if how == "gone" else "is not the file that was saved with this model"
    with pytest.raises(CheckpointError, match=rf"{file}' {problem}"):
        TwoTower.from_pretrained(folder)


def edited(saved, folder, **changes):
    from gssf_plug.files import read_folder, write_folder

    shutil.copytree(saved, folder)
    config, tensors = read_folder(folder, TwoTower.file_format)
    write_folder(folder, TwoTower.file_format, {**config, **changes}, tensors)
    return config


def tower(**arguments):
    plain = {"encoder": None, "token_projection": None, "pooling": {"function": "mean_pool"}, "projection": None}
    return {"class": "Tower", "arguments": {**plain, "output": None, **arguments}}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"class": "Evil", "arguments": {}}, "for 'text_tower', the unknown class 'Evil'"),
        ({"transformers": "pipeline"}, "for 'text_tower', the model 'pipeline', which this transformers"),
        ({"function": "eval"}, "for 'text_tower', the unknown function 'eval'"),
        ({"import": "os"}, r"for 'text_tower', a part of no known kind, \['import'\]"),
        ({"class": "Tower", "arguments": {"encodr": None}}, "arguments that Tower refuses"),
        ({"same_as": "nothing"}, "the unknown same_as 'nothing'"),
        ({"function": ["mean_pool"]}, r"for 'text_tower', a part of no known kind"),
        (
            tower(projection={"class": "Linear", "arguments": {"in_features": 10**9, "out_features": 8, "bias": True}}),
            "for 'text_tower.projection.in_features', 1000000000 where a whole number from 1 to 16,777,216 belongs",
        ),
        ({"class": "Tower", "arguments": {"../../x": {"metric": "m"}}}, r"refuses \('../../x' is unknown"),
    ],
)
def test_an_odd_configuration_is_named_and_nothing_is_imported_by_name(saved, tmp_path, part, text):
    config = edited(saved, tmp_path / "odd")
    shutil.rmtree(tmp_path / "odd")
    edited(saved, tmp_path / "odd", parts={**config["parts"], "text_tower": part})
    with pytest.raises(CheckpointError, match=text):
        TwoTower.from_pretrained(tmp_path / "odd")


def test_other_kinds_versions_and_classes_are_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match="holds a TwoTower, not a OneTower. Load it with TwoTower"):
        OneTower.from_pretrained(saved)
    with pytest.raises(CheckpointError, match="is not of the kind 'gssf-plug/retrieval'"):
        TwoTower.from_pretrained(saved / "metric")
    edited(saved, tmp_path / "out", files={"../secret": "0"})
    with pytest.raises(CheckpointError, match="names a file outside itself, '../secret'"):
        TwoTower.from_pretrained(tmp_path / "out")
    edited(saved, tmp_path / "list", files=["a"])
    with pytest.raises(CheckpointError, match="has a configuration whose 'files' is no table"):
        TwoTower.from_pretrained(tmp_path / "list")
    edited(saved, tmp_path / "a", processors={"tokenizer": "Nothing"})
    with pytest.raises(CheckpointError, match="holds a Nothing, which transformers"):
        TwoTower.from_pretrained(tmp_path / "a")
    folder = shutil.copytree(saved, tmp_path / "newer")
    text = (folder / "config.json").read_text().replace('"format_version": 1', '"format_version": 9')
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="is in format version 9, and this gssf-plug reads up to 1"):
        TwoTower.from_pretrained(folder)
    config = json.loads((saved / "config.json").read_text())
    assert set(config["versions"]) == {"gssf_plug", "torch", "transformers"}


def test_a_part_of_another_shape_is_named(saved, tmp_path):
    edited(saved, tmp_path / "bad", files={})
    bert = tmp_path / "bad" / "text_tower.encoder" / "config.json"
    bert.write_text(bert.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(
        CheckpointError, match=r"text_tower.encoder' does not fit BertModel: missing_keys 'encoder.layer.1"
    ):
        TwoTower.from_pretrained(tmp_path / "bad")


@pytest.mark.bad_input
def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"`image_tower.pooling` must be a module.* but got function"):
        TwoTower(Tower(None, pooling=lambda tokens, mask: tokens.sum(1)), None).save_pretrained(tmp_path)

    class Own(RetrievalModel):
        pass

    with pytest.raises(ArgumentError, match="`model` must be a model of gssf_plug.retrieval, or set `published`.*Own"):
        Own(None).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_push_uploads_every_part(monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, *args, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **options):
            uploaded[repo_id] = sorted(
                str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()
            )

    monkeypatch.setattr("gssf_plug.files.uploads.HfApi", Api)
    vse().push_to_hub("someone/vse")
    names = uploaded["someone/vse"]
    assert {"README.md", "config.json", "model.safetensors", "metric/config.json"} <= set(names)
    assert "processor.tokenizer/tokenizer.json" in names
