"""The table of metrics that `task validate` and `task test` end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def print_metrics(stage: str, results: Sequence[Mapping[str, float]]) -> None:
    """Print one column per data loader; aligned text, so that it reads the same in a terminal and in a log."""
    names = list(dict.fromkeys(name for metrics in results for name in metrics))
    if not names:
        print(f"The {stage} loop logged no metrics. Log them with self.log(name, value) in {stage}_step.")
        return
    heads = [
        f"{stage} metric",
        *(["value"] if len(results) == 1 else [f"loader {number}" for number in range(len(results))]),
    ]
    rows = [[name, *(_number(metrics.get(name)) for metrics in results)] for name in names]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        print(
            "  ".join(
                [
                    f"{row[0]:<{widths[0]}}",
                    *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
                ]
            ).rstrip()
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{float(value):.6g}"
