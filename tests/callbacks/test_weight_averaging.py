"""Averages of weights: what they are, when they are used, and that neither a failure nor a resume changes a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import At, Line, loader, quiet
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from taskloom import CheckpointPolicy, RunFolder, Skip, TaskModule, Trainer
from taskloom.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from taskloom.callbacks.averages import Averages, equally
from taskloom.checkpoint import (
    CheckpointContent,
    CheckpointError,
    Shard,
    open_checkpoint,
    write_checkpoint,
)
from taskloom.core.errors import ConfigError
from taskloom.core.policies import Accumulation

FAST: dict[str, Any] = {"fsync": False}
AT_END = CheckpointPolicy(every="9 epochs", fsync=False)
EVERY_STEP = CheckpointPolicy(every="1 steps", keep_last=-1, fsync=False)


class Net(TaskModule):
    """A network with normalisation, dropout and a tied weight, on shuffled data."""

    def __init__(self, skips: tuple[int, ...] = (), huge: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)
        self.tied = nn.Linear(4, 3, bias=False)
        self.tied.weight = self.last.weight
        self.drop, self.skips, self.huge = nn.Dropout(0.2), skips, huge

    def loss(self, batch: Any) -> Tensor:
        hidden = self.drop(self.norm(self.first(batch[0])))
        return (self.last(hidden) + self.tied(hidden)).sub(batch[1]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.progress.micro_batches in self.skips:
            return Skip()
        loss = self.loss(batch)
        if self.trainer.progress.micro_batches in self.huge:
            loss = loss * 1e30
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.last(self.norm(self.first(batch[0])))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stored(path: Path, kind: str) -> dict[str, Tensor]:
    with open_checkpoint(path) as reader:
        return {name: reader.tensor(kind, name).clone() for name in reader.names(kind)}


def steps_of(folder: Path) -> dict[int, Path]:
    found = sorted((folder / "checkpoints").glob("step-*"))
    return {int(path.name.removeprefix("step-")): path for path in found}


# What the averages are ------------------------------------------------------------------------------------------------


def by_hand(average: Callable[[nn.Module], AveragedModel], epochs: int) -> AveragedModel:
    """The loop and the average that people write with torch alone."""
    torch.manual_seed(1)
    net = Line()
    averaged, optimizer = average(net), net.configure_optimizers()
    for _ in range(epochs):
        for batch in loader(8):
            optimizer.zero_grad()
            net.loss(batch).backward()
            optimizer.step()
            averaged.update_parameters(net)
    return averaged


@pytest.mark.holds("R45", "CB-07")
@pytest.mark.parametrize(
    ("callback", "average"),
    [
        (
            lambda: EMAWeightAveraging(decay=0.9),
            lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        ),
        (WeightAveraging, AveragedModel),
        (
            lambda: WeightAveraging(avg_fn=lambda kept, now, n: torch.maximum(kept, now)),
            lambda net: AveragedModel(net, avg_fn=lambda kept, now, n: torch.maximum(kept, now)),
        ),
    ],
    ids=["exponential", "equal", "own function"],
)
def test_averages_are_those_of_torch(callback: Any, average: Any) -> None:
    torch.manual_seed(1)
    task, averaging = Line(), callback()
    quiet(averaging, max_epochs=2).fit(task, loader(8))
    expected = dict(by_hand(average, epochs=2).module.named_parameters())
    assert averaging.updates == 8
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.holds("CB-07")
@pytest.mark.parametrize(
    ("options", "updated"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"update_every_n_steps": 3}, [1, 4, 7]),
        ({"update_starting_at_step": 5}, [6, 7, 8]),
        ({"update_starting_at_epoch": 1}, [5, 6, 7, 8]),
        ({"update_every_n_steps": 0}, [4, 8]),
        ({"update_every_n_steps": 0, "update_starting_at_epoch": 1}, [8]),
    ],
    ids=str,
)
def test_updates_come_when_they_are_asked_for(options: dict[str, Any], updated: list[int]) -> None:
    seen, averaging = [], EMAWeightAveraging(**options)
    counts: list[int] = [0]

    def look(trainer: Trainer, _: Any) -> None:
        if averaging.updates != counts[-1]:
            counts.append(averaging.updates)
            seen.append(trainer.global_step)

    quiet(averaging, At(on_train_batch_end=look), max_epochs=2).fit(Line(), loader(8))
    assert seen == updated


def test_moments_of_ones_own() -> None:
    class AtTheEndOfEpochs(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None

    averaging, at_ends = AtTheEndOfEpochs(), []
    watch = At(on_train_epoch_end=lambda _, task: at_ends.append(weights(task)))
    task = Line()
    quiet(averaging, watch, max_epochs=3).fit(task, loader(8))
    assert averaging.updates == 3
    mean = torch.stack([each["layer.weight"] for each in at_ends]).mean(0)
    torch.testing.assert_close(task.layer.weight.detach(), mean)


def test_the_memory_grows_with_the_number_of_updates() -> None:
    warm, cold = EMAWeightAveraging(decay=0.99, decay_warmup=True), EMAWeightAveraging(decay=0.99)
    assert [warm.decay_at(n) for n in (1, 8, 9999)] == [2 / 11, 0.5, 0.99]
    assert cold.decay_at(1) == 0.99


@pytest.mark.holds("CB-07")
@pytest.mark.parametrize(("use_buffers", "kept"), [(True, True), (False, False)])
def test_buffers_are_averaged_or_the_tasks_own(use_buffers: bool, kept: bool, tmp_path: Path) -> None:
    averaging = EMAWeightAveraging(decay=0.5, use_buffers=use_buffers)
    result = quiet(averaging, max_epochs=1, checkpoint=CheckpointPolicy(**FAST), run_dir=tmp_path).fit(Net(), loader(8))
    assert result.last_checkpoint is not None
    average = stored(result.last_checkpoint, "average")
    assert ("norm.running_mean" in average) == kept
    assert "norm.num_batches_tracked" not in average
    assert sorted(set(average) - {"norm.running_mean", "norm.running_var"}) == [
        "first.bias",
        "first.weight",
        "last.weight",
        "norm.bias",
        "norm.weight",
    ]


def test_weights_of_16_bits_are_averaged_in_32(tmp_path: Path) -> None:
    """With a decay of 0.999 an average of 16 bits would never move."""
    policy = CheckpointPolicy(**FAST)
    for dtype, expected in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        task, averaging = Line(), EMAWeightAveraging(dtype=dtype)
        trainer = quiet(averaging, precision="bf16-true", max_epochs=3, checkpoint=policy, run_dir=tmp_path)
        result = trainer.fit(task, loader(16))
        assert task.layer.weight.dtype == torch.bfloat16
        assert result.last_checkpoint is not None
        average = stored(result.last_checkpoint, "average")
        assert {each.dtype for each in average.values()} == {expected}
        model = stored(result.last_checkpoint, "model")
        assert not torch.equal(average["layer.weight"].to(torch.bfloat16), model["layer.weight"])


def test_averages_on_another_device_are_the_same(tmp_path: Path) -> None:
    found = []
    for device in (None, "same", "cpu"):
        torch.manual_seed(2)
        task = Net()
        quiet(EMAWeightAveraging(device, decay=0.8), max_epochs=1, seed=3).fit(task, loader(8))
        found.append(weights(task))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_what_is_frozen_has_no_average_until_it_is_trained(tmp_path: Path) -> None:
    class Thaws(Net):
        def on_train_epoch_start(self) -> None:
            self.first.requires_grad_(self.current_epoch >= 1)

    averaging, policy = EMAWeightAveraging(decay=0.5), CheckpointPolicy(keep_last=-1, **FAST)
    task = Thaws()
    task.first.requires_grad_(False)
    result = quiet(averaging, max_epochs=3, checkpoint=policy, run_dir=tmp_path).fit(task, loader(8))
    assert result.run_folder is not None
    first, second, third = (stored(path, "average") for path in steps_of(result.run_folder).values())
    assert not any(name.startswith("first") for name in first)
    assert {"first.weight", "first.bias"} <= set(second) & set(third)
    assert not torch.equal(second["first.weight"], third["first.weight"])


def test_averages_of_pieces_are_cut_as_the_weights_are(tmp_path: Path) -> None:
    """A strategy that holds a row block of one parameter and a flat range of another."""

    class Sharded:
        def __init__(self, task: nn.Linear) -> None:
            self.task = task

        def model_shards(self, module: nn.Module) -> Iterator[Shard]:
            weight, bias = self.task.weight.detach(), self.task.bias.detach()
            yield Shard("weight", weight[2:], (4, 3), (2, 0))
            yield Shard.flat_range("bias", bias[1:3], (4,), 1)

        def aliases(self, module: nn.Module) -> dict[str, str]:
            return {}

        def unwrap(self, module: nn.Module) -> nn.Module:
            return self.task

    task = nn.Linear(3, 4)
    before = weights(task)
    averages = Averages(equally, "average")
    averages.bind(Sharded(task), task)  # type: ignore[arg-type]  # the part of a strategy that is asked
    averages.update()
    with torch.no_grad():
        task.weight += 1.0
        task.bias += 1.0
    averages.update()
    pieces = {shard.name: shard for shard in averages.shards()["average"]}
    assert (pieces["weight"].offset, pieces["weight"].tensor.shape) == ((2, 0), (2, 3))
    assert (pieces["bias"].offset, pieces["bias"].flat) == ((1,), True)
    torch.testing.assert_close(pieces["weight"].tensor, before["weight"][2:] + 0.5)
    with averages.in_place():
        torch.testing.assert_close(task.bias[1:3].detach(), before["bias"][1:3] + 0.5)
        assert torch.equal(task.weight[:2].detach(), before["weight"][:2] + 1.0)
        held = {shard.name: shard.tensor for shard in averages.shards()["model"]}
        assert torch.equal(held["weight"], before["weight"][2:] + 1.0)
    assert torch.equal(task.weight.detach(), before["weight"] + 1.0)
    whole = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    content = CheckpointContent(
        model=[Shard.whole("weight", task.weight.detach())],
        further={"average": [Shard.whole(name, each) for name, each in whole.items()]},
    )
    write_checkpoint(tmp_path / "c", content, fsync=False)
    with open_checkpoint(tmp_path / "c") as reader:
        averages.load(reader)
    pieces = {shard.name: shard for shard in averages.shards()["average"]}
    assert torch.equal(pieces["weight"].tensor, whole["weight"][2:])
    assert torch.equal(pieces["bias"].tensor, whole["bias"][1:3])


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R45", "CB-07")
@pytest.mark.parametrize("evaluate", [True, False])
def test_validations_see_the_averages_and_training_goes_on_with_its_own(evaluate: bool, tmp_path: Path) -> None:
    seen: dict[str, list[dict[str, Tensor]]] = {"during": [], "training": []}
    watch = At(
        on_train_batch_end=lambda _, task: seen["training"].append(weights(task)),
        on_validation_start=lambda trainer, task: seen["during"].append(weights(task)),
    )
    averaging = EMAWeightAveraging(decay=0.7, evaluate=evaluate)
    policy = CheckpointPolicy(keep_last=-1, **FAST)
    trainer = quiet(averaging, watch, max_epochs=2, seed=4, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(Net(), loader(8), loader(4))
    assert result.run_folder is not None
    for number, path in enumerate(steps_of(result.run_folder).values()):
        model, average = stored(path, "model"), stored(path, "average")
        during = {name: each for name, each in seen["during"][number].items() if name in average}
        assert same(during, average if evaluate else {name: model[name] for name in average})
    plain: list[dict[str, Tensor]] = []
    watch = At(on_train_batch_end=lambda _, task: plain.append(weights(task)))
    quiet(watch, max_epochs=2, seed=4).fit(Net(), loader(8), loader(4))
    assert all(map(same, plain, seen["training"]))


class _On(Exception):
    """What a user's code raises."""


