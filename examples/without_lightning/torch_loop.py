"""A plain training loop: calibrate, swap, train."""

import torch
from data import make_batches, tiny_classifier

from papa_lightning import calibrate, swap_attention

torch.manual_seed(0)
model, batches = tiny_classifier(), make_batches()

constants = calibrate(model, batches, max_length=16)
swap_attention(model, "constant", constants=constants, heads=[(0, 0), (0, 1), (1, 2)])

optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=3e-3)
model.train()
losses = []
for _epoch in range(8):
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
print(f"loss {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last")
