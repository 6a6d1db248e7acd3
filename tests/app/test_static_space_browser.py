"""What a publication says of JavaScript, run in Node and in Chromium: the snippet of its card, and its static page."""

import base64
import io
import json
import re
import subprocess

import numpy as np
import pytest
from browser import open_page, page_text, require_browser
from PIL import Image, ImageOps, PngImagePlugin
from static_site import install_library, lay_out, point_at, serve
from tiny_commands import OPTIONS
from tiny_runs import NUM_CLASSES, network, processor, scenes

from hf_segkd.commands import export, publish
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.export import run_onnx
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network

pytestmark = pytest.mark.slow
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
LEAST = 0.995


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network of random weights, published with its ONNX file and a static Space; the folder that holds both."""
    folder = tmp_path_factory.mktemp("runs")
    network().eval().save_pretrained(folder / "run")
    processor().save_pretrained(folder / "run")
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS)]
    export.main(["--model", str(folder / "run"), "--format", "onnx", "--latency_runs", "0", *data])
    command = [
        "--model",
        str(folder / "run"),
        "--repo_id",
        "ann/student",
        "--space",
        "ann/page",
        "--space_sdk",
        "static",
    ]
    publish.main([*command, "--dry_run", "--output", str(folder / "out")])
    return folder


@pytest.fixture(scope="module")
def site(published, tmp_path_factory):
    packages = install_library(tmp_path_factory.mktemp("npm"))
    site = lay_out(tmp_path_factory.mktemp("site") / "www", published / "out-space", published / "out", packages)
    scenes("val", 1)[0]["image"].save(site / "example.png")
    settings = json.loads((site / "models.json").read_text())
    (site / "models.json").write_text(json.dumps(settings | {"examples": ["example.png"]}))
    return site


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several kinds and sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))  # colour management would change each value
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for index, (name, size, options) in enumerate(
        [
            ("small.png", (32, 48), {}),
            ("odd.png", (61, 91), {}),
            ("large.png", (301, 431), {}),
            ("gamma.png", (120, 160), {"pnginfo": gamma}),
            ("turned.jpg", (120, 161), {"exif": exif, "quality": 90}),
        ]
    ):
        data = {"split": "val", "num_images": 8, "num_classes": NUM_CLASSES, "image_size": size}
        load_segmentation_dataset("demo", **data)[index]["image"].save(folder / name, **options)
    return sorted(folder.iterdir())


def masks_of_python(published, picture):
    """By `predict`, whose image processor resizes by torchvision; and by the export's own program, by Pillow."""
    image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
    model, its_processor = load_network(str(published / "out"))
    session, facts = run_onnx.load(published / "out" / "onnx" / "model.onnx")
    return predict(model.eval(), its_processor, image).numpy(), run_onnx.segment(session, facts, image)


def check(mask, published, picture):
    predicted, by_pillow = masks_of_python(published, picture)
    assert mask.shape == predicted.shape
    assert len(np.unique(predicted)) > 1
    shares = [(mask == expected).mean() for expected in (predicted, by_pillow)]
    print(picture.name, *(f"{100 * share:.3f} %" for share in shares))
    assert min(shares) >= LEAST


def snippet(published):
    (text,) = re.findall(r"```js\n(.*?)```", (published / "out" / "README.md").read_text(), re.DOTALL)
    return text


