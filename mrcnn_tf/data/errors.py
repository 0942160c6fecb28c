"""What can be wrong with data: the error that is raised, and the record of what was skipped."""

from __future__ import annotations

import contextlib
import re
import threading

SKIP_REMEDY = "correct or remove it, or skip bad records (skip_bad=True, --skip-bad)"


class DataError(ValueError):
    """Data that cannot be used; the one-line message names the file, the record and the remedy.

    `kind` groups errors of one sort ("box of no area", "image missing", ...) for counting.
    """

    def __init__(self, message: str, kind: str = "bad data"):
        super().__init__(message)
        self.kind = kind


class Problems:
    """Counts what was skipped, by kind, and keeps the first few messages of each kind.

    Safe to add to from several threads. A `key` makes a problem count once, however often it is met
    (an unreadable image is met again in every epoch).
    """

    def __init__(self, keep: int = 3):
        self.counts: dict[str, int] = {}
        self.texts: dict[str, list[str]] = {}
        self._keep = keep
        self._keys: set = set()
        self._lock = threading.Lock()

    def add(self, kind: str, text: str, key: object = None) -> None:
        """Counts one problem of this kind, unless one with the same key was counted before."""
        with self._lock:
            if key is not None:
                if key in self._keys:
                    return
                self._keys.add(key)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            texts = self.texts.setdefault(kind, [])
            if len(texts) < self._keep:
                texts.append(text)

    @property
    def total(self) -> int:
        """How many problems were counted, of all kinds."""
        return sum(self.counts.values())

    def __bool__(self) -> bool:
        return bool(self.counts)

    def summary(self) -> str:
        """Some lines for people: the total, then each kind with its count and first messages."""
        if not self.counts:
            return "nothing was skipped"
        lines = [f"skipped {self.total} bad record{'s' if self.total > 1 else ''}:"]
        for kind, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            lines.append(f"  {count} x {kind}")
            lines += [f"    {text}" for text in self.texts[kind]]
            if count > len(self.texts[kind]):
                lines.append(f"    ... and {count - len(self.texts[kind])} more")
        return "\n".join(lines)


_CARRIED = re.compile(r"DataError: (?:\[(?P<kind>[^\]\n]*)\] )?(?P<message>[^\n]+)")


@contextlib.contextmanager
def clear_data_errors():
    """Turns the TensorFlow error that carries a `DataError` out of an input pipeline back into it.

    TensorFlow reports what Python raised inside `tf.data` as an error of its own, with a traceback
    for a message; whoever reads batches for a user does it inside this block.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        found = _CARRIED.search(str(error))
        if found is None:
            raise
        raise DataError(found["message"].strip(), found["kind"] or "bad data") from None
