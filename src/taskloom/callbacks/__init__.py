"""Callbacks: what takes part in a run without being part of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom.callbacks.base import Callback
from taskloom.core.lazy import on_first_use

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
    "EMAWeightAveraging": "taskloom.callbacks.exponential_moving_average",
    "EarlyStopping": "taskloom.callbacks.early_stopping",
    "GradientAccumulationScheduler": "taskloom.callbacks.accumulation_scheduler",
    "LambdaCallback": "taskloom.callbacks.lambda_callback",
    "LearningRateMonitor": "taskloom.callbacks.learning_rate_monitor",
    "ModelCheckpoint": "taskloom.callbacks.model_checkpoint",
    "ModelPruning": "taskloom.callbacks.model_pruning",
    "ModelSummary": "taskloom.callbacks.model_summary",
    "OnExceptionCheckpoint": "taskloom.callbacks.on_exception_checkpoint",
    "Preemption": "taskloom.callbacks.preemption",
    "RichModelSummary": "taskloom.callbacks.model_summary",
    "SpikeDetection": "taskloom.callbacks.spike_detection",
    "StochasticWeightAveraging": "taskloom.callbacks.stochastic_weight_averaging",
    "TerminateOnNaN": "taskloom.callbacks.terminate_on_nan",
    "ThroughputMonitor": "taskloom.callbacks.throughput",
    "Timer": "taskloom.callbacks.timer",
    "WeightAveraging": "taskloom.callbacks.weight_averaging",
    "measure_flops": "taskloom.callbacks.throughput",
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

__getattr__ = on_first_use(__name__, _HOME)
