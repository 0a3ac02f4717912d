"""What we publish: a folder with one safetensors file, one JSON configuration and a model card.

Promises: both files are written whole to temporary names and then renamed, so an interrupted save leaves the earlier
one in place; a folder is read strictly (kind, format version, every key, every shape) and never unpickled. It refuses
other kinds of folder, newer formats, missing, unknown or misshaped tensors. The configuration's digest is kept beside
the weights: a crash exactly between the two renames is found at load, not trusted. A folder from a stranger can waste
no more memory than its own size, runs no code, and names no file outside itself: see `reading` for the limits.
"""

from gssf_plug.files.cards import CardFacts, is_hub_id, render_card
from gssf_plug.files.folders import Format, write_atomically, write_folder
from gssf_plug.files.hub import HubModule, locate
from gssf_plug.files.reading import check_tensors, inside, load_strictly, parse_json, read_folder, read_tensors

__all__ = [
    "CardFacts",
    "Format",
    "HubModule",
    "check_tensors",
    "inside",
    "is_hub_id",
    "load_strictly",
    "locate",
    "parse_json",
    "read_folder",
    "read_tensors",
    "render_card",
    "write_atomically",
    "write_folder",
]
