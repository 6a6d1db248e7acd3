"""A page that segments a picture with a student and, if there is one, its teacher, side by side.

In a Space it reads `models.json` beside it. Here: python hf_segkd/app/app.py --student DIR_OR_ID [--teacher DIR_OR_ID]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.themes.utils.fonts import LocalFont
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from hf_segkd.data.image_files import FORMATS, read_rgb
from hf_segkd.data.labels import Colour, class_names, voc_palette
from hf_segkd.networks import predicts_masks, with_taps
from hf_segkd.networks.inference import predict

HERE = Path(__file__).resolve().parent
SETTINGS = {"teacher": None, "title": "Student and teacher", "examples": [], "colours": None}

# A free Space has 16 GB. Memory grows by the pixels of a picture and not by the classes, and larger pictures are shown
# to the networks in tiles, so that theirs does not grow at all; what is left to limit is the time on two slow cores.
MAX_PIXELS = 25_000_000
MAX_WHOLE_PIXELS = 4_000_000
TILE = 1024
SHOWN_SIDE = 1280
OPACITY = 0.5
WAITING = "The classes will appear here."
REFUSED = "This picture cannot be used."
POSSIBLE = "What can: {formats}, one picture a file, of 8 bits and up to {megapixels:.1f} megapixels."

CSS = """
.heading h1 { margin: 0; }
.heading p, .result .link, .result .numbers { opacity: 0.8; margin: 0; }
.heading, .heading .html-container { padding: 0; }
.inputs { align-self: flex-start; }
.inputs .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.output > .result { flex-grow: 1; }
.output > button { flex-grow: 0; }
.block.result { padding: 1rem; }
.result .html-container { padding: 0; }
.result .role { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 1rem; }
.result h2 { font-size: var(--text-lg); margin: 0; }
.result .link { overflow-wrap: anywhere; }
.result .stage { position: relative; overflow: hidden; margin: 0.5rem 0; border-radius: var(--radius-lg); }
.result .stage img { display: block; width: 100%; margin: 0; }
.result .stage .classes { position: absolute; inset: 0; opacity: var(--opacity); image-rendering: pixelated; }
.result .empty { display: grid; place-items: center; aspect-ratio: 4 / 3; padding: 1rem; text-align: center;
    background: var(--background-fill-secondary); }
.result table, .result tr, .result td, .result th { border: 0; }
.result table { width: 100%; margin: 0.5rem 0 0; border-collapse: collapse; }
.result tr { border-top: 1px solid var(--border-color-primary); }
.result th { text-align: left; font-weight: 400; padding: 0.35rem 0; overflow-wrap: anywhere; }
.result td { text-align: right; padding: 0.35rem 0 0.35rem 1rem; font-variant-numeric: tabular-nums; }
.result .swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.6em; border-radius: 3px;
    border: 1px solid var(--border-color-primary); vertical-align: -0.1em; }
"""


@dataclass(frozen=True)
class Network:
    """A network with its image processor, and the Hub id or folder it came from.

    Args:
        source: The Hub id or folder.
        model: The network, in evaluation mode.
        processor: Its image processor.
        colours: Name of a class -> its colour, where it is known.
    """

    source: str
    model: nn.Module
    processor: Any
    colours: dict[str, Sequence[int]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Class names in the order of the ids."""
        return class_names(self.model.config.id2label)

    @property
    def palette(self) -> list[Colour]:
        """Colours in the order of the ids: equal names have equal colours in all networks; else those of Pascal VOC."""
        pairs = zip(self.names, voc_palette(len(self.names)), strict=True)
        return [tuple(self.colours.get(name, colour)) for name, colour in pairs]

    @property
    def link(self) -> str:
        """Its model card on the Hub, or the bare name of its folder, as HTML."""
        if Path(self.source).is_dir():
            return f"<code>{escape(Path(self.source).name)}</code>"
        return f'<a href="https://huggingface.co/{escape(self.source)}" target="_blank">{escape(self.source)}</a>'


