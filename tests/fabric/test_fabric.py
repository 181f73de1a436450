"""A hand-written loop with `Fabric`."""

from __future__ import annotations

import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from taskloom.core.errors import ConfigError, NonFiniteError, TaskloomWarning
from taskloom.fabric import Fabric, FabricModule
from taskloom.launch import Launcher
from taskloom.optim import TaskOptimizer
from taskloom.precision import LossScaling, MixedPrecision
from taskloom.resolve import resolve
from taskloom.strategies import SingleStrategy


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu")


def test_the_graph_is_at_hand():
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    assert fabric.accelerator.name == "cpu"
    assert fabric.precision.name == "bf16-mixed"
    assert fabric.strategy.name == "single"
    assert fabric.environment.world_size == 1
    assert fabric.device == torch.device("cpu")
    assert (fabric.world_size, fabric.num_nodes) == (1, 1)


def test_a_graph_that_is_resolved_already_is_taken():
    graph = resolve(accelerator="cpu", precision="64-true")
    fabric = Fabric.from_graph(graph)
    assert fabric.strategy is graph.strategy
    assert fabric.setup(nn.Linear(1, 1)).weight.dtype is torch.float64


def test_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match="2 problems"):
        Fabric(accelerator="cpu", precision="none", strategy="some")


def test_a_loop_takes_the_steps_of_the_bare_loop(fabric):
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(5)]
    bare = make_model()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(bare(inputs), targets).backward()
        optimizer.step()

    fabric.launch()
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    for inputs, targets in fabric.setup_dataloaders(batches):
        optimizer.zero_grad()
        fabric.backward(nn.functional.mse_loss(model(inputs), targets))
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True))


# Set-up ---------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("OS-17")
def test_objects_are_set_up_in_any_order(fabric):
    one, two = make_model(), nn.Linear(2, 2)
    first, second = torch.optim.SGD(one.parameters()), torch.optim.SGD(two.parameters())
    made = fabric.setup(second, two, first, one)
    assert [type(each) for each in made] == [TaskOptimizer, FabricModule, TaskOptimizer, FabricModule]
    assert [made[0].optimizer, made[2].optimizer] == [second, first]
    assert [made[0].name, made[2].name] == ["SGD", "SGD-1"]
    assert fabric.unwrap(made[1]) is two
    assert fabric.unwrap(made[3]) is one


@pytest.mark.holds("OS-17")
def test_one_optimizer_may_train_two_modules(fabric):
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
    encoder, decoder, optimizer = fabric.setup(encoder, decoder, optimizer)
    before = decoder.weight.clone()
    fabric.backward(decoder(encoder(torch.ones(1, 4))).sum())
    optimizer.step()
    assert not torch.equal(before, decoder.weight)


def test_pieces_can_be_set_up_separately(fabric):
    model = fabric.setup_module(make_model())
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters()))
    assert isinstance(optimizer, TaskOptimizer)
    one, two = fabric.setup_module(nn.Linear(1, 1)), fabric.setup_module(nn.Linear(1, 1))
    made = fabric.setup_optimizers(torch.optim.SGD(one.parameters()), torch.optim.SGD(two.parameters()))
    assert [each.name for each in made] == ["SGD-1", "SGD-2"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda fabric, model, opt: fabric.setup(fabric.setup(model)), ValueError, "FabricModule is set up already"),
        (
            lambda fabric, model, opt: (fabric.setup(model), fabric.setup(model)),
            ValueError,
            "Sequential is set up already",
        ),
        (
            lambda fabric, model, opt: fabric.setup(opt),
            ValueError,
            r"SGD trains no module that is set up.*fabric\.setup\(m",
        ),
        (
            lambda fabric, model, opt: (fabric.setup(model, opt), fabric.setup_optimizers(opt)),
            ValueError,
            "SGD is set up al",
        ),
        (
            lambda fabric, model, opt: fabric.setup(model, [1]),
            TypeError,
            r"setup takes modules and optimizers\. Got: 'list'",
        ),
    ],
)
def test_what_cannot_be_set_up(fabric, call, error, message):
    model = make_model()
    with pytest.raises(error, match=message):
        call(fabric, model, torch.optim.SGD(model.parameters()))


def test_groups_are_checked(fabric):
    model = make_model()
    with pytest.raises(ValueError, match="in two groups"):
        fabric.setup(model, torch.optim.SGD(model.parameters()), torch.optim.Adam(model.parameters()))
    other = make_model()
    with pytest.warns(TaskloomWarning, match=r"2 trainable parameters are in no optimizer: 2\.weight, 2\.bias"):
        fabric.setup(other, torch.optim.SGD(other[0].parameters()))


def test_schedulers_take_the_optimizer(fabric):
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    fabric.backward(model(torch.ones(1, 4)).sum())
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_loader_that_needs_nothing_is_returned_as_it_is(fabric):
    loader, other = [torch.ones(1)], [torch.zeros(1)]
    assert fabric.setup_dataloaders(loader) is loader
    assert fabric.setup_dataloaders(loader, other) == (loader, other)


