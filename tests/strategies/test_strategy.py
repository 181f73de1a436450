"""What every strategy promises, on one process, written against the interface: each new one runs the same tests."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from taskloom.core.errors import CheckpointError, NonFiniteError
from taskloom.core.policies import GradientClipping
from taskloom.precision import LossScaling, MixedPrecision

PRECISIONS = ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def sgd(model: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def set_up(strategy, model=None, make_optimizer=sgd):
    module = strategy.setup_module(make_model() if model is None else model)
    (optimizer,) = strategy.setup_optimizers(module, [make_optimizer(module)])
    return module, optimizer


def loss_of(strategy, module, inputs):
    precision = strategy.precision
    with precision.forward_context():
        return precision.convert_output(module(precision.convert_input(inputs))).pow(2).mean()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.detach().clone() for parameter in model.parameters() if parameter.grad is not None]


# Places ---------------------------------------------------------------------------------------------------------------


def test_one_process_speaks_for_all_and_reads_all_data(strategy):
    assert (strategy.world_size, strategy.global_rank, strategy.local_rank, strategy.node_rank) == (1, 0, 0, 0)
    assert strategy.is_global_zero
    assert (strategy.data_parallel_size, strategy.data_parallel_rank) == (1, 0)
    assert strategy.device == torch.device("cpu")


def test_collectives_of_one_process(strategy):
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(strategy.all_reduce(tensor, "sum"), tensor)
    assert torch.equal(strategy.all_gather(tensor), tensor)
    assert torch.equal(strategy.all_gather({"a": tensor})["a"], tensor)
    assert strategy.broadcast({"any": ["data"]}) == {"any": ["data"]}
    assert strategy.any_rank(True) is True
    assert strategy.any_rank(False) is False
    strategy.barrier("here")


def test_closing_twice_is_harmless(strategy):
    strategy.close()
    strategy.close()


# Set-up ---------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R5", "PR-01", "PR-02", "PR-03")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_policy_holds_after_set_up_and_after_a_step(make_strategy, precision):
    strategy = make_strategy(precision)
    module, optimizer = set_up(strategy)
    strategy.precision.check(module)
    strategy.backward(loss_of(strategy, module, torch.randn(8, 4)), module)
    strategy.step(optimizer)
    strategy.precision.check(module)
    policy = strategy.precision.policy
    for parameter in module.parameters():
        assert parameter.dtype is policy.parameter
        assert parameter.grad.dtype is policy.reduce
    assert all(buffer.dtype is policy.buffer for buffer in module.buffers() if buffer.is_floating_point())


@pytest.mark.holds("R5")
def test_half_weights_under_amp_are_refused_at_set_up(make_strategy):
    with pytest.raises(RuntimeError, match="has no float32 master weight"):
        make_strategy("bf16-mixed").setup_module(make_model().bfloat16())


@pytest.mark.holds("PR-03")
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_layers_are_born_in_place(make_strategy, precision, dtype):
    strategy = make_strategy(precision)
    torch.manual_seed(0)
    with strategy.init_context():
        layer = nn.Linear(3, 3)
    assert (layer.weight.dtype, layer.weight.device) == (dtype, strategy.device)
    assert layer.weight.std() > 0


def test_an_empty_start_leaves_out_the_initialisation(strategy, monkeypatch):
    filled = []
    uniform = torch.Tensor.uniform_
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *a, **k: filled.append(1) or uniform(tensor, *a, **k))
    with strategy.init_context(empty=True):
        layer = nn.Linear(3, 3)
    assert not filled
    assert layer.weight.shape == (3, 3)
    layer.reset_parameters()
    assert filled


def test_a_module_without_values_is_refused(strategy):
    with torch.device("meta"):
        module = make_model()
    with pytest.raises(
        ValueError, match=r"'0\.weight' is on the meta device and has no values.*init_module\(empty_init"
    ):
        strategy.setup_module(module)


@pytest.mark.holds("OS-17")
def test_several_optimizers_keep_their_order_and_share_no_parameter(strategy):
    module = strategy.setup_module(make_model())
    first, second = torch.optim.SGD(module[0].parameters()), torch.optim.Adam(module[3].parameters())
    made = strategy.setup_optimizers(module, [first, second])
    assert [type(each) for each in made] == [torch.optim.SGD, torch.optim.Adam]
    with pytest.raises(ValueError, match=r"The parameter '3\.weight' is in two groups"):
        strategy.setup_optimizers(module, [torch.optim.SGD(module.parameters()), second])


def test_unwrapping_gives_the_users_module(strategy):
    model = make_model()
    assert strategy.unwrap(strategy.setup_module(model)) is model


def test_a_bound_step_runs_the_step(strategy):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum() + batch_idx

    task = Task()
    module = strategy.setup_module(task)
    step = strategy.bind_step(module, task.training_step)
    loss = step(torch.zeros(1, 2), 3)
    assert loss.item() == pytest.approx(3 + task.layer.bias.item())


# A step ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)])
def test_steps_are_those_of_the_bare_loop(strategy, make):
    bare, inputs = make_model(), torch.randn(5, 8, 4)
    optimizer = make(bare)
    for batch in inputs:
        optimizer.zero_grad()
        bare(batch).pow(2).mean().backward()
        optimizer.step()
    module, ours = set_up(strategy, make_optimizer=make)
    for batch in inputs:
        ours.zero_grad()
        strategy.backward(loss_of(strategy, module, batch), module)
        assert strategy.step(ours)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), module.parameters(), strict=True))


def test_the_backward_pass_can_be_the_users(strategy):
    module, _ = set_up(strategy)
    seen = []
    strategy.backward(loss_of(strategy, module, torch.randn(8, 4)), module, seen.append)
    assert len(seen) == 1
    assert module[0].weight.grad is None
    seen[0].backward()
    assert module[0].weight.grad is not None


def test_gradients_add_up_without_exchange(strategy):
    module, _ = set_up(strategy, nn.Linear(4, 1))
    inputs = torch.randn(2, 8, 4)
    with strategy.backward_sync(module, False):
        strategy.backward(loss_of(strategy, module, inputs[0]), module)
    with strategy.backward_sync(module, True):
        strategy.backward(loss_of(strategy, module, inputs[1]), module)
    expected = torch.autograd.grad(sum(module(batch).pow(2).mean() for batch in inputs), list(module.parameters()))
    for found, wanted in zip(gradients(module), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_closure_is_evaluated(strategy):
    module, optimizer = set_up(strategy, make_optimizer=lambda model: torch.optim.LBFGS(model.parameters(), lr=0.5))
    inputs, losses = torch.randn(16, 4), []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(strategy, module, inputs)
        strategy.backward(loss, module)
        losses.append(loss.item())
        return loss

    assert strategy.step(optimizer, closure)
    assert len(losses) > 3
    assert losses[-1] < losses[0]


@pytest.mark.holds("GR-13")
def test_an_overflow_skips_the_step(make_strategy):
    strategy = make_strategy(MixedPrecision("16", LossScaling(init_scale=1024.0)))
    module, optimizer = set_up(strategy)
    before = copy.deepcopy(module.state_dict())
    strategy.backward(loss_of(strategy, module, torch.full((8, 4), 1e6)), module)
    assert not strategy.step(optimizer)
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())
    optimizer.zero_grad()
    strategy.backward(loss_of(strategy, module, torch.randn(8, 4)), module)
    assert strategy.step(optimizer)
    assert not torch.equal(before["0.weight"], module[0].weight)


@pytest.mark.holds("GR-10")
def test_gradients_have_their_true_size_once_unscaled(make_strategy):
    strategy = make_strategy(MixedPrecision("16", LossScaling(init_scale=256.0)))
    module, optimizer = set_up(strategy, nn.Linear(4, 1))
    inputs = torch.randn(8, 4)
    expected = torch.autograd.grad(loss_of(strategy, module, inputs), module.weight)[0]
    strategy.backward(loss_of(strategy, module, inputs), module)
    strategy.unscale_gradients(optimizer)
    strategy.unscale_gradients(optimizer)
    torch.testing.assert_close(module.weight.grad, expected, rtol=1e-2, atol=1e-3)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.125, torch.tensor(0.125), torch.tensor(0.125, dtype=torch.float64)])
def test_every_gradient_is_scaled(strategy, factor):
    module, optimizer = set_up(strategy)
    module[0].half()  # gradients of several dtypes
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 8.0)
    module[3].bias.grad = None
    strategy.scale_gradients(optimizer, factor)
    assert all(torch.equal(grad, torch.ones_like(grad)) for grad in gradients(module))
    assert module[0].weight.grad.dtype is torch.float16
    assert module[3].bias.grad is None


def test_scaling_no_gradients_is_nothing(strategy):
    _, optimizer = set_up(strategy)
    strategy.scale_gradients(optimizer, 2.0)
    strategy.scale_gradients(optimizer, torch.tensor(2.0))


@pytest.mark.holds("GR-08", "GR-09")
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_clipping_by_norm_is_torchs(strategy, norm_type, max_norm):
    module, optimizer = set_up(strategy)
    strategy.backward(loss_of(strategy, module, torch.randn(8, 4)), module)
    bare = make_model()
    for parameter, own in zip(bare.parameters(), module.parameters(), strict=True):
        parameter.grad = own.grad.clone()
    expected = clip_grad_norm_(bare.parameters(), max_norm, norm_type)
    norm = strategy.clip_gradients(module, optimizer, GradientClipping(max_norm=max_norm, norm_type=norm_type))
    assert norm.ndim == 0
    assert torch.equal(norm, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients(module), gradients(bare), strict=True))


def test_the_norm_is_over_all_groups_of_one_optimizer_and_none_of_another(strategy):
    module = strategy.setup_module(make_model())
    first = torch.optim.SGD([{"params": [module[0].weight]}, {"params": [module[0].bias], "lr": 1.0}])
    second = torch.optim.SGD(module[3].parameters())
    strategy.setup_optimizers(module, [first, second])
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = strategy.clip_gradients(module, first, GradientClipping(max_norm=1.0))
    assert norm.item() == pytest.approx(2 * math.sqrt(4 * 8 + 8))
    clipped = torch.cat([module[0].weight.grad.flatten(), module[0].bias.grad])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert module[3].weight.grad.unique().tolist() == [2.0]


@pytest.mark.holds("GR-08")
def test_clipping_by_value_is_torchs(strategy):
    module, optimizer = set_up(strategy)
    strategy.backward(loss_of(strategy, module, torch.randn(8, 4)), module)
    bare = make_model()
    for parameter, own in zip(bare.parameters(), module.parameters(), strict=True):
        parameter.grad = own.grad.clone()
    clip_grad_value_(bare.parameters(), 0.01)
    assert strategy.clip_gradients(module, optimizer, GradientClipping(max_value=0.01)) is None
    assert all(torch.equal(a, b) for a, b in zip(gradients(module), gradients(bare), strict=True))


@pytest.mark.holds("GR-09")
def test_the_norm_can_be_had_without_clipping(strategy):
    module, optimizer = set_up(strategy)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in module.parameters())
    norm = strategy.clip_gradients(module, optimizer, GradientClipping(log_norm=True))
    assert norm.item() == pytest.approx(math.sqrt(count))
    assert all(grad.unique().tolist() == [1.0] for grad in gradients(module))
    norm = strategy.clip_gradients(module, optimizer, GradientClipping(max_value=0.5, log_norm=True))
    assert norm.item() == pytest.approx(math.sqrt(count))
    assert all(grad.unique().tolist() == [0.5] for grad in gradients(module))


@pytest.mark.holds("GR-09")
@pytest.mark.parametrize("bound", [{"max_norm": 1.0}, {"max_value": 1.0}, {}])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_stops_before_anything_changes(strategy, bound, bad):
    module, optimizer = set_up(strategy)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 4.0)
    module[3].weight.grad[0, 2] = bad
    before = gradients(module)
    with pytest.raises(NonFiniteError, match=r"The gradient norm is .*gradients that are not finite: 3\.weight"):
        strategy.clip_gradients(module, optimizer, GradientClipping(**bound, error_if_nonfinite=True))
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, gradients(module), strict=True))
    assert module[0].weight.grad.unique().tolist() == [4.0]


def test_clipping_no_gradients_is_nothing(strategy):
    module, optimizer = set_up(strategy)
    assert strategy.clip_gradients(module, optimizer, GradientClipping(max_norm=1.0)).item() == 0.0
    assert strategy.clip_gradients(module, optimizer, GradientClipping(max_value=1.0)) is None


@pytest.mark.holds("GR-10", "GR-13")
def test_an_overflow_is_left_to_the_scale(make_strategy):
    strategy = make_strategy(MixedPrecision("16", LossScaling(init_scale=1024.0)))
    module, optimizer = set_up(strategy)
    strategy.backward(loss_of(strategy, module, torch.full((8, 4), 1e6)), module)
    strategy.unscale_gradients(optimizer)
    norm = strategy.clip_gradients(module, optimizer, GradientClipping(max_norm=1.0, error_if_nonfinite=True))
    assert not torch.isfinite(norm)
    assert not strategy.step(optimizer)


def test_sparse_gradients_are_clipped_and_scaled(strategy):
    def make(sparse):
        torch.manual_seed(0)
        return nn.Embedding(5, 3, sparse=sparse)

    tokens, results = torch.tensor([1, 1, 4]), []
    for sparse in (True, False):
        module, optimizer = set_up(strategy, make(sparse))
        strategy.backward(module(tokens).pow(2).sum(), module)
        strategy.scale_gradients(optimizer, 0.5)
        norm = strategy.clip_gradients(module, optimizer, GradientClipping(max_norm=0.1))
        assert module.weight.grad.is_sparse is sparse
        strategy.step(optimizer)
        results.append((norm, module.weight.detach()))
    torch.testing.assert_close(results[0], results[1])


# Checkpoints ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("counts", torch.arange(6))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def taken(strategy, module):
    return [(shard.name, shard.tensor.clone()) for shard in strategy.model_shards(module)]


def test_shards_are_the_tensors_of_the_state(strategy):
    module = strategy.setup_module(make_model())
    shards = {shard.name: shard for shard in strategy.model_shards(module)}
    state = strategy.unwrap(module).state_dict()
    assert set(shards) == set(state)
    for name, shard in shards.items():
        assert shard.global_shape == tuple(state[name].shape)
        assert torch.equal(shard.tensor, state[name])


def test_weights_come_back(strategy):
    source, target = strategy.setup_module(make_model()), strategy.setup_module(make_model())
    with torch.no_grad():
        source[0].weight.fill_(3.0)
        source[1].running_mean.fill_(5.0)
        source[1].num_batches_tracked.fill_(7)
    weight = target[0].weight
    strategy.load_model(target, taken(strategy, source))
    assert target[0].weight is weight, "an optimizer must keep its parameters"
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_tied_weights_are_told_and_stay_tied(strategy):
    source, target = strategy.setup_module(Tied()), strategy.setup_module(Tied())
    assert strategy.aliases(source) == {"decoder.weight": "encoder.weight"}
    assert [name for name, _ in taken(strategy, source)] == ["counts", "encoder.weight", "decoder.weight"]
    stored = [(name, tensor) for name, tensor in taken(strategy, source) if name != "decoder.weight"]
    strategy.load_model(target, stored)
    assert target.decoder.weight is target.encoder.weight
    assert torch.equal(target.decoder.weight, source.encoder.weight)


def test_what_does_not_fit_is_an_error(strategy):
    module = strategy.setup_module(make_model())
    tensors = taken(strategy, module)
    with pytest.raises(CheckpointError, match=r"does not hold the tensors of Sequential\. Got: 'missing: 0\.weight'"):
        strategy.load_model(module, tensors[1:])
    with pytest.raises(CheckpointError, match=r"not in the module: extra\.weight"):
        strategy.load_model(module, [*tensors, ("extra.weight", torch.ones(1))])
    strategy.load_model(module, [*tensors[1:], ("extra.weight", torch.ones(1))], strict=False)
    with pytest.raises(
        CheckpointError, match=r"'0\.weight' has another shape in the checkpoint\. Got: '\(4, 4\) for \(8, 4\)'"
    ):
        strategy.load_model(module, [("0.weight", torch.ones(4, 4))], strict=False)


def test_state_that_is_no_tensor_is_an_error_and_not_lost(strategy):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            """Restore."""

    module = strategy.setup_module(Counting(2, 2))
    with pytest.raises(CheckpointError, match=r"'_extra_state' in the state of Counting is not a tensor\. Got: 'dict'"):
        list(strategy.model_shards(module))


def test_extra_state_that_is_a_tensor_comes_back(strategy):
    class Counting(nn.Linear):
        calls = 0

        def get_extra_state(self):
            return torch.tensor(self.calls)

        def set_extra_state(self, state):
            self.calls = int(state)

    source, target = Counting(2, 2), Counting(2, 2)
    source.calls = 3
    strategy.load_model(strategy.setup_module(target), taken(strategy, strategy.setup_module(source)))
    assert target.calls == 3


@pytest.mark.holds("OS-17")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_continues_bit_for_bit(make_strategy, precision):
    def run(strategy, steps, state=None):
        module = strategy.setup_module(make_model())
        optimizers = {
            "first": torch.optim.AdamW(module[0].parameters(), lr=0.01, eps=1e-3),
            "second": torch.optim.SGD([*module[1].parameters(), *module[3].parameters()], lr=0.01, momentum=0.9),
        }
        strategy.setup_optimizers(module, list(optimizers.values()))
        if state is not None:
            strategy.load_model(module, state[0])
            strategy.load_optimizers(module, optimizers, state[1], state[2])
            strategy.precision.load_state_dict(state[3])
        for step in steps:
            batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            strategy.backward(loss_of(strategy, module, batch), module)
            for optimizer in optimizers.values():
                strategy.step(optimizer)
        moments = [(shard.name, shard.tensor.clone()) for shard in strategy.optimizer_shards(module, optimizers)]
        taken_state = copy.deepcopy(strategy.optimizer_state(module, {**optimizers}))
        return taken(strategy, module), taken_state, moments, strategy.precision.state_dict()

    half = run(make_strategy(precision), range(3))
    resumed = run(make_strategy(precision), range(3, 6), half)
    whole = run(make_strategy(precision), range(6))
    for (name, tensor), (other, expected) in zip(resumed[0] + resumed[2], whole[0] + whole[2], strict=True):
        assert name == other
        assert torch.equal(tensor, expected)
    assert resumed[3] == whole[3]
    assert dict(whole[2])["0.weight.step"].item() == 6 if precision != "16-mixed" else True


def test_other_optimizers_are_an_error(strategy):
    module, optimizer = set_up(strategy)
    state = strategy.optimizer_state(module, {"SGD": optimizer})
    with pytest.raises(CheckpointError, match=r"The checkpoint holds other optimizers\. Got: 'SGD for Adam'"):
        strategy.load_optimizers(module, {"Adam": optimizer}, state, [])
    with pytest.raises(CheckpointError, match=r"The checkpoint holds other optimizers\. Got: 'SGD for none'"):
        strategy.load_optimizers(module, {}, state, [])
