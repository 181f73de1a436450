"""`task predict`: predictions, written with `--output` in a format that holds data only.

`.jsonl` takes anything made of tensors, numbers, texts, lists and dicts, one line per sample; `.safetensors` takes
tensors. Both can be read without running code, unlike a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from taskloom.cli.schema import Parameter
from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI
from taskloom.core.errors import ConfigError, explain

_SUFFIXES = (".jsonl", ".safetensors")


def execute(cli: TaskCLI) -> None:
    """Predict, and write the predictions if a file is named."""
    output = cli.options["output"]
    path = None if output is None else Path(output)
    if path is not None and path.suffix not in _SUFFIXES:
        raise ConfigError(
            [
                "output: "
                + explain(
                    "Predictions are written as .jsonl or .safetensors", got=output, fix="--output predictions.jsonl"
                )
            ]
        )
    cli.result = cli.trainer.predict(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, restore=cli.restore)
    if not cli.trainer.is_global_zero:
        return
    batches = list(_batches(cli.result))
    if path is None:
        print(f"Predicted {len(batches)} batches. Pass --output predictions.jsonl to write them.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    count = write_jsonl(batches, path) if path.suffix == ".jsonl" else write_safetensors(batches, path)
    print(f"{count} predictions written to {path}")


def write_jsonl(batches: Iterable[Any], path: Path) -> int:
    """Write one line per sample and return how many.

    A batch that is a tensor, a list, or a dict of those with a common length is split into its samples; any other is
    one line.

    Raises:
        TypeError: a prediction holds something that is not data.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for sample in _samples(batch):
                file.write(json.dumps(_data(sample), ensure_ascii=False) + "\n")
                count += 1
    return count


def write_safetensors(batches: Iterable[Any], path: Path) -> int:
    """Write tensors, or dicts of them, joined along their first dimension, and return the number of samples.

    Raises:
        TypeError: a prediction is neither.
    """
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        named = batch if isinstance(batch, Mapping) else {"predictions": batch}
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    explain(
                        "A .safetensors file holds tensors only",
                        got=f"{type(value).__name__} under {name!r}",
                        fix="--output predictions.jsonl, or return tensors from predict_step",
                    )
                )
            columns.setdefault(str(name), []).append(value.detach().cpu())
    joined = {
        name: (torch.cat(parts) if parts[0].ndim else torch.stack(parts)).contiguous()
        for name, parts in columns.items()
    }
    save_file(joined, path)
    return max((len(value) for value in joined.values()), default=0)


def _batches(result: Any) -> Iterator[Any]:
    """Yield the predictions batch by batch, whether there were one or several loaders."""
    several = bool(result) and all(
        isinstance(loader, list) and loader and isinstance(loader[0], (Tensor, Mapping)) for loader in result
    )
    for item in result or ():
        if several:
            yield from item
        else:
            yield item


def _samples(batch: Any) -> Iterator[Any]:
    if (isinstance(batch, Tensor) and batch.ndim) or isinstance(batch, (list, tuple)):
        yield from batch
    elif (
        isinstance(batch, Mapping)
        and batch
        and all(
            isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim) for value in batch.values()
        )
        and len({len(value) for value in batch.values()}) == 1
    ):
        for row in zip(*batch.values(), strict=True):
            yield dict(zip(batch, row, strict=True))
    else:
        yield batch


def _data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, Mapping):
        return {str(key): _data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_data(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(
        explain(
            "A prediction holds something that cannot be written as data",
            got=type(value).__name__,
            fix="return tensors, numbers, texts, lists or dicts from predict_step",
        )
    )


STAGE = Stage(
    "predict",
    "Run the prediction loop and, with --output, write the predictions.",
    execute=execute,
    options={
        "output": (
            Parameter("output", str | None, None),
            "File to write: .jsonl (one line per sample) or .safetensors (tensors).",
        )
    },
)
