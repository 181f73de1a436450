"""What is taken from a checkpoint, and what is changed on the way: `RestorePolicy`.

By default everything is restored and must fit exactly. A policy says what is left out, renamed, resized or set to
another value; what it did is told in a `RestoreReport`. Names that match nothing are errors, because a misspelled
pattern would otherwise train something else than what was asked for, for days.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from taskloom.core.errors import ConfigError, explain, nearest

PARTS: Final = (
    "model",
    "optimizer",
    "schedulers",
    "scaler",
    "loops",
    "data",
    "generators",
    "callbacks",
    "loggers",
    "metrics",
    "checkpoints",
)
"""What a checkpoint of a run consists of, by the names that `only`, `ignore` and `set` use."""

OTHER_NAMES: Final[Mapping[str, str]] = {
    "weights": "model",
    "optimizers": "optimizer",
    "scheduler": "schedulers",
    "precision": "scaler",
    "progress": "loops",
    "position": "data",
    "rng": "generators",
    "keepers": "checkpoints",
}
SETTABLE: Final = ("optimizer", "schedulers", "scaler", "loops", "callbacks")
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "missing": ("error", "warn", "allow"),
    "data": ("continue", "restart"),
    "check": ("warn", "error", "off"),
}


@dataclass(frozen=True)
class RestorePolicy:
    """What is restored from a checkpoint, and how. The default restores everything exactly.

    Patterns are names with `*` for any text: `encoder.*`. A pattern is held against the names of tensors as they are
    now, after `rename`, and against what a part holds: `optimizer.head.*` (moments), `callbacks.EarlyStopping*`,
    `schedulers.0`.

    Args:
        only: restore these parts alone: `model`, `optimizer`, `schedulers`, `scaler`, `loops` (the counters), `data`
            (the position), `generators`, `callbacks`, `loggers`, `metrics`, `checkpoints` (what the policies keep).
            Without `loops` it is a new training, in a run folder of its own.
        set: change saved values before they are restored: `{"optimizer.lr": 1e-5}`. With a schedule it is the base
            rate that is set, and the schedule goes on from where it was.
        rename: from names in the checkpoint to names now: `{"encoder.*": "backbone.*"}`. The first that matches counts;
            moments follow their parameters.
        ignore: parts, or patterns of what is neither taken from the checkpoint nor missed in it.
        resize: patterns of tensors whose shape may differ (True for all): what overlaps is copied, the rest stays as it
            was initialised; of moments it starts at zero.
        missing: what is only in the checkpoint, or only in the run: `error` lists it, `warn` goes on with a warning,
            `allow` goes on.
        data: `continue` where the checkpoint was written, or `restart` the epoch's data.
        generators: restore the random generators.
        check: settings that differ from those of the checkpoint and change what is computed: `warn`, `error` or `off`.
        weights: the set of tensors that the model is loaded from: `model`, or `average` where weights were averaged.
            Tensors that the set lacks come from the model's own.

    Raises:
        ConfigError: with every problem that was found.
    """

    only: str | Sequence[str] | None = None
    set: str | Sequence[str] | Mapping[str, Any] = ()
    rename: str | Sequence[str] | Mapping[str, str] = ()
    ignore: str | Sequence[str] = ()
    resize: bool | str | Sequence[str] = False
    missing: Literal["error", "warn", "allow"] = "error"
    data: Literal["continue", "restart"] = "continue"
    generators: bool = True
    check: Literal["warn", "error", "off"] = "warn"
    weights: str = "model"

    def __post_init__(self) -> None:
        problems = [problem for name in _CHOICES for problem in self._choice_problems(name)]
        for check in (self._part_problems, self._pair_problems, self._dependency_problems):
            problems += [] if problems else check()
        if problems:
            raise ConfigError(problems)

    @property
    def parts(self) -> frozenset[str]:
        """The parts that are restored."""
        chosen = frozenset(PARTS) if self.only is None else frozenset(map(_part, _words(self.only)))
        left_out = frozenset(_part(word) for word in _words(self.ignore) if _part(word) in PARTS)
        return chosen - left_out - (frozenset() if self.generators else {"generators"})

    @property
    def continues(self) -> bool:
        """Whether a training goes on, rather than that a new one begins from what is restored."""
        return "loops" in self.parts

    @property
    def restarts_data(self) -> bool:
        """Whether the epoch's data begin anew."""
        return self.data == "restart" or "data" not in self.parts

    @property
    def settings(self) -> dict[str, Any]:
        """`set` as a mapping from dotted names to values."""
        return dict(_flat(self.set)) if isinstance(self.set, Mapping) else dict(_pairs(self.set, "="))

    @property
    def names(self) -> Names:
        """The rules for names of tensors."""
        resized = self.resize if not isinstance(self.resize, bool) else ("*",) * self.resize
        ignored = [word for word in _words(self.ignore) if _part(word) not in PARTS]
        return Names(self._renames(), tuple(ignored), tuple(_words(resized)))

    def for_evaluation(self, stage: str) -> RestorePolicy:
        """Return the policy after making sure that it says something about weights only.

        Raises:
            ConfigError: it asks for what an evaluation does not have.
        """
        if self.settings or "model" not in self.parts or self.data != "continue":
            raise ConfigError(
                [
                    explain(
                        f"{stage} restores the model, and this policy is about something else",
                        got=self,
                        fix="use rename, ignore, resize, missing and weights here",
                    )
                ]
            )
        return self

    def _renames(self) -> dict[str, str]:
        if isinstance(self.rename, Mapping):
            return dict(self.rename)
        return {name: str(value) for name, value in _pairs(self.rename, ":=")}

    def _choice_problems(self, name: str) -> list[str]:
        value, choices = vars(self)[name], _CHOICES[name]
        if value in choices:
            return []
        known = ", ".join(map(repr, choices))
        return [
            explain(f"restore.{name} has no choice {value!r}", fix=f"use one of {known}.{nearest(str(value), choices)}")
        ]

    def _part_problems(self) -> list[str]:
        return [
            explain(
                f"restore.only: a checkpoint has no part {word!r}",
                fix=f"use {', '.join(PARTS)}.{nearest(word, (*PARTS, *OTHER_NAMES))}",
            )
            for word in (() if self.only is None else _words(self.only))
            if _part(word) not in PARTS
        ]

    def _pair_problems(self) -> list[str]:
        problems: list[str] = []
        for name, read in (("set", lambda: self.settings), ("rename", self._renames)):
            try:
                read()
            except ValueError as error:
                problems.append(f"restore.{name}: {error}")
        for old, new in self._renames().items() if not problems else ():
            if str(new).count("*") > old.count("*"):
                problems.append(
                    explain(
                        f"restore.rename: {new!r} has more stars than {old!r}",
                        why="each star stands for what the star in its place matched",
                        fix="rename 'encoder.*' to 'backbone.*'",
                    )
                )
        return problems

    def _dependency_problems(self) -> list[str]:
        problems = []
        if self.only is not None and not self.continues:
            needing = sorted(self.parts & {"data", "loggers", "checkpoints", "metrics"})
            problems += [
                explain(
                    f"restore.only: {part!r} is restored together with 'loops'",
                    why="it belongs to a training that goes on, and without its counters a new one begins",
                    fix=f"only={[*_words(self.only), 'loops']!r}, or leave {part!r} out",
                )
                for part in needing
                if part in map(_part, _words(self.only))
            ]
        for key in self.settings:
            part = _part(key.partition(".")[0])
            if part not in SETTABLE:
                problems.append(
                    explain(
                        f"restore.set: {key!r} cannot be set",
                        fix=f"begin with one of {', '.join(SETTABLE)}.{nearest(key.partition('.')[0], SETTABLE)}",
                    )
                )
            elif part not in self.parts:
                problems.append(
                    explain(
                        f"restore.set: {key!r} would have no effect, because {part!r} is not restored",
                        fix=f"set it where it is made, or restore {part!r} too",
                    )
                )
        return problems


