"""A BERT encoder (post-layer-norm) that turns sentences into vectors, as all-MiniLM-L6-v2 does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of the encoder; the field names are those of its JSON."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    max_positions: int
    token_types: int
    layer_norm_eps: float
    dropout: float

    @classmethod
    def from_description(cls, config: Mapping[str, Any]) -> Self:
        """Take the fields of this class from the ``config`` of the JSON."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class Embeddings(nn.Module):
    """Word, position and (always the first) token type, summed and normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab, shape.hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(shape.max_positions, shape.hidden)
        self.token_type_embeddings = nn.Embedding(shape.token_types, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids ``[B, T]`` to ``[B, T, hidden]``."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        types = torch.zeros_like(input_ids)
        total = (
            self.word_embeddings(input_ids) + self.position_embeddings(positions) + self.token_type_embeddings(types)
        )
        embedded: Tensor = self.dropout(self.LayerNorm(total))
        return embedded


class SelfAttention(nn.Module):
    """Multi-head attention before its output projection."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.num_heads = shape.heads
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.key = nn.Linear(shape.hidden, shape.hidden)
        self.value = nn.Linear(shape.hidden, shape.hidden)
        self.dropout = shape.dropout

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        """Attend within ``x`` ``[B, T, hidden]``; ``key_mask`` ``[B, 1, 1, T]`` is true where a token counts."""
        q, k, v = (self._split_heads(project(x)) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)
        return heads.transpose(1, 2).flatten(2)

    def _split_heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.num_heads, -1))
        return heads.transpose(1, 2)


class ResidualOutput(nn.Module):
    """Project, drop out, add the residual, normalise."""

    def __init__(self, in_features: int, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map ``x`` ``[B, T, in_features]`` and its residual to ``[B, T, hidden]``."""
        normalised: Tensor = self.LayerNorm(residual + self.dropout(self.dense(x)))
        return normalised


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each with its residual."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(shape), "output": ResidualOutput(shape.hidden, shape)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.hidden, shape.intermediate)})
        self.output = ResidualOutput(shape.intermediate, shape)

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        """Map ``[B, T, hidden]`` to the same shape."""
        x = self.attention["output"](self.attention["self"](x, key_mask), x)
        hidden: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return hidden


class SentenceEncoder(nn.Module):
    """The mean of the last hidden states over the tokens that are no padding.

    The pooler belongs to the weights and is never used: that is how the model was trained.
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(shape.hidden, shape.hidden)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and their 0/1 mask, both ``[B, T]``, to sentence vectors ``[B, hidden]``."""
        x: Tensor = self.embeddings(input_ids)
        key_mask = attention_mask.bool()[:, None, None, :]
        for layer in self.encoder["layer"].children():
            x = layer(x, key_mask)
        weights = attention_mask.unsqueeze(2).to(x.dtype)
        return (x * weights).sum(dim=1) / weights.sum(dim=1)


class SentenceClassifier(nn.Module):
    """A sentence encoder with a linear head, untrained: the encoder comes without one."""

    def __init__(self, encoder: SentenceEncoder, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ids and their 0/1 mask, both ``[B, T]``, to logits ``[B, num_classes]``."""
        logits: Tensor = self.classifier(self.encoder(input_ids, attention_mask))
        return logits
