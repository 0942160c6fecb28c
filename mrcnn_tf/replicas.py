"""Sums over the replicas of a strategy, from within one of them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def sum_over_replicas(values: Any) -> Any:
    """A tensor, or a list of them, added up over all replicas; itself where there is one, or none."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
