from __future__ import annotations

import sys

import pytest
import torch


def test_the_demo_reaches_97_percent(run):
    fitted = run("fit", "digits")

    assert fitted.result.status in ("finished", "stopped")
    best = run("validate", "digits", "--ckpt_path", str(fitted.result.best_checkpoint))
    (metrics,) = best.result
    assert metrics["val/accuracy"] >= 0.97
    assert (fitted.result.run_folder / "config.yaml").is_file()


def test_a_batch_counts_for_the_images_it_holds(run):
    fitted = run("fit", "digits", "--max_epochs", "2")
    checkpoint = ["--ckpt_path", str(fitted.result.last_checkpoint)]

    (metrics,) = run("test", "digits", *checkpoint).result
    predicted = run("predict", "digits", *checkpoint)

    labels = torch.cat([labels for _, labels in predicted.data.test_dataloader()])
    right = (torch.cat(predicted.result) == labels).sum().item()
    assert len(labels) == 270  # 4 batches of 64, one of 14
    assert metrics["test/accuracy"] == pytest.approx(right / 270, abs=1e-6)


def test_every_image_is_in_exactly_one_part(load):
    data = load("digits").DigitsData(split_seed=3)
    data.setup("fit")

    indices = [index for part in data.splits for index in part.indices]
    assert [len(part) for part in data.splits] == [1257, 270, 270]
    assert sorted(indices) == list(range(1797))


def test_a_seed_gives_the_same_split_again(load):
    first, again, other = (load("digits").DigitsData(split_seed=seed) for seed in (1, 1, 2))
    for data in (first, again, other):
        data.setup("test")

    assert first.splits[2].indices == again.splits[2].indices
    assert first.splits[2].indices != other.splits[2].indices


def test_the_rate_falls_when_accuracy_stops_improving(load):
    task = load("digits").Digits(lr=1e-3)

    scheduler = task.configure_optimizers()["lr_scheduler"]["scheduler"]
    for _ in range(5):
        scheduler.step(0.9)

    assert scheduler.get_last_lr() == pytest.approx([3e-4])


@pytest.mark.parametrize(
    ("name", "function"),
    [("digits", "load_images"), ("gan", "load_images"), ("tabular", "load_tumours")],
)
def test_without_scikit_learn_the_error_names_the_extra(load, monkeypatch, name, function):
    module = load(name)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(ImportError, match=r"scikit-learn.*taskloom\[examples\]"):
        getattr(module, function)()
