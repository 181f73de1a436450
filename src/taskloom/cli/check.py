"""`task check`: everything that can be known about a run without building its data, task or trainer."""

from __future__ import annotations

from taskloom.cli.locate import import_path
from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI
from taskloom.cli.tree import Node, class_name, plain


def inspect(cli: TaskCLI) -> None:
    """Print what would run; a configuration with problems never comes here."""
    config = cli.configuration
    rows: list[tuple[str, str]] = []
    for key in ("task", "data", "optimizer", "lr_scheduler"):
        kind = config.root.kind_at(config.tree, key)
        if kind is not None:
            rows.append((key, import_path(kind)))
    values = config.as_dict()
    for key in ("accelerator", "devices", "strategy", "precision"):
        rows.append((key, str(values.get(key))))
    for key, node in config.tree.value.items():
        if key not in dict(rows):
            rows.append((str(key), f"{_short(node)}  ({node.source})"))
    rows += [("link", f"{link.text}  ({link.origin})") for link in (*config.links.on_parse, *config.links.on_build)]
    width = max(len(key) for key, _ in rows)
    print("The configuration is valid. It would run:")
    for key, text in rows:
        print(f"  {key:<{width}}  {text}")


def _short(node: Node) -> str:
    """Return a value on one line: of classes only the names."""
    items = node.value if node.is_list else []
    if items and all(class_name(item) for item in items):
        return ", ".join(class_name(item) for item in items)
    return class_name(node) or str(plain(node))


STAGE = Stage(
    "check",
    "Check a configuration without loading data: keys, types, classes, links, names, policies.",
    inspect=inspect,
    needs="fit",
)
