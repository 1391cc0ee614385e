"""PUB in PyTorch Lightning with automatic optimisation: training_step returns the optimizer's total of the losses."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from equipoise import PUB
from pub import balanced
from ranker import Ranker, batches, task_losses


class LitRanker(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Ranker(fork=None)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        return optimizer.total(task_losses(self.model(ids), labels))  # instead of the losses' sum

    def configure_optimizers(self) -> PUB:
        ranks, wrapped = self.trainer.world_size, self.trainer.strategy.model
        return balanced(self.model, wrapped if ranks > 1 else None)


def train() -> tuple[Ranker, PUB]:
    torch.manual_seed(0)
    module = LitRanker()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches())
    return module.model, trainer.optimizers[0]


if __name__ == "__main__":
    print("weights of the updates:", train()[1].last_weights.tolist())
