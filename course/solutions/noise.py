"""Solution of lesson 1."""

import hashlib

import torch


class Noise:
    """Gumbel noise: argmax(logits / temperature + G) falls on a token with its probability."""

    def __init__(self, seed: int, row_ids: list[str], temperature: float):
        """Make a generator for each row, whose seed is a hash of seed and id."""
        self.temperature = temperature
        self.generators = []
        for row_id in row_ids:
            digest = hashlib.sha256(f"{seed} {row_id}".encode()).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))

    def __call__(self, input_ids, scores):
        """Add one step's noise to scores, (rows, vocabulary)."""
        noisy = []
        for row, generator in zip(scores / self.temperature, self.generators):
            uniform = torch.rand(row.shape, generator=generator)
            gumbel = -torch.log(-torch.log(uniform))
            noisy.append(row + gumbel)
        return torch.stack(noisy)
