"""What we publish: a folder with one safetensors file, one JSON configuration and a model card.

Promises: a save takes effect by one rename, so that at every moment, whatever is killed or full, a reader gets all of
the earlier save or all of the new one (see `folders`); nothing is written, renamed or removed through a link (see
`staging`); a folder is read strictly (kind, format version, every key, every shape, every byte) and never unpickled. A
folder from a stranger can waste no more memory than its own size, runs no code, and names no file outside itself: see
`reading` for the limits.
"""

from gssf_plug.files.cards import CardFacts, is_hub_id, render_card
from gssf_plug.files.folders import Format, file_digest, write_folder
from gssf_plug.files.hub import HubModule, HubOptions, locate
from gssf_plug.files.reading import (
    build_from,
    check_tensors,
    inside,
    load_strictly,
    parse_json,
    read_folder,
    read_tensors,
)
from gssf_plug.files.staging import discard, named_folder, own_folder, write_atomically

__all__ = [
    "CardFacts",
    "Format",
    "HubModule",
    "HubOptions",
    "build_from",
    "check_tensors",
    "discard",
    "file_digest",
    "inside",
    "is_hub_id",
    "load_strictly",
    "locate",
    "named_folder",
    "own_folder",
    "parse_json",
    "read_folder",
    "read_tensors",
    "render_card",
    "write_atomically",
    "write_folder",
]
