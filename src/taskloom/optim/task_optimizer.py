"""`TaskOptimizer`: the optimizer as a user's code sees it; its `step` goes through strategy and loss scale."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.optim import Optimizer

from taskloom.core.errors import explain

Closure = Callable[[], Any]
Step = Callable[[Optimizer, Closure | None], bool]
Toggle = Callable[[Optimizer, bool], AbstractContextManager[None]]


class TaskOptimizer(Optimizer):
    """A torch optimizer in all but its `step`; everything else is the wrapped optimizer's.

    It is an `Optimizer` so that torch's schedulers accept it, but holds nothing itself: groups, state and hooks are
    those of the wrapped one, which is not changed.

    Args:
        optimizer: the one to step.
        name: by which counters, checkpoints and messages call it.
        step: called with the optimizer and the closure; returns False where an fp16 overflow made it skip.
        toggle: what `toggle_model` calls with this object and `sync_grad`.

    Attributes:
        optimizer: the wrapped one.
        name: as above.
        step_was_skipped: whether the last `step` did nothing because of an overflow.
    """

    # Optimizer.__init__ would build groups and state of its own. The annotation hides that an optimizer holds an
    # optimizer from tools that read signatures: jsonargparse's completion would follow it without end.
    def __init__(self, optimizer: Any, name: str, step: Step, toggle: Toggle | None = None) -> None:
        self.optimizer: Optimizer = optimizer
        self.name = name
        self.step_was_skipped = False
        self._take_step = step
        self._toggle = toggle

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step; return what the closure returned, if there is one; the first time if it is evaluated several times."""
        if closure is None:
            self.step_was_skipped = not self._take_step(self.optimizer, None)
            return None
        returned: list[Any] = []

        def run() -> Any:
            returned.append(closure())
            return returned[-1]

        self.step_was_skipped = not self._take_step(self.optimizer, run)
        return returned[0] if returned else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of its parameters."""
        if set_to_none:  # the default; some optimizers have no other way
            self.optimizer.zero_grad()
        else:
            self.optimizer.zero_grad(set_to_none=False)

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[None]:
        """Let only this optimizer's parameters require gradients, for the length of a `with` block.

        Args:
            sync_grad: False suppresses the exchange of gradients within the block, for all but the last micro-batch.

        Raises:
            RuntimeError: the optimizer does not belong to a task.
        """
        if self._toggle is None:
            raise RuntimeError(
                explain(
                    "toggle_model is known only to the optimizers of a TaskModule", fix="call it on self.optimizers()"
                )
            )
        return self._toggle(self, sync_grad)

    # What torch's Optimizer would keep itself -------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The moments of the wrapped optimizer, by parameter."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The default options of the wrapped optimizer."""
        return self.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped optimizer."""
        self.optimizer.load_state_dict(state_dict)

    def register_step_pre_hook(self, hook: Any) -> Any:
        """Register a hook with the wrapped optimizer."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        """Register a hook with the wrapped optimizer; it does not run when an overflow skips the step."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook with the wrapped optimizer."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook with the wrapped optimizer."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook with the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register a hook with the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not found here; a half-built copy has no optimizer yet.
        optimizer = self.__dict__.get("optimizer")
        if optimizer is None:
            raise AttributeError(name)
        return getattr(optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"TaskOptimizer({self.name}: {self.optimizer!r})"
