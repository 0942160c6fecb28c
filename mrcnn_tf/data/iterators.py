"""The end of iterators over `tf.data`: of those that nobody holds any more, and of all when the program ends."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops  # why, says `end_iterators_elsewhere`

_DELAY = 1.0  # seconds, so that many iterators that end together cost one collection

_QUIET = 0.2  # seconds without a refused call, after which no further one is to come: the buffers are full of errors
_LONGEST = 60.0  # seconds that the end of a program waits for images

_ending: list[list] = []


class _Loading:
    """The images that are being loaded, in whatever threads.

    An iterator that something still holds when the interpreter shuts down (an error that nobody caught holds all that
    its functions had) is ended in there, and waits for its images; but no other thread gets to run Python any more, so
    it would wait for ever. Therefore all loading ends before that.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = self._refused = 0
        self.over = False

    def __call__(self, function: Callable, *arguments: Any) -> Any:
        with self._changed:
            if self.over:
                self._refused += 1
                raise RuntimeError("the program is ending: no more images are loaded")
            self._count += 1
        try:
            return function(*arguments)
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Waits for the images that are being loaded; from now on there are no others."""
        deadline = time.monotonic() + _LONGEST
        with self._changed:
            self.over = True
            self._changed.wait_for(lambda: not self._count, _LONGEST)
        refused = -1
        while refused != self._refused and time.monotonic() < deadline:
            refused = self._refused
            time.sleep(_QUIET)


loading = _Loading()  # of the process, as the interpreter's end is
atexit.register(loading.end)


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
