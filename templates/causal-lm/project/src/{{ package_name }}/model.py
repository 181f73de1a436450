"""A decoder-only transformer.

Pre-norm blocks (Xiong et al. 2020, arXiv:2002.04745) with rotary positions (Su et al. 2021, arXiv:2104.09864), RMS
norms (Zhang & Sennrich 2019, arXiv:1910.07467), squared ReLU (So et al. 2021, arXiv:2109.08668) and tied embeddings
(Press & Wolf 2017, arXiv:1608.05859).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        """Return [N, T, width] for [N, T, width]."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two layers with a squared ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, width] for [N, T, width]."""
        return self.out(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Attention, then an MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width), CausalAttention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width), MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return [N, T, width] for [N, T, width]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """Predicts the next token.

    Args:
        vocabulary_size: tokens are below this number.
        block_size: most tokens it can see.
        width: of the residual stream.
        depth: number of blocks.
        heads: per block; `width / heads` must be even, for the rotary positions.
        dropout: probability of leaving out a feature that a block adds.

    Raises:
        ValueError: the width cannot be cut into that many even heads.
    """

    def __init__(
        self, vocabulary_size: int, block_size: int, width: int, depth: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width / heads must be an even number. Got: width={width}, heads={heads}.")
        self.block_size = block_size
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        half = width // heads // 2
        angles = torch.arange(block_size).outer(10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.zeros_(parameter)  # a new block is the identity (Zhang et al. 2019, arXiv:1901.09321)
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [N, T, vocabulary] of what follows each of the tokens, int64 [N, T]."""
        length = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(self, tokens: Tensor, length: int, temperature: float, seed: int = 0) -> Tensor:
        """Continue texts.

        Args:
            tokens: int64 [N, T].
            length: how many tokens to add.
            temperature: 0 takes the likeliest token each time; 1 draws from the model's distribution.
            seed: of the draws, so that a text can be had again.

        Returns:
            int64 [N, T + length].
        """
        generator = torch.Generator(tokens.device).manual_seed(seed)
        for _ in range(length):
            logits = self(tokens[:, -self.block_size :])[:, -1].float()
            if temperature == 0:
                drawn = logits.argmax(dim=-1, keepdim=True)
            else:
                drawn = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens
