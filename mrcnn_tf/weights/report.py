"""What became of every tensor when weights were loaded from a foreign file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger("mrcnn_tf")

LISTED = 40  # names of one kind that a summary shows


class WeightsError(ValueError):
    """A weights file that cannot be read, or that does not fit the model."""


@contextlib.contextmanager
def reading(path: str | Path, hint: str = "the file may be cut short") -> Iterator[None]:
    """Tells what reading a damaged file, or one of another kind, raises as a `WeightsError` that names the file."""
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # h5py and zipfile raise a dozen classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: cannot be read ({reason}); {hint}") from error


@dataclass
class WeightsReport:
    """The outcome of loading weights.

    Attributes:
        source: the file.
        loaded: tensors of the model that were set, `layer/tensor`.
        missing: tensors that the model needs and the file has not, under the file's names.
        left: layers of the model that were left as they were drawn because tensors are missing, or because the source
            has none for them at all (an ImageNet network none for the heads).
        unused: tensors of the file that nothing took.
        left_out: tensors (or named parts of them) that were left out on purpose: the model has no place for them.
        reinitialized: layers that were left as they were drawn because the caller asked for it.
        warnings: conventions of the file that the model's configuration does not follow.
        reasons: why a tensor of `left_out` was left out, by its name, where that is not told with it.
        notes: what else is worth knowing, and in order.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    reinitialized: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was found and fits the configuration."""
        return not self.missing and not self.warnings

    def summary(self) -> str:
        """All of it as text of several lines, what went wrong in capitals."""
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded"]
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        lines += self.notes
        if self.missing:
            lines += _listed(f"NOT FOUND IN THE FILE: {len(self.missing)} tensors", self.missing)
            lines += _listed(f"LEFT AT RANDOM VALUES for that reason: {len(self.left)} layers", self.left)
        elif self.left:
            lines += _listed(f"left as drawn, nothing in the source is for them: {len(self.left)} layers", self.left)
        if self.reinitialized:
            lines += _listed(f"drawn anew as asked: {len(self.reinitialized)} layers", self.reinitialized)
        lines += self._left_out()
        if self.unused:
            lines += _listed(f"in the file but not used: {len(self.unused)} tensors", self.unused)
        return "\n".join(lines)

    def _left_out(self) -> list[str]:
        """One line for each reason, with an example."""
        by_reason: dict[str, list[str]] = {}
        for name in self.left_out:
            by_reason.setdefault(self.reasons.get(name, ""), []).append(name)
        return [
            f"left out on purpose: {len(names)} tensors, as {names[-1]}{f' ({reason})' if reason else ''}"
            for reason, names in by_reason.items()
        ]

    def log(self) -> None:
        """Logs the summary: as a warning when anything was not found, else as information."""
        logger.log(logging.INFO if self.complete else logging.WARNING, "%s", self.summary())


def _listed(title: str, names: Sequence[str]) -> list[str]:
    more = [f"    ... and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return [title, *(f"    {name}" for name in names[:LISTED]), *more]
