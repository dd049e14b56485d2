"""The first step of dpo.py, as far as its gradients, for tests/test_sharding.py: under torchrun or alone.

python tests/first_step.py OUT DTYPE [options of dpo.py]    # writes OUT/<rank>.pt
"""

import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import common
import dpo
import vlm
from vlm import processes


def compute(dtype, words):
    """Compute the first step, of all pairs -> (Step, {name of a weight: its gradient as a whole})."""
    with mock.patch("sys.argv", ["dpo.py", *map(str, words)]):
        args = dpo.parse_args()
    args.dtype = dtype
    exact = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)  # of logits
    if dtype == "float64":
        exact.start()
    root, groups = dpo.read_pairs(args, "{question}")
    model, tokenizer, _ = dpo.load_policy(args)
    dpo.freeze_weights(model, args.activation_checkpointing, args.tune)
    if args.tune == "lora":  # with B = 0 the gradient of A is 0
        draw_second_factors(model)

    reference = {}
    for _, pairs in groups:
        reference[common.segment(pairs[0])] = -torch.ones(2, len(pairs)), torch.full((2, len(pairs)), 7)
    [watched] = vlm.watch_batches(model, tokenizer, [groups], root, args)
    step = dpo.accumulate(model, tokenizer, watched, groups, reference, args)
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            gradients[name] = processes.whole(weight.grad)
    mock.patch.stopall()
    return step._asdict(), gradients


def draw_second_factors(model):
    """Give LoRA's factors B numbers, the same whether they are divided or not."""
    generator = torch.Generator().manual_seed(1)
    drawn = {}
    for name, weight in model.state_dict().items():
        if ".lora_B." in name:
            numbers = 0.05 * torch.randn(weight.shape, generator=generator)
            drawn[name] = processes.like(weight, numbers[processes.own_rows(weight)])
    model.load_state_dict(drawn, strict=False, assign=True)


if __name__ == "__main__":
    torch.save(compute(sys.argv[2], sys.argv[3:]), Path(sys.argv[1]) / f"{common.process().rank}.pt")
