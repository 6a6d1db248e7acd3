"""`ConnectorsFirst`: trains the connectors of a loss before the rest."""

from __future__ import annotations

from transformers.utils import logging

from hf_segkd.training.distiller import Distiller

logger = logging.get_logger(__name__)


class ConnectorsFirst:
    """Trains only the loss's connectors for the `connector_epochs` it asks for, then all but what is finished.

    A gradient of None keeps the optimizer away from a parameter entirely: no decay, no momentum.

    Args:
        distiller: The student and the loss.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.name, self.epochs = distiller.loss.name, distiller.loss.request.connector_epochs
        self.finished = list(distiller.loss.finished_parameters())
        connectors = {id(parameter) for parameter in distiller.loss.connector_parameters()}
        self.others = [parameter for parameter in distiller.parameters() if id(parameter) not in connectors]

    def warn_if_nothing_else_trains(self, num_train_epochs: int) -> None:
        """Warn if the run ends before the student's turn comes."""
        if num_train_epochs <= self.epochs:
            logger.warning(
                f"{self.name} trains only its connectors in the first {self.epochs} epoch(s), and this run has no "
                "more: the student will learn nothing. Train longer, or set connector_epochs of its method_kwargs to 0."
            )

    def drop_gradients(self, epoch: float | None) -> None:
        """Drop those of what does not learn now: after a backward pass, before gradients are measured and clipped.

        Args:
            epoch: Of the run's state.
        """
        for parameter in self.others if int(epoch or 0) < self.epochs else self.finished:
            parameter.grad = None
