"""A small GPT that learns to write Python, byte by byte, from the source of Python's standard library.

Every machine with Python has this text. The model is a decoder-only transformer with pre-norm blocks (Xiong et al.
2020, arXiv:2002.04745), rotary positions (Su et al. 2021, arXiv:2104.09864), RMS norms (Zhang & Sennrich 2019,
arXiv:1910.07467), squared ReLU (So et al. 2021, arXiv:2109.08668) and tied embeddings (Press & Wolf 2017,
arXiv:1608.05859). Weight decay on matrices only, the betas of AdamW, clipping at norm 1 and warm-up before a cosine
are GPT-3's settings (Brown et al. 2020, arXiv:2005.14165, appendix B).
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from taskloom import DataModule, Loss, TaskModule

VOCABULARY = 256  # a token is a byte
NOT_OURS = frozenset({"site-packages", "dist-packages"})  # what a user installed differs between machines
NOT_PROSE = frozenset({"test", "tests", "encodings", "idlelib", "lib2to3", "pydoc_data"})  # tables, fixtures
MASK = (1 << 64) - 1


def stdlib_files() -> list[Path]:
    """Return the standard library's source files in a fixed order, without tests, tables and installed packages.

    Raises:
        FileNotFoundError: this Python was installed without its source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    unwanted = NOT_OURS | NOT_PROSE
    files = [path for path in sorted(root.rglob("*.py")) if unwanted.isdisjoint(path.relative_to(root).parts)]
    if not files:
        raise FileNotFoundError(f"There is no Python source under {root}. Fix: use a Python that keeps its .py files.")
    return files


def read_bytes(files: Sequence[Path], limit: int) -> Tensor:
    """Join files, until `limit` bytes, into one uint8 tensor [bytes]."""
    text = bytearray()
    for path in files:
        if len(text) >= limit:
            break
        text += path.read_bytes() + b"\n"
    return torch.frombuffer(text[:limit], dtype=torch.uint8)


