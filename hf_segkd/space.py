"""The folder of a Space: a page on the Hub that runs a student, and its teacher, on anybody's pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import yaml
from PIL import Image

import hf_segkd

PACKAGE = Path(hf_segkd.__file__).parent
APP = PACKAGE / "app"


def write_space(
    folder: Path,
    *,
    student_id: str,
    teacher_id: str | None = None,
    title: str,
    license: str | None = None,
    examples: Sequence[Image.Image] = (),
) -> None:
    """Write the app, what it needs, and this package, which a Space could not install by its name.

    Args:
        folder: Where to; made if it is not there.
        student_id: Hub id (or folder) of the student.
        teacher_id: The same of the teacher; without one the page shows the student alone.
        title: Headline of the page.
        license: Licence of the Space as the Hub spells it; never assumed.
        examples: Pictures to pick from; their terms must allow showing them.
    """
    shutil.copytree(PACKAGE, folder / "hf_segkd", ignore=shutil.ignore_patterns("__pycache__", "app", "recipes"))
    for name in ("app.py", "requirements.txt"):
        shutil.copy(APP / name, folder / name)
    files = [f"examples/{index}.png" for index in range(len(examples))]
    for file, image in zip(files, examples, strict=True):
        (folder / file).parent.mkdir(exist_ok=True)
        image.save(folder / file)
    settings = {"student": student_id, "teacher": teacher_id, "title": title, "examples": files}
    (folder / "models.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(student_id, teacher_id, title, license))


def _readme(student_id: str, teacher_id: str | None, title: str, license: str | None) -> str:
    models = [name for name in (student_id, teacher_id) if name is not None]
    metadata = {
        "title": title,
        "emoji": "🧩",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "models": [name for name in models if not Path(name).is_dir()],
        "license": license,
    }
    front = yaml.safe_dump(
        {key: value for key, value in metadata.items() if value}, allow_unicode=True, sort_keys=False
    )
    return (
        f"---\n{front}---\n\n{title}: upload a picture, and see the classes that {' and '.join(models)} find in it.\n"
    )