@dataclass(frozen=True)
class Names:
    """How names of tensors in a checkpoint become names in a module.

    Args:
        renames: pattern to pattern.
        ignored: patterns of names now.
        resized: patterns of names now.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def now(self, name: str) -> str:
        """Return what a stored name is called now."""
        for old, new in self.renames.items():
            found = _pattern(old).fullmatch(name)
            if found:
                pieces = new.split("*")
                return "".join(
                    piece + (found[number] if number < len(pieces) else "") for number, piece in enumerate(pieces, 1)
                )
        return name

    def ignores(self, *names: str) -> bool:
        """Whether something, by any of its names, is left out."""
        return any(_pattern(pattern).fullmatch(name) for pattern in self.ignored for name in names)

    def resizes(self, name: str) -> bool:
        """Whether the shape of a tensor may differ."""
        return any(_pattern(pattern).fullmatch(name) for pattern in self.resized)

    def unused(self, stored: Iterable[str], now: Iterable[str], further: Iterable[str] = ()) -> list[str]:
        """Return what is wrong with the patterns: those that match no name.

        Args:
            stored: names of tensors in the checkpoint.
            now: names of tensors of the run.
            further: names of other state, such as `callbacks.EMA`.
        """
        saved = [*stored]
        here = [*dict.fromkeys([*(self.now(name) for name in saved), *now])]
        kinds = (
            ("rename", self.renames, saved),
            ("ignore", self.ignored, [*here, *further]),
            ("resize", self.resized, here),
        )
        return [
            explain(
                f"restore.{kind}: nothing is called {pattern!r}",
                got=f"{len(known)} names, such as {', '.join(known[:3])}",
                fix=f"correct the pattern; a star stands for any text.{_nearest_name(pattern, known)}",
            )
            for kind, patterns, known in kinds
            for pattern in patterns
            if not any(_pattern(pattern).fullmatch(name) for name in known)
        ]


@dataclass
class RestoreReport:
    """What a restore did, told once at the start of a run.

    Attributes:
        restored: parts that were restored.
        left_out: parts that the checkpoint holds and that were not restored.
        changes: (label, text) of everything that is not as it was saved.
    """

    restored: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)

    def note(self, label: str, names: Iterable[str], shown: int = 6) -> None:
        """Add a line that lists names, if there are any."""
        listed = list(names)
        if listed:
            more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
            self.changes.append((label, ", ".join(listed[:shown]) + more))

    def lines(self) -> list[str]:
        """Return the lines to print; none where everything was restored as it was saved."""
        found = list(self.changes)
        if self.left_out:
            found = [("Restored", ", ".join(self.restored)), ("Not restored", ", ".join(self.left_out)), *found]
        return [f"{label.ljust(14)}{text}" for label, text in found]


def names_of(parts: Iterable[str]) -> list[str]:
    """Return parts in the order of `PARTS`."""
    chosen = frozenset(parts)
    return [part for part in PARTS if part in chosen]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(map(re.escape, text.split("*"))), re.DOTALL)


def _part(word: str) -> str:
    return OTHER_NAMES.get(word, word)


def _words(value: str | Iterable[str]) -> list[str]:
    """Return the words of `"a, b"` or of a list of such texts."""
    texts = [value] if isinstance(value, str) else [*value]
    return [word.strip() for text in texts for word in str(text).split(",") if word.strip()]


def _pairs(value: str | Iterable[str], signs: str) -> Iterator[tuple[str, str]]:
    one = re.split(rf",\s*(?=[^,\[\]{signs}]+[{signs}])", value) if isinstance(value, str) else value
    for text in one:
        name, sign, given = re.match(f"([^{signs}]*)([{signs}]?)(.*)", str(text), re.DOTALL).groups()  # type: ignore[union-attr]  # matches anything
        if not sign or not name.strip() or not given.strip():
            example = "optimizer.lr=1e-5" if signs == "=" else "'encoder.*: backbone.*'"
            raise ValueError(explain(f"{text!r} does not say what becomes what", fix=f"write {example}"))
        yield name.strip(), given.strip()


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value


def _nearest_name(pattern: str, known: Sequence[str]) -> str:
    """Return a hint: the name, or the module with a star behind it, that comes closest."""
    parts = (name.split(".") for name in known)
    modules = {".".join([*path[:depth], "*"]) for path in parts for depth in range(1, len(path))}
    return nearest(pattern, {*known, *modules})
