"""A page to try: words or an image in, the best items under cosine and under GSSF side by side, and why.

    python examples/search_demo.py              # the bundled emoji and checkpoint; open the address that it prints
    python examples/search_demo.py --quick      # every eighth emoji: starts in seconds

Your own metric, items and encoder (a Hub id or folder; a CLIP-like model answers images, too):

    python examples/search_demo.py --images FOLDER      # every image below a folder of yours
    python examples/search_demo.py --metric FOLDER --features FILE.npy --labels FILE.csv --model NAME

Under each item of GSSF stands why its score differs from cosine: the block of channels that moved it most the way it
went, told by the items that share most with the query in it. Hold the pointer over an item for the numbers: the three
blocks that add most, in brackets what the same block adds under cosine; over all blocks they add up to the score.
Nothing leaves the machine: Gradio's analytics are off, and the page asks no other host. Needs `pip install ".[demo]"`.
"""

import argparse
import base64
import html
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("""The page needs Gradio: run `pip install ".[demo]"` in the clone.""") from error

from PIL import Image, ImageOps
from shared.demo_collection import (
    BUNDLED,
    Collection,
    Encoder,
    Hit,
    bundled_collection,
    load_encoder,
    own_collection,
    pictures_collection,
    search,
)
from shared.pretrained import PACKAGED

from gssf_plug import GSSFMetric
from gssf_plug.errors import GSSFError
from gssf_plug.retrieval.data.source_files import existing_folder

MEGABYTES = 20
PIXELS = 50_000_000
STYLE = """
.found {display: grid; grid-template-columns: 1fr 1fr; grid-auto-flow: column; column-gap: 1.5rem}
.found section, .found ol {display: contents} /* headings and items are cells of one grid, so that pairs stay level */
.found li, .found div {min-width: 0; overflow-wrap: anywhere}
.found li {display: flex; gap: .8rem; align-items: center; min-height: 4.8rem; border-bottom: 1px solid #8884}
.found img {width: 48px; height: 48px; padding: 3px; object-fit: contain; background: white; border-radius: 6px}
.found small {opacity: .75}
.found em {opacity: .75; font-size: .85em}
@media (max-width: 640px) {.found li {flex-direction: column; align-items: flex-start; gap: .2rem; padding: .4rem 0}}
"""


class Page:
    """The page and what happens when somebody asks.

    Args:
        metric: a trained metric.
        collection: what to search.
        encoder: what turns queries into features of the collection's kind.
        starred: say what a star behind a label means; default False.
    """

    def __init__(self, metric: GSSFMetric, collection: Collection, encoder: Encoder, *, starred: bool = False) -> None:
        self.metric = metric
        self.collection = collection
        self.encoder = encoder
        self.starred = starred

    def examples(self) -> list[str]:
        """Queries to click on: the first is answered when the page opens."""
        if self.starred:
            return ["cold weather", "party", "feeling sick", "fast vehicle"]
        return list(dict.fromkeys(self.collection.labels))[:4]

    def by_words(self, words: str) -> tuple[str, str]:
        """A message and the results, both HTML."""
        if not words.strip():
            return "<b>Nothing to search for.</b> Type a word or two, then search.", ""
        return f"Results for “{html.escape(words.strip())}”", self._found(self.encoder.words(words))

    def by_image(self, path: str | None) -> tuple[str, str]:
        """Likewise for an uploaded file."""
        if path is None:
            return "<b>Nothing to search for.</b> Choose an image file, then search.", ""
        assert self.encoder.image is not None
        name = html.escape(Path(path).name)
        try:
            picture = read_image(path)
        except (OSError, SyntaxError, EOFError, ValueError) as error:
            reason = html.escape(str(error).replace(path, Path(path).name))
            return f"<b>“{name}” could not be read as an image:</b> {reason}. Try a PNG or JPEG.", ""
        return f"Results for the image “{name}”", self._found(self.encoder.image(picture))

    def build(self) -> gr.Blocks:
        """The Gradio page."""
        with gr.Blocks(title="GSSF beside cosine", analytics_enabled=False) as page:
            gr.Markdown(self._introduction())
            with gr.Row():
                with gr.Column():
                    words = gr.Textbox(label="Words", placeholder="cold weather", elem_id="words")
                    ask_words = gr.Button("Search by words", variant="primary", elem_id="search-words")
                    examples = gr.Group()
                with gr.Column(visible=self.encoder.image is not None):
                    picture = gr.File(label="An image", file_types=["image"], height=140, elem_id="image")
                    ask_image = gr.Button("Search by image", elem_id="search-image")
            first = self.examples()[0]
            answered = self.by_words(first)
            words.value = first
            message = gr.HTML(answered[0], elem_id="message")
            results = gr.HTML(answered[1], elem_id="results")
            with examples:
                gr.Examples(
                    [[query] for query in self.examples()], words, [message, results], self.by_words,
                    run_on_click=True, cache_examples=False, label="Try", elem_id="examples", api_name=False,
                )  # fmt: skip
            for event in (words.submit, ask_words.click):
                event(self.by_words, words, [message, results], api_name="words" if event == words.submit else False)
            if self.encoder.image is not None:
                ask_image.click(self.by_image, picture, [message, results], api_name="image")
        return page

    def _introduction(self) -> str:
        metric = self.metric
        form = " + ".join(metric.terms) or "adjacency"
        return (
            f"## GSSF beside cosine\nThe same {len(self.collection.labels):,} items and the same frozen features of "
            f"{metric.dim} channels under two similarities. GSSF: {form}, {len(metric.blocks())} blocks, "
            f"{sum(weight.numel() for weight in metric.parameters()):,} learned numbers. ↑ and ↓: "
            "places gained or lost against cosine, and under them the reason."
            + (" A star marks an emoji that was not in training." if self.starred else "")
        )

    def _found(self, query: object) -> str:
        found = search(self.metric, query, self.collection)
        places = {hit.item: place for place, hit in enumerate(found["cosine"])}
        columns = [
            f'<section data-similarity="{name}"><h3>{name}</h3><ol>'
            + "".join(
                self._row(hit, moved(places.get(hit.item), place), beside=name == "GSSF")
                for place, hit in enumerate(hits)
            )
            + "</ol></section>"
            for name, hits in found.items()
        ]
        rows = 1 + max(map(len, found.values()))
        return f'<div class="found" style="grid-template-rows: repeat({rows}, auto)">{"".join(columns)}</div>'

    def _row(self, hit: Hit, move: str, *, beside: bool) -> str:
        """One item; `beside` cosine, with how it moved from there and what each block adds there."""
        picture = self.collection.pictures[hit.item]
        shown = f'<img alt="" src="data:image;base64,{base64.b64encode(picture).decode()}">' if picture else ""
        parts = [
            f"block {block} {part:+.3f}" + (f" ({plain:+.3f})" if beside else "") for block, part, plain in hit.blocks
        ]
        label = html.escape(self.collection.labels[hit.item]) + (f" <em>{move}</em>" if beside and move else "")
        reason = f"<br><small>{html.escape(hit.reason)}</small>" if beside else ""
        return f'<li title="{", ".join(parts)}">{shown}<div><b>{hit.score:.3f}</b> {label}{reason}</div></li>'


