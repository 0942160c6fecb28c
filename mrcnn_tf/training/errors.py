"""What can end a training early."""

from __future__ import annotations

import signal


class DistributionError(ValueError):
    """Devices that are not there, or a batch that cannot be split over them."""


class WorkerLostError(RuntimeError):
    """Another of the processes that train together is gone; all are to be started again."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another model, data set or batch."""


class NonFiniteLossError(ArithmeticError):
    """A loss or a weight became NaN or infinite; the message names step, losses and images."""


class TrainingInterrupted(SystemExit):
    """Ctrl-C or SIGTERM: the training was saved and can be resumed.

    Being a `SystemExit` it ends a script quietly with the shell's usual status (130 after Ctrl-C, 143
    after SIGTERM); the message has been printed by then.
    """

    def __init__(self, signal_number: int, step: int, message: str):
        super().__init__(128 + signal_number)
        self.signal = signal.Signals(signal_number)
        self.step = step
        self.message = message

    def __str__(self) -> str:
        return self.message
