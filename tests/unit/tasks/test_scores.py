"""The loss of labelled items."""

import torch

from papa_lightning.tasks.scores import UNLABELLED, LabelledCrossEntropy


def test_losses_of_several_batches_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (3, 5), generator=generator)
    labels[0, 2:], labels[1] = UNLABELLED, UNLABELLED
    loss = LabelledCrossEntropy()
    expected = torch.stack([loss(one, own) for one, own in zip(logits, labels, strict=True)])
    assert expected[1] == 0
    torch.testing.assert_close(loss.of_each(logits, labels), expected)
