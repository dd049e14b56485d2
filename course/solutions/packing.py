"""Solution of lesson 4: with loops, where vlm/prefix.py has tensors."""

import torch


def pack(prefix_length: int, branches: list):
    """Lay branches after a video, each as if it were alone there."""
    ids = []
    positions = list(range(prefix_length))
    owners = [None] * prefix_length  # of the video's tokens: nobody's, so everybody's
    targets = []
    branch = []
    for number, (prompt, answer) in enumerate(branches):
        for place, token in enumerate(prompt + answer):
            if place >= len(prompt):
                targets.append(len(owners))
                branch.append(number)
            ids.append(token)
            positions.append(prefix_length + place)
            owners.append(number)

    n_tokens = len(owners)
    mask = torch.zeros(n_tokens - prefix_length, n_tokens, dtype=torch.bool)
    for row in range(n_tokens - prefix_length):
        own = prefix_length + row
        for column in range(own + 1):
            mask[row, column] = owners[column] in (None, owners[own])
    return (
        torch.tensor(ids),
        torch.tensor(positions),
        mask,
        torch.tensor(targets),
        torch.tensor(branch),
    )
