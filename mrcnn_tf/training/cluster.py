"""Several machines: which processes train together, from TF_CONFIG or from Slurm, and what they agree on.

Each process ("worker") trains on its own devices; the worker 0 is the chief, which alone writes files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping

import tensorflow as tf

from mrcnn_tf.stepping import has_machines
from mrcnn_tf.training.errors import DistributionError, WorkerLostError

logger = logging.getLogger("mrcnn_tf")

FIRST_PORT = 12300  # of Slurm's tasks; each task of a machine takes the next
START_WITHIN = 600  # seconds for all workers to come up
# What TensorFlow raises where an exchange fails, or is given up since another worker is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)

_made: tf.distribute.Strategy | None = None


def workers_named(environment: Mapping[str, str]) -> int:
    """How many workers the environment names: by TF_CONFIG, else by Slurm's step; 1 where it names none.

    Raises:
        DistributionError: a TF_CONFIG that is no such json.
    """
    if environment.get("TF_CONFIG"):
        try:
            cluster = json.loads(environment["TF_CONFIG"]).get("cluster", {})
            if not all(isinstance(cluster.get(job, []), list) for job in ("chief", "worker")):
                raise TypeError('the workers of "cluster" should be a list of addresses')
            return max(1, sum(len(cluster.get(job, ())) for job in ("chief", "worker")))
        except (ValueError, AttributeError, TypeError) as error:
            raise DistributionError(f"TF_CONFIG cannot be read ({error}): {environment['TF_CONFIG'][:200]}") from error
    # Of the step that srun started: a batch script without srun is one process, whatever it was allotted.
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_PROCID" in environment else 1


def slurm_config(environment: Mapping[str, str]) -> dict:
    """What TF_CONFIG would be for the tasks of a Slurm step, which are numbered node after node.

    Raises:
        DistributionError: variables that are missing, or tasks that are numbered another way.
    """
    try:
        rank = int(environment["SLURM_PROCID"])
        nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
        counts = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    except (KeyError, ValueError) as error:
        raise DistributionError(f"the variables of the Slurm step cannot be read: {error}") from error
    port = int(environment.get("MRCNN_TF_PORT", FIRST_PORT))
    tasks = [(node, number) for node, count in zip(nodes, counts) for number in range(count)]
    if len(nodes) != len(counts) or rank >= len(tasks):
        raise DistributionError(f"Slurm names the nodes {nodes} with {counts} tasks, and task {rank}")
    here = environment.get("SLURMD_NODENAME", tasks[rank][0])
    if here != tasks[rank][0]:
        raise DistributionError(
            f"task {rank} runs on {here}, not on {tasks[rank][0]}: start it with srun --distribution=block"
        )
    addresses = [f"{node}:{port + number}" for node, number in tasks]
    return {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}


def expand_nodes(text: str) -> list[str]:
    """["a1", "a2", "b07"] of "a[1-2],b07", as Slurm abbreviates the names of nodes."""
    names: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)", text):
        if not ranges:
            names.append(prefix + suffix)
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            width = len(first)
            names += [f"{prefix}{number:0{width}d}{suffix}" for number in range(int(first), int(last or first) + 1)]
    return names


def expand_counts(text: str) -> list[int]:
    """[2, 2, 1] of "2(x2),1", as Slurm abbreviates numbers of tasks."""
    counts: list[int] = []
    for part in text.split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()).groups() if part else ("0", "0")
        counts += [int(count)] * int(times or 1)
    return counts


def multi_worker_strategy() -> tf.distribute.Strategy:
    """The strategy of all workers that the environment names; each call gives the same one.

    Raises:
        DistributionError: TensorFlow has run something already, or the workers do not come together.
    """
    global _made
    if _made is not None:
        return _made
    if not os.environ.get("TF_CONFIG"):
        os.environ["TF_CONFIG"] = json.dumps(slurm_config(os.environ))
        _share_gpus(os.environ)
    count = workers_named(os.environ)
    # TensorFlow itself would wait for hours.
    patience = threading.Timer(
        START_WITHIN, _give_up, [f"the {count} workers did not come together in {START_WITHIN} s"]
    )
    patience.daemon = True
    patience.start()
    try:
        _made = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise DistributionError(
            f"the workers have to find each other before anything else is done: call mrcnn_tf.strategy() at the start "
            f"of the program ({error})"
        ) from error
    except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        text = f"the {count} workers named by TF_CONFIG did not come together: {error}"
        raise DistributionError(f"{text}; {_remedy(os.environ['TF_CONFIG'], count)}") from error
    finally:
        patience.cancel()
    return _made


def _remedy(text: str, count: int) -> str:
    """What to look at where the workers did not come together."""
    given = json.loads(text)
    task = given.get("task")
    if not isinstance(task, dict) or not isinstance(task.get("index"), int) or "type" not in task:
        return f'TF_CONFIG needs "task": {{"type": "worker", "index": a number from 0 to {count - 1}}}'
    addresses = given["cluster"].get(task["type"], [])
    if not 0 <= task["index"] < len(addresses):
        return f'"index" is {task["index"]}, and the cluster has {len(addresses)} of type {task["type"]!r}'
    own = addresses[task["index"]]
    return f"this one should listen at {own}: is the port taken, perhaps by a process of an earlier start?"


def _give_up(message: str) -> None:
    os.write(2, f"error: {message}\n".encode())
    os._exit(1)  # the main thread waits within TensorFlow


def _share_gpus(environment: Mapping[str, str]) -> None:
    """Gives each of several Slurm tasks of a machine its own GPUs, where Slurm has not."""
    gpus = tf.config.list_physical_devices("GPU")
    task = int(environment.get("SLURM_LOCALID", 0))
    addresses = json.loads(environment["TF_CONFIG"])["cluster"]["worker"]
    if "SLURM_GPUS_PER_TASK" in environment:
        return
    here = addresses[int(environment["SLURM_PROCID"])].rpartition(":")[0]
    tasks = sum(address.rpartition(":")[0] == here for address in addresses)
    if tasks > 1 and len(gpus) >= tasks:
        share = len(gpus) // tasks
        tf.config.set_visible_devices(gpus[task * share : (task + 1) * share], "GPU")


class Team:
    """The workers of a training, and which of them this process is; one alone without several machines.

    Attributes:
        index, count: this worker's number, and how many there are.
        is_chief: whether this process writes the files.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.index, self.count = 0, 1
        if has_machines(strategy):
            resolver = strategy.cluster_resolver
            cluster = resolver.cluster_spec().as_dict()
            chiefs, workers = len(cluster.get("chief", ())), len(cluster.get("worker", ()))
            self.count = chiefs + workers
            self.index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
        self.is_chief = self.index == 0
        self._sum = tf.function(self._sum_over_devices)

    @tf.autograph.experimental.do_not_convert
    def _sum_over_devices(self, value: tf.Tensor) -> tf.Tensor:
        def add_up(value):
            own = tf.identity(value)  # on this device; an argument is nowhere yet
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        return self.strategy.experimental_local_results(self.strategy.run(add_up, args=(value,)))[0]

    def mean(self, value: float) -> float:
        """The mean of what all workers give, who all have to call this; the workers wait for each other here."""
        if self.count == 1:
            return float(value)
        # In float64: a step beyond 2^24 is no float32 any more.
        return float(self._sum(tf.constant(value, tf.float64))) / self.strategy.num_replicas_in_sync

    def any(self, flag: bool) -> bool:
        """Whether any worker says so; see `mean`."""
        return self.mean(float(flag)) > 0

    def wait(self) -> None:
        """Waits until all workers are here."""
        self.mean(0.0)

    @contextlib.contextmanager
    def together(self, how_to_resume: str = "") -> Iterator[None]:
        """What is done within ends with a clear message if another worker is lost.

        Raises:
            WorkerLostError: an exchange with the other workers failed.
        """
        try:
            yield
        except LOST as error:
            if self.count == 1:
                raise
            resolver = self.strategy.cluster_resolver
            named = set(re.findall(r"/job:(\w+)/replica:0/task:(\d+)", error.message))
            gone = sorted(named - {(resolver.task_type, str(resolver.task_id))})
            which = " or ".join(f"{job} {number}" for job, number in gone) or "another worker"
            raise WorkerLostError(
                f"worker {self.index} of {self.count}: the training ended, since {which} is gone or cannot be reached "
                f"({type(error).__name__}: {_reason(error.message)}). {how_to_resume}".rstrip()
            ) from error


def _reason(message: str) -> str:
    """The line of TensorFlow's message that says what happened; the others are about where."""
    lines = (line.strip() for line in message.splitlines())
    where = ("Graph execution error", "Detected at", "File ", "<stack traces", "[[")
    return next((line for line in lines if line and not line.startswith(where)), "no reason given")[:300]