@pytest.mark.holds("PR-03")
def test_layers_and_tensors_are_born_in_place():
    fabric = Fabric(accelerator="cpu", precision="bf16-true")
    with fabric.init_module():
        assert nn.Linear(1, 1).weight.dtype is torch.bfloat16
    with fabric.init_module(empty_init=True):
        assert nn.Linear(1, 1).weight.dtype is torch.bfloat16
    with fabric.init_tensor():
        assert torch.ones(1).dtype is torch.bfloat16
    assert torch.ones(1).dtype is torch.float32


def test_things_are_moved(fabric):
    batch = {"x": torch.ones(2), "text": "kept"}
    assert fabric.to_device(batch)["text"] == "kept"
    module = nn.Linear(1, 1)
    assert fabric.to_device(module) is module


def test_memory_is_given_back(fabric):
    model, _ = fabric.setup(module := make_model(), torch.optim.SGD(module.parameters()))
    alive = weakref.ref(module)
    del model, module, _
    gc.collect()
    assert alive() is not None
    fabric.free_memory()
    gc.collect()
    assert alive() is None


def test_set_up_waits_for_the_launch():
    class Far(Launcher):
        name = "far"
        starts_processes = True

        def launch(self, function, *args, **kwargs):
            return function(*args, **kwargs)

    class FarStrategy(SingleStrategy):
        launcher = Far()

    fabric = Fabric(accelerator="cpu", strategy=FarStrategy())
    with pytest.raises(RuntimeError, match=r"Fabric has not been launched.*Fix: call fabric\.launch\(\) before"):
        fabric.setup(nn.Linear(1, 1))
    assert fabric.launch(lambda fabric, number: (fabric.world_size, number), 3) == (1, 3)
    fabric.setup(nn.Linear(1, 1))


def test_a_with_block_launches_and_closes():
    calls = []

    class Counting(SingleStrategy):
        def start(self):
            calls.append("start")

        def close(self):
            calls.append("close")

    with Fabric(accelerator="cpu", strategy=Counting()) as fabric:
        fabric.setup(nn.Linear(1, 1))
        fabric.launch()
    assert calls == ["start", "close"]
    with pytest.raises(KeyError), Fabric(accelerator="cpu", strategy=Counting()):
        raise KeyError
    assert calls == ["start", "close"] * 2


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("PR-01", "PR-02", "PR-03", "PR-09")
@pytest.mark.parametrize(
    ("precision", "inside", "outside"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.float32),
        ("16-true", torch.float16, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("16-mixed", torch.float16, torch.float32),
    ],
)
def test_a_module_computes_inside_and_answers_outside(precision, inside, outside):
    seen = []
    model = make_model()
    model[2].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    model = Fabric(accelerator="cpu", precision=precision).setup(model)
    assert model(torch.randn(2, 4)).dtype is outside
    assert seen == [inside]


@pytest.mark.holds("PR-09")
def test_the_float32_wrapper_is_kept_or_dropped():
    model = Fabric(accelerator="cpu", precision="bf16-mixed")
    wrapped = model.setup(inner := make_model())
    bare, kept = model.unwrap(wrapped), model.unwrap(wrapped, keep_fp32_wrapper=True)
    assert bare is inner
    with torch.autocast("cpu", torch.bfloat16):
        assert bare(torch.ones(1, 4)).dtype is torch.bfloat16
    assert kept(torch.ones(1, 4)).dtype is torch.float32
    assert model.unwrap(kept) is inner
    assert model.unwrap(inner) is inner


@pytest.mark.holds("PR-05")
def test_autocasting_outside_of_a_module():
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    layer, inputs = nn.Linear(2, 2), torch.ones(1, 2)
    with fabric.autocast():
        assert layer(inputs).dtype is torch.bfloat16
        with fabric.autocast(enabled=False):
            assert layer(inputs).dtype is torch.float32
    with fabric.autocast(cache_enabled=False):
        assert not torch.is_autocast_cache_enabled()
    with Fabric(accelerator="cpu").autocast(), Fabric(accelerator="cpu").autocast(enabled=False):
        assert layer(inputs).dtype is torch.float32


@pytest.mark.holds("GR-10", "GR-13", "PR-06")
def test_a_scaled_loop_unscales_clips_and_skips():
    fabric = Fabric(accelerator="cpu", precision=MixedPrecision("16", LossScaling(init_scale=128.0)))
    model = nn.Linear(4, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    inputs = torch.ones(2, 4)
    fabric.backward(model(inputs).mean())
    fabric.unscale_gradients(optimizer)
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 4))
    norm = fabric.clip_gradients(model, optimizer, max_norm=1.0)
    assert norm.item() == pytest.approx(5**0.5, rel=1e-3)
    optimizer.step()
    assert not optimizer.step_was_skipped
    optimizer.zero_grad()
    before = model.weight.clone()
    fabric.backward(model(inputs * 1e4).pow(2).sum() * 1e6)
    optimizer.step()
    assert optimizer.step_was_skipped
    assert torch.equal(before, model.weight)


