"""The seam: where observers and mixers meet the self-attention of an encoder, its masks and its slots."""
