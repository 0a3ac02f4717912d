"""The two rooms together: retrieval models whose encoders are patched are saved, loaded and trained like others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention.patching import perturb
from attention.small_models import IDS, small_bert
from torch import nn
from transformers import BertModel

from gssf_plug import GSSFMetric
from gssf_plug.adapters import fitting_adapters
from gssf_plug.attention import AttentionPatch, load_attention, patch_attention
from gssf_plug.errors import ArgumentError, CheckpointError
from gssf_plug.losses import InfoNCE
from gssf_plug.retrieval import FrozenNorms, OneTower, RetrievalConfig, RetrievalTrainer, Tower, TwoTower

TEXTS = {"input_ids": IDS}


def patched(**options):
    """An encoder whose metrics are far from neutral."""
    encoder = small_bert()
    patch = patch_attention(encoder, block_size=4, **options)
    perturb(patch)
    return encoder, patch


def two_tower(encoder):
    image = Tower(encoder, projection=nn.Linear(32, 8))
    return TwoTower(image, nn.Linear(6, 8), GSSFMetric(8, block_size=4)).eval()


def one_tower(encoder):
    return OneTower(FrozenNorms(encoder), GSSFMetric(32, block_size=4, constraint="symmetric")).eval()


def bare_difference(model, encode):
    with torch.no_grad(), AttentionPatch(model).disabled():
        return encode(TEXTS)


def test_a_fresh_process_reads_a_patched_encoder(tmp_path):
    two, one = two_tower(patched()[0]), one_tower(patched(sites="score")[0])
    two.save_pretrained(tmp_path / "two")
    one.save_pretrained(tmp_path / "one")
    torch.save(IDS, tmp_path / "ids.pt")
    worker = Path(__file__).parent / "workers" / "load_towers.py"
    done = subprocess.run([sys.executable, worker, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for here, there in zip((two.encode_image, one.encode), torch.load(tmp_path / "embeddings.pt"), strict=True):
        with torch.no_grad():
            assert torch.equal(here(TEXTS), there)
        assert not torch.allclose(bare_difference(here.__self__, here), there, atol=1e-3)


@pytest.mark.parametrize("sites", ["projection", "score"])
def test_all_adapters_come_back_and_the_handle_with_them(sites, tmp_path):
    encoder, patch = patched(sites=sites)
    patch_attention(encoder, block_size=2, sites=sites, adapter_name="second")
    perturb(AttentionPatch(encoder))
    patch.set_adapter("default")
    model = two_tower(encoder)
    model.save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path)
    handle = AttentionPatch(loaded)
    assert handle.adapter_names == ("default", "second")
    assert handle.active_adapter == "default"
    assert repr(loaded) == repr(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    inner = AttentionPatch(loaded.image_tower.encoder)
    for name in ("default", "second"):
        patch.set_adapter(name)
        inner.set_adapter(name)
        with torch.no_grad():
            assert torch.equal(loaded.encode_image(TEXTS), model.encode_image(TEXTS))
    handle.remove()
    assert not any("gssf" in key for key in loaded.image_tower.state_dict())


def test_a_disabled_patch_comes_back_disabled(tmp_path):
    encoder, patch = patched()
    patch.disable()
    model = two_tower(encoder)
    model.save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path)
    assert not AttentionPatch(loaded).enabled
    AttentionPatch(loaded).enable()
    patch.enable()
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(TEXTS), model.encode_image(TEXTS))


def test_a_merged_encoder_is_a_plain_one(tmp_path):
    encoder, patch = patched()
    patch.merge()
    model = two_tower(encoder)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "image_tower.encoder" / "gssf").exists()
    assert "adapters" not in (tmp_path / "config.json").read_text()
    loaded = TwoTower.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(TEXTS), model.encode_image(TEXTS))
    with pytest.raises(ArgumentError, match="plain TwoTower"):
        AttentionPatch(loaded)


def test_a_plain_save_over_a_patched_one_takes_the_adapter_away(tmp_path):
    encoder, patch = patched()
    model = two_tower(encoder)
    model.save_pretrained(tmp_path)
    patch.remove()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("adapter_model.safetensors"))
    TwoTower.from_pretrained(tmp_path)


def test_one_encoder_in_both_towers_is_patched_once(tmp_path):
    encoder, _ = patched()
    model = TwoTower(encoder, Tower(encoder, projection=nn.Linear(32, 32))).eval()
    model.save_pretrained(tmp_path)
    loaded = TwoTower.from_pretrained(tmp_path)
    assert loaded.image_tower.encoder is loaded.text_tower.encoder
    with torch.no_grad():
        assert torch.equal(loaded.encode_text(TEXTS), model.encode_text(TEXTS))


def test_the_encoders_folder_is_for_others_too(tmp_path):
    """Transformers reads the base without a word about unknown keys, and `load_attention` the adapter."""
    encoder, _ = patched()
    two_tower(encoder).save_pretrained(tmp_path)
    folder = tmp_path / "image_tower.encoder"
    base, report = BertModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    load_attention(base, folder)
    with torch.no_grad():
        assert torch.equal(base(IDS)[0], encoder(IDS)[0])


def test_damage_is_named(tmp_path):
    two_tower(patched()[0]).save_pretrained(tmp_path)
    file = tmp_path / "image_tower.encoder" / "gssf" / "default" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        TwoTower.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        TwoTower.from_pretrained(tmp_path)


GOOD = {"names": ["default"], "active": "default", "enabled": True}


def test_what_is_saved_of_a_patch_fits():
    assert fitting_adapters({"attention": GOOD})


@pytest.mark.parametrize(
    "odd",
    [
        None, [], {}, {"os": GOOD}, {"attention": None}, {"attention": {}}, {"attention": {**GOOD, "more": 1}},
        {"attention": {**GOOD, "names": []}}, {"attention": {**GOOD, "names": "default"}},
        {"attention": {**GOOD, "names": ["default", "default"]}}, {"attention": {**GOOD, "names": ["default", 1]}},
        {"attention": {**GOOD, "names": ["default", ".."]}}, {"attention": {**GOOD, "names": ["default", "a/b"]}},
        {"attention": {**GOOD, "names": [f"a{n}" for n in range(101)], "active": "a1"}},
        {"attention": {**GOOD, "active": "other"}}, {"attention": {**GOOD, "active": None}},
        {"attention": {**GOOD, "active": ["default"]}}, {"attention": {**GOOD, "enabled": 1}},
    ],
)  # fmt: skip
def test_a_description_from_anybody_is_looked_at_first(odd):
    assert not fitting_adapters(odd)


def test_an_edited_description_is_refused_by_name(tmp_path):
    from gssf_plug.retrieval.models.part_schema import check_parts

    two_tower(patched()[0]).save_pretrained(tmp_path)
    parts = json.loads((tmp_path / "config.json").read_text())["parts"]
    check_parts("TwoTower", parts, tmp_path)
    parts["image_tower"]["arguments"]["encoder"]["adapters"]["attention"]["names"] = ["../x"]
    with pytest.raises(CheckpointError, match=r"for 'image_tower\.encoder', the adapters"):
        check_parts("TwoTower", parts, tmp_path)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (count, 7), generator=generator)
    return [{"ids": row, "text": row[:6] / 32 - 1, "id": number} for number, row in enumerate(ids)]


def collate(rows):
    numbers = torch.tensor([row["id"] for row in rows])
    images, texts = (torch.stack([row[key] for row in rows]) for key in ("ids", "text"))
    return {"images": {"input_ids": images}, "image_ids": numbers, "texts": texts, "text_ids": numbers}


def trainer(folder, model, steps):
    values = {
        "learning_rate": 1e-3,
        "metric_learning_rate": 1e-2,
        "progress": False,
        "plot": False,
        "schedule": "constant",
    }
    config = RetrievalConfig(
        output_dir=str(folder), epochs=4, batch_size=6, eval_every=2, checkpoint_every=2, max_steps=steps, **values
    )
    parts = {"train_data": rows(24, 1), "eval_data": rows(12, 2), "collate": collate}
    return RetrievalTrainer(model=model, loss=InfoNCE(), config=config, **parts)


def fresh():
    torch.manual_seed(5)
    return two_tower(patched()[0])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_patched_encoder_trains_resumes_and_its_best_comes_back(tmp_path):
    whole = fresh()
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    run = trainer(tmp_path / "whole", whole, 8)
    run.train()
    learned = [
        name for name, tensor in whole.state_dict().items() if ".gssf." in name and not tensor.equal(start[name])
    ]
    assert len(learned) == len([name for name in start if ".gssf." in name]) > 0

    trainer(tmp_path / "parts", fresh(), 4).train()
    resumed = fresh()
    trainer(tmp_path / "parts", resumed, 8).train(resume="anyway")  # with more steps than it began with
    assert same(whole, resumed)

    run.load_best()
    run.save_model(tmp_path / "best")
    best = fresh()
    trainer(tmp_path / "whole", best, 8).load_best()
    loaded = TwoTower.from_pretrained(tmp_path / "best")
    assert same(loaded, best)
    best.eval()
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(TEXTS), best.encode_image(TEXTS))
    AttentionPatch(loaded).merge()
    loaded.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("adapter_model.safetensors"))