def load_network(source: str, colours: dict[str, Sequence[int]] | None = None) -> Network:
    """A network from a folder or the Hub, from safetensors files, and without running code of a repository."""
    masks = predicts_masks(AutoConfig.from_pretrained(source, trust_remote_code=False))
    auto_class = AutoModelForUniversalSegmentation if masks else AutoModelForSemanticSegmentation
    model = auto_class.from_pretrained(source, use_safetensors=True, trust_remote_code=False, dtype="float32").eval()
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    processor.do_center_crop = False  # the classes are laid over the whole picture
    return Network(source, with_taps(model), processor, colours or {})  # also turns masks with classes into logits


def usual_colours(source: str) -> dict[str, Colour]:
    """The colours of a network's classes by their names; not for a Space, which lacks the data sets."""
    from hf_segkd.data import class_colours

    names = class_names(AutoConfig.from_pretrained(source, trust_remote_code=False).id2label)
    return dict(zip(names, class_colours(names), strict=True))


def segment(network: Network, image: Image.Image) -> tuple[np.ndarray, float]:
    """Class ids (h, w) as `predict` gives them, and the milliseconds of the network's forward pass in it.

    The time is that of the fastest of up to five passes, as many as half a second holds: the first takes longer. Of a
    picture in tiles it is that of all of them.
    """
    tiles = {} if image.width * image.height <= MAX_WHOLE_PIXELS else {"tile": TILE}
    ticks: list[float] = []
    hooks = [
        network.model.register_forward_pre_hook(lambda *_: ticks.append(time.perf_counter())),
        network.model.register_forward_hook(lambda *_: ticks.append(time.perf_counter())),
    ]
    start = time.perf_counter()
    try:
        mask = predict(network.model, network.processor, image, **tiles)
        passes = len(ticks) // 2
        while len(ticks) < 10 * passes and time.perf_counter() - start < 0.5:
            predict(network.model, network.processor, image, **tiles)
    finally:
        for hook in hooks:
            hook.remove()
    durations = [end - start for start, end in zip(ticks[::2], ticks[1::2], strict=True)]
    seconds = min(sum(durations[first : first + passes]) for first in range(0, len(durations), passes))
    return mask.to(torch.uint8 if len(network.names) <= 256 else torch.int32).numpy(), 1000 * seconds


def legend(mask: np.ndarray, names: list[str], palette: list[Colour]) -> list[tuple[str, Colour, float]]:
    """Name, colour and share of the pixels of each class in a mask (h, w), largest first."""
    counts = np.bincount(mask.ravel(), minlength=len(names))
    present = sorted(np.flatnonzero(counts), key=lambda index: -counts[index])
    return [(names[index], palette[index], counts[index] / mask.size) for index in present]


def overlay(image: Image.Image, mask: np.ndarray, palette: list[Colour]) -> str:
    """The image with its classes (h, w) over it as HTML: two layers, so that only the browser sets the opacity."""
    photo = image.copy()
    photo.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    classes = Image.fromarray(mask).resize(photo.size, Image.Resampling.NEAREST)
    if classes.mode == "L":
        classes.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
    else:  # more classes than a palette holds
        classes = Image.fromarray(np.asarray(palette, dtype=np.uint8)[np.asarray(classes)])
    return (
        f'<div class="stage"><img src="{_data_uri(photo, "JPEG")}" alt="The picture">'
        f'<img class="classes" src="{_data_uri(classes, "PNG")}" alt="Its classes as colours"></div>'
    )


def _data_uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def result(role: str, network: Network, image: Image.Image) -> tuple[str, np.ndarray]:
    """The result for a picture: overlay, time, size and legend as HTML; and the mask (h, w) uint8."""
    mask, milliseconds = segment(network, image)
    rows = "".join(
        f'<tr><th scope="row"><span class="swatch" style="background: rgb{colour}"></span>{escape(name)}</th>'
        f"<td>{'< 0.1' if share < 0.001 else f'{100 * share:.1f}'}&nbsp;%</td></tr>"
        for name, colour, share in legend(mask, network.names, network.palette)
    )
    parameters = network.model.num_parameters() / 1e6
    html = (
        f"{_heading(role, network)}{overlay(image, mask, network.palette)}"
        f'<p class="numbers"><b>{milliseconds:.1f} ms</b> forward pass · <b>{parameters:.3g} M</b> parameters</p>'
        f"<table>{rows}</table>"
    )
    return html, mask


