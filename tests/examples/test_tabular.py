from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from torch.nn.functional import binary_cross_entropy


def all_of(result):
    return {name: torch.cat([batch[name] for batch in result]) for name in ("probability", "malignant")}


def outputs(task, loader):
    task.eval()
    with torch.no_grad():
        rows, labels = zip(*loader, strict=True)
        return task(torch.cat(rows)).sigmoid(), torch.cat(labels)


@pytest.mark.holds("LG-21", "LC-16")
def test_metric_objects_see_the_whole_test_set(run):
    fitted = run("fit", "tabular", "--max_epochs", "3")
    checkpoint = ["--ckpt_path", str(fitted.result.last_checkpoint), "--data.batch_size", "10"]

    (metrics,) = run("test", "tabular", *checkpoint).result
    predicted = all_of(run("predict", "tabular", *checkpoint).result)

    probability, malignant = predicted["probability"].numpy(), predicted["malignant"].numpy()
    assert len(malignant) == 114
    # None of these is a mean over batches, so only states that are merged can give them.
    assert metrics["test/auroc"] == pytest.approx(roc_auc_score(malignant, probability), abs=1e-6)
    assert metrics["test/f1"] == pytest.approx(f1_score(malignant, probability > 0.5), abs=1e-6)
    assert metrics["test/recall"] == pytest.approx(recall_score(malignant, probability > 0.5), abs=1e-6)


@pytest.mark.holds("LG-21")
def test_each_loader_has_its_metric_and_all_share_one(run):
    validated = run("validate", "tabular")

    small, large = validated.result
    loaders = validated.data.val_dataloader()
    parts = {name: outputs(validated.task, loader) for name, loader in loaders.items()}
    probability, malignant = (torch.cat(values) for values in zip(*parts.values(), strict=True))
    expected = {name: roc_auc_score(labels, scores) for name, (scores, labels) in parts.items()}
    assert small["val/auroc/small"] == pytest.approx(expected["small"], abs=0.02)  # a curve of 200 thresholds
    assert large["val/auroc/large"] == pytest.approx(expected["large"], abs=0.02)
    assert small["val/auroc_all"] == pytest.approx(roc_auc_score(malignant, probability), abs=0.02)
    assert small["val/loss_all"] == pytest.approx(binary_cross_entropy(probability, malignant).item(), rel=1e-5)


@pytest.mark.holds("LG-21")
def test_metrics_start_anew_each_epoch(run):
    fitted = run("fit", "tabular", "--max_epochs", "3")

    again = run("validate", "tabular", "--ckpt_path", str(fitted.result.last_checkpoint)).result[0]
    assert again["val/auroc_all"] == pytest.approx(fitted.result.metrics["val/auroc_all"], abs=1e-6)
    assert fitted.task.val_auroc_all.update_called is False


def test_it_finds_nearly_all_tumours(run):
    fitted = run("fit", "tabular")

    (metrics,) = run("test", "tabular", "--ckpt_path", str(fitted.result.best_checkpoint)).result
    assert metrics["test/auroc"] > 0.97
    assert metrics["test/accuracy"] > 0.93


def test_standardisation_knows_the_training_part_only(load):
    data = load("tabular").TumourData(split_seed=5)
    data.setup("fit")

    rows = data.parts["train"].tensors[0]
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(dim=0), torch.ones(30), atol=1e-4, rtol=0)
    held_out = torch.cat([data.parts[name].tensors[0] for name in ("small", "large")])
    assert held_out.mean(dim=0).abs().max() > 0.01


def test_every_tumour_is_in_exactly_one_part(load):
    tabular = load("tabular")
    data = tabular.TumourData()
    data.setup("fit")

    sizes = {name: len(part) for name, part in data.parts.items()}
    assert sizes["train"] == 341
    assert sizes["small"] + sizes["large"] == sizes["test"] == 114
    rows = torch.cat([part.tensors[0] for part in data.parts.values()])
    assert len(rows.unique(dim=0)) == 569
    median = data.parts["train"].tensors[0][:, tabular.MEAN_RADIUS].median()
    assert data.parts["large"].tensors[0][:, tabular.MEAN_RADIUS].min() > median
    assert data.parts["small"].tensors[0][:, tabular.MEAN_RADIUS].max() <= median


def test_a_malignant_tumour_weighs_more(load):
    task = load("tabular").Tumours(malignant_weight=3.0, dropout=0.0)
    rows, labels = torch.randn(4, 30), torch.tensor([1.0, 0.0, 0.0, 1.0])

    loss = task._loss([rows, labels])

    each = binary_cross_entropy(task(rows).sigmoid(), labels, reduction="none")
    assert loss.weight == 8
    torch.testing.assert_close(loss.sum, (each * torch.tensor([3.0, 1.0, 1.0, 3.0])).sum())
