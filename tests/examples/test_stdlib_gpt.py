from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch

TINY = [
    *("--task.block_size", "32", "--task.width", "32", "--task.depth", "1", "--task.heads", "2"),
    *("--task.lr", "0.01", "--task.warmup_steps", "10", "--task.sample_length", "60"),
    *("--data.block_size", "32", "--data.batch_size", "16"),
    *("--data.max_train_bytes", "200000", "--data.max_val_bytes", "4000"),
    *("--max_steps", "150", "--val_check_interval", "75 steps"),
]


@pytest.fixture
def gpt(load):
    return load("stdlib_gpt")


@pytest.fixture
def model(gpt):
    model = gpt.ByteGPT(block_size=8, width=16, depth=2, heads=2)
    for name, parameter in model.named_parameters():
        if name.endswith("out.weight"):  # a new block is the identity, which would hide what is tested
            torch.nn.init.normal_(parameter)
    return model.eval()


def test_it_learns_and_shows_what_it_writes(run, capsys):
    fitted = run("fit", "stdlib_gpt", *TINY, "--task.sample_prompt", "import ")

    assert fitted.result.metrics["val/loss"] < 3.0  # guessing costs 5.55; knowing how often each byte comes, about 3.3
    assert fitted.result.metrics["val/bits_per_byte"] == pytest.approx(
        fitted.result.metrics["val/loss"] / math.log(2), rel=1e-6
    )
    assert fitted.trainer.progress.tokens == 150 * 16 * 32
    _, _, sample = capsys.readouterr().out.partition("A sample at temperature 0.8:\n\n")
    assert sample.startswith("import ")


def test_predictions_continue_the_prompts(run):
    fitted = run("fit", "stdlib_gpt", *TINY, "--max_steps", "3", "--task.sample_length", "5")

    predicted = run(
        *("predict", "stdlib_gpt", *TINY, "--task.sample_length", "5"),
        *("--ckpt_path", str(fitted.result.last_checkpoint), "--data.prompts", '["def ", "for i"]'),
    )

    (first,), (second,) = predicted.result
    assert first.startswith("def ")
    assert second.startswith("for i")
    assert len(second.encode()) >= len("for i") + 5


def test_the_validation_loss_is_the_mean_over_all_bytes(run):
    several = run("validate", "stdlib_gpt", *TINY, "--data.batch_size", "7").result
    one = run("validate", "stdlib_gpt", *TINY, "--data.batch_size", "1000").result

    assert several[0]["val/loss"] == pytest.approx(one[0]["val/loss"], rel=1e-6)


def test_a_window_depends_on_its_index_and_the_seed_only(gpt):
    text = torch.randint(256, (1000,), dtype=torch.uint8)
    windows, again = (gpt.RandomWindows(text, block_size=16, length=200, seed=1) for _ in range(2))
    other = gpt.RandomWindows(text, block_size=16, length=200, seed=2)

    assert all(torch.equal(windows[index], again[index]) for index in range(200))
    assert windows[0].shape == (17,)
    assert sum(torch.equal(windows[index], other[index]) for index in range(200)) < 5
    assert len({tuple(window.tolist()) for window in map(windows.__getitem__, range(200))}) > 150


def test_windows_reach_both_ends_of_the_text(gpt):
    text = torch.arange(20, dtype=torch.uint8)
    windows = gpt.RandomWindows(text, block_size=16, length=100, seed=0)

    assert {window[0].item() for window in map(windows.__getitem__, range(100))} == {0, 1, 2, 3}


def test_a_text_shorter_than_a_window_is_refused(gpt):
    with pytest.raises(ValueError, match="does not fit into a text of 16 bytes"):
        gpt.RandomWindows(torch.zeros(16, dtype=torch.uint8), block_size=16, length=1, seed=0)


def test_pages_predict_every_byte_but_the_first_once(gpt):
    pages = gpt.Pages(torch.arange(17, dtype=torch.uint8), block_size=4)

    assert len(pages) == 4
    assert torch.cat([pages[index][1:] for index in range(4)]).tolist() == list(range(1, 17))


def test_the_text_is_python_without_tests_and_installed_packages(gpt):
    files = gpt.stdlib_files()

    assert files == sorted(files)
    assert {"ast.py", "os.py"} <= {path.name for path in files}
    assert not any({"site-packages", "test"} & set(path.parts[-3:-1]) for path in files)
    ast.parse(bytes(gpt.read_bytes([path for path in files if path.name == "os.py"], 10**6).tolist()))


def test_text_is_read_up_to_the_limit(gpt, tmp_path):
    files = [tmp_path / name for name in ("a.py", "b.py", "c.py")]
    for path in files:
        path.write_text("0123456789")

    assert bytes(gpt.read_bytes(files, 15).tolist()) == b"0123456789\n0123"


def test_a_python_without_its_source_is_an_error(gpt, tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})

    with pytest.raises(FileNotFoundError, match="no Python source"):
        gpt.stdlib_files()


def test_training_and_validation_share_no_file(gpt, monkeypatch):
    read: list[list[Path]] = []
    monkeypatch.setattr(gpt, "read_bytes", lambda files, limit: read.append(list(files)) or torch.zeros(1))
    data = gpt.StdlibData()
    data.setup("fit")

    training, held_out = read
    assert sorted([*training, *held_out]) == gpt.stdlib_files()
    assert len(held_out) == pytest.approx(len(training) / 9, abs=1)


def test_no_position_sees_a_later_one(model):
    tokens = torch.randint(256, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256

    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_order_of_what_was_seen_matters(model):
    first, second = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))

    assert not torch.allclose(first[:, -1], second[:, -1])


def test_greedy_writing_takes_the_likeliest_byte(model):
    prompt = torch.tensor([[65, 66]])

    written = model.generate(prompt, length=12, temperature=0)

    assert written.shape == (1, 14)
    assert written[0, 2] == model(prompt)[0, -1].argmax()
    assert written[0, -1] == model(written[:, -9:-1])[0, -1].argmax()  # it sees the last 8 bytes


def test_heads_must_fit_the_width(gpt):
    with pytest.raises(ValueError, match="must be an even number"):
        gpt.ByteGPT(block_size=8, width=15, depth=1, heads=3)


def test_decay_is_for_matrices_and_no_parameter_is_forgotten(run):
    fitted = run("fit", "stdlib_gpt", *TINY, "--max_steps", "1", "--task.sample_length", "0")

    (optimizer,) = fitted.trainer.optimizers
    decayed, kept = (group["params"] for group in optimizer.param_groups)
    assert all(parameter.ndim == 2 for parameter in decayed)
    assert all(parameter.ndim == 1 for parameter in kept)
    assert len(decayed) + len(kept) == len(list(fitted.task.parameters()))
    assert optimizer.param_groups[1]["weight_decay"] == 0


def test_the_rate_warms_up_and_falls_to_a_tenth(run):
    fitted = run("fit", "stdlib_gpt", *TINY, "--max_steps", "30", "--task.sample_length", "0")

    (config,) = fitted.trainer.lr_scheduler_configs
    (factor, _) = config.scheduler.lr_lambdas
    factors = [factor(step) for step in range(31)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert max(factors) == factors[10] == 1
    assert factors[30] == pytest.approx(0.1)
    assert config.scheduler.get_last_lr() == pytest.approx([0.01 * 0.1] * 2)