def test_the_cards_snippet_gives_pythons_mask_in_node(published, site, pictures, tmp_path):
    (tmp_path / "node_modules").symlink_to(site / "npm")
    program = "import './hub.mjs';\n" + snippet(published) + "console.log(JSON.stringify([...mask.segmentation.data]))"
    (tmp_path / "program.mjs").write_text(program)
    for picture in pictures:
        if picture.name == "turned.jpg":  # Node does not turn pictures
            continue
        image = Image.open(picture).convert("RGB")
        image.save(tmp_path / "photo.jpg", "PNG")  # the library looks at the content
        with serve(site) as (url, _):
            hub = (
                f'import {{ env }} from "@huggingface/transformers"; env.remoteHost = "{url}/"; env.cacheDir = "cache";'
            )
            (tmp_path / "hub.mjs").write_text(hub)
            done = subprocess.run(["node", "program.mjs"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        check(np.reshape(json.loads(done.stdout), image.size[::-1]), published, picture)


def test_the_cards_snippet_gives_pythons_mask_in_chromium(published, site, pictures, tmp_path):
    require_browser()
    head = '<script type="importmap">{"imports": {"@huggingface/transformers": "/library.mjs"}}</script>'
    end = "window.found = [...mask.segmentation.data];"
    (site / "snippet.html").write_text(f'{head}<script type="module">{snippet(published)}{end}</script>')
    for picture in pictures:
        if picture.name not in ("odd.png", "turned.jpg"):
            continue
        (site / "photo.jpg").write_bytes(picture.read_bytes())
        with serve(site) as (url, _), open_page(f"{url}/snippet.html", tmp_path) as page:
            found = wait_until(page, lambda: page.execute_script("return window.found"))
        check(np.reshape(found, ImageOps.exif_transpose(Image.open(picture)).size[::-1]), published, picture)


@pytest.mark.parametrize(("device", "chromium"), [("wasm", ()), ("webgpu", SOFTWARE_GPU)])
def test_the_page_gives_pythons_masks(device, chromium, published, site, pictures, tmp_path):
    require_browser()
    with serve(site) as (url, asked):
        point_at(site, url)
        with open_page(f"{url}/index.html", tmp_path, *chromium) as page:
            wait_until(page, lambda: "Choose a picture." in page_text(page))
            offered = [option.get_property("value") for option in page.find_elements("css selector", "#device option")]
            if device not in offered:
                pytest.skip(f"this Chromium gives no adapter for {device}")
            page.execute_script("document.getElementById('device').value = arguments[0]", device)
            for picture in pictures:
                check(segment(page, picture, site), published, picture)
            if device == "wasm":
                check_rest_of_page(page, published, site / "example.png", tmp_path)
        parts = ("/index.html", "/page.js", "/resize.js", "/models.json", "/library.mjs", "/npm/", "/example.png")
        hub = "/ann/student/resolve/main/"
        assert [path for path in asked if not path.startswith((*parts, hub))] == []
        assert {path.removeprefix(hub) for path in asked if path.startswith(hub)} == {
            "config.json",
            "preprocessor_config.json",
            "onnx/model.onnx",
        }


def segment(page, picture, site):
    """The mask (h, w) that the page draws of a picture."""
    page.find_element("css selector", "#picture").send_keys(str(picture))
    wait_until(page, lambda: "forward pass" in page_text(page))
    return drawn_mask(page, site)


def drawn_mask(page, site):
    colours = json.loads((site / "models.json").read_text())["colours"]
    url = page.execute_script("return document.getElementById('classes').toDataURL()")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
    of_class = np.stack([(drawn == colour).all(-1) for colour in colours.values()])
    assert (of_class.sum(0) == 1).all()
    return of_class.argmax(0)


def check_rest_of_page(page, published, example, folder):
    """Examples, opacity, legend, refusals, and a phone's width."""
    page.find_element("css selector", "#examples button").send_keys("\ue007")  # Enter
    wait_until(page, lambda: "forward pass" in page_text(page))
    check(drawn_mask(page, example.parent), published, example)
    shares = [float(cell.text.rstrip(" %")) for cell in page.find_elements("css selector", "#legend td")]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.3)
    classes = page.find_element("css selector", "#classes")
    assert classes.value_of_css_property("opacity") == "0.5"
    page.find_element("css selector", "#opacity").send_keys("\ue010")  # the End key
    assert classes.value_of_css_property("opacity") == "1"
    for field in page.find_elements("css selector", "input, select, canvas, #examples"):
        assert field.accessible_name, field.get_attribute("outerHTML")
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    (folder / "text.png").write_text("no picture")
    Image.new("1", (6000, 6000)).save(folder / "huge.png")
    for name, reason in (("text.png", "cannot read the file"), ("huge.png", "6000 x 6000 pixels")):
        page.find_element("css selector", "#picture").send_keys(str(folder / name))
        wait_until(page, lambda reason=reason: reason in page_text(page))
        assert not page.find_element("css selector", "#legend").is_displayed()


@pytest.mark.parametrize(
    ("lost", "told"), [("library.mjs", "transformers.js cannot be loaded"), ("ann", "The network cannot be loaded")]
)
def test_the_page_tells_what_it_cannot_load(lost, told, site, pictures, tmp_path):
    require_browser()
    (site / lost).rename(site / "away")
    try:
        with serve(site) as (url, _):
            point_at(site, url)
            with open_page(f"{url}/index.html", tmp_path) as page:
                if lost == "ann":
                    wait_until(page, lambda: "Choose a picture." in page_text(page))
                    page.find_element("css selector", "#picture").send_keys(str(pictures[0]))
                wait_until(page, lambda: told in page_text(page))
    finally:
        (site / "away").rename(site / lost)


def wait_until(page, ready, seconds=120):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(page, seconds, poll_frequency=0.2).until(lambda _: ready())
