"""`PublishingTrainer`: reports on the student of a run, and puts it on the Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.utils import PushInProgress

from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.publishing.pushes import repository_name
from hf_segkd.training.checkpoints import copy_without_machine
from hf_segkd.training.run_report import (
    Run,
    network_costs,
    refuse_card_kwargs,
    run_report,
    shown_networks,
    write_student,
)


class PublishingTrainer(Trainer):
    """The part of `DistillationTrainer` that reports and publishes."""

    @property
    def push_in_progress(self) -> PushInProgress | None:
        """The uploads that a run waits for when it ends; None before the first."""
        return self._pushes.in_progress

    @property
    def _run(self) -> Run:
        """The run that the report and the card describe."""
        return Run(
            args=self.args,
            student=self.student,
            processor=self.processing_class,
            teacher=self.teacher,
            own_paper=None if self.distiller.loss is None else self.distiller.loss.paper,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            steps=self.state.global_step,
            best_step=self._best_step,
            resumed_from_step=self.resumed_from_step,
            unreadable_images=self.unreadable_images,
            evaluation=self._evaluation,
            confusion_matrix=self.confusion_matrix,
        )

    def report(self) -> RunReport | None:
        """Scores of the student's current weights and how it was trained, if it was evaluated on known images.

        `steps` counts the steps that were trained, the budget that comparisons use; `best_step` is set where training
        went back to the weights of an earlier step. Unreadable images are counted since `resumed_from_step`.
        """
        return run_report(self._run)

    def create_model_card(self, **given: Any) -> None:
        """Write the card, with the scores and pictures it shows, beside the student in the output folder.

        Args:
            **given: What `Trainer` writes into its card (tags, dataset ...), which is refused.

        Raises:
            ValueError: If something is given: the card says what training knows.
        """
        refuse_card_kwargs(given)
        if self.is_world_process_zero():
            self._write_publication(Path(self.args.output_dir))

    def _write_publication(self, folder: Path, checkpoint: Path | None = None) -> None:
        """Write what is pushed: the student with its card and, if `args.hub_strategy` says so, a checkpoint."""
        with self._networks_to_show():
            write_student(folder, self._run, self.hub_model_id or repository_name(self.args), self._costs)
        if checkpoint is not None and (place := self._pushes.place_of(checkpoint)) is not None:
            copy_without_machine(checkpoint, folder / place)

    @contextlib.contextmanager
    def _networks_to_show(self) -> Iterator[dict[str, tuple[nn.Module, Any]]]:
        with self._final_weights():
            self.student.eval()  # Trainer puts it back into training mode at every step
            yield shown_networks(self._run)

    @cached_property
    def _costs(self) -> list[dict[str, Any]]:
        return network_costs(self._run)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository and the branch `args.hub_revision`, where they are not there.

        So a wrong name or licence, or a token that may not write, is found before training starts.

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
        self.hub_model_id = self._pushes.prepare(token, private)

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
        refuse_card_kwargs(given)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = self._pushes.push(self._write_publication, self.hub_model_id, commit_message, token, revision)
        if blocking:
            return push.result()
        self._pushes.add(push)
        return push
