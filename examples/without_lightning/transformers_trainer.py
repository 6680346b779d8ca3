"""The Trainer of transformers (needs accelerate): calibrate and swap before the Trainer gets the model."""

import tempfile
from typing import Any

import torch
from data import make_batches, tiny_classifier
from transformers import Trainer, TrainingArguments

from papa_lightning import AttentionConstants, calibrate, swap_attention

torch.manual_seed(0)
model, batches = tiny_classifier(), make_batches()
rows: Any = [
    {key: value[row] for key, value in batch.items()} for batch in batches for row in range(len(batch["labels"]))
]

with tempfile.TemporaryDirectory() as folder:
    calibrate(model, batches, max_length=16).save(f"{folder}/constants.safetensors")
    constants = AttentionConstants.load(f"{folder}/constants.safetensors")
    swap_attention(model, "constant", constants=constants, heads="all")
    arguments = TrainingArguments(
        folder,
        num_train_epochs=8,
        learning_rate=3e-3,
        per_device_train_batch_size=8,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    scores = trainer.evaluate(rows)

    # The constants are saved with the weights, and config.json notes the swap, so from_pretrained gives the swapped
    # model wherever papa_lightning is imported first.
    trainer.save_model(f"{folder}/model")
    loaded = type(model).from_pretrained(f"{folder}/model")
    with torch.no_grad():
        difference = (loaded.eval()(**batches[0]).logits - model.eval()(**batches[0]).logits).abs().max().item()
print(f"loss {scores['eval_loss']:.3f}; loaded again, the logits differ by {difference:.1g}")
