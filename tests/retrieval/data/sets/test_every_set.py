"""The promises that all data sets share, one class each; what is peculiar to one stands in its own test file."""

from contracts.data_set import DataSetContract
from retrieval.data import miniature

from gssf_plug.retrieval import data

IMAGE_TEXT, ONE_TOWER, CAMERAS = {"image", "captions", "label"}, {"image", "label"}, {"image", "label", "camera"}


class OfSplits(DataSetContract):
    """A set that is opened by `function(folder, split)` and drawn by the function of that name in miniature.py."""

    name: str

    def write(self, folder):
        return getattr(miniature, self.name)(folder)

    def open(self, folder, split):
        return getattr(data, self.name)(folder, split)


class TestFlickr30K(OfSplits):
    name, columns, splits = "flickr30k", IMAGE_TEXT, ("train", "val", "test")


class TestCOCO(OfSplits):
    name, columns, splits = "coco", IMAGE_TEXT, ("train", "val", "test")


class TestMarket1501(OfSplits):
    name, columns, splits = "market1501", CAMERAS, ("train", "query", "gallery")


class TestMSMT17(OfSplits):
    name, columns, splits = "msmt17", CAMERAS, ("train", "val", "trainval", "query", "gallery")


class TestCUHK03(OfSplits):
    name, columns, splits = "cuhk03", CAMERAS, ("train", "query", "gallery")


class TestCUB200(OfSplits):
    name, columns, splits = "cub200", ONE_TOWER, ("train", "test")


class TestCars196(OfSplits):
    name, columns, splits = "cars196", ONE_TOWER, ("train", "test")


class TestOnlineProducts(OfSplits):
    name, columns, splits = "online_products", ONE_TOWER, ("train", "test")


class TestInShop(OfSplits):
    name, columns, splits = "in_shop", ONE_TOWER, ("train", "query", "gallery")


class TestRegionFeatures(OfSplits):
    name, columns, splits = "region_features", {"features", "captions", "label"}, ("train", "dev", "test")

    def write(self, folder):
        return miniature.f30k_precomp(folder)


class TestImageFolder(OfSplits):
    name, columns, splits = "image_folder", ONE_TOWER, ("train",)
