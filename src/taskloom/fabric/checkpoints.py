"""The part of `Fabric` that writes and reads checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taskloom.checkpoint import RestorePolicy, write_checkpoint
from taskloom.checkpoint.place import Place, place_of
from taskloom.core.errors import CheckpointError, explain
from taskloom.core.policies import RunFolder
from taskloom.fabric.state import Filter, Parts, Stateful, content_of, load_state, load_tensors, read_state
from taskloom.strategies import Strategy

if TYPE_CHECKING:
    from taskloom.checkpoint.weight_files import WeightFiles

Hook = Callable[[dict[str, Any], Place], None]


class Checkpoints:
    """Saving and loading. `Fabric` fills the attributes.

    Attributes:
        strategy: that knows the pieces of a module.
    """

    strategy: Strategy
    _run_dir: RunFolder
    _registered: list[Stateful]
    _before_save: OrderedDict[int, Hook]
    _before_load: OrderedDict[int, Hook]

    def _prepare_checkpoints(self) -> None:
        self._registered, self._before_save, self._before_load = [], OrderedDict(), OrderedDict()

    def _unwrapped(self, each: Any) -> Any:
        """Return what the strategy works on, for a module or an optimizer that was set up."""
        raise NotImplementedError

    def register_for_checkpointing(self, *objects: Any) -> None:
        """Save and load these objects with every checkpoint, without naming them in the state.

        Args:
            *objects: anything with `state_dict` and `load_state_dict`, such as a scheduler or a class of your own. They
                are found again by the order in which they were registered.

        Raises:
            TypeError: an object lacks one of the two.
        """
        for each in objects:
            if not isinstance(each, Stateful) or isinstance(each, (nn.Module, torch.optim.Optimizer)):
                raise TypeError(
                    explain(
                        f"{type(each).__name__} cannot be registered for checkpoints",
                        why="modules and optimizers are named in the state, and other objects need state_dict and "
                        "load_state_dict",
                        fix="fabric.save(path, {'model': model, 'optimizer': optimizer}), or give it these two methods",
                    )
                )
            self._registered.append(each)

    def register_save_state_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Call `hook(state, path)` before each `save`; what it changes in the dict is saved. The handle removes it."""
        handle = RemovableHandle(self._before_save)
        self._before_save[handle.id] = hook
        return handle

    def register_load_state_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Call `hook(state, path)` before each `load`; what it takes out of the dict is not restored."""
        handle = RemovableHandle(self._before_load)
        self._before_load[handle.id] = hook
        return handle

    def save(
        self,
        path: str | Path,
        state: Mapping[str, Any],
        filter: Filter | None = None,  # noqa: A002 - Lightning's name
        *,
        exclude_frozen: bool = False,
        step: int = 0,
    ) -> None:
        """Write a checkpoint: `fabric.save("runs/step-3", {"model": model, "optimizer": optimizer, "step": 3})`.

        Every process calls it; the first one writes, and the others wait until it has. Modules are saved under the
        names they have without what `setup` wrapped around them.

        Args:
            path: folder to make, or the URL of one (`s3://bucket/step-3`). A name from `checkpoint_name(step)` can be
                found by `latest_checkpoint`.
            state: modules, optimizers, objects with `state_dict` and `load_state_dict`, and data of any nesting.
            filter: per key of the state a function of (name, value) that tells what is kept of a module or a mapping.
            exclude_frozen: leave out parameters that do not require gradients; hashes of them are kept, and another
                base is refused when the checkpoint is loaded.
            step: optimizer steps done, noted in the manifest.

        Raises:
            CheckpointError: a value is not data (tensors are), or the folder cannot be written.
            ValueError: an optimizer without its module, or a filter for something else.
        """
        place, whole = place_of(path, self._run_dir), dict(state)
        for hook in self._before_save.values():
            hook(whole, place)
        parts = Parts(whole, self._unwrapped)
        content = content_of(parts, self.strategy, filter or {}, self._registered, exclude_frozen=exclude_frozen)
        content.step = step
        failure: Exception | None = None
        if self.strategy.global_rank == 0:
            try:
                write_checkpoint(place, content)
            except (CheckpointError, OSError) as error:
                failure = error
        if self.strategy.any_rank(failure is not None):
            raise failure or CheckpointError(
                explain(f"{place} was not saved", why="the first process could not write it", fix="see its error")
            )

    def load(
        self,
        path: str | Path,
        state: dict[str, Any] | None = None,
        strict: bool = True,
        *,
        restore: RestorePolicy | None = None,
        map_location: str | torch.device | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint that `save` wrote.

        Args:
            path: its folder, or the URL of one.
            state: what to restore, by the keys it was saved under. Modules, optimizers and stateful objects are
                restored in place, on the devices where they are; other values are replaced in this dict.
            strict: the checkpoint must hold every key of the state, and exactly the tensors of the modules.
            restore: rename, ignore or resize tensors, or set options of the optimizers.
            map_location: device of the tensors that are returned; the CPU by default.
            weights_only: accepted for Lightning's sake. A checkpoint holds only data and loading one runs no code.

        Returns:
            What `state` did not ask for; without a state everything but the optimizers, modules as dicts of tensors.

        Raises:
            CheckpointError: it does not verify, or does not fit; names what.
            ValueError: `weights_only=False`, which would let a file run code.
        """
        if weights_only is False:
            raise ValueError(
                explain(
                    "Checkpoints are never unpickled, so weights_only=False has no meaning here",
                    fix="leave it out; `task ckpt import` reads the weights of torch files",
                )
            )
        place = place_of(path, self._run_dir)
        policy = restore or RestorePolicy(missing="error" if strict else "allow")
        if state is None:
            return read_state(place, map_location)
        wanted = dict(state)
        for hook in self._before_load.values():
            hook(wanted, place)
        parts = Parts(wanted, self._unwrapped)
        values = load_state(place, parts, self.strategy, policy, self._registered, map_location)
        for key in parts.values:
            if key in values:
                state[key] = values.pop(key)
        return values

    def load_raw(
        self, path: str | Path, module: nn.Module, strict: bool = True, *, restore: RestorePolicy | None = None
    ) -> None:
        """Load plain weights into a module: a safetensors or torch file, or the folder of a Transformers model.

        Args:
            path: a `.safetensors` file, an index of several, a folder that holds them, or a file of `torch.save`, of
                which only tensors and plain data are read.
            module: set up or not.
            strict: the file must hold exactly the module's tensors.
            restore: rename, ignore or resize tensors.

        Raises:
            CheckpointError: the file is damaged, would run code, or does not fit; names what.
        """
        from taskloom.checkpoint.foreign import read_foreign  # needed by few, and not small

        place = place_of(path, self._run_dir)
        weights = read_foreign(place)
        tensors = {**weights.tensors, **{alias: weights.tensors[name] for alias, name in weights.aliases.items()}}
        policy = restore or RestorePolicy(missing="error" if strict else "allow")
        load_tensors(tensors, self._unwrapped(module), self.strategy, policy, str(place))

    def get_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a module's parameters and persistent buffers whole, as copies on the CPU, under their own names.

        Args:
            module: set up or not.

        Raises:
            NotImplementedError: the strategy spreads the module's tensors over processes.
        """
        found: dict[str, Tensor] = {}
        for shard in self.strategy.model_shards(self._unwrapped(module)):
            if not shard.region.is_whole:
                raise NotImplementedError(
                    explain(
                        f"{shard.name!r} is spread over processes, and gathering is not there yet",
                        fix="fabric.save(path, {'model': module}), and merge the checkpoint",
                    )
                )
            found[shard.name] = shard.tensor.detach().to("cpu", copy=True)
        return found

    def save_model(
        self,
        module: nn.Module,
        folder: str | Path,
        max_shard_size: str | int = "5GB",
        safe_serialization: bool = True,
        *,
        overwrite: bool = True,
    ) -> WeightFiles | None:
        """Write a module's weights as Transformers' `from_pretrained` and other loaders read them.

        Every process calls it; the first one writes `model.safetensors`, or several files and their index. A tied
        weight is stored once.

        Args:
            module: set up or not.
            folder: to write into, or the URL of one.
            max_shard_size: of a file, in bytes or as `"5GB"`.
            safe_serialization: accepted for Accelerate's sake; files are always safetensors.
            overwrite: replace weights that are there, as Accelerate does.

        Returns:
            What was written, on the first process.

        Raises:
            CheckpointError: the folder cannot be written, or a tensor is spread over processes.
            ValueError: `safe_serialization=False`, which would write a pickle.
        """
        if not safe_serialization:
            raise ValueError(
                explain(
                    "save_model writes safetensors only",
                    got="safe_serialization=False",
                    why="a pickle can run code where it is loaded",
                    fix="leave it out; torch.save(fabric.get_state_dict(model), path) writes one by hand",
                )
            )
        from taskloom.checkpoint.export import NamedTensors, write_weights  # few trainings need them

        inner = self._unwrapped(module)
        source = NamedTensors.of_shards(self.strategy.model_shards(inner), self.strategy.aliases(inner))
        made: WeightFiles | None = None
        failure: Exception | None = None
        if self.strategy.global_rank == 0:
            try:
                place = place_of(folder, self._run_dir)
                made = write_weights(source, place, max_shard_size=max_shard_size, overwrite=overwrite)
            except (CheckpointError, OSError) as error:
                failure = error
        if self.strategy.any_rank(failure is not None):
            raise failure or CheckpointError(
                explain(f"{folder} was not saved", why="the first process could not write it", fix="see its error")
            )
        return made
