"""Reading images, and data sets in the layouts people have them in.

Each function gives a `datasets.Dataset` with those of the same columns that it has: `image` (an RGB PIL image, decoded
when its row is read) or `features` (float32, regions × width), `captions` (list of str), `label` (int), `camera` (int).

    flickr30k, coco                              image, captions, label         Karpathy's JSON and the images
    region_features                              features, captions, label      SCAN's and VSE∞'s {f30k,coco}_precomp
    market1501, msmt17, cuhk03                   image, label, camera           re-identification
    cub200, cars196, online_products, in_shop    image, label                   class-disjoint splits
    image_folder, columns_of                     any of them                    your own

    cache_images                                 the rows of any of them, their images decoded once into one file

Opening a set lists its files and reads its annotations; a missing or damaged part raises `DataError` with what was
expected where. An image that cannot be read raises `UnreadableError` when its row is read; RetrievalTrainer can skip
and count such rows.
"""

from gssf_plug.retrieval.data.cached_images import CachedImages as CachedImages
from gssf_plug.retrieval.data.cached_images import cache_images as cache_images
from gssf_plug.retrieval.data.cars196 import cars196 as cars196
from gssf_plug.retrieval.data.columns import columns_of as columns_of
from gssf_plug.retrieval.data.cub200 import cub200 as cub200
from gssf_plug.retrieval.data.cuhk03 import cuhk03 as cuhk03
from gssf_plug.retrieval.data.image_folder import image_folder as image_folder
from gssf_plug.retrieval.data.in_shop import in_shop as in_shop
from gssf_plug.retrieval.data.karpathy import coco as coco
from gssf_plug.retrieval.data.karpathy import flickr30k as flickr30k
from gssf_plug.retrieval.data.layout import column as column
from gssf_plug.retrieval.data.market1501 import market1501 as market1501
from gssf_plug.retrieval.data.msmt17 import msmt17 as msmt17
from gssf_plug.retrieval.data.online_products import online_products as online_products
from gssf_plug.retrieval.data.precomp import region_features as region_features

__all__ = [
    "CachedImages",
    "cache_images",
    "cars196",
    "coco",
    "column",
    "columns_of",
    "cub200",
    "cuhk03",
    "flickr30k",
    "image_folder",
    "in_shop",
    "market1501",
    "msmt17",
    "online_products",
    "region_features",
]
