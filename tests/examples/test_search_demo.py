"""The page to try: what it computes, what it says over HTTP, and what somebody sees in a real browser."""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from workers import launching

from gssf_plug import GSSFMetric

ROOT = Path(__file__).resolve().parents[2]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser here: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the script itself on a free port."""
    folder = tmp_path_factory.mktemp("page")
    said, wrong = folder / "said.txt", folder / "wrong.txt"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = launching.fork(ROOT / "examples" / "search_demo.py", ["--quick"], environment, folder, [said, wrong])
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", said.read_text() if said.exists() else "")):
        assert server.is_alive(), wrong.read_text()[-2000:]
        server.join(0.1)
    yield found[0]
    server.terminate()
    server.join()


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    """An image file that is none of the bundled ones."""
    image = Image.new("RGBA", (90, 60))
    image.paste((230, 40, 40, 255), (20, 10, 70, 50))
    image.save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file that only its name makes an image."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return tmp_path / "broken.png"


# what it computes


def trained(dim: int = 8, **options: object) -> GSSFMetric:
    metric = GSSFMetric(dim, block_size=4, **options)
    with torch.no_grad():
        for parameter in metric.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return metric


def test_both_rankings_are_exact_and_their_largest_parts_are_named() -> None:
    from shared.demo_collection import Collection, search

    metric, items, query = trained(grouping=torch.randperm(8)), torch.randn(20, 8), torch.randn(1, 8)
    found = search(metric, query, Collection(items, [str(row) for row in range(20)], [None] * 20), k=5)
    expected = {"cosine": torch.cosine_similarity(query, items), "GSSF": metric(query, items)[0].detach()}
    for name, scores in expected.items():
        assert [hit.item for hit in found[name]] == scores.topk(5).indices.tolist()
        for hit in found[name]:
            assert hit.score == pytest.approx(scores[hit.item].item(), abs=1e-5)
            assert sum(part for _, part, _ in hit.blocks) == pytest.approx(hit.score, abs=1e-5)  # two blocks: all shown
            cosine = sum(plain for _, _, plain in hit.blocks)
            assert cosine == pytest.approx(expected["cosine"][hit.item].item(), abs=1e-5)
            parts = [abs(part) for _, part, _ in hit.blocks]
            assert parts == sorted(parts, reverse=True)


def test_an_item_is_shown_with_how_it_moved() -> None:
    from search_demo import moved

    assert [moved(2, 0), moved(0, 3), moved(1, 1), moved(None, 4)] == ["↑2", "↓3", "", "new"]


def own_files(folder: Path, rows: int, lines: list[str], width: int = 8) -> tuple[Path, Path]:
    save_file({"features": torch.randn(rows, width)}, folder / "features.safetensors")
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    return folder / "features.safetensors", folder / "labels.txt"


def test_own_files(tmp_path: Path, drawing: Path) -> None:
    from shared.demo_collection import own_collection

    collection = own_collection(*own_files(tmp_path, 3, ["one", drawing.name, "no.png"]), 8)
    assert collection.features.shape == (3, 8)
    assert collection.labels == ["one", "red", "no.png"]
    assert collection.pictures == [None, drawing.read_bytes(), None]


def test_own_array_and_table(tmp_path: Path, drawing: Path) -> None:
    from shared.demo_collection import own_collection

    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(2, 8)))
    table = tmp_path / "items.csv"
    table.write_bytes(f'\ufeffimage,label\n{drawing.name},a red one\nnone.png,"b, c"\n'.encode())
    collection = own_collection(tmp_path / "vectors.npy", table, 8)
    assert collection.features.dtype == torch.float32
    assert collection.labels == ["a red one", "b, c"]
    assert collection.pictures == [drawing.read_bytes(), None]
    table.write_text("title\none\ntwo\n")
    assert own_collection(tmp_path / "vectors.npy", table, 8).labels == ["one", "two"]
    table.write_text("title\none\n")
    with pytest.raises(ValueError, match="got 1 lines"):
        own_collection(tmp_path / "vectors.npy", table, 8)


def test_a_folder_of_images(
    tmp_path: Path, drawing: Path, broken: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from shared.demo_collection import Encoder, pictures_collection

    (tmp_path / "deeper" / ".thumbs").mkdir(parents=True)
    Image.new("RGB", (900, 600), "blue").save(tmp_path / "deeper" / "a_large_one.jpg")
    for hidden in ("._red.png", "deeper/.thumbs/red.png"):
        (tmp_path / hidden).write_bytes(b"none")
    encoder = Encoder(lambda words: torch.ones(1, 8), lambda picture: torch.ones(1, 8) * picture.width)
    collection = pictures_collection(tmp_path, encoder, 8)
    assert collection.labels == ["deeper/a large one", "red"]
    assert collection.features[:, 0].tolist() == [900, 90]
    assert all(picture is not None and len(picture) < 20_000 for picture in collection.pictures)
    assert "broken.png" in caplog.text
    assert "embedding images" in capfd.readouterr().err
    with pytest.raises(ValueError, match="gives 8 numbers for an image, and --metric takes 16"):
        pictures_collection(tmp_path, encoder, 16)
    with pytest.raises(ValueError, match="encodes words alone"):
        pictures_collection(tmp_path, Encoder(encoder.words), 8)
    with pytest.raises(ValueError, match="holds no image that can be read"):
        pictures_collection(tmp_path / "deeper" / ".thumbs", encoder, 8)


def test_a_reason_is_told_in_words() -> None:
    from shared.demo_collection import in_words

    names = ["ice", "snow"]
    assert in_words(0.05, 0.02, names) == "matches in what the query shares with “ice” and “snow”, weighed more"
    assert in_words(0.01, 0.02, names).endswith("weighed less")
    assert in_words(-0.05, -0.02, names).startswith("differs in")
    assert in_words(-0.05, 0.02, []) == "matches in one group of channels, which now counts against it"
    assert in_words(0.02, 0.02, names) == "weighed as cosine does"
    assert "“a title that goes on and on…”" in in_words(0.05, 0.02, ["a title that goes on and on beyond a line"])


def test_a_reason_is_of_the_block_that_moved_the_score_the_way_it_went() -> None:
    from shared.demo_collection import cause

    assert cause(torch.tensor([-0.09, 0.08, 0.05])) == 1  # up in all, though the largest change is down
    assert cause(torch.tensor([0.09, -0.08, -0.05])) == 1
    assert cause(torch.tensor([-0.01, -0.08, 0.02])) == 1


def test_own_files_that_do_not_fit(tmp_path: Path) -> None:
    from shared.demo_collection import own_collection

    files = own_files(tmp_path, 3, ["one", "two"])
    with pytest.raises(ValueError, match="--labels must have a line per row of --features, 3; got 2 lines"):
        own_collection(*files, 8)
    with pytest.raises(ValueError, match=r"one tensor of M rows and 16 columns.*\(3, 8\)"):
        own_collection(*files, 16)


def test_own_model_of_words_and_images(tmp_path: Path, drawing: Path) -> None:
    from search_demo import Page, own_collection
    from shared.demo_collection import load_encoder
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"]))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 7, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    vision = {**small, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path / "clip")
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    CLIPProcessor(images, BertTokenizerFast(str(tmp_path / "vocab.txt"))).save_pretrained(tmp_path / "clip")
    encoder = load_encoder(str(tmp_path / "clip"))
    page = Page(trained(), own_collection(*own_files(tmp_path, 3, ["one", "<b>two</b>", "three"]), 8), encoder)
    by_words, by_image = page.by_words("red cat")[1], page.by_image(str(drawing))[1]
    for answer in (by_words, by_image):
        assert answer.count("<li ") == 6
        assert "&lt;b&gt;two&lt;/b&gt;" in answer
        assert "<b>two" not in answer
    assert by_words != by_image


def test_options_that_belong_together(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from search_demo import parse_options

    monkeypatch.setattr(sys, "argv", ["search_demo.py", "--features", "x.safetensors"])
    with pytest.raises(SystemExit):
        parse_options()
    assert "--features and --labels belong together" in capsys.readouterr().err


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    from search_demo import read_image

    Image.new("1", (10_000, 5_001)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="10000×5001 pixels"):
        read_image(str(tmp_path / "huge.png"))


def test_a_missing_metric_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import search_demo

    options = argparse.Namespace(
        metric=tmp_path / "none", features=None, labels=None, images=None, model="", quick=True, port=None
    )
    monkeypatch.setattr(search_demo, "parse_options", lambda: options)
    with pytest.raises(SystemExit, match="is no folder"):
        search_demo.main()


# how its checkpoint is made


def test_the_checkpoint_is_made_by_its_script(tmp_path: Path) -> None:
    from shared.drawing_encoder import DrawingEncoder

    script = [ROOT / "examples" / "train_search_demo.py", "--quick", "--output", str(tmp_path)]
    run = launching.run(*script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    metric = GSSFMetric.from_pretrained(tmp_path / "metric")
    assert metric.penalty() > 0
    encoder = DrawingEncoder.load(tmp_path / "image_encoder.safetensors")
    assert encoder.embed(Image.new("RGBA", (9, 9))).shape == (1, metric.dim)
    rows = [line.split("|")[1:3] for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [query, similarity] for query in ("words", "drawings") for similarity in ("cosine", "GSSF both, block 16")
    ]


def test_the_kept_checkpoint() -> None:
    from shared.drawing_encoder import DrawingEncoder

    folder = ROOT / "examples" / "data" / "search_demo"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3_000_000
    metric = GSSFMetric.from_pretrained(folder / "metric")
    assert metric.penalty() > 0
    transparent, white = Image.new("RGBA", (40, 40)), Image.new("RGB", (32, 32), "white")
    encoder = DrawingEncoder.load(folder / "image_encoder.safetensors")
    torch.testing.assert_close(encoder.embed(transparent), encoder.embed(white))


# what it says over HTTP


def test_answers_over_http(address: str, drawing: Path, broken: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    message, first = client.predict("a cat", api_name="/words")
    assert "a cat" in message
    assert first.count("<li ") == 16
    assert "block " in first
    assert client.predict("rain", api_name="/words")[1] != first
    assert client.predict(handle_file(drawing), api_name="/image")[1].count("<li ") == 16
    message, found = client.predict("   ", api_name="/words")
    assert "Nothing to search for" in message
    assert not found
    message, found = client.predict(handle_file(broken), api_name="/image")
    assert "“broken.png” could not be read as an image" in message
    assert not found
    assert "&lt;script&gt;" in client.predict("<script>alert(1)</script>", api_name="/words")[0]


# what somebody sees


class Browser:
    """The page in headless Chromium."""

    def __init__(self, address: str, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400"):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        self.driver.set_page_load_timeout(90)
        self.address = address
        self.driver.get(address)

    def element(self, css: str) -> object:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda driver: driver.find_element(By.CSS_SELECTOR, css))

    def search(self, words: str) -> None:
        field = self.element("#words textarea, #words input")
        field.clear()
        field.send_keys(words)
        self.element("#search-words").click()

    def says(self, text: str) -> str:
        """Wait until the message holds `text`; then what the results show."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = [StaleElementReferenceException]
        WebDriverWait(self.driver, 60, ignored_exceptions=ignored).until(
            lambda _: text in self.element("#message").text, f"no message {text!r}"
        )
        return self.element("#results").text

    def count(self, css: str) -> int:
        from selenium.webdriver.common.by import By

        return len(self.driver.find_elements(By.CSS_SELECTOR, css))

    def hosts(self) -> set[str]:
        """Every host that the page asked for something; what Chromium asks on its own account is not the page's."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        ours = [request["request"]["url"] for request in requests if request["documentURL"].startswith(self.address)]
        return {urlsplit(url).hostname or "" for url in ours if not url.startswith(("data:", "blob:"))}


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(address, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@in_browser
def test_in_a_browser(browser: Browser, drawing: Path, broken: Path) -> None:
    assert "GSSF beside cosine" in browser.driver.page_source
    opened = browser.says("Results for “cold weather”")
    browser.element("#examples button:nth-of-type(2), #examples tbody tr:nth-of-type(2)").click()
    assert browser.says("Results for “party”") != opened
    browser.search("cat")
    cats = browser.says("Results for “cat”")
    assert browser.count("#results section[data-similarity=cosine] li") == 8
    assert browser.count("#results section[data-similarity=GSSF] li") == 8
    assert browser.count("#results img") == 16
    assert "cat" in cats
    assert "weighed" in cats
    assert "block " not in cats
    browser.search("heavy rain")
    rain = browser.says("Results for “heavy rain”")
    assert "rain" in rain
    assert rain != cats
    browser.search(" ")
    assert browser.says("Nothing to search for. Type a word") == ""
    upload = browser.element("#image input[type=file]")
    upload.send_keys(str(broken))
    browser.element("#image .file-preview, #image table")
    browser.element("#search-image").click()
    assert browser.says("“broken.png” could not be read as an image") == ""
    assert browser.hosts() == {"127.0.0.1"}


@contextmanager
def screen(browser: Browser, width: int) -> Iterator[None]:
    """A window as wide as that; below 640 pixels a phone."""
    metrics = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 640}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def check_level(browser: Browser, width: int) -> None:
    """Each item of GSSF stands beside one of cosine, below the one before, and nothing goes over the edge."""
    tops = browser.driver.execute_script(
        "return ['cosine', 'GSSF'].map(name => [...document.querySelectorAll(`[data-similarity=${name}] li`)]"
        ".map(item => Math.round(item.getBoundingClientRect().top)))"
    )
    assert len(tops[0]) == 8
    assert tops[0] == tops[1]
    assert tops[0] == sorted(set(tops[0]))
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width


@in_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_pairs_of_rows_stay_level(browser: Browser, width: int) -> None:
    with screen(browser, width):
        browser.driver.get(browser.address)
        browser.says("Results for “cold weather”")
        check_level(browser, width)


@in_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_own_vectors_and_table_stay_level(browser: Browser, drawing: Path, tmp_path: Path, width: int) -> None:
    """An array of one's own and a table with long titles, some of one word, some with a picture."""
    from search_demo import STYLE, Page
    from shared.demo_collection import Encoder, own_collection

    titles = ["one", "a title that goes on and on, as those of real items do", "Donaudampfschifffahrtsgesellschaft" * 2]
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(24, 8)))
    rows = [f'"{titles[row % 3]} {row}",{drawing.name if row % 2 else ""}' for row in range(24)]
    (tmp_path / "mine.csv").write_text("label,image\n" + "\n".join(rows))
    collection = own_collection(tmp_path / "mine.npy", tmp_path / "mine.csv", 8)
    message, found = Page(trained(), collection, Encoder(lambda words: torch.ones(1, 8))).by_words("one")
    assert message == "Results for “one”"
    view = '<meta name="viewport" content="width=device-width">'
    (tmp_path / "page.html").write_text(f"{view}<meta charset=utf-8><style>{STYLE}</style>{found}", encoding="utf-8")
    with screen(browser, width):
        browser.driver.get((tmp_path / "page.html").as_uri())
        check_level(browser, width)
        assert 0 < browser.count("img") < 16
    browser.driver.get(browser.address)


@in_browser
def test_an_image_in_a_browser(browser: Browser, drawing: Path) -> None:
    browser.driver.refresh()
    browser.element("#search-image").click()
    assert browser.says("Nothing to search for. Choose an image") == ""
    browser.element("#image input[type=file]").send_keys(str(drawing))
    browser.element("#image .file-preview, #image table")
    browser.element("#search-image").click()
    assert "weighed" in browser.says("Results for the image “red.png”")
    assert browser.count("#results li") == 16
