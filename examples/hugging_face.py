"""A Hugging Face text encoder with two heads: tasks share the encoder as rankers share a bottom.

The encoder is tiny and starts from random weights, so nothing is downloaded; a pretrained one goes in the same way.
"""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from equipoise import MultiBalance

WORDS = ["the", "film", "is", "was", "very", "good", "bad", "long", "short", "not", "dull", "fun"]


class Reader(nn.Module):
    """Predicts if a text is positive and if it mentions length; the second loss is 23 times as large as the first."""

    def __init__(self, fork: nn.Module | None) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=len(WORDS) + 1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.fork = fork
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        text = self.encoder(input_ids=tokens).last_hidden_state[:, 0]
        branches = [text] * 2 if self.fork is None else self.fork(text)
        return torch.cat([head(branch) for head, branch in zip(self.heads, branches, strict=True)], dim=1)


def texts(steps: int = 20, rows: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    good, length = (
        torch.tensor([WORDS.index(word) + 1 for word in pair]) for pair in (("good", "fun"), ("long", "short"))
    )
    found = []
    for _ in range(steps):
        words = torch.randint(1, len(WORDS) + 1, (rows, 6), generator=generator)
        tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), words], dim=1)
        labels = torch.stack([torch.isin(words, good).any(1), torch.isin(words, length).any(1)], dim=1)
        found.append((tokens, labels.float()))
    return found


def train(fork: nn.Module | None) -> Reader:
    torch.manual_seed(0)
    model = Reader(fork)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for tokens, labels in texts():
        optimizer.zero_grad()
        losses = nn.functional.binary_cross_entropy_with_logits(model(tokens), labels, reduction="none").mean(0)
        (losses[0] + 23 * losses[1]).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    balanced = train(MultiBalance(["positive", "length"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
