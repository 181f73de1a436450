"""Callbacks: what takes part in a run without being part of the task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from taskloom.callbacks.base import Callback

if TYPE_CHECKING:
    from taskloom.callbacks.accumulation_scheduler import GradientAccumulationScheduler
    from taskloom.callbacks.early_stopping import EarlyStopping
    from taskloom.callbacks.exponential_moving_average import EMAWeightAveraging
    from taskloom.callbacks.lambda_callback import LambdaCallback
    from taskloom.callbacks.learning_rate_monitor import LearningRateMonitor
    from taskloom.callbacks.model_checkpoint import ModelCheckpoint
    from taskloom.callbacks.model_pruning import ModelPruning
    from taskloom.callbacks.model_summary import ModelSummary, RichModelSummary
    from taskloom.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
    from taskloom.callbacks.preemption import Preemption
    from taskloom.callbacks.spike_detection import SpikeDetection
    from taskloom.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
    from taskloom.callbacks.terminate_on_nan import TerminateOnNaN
    from taskloom.callbacks.throughput import ThroughputMonitor, measure_flops
    from taskloom.callbacks.timer import Timer
    from taskloom.callbacks.weight_averaging import WeightAveraging

# Loaded on first use: one callback should not cost the imports of all.
_HOME = {
    "EMAWeightAveraging": "exponential_moving_average",
    "EarlyStopping": "early_stopping",
    "GradientAccumulationScheduler": "accumulation_scheduler",
    "LambdaCallback": "lambda_callback",
    "LearningRateMonitor": "learning_rate_monitor",
    "ModelCheckpoint": "model_checkpoint",
    "ModelPruning": "model_pruning",
    "ModelSummary": "model_summary",
    "OnExceptionCheckpoint": "on_exception_checkpoint",
    "Preemption": "preemption",
    "RichModelSummary": "model_summary",
    "SpikeDetection": "spike_detection",
    "StochasticWeightAveraging": "stochastic_weight_averaging",
    "TerminateOnNaN": "terminate_on_nan",
    "ThroughputMonitor": "throughput",
    "Timer": "timer",
    "WeightAveraging": "weight_averaging",
    "measure_flops": "throughput",
}

__all__ = [
    "Callback",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "Preemption",
    "RichModelSummary",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TerminateOnNaN",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
    "measure_flops",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'taskloom.callbacks' has no attribute {name!r}")
    value = getattr(import_module(f"taskloom.callbacks.{home}"), name)
    globals()[name] = value
    return value
