"""The conditions under which a task is evaluated: mode, precision and gradients, all as they were before afterwards."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from taskloom.core.errors import explain
from taskloom.core.policies import ValidationPolicy
from taskloom.loop.run import Run, modes_kept
from taskloom.precision import Precision
from taskloom.resolve import REGISTRIES, Graph


@contextmanager
def evaluating(run: Run, policy: ValidationPolicy) -> Generator[None, None, None]:
    """Evaluate within: the weights that callbacks put there, the precision that the policy asks for, no gradients.

    Weights, precision and every submodule's mode are as they were before afterwards.
    """
    with ExitStack() as stack:
        stack.enter_context(modes_kept(run.task))
        for context in run.hooks.of_callbacks("evaluation_context"):
            stack.enter_context(context())
        if run.evaluation_precision is not None:
            stack.enter_context(converted(run.task, run.evaluation_precision))
        stack.enter_context(torch.inference_mode() if policy.inference_mode else torch.no_grad())
        yield


@contextmanager
def ordinary_tensors() -> Generator[None, None, None]:
    """Make tensors within that training may change later, though inference mode is on around it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def converted(module: nn.Module, precision: Precision) -> Generator[None, None, None]:
    """Hold a module in another precision, and give it back the very tensors it had: no rounding reaches training."""
    parameters = [(each, each.data, each.grad) for each in module.parameters()]
    buffers = [
        (owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)
    ]
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        precision.convert_module(module)
        replaced = [entry for entry in buffers if entry[0].get_buffer(entry[1]) is not entry[2]]
        yield
    finally:
        for parameter, data, gradient in parameters:
            parameter.data, parameter.grad = data, gradient
        for owner, name, buffer in replaced:
            setattr(owner, name, buffer)


def evaluation_precision(policy: ValidationPolicy, graph: Graph) -> Precision | None:
    """Return the precision that a policy evaluates in, None for that of training.

    Raises:
        ValueError: there is no such precision, or the accelerator lacks it.
    """
    if policy.precision is None:
        return None
    registry, accelerator = REGISTRIES["precision"], graph.accelerator
    name = registry.canonical(str(policy.precision))
    precision: Precision = registry.load(name).from_name(name)
    for dtype in precision.required_dtypes():
        if not accelerator.supports(dtype):
            raise ValueError(
                explain(
                    f"Accelerator {accelerator.name!r} does not compute in {str(dtype).removeprefix('torch.')}",
                    why=f"ValidationPolicy(precision={policy.precision!r}) needs it",
                    fix="another precision, or None for that of training",
                )
            )
    precision.connect(graph.strategy.device)
    return precision
