"""Modules as one writes them for Lightning, after a change of import and base class.

Between `from taskloom` and the trainer's arguments nothing in the classes below is ours: they use Lightning's names,
its argument orders and its habits, in the structure of its tutorials (a classifier, a GAN, a module of the older
style).
"""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from taskloom import Callback, DataModule, Trainer, seed_everything
from taskloom import TaskModule as LightningModule
from taskloom.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

LightningDataModule = DataModule


class Blobs(LightningDataModule):
    """Points around three centres."""

    def __init__(self, data_dir: str = "unused", batch_size: int = 16, num_workers: int = 0):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size

    def prepare_data(self):
        self.prepared = True

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(120) % 3
        points = torch.randn(120, 2, generator=generator) * 0.3 + torch.stack([labels - 1.0, (labels == 1) * 2.0], 1)
        whole = TensorDataset(points, labels)
        if stage in ("fit", None):
            self.train_set, self.val_set = random_split(whole, [100, 20], generator=generator)
        if stage in ("test", "predict", None):
            self.test_set = whole

    def train_dataloader(self):
        return DataLoader(self.train_set, self.batch_size, shuffle=True, num_workers=self.hparams.num_workers)

    def val_dataloader(self):
        return DataLoader(self.val_set, self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test_set, self.batch_size)

    def predict_dataloader(self):
        return DataLoader(self.test_set, self.batch_size)


@pytest.fixture
def run(tmp_path):
    def make(**arguments) -> Trainer:
        seed_everything(42, workers=True)
        return Trainer(accelerator="auto", devices=1, progress=False, run_dir=tmp_path, **arguments)

    return make


# A classifier ---------------------------------------------------------------------------------------------------------


class LitClassifier(LightningModule):
    def __init__(self, num_classes: int = 3, hidden_dim: int = 32, learning_rate: float = 0.05, **kwargs):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Linear(2, self.hparams.hidden_dim), nn.ReLU(), nn.Linear(self.hparams.hidden_dim, num_classes)
        )
        self.example_input_array = torch.zeros(2, 2)
        self.train_acc = MulticlassAccuracy(num_classes=num_classes)
        self.val_acc = MulticlassAccuracy(num_classes=num_classes)
        self.test_acc = MulticlassAccuracy(num_classes=num_classes)

    def forward(self, x):
        return F.log_softmax(self.model(x), dim=1)

    def _shared_step(self, batch):
        x, y = batch
        logits = self(x)
        return F.nll_loss(logits, y), logits.argmax(dim=1), y

    def training_step(self, batch, batch_idx):
        loss, preds, y = self._shared_step(batch)
        self.train_acc(preds, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, logger=True, sync_dist=True)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return {"loss": loss, "preds": preds}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert {"loss", "preds"} == set(outputs)

    def validation_step(self, batch, batch_idx):
        loss, preds, y = self._shared_step(batch)
        self.val_acc.update(preds, y)
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch, batch_idx):
        loss, preds, y = self._shared_step(batch)
        self.test_acc.update(preds, y)
        self.log_dict({"test_loss": loss, "test_acc": self.test_acc})

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0]).argmax(dim=1)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor=0.5, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss", "interval": "epoch", "frequency": 1},
        }


@pytest.mark.holds("TM-01", "DA-03")
def test_a_classifier_with_a_data_module(run):
    trainer = run(
        max_epochs=6,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), EarlyStopping("val_loss", patience=3)],
        log_every_n_steps=1,
    )
    model, data = LitClassifier(hidden_dim=16, note="kept"), Blobs(batch_size=20)
    trainer.fit(model, datamodule=data)

    assert data.prepared
    assert trainer.global_step == 30
    assert {"train_loss", "train_loss_step", "train_loss_epoch", "train_acc", "val_loss", "val_acc"} <= set(
        trainer.callback_metrics
    )
    assert trainer.callback_metrics["val_acc"] > 0.9

    best = trainer.best_checkpoint
    loaded = LitClassifier.load_from_checkpoint(best)
    assert (loaded.hparams.hidden_dim, loaded.hparams.note) == (16, "kept")
    (tested,) = trainer.test(loaded, datamodule=data, verbose=False)
    assert tested["test_acc"] > 0.9
    predictions = torch.cat(trainer.predict(loaded, datamodule=data))
    assert (predictions == data.test_set.tensors[1]).float().mean() > 0.9


# A GAN ----------------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    def __init__(self, latent_dim: int, data_dim: int):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(latent_dim, 16), nn.BatchNorm1d(16, 0.8), nn.ReLU(), nn.Linear(16, data_dim)
        )

    def forward(self, z):
        return self.model(z)


class Discriminator(nn.Module):
    def __init__(self, data_dim: int):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(data_dim, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, x):
        return self.model(x)


