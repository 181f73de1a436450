"""What `Fabric.setup` returns for a module and for a loader: thin objects around the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskloom.core.errors import explain, nearest
from taskloom.core.transfer import move_to_device
from taskloom.precision import Precision
from taskloom.strategies import Strategy

_OWN = frozenset({"_original", "_wrapped", "_precision", "_strategy", "_bare", "_forward_methods"})


class FabricModule(nn.Module):
    """The user's module, called through the strategy's wrapping and under the precision.

    Everything but the call is the user's module's: parameters, buffers and submodules under their own names (no
    prefix), the state dict with its hooks, modes, attributes and methods. Attributes that are set land on the user's
    module.

    Args:
        original: the user's module.
        wrapped: what the strategy made of it.
        strategy: that made it.
    """

    _original: nn.Module
    _wrapped: nn.Module
    _strategy: Strategy
    _precision: Precision
    _bare: bool
    _forward_methods: dict[str, Callable[..., Any]]

    def __init__(self, original: nn.Module, wrapped: nn.Module, strategy: Strategy) -> None:
        super().__init__()
        precision = strategy.precision
        # Not through nn.Module's own assignment, which would register the module a second time, below a prefix.
        own = self.__dict__
        own["_original"], own["_wrapped"], own["_strategy"] = original, wrapped, strategy
        own["_precision"] = precision
        own["_bare"] = not (precision.wraps_forward or precision.converts_input or precision.converts_output)
        own["_forward_methods"] = {}
        del own["training"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module: inputs in the compute dtype, under the precision's context, outputs in the output dtype."""
        if self._bare:
            return self._wrapped(*args, **kwargs)
        return _under_precision(self._precision, self._wrapped, args, kwargs)

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Run another method the way the module is run: through the wrapping and under the precision.

        Args:
            method: its name, or the bound method.

        Raises:
            AttributeError: the module has no such method.
        """
        name = method if isinstance(method, str) else method.__name__
        original = self._original
        bound = getattr(original, name, None)
        if not callable(bound):
            raise AttributeError(  # noqa: TRY004 - as for any name that an object lacks
                explain(
                    f"{type(original).__name__} has no method {name!r} to run as forward",
                    fix=f"name one of its methods.{nearest(name, dir(original))}",
                )
            )
        run, precision = self._strategy.bind_step(self._wrapped, bound), self._precision
        self._forward_methods[name] = lambda *args, **kwargs: _under_precision(precision, run, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Only called for what the class and the instance do not have.
        own = self.__dict__
        if name in own.get("_forward_methods", ()):
            return own["_forward_methods"][name]
        if "_original" not in own:
            raise AttributeError(name)
        return getattr(own["_original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or "_original" not in self.__dict__:
            super().__setattr__(name, value)
        else:
            setattr(self._original, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._original, name)

    # nn.Module's own methods look into this object's registers, which are empty ---------------------------------------

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the user's module's."""
        return self._original.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the user's module's."""
        return self._original.named_buffers(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the user's module and those in it."""
        yield from self._original.named_modules(*args, **kwargs)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the user's module's."""
        yield from self._original.named_children()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the user's module's."""
        return self._original.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load into the user's module."""
        return self._original.load_state_dict(state_dict, strict, assign)

    def train(self, mode: bool = True) -> FabricModule:
        """Switch the user's module, and what wraps it, to training or evaluation. Returns self."""
        self._wrapped.train(mode)
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> FabricModule:
        """Apply a function to the user's module and those in it. Returns self."""
        self._original.apply(fn)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FabricModule:
        self._original._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *dir(type(self)), *dir(self._original)})

    def __repr__(self) -> str:
        return f"FabricModule({self._original!r})"


def _under_precision(
    precision: Precision, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if precision.converts_input:
        args, kwargs = precision.convert_input(args), precision.convert_input(kwargs)
    with precision.forward_context():
        outputs = run(*args, **kwargs)
    return precision.convert_output(outputs)


class FabricLoader:
    """The user's loader, whose batches arrive on the device. Everything but iterating is the loader's.

    Args:
        loader: any iterable of batches; not rebuilt and not changed.
        device: where batches go.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader = loader
        self._device = device

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield move_to_device(batch, self._device)

    def over(self, loader: Iterable[Any]) -> FabricLoader:
        """Return another loader whose batches arrive on the same device."""
        return FabricLoader(loader, self._device)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # raises TypeError for a loader without a length, as it should

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
