"""How long a gradient method will run, for those whose loss or weights follow a schedule."""

from __future__ import annotations

from erasure.methods._base import GradientMethod, Job


def total_steps(method: GradientMethod, job: Job) -> int:
    """Optimiser steps of `method` on the data of `job`."""
    counted = len(job.forget) + (len(job.retain) if method.epochs_of == "both" else 0)
    return method.loop(counted).steps
