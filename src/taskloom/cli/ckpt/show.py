"""`task ckpt show`: what a checkpoint holds."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import format_age, format_bytes, say

if TYPE_CHECKING:
    from taskloom.checkpoint.reader import CheckpointReader

_MOST_TENSORS = 12


def run(args: Sequence[str]) -> int:
    """Print a checkpoint."""
    parser = ArgumentParser(prog="task ckpt show", description="Tell what a checkpoint holds.")
    add_path(parser)
    parser.add_argument("--tensors", metavar="PATTERN", help="list every tensor whose name matches, such as 'net.*'")
    parser.add_argument("--config", action="store_true", help="print the configuration and nothing else")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from taskloom.checkpoint.reader import open_checkpoint

    with open_checkpoint(checkpoint_at(options.path)) as reader:
        if options.config:
            say(reader.config or "# it was saved without a configuration")
            return 0
        tensors = {kind: list(_tensors(reader, kind, options.tensors or "*")) for kind in reader.kinds}
        if options.json:
            print(json.dumps(_json(reader, tensors), indent=1))
        else:
            say([*_about(reader), *_tensor_lines(reader, tensors, every=options.tensors is not None)])
    return 0


def _tensors(reader: CheckpointReader, kind: str, pattern: str) -> Iterator[dict[str, Any]]:
    from taskloom.checkpoint.tensor_file import TensorLayout

    for name in reader.names(kind):
        if fnmatchcase(name, pattern):
            layout = TensorLayout(*reader.dtype_and_shape(kind, name))
            dtype = str(layout.dtype).removeprefix("torch.")
            pieces = len(reader.pieces(kind, name))
            yield {"name": name, "dtype": dtype, "shape": list(layout.shape), "bytes": layout.nbytes, "pieces": pieces}


def _json(reader: CheckpointReader, tensors: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    from taskloom.checkpoint.state import encode_state

    progress = encode_state(reader.state.get("progress", {})).data
    hyper_parameters = encode_state(reader.state.get("hyper_parameters", {})).data
    return {
        "path": str(reader.path),
        **reader.manifest.to_json(),
        "stored_version": reader.manifest.stored_version,
        "progress": progress,
        "hyper_parameters": hyper_parameters,
        "tensors": tensors,
    }


def _about(reader: CheckpointReader) -> Iterator[str]:
    from taskloom.report.text import format_value

    manifest, state = reader.manifest, reader.state
    total = sum(file.bytes for file in manifest.files.values())
    yield str(reader.path)
    yield f"  step {manifest.step}, epoch {manifest.epoch}, {format_bytes(total)}, format {manifest.stored_version}"
    by = f" by the run {manifest.run_id}" if manifest.run_id else ""
    yield f"  saved {format_age(manifest.saved_at)} ago ({manifest.saved_at}){by}"
    if manifest.weights_only:
        yield "  weights only: training cannot be resumed from it"
    if "task_class" in state:
        yield f"  task {state['task_class']}"
    metrics = {name: f"{format_value(value)}  (step {step})" for name, (value, step) in manifest.metrics.items()}
    yield from _section("metrics", metrics)
    for title, key in (
        ("counters", "progress"),
        ("hyper-parameters", "hyper_parameters"),
        ("hyper-parameters of the data", "data_hyper_parameters"),
    ):
        values = state.get(key)
        yield from _section(
            title, {name: _short(value) for name, value in values.items()} if isinstance(values, dict) else {}
        )
    yield from _section(
        "also in its state", {name: _kind(value) for name, value in state.items() if name not in _SHOWN and value}
    )
    yield from _section("tied weights", {alias: f"= {name}" for alias, name in manifest.aliases.items()})
    if reader.config is not None:
        lines = len(reader.config.splitlines())
        yield f"configuration: {lines} line{'s' * (lines != 1)} (--config prints it)"


_SHOWN = {"progress", "hyper_parameters", "data_hyper_parameters", "task_class"}


def _section(title: str, values: dict[str, str]) -> Iterator[str]:
    if values:
        yield f"{title}:"
        width = max(len(str(name)) for name in values)
        yield from (f"  {name!s:<{width}}  {text}" for name, text in values.items())


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def _kind(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{len(value)} entr{'y' if len(value) == 1 else 'ies'}"
    return _short(value)


def _tensor_lines(reader: CheckpointReader, tensors: dict[str, list[dict[str, Any]]], *, every: bool) -> Iterator[str]:
    for kind, listed in tensors.items():
        if every and not listed:
            continue
        size = format_bytes(sum(each["bytes"] for each in listed))
        count = sum(_elements(each["shape"]) for each in listed)
        yield f"{kind}: {len(listed)} tensor{'s' * (len(listed) != 1)}, {count:,} elements, {size}"
        ordered = sorted(listed, key=lambda each: (-each["bytes"], each["name"]))
        shown = ordered if every else ordered[:_MOST_TENSORS]
        width = max((len(each["name"]) for each in shown), default=0)
        for each in shown:
            shape = ", ".join(map(str, each["shape"]))
            pieces = f"  in {each['pieces']} pieces" if each["pieces"] > 1 else ""
            yield f"  {each['name']:<{width}}  {each['dtype']}[{shape}]  {format_bytes(each['bytes'])}{pieces}"
        if len(shown) < len(listed):
            yield f"  and {len(listed) - len(shown)} smaller ones (--tensors '*' lists all)"


def _elements(shape: list[int]) -> int:
    from math import prod

    return prod(shape)
