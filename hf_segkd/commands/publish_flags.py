"""`PublishingCommand`: the flags of the publishing command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from hf_segkd.evaluation.reports import SCORES_FILE


@dataclass(kw_only=True)
class PublishingCommand:
    """Flags: what to publish, under which name, and what it is compared with."""

    model: str = field(metadata={"help": "Folder of the network, as training leaves it."})
    repo_id: str = field(metadata={"help": "Name on the Hub: user/name."})
    private: bool = field(default=False, metadata={"help": "Make a private repository, if it is not there yet."})
    self_contained: bool = field(
        default=False,
        metadata={"help": "Ship the network's code too, for trust_remote_code=True without the package."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Write the folder, say what would go where, send nothing."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder to keep what is sent; by default a temporary one, or MODEL-publication in a dry run."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the network as the Hub spells it (apache-2.0, ...); never assumed."}
    )
    evaluation: str = field(default=SCORES_FILE, metadata={"help": "File with the scores in the folder of each run."})
    runs: list[str] = field(default_factory=list, metadata={"help": "Folders of the same training with other seeds."})
    baseline: list[str] = field(
        default_factory=list, metadata={"help": "Folders of the same student trained on the labels alone."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the teacher; by default the one the run names."}
    )
    teacher_id: str | None = field(
        default=None, metadata={"help": "Hub id of the teacher, when --teacher is a folder: the card's base_model."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "What the card calls the training's data set."})
    dataset_id: str | None = field(default=None, metadata={"help": "Hub id of the data set."})
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of a data set of your own."})
    pictures: int | None = field(
        default=None,
        metadata={
            "help": "Images of the evaluation split to show, 0 for none; by default 4 where the data set's terms are "
            "known to allow it."
        },
    )
    pictures_note: str | None = field(default=None, metadata={"help": "Why the card shows no pictures."})
    space: str | None = field(default=None, metadata={"help": "Also publish a Space under this name that runs it."})
    space_sdk: str = field(
        default="gradio",
        metadata={
            "help": "gradio: a server runs it, and its teacher; static: the visitor's browser runs its ONNX file.",
            "choices": ("gradio", "static"),
        },
    )

    def __post_init__(self) -> None:
        for flag in ("repo_id", "space", "teacher_id"):
            name = getattr(self, flag)
            if name is not None:
                _check_name(flag, name)
        if self.space is None and self.space_sdk != "gradio":
            raise ValueError(f"--space_sdk {self.space_sdk} is the kind of a Space: name one with --space user/name.")
        if self.pictures is not None and self.pictures < 0:
            raise ValueError(f"--pictures takes a number of images, 0 for none, got {self.pictures}.")
        for folder in (self.kept, self.kept_space):
            if folder is not None and folder.exists():
                if not folder.is_dir():
                    raise ValueError(f"{folder} is a file, and --output takes a folder. Choose another one.")
                if any(folder.iterdir()):
                    raise ValueError(f"{folder} exists and is not empty. Remove it, or choose another --output.")

    @property
    def kept(self) -> Path | None:
        """Folder that keeps the sent files, if they are kept."""
        if self.output is not None:
            return Path(self.output).resolve()
        model = Path(self.model).resolve()
        return model.with_name(f"{model.name}-publication") if self.dry_run else None

    @property
    def kept_space(self) -> Path | None:
        """The folder beside it that keeps the Space's files."""
        kept = self.kept
        return None if kept is None or self.space is None else kept.with_name(f"{kept.name}-space")


def _check_name(flag: str, name: str) -> None:
    """Make sure that a name is a full one on the Hub, before any work is done."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}. {error}") from error
    if "/" not in name:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}: the user or organisation is missing.")
