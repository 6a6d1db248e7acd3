"""`write_static_space`: the folder of a static Space, a page that runs a student in the browser, without a server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import constants
from jinja2 import Template
from PIL import Image

from .javascript import STATIC


def write_static_space(
    folder: Path,
    *,
    student_id: str,
    title: str,
    license: str | None = None,
    examples: Sequence[Image.Image] = (),
    colours: Mapping[str, Sequence[int]],
) -> None:
    """Write the page and its settings.

    Args:
        folder: Folder to write to; created if it is missing.
        student_id: Hub id of the student, which is published with an ONNX file that `javascript_size` accepts.
        title: Headline of the page.
        license: Licence of the Space as the Hub spells it; never assumed.
        examples: Pictures to pick from; their terms must allow showing them.
        colours: Name of each class -> its colour.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_static_space(Path(folder), student_id="ann/roads", title="Roads", colours={"road": (9, 9, 9)})
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['README.md', 'index.html', 'models.json', 'page.js', 'resize.js']
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "page.js", "resize.js"):
        shutil.copy(STATIC / name, folder / name)
    files = [f"examples/{index}.png" for index in range(len(examples))]
    for file, image in zip(files, examples, strict=True):
        (folder / file).parent.mkdir(exist_ok=True)
        image.save(folder / file)
    hub = constants.ENDPOINT
    settings = {"student": student_id, "hub": hub, "title": title, "examples": files, "colours": dict(colours)}
    (folder / "models.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    readme = Template((STATIC / "README.md").read_text(encoding="utf-8"), keep_trailing_newline=True)
    text = readme.render(title=title, student=student_id, hub=hub, license=license)
    (folder / "README.md").write_text(text, encoding="utf-8")
