"""Iterators over `tf.data` that nobody holds any more, and the thread that may end them."""

from __future__ import annotations

import _thread
import contextlib
import gc
import threading
import time
import weakref
from typing import Any

from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops  # why, says `end_iterators_elsewhere`

_DELAY = 1.0  # seconds, so that many iterators that end together cost one collection

_ending: list[list] = []


def end_iterators_elsewhere() -> None:
    """From now on no thread that loads images ends the iterator for which it loads.

    Whoever ends an iterator of `tf.data` waits for the images that are being loaded for it. Training that stops
    within an epoch, by an error or a signal, leaves its iterator in a reference cycle, so Python's garbage collector
    ends it, in whichever thread happens to be running: most often one that loads images, for the others wait. Were
    it an image of that very iterator, the thread would wait for itself, for ever, and because Python runs one
    collection at a time there would be none any more in the process: its memory would grow until the end.

    TensorFlow offers no place for this, so its classes of iterators get a finaliser; a TensorFlow without these
    classes stays as it is. May be called any number of times.
    """
    for module, name, finaliser in (
        (iterator_ops, "OwnedIterator", _end_unless_main),
        (multi_device_iterator_ops, "OwnedMultiDeviceIterator", _end),
    ):
        kind = getattr(module, name, None)
        if kind is not None and not hasattr(kind, "__del__"):
            kind.__del__ = finaliser


def _end_unless_main(iterator: Any) -> None:
    # The main thread loads no images for `tf.data`, so it may wait, and then what was held is free at once.
    if threading.get_ident() != threading.main_thread().ident:
        _end(iterator)


def _end(iterator: Any) -> None:
    # The thread is no `threading.Thread`: starting that takes locks, and a collection may begin while this very
    # thread has them. All else that the iterator holds may go in any thread.
    _ending.append([value for name, value in vars(iterator).items() if name.endswith("_resource")])
    with contextlib.suppress(RuntimeError):  # where the interpreter is shutting down, everything ends with it
        _thread.start_new_thread(_end_all, ())


def _end_all() -> None:
    time.sleep(_DELAY)
    held = []
    with contextlib.suppress(IndexError):  # another such thread may be taking them at the same time
        while True:
            held.append(_ending.pop())
    # The functions of an iterator over several devices hold its resource too, in cycles. Only when the collection
    # that found them is over, or one from here, are these the last that hold it.
    while held and not _collected():
        time.sleep(0.1)


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def _collected() -> bool:
    """Whether garbage could be collected: not while another thread is doing it."""
    cycle = weakref.ref(_Cycle())
    gc.collect()
    return cycle() is None
