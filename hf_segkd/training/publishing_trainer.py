"""`Trainer` that pushes publications: what others need of the student, with its card and scores, and nothing else."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress, logging

from hf_segkd.evaluation.reports import ARGUMENTS_FILE, read_json, write_json
from hf_segkd.publishing.hub import prepare_repository, upload
from hf_segkd.publishing.privacy import shareable
from hf_segkd.publishing.publication import NOT_ALWAYS_THERE
from hf_segkd.training.checkpoints import RECORD_FILE
from hf_segkd.training.reporting_trainer import ReportingTrainer, refuse_words_for_card

logger = logging.get_logger(__name__)


class PublishingTrainer(ReportingTrainer):
    """The pushes of `Trainer`, with a publication in place of the output folder.

    `push_to_hub`, `hub_strategy`, `hub_always_push`, `hub_revision`, `hub_private_repo` and `hub_token` mean what they
    mean to `Trainer`. A push is one commit, of a checkpoint too, which lies in a folder beside the student.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._private = False
        self.push_in_progress: PushInProgress | None = None
        self._uploads = ThreadPoolExecutor(max_workers=1)  # one, so that commits come in the order of the pushes
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository and the branch `args.hub_revision`, where they are not there.

        A wrong name or licence, or a token that may not write, is so known before training starts.

        Raises:
            ValueError: If there is no image processor, which others need to use the student, or for the reasons of
                `hf_segkd.publishing.hub.upload`.
            ConnectionError: If the Hub can not be reached.
        """
        if not self.is_world_process_zero():
            return
        if self.processing_class is None:
            raise ValueError(
                "push_to_hub needs processing_class, the image processor: nobody can use a student without."
            )
        self._private = bool(self.args.hub_private_repo if private is None else private)
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.hub_model_id = prepare_repository(
            name,
            private=self._private,
            license=self.args.hub_license,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **given: Any,
    ) -> str | Future[str] | None:
        """Save the student and publish it.

        Args:
            commit_message: First line of the commit.
            blocking: Wait for the upload.
            token: Instead of `args.hub_token`.
            revision: Branch, instead of `args.hub_revision`.
            private: Instead of `args.hub_private_repo`, for a repository that is not there yet.
            **given: What `Trainer` writes into its card (tags, dataset ...), which is refused.

        Returns:
            URL of the commit, a future of it if not `blocking`; None on all processes but the main one.

        Raises:
            ValueError: As `init_hf_repo` and `create_model_card`.
            ConnectionError: If the connection breaks.
        """
        refuse_words_for_card(given)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = self._push(commit_message, {}, token, revision)
        if blocking:
            return push.result()
        self._in_background(push)
        return push

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        when = f"epoch {int(self.state.epoch)}" if by_epoch else f"step {self.state.global_step}"
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        place = places.get(self.args.hub_strategy)
        beside = {} if place is None else {place: checkpoint_folder}
        self._in_background(self._push(f"Training in progress, {when}", beside))

    def _push(
        self, commit_message: str, beside: dict[str, str], token: str | None = None, revision: str | None = None
    ) -> Future[str]:
        """Write a publication as of now, with folders beside it, and start its upload.

        What goes wrong is the future's, in writing too: a full disk shall not end the training.
        """
        with contextlib.ExitStack() as cleanup:
            try:
                scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
                self._write_publication(scratch)
                # Copied, for training goes on and may delete old checkpoints.
                for name, folder in beside.items():
                    shutil.copytree(folder, scratch / name)
                    _hide_this_machine(scratch / name)
            except Exception as error:
                failed = Future()
                failed.set_exception(error)
                return failed
            until_sent = cleanup.pop_all()

        def send() -> str:
            with until_sent:
                return upload(
                    scratch,
                    self.hub_model_id,
                    private=self._private,
                    commit_message=commit_message,
                    outdated=NOT_ALWAYS_THERE,
                    revision=revision or self.args.hub_revision,
                    token=token or self.args.hub_token,
                )

        return self._uploads.submit(send)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if self.push_in_progress is not None and self.push_in_progress.jobs[-1].exception() is not None:
            logger.error(
                f"The last push failed, so {self.hub_model_id} on the Hub does not hold the last student. "
                "trainer.push_to_hub() sends it."
            )

    def _in_background(self, push: Future[str]) -> None:
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress([])
        self.push_in_progress.jobs.append(push)
        push.add_done_callback(_tell_failure)


def _hide_this_machine(checkpoint: Path) -> None:
    """Take folders and secrets out of a copy of a checkpoint; resuming needs none."""
    for name in (ARGUMENTS_FILE, RECORD_FILE, TRAINER_STATE_NAME):
        file = checkpoint / name
        if file.is_file():  # there is no state with save_only_model
            write_json(shareable(read_json(file)), file)


def _tell_failure(push: Future[str]) -> None:
    if push.exception() is not None:
        logger.error(f"A push to the Hub failed; training goes on, the next push takes all along. {push.exception()}")
