"""PyTorch Lightning with automatic optimisation: nothing in the LightningModule or the Trainer changes."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from equipoise import MultiBalance
from ranker import Ranker, batches, task_losses


class LitRanker(pl.LightningModule):
    def __init__(self, fork: torch.nn.Module | None) -> None:
        super().__init__()
        self.model = Ranker(fork)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = batch
        return task_losses(self.model(ids), labels).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(fork: torch.nn.Module | None) -> Ranker:
    torch.manual_seed(0)
    module = LitRanker(fork)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches())
    return module.model


if __name__ == "__main__":
    balanced = train(MultiBalance(["click", "buy"]))  # + instead of train(None)
    print("weights at the fork:", balanced.fork.last_weights.tolist())
