"""How much memory dpo.py and the answering stages need, device by device, without a run: only MODEL/config.json is read.

    python -m tools.memory MODEL --devices 4
    python -m tools.memory tests/fixtures/internvl2_5-8b --tune lora --activation-checkpointing

Weights, gradients and AdamW's state are counted, tensor by tensor. Activations are counted too: the language model runs forward on torch's meta
device, where tensors have shapes but no numbers, and what autograd would keep for the backward pass is added up (flash attention is assumed: q, k, v
and the output are kept, no matrix of scores). `training` is the larger of two moments: the end of the forward pass, and AdamW's step, when activations
are gone, but 4 more bytes a weight are needed. `answering` is weights and the cache of one video. What is not counted: the activations of answering,
gradients of activations, the CUDA context, fragments, buffers of kernels; leave a tenth free in training, some GiB in answering.
"""

import argparse
import contextlib
import copy
from pathlib import Path

import torch
import transformers

import common
import dpo


class Kept(torch.autograd.Function):
    """In attention's place: keeps for the backward pass what flash attention keeps."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def attend(module, query, key, value, attention_mask, **kwargs):
    rows = [
        part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value)
    ]  # grouped queries: as sdpa does it
    return Kept.apply(query, *rows).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("kept", attend)


@contextlib.contextmanager
def count_kept(model):
    """Yields a dict that comes to hold what autograd keeps of a forward pass, {storage: tensor}, the model's weights aside."""
    weights, kept = {weight.untyped_storage()._cdata for weight in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def kept_bytes(config, n_layers, n_tokens, n_answers, dtype, lora_rank=0):
    """Bytes that the backward pass needs of a forward pass over T packed tokens, A of them of answers, through n decoder layers and the head.
    lora_rank: of the factors that alone are trained; 0: all weights are.
    """
    text = copy.deepcopy(config.text_config)
    text.num_hidden_layers, text._attn_implementation = n_layers, "kept"
    text.rope_parameters = {
        "rope_type": "default",
        "rope_theta": 1e4,
    }  # other types look at numbers, which meta has not
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:n_layers]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(text, dtype=dtype)
        if lora_rank:
            common.add_lora(model.requires_grad_(False).model.layers, lora_rank, 2 * lora_rank)
        embeddings = torch.empty(1, n_tokens, text.hidden_size, dtype=dtype, requires_grad=True)
        positions, targets = (
            torch.empty(1, n_tokens, dtype=torch.long),
            torch.empty(n_answers, 1, dtype=torch.long),
        )
        mask = torch.empty(1, 1, 1, 1, dtype=torch.bool)  # its own bytes: see `plan`
    with count_kept(model) as kept:
        hidden = model.model(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        model.lm_head(hidden[0, :n_answers]).float().log_softmax(-1).gather(1, targets)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def plan(config, devices, args):
    """[{what: bytes}, ...] by device: weights, gradients, AdamW's masters and moments, activations, the cache of a video that is being asked about."""
    dtype, text, rank = (
        getattr(torch, args.dtype),
        config.text_config,
        args.lora_rank if args.tune == "lora" else 0,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if rank:
        common.add_lora(model.model.language_model.layers, rank, 2 * rank)
    dpo.freeze_all_but_language(model, tune=args.tune)
    place, layers = (
        common.plan_placement(config, devices),
        common.split_layers(text.num_hidden_layers, len(devices)),
    )
    video = args.frames * (config.image_seq_length + 8)  # and its "Frame1: <img></img>"
    tokens, answers = (
        video + 2 * args.pairs * (args.question_tokens + args.answer_tokens),
        2 * args.pairs * args.answer_tokens,
    )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    one, two = (kept_bytes(config, n, tokens, answers, dtype, rank) for n in (1, 2))
    a_layer, head, boundary = two - one, 2 * one - two, tokens * text.hidden_size * dtype.itemsize
    copies = (
        (tokens - video) * tokens * dtype.itemsize + 2 * tokens * head_dim * dtype.itemsize
    )  # mask, cosines and sines, on each further device once
    batches = (
        args.videos_per_step if len(devices) > 1 else 1
    )  # over several devices all forward passes come first
    rows = []
    for number, device in enumerate(devices):
        here = [
            (name, weight) for name, weight in model.named_parameters() if place(name) == device
        ]
        trained = [weight for _, weight in here if weight.requires_grad]
        n_trained, n_layers = sum(weight.numel() for weight in trained), layers.count(number)
        kept = (
            n_layers * (boundary if args.activation_checkpointing else a_layer)
            + copies * (number > 0)
            + head * (number == len(devices) - 1)
        )
        row = {
            "layers": n_layers,
            "weights": sum(weight.nbytes for _, weight in here),
            "gradients": sum(weight.nbytes for weight in trained),
            "AdamW": sum(
                weight.numel() * (8 if weight.dtype == torch.float32 else 16) for weight in trained
            ),
            "activations": batches * kept + a_layer * args.activation_checkpointing,
            "cache": n_layers * video * 2 * text.num_key_value_heads * head_dim * dtype.itemsize,
        }
        row["training"] = (
            row["weights"]
            + row["gradients"]
            + row["AdamW"]
            + max(row["activations"], 4 * n_trained)
        )  # the fuller of two moments
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="directory with a config.json of transformers' InternVL, or an adapter of one",
    )
    parser.add_argument("--devices", type=int, default=1, help="how many")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--frames", type=int, default=common.DEFAULT_FRAMES)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of one video")
    parser.add_argument("--question-tokens", type=int, default=40)
    parser.add_argument("--answer-tokens", type=int, default=100)
    parser.add_argument("--videos-per-step", type=int, default=8, help="as in dpo.py")
    parser.add_argument("--tune", choices=("full", "lora"), default="full", help="as in dpo.py")
    parser.add_argument("--lora-rank", type=int, default=16, help="as in dpo.py")
    parser.add_argument("--activation-checkpointing", action="store_true", help="as in dpo.py")
    args = parser.parse_args()
    base = Path(common.read_adapter(args.model)[0])
    if (
        kind := common.read_json(base / "config.json", "model_type")[0]
    ) != "internvl":  # another one would be taken for the default InternVL
        raise common.InputError(f"{base}: unknown class {kind}, not internvl")
    config = transformers.InternVLConfig.from_pretrained(base)
    rows = plan(config, [f"device {n}" for n in range(args.devices)], args)
    print(
        f"{args.frames * config.image_seq_length:,} visual tokens, {args.pairs} pairs a video, {args.dtype}; GiB"
    )
    print(
        f"{'':10}{'layers':>8}{'weights':>10}{'gradients':>11}{'AdamW':>9}{'activations':>13}{'training':>10}{'answering':>11}"
    )
    for number, row in enumerate([*rows, {key: sum(row[key] for row in rows) for key in rows[0]}]):
        gib = {key: value / 2**30 for key, value in row.items()}
        print(
            f"{'in all' if number == len(rows) else f'device {number}':10}{row['layers']:8}{gib['weights']:10.1f}{gib['gradients']:11.1f}{gib['AdamW']:9.1f}"
            f"{gib['activations']:13.1f}{gib['training']:10.1f}{gib['weights'] + gib['cache']:11.1f}"
        )


if __name__ == "__main__":
    common.run(main)