@pytest.mark.holds("R45")
@pytest.mark.parametrize("error", [_On, KeyboardInterrupt])
@pytest.mark.parametrize("moment", ["on_validation_start", "on_validation_batch_end", "on_validation_end"])
def test_a_validation_that_fails_leaves_the_training_weights(error: Any, moment: str, tmp_path: Path) -> None:
    last: list[dict[str, Tensor]] = []

    def fail(trainer: Trainer, task: Any) -> None:
        assert not same(weights(task), last[-1])
        raise error

    watch = At(on_train_batch_end=lambda _, task: last.append(weights(task)), **{moment: fail})
    averaging, task = EMAWeightAveraging(decay=0.9), Net()
    policy = CheckpointPolicy(every="9 epochs", **FAST)
    trainer = quiet(averaging, watch, max_epochs=2, checkpoint=policy, run_dir=tmp_path)
    with pytest.raises(error):
        trainer.fit(task, loader(8), loader(4))
    assert same(weights(task), last[-1])
    if error is KeyboardInterrupt:
        (path,) = tmp_path.glob("*/checkpoints/step-*")
        assert same(stored(path, "model"), {name: last[-1][name] for name in stored(path, "model")})


@pytest.mark.holds("R45")
@pytest.mark.parametrize("copies", range(0, 16, 3))
def test_an_interrupt_within_the_swap_itself_loses_no_weight(
    copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come between any two copies, of the averages into the task or of the weights back."""
    last: list[dict[str, Tensor]] = []
    done = [-1]
    copy = Tensor.copy_

    def counted(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if done[0] >= 0:
            done[0] += 1
            if done[0] == copies + 1:
                done[0] = -1
                raise KeyboardInterrupt
        return copy(self, *arguments, **keywords)

    def on_batch(trainer: Trainer, task: Any) -> None:
        last.append(weights(task))
        done[0] = 0 if len(last) == 4 else -1

    averaging, task = EMAWeightAveraging(decay=0.9, use_buffers=False), Net()
    watch = At(on_train_batch_end=on_batch, on_train_epoch_end=lambda *_: done.__setitem__(0, -1))
    policy = CheckpointPolicy(every="9 epochs", **FAST)
    trainer = quiet(averaging, watch, max_epochs=2, checkpoint=policy, run_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", counted)
        try:
            trainer.fit(task, loader(8), loader(4))
        except KeyboardInterrupt:
            pass
        else:
            assert copies >= 10  # the swap was over before
            return
    assert same(weights(task), last[-1])
    (path,) = tmp_path.glob("*/checkpoints/step-*")
    assert same(stored(path, "model"), {name: last[-1][name] for name in stored(path, "model")})


def test_a_checkpoint_from_within_a_validation_holds_the_training_weights(tmp_path: Path) -> None:
    last: list[dict[str, Tensor]] = []
    watch = At(
        on_train_batch_end=lambda _, task: last.append(weights(task)),
        on_validation_end=lambda trainer, _: trainer.save_checkpoint(tmp_path / f"at-{trainer.global_step}"),
    )
    quiet(EMAWeightAveraging(decay=0.9), watch, max_epochs=1).fit(Net(), loader(8), loader(4))
    with open_checkpoint(tmp_path / "at-4", verify=True) as reader:
        assert reader.aliases == {"tied.weight": "last.weight"}
        model = dict(reader.model_tensors())
    assert same({name: model[name] for name in last[-1]}, last[-1])
    assert not torch.equal(stored(tmp_path / "at-4", "average")["last.weight"], model["last.weight"])


@pytest.mark.holds("R45")
@pytest.mark.parametrize("keep", [True, False])
def test_the_task_has_the_averages_at_the_end(keep: bool, tmp_path: Path) -> None:
    task, policy = Net(), CheckpointPolicy(**FAST)
    trainer = quiet(EMAWeightAveraging(decay=0.9, keep_at_end=keep), max_epochs=1, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(task, loader(8), loader(4))
    assert result.last_checkpoint is not None
    model, average = stored(result.last_checkpoint, "model"), stored(result.last_checkpoint, "average")
    expected = {**model, **average} if keep else model
    assert same({name: weights(task)[name] for name in expected}, expected)
    trainer.save_checkpoint(tmp_path / "after")
    assert same(stored(tmp_path / "after", "model"), model)
    assert same(stored(tmp_path / "after", "average"), average)


@pytest.mark.holds("R45", "R21")
def test_a_checkpoint_evaluates_to_the_metric_it_was_saved_with(tmp_path: Path) -> None:
    policy = CheckpointPolicy(monitor="val/loss", save_top_k=-1, **FAST)
    data, evaluated = loader(8, shuffle=True), loader(6)
    trainer = quiet(EMAWeightAveraging(decay=0.9), max_epochs=3, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(Net(), data, evaluated)
    assert result.run_folder is not None
    for path in steps_of(result.run_folder).values():
        with open_checkpoint(path) as reader:
            expected = reader.manifest.metrics["val/loss"][0]
        for stage in ("validate", "test"):
            fresh = quiet(EMAWeightAveraging(decay=0.9))
            (measured,) = getattr(fresh, stage)(Net(), evaluated, ckpt_path=path, verbose=False)
            assert measured["val/loss"] == expected
        (unaveraged,) = quiet().validate(Net(), evaluated, ckpt_path=path, verbose=False)
        assert unaveraged["val/loss"] != expected
        off = quiet(EMAWeightAveraging(evaluate=False))
        assert off.validate(Net(), evaluated, ckpt_path=path, verbose=False) == [unaveraged]


def test_predictions_of_a_checkpoint_are_those_of_its_averages(tmp_path: Path) -> None:
    policy = CheckpointPolicy(**FAST)
    task = Net()
    result = quiet(EMAWeightAveraging(decay=0.9), max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(
        task, loader(8)
    )
    expected = quiet().predict(task, loader(4))
    found = quiet(EMAWeightAveraging()).predict(Net(), loader(4), ckpt_path=result.last_checkpoint)
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_before_the_first_update_the_weights_themselves_are_evaluated(tmp_path: Path) -> None:
    seen: list[bool] = []
    last: list[dict[str, Tensor]] = []
    watch = At(
        on_train_batch_end=lambda _, task: last.append(weights(task)),
        on_validation_start=lambda _, task: seen.append(same(weights(task), last[-1])),
    )
    averaging = EMAWeightAveraging(decay=0.9, update_starting_at_epoch=1)
    result = quiet(
        averaging, watch, max_epochs=2, checkpoint=CheckpointPolicy(keep_last=-1, **FAST), run_dir=tmp_path
    ).fit(Net(), loader(8), loader(4))
    assert seen == [True, False]
    assert result.run_folder is not None
    kinds = [open_checkpoint(path).kinds for path in steps_of(result.run_folder).values()]
    assert ["average" in each for each in kinds] == [False, True]


# Resume ---------------------------------------------------------------------------------------------------------------


def _train(folder: Path, make: Callable[[], Any], task: TaskModule, **arguments: Any) -> tuple[Any, Path]:
    averaging = make()
    settings: dict[str, Any] = {"max_epochs": 2, "seed": 5, "checkpoint": EVERY_STEP}
    resume = arguments.pop("ckpt_path", None)
    trainer = quiet(averaging, **{**settings, **arguments}, run_dir=RunFolder(folder, name="run"))
    if resume is not None:
        torch.manual_seed(99)
    data = loader(8, shuffle=True, generator=torch.Generator().manual_seed(6))
    result = trainer.fit(task, data, loader(4), ckpt_path=resume)
    assert result.run_folder is not None
    return averaging, result.run_folder


WAYS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "every second step, accumulated, batches left out": (
        lambda: EMAWeightAveraging(decay=0.8, update_every_n_steps=2),
        {"accumulate_grad_batches": Accumulation(2, on_skip="skip_all")},
        {"skips": (2, 5)},
    ),
    "16-mixed with overflows": (
        lambda: EMAWeightAveraging(decay=0.8, decay_warmup=True),
        {"precision": "16-mixed"},
        {"huge": (1, 2, 5)},
    ),
    "starting late": (lambda: EMAWeightAveraging(decay=0.8, update_starting_at_step=3), {}, {}),
    "bf16 weights": (lambda: EMAWeightAveraging(decay=0.8), {"precision": "bf16-true"}, {}),
}


@pytest.mark.holds("R45", "R13")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_a_run_resumed_at_any_step_ends_with_the_same_bytes(way: str, tmp_path: Path) -> None:
    make, settings, task = WAYS[way]
    averaging, folder = _train(tmp_path / "whole", make, Net(**task), **settings)
    whole = steps_of(folder)
    last = whole[max(whole)]
    with open_checkpoint(last) as reader:
        progress = reader.state["progress"]
    if "huge" in task or "skips" in task:
        assert progress["skipped_steps"]
    if way.startswith("16"):
        assert averaging.updates == progress["steps"]  # an overflow is no step, so nothing was averaged
    for step, path in list(whole.items())[:-1]:
        again, resumed = _train(
            tmp_path / f"from-{step}", make, Net(**task), ckpt_path=path, checkpoint=AT_END, **settings
        )
        assert again.updates == averaging.updates
        final = steps_of(resumed)[max(whole)]
        for kind in ("model", "average", "optimizer"):
            assert same(stored(final, kind), stored(last, kind)), (step, kind)


def test_state_without_averages_is_an_error_and_averages_without_state_begin_anew() -> None:
    averaging = EMAWeightAveraging()
    with pytest.raises(CheckpointError, match="counts 3 updates of the averages 'average' and has none"):
        averaging.load_state_dict({"updates": 3, "step": 3, "joins": False})


def test_averages_of_another_task_are_refused(tmp_path: Path) -> None:
    task = nn.Linear(3, 1)
    content = CheckpointContent(
        model=[Shard.whole(f"layer.{name}", each) for name, each in task.state_dict().items()],
        further={"average": [Shard.whole("layer.other", torch.zeros(2))]},
    )
    write_checkpoint(tmp_path / "c", content, fsync=False)
    averages = Averages(equally, "average")
    trainer = quiet(max_epochs=1)
    whole = Line()
    trainer.fit(whole, loader(2))
    averages.bind(trainer.strategy, whole)
    with (
        open_checkpoint(tmp_path / "c") as reader,
        pytest.raises(CheckpointError, match=r"does not have.*layer\.other"),
    ):
        averages.load(reader)


def test_two_averages_of_one_run_need_two_names(tmp_path: Path) -> None:
    policy = CheckpointPolicy(**FAST)
    fast, slow = EMAWeightAveraging(decay=0.5), EMAWeightAveraging(decay=0.9, kind="slow", evaluate=False)
    slow.keep_at_end = False
    result = quiet(fast, slow, max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(Net(), loader(8), loader(4))
    assert result.last_checkpoint is not None
    assert open_checkpoint(result.last_checkpoint).kinds == ["model", "optimizer", "average", "slow"]
    assert not same(stored(result.last_checkpoint, "average"), stored(result.last_checkpoint, "slow"))
    with pytest.raises(ValueError, match=r"would be called 'average'.*kind='slow'"):
        quiet(fast, EMAWeightAveraging(decay=0.9), max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(
            Net(), loader(8)
        )


def test_a_checkpoint_of_weights_only_has_the_averages(tmp_path: Path) -> None:
    policy = CheckpointPolicy(weights_only=True, **FAST)
    task = Net()
    result = quiet(EMAWeightAveraging(decay=0.9), max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(
        task, loader(8)
    )
    (measured,) = quiet(EMAWeightAveraging()).validate(
        Net(), loader(4), ckpt_path=result.last_checkpoint, verbose=False
    )
    assert [measured] == quiet().validate(task, loader(4), verbose=False)


# Late epochs ----------------------------------------------------------------------------------------------------------


class Normed(TaskModule):
    def __init__(self, schedule: str = "step", groups: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        self.schedule, self.groups = schedule, groups
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if torch.is_grad_enabled():
            self.rates.append(self.trainer.lrs[0])
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule}}


def normed_by_hand(strategy: Any, epochs: int, start: int, annealing: int) -> tuple[AveragedModel, list[float]]:
    """What the documentation of torch.optim.swa_utils shows."""
    torch.manual_seed(7)
    net = Normed().net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    averaged, swa, rates = AveragedModel(net), None, []
    for epoch in range(epochs):
        if epoch == start:
            swa = SWALR(optimizer, swa_lr=0.03, anneal_epochs=annealing, anneal_strategy=strategy)
        for batch in loader(8):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
            optimizer.step()
        if swa is None:
            scheduler.step()
        else:
            averaged.update_parameters(net)
            swa.step()
    update_bn(loader(8), averaged)
    return averaged, rates


@pytest.mark.holds("CB-07")
@pytest.mark.parametrize(("strategy", "annealing"), [("cos", 3), ("linear", 2), ("linear", 0)])
def test_late_epochs_are_averaged_as_torch_shows(strategy: Any, annealing: int, tmp_path: Path) -> None:
    torch.manual_seed(7)
    task = Normed("epoch")
    averaging = StochasticWeightAveraging(0.03, 3, annealing, strategy)
    policy = CheckpointPolicy(**FAST)
    trainer = quiet(averaging, max_epochs=6, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(task, loader(8), loader(4))
    expected, rates = normed_by_hand(strategy, 6, 2, annealing)
    torch.testing.assert_close(torch.tensor(task.rates), torch.tensor(rates), rtol=1e-6, atol=0)
    got = task.net.state_dict()
    for name, tensor in expected.module.state_dict().items():
        if name != "1.num_batches_tracked":
            torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)
    assert averaging.updates == 4
    assert task.net[1].momentum == 0.1
    assert result.last_checkpoint is not None
    (measured,) = quiet(StochasticWeightAveraging(0.03)).validate(
        Normed(), loader(4), ckpt_path=result.last_checkpoint, verbose=False
    )
    with open_checkpoint(result.last_checkpoint) as reader:
        assert measured["val/loss"] == reader.manifest.metrics["val/loss"][0]
        assert "train/loss" in reader.manifest.metrics
    assert same(
        {name: got[name] for name in ("1.running_mean", "1.running_var")},
        {
            name: stored(result.last_checkpoint, "average")[f"net.{name}"]
            for name in ("1.running_mean", "1.running_var")
        },
    )


@pytest.mark.holds("R21")
def test_late_epochs_are_validated_with_their_own_weights_until_the_end(tmp_path: Path) -> None:
    policy = CheckpointPolicy(monitor="val/loss", save_top_k=-1, **FAST)
    trainer = quiet(StochasticWeightAveraging(0.03, 2), max_epochs=4, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(Normed(), loader(8), loader(4))
    assert result.run_folder is not None
    found = steps_of(result.run_folder)
    assert list(found) == [4, 8, 12, 16]
    for path in found.values():
        with open_checkpoint(path) as reader:
            expected = reader.manifest.metrics["val/loss"][0]
        fresh = quiet(StochasticWeightAveraging(0.03))
        assert fresh.validate(Normed(), loader(4), ckpt_path=path, verbose=False)[0]["val/loss"] == expected


@pytest.mark.holds("R45", "CB-07")
@pytest.mark.parametrize("schedule", ["step", "epoch"])
def test_late_epochs_resume_within_their_annealing(schedule: str, tmp_path: Path) -> None:
    def make() -> StochasticWeightAveraging:
        return StochasticWeightAveraging(0.03, 0.5, 3)

    _, folder = _train(tmp_path / "whole", make, Normed(schedule), max_epochs=4)
    whole = steps_of(folder)
    last = whole[max(whole)]
    for step in (3, 7, 8, 9, 12, 14):
        _, resumed = _train(
            tmp_path / f"{step}", make, Normed(schedule), max_epochs=4, ckpt_path=whole[step], checkpoint=AT_END
        )
        final = steps_of(resumed)[max(whole)]
        for kind in ("model", "average", "optimizer"):
            assert same(stored(final, kind), stored(last, kind)), (step, kind)


def test_late_epochs_have_learning_rates_for_every_group() -> None:
    class Groups(Line):
        def configure_optimizers(self) -> Any:
            groups = [{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias], "lr": 0.2}]
            return torch.optim.SGD(groups)

    averaging = StochasticWeightAveraging([0.01, 0.02], 1, 2, "linear")
    rates: list[list[float]] = []
    watch = At(on_train_epoch_end=lambda trainer, _: rates.append(trainer.lrs))
    quiet(averaging, watch, max_epochs=3).fit(Groups(), loader(4))
    assert rates == [pytest.approx([0.1, 0.2]), pytest.approx([0.055, 0.11]), pytest.approx([0.01, 0.02])]
    with pytest.raises(ValueError, match="swa_lrs has 3 learning rates for 2 parameter groups"):
        quiet(StochasticWeightAveraging([0.1, 0.1, 0.1]), max_epochs=1).fit(Groups(), loader(4))


def test_late_epochs_need_one_optimizer_and_a_number_of_epochs() -> None:
    class Two(Line):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([each], lr=0.1) for each in self.parameters()]

    with pytest.raises(ValueError, match=r"one optimizer that the loop steps.*2 optimizers, stepped by the task"):
        quiet(StochasticWeightAveraging(0.1), max_epochs=1).fit(Two(), loader(4))
    with pytest.raises(ValueError, match=r"without a number of epochs.*0\.5"):
        quiet(StochasticWeightAveraging(0.1, 0.5), max_steps=2).fit(Line(), loader(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMAWeightAveraging(decay=1.5), "The decay is the part of the average that is kept"),
        (lambda: EMAWeightAveraging(update_every_n_steps=-1), "update_every_n_steps is a whole number of at least 0"),
        (
            lambda: EMAWeightAveraging(decay=-1, update_starting_at_step=1.5),  # type: ignore[arg-type]
            "2 problems in the configuration",
        ),
        (lambda: EMAWeightAveraging(dtype="int8"), r"floating-point dtype.*int8.*float32"),
        (lambda: WeightAveraging(avg_fn=max, multi_avg_fn=max), "avg_fn and multi_avg_fn were both given"),
        (lambda: StochasticWeightAveraging(0.0), "swa_lrs is a learning rate above 0"),
        (lambda: StochasticWeightAveraging(0.1, 1.5), "swa_epoch_start is an epoch, counted from 1"),
        (lambda: StochasticWeightAveraging(0.1, annealing_epochs=-1), "annealing_epochs is a whole number"),
        (
            lambda: StochasticWeightAveraging(0.1, annealing_strategy="cosine"),  # type: ignore[arg-type]
            "Did you mean 'cos'",
        ),
    ],
)
def test_what_cannot_be_meant(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        make()
