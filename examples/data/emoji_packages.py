"""The npm packages the emoji data set is made of: pinned, fetched once, read from a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Package:
    """One npm package, pinned by version and by the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Vendor(Package):
    """A package of drawings; vendors that share a drawing share a camera."""

    camera: int


EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
EMOJILIB = Package(
    name="emojilib",
    version="4.0.3",
    sha256="7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
)
VENDORS = {
    "twemoji": Vendor(
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        camera=0,
    ),
    "noto": Vendor(
        name="@iconify-json/noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        camera=1,
    ),
    "noto-v1": Vendor(
        name="@iconify-json/noto-v1",
        version="1.2.5",
        sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        camera=2,
    ),
    "fluent": Vendor(
        name="@iconify-json/fluent-emoji",
        version="1.2.7",
        sha256="8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        camera=3,
    ),
    "fluent-flat": Vendor(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        camera=3,
    ),
    "emojitwo": Vendor(
        name="@iconify-json/emojione",
        version="1.2.3",
        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        camera=4,
    ),
}
"""In order of preference: of two vendors with the same pixels, the earlier keeps the image."""


def fetch(package: Package, cache: Path) -> Path:
    """Download and unpack one package, or find it in the cache; returns its folder.

    Raises:
        ValueError: The tarball is not the pinned one.
    """
    stem = f"{package.name.lstrip('@').replace('/', '-')}-{package.version}"
    tarball = cache / f"{stem}.tgz"
    if not tarball.exists():
        log.info("fetching %s@%s", package.name, package.version)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        subprocess.run(command, cwd=cache, check=True, capture_output=True)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{tarball}: its SHA-256 must be the pinned {package.sha256}, got {found}. "
            "Delete the file and run again; if it stays, the registry serves another tarball."
        )
    folder = cache / stem
    if not folder.exists():
        with tarfile.open(tarball) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def read_json(path: Path) -> Any:
    """Read one UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