def test_a_closure_steps_and_answers(fabric):
    model = make_model()
    model, optimizer = fabric.setup(model, torch.optim.LBFGS(model.parameters()))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 4)).pow(2).mean()
        fabric.backward(loss)
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("GR-08", "GR-09")
def test_gradients_are_clipped(fabric):
    model = nn.Linear(4, 1, bias=False)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.weight.grad = torch.full((1, 4), 3.0)
    assert fabric.clip_gradients(model, optimizer, max_norm=100.0, norm_type=1.0).item() == 12.0
    assert fabric.clip_gradients(model, optimizer, clip_val=1.0) is None
    assert model.weight.grad.tolist() == [[1.0] * 4]
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0).item() == 2.0
    torch.testing.assert_close(model.weight.grad, torch.full((1, 4), 0.5))
    with pytest.raises(ValueError, match=r"Gradients are clipped by norm or by value.*Fix: pass max_norm or clip_val"):
        fabric.clip_gradients(model, optimizer)
    with pytest.raises(ValueError, match="clipped by norm or by value"):
        fabric.clip_gradients(model, optimizer, clip_val=1.0, max_norm=1.0)
    model.weight.grad[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="gradients that are not finite: weight"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=True)
    assert model.weight.grad[0, 1].item() == pytest.approx(0.5)


def test_arguments_reach_the_backward_pass(fabric):
    model, _ = fabric.setup(module := nn.Linear(2, 1), torch.optim.SGD(module.parameters()))
    loss = model(torch.ones(1, 2)).sum()
    fabric.backward(loss, retain_graph=True)
    fabric.backward(loss, model=model)
    assert model.weight.grad.tolist() == [[2.0, 2.0]]
    fabric.backward(model(torch.ones(1, 2)).sum(), torch.tensor(3.0))
    assert model.weight.grad.tolist() == [[5.0, 5.0]]


# The rest -------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("UT-01")
def test_seeding_repeats_every_generator(fabric):
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert fabric.seed_everything(7) == 7
    first = draw()
    fabric.seed_everything(7)
    assert draw() == first
    Fabric(accelerator="cpu", seed=7).launch()
    assert draw() == first
    chosen = fabric.seed_everything()
    drawn = draw()
    fabric.seed_everything(chosen)
    assert draw() == drawn


def test_ranks_and_collectives_of_one_process(fabric, capsys):
    assert fabric.is_global_zero
    assert (fabric.global_rank, fabric.local_rank, fabric.node_rank) == (0, 0, 0)
    tensor = torch.ones(2)
    assert torch.equal(fabric.all_reduce(tensor, "sum"), tensor)
    assert torch.equal(fabric.all_gather(tensor), tensor)
    assert fabric.broadcast("any") == "any"
    with fabric.rank_zero_first(), fabric.rank_zero_first(local=True):
        fabric.barrier()
    fabric.print("a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"


def test_hooks_of_callbacks_are_called():
    calls = []

    class First:
        def on_epoch_end(self, epoch, *, loss):
            calls.append(("first", epoch, loss))

    class Second:
        on_epoch_end = "not callable"

    fabric = Fabric(accelerator="cpu", callbacks=[First(), Second()])
    fabric.call("on_epoch_end", 3, loss=0.5)
    fabric.call("on_nothing")
    assert calls == [("first", 3, 0.5)]


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self, folder, *, run_name, project=None, resumed=False):
        self.calls.append(("start", folder.exists(), run_name, project))

    def log_metrics(self, metrics, *, step, epoch):
        self.calls.append((dict(metrics), step))

    def finish(self, status):
        self.calls.append(("finish", status))


def test_values_reach_the_loggers(tmp_path):
    from taskloom.core.policies import RunFolder

    recorder = Recorder()
    with Fabric(accelerator="cpu", loggers=[recorder], run_dir=RunFolder(tmp_path, name="mine", project="p")) as fabric:
        assert recorder.calls == []
        fabric.log("loss", torch.tensor(0.5))
        fabric.log_dict({"loss": 1, "lr": 0.25})
        fabric.log("loss", 2.0, step=10)
        fabric.log("loss", 3.0)
        assert fabric.logger is recorder
        assert fabric.run_folder == tmp_path / "mine"
    assert recorder.calls == [
        ("start", True, "mine", "p"),
        ({"loss": 0.5}, 0),
        ({"loss": 1.0, "lr": 0.25}, 1),
        ({"loss": 2.0}, 10),
        ({"loss": 3.0}, 11),
        ("finish", "finished"),
    ]


def test_without_loggers_nothing_is_written(fabric, tmp_path):
    fabric.log("loss", 1.0)
    fabric.close()
    assert list(tmp_path.iterdir()) == []
