"""A page that segments a picture with a student and, if there is one, its teacher, side by side.

In a Space it reads `models.json` beside it. Here: python hf_segkd/app/app.py --student DIR_OR_ID [--teacher DIR_OR_ID]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from hf_segkd.data.labels import Colour, voc_palette
from hf_segkd.inference import predict

HERE = Path(__file__).resolve().parent
SETTINGS = {"teacher": None, "title": "Student and teacher", "examples": []}

# A free Space has 16 GB. Logits exist at the picture's size, at times twice: 1e9 of them take 4 GB.
MAX_PIXELS = 25_000_000
MAX_LOGITS = 1_000_000_000
SHOWN_SIDE = 1280
OPACITY = 0.6

CSS = """
.heading h1 { margin-bottom: 0.2rem; }
.result .role { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 0.6rem; margin-bottom: 0.5rem; }
.result h2 { font-size: 1.15rem; font-weight: 600; margin: 0; }
.result .picture { position: relative; overflow: hidden; border-radius: 8px; line-height: 0; }
.result .picture img { width: 100%; }
.result .picture .classes { position: absolute; inset: 0; opacity: var(--opacity, 0.6); image-rendering: pixelated; }
.result .empty { display: grid; place-items: center; aspect-ratio: 4 / 3; border-radius: 8px; padding: 1rem;
    border: 1px dashed var(--border-color-primary); color: var(--body-text-color-subdued); text-align: center; }
.result .numbers { margin: 0.6rem 0; }
.result table { width: 100%; border-collapse: collapse; border: 0 !important; }
.result tr { border: 0 !important; }
.result th, .result td { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
    padding: 0.3rem 0.2rem !important; }
.result th { text-align: left; font-weight: 400; overflow-wrap: anywhere; }
.result td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.result .swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; border-radius: 3px;
    border: 1px solid var(--body-text-color-subdued); vertical-align: -0.1em; }
"""


@dataclass(frozen=True)
class Network:
    """A network with its image processor, and the Hub id or folder it came from."""

    source: str
    model: PreTrainedModel
    processor: Any

    @property
    def names(self) -> list[str]:
        """Class names in the order of the ids."""
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @property
    def link(self) -> str:
        """Its model card on the Hub, or the bare name of its folder, as HTML."""
        if Path(self.source).is_dir():
            return f"<code>{escape(Path(self.source).name)}</code>"
        return f'<a href="https://huggingface.co/{escape(self.source)}" target="_blank">{escape(self.source)}</a>'


def load_network(source: str) -> Network:
    """A network from a folder or the Hub."""
    model = AutoModelForSemanticSegmentation.from_pretrained(source).eval()
    return Network(source, model, AutoImageProcessor.from_pretrained(source))


def segment(network: Network, image: Image.Image) -> tuple[np.ndarray, float]:
    """Class ids (h, w) uint8 as `predict` gives them, and the milliseconds of the network's forward pass in it.

    The time is the median of three: the first picture of a size is slower than those that follow.
    """
    ticks: list[float] = []
    hooks = [
        network.model.register_forward_pre_hook(lambda *_: ticks.append(time.perf_counter())),
        network.model.register_forward_hook(lambda *_: ticks.append(time.perf_counter())),
    ]
    try:
        masks = [predict(network.model, network.processor, image) for _ in range(3)]
    finally:
        for hook in hooks:
            hook.remove()
    times = [end - start for start, end in zip(ticks[::2], ticks[1::2], strict=True)]
    return masks[0].to(torch.uint8).numpy(), 1000 * statistics.median(times)


def max_pixels(networks: list[Network]) -> int:
    """How many pixels a picture may have, by memory: networks with many classes take smaller ones."""
    return min(MAX_PIXELS, MAX_LOGITS // max(network.model.config.num_labels for network in networks))


def read_image(path: str, limit: int) -> Image.Image:
    """RGB image of at most `limit` pixels, turned upright by its EXIF orientation.

    Raises:
        ValueError: If the image is larger, which is known before it is decoded, cannot be read, or has more than 8
            bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > limit:
                raise ValueError(
                    f"The picture has {image.width} x {image.height} pixels, {image.width * image.height / 1e6:.1f} "
                    f"million. At most {limit / 1e6:.1f} million are taken here: please make it smaller."
                )
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"The picture has more than 8 bits per channel (mode {image.mode}).")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            "This file cannot be read as a picture: it is damaged, cut short or of another kind."
        ) from error


def legend(mask: np.ndarray, names: list[str]) -> list[tuple[str, Colour, float]]:
    """Name, colour and share of the pixels of each class in a mask (h, w), largest first."""
    palette = voc_palette(len(names))
    counts = np.bincount(mask.ravel(), minlength=len(names))
    present = sorted(np.flatnonzero(counts), key=lambda index: -counts[index])
    return [(names[index], palette[index], counts[index] / mask.size) for index in present]


