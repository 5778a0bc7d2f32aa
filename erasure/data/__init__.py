"""Data sets, tasks, forget sets and images."""

from __future__ import annotations

from erasure.data.dataset import Aspect, Batch, Batches, Dataset
from erasure.data.loading import load_dataset, placed

__all__ = ["Aspect", "Batch", "Batches", "Dataset", "load_dataset", "placed"]
