"""Automatic mixed precision: float32 weights, 16-bit matrix products; `bf16-mixed` and `16-mixed`.

float16 has so small a range that gradients vanish, so its loss is multiplied by a scale that falls at every overflow
and grows again after a while (Micikevicius et al., 2018, "Mixed Precision Training"; the mechanism is
`torch.amp.GradScaler`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.precision.base import DtypePolicy, Precision
from taskloom.precision.dtypes import cast_buffers, cast_floats

MixedDtype = Literal["bf16", "16"]
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class LossScaling:
    """Options of the loss scale of `16-mixed`; the defaults are torch's.

    Args:
        init_scale: first scale.
        growth_factor: multiplies the scale after `growth_interval` steps without an overflow.
        backoff_factor: multiplies the scale at an overflow.
        growth_interval: steps between two growths.
        enabled: False trains without a scale.
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    enabled: bool = True


class MixedPrecision(Precision):
    """Weights, gradients and moments in float32; operations that gain from it in 16 bits, as `torch.autocast` chooses.

    Args:
        dtype: "bf16", with the range of float32, or "16", which needs a loss scale.
        scaler: the loss scale: options, or a `torch.amp.GradScaler` of your own. For "16" only.
        allow_half_parameters: accept trainable parameters in the 16-bit dtype. Without float32 master weights small
            updates are lost to rounding, so this is an error unless it is asked for (R5; Accelerate issue 2624).
        convert_outputs: return floating-point outputs of the model in float32.
        cache_enabled: keep the cast copies of weights over one forward pass.

    Raises:
        ValueError: there is no such dtype, or a loss scale was given for "bf16".
    """

    def __init__(
        self,
        dtype: MixedDtype = "bf16",
        scaler: LossScaling | GradScaler | None = None,
        *,
        allow_half_parameters: bool = False,
        convert_outputs: bool = True,
        cache_enabled: bool = True,
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(explain(f"MixedPrecision has no dtype {dtype!r}", fix=f"use one of {', '.join(_DTYPES)}"))
        if scaler is not None and dtype == "bf16":
            raise ValueError(
                explain(
                    "A loss scale was given for bf16", why="bfloat16 has the range of float32", fix="leave scaler out"
                )
            )
        compute, full = _DTYPES[dtype], torch.float32
        output = full if convert_outputs else compute
        self.name = f"{dtype}-mixed"
        self.policy = DtypePolicy(parameter=full, compute=compute, reduce=full, master=full, buffer=full, output=output)
        self.allow_half_parameters = allow_half_parameters
        self.wraps_forward = True
        self.converts_output = convert_outputs
        self._cache_enabled = cache_enabled
        self._options = scaler if isinstance(scaler, LossScaling) else LossScaling()
        self._scaler = scaler if isinstance(scaler, GradScaler) else None
        enabled = self._scaler.is_enabled() if self._scaler else self._options.enabled
        self.scales_loss = dtype == "16" and enabled
        # Optimizers whose gradients have their true size, with the number of backward passes begun by then.
        self._unscaled: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._stepped: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()
        self._backward_passes = 0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the two names."""
        return tuple(f"{dtype}-mixed" for dtype in _DTYPES)

    @classmethod
    def from_name(cls, name: str) -> MixedPrecision:
        """Make `bf16-mixed` or `16-mixed`."""
        dtype: Any = name.removesuffix("-mixed")
        return cls(dtype)

    @property
    def scaler(self) -> GradScaler:
        """The loss scale; made for the device on first use."""
        if self._scaler is None:
            self._scaler = GradScaler(self.device_type, **asdict(self._options))
        return self._scaler

    # Forward pass -----------------------------------------------------------------------------------------------------

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring floating-point buffers to float32, in place. Parameters are the user's; `check` judges them."""
        cast_buffers(module, self.policy.buffer)
        return module

    def convert_output(self, outputs: Any) -> Any:
        """Bring floating-point outputs to float32, unless `convert_outputs` is off."""
        return cast_floats(outputs, self.policy.output) if self.converts_output else outputs

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocasting."""
        return torch.autocast(self.device_type, self.policy.compute, cache_enabled=self._cache_enabled)

    def autocast(self, enabled: bool = True, cache_enabled: bool = True) -> AbstractContextManager[Any]:
        """Autocasting, or its absence, within a part of the program."""
        return torch.autocast(self.device_type, self.policy.compute, enabled=enabled, cache_enabled=cache_enabled)

    def check(self, module: nn.Module) -> None:
        """Hold the policy against the module: float32 master weights, float32 buffers, 16-bit products.

        Frozen parameters have no master and may be kept in 16 bits.

        Raises:
            RuntimeError: a tensor has another dtype; names it. Or autocasting does not compute in the policy's dtype.
        """
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype is not torch.float32:
                if self.allow_half_parameters and parameter.dtype is self.policy.compute:
                    continue
                raise RuntimeError(
                    explain(
                        f"The parameter {name!r} has no float32 master weight, which precision {self.name!r} updates",
                        got=parameter.dtype,
                        why="updates smaller than the rounding of 16 bits would be lost without a word",
                        fix="load the model in float32 (model.float()), choose precision='bf16-true' to train in "
                        "16 bits knowingly, or pass precision=MixedPrecision(..., allow_half_parameters=True)",
                    )
                )
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point() and buffer.dtype is not self.policy.buffer:
                raise RuntimeError(
                    explain(
                        f"The buffer {name!r} is not what precision {self.name!r} says",
                        got=buffer.dtype,
                        fix="keep it in float32",
                    )
                )
        with self.forward_context():
            active = torch.is_autocast_enabled(self.device_type)
            compute = torch.get_autocast_dtype(self.device_type)
        if not active or compute is not self.policy.compute:
            raise RuntimeError(
                explain(
                    f"Autocasting on {self.device_type!r} does not compute in {self.policy.compute}",
                    got=compute if active else "off",
                )
            )

    # Backward pass and step -------------------------------------------------------------------------------------------

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale. The scale is the same for all gradients between two steps."""
        if not self.scales_loss:
            return loss
        self._finish_window()
        self._backward_passes += 1
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, once per step and after every backward pass that adds to them.

        Raises:
            RuntimeError: a backward pass ran since they were unscaled, so some of them are scaled and some are not.
        """
        if not self.scales_loss:
            return
        seen = self._unscaled.get(optimizer)
        if seen is None:
            self.scaler.unscale_(optimizer)
            self._unscaled[optimizer] = self._backward_passes
        elif seen != self._backward_passes:
            raise RuntimeError(
                explain(
                    "Gradients were unscaled, and then another backward pass added to them",
                    why="what it added is still multiplied by the loss scale",
                    fix="unscale or clip after the last backward pass before the step",
                )
            )

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Unscale if need be and step, unless a gradient overflowed; return whether it stepped.

        Reads one number from the device, as `torch.amp.GradScaler` itself does.

        Raises:
            RuntimeError: the optimizer evaluates its closure several times, which a loss scale does not allow.
        """
        if not self.scales_loss:
            return super().step(optimizer, closure)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise RuntimeError(  # noqa: TRY004 - not the type but the precision is wrong
                explain(
                    f"LBFGS cannot train with precision {self.name!r}",
                    why="it evaluates its closure several times per step, and each may overflow",
                    fix="precision='bf16-mixed'",
                )
            )
        if closure is not None:
            with torch.enable_grad():
                closure()
        if not any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.step()  # nothing to unscale, and GradScaler refuses it
            return True
        self.unscale(optimizer)
        stepped = False

        def after_step(stepping: Optimizer, *_: Any) -> None:
            nonlocal stepped
            # A fused optimizer is always called, and skips by itself where GradScaler hands it an overflow.
            overflow = vars(stepping).get("found_inf")
            stepped = overflow is None or not overflow.item()

        handle = optimizer.register_step_post_hook(after_step)
        try:
            self.scaler.step(optimizer)
        finally:
            handle.remove()
        self._stepped[optimizer] = True
        return stepped

    def _finish_window(self) -> None:
        """Adapt the scale once all optimizers of a window have stepped, which is when the next backward pass begins."""
        if not self._unscaled:
            return
        # Gradients that were unscaled and then cleared, as a loop does that leaves out a step.
        done = [optimizer for optimizer in self._unscaled if optimizer in self._stepped or _has_no_gradients(optimizer)]
        if done:
            self.scaler.update()
            self._stepped.clear()
        for optimizer in done:
            del self._unscaled[optimizer]

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and what it is adapted by."""
        if not self.scales_loss:
            return {}
        self._finish_window()
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the scale."""
        if self.scales_loss:
            self.scaler.load_state_dict(dict(state))


def _has_no_gradients(optimizer: Optimizer) -> bool:
    return all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"])
