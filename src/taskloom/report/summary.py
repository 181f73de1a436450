"""The table of a model's modules: what they are, how many parameters they hold, what goes in and comes out.

Lightning's `ModelSummary` is where users know the columns from.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from taskloom.core.errors import explain
from taskloom.core.task import TaskModule
from taskloom.core.transfer import move_to_device
from taskloom.report.tables import render_table
from taskloom.report.text import format_count

Size = list[Any]
Sizes = dict[str, tuple[Size | None, Size | None]]


@dataclass(frozen=True)
class ModuleRow:
    """One module.

    Attributes:
        name: its path in the task.
        kind: name of its class.
        parameters: how many numbers its parameters hold, those of its children included; those not yet created count 0.
        trainable: how many of them learn.
        training: whether it is in training mode.
        in_size: shape of its input in a forward pass of the example input, None when it was not run.
        out_size: shape of its output.
        lazy: some of its parameters are created by the first forward pass.
    """

    name: str
    kind: str
    parameters: int
    trainable: int
    training: bool
    in_size: Size | None = None
    out_size: Size | None = None
    lazy: bool = False


@dataclass(frozen=True)
class ModelSummaryTable:
    """What `summarize` found.

    Attributes:
        rows: modules down to the depth that was asked for, in the order they were registered.
        parameters: how many numbers the task's parameters hold; a parameter shared by two modules counts once.
        trainable: how many of them learn.
        megabytes: size of the parameters as they are stored, in 10⁶ bytes.
        buffers: how many numbers are in buffers, such as running means.
        has_sizes: an example input was run.
    """

    rows: tuple[ModuleRow, ...]
    parameters: int
    trainable: int
    megabytes: float
    buffers: int
    has_sizes: bool

    def render(self, *, width: int | None = None, terminal: bool | None = None) -> str:
        """Return the table as text: drawn with lines where `sys.stdout` is a terminal, plain elsewhere."""
        columns = ["", "Name", "Type", "Params", "Trainable", "Mode"]
        if self.has_sizes:
            columns += ["In sizes", "Out sizes"]
        body = []
        for number, row in enumerate(self.rows):
            count = f"{format_count(row.parameters)}{'?' if row.lazy else ''}"
            mode = "train" if row.training else "eval"
            cells = [str(number), row.name, row.kind, count, format_count(row.trainable), mode]
            if self.has_sizes:
                cells += [_size_text(row.in_size), _size_text(row.out_size)]
            body.append(cells)
        drawn = sys.stdout.isatty() if terminal is None else terminal
        table = render_table(columns, body, right={"", "Params", "Trainable"}, width=width, terminal=drawn)
        return f"{table}\n{self.totals()}"

    def totals(self) -> str:
        """Return the line below the table."""
        line = (
            f"{format_count(self.parameters)} parameters ({format_count(self.trainable)} trainable, "
            f"{format_count(self.parameters - self.trainable)} not), {self.megabytes:,.3f} MB"
        )
        lazy = "; those marked ? are created by the first batch" if any(row.lazy for row in self.rows) else ""
        return f"{line}, {format_count(self.buffers)} numbers in buffers{lazy}" if self.buffers else f"{line}{lazy}"

    def __str__(self) -> str:
        return self.render(terminal=False)


def summarize(task: TaskModule, max_depth: int = 1) -> ModelSummaryTable:
    """List the modules of a task.

    Where `task.example_input_array` is set, it is passed through `forward` once, in evaluation mode and without
    gradients; the random state and the mode of every module are the same afterwards.

    Args:
        task: any task; sharded parameters count with their full size.
        max_depth: how deep to go: 1 lists the attributes of the task, -1 everything, 0 only the totals.

    Raises:
        ValueError: `max_depth` is below -1.
    """
    if max_depth < -1:
        raise ValueError(explain("max_depth is a depth, -1 for all", got=max_depth))
    modules = dict(_modules(task, max_depth))
    rows = tuple(_row(name, module) for name, module in modules.items())
    has_sizes = task.example_input_array is not None and max_depth != 0
    if has_sizes:
        sizes = _measure_sizes(task, modules)
        rows = tuple(_with_sizes(row, sizes) for row in rows)
    parameters = list(task.parameters())
    return ModelSummaryTable(
        rows=rows,
        parameters=sum(map(_numel, parameters)),
        trainable=sum(_numel(parameter) for parameter in parameters if parameter.requires_grad),
        megabytes=sum(_numel(each) * each.element_size() for each in parameters if not is_lazy(each)) / 1e6,
        buffers=sum(map(_numel, task.buffers())),
        has_sizes=has_sizes,
    )


def _modules(task: nn.Module, max_depth: int) -> Iterator[tuple[str, nn.Module]]:
    for name, module in task.named_modules():
        if name and (max_depth == -1 or name.count(".") < max_depth):
            yield name, module


def _numel(tensor: Tensor) -> int:
    return 0 if isinstance(tensor, UninitializedParameter) or is_lazy(tensor) else tensor.numel()


def _row(name: str, module: nn.Module) -> ModuleRow:
    parameters = list(module.parameters())
    return ModuleRow(
        name=name,
        kind=type(module).__name__,
        parameters=sum(map(_numel, parameters)),
        trainable=sum(_numel(parameter) for parameter in parameters if parameter.requires_grad),
        training=module.training,
        lazy=any(is_lazy(parameter) for parameter in parameters),
    )


def _with_sizes(row: ModuleRow, sizes: Sizes) -> ModuleRow:
    if row.name not in sizes:
        return row
    in_size, out_size = sizes[row.name]
    return replace(row, in_size=in_size, out_size=out_size)


def _measure_sizes(task: TaskModule, modules: Mapping[str, nn.Module]) -> Sizes:
    sizes: Sizes = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            sizes.setdefault(name, (_size(inputs), _size(output)))

        return record

    modes = [(module, module.training) for module in task.modules()]
    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    device = task.device
    example = move_to_device(task.example_input_array, device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            task.eval()
            if isinstance(example, Mapping):
                task(**example)
            elif isinstance(example, tuple):
                task(*example)
            else:
                task(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return sizes


def _size(value: Any) -> Size | None:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        sizes = [size for size in map(_size, value) if size is not None]
        return sizes[0] if len(sizes) == 1 else sizes or None
    return None


def _size_text(size: Size | None) -> str:
    return "-" if size is None else str(size)
