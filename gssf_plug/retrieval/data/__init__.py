"""Reading images, and data sets in the layouts people have them in.

Each function gives a `datasets.Dataset` with those of the same columns that it has: `image` (an RGB PIL image, decoded
when its row is read) or `features` (float32, regions × width), `captions` (list of str), `label` (int), `camera` (int).

    flickr30k, coco                              image, captions, label         Karpathy's JSON and the images
    region_features                              features, captions, label      SCAN's and VSE∞'s {f30k,coco}_precomp
    market1501, msmt17, cuhk03                   image, label, camera           re-identification
    cub200, cars196, online_products, in_shop    image, label                   class-disjoint splits
    image_folder, read_columns                   any of them                    your own

    cache_images                                 the rows of any of them, their images decoded once into one file

Opening a set lists its files and reads its annotations; a missing or damaged part raises `DataError` with what was
expected where. An image that cannot be read raises `UnreadableError` when its row is read; RetrievalTrainer can skip
and count such rows. `datasets` itself is imported when a set is opened: importing this room does not wait for it.
"""

from gssf_plug.retrieval.data.cached_images import CachedImages, cache_images
from gssf_plug.retrieval.data.columns import columns_of, read_columns
from gssf_plug.retrieval.data.sets.cars196 import cars196
from gssf_plug.retrieval.data.sets.cub200 import cub200
from gssf_plug.retrieval.data.sets.cuhk03 import cuhk03
from gssf_plug.retrieval.data.sets.image_folder import image_folder
from gssf_plug.retrieval.data.sets.in_shop import in_shop
from gssf_plug.retrieval.data.sets.karpathy_splits import coco, flickr30k
from gssf_plug.retrieval.data.sets.market1501 import market1501
from gssf_plug.retrieval.data.sets.msmt17 import msmt17
from gssf_plug.retrieval.data.sets.online_products import online_products
from gssf_plug.retrieval.data.sets.region_features import region_features
from gssf_plug.retrieval.data.source_files import column

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
    "read_columns",
    "region_features",
]