def empty_result(role: str, network: Network, text: str) -> str:
    """A message in place of a result, as HTML."""
    return f'{_heading(role, network)}<div class="stage empty">{text}</div>'


def _heading(role: str, network: Network) -> str:
    return f'<div class="role"><h2>{role}</h2><span class="link">{network.link}</span></div>'


def build_page(networks: dict[str, Network], title: str, examples: list[str]) -> gr.Blocks:
    """The page: a picture on the left, and a column for each network by its role, "Student" and maybe "Teacher"."""

    def blank(text: str) -> list[Any]:
        """No results, and no masks to download."""
        no_mask = gr.DownloadButton(value=None, interactive=False)
        return [value for role, network in networks.items() for value in (empty_result(role, network, text), no_mask)]

    def show(path: str | None) -> list[Any]:
        """Segment a picture: for each network a report in HTML, and the class ids as a PNG of mode L."""
        if path is None:
            return blank(WAITING)
        try:
            image = read_rgb(path, "The picture", MAX_PIXELS)
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
            with gr.Column(min_width=300, elem_classes="inputs"):
                picture = gr.Image(
                    label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=300
                )
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the classes")
                if examples:
                    gr.Examples(examples, picture, cache_examples=False)
            outputs = []
            # A row of its own: where three columns have no room, the picture stands above and not between them.
            with gr.Column(scale=len(networks), min_width=300 * len(networks)), gr.Row(equal_height=True):
                for role, network in networks.items():
                    with gr.Column(min_width=280, elem_classes="output"):
                        waiting = empty_result(role, network, WAITING)
                        outputs.append(gr.HTML(waiting, elem_classes="result", container=True, padding=True))
                        outputs.append(gr.DownloadButton("Download mask (PNG)", interactive=False))
        shown = picture.change(show, picture, outputs, api_name="segment")
        # Else the results of the picture before would stay.
        possible = POSSIBLE.format(formats=", ".join(FORMATS), megapixels=MAX_PIXELS / 1e6)
        shown.failure(lambda: blank(f"{REFUSED} {possible}"), None, outputs, api_visibility="private")
        opacity.change(None, opacity, js="value => document.documentElement.style.setProperty('--opacity', value)")
    return page


def _introduction(networks: dict[str, Network], title: str) -> str:
    links = [network.link for network in networks.values()]
    sentence = f"Semantic segmentation with {' distilled from '.join(links)}."
    threads = torch.get_num_threads()
    timed = (
        f"Timed is the forward pass alone, on the CPU of this server (threads: {threads}), the fastest of up to five. "
        f"Pictures of more than {MAX_WHOLE_PIXELS / 1e6:g} megapixels are shown to the networks in tiles."
    )
    return f"<h1>{escape(title)}</h1><p>{sentence} {timed}</p>"


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
    colours = usual_colours(settings["student"]) if settings["colours"] is None else settings["colours"]
    networks = {
        role.capitalize(): load_network(settings[role], colours)
        for role in ("student", "teacher")
        if settings[role] is not None
    }
    # gradio opens an upload before `read_rgb` does, whose own limit is stricter and gives its reason.
    Image.MAX_IMAGE_PIXELS = None
    examples = [str(HERE / example) for example in settings["examples"]]
    page = build_page(networks, settings["title"], examples)
    page.launch(
        server_port=parsed.port,
        max_file_size="50mb",
        footer_links=["api", "gradio"],
        # gradio's own choice of weight, 600, is a file without most letters.
        theme=gr.themes.Default(
            primary_hue="indigo", font=(LocalFont("Source Sans Pro", weights=(400, 700)), "sans-serif")
        ),
        css=f":root {{ --opacity: {OPACITY} }}\n{CSS}",
    )


if __name__ == "__main__":
    main()
