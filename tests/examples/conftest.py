"""Miniature data sets and tiny models for the recipes, made once."""

import pytest
from retrieval.data import miniature

BUILDERS = {
    "flickr30k": miniature.flickr30k,
    "coco": miniature.coco,
    "f30k_precomp": miniature.f30k_precomp,
    "coco_precomp": miniature.coco_precomp,
    "market1501": miniature.market1501,
    "cuhk03": miniature.cuhk03,
    "msmt17": miniature.msmt17,
    "cub200": miniature.cub200,
    "cars196": miniature.cars196,
    "online_products": miniature.online_products,
    "in_shop": miniature.in_shop,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of data sets by layout, and of models by kind."""
    from examples import tiny_models  # here, so that other tests do not wait for its imports

    place = tmp_path_factory.mktemp("miniature")
    data = {name: str(build(place / name)) for name, build in BUILDERS.items()}
    return data, tiny_models.save(place / "models")
