"""`write_space`: the folder of a Space, a page on the Hub that runs a student and its teacher on anybody's pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Template
from PIL import Image

PACKAGE = Path(__file__).parents[1]
APP = PACKAGE / "app"
# Files of this package, which a Space cannot install by its name, that app.py imports. `data` and `losses` are copied
# without their __init__.py, which would need `datasets` and all losses: these files of theirs need no others.
SOURCES = (
    "__init__.py",
    "auto.py",
    "data/image_files.py",
    "data/labels.py",
    "data/image_processors.py",
    "losses/base.py",
    "types.py",
    "models/*.py",
    "networks/__init__.py",
    "networks/callable_network.py",
    "networks/feature_network.py",
    "networks/feature_paths.py",
    "networks/inference.py",
    "networks/logits_network.py",
    "networks/outputs.py",
    "networks/tiles.py",
)


def write_space(
    folder: Path,
    *,
    student_id: str,
    teacher_id: str | None = None,
    title: str,
    license: str | None = None,
    examples: Sequence[Image.Image] = (),
    colours: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write the app, its settings and the source files it needs.

    Args:
        folder: Folder to write to; created if it is missing.
        student_id: Hub id (or folder) of the student.
        teacher_id: The same of the teacher; without one the page shows only the student.
        title: Headline of the page.
        license: Licence of the Space as the Hub spells it; never assumed.
        examples: Pictures to pick from; their terms must allow showing them.
        colours: Name of a class -> its colour; other classes get Pascal VOC's.
    """
    for source in (file for pattern in SOURCES for file in PACKAGE.glob(pattern)):
        target = folder / "hf_segkd" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for name in ("app.py", "requirements.txt"):
        shutil.copy(APP / name, folder / name)
    files = [f"examples/{index}.png" for index in range(len(examples))]
    for file, image in zip(files, examples, strict=True):
        (folder / file).parent.mkdir(exist_ok=True)
        image.save(folder / file)
    settings = {
        "student": student_id,
        "teacher": teacher_id,
        "title": title,
        "examples": files,
        "colours": dict(colours or {}),
    }
    (folder / "models.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    models = [name for name in (student_id, teacher_id) if name is not None]
    readme = Template((APP / "README.md").read_text(encoding="utf-8"), keep_trailing_newline=True)
    (folder / "README.md").write_text(readme.render(title=title, models=models, license=license), encoding="utf-8")
