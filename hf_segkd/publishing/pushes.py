"""`HubPushes`: uploads a student in the background while it is trained."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from hf_segkd.publishing.hub import prepare_repository, upload
from hf_segkd.publishing.publication import NOT_ALWAYS_THERE

logger = logging.get_logger(__name__)


class HubPushes:
    """Uploads folders, which are written at once and sent in the background, one after the other.

    Args:
        args: Training arguments, whose `hub_` arguments say what is uploaded and where to.

    Attributes:
        in_progress: The uploads that a run waits for when it ends; None before the first.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self.in_progress: PushInProgress | None = None
        self._private = False
        self._api = HfApi()  # its `run_as_future` has one worker, so commits come in the order of the pushes

    def prepare(self, token: str | None = None, private: bool | None = None) -> str:
        """Create the repository and its branch if they are missing, and return its full name, "user/name".

        Args:
            token: Instead of `args.hub_token`.
            private: Instead of `args.hub_private_repo`.

        Raises:
            ValueError: See `prepare_repository`.
            ConnectionError: If the Hub can not be reached.
        """
        self._private = bool(self.args.hub_private_repo if private is None else private)
        return prepare_repository(
            repository_name(self.args),
            private=self._private,
            license=self.args.hub_license,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is pushed now: if `args.hub_strategy` says so and no other push is in progress."""
        busy = self.in_progress is not None and not self.in_progress.is_done()
        return self.args.hub_strategy != HubStrategy.END and (self.args.hub_always_push or not busy)

    def place_of(self, checkpoint: Path) -> str | None:
        """The folder of the repository that a checkpoint is pushed to; None where only its student is pushed."""
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        return places.get(self.args.hub_strategy)

    def push(
        self,
        write: Callable[[Path], None],
        repo_id: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
    ) -> Future[str]:
        """Have a folder written now, and start its upload in one commit.

        Args:
            write: Function that writes into the folder that it is given.
            repo_id: Full name of the repository.
            commit_message: First line of the commit.
            token: Instead of `args.hub_token`.
            revision: Branch, instead of `args.hub_revision`.

        Returns:
            A future of the commit's URL. It holds all errors, those of writing too: a full disk is no reason to end
            the training.
        """
        with contextlib.ExitStack() as cleanup:
            try:
                folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
                write(folder)
            except Exception as error:
                failed = Future()
                failed.set_exception(error)
                return failed
            until_sent = cleanup.pop_all()

        def send() -> str:
            with until_sent:
                return upload(
                    folder,
                    repo_id,
                    private=self._private,
                    commit_message=commit_message,
                    outdated=NOT_ALWAYS_THERE,
                    revision=revision or self.args.hub_revision,
                    token=token or self.args.hub_token,
                )

        return self._api.run_as_future(send)

    def add(self, push: Future[str]) -> None:
        """Continue the run during a push: the run waits for it at its end, and its failure is logged."""
        if self.in_progress is None or self.in_progress.is_done():
            self.in_progress = PushInProgress([])
        self.in_progress.jobs.append(push)
        push.add_done_callback(_log_failure)

    def log_failed_last(self, repo_id: str | None) -> None:
        """Log an error if the last push failed, after which the Hub does not hold the last student."""
        if self.in_progress is not None and self.in_progress.jobs[-1].exception() is not None:
            logger.error(
                f"The last push failed, so {repo_id} on the Hub does not hold the last student. "
                "trainer.push_to_hub() sends it."
            )


def repository_name(args: Any) -> str:
    """Name of a student's repository: `args.hub_model_id`, or the output folder's name."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


def progress_message(args: TrainingArguments, state: TrainerState) -> str:
    """First line of the commit of a checkpoint."""
    by_epoch = args.save_strategy == SaveStrategy.EPOCH
    return f"Training in progress, {f'epoch {int(state.epoch)}' if by_epoch else f'step {state.global_step}'}"


def _log_failure(push: Future[str]) -> None:
    if push.exception() is not None:
        logger.error(f"A push to the Hub failed; training goes on, the next push takes all along. {push.exception()}")
