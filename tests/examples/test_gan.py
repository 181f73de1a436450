from __future__ import annotations

import csv
import struct
import zlib

import pytest
import torch


@pytest.mark.holds("R27", "TM-27")
def test_max_steps_counts_batches_and_each_optimizer_has_its_own_counter(run, load, monkeypatch):
    calls = []
    step = load("gan").GAN.training_step
    monkeypatch.setattr(
        load("gan").GAN, "training_step", lambda self, batch, batch_idx: calls.append(0) or step(self, batch, batch_idx)
    )

    fitted = run("fit", "gan", "--max_steps", "30", "--val_check_interval", "15 steps")

    progress = fitted.trainer.progress
    assert len(calls) == 30
    assert progress.steps == progress.micro_batches == fitted.trainer.global_step == 30
    assert len(progress.optimizer_steps) == 2
    assert set(progress.optimizer_steps.values()) == {30}
    with (fitted.result.run_folder / "metrics.csv").open() as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) == 30


@pytest.mark.holds("TM-27")
def test_both_networks_learn(run, load):
    before = {name: value.clone() for name, value in load("gan").GAN().state_dict().items()}
    fitted = run("fit", "gan", "--max_steps", "2")

    after = fitted.task.state_dict()
    moved = {
        name.split(".")[0] for name in before if name.endswith("weight") and not torch.equal(before[name], after[name])
    }
    assert moved == {"generator", "discriminator"}
    assert {"train/generator_loss", "train/discriminator_loss"} <= set(fitted.result.metrics)


@pytest.mark.holds("TM-28")
def test_each_turn_asks_for_the_gradients_of_one_network(run, load, monkeypatch):
    gan = load("gan")
    asked = []
    update = gan.GAN._update

    def recording(self, optimizer, loss):
        asked.append({name.split(".")[0] for name, parameter in self.named_parameters() if parameter.requires_grad})
        update(self, optimizer, loss)

    monkeypatch.setattr(gan.GAN, "_update", recording)
    fitted = run("fit", "gan", "--max_steps", "2")

    assert asked == [{"generator"}, {"discriminator"}] * 2
    assert all(parameter.requires_grad for parameter in fitted.task.parameters())


def test_the_images_become_more_like_the_real_ones(run):
    untrained = run("validate", "gan").result[0]["val/energy_distance"]
    fitted = run("fit", "gan", "--max_steps", "400", "--val_check_interval", "400 steps")

    assert fitted.result.metrics["val/energy_distance"] < untrained / 2


def test_a_picture_is_written_after_each_validation(run, capsys):
    fitted = run("fit", "gan", "--max_steps", "4", "--val_check_interval", "2 steps")

    folder = fitted.result.run_folder / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002.png", "step-00000004.png"]
    assert f"Pictures: {folder}" in capsys.readouterr().out


def test_png_holds_the_pixels(load, tmp_path):
    picture = torch.tensor([[0, 255, 7], [9, 8, 100]], dtype=torch.uint8)

    load("gan").write_png(tmp_path / "new" / "picture.png", picture, scale=2)

    data = (tmp_path / "new" / "picture.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        body, checksum = rest[4 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", checksum) == (zlib.crc32(body),)
        chunks[body[:4]], rest = body[4:], rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (6, 4, 8, 0, 0, 0, 0)
    lines = [b"\0" + bytes([a, a, b, b, c, c]) for a, b, c in picture.tolist() for _ in range(2)]
    assert zlib.decompress(chunks[b"IDAT"]) == b"".join(lines)


def test_images_are_tiled_in_reading_order(load):
    images = torch.stack([torch.full((64,), value) for value in (-1.0, 0.0, 0.5, 1.0)])

    picture = load("gan").tile(images, columns=2)

    assert picture.shape == (20, 20)
    assert [picture[y, x].item() for y in (5, 15) for x in (5, 15)] == [255, 128, 64, 0]
    assert picture[0].unique().tolist() == [255]


def test_images_are_drawn_with_characters(load):
    drawn = load("gan").as_text(torch.stack([torch.full((64,), -1.0), torch.full((64,), 1.0)])).splitlines()

    assert drawn == [" " * 16 + "  " + "@" * 16] * 8


def test_a_dry_run_writes_nothing(run, tmp_path):
    fitted = run("fit", "gan", "--fast_dev_run", "true")

    assert fitted.result.steps == 1
    assert list(tmp_path.rglob("*.png")) == []
