"""The project's own script."""

import lightning as L
from papa_lightning import ConstantAttention
from project import ReviewClassifier, ReviewDataModule

L.seed_everything(1)
module = ReviewClassifier()
callbacks: list[L.Callback] = [L.pytorch.callbacks.ModelCheckpoint(monitor="val/accuracy", mode="max")]
callbacks.append(ConstantAttention(max_length=16, heads="all"))
trainer = L.Trainer(max_epochs=4, accelerator="cpu", gradient_clip_val=1.0, log_every_n_steps=4, callbacks=callbacks)
trainer.fit(module, datamodule=ReviewDataModule())