class GAN(LightningModule):
    def __init__(self, data_dim: int = 2, latent_dim: int = 4, lr: float = 2e-3, b1: float = 0.5, b2: float = 0.999):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(latent_dim=self.hparams.latent_dim, data_dim=data_dim)
        self.discriminator = Discriminator(data_dim=data_dim)
        self.validation_z = torch.randn(8, self.hparams.latent_dim)
        self.example_input_array = torch.zeros(2, self.hparams.latent_dim)

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, y):
        return F.binary_cross_entropy(y_hat, y)

    def training_step(self, batch):
        points, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(points.shape[0], self.hparams.latent_dim).type_as(points)

        self.toggle_optimizer(optimizer_g)
        self.generated = self(z)
        valid = torch.ones(points.size(0), 1).type_as(points)
        g_loss = self.adversarial_loss(self.discriminator(self.generated), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(points), valid)
        fake = torch.zeros(points.size(0), 1).type_as(points)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        self.log_dict({"d_loss": d_loss, "real_loss": real_loss, "fake_loss": fake_loss}, prog_bar=True)
        self.manual_backward(d_loss)
        self.clip_gradients(optimizer_d, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def on_train_epoch_end(self):
        scheduler_g, scheduler_d = self.lr_schedulers()
        scheduler_g.step()
        scheduler_d.step()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        z = self.validation_z.type_as(self.generator.model[0].weight)
        samples = self(z)
        if not self.trainer.sanity_checking:
            self.logger.log_metrics({"sample_mean": samples.mean().item()}, step=self.trainer.global_step)
            self.log("spread", samples.std())

    def configure_optimizers(self):
        lr, b1, b2 = self.hparams.lr, self.hparams.b1, self.hparams.b2
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=(b1, b2))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(b1, b2))
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in (opt_g, opt_d)]
        return [opt_g, opt_d], schedulers


@pytest.mark.holds("TM-27", "TM-28", "TM-29")
def test_a_gan_with_manual_optimisation(run):
    trainer = run(max_epochs=3, log_every_n_steps=1)
    model, data = GAN(), Blobs(batch_size=20)
    trainer.fit(model, data)

    assert trainer.progress.optimizer_steps == {"Adam": 15, "Adam-1": 15}
    assert trainer.global_step == 15
    assert {"g_loss", "d_loss", "real_loss", "fake_loss", "spread"} <= set(trainer.callback_metrics)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [pytest.approx(2e-3 / 8)] * 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "sample_mean" in (trainer.run_folder / "metrics.csv").read_text().splitlines()[0]


# A module of the older style ------------------------------------------------------------------------------------------


class PrintingCallback(Callback):
    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append((trainer.current_epoch, float(trainer.callback_metrics["train_loss"])))


class OlderModule(LightningModule):
    def __init__(self, hparams: dict):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.net = nn.Sequential(
            OrderedDict(first=nn.Linear(2, 16), bn=nn.BatchNorm1d(16), act=nn.Tanh(), last=nn.Linear(16, 3))
        )
        self.criterion = nn.CrossEntropyLoss()
        self.validation_outputs = []
        self.rates, self.norms = [], []

    def forward(self, x):
        return self.net(x)

    def configure_callbacks(self):
        self.printing = PrintingCallback()
        return [EarlyStopping(monitor="val_loss", mode="min", patience=10), self.printing]

    def configure_optimizers(self):
        self.planned = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "name": "one_cycle"}]

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if self.trainer.global_step < self.hparams.warmup:
            scale = min(1.0, float(self.trainer.global_step + 1) / self.hparams.warmup)
            for group in optimizer.param_groups:
                group["lr"] = scale * self.hparams.lr
        self.rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step(closure=optimizer_closure)

    def lr_scheduler_step(self, scheduler, metric):
        if self.trainer.global_step > self.hparams.warmup:
            scheduler.step()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=True)

    def on_before_optimizer_step(self, optimizer):
        norms = [parameter.grad.norm(2) for parameter in self.parameters() if parameter.grad is not None]
        self.log("grad_2.0_norm_total", torch.stack(norms).norm(2), on_step=True, on_epoch=False)
        self.norms.append(float(torch.stack(norms).norm(2)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.validation_outputs.append(self.criterion(self(x), y))

    def on_validation_epoch_end(self):
        self.log("val_loss", torch.stack(self.validation_outputs).mean(), prog_bar=True)
        self.validation_outputs.clear()

    def get_progress_bar_dict(self):
        return {}


@pytest.mark.holds("TM-15", "TM-22", "TM-24", "TM-25")
def test_a_module_of_the_older_style(run):
    trainer = run(
        max_epochs=3,
        gradient_clip_val=0.5,
        callbacks=[LearningRateMonitor(logging_interval="step")],
        log_every_n_steps=5,
    )
    model = OlderModule({"lr": 0.02, "warmup": 4})
    result = trainer.fit(model, Blobs(batch_size=20))

    assert isinstance(model.planned, int)
    assert model.planned == result.steps == 15
    assert model.rates[:4] == [pytest.approx(0.02 * step / 4) for step in (1, 2, 3, 4)]
    assert model.rates[-1] < model.rates[-5]
    assert [epoch for epoch, _ in model.printing.epochs] == [0, 1, 2]
    assert model.printing.epochs[-1][1] < model.printing.epochs[0][1]
    assert len(model.norms) == 15
    assert trainer.callback_metrics["grad_2.0_norm_total"] == pytest.approx(model.norms[-1])
    assert math.isfinite(trainer.callback_metrics["val_loss"])
    assert "one_cycle" in (trainer.run_folder / "metrics.csv").read_text().splitlines()[0]
