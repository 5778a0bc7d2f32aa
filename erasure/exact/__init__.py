"""Exact unlearning: classifiers kept as services on disk that forget single samples on request.

A method divides the samples over units (shards, or classes) and each unit over slices; a unit is trained in stages,
stage k on slices 1 to k from the state of stage k - 1. A stage is a pure function of the plan and of the ids it sees,
so a request retrains the stages that saw the ids, and ends, bit for bit, with the result of the plan without them.
"""

from __future__ import annotations

from erasure.exact.fit import fit
from erasure.exact.predict import predict
from erasure.exact.service import forget
from erasure.exact.verify import verify

__all__ = ["fit", "forget", "predict", "verify"]
