"""What we publish: a folder with one safetensors file, one JSON configuration and a model card.

Promises: both files are written whole to temporary names and then renamed, so an interrupted save leaves the earlier
one in place; a folder is read strictly (kind, format version, every key, every shape) and never unpickled. It refuses
other kinds of folder, newer formats, missing, unknown or misshaped tensors. The configuration's digest is kept beside
the weights: a crash exactly between the two renames is found at load, not trusted. A folder from a stranger can waste
no more memory than its own size, runs no code, and names no file outside itself: see `reading` for the limits.
"""

from gssf_plug.files.cards import CardFacts as CardFacts
from gssf_plug.files.cards import is_hub_id as is_hub_id
from gssf_plug.files.cards import render_card as render_card
from gssf_plug.files.folders import Format as Format
from gssf_plug.files.folders import write_atomically as write_atomically
from gssf_plug.files.folders import write_folder as write_folder
from gssf_plug.files.hub import HubModule as HubModule
from gssf_plug.files.hub import locate as locate
from gssf_plug.files.reading import check_tensors as check_tensors
from gssf_plug.files.reading import inside as inside
from gssf_plug.files.reading import load_strictly as load_strictly
from gssf_plug.files.reading import parse_json as parse_json
from gssf_plug.files.reading import read_folder as read_folder
from gssf_plug.files.reading import read_tensors as read_tensors

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