def mix(seed: int, index: int) -> int:
    """Return 64 well-mixed bits of two numbers: the finaliser of SplitMix64 (Steele et al. 2014, OOPSLA)."""
    bits = (index * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


class RandomWindows(Dataset[Tensor]):
    """Windows of a text at random places, the same window for the same index.

    As an item depends on nothing but its index, the data can be shuffled, sharded and resumed as any map-style set.

    Args:
        text: uint8 [bytes].
        block_size: tokens the model sees; an item has one more, so that every position has a successor.
        length: number of windows.
        seed: another seed, other windows.

    Raises:
        ValueError: the text is shorter than one window.
    """

    def __init__(self, text: Tensor, block_size: int, length: int, seed: int) -> None:
        if len(text) <= block_size:
            raise ValueError(f"A window of {block_size} + 1 bytes does not fit into a text of {len(text)} bytes.")
        self.text, self.block_size, self.length, self.seed = text, block_size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        start = mix(self.seed, index) % (len(self.text) - self.block_size)
        return self.text[start : start + self.block_size + 1]


class Pages(Dataset[Tensor]):
    """A text cut into windows that follow each other, each predicting every byte after its first exactly once."""

    def __init__(self, text: Tensor, block_size: int) -> None:
        self.text, self.block_size = text, block_size

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.block_size

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.block_size
        return self.text[start : start + self.block_size + 1]


class Prompts(Dataset[Tensor]):
    """Texts to continue, as uint8 [bytes]."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = [torch.frombuffer(bytearray(prompt.encode()), dtype=torch.uint8) for prompt in prompts]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Tensor:
        return self.prompts[index]


class StdlibData(DataModule):
    """The standard library's source; every tenth file is held out for validation.

    Args:
        block_size: tokens per window.
        batch_size: windows per device and micro-batch.
        windows_per_epoch: random training windows that make an epoch.
        max_train_bytes: read at most so much text for training.
        max_val_bytes: read at most so much text for validation.
        seed: decides where the training windows lie.
        prompts: what `predict` continues.
    """

    def __init__(
        self,
        block_size: int = 128,
        batch_size: int = 8,
        windows_per_epoch: int = 9_600,
        max_train_bytes: int = 8_000_000,
        max_val_bytes: int = 65_536,
        seed: int = 0,
        prompts: tuple[str, ...] = ("import ", "def ", "class "),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.texts: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Read the text; 'predict' needs none."""
        if stage == "predict" or self.texts:
            return
        files = stdlib_files()
        training = [path for number, path in enumerate(files) if number % 10]
        self.texts = {
            "train": read_bytes(training, self.hparams.max_train_bytes),
            "val": read_bytes(files[::10], self.hparams.max_val_bytes),
        }

    def train_dataloader(self) -> DataLoader[Tensor]:
        block_size, length = self.hparams.block_size, self.hparams.windows_per_epoch
        windows = RandomWindows(self.texts["train"], block_size, length, self.hparams.seed)
        return DataLoader(windows, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Pages(self.texts["val"], self.hparams.block_size), batch_size=4 * self.hparams.batch_size)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Prompts(self.hparams.prompts), batch_size=1)  # prompts differ in length


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head [N, heads, T, D] by angles [T, D/2] that grow with the position."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class MLP(nn.Module):
    """Two layers with a squared ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.relu(self.up(x)).square())
        return out


class Block(nn.Module):
    """Attention, then an MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), CausalAttention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width), MLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class ByteGPT(nn.Module):
    """A decoder-only transformer over bytes.

    Args:
        block_size: most tokens it can see.
        width: of the residual stream.
        depth: number of blocks.
        heads: per block; `width / heads` must be even, for the rotary positions.

    Raises:
        ValueError: the width cannot be cut into that many even heads.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, block_size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width / heads must be an even number. Got: width={width}, heads={heads}.")
        self.block_size = block_size
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        half = width // heads // 2
        angles = torch.arange(block_size).outer(10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith("out.weight"):
                nn.init.zeros_(parameter)  # a new block is the identity (Zhang et al. 2019, arXiv:1901.09321)
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [N, T, 256] of the byte after each of the tokens, an integer tensor [N, T]."""
        length = tokens.shape[1]
        x = self.embedding(tokens.long())
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(self, tokens: Tensor, length: int, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """Continue texts.

        Args:
            tokens: integer tensor [N, T].
            length: how many bytes to add.
            temperature: 0 takes the likeliest byte each time; 1 draws from the model's distribution.
            seed: of the draws, so that a text can be had again.

        Returns:
            int64 [N, T + length].
        """
        generator = torch.Generator(tokens.device).manual_seed(seed)
        tokens = tokens.long()
        for _ in range(length):
            logits = self(tokens[:, -self.block_size :])[:, -1].float()
            if temperature == 0:
                drawn = logits.argmax(dim=-1, keepdim=True)
            else:
                drawn = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens


class StdlibGPT(TaskModule):
    """Learns to predict the next byte, and shows what it would write.

    Args:
        block_size: tokens the model sees, as many as a window of the data has.
        width: of the residual stream.
        depth: number of blocks.
        heads: attention heads per block.
        lr: highest learning rate of AdamW.
        weight_decay: of the matrices; norms are not decayed.
        warmup_steps: optimizer steps until the rate has risen to `lr`; then it falls along a cosine to a tenth of it.
        sample_prompt: how the sample begins that is printed when training ends.
        sample_length: bytes of that sample, and of each prediction; 0 prints none.
        temperature: of the sampling; 0 is greedy.
    """

    def __init__(
        self,
        block_size: int = 128,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        lr: float = 6e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        sample_prompt: str = "def ",
        sample_length: int = 400,
        temperature: float = 0.8,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ByteGPT(block_size, width, depth, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        return logits

    def num_tokens(self, batch: Tensor) -> int:
        """Count predictions: a window of T + 1 bytes holds T."""
        return batch.shape[0] * (batch.shape[1] - 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Loss:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = self._loss(batch)
        self.log("val/loss", loss, prog_bar=True)  # a sum and a weight, so the epoch's value is exact per byte
        self.log("val/bits_per_byte", Loss(loss.sum / math.log(2), loss.weight))

    def _loss(self, batch: Tensor) -> Loss:
        """Sum of the cross-entropy in nats, with the number of predicted bytes as its weight."""
        logits = self(batch[:, :-1])
        total = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten().long(), reduction="sum")
        return Loss(total, self.num_tokens(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[str]:
        """Continue each prompt of a batch, uint8 [N, T]."""
        length, temperature = self.hparams.sample_length, self.hparams.temperature
        written = self.model.generate(batch, length, temperature, seed=batch_idx)
        return [bytes(text.tolist()).decode(errors="replace") for text in written]

    def on_fit_end(self) -> None:
        if self.hparams.sample_length > 0:
            prompt = torch.tensor([list(self.hparams.sample_prompt.encode())], device=self.device)
            self.eval()
            self.print(f"\nA sample at temperature {self.hparams.temperature}:\n\n{self.predict_step(prompt, 0)[0]}\n")

    def configure_optimizers(self) -> dict[str, Any]:
        matrices = [parameter for parameter in self.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.hparams.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.lr, betas=(0.9, 0.95))
        warmup, total = self.hparams.warmup_steps, self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            """Linear warm-up, then a cosine to a tenth (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
            if step < warmup:
                return (step + 1) / (warmup + 1)
            part = min(1.0, (step - warmup) / max(1, total - warmup))
            return 0.1 + 0.45 * (1 + math.cos(math.pi * part))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