def overlay(image: Image.Image, mask: np.ndarray, num_labels: int) -> str:
    """The image with its classes (h, w) over it as HTML: two layers, so that the browser alone sets the opacity."""
    photo = image.copy()
    photo.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    classes = Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST)
    classes.putpalette(np.asarray(voc_palette(num_labels), dtype=np.uint8).tobytes())
    return (
        f'<div class="picture"><img src="{_data_uri(photo, "JPEG")}" alt="The picture">'
        f'<img class="classes" src="{_data_uri(classes, "PNG")}" alt="Its classes as colours"></div>'
    )


def _data_uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def result(role: str, network: Network, image: Image.Image) -> tuple[str, np.ndarray]:
    """What the page says of a picture: overlay, time, size and legend as HTML; and the mask (h, w) uint8."""
    mask, milliseconds = segment(network, image)
    rows = "".join(
        f'<tr><th scope="row"><span class="swatch" style="background: rgb{colour}"></span>{escape(name)}</th>'
        f"<td>{'< 0.1' if share < 0.001 else f'{100 * share:.1f}'} %</td></tr>"
        for name, colour, share in legend(mask, network.names)
    )
    parameters = network.model.num_parameters() / 1e6
    html = (
        f"{_heading(role, network)}{overlay(image, mask, len(network.names))}"
        f'<p class="numbers"><b>{milliseconds:.1f} ms</b> forward pass · <b>{parameters:.3g} M</b> parameters</p>'
        f"<table>{rows}</table>"
    )
    return html, mask


def empty_result(role: str, network: Network) -> str:
    """What stands where a result will be, as HTML."""
    return f'{_heading(role, network)}<div class="empty">Upload a picture to see its classes.</div>'


def _heading(role: str, network: Network) -> str:
    return f'<div class="role"><h2>{role}</h2>{network.link}</div>'


def build_page(networks: dict[str, Network], title: str, examples: list[str]) -> gr.Blocks:
    """The page: a picture on the left, and a column for each network by its role, "Student" and maybe "Teacher"."""
    limit = max_pixels(list(networks.values()))

    def show(path: str | None) -> list[Any]:
        """Segment a picture: for each network a report in HTML, and the class ids as a PNG of mode L."""
        if path is None:
            return [
                value
                for role, network in networks.items()
                for value in (empty_result(role, network), gr.DownloadButton(value=None, interactive=False))
            ]
        try:
            image = read_image(path, limit)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        values = []
        for role, network in networks.items():
            html, mask = result(role, network, image)
            # Beside the upload, in gradio's own folder, which delete_cache empties.
            file = Path(path).with_name(f"{Path(path).stem}_{role.lower()}_mask.png")
            Image.fromarray(mask).save(file)
            values += [html, gr.DownloadButton(value=file, interactive=True)]
        return values

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_introduction(networks, title), elem_classes="heading")
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=300
                )
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the classes")
                if examples:
                    gr.Examples(examples, picture, cache_examples=False)
            outputs = []
            for role, network in networks.items():
                with gr.Column(min_width=300):
                    outputs.append(gr.HTML(empty_result(role, network), elem_classes="result"))
                    outputs.append(gr.DownloadButton("Download mask (PNG of class ids)", interactive=False, size="md"))
        picture.change(show, picture, outputs, api_name="segment")
        opacity.change(None, opacity, js="value => document.documentElement.style.setProperty('--opacity', value)")
    return page


def _introduction(networks: dict[str, Network], title: str) -> str:
    links = [network.link for network in networks.values()]
    sentence = f"Semantic segmentation with {' distilled from '.join(links)}."
    return f"<h1>{escape(title)}</h1><p>{sentence}</p>"


def read_settings(args: argparse.Namespace) -> dict[str, Any]:
    """`models.json` beside this file, where there is one, with what was given on the command line in its place."""
    file = HERE / "models.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    given = {name: value for name in ("student", "teacher") if (value := getattr(args, name)) is not None}
    return {**SETTINGS, **saved, **given}


def main(args: list[str] | None = None) -> None:
    """Load the networks once, and serve the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", help="folder or Hub id of the student")
    parser.add_argument("--teacher", help="folder or Hub id of the teacher")
    parser.add_argument("--port", type=int, help="port to serve on, the first free one from 7860 by default")
    parsed = parser.parse_args(args)
    settings = read_settings(parsed)
    if "student" not in settings:
        parser.error("--student is needed: there is no models.json beside app.py that names one")
    networks = {
        role.capitalize(): load_network(settings[role]) for role in ("student", "teacher") if settings[role] is not None
    }
    # gradio opens an upload before `read_image` does, and PIL's own limit would become an error without a reason.
    Image.MAX_IMAGE_PIXELS = None
    examples = [str(HERE / example) for example in settings["examples"]]
    page = build_page(networks, settings["title"], examples)
    page.launch(server_port=parsed.port, show_error=True, max_file_size="50mb", footer_links=["api", "gradio"], css=CSS)


if __name__ == "__main__":
    main()
