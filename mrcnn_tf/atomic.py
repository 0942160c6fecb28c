"""Files that are whole or not there: written under another name, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a neighbouring name of the same ending, and renames what it wrote to `path`.

    If `write` fails, what it wrote is removed, and a file that stood at `path` is as it was.
    """
    path = Path(path)
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    with naming(path):
        try:
            write(unfinished)
            flush_to_disk(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an `OSError` name the file: a full disk is told by what has been opened, without a name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def flush_to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
