"""Fetching public files into a folder that keeps them, and telling what to do where there is no network."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mrcnn_tf.weights.report import WeightsError

logger = logging.getLogger("mrcnn_tf")

FOLDER = "MRCNN_TF_CACHE"  # the environment variable that names another folder
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
UNFINISHED = ".part-"


def cache_folder() -> Path:
    """Where fetched files are kept: `MRCNN_TF_CACHE`, or `~/.cache/mrcnn_tf`."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else Path.home() / ".cache" / "mrcnn_tf"


def fetch(url: str, file_name: str, check: str = "", progress: bool = True) -> Path:
    """The path of a public file, fetched unless it is in the cache folder already.

    Under its name there is only ever a whole file whose hash is right; what an interruption leaves is removed.

    Args:
        url: its address.
        file_name: its name in the cache folder.
        check: "sha256:..." or "md5:...", the hash or its beginning; "" where none is known.
        progress: shows a progress bar (on the standard error).

    Raises:
        WeightsError: it cannot be had (which file to put where then), or has another hash.
    """
    folder = cache_folder()
    path = folder / file_name
    if path.is_file():
        with open(path, "rb") as file:
            digest = _digest(_chunks(file), check)
        _check_hash(check, digest, f"{path}: is damaged or another file; remove it")
        return path
    logger.info("fetching %s into %s", url, folder)
    unfinished = folder / f"{UNFINISHED}{os.getpid()}-{file_name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = open(unfinished, "wb")
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written to ({error}); {FOLDER} names another folder") from error
    try:
        with target:
            digest = _copy(url, target, file_name, check, progress)
            target.flush()
            os.fsync(target.fileno())
        _check_hash(check, digest, f"{url}: what came is not what was published; try again")
        os.replace(unfinished, path)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise WeightsError(_without_network(url, file_name, folder, error)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _copy(url: str, target: BinaryIO, name: str, check: str, progress: bool) -> str:
    """Writes what is at `url` to `target`, all of it, and gives its hash."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        length = answer.headers.get("Content-Length")
        size = int(length) if length else None
        bar = tqdm(total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress)
        with bar:
            digest = _digest(_written(_chunks(answer), target, bar), check)
    if size is not None and target.tell() != size:
        raise OSError(f"the connection ended after {target.tell()} of {size} bytes")
    return digest


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _written(chunks: Iterator[bytes], target: BinaryIO, bar: tqdm) -> Iterator[bytes]:
    for chunk in chunks:
        target.write(chunk)
        bar.update(len(chunk))
        yield chunk


def _digest(chunks: Iterator[bytes], check: str) -> str:
    """The hash that `check` begins, of all chunks; of the kind sha256 where none is asked for."""
    kind = check.partition(":")[0] or "sha256"
    # The hash is to find damage, nothing else: some systems refuse md5 otherwise.
    digest = hashlib.new(kind, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _check_hash(check: str, digest: str, problem: str) -> None:
    kind, _, wanted = check.partition(":")
    if not digest.startswith(wanted.lower()):
        raise WeightsError(f"{problem} (its {kind} is {digest}, but {wanted} was published)")


def _without_network(url: str, file_name: str, folder: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (
        f"{url} cannot be fetched ({reason}). On a machine with a network, get the file {file_name} from there and put "
        f"it into {folder} (the environment variable {FOLDER} names another folder); or give its place: weights=PATH"
    )