def moved(before: int | None, place: int) -> str:
    """How an item's place differs from that under cosine; None was not shown there."""
    if before is None:
        return "new"
    return "" if before == place else f"{'↑' if place < before else '↓'}{abs(before - place)}"


def read_image(path: str) -> Image.Image:
    """An uploaded image, decoded and upright.

    Raises:
        ValueError: more than 50 million pixels: refused before any of them is decoded.
        OSError: what Pillow raises for a file that is no image.
    """
    with Image.open(path) as image:
        if image.width * image.height > PIXELS:
            raise ValueError(f"it has {image.width}×{image.height} pixels, and up to {PIXELS:,} are read")
        return ImageOps.exif_transpose(image).convert("RGBA")


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", default=BUNDLED / "metric", help="folder or Hub id of a GSSFMetric")
    parser.add_argument("--model", default=PACKAGED, help="Hub id or folder of a text encoder, or of a CLIP-like one")
    parser.add_argument("--features", type=Path, help=".npy or safetensors file with one (M, D); default: the emoji")
    parser.add_argument("--labels", type=Path, help="text or .csv file with a line per row of --features")
    parser.add_argument("--images", type=Path, help="folder of images to search, instead of --features")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--quick", action="store_true", help="every eighth emoji")
    options = parser.parse_args()
    if (options.features is None) != (options.labels is None):
        parser.error("--features and --labels belong together: give both, or none for the bundled emoji")
    if options.images is not None and options.features is not None:
        parser.error("--images and --features are two ways to give items: choose one")
    return options


def load_page(options: argparse.Namespace) -> Page:
    """Metric, items and encoder as the command line says."""
    metric = GSSFMetric.from_pretrained(options.metric)
    encoder, bundled = load_encoder(options.model), options.features is None and options.images is None
    if options.images is not None:
        collection = pictures_collection(existing_folder(options.images), encoder, metric.dim)
    elif bundled:
        collection = bundled_collection(every=8 if options.quick else 1)
    else:
        collection = own_collection(options.features, options.labels, metric.dim)
    return Page(metric, collection, encoder, starred=bundled)


def main() -> None:
    """Load, then serve until interrupted."""
    options = parse_options()
    try:
        page = load_page(options).build()
    except (GSSFError, ValueError, OSError) as error:
        raise SystemExit(f"{error}") from None
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no font from the network
    page.launch(
        server_name="127.0.0.1",
        server_port=options.port,
        share=False,
        ssr_mode=False,
        theme=theme,
        css=STYLE,
        max_file_size=f"{MEGABYTES}mb",
        footer_links=[],
    )


if __name__ == "__main__":
    main()
