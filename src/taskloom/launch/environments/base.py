"""The place of a process among the others, as whoever started it tells; one file beside this one per launcher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


class Environment(ABC):
    """Ranks and addresses. Knows nothing of torch.distributed.

    Attributes:
        name: for people and for `task env`.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def detect(cls) -> bool:
        """Return whether this process was started by this launcher."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Processes in all."""

    @property
    @abstractmethod
    def global_rank(self) -> int:
        """Number of this process among them, from 0."""

    @property
    @abstractmethod
    def local_rank(self) -> int:
        """Its number on this machine, from 0."""

    @property
    @abstractmethod
    def node_rank(self) -> int:
        """Number of this machine, from 0."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """Host of rank 0."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """Port on which rank 0 waits."""


@dataclass(frozen=True)
class Job:
    """The job of a scheduler that this process is part of; it keeps its name when it is started again.

    Attributes:
        scheduler: for people and for the names of folders.
        name: what the scheduler knows it by.
        restarts: how often it was started again.
        interactive: a person sits at it, so it ends with their session.
        requeue_command: hands it back to the scheduler to be started again; empty where nothing can.
    """

    scheduler: str
    name: str
    restarts: int = 0
    interactive: bool = False
    requeue_command: tuple[str, ...] = ()


class SingleProcess(Environment):
    """Nobody started more than this one process."""

    name = "single process"
    world_size = 1
    global_rank = 0
    local_rank = 0
    node_rank = 0
    main_address = "127.0.0.1"
    main_port = 0

    @classmethod
    def detect(cls) -> bool:
        """Return True: it is what remains when no launcher is recognised."""
        return True
