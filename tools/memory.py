r"""Calculate how much memory dpo.py and the answering stages need, by device.

    python -m tools.memory MODEL --devices 4
    python -m tools.memory tests/fixtures/internvl2_5-8b --tune lora \
        --activation-checkpointing
    python -m tools.memory MODEL --processes 8 --activation-checkpointing

Only MODEL/config.json is read; no weights are needed. The columns, in GiB:

weights, gradients, AdamW    counted tensor by tensor
activations    the language model runs forward on torch's meta device, where
               tensors have shapes but no numbers, and what autograd would keep
               for the backward pass is added up. Flash attention is assumed:
               q, k, v and the output are kept, no matrix of scores. With --tune all
               the vision tower runs as well: InternVL's, Qwen-VL's is not counted
training       the larger of two moments: the end of the forward pass, and
               AdamW's step, when the activations are gone, but 4 more bytes a
               trained weight are needed
answering      weights, and the cache of --videos-per-batch videos

With --processes N it is what each of N processes of torchrun needs, which train
together on a GPU each (FSDP2, vlm/sharding.py): its rows of the weights, of
their gradients and of AdamW's state. What is whole for the moment, the layers
at work, is counted with the activations.

Not counted: the activations of answering, gradients of activations, the CUDA
context, fragmentation, buffers of kernels. Leave a tenth of the memory free
for training, some GiB for answering.
"""

import argparse
import contextlib
import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

import common
import dpo
import vlm
from vlm import families, placement, sharding

GIB = 2**30


class Row(NamedTuple):
    """What one device needs; all but `layers` in bytes."""

    layers: int  # number of decoder layers
    weights: int
    gradients: int
    optimizer: int  # AdamW's float32 masters, their gradients, and two moments
    activations: int
    training: int
    cache: int  # of the videos that are asked about together

    @property
    def answering(self) -> int:
        """What the answering stages need."""
        return self.weights + self.cache


def plan(config, devices: list[str], args) -> list[Row]:
    """Calculate what each device needs.

    Args:
        config: of a model of transformers' class
        devices: names, which differ
        args: the options of this command
    """
    dtype = getattr(torch, args.dtype)
    lora_rank = args.lora_rank if args.tune == "lora" else 0
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if lora_rank:
        vlm.add_lora(model.model.language_model.layers, lora_rank, 2 * lora_rank)
    dpo.freeze_weights(model, tune=args.tune)

    place = vlm.plan_placement(config, devices)
    device_numbers = vlm.split_layers(config.text_config.num_hidden_layers, len(devices))
    tokens = count_tokens(config, args)
    sizes = measure_sizes(config, tokens, dtype, lora_rank)

    rows = []
    for number, device in enumerate(devices):
        weights = [weight for name, weight in model.named_parameters() if place(name) == device]
        n_layers = device_numbers.count(number)
        activations = sum_activations(sizes, n_layers, number, len(devices), args)
        if number == 0 and args.tune == "all":
            activations += sum_tower(config, len(devices), args)
        cache = args.videos_per_batch * n_layers * sizes.cache
        rows.append(make_row(weights, n_layers, activations, cache))
    return rows


def make_row(weights: list, n_layers: int, activations: int, cache: int) -> Row:
    """Add up what a device needs, from its weights, and bytes of activations and of the cache."""
    trained = [weight for weight in weights if weight.requires_grad]
    weight_bytes = sum(weight.nbytes for weight in weights)
    gradient_bytes = sum(weight.nbytes for weight in trained)

    # Two moments in float32; unless the weight is its own master, also master and its gradient
    optimizer_bytes = 0
    for weight in trained:
        bytes_a_number = 8 if weight.dtype == torch.float32 else 16
        optimizer_bytes += bytes_a_number * weight.numel()

    n_trained = sum(weight.numel() for weight in trained)
    fuller_moment = max(activations, 4 * n_trained)  # the forward pass's end, or AdamW's step
    return Row(
        layers=n_layers,
        weights=weight_bytes,
        gradients=gradient_bytes,
        optimizer=optimizer_bytes,
        activations=activations,
        training=weight_bytes + gradient_bytes + optimizer_bytes + fuller_moment,
        cache=cache,
    )


def plan_process(config, args) -> Row:
    """Calculate what each of --processes needs, which train together, on one device each.

    Masters are the weights themselves there: float32 rows of what is trained.
    """
    dtype = getattr(torch, args.dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    language = model.model.language_model
    whole = sum(w.nbytes for name, w in model.named_parameters() if not is_divided(name))
    if args.tune == "lora":
        vlm.add_lora(language.layers, args.lora_rank, 2 * args.lora_rank)
    trained = dpo.freeze_weights(model, tune=args.tune)
    n_trained = sum(weight.numel() for weight in trained)
    divided = [weight for name, weight in model.named_parameters() if is_divided(name)]
    n_frozen = sum(weight.numel() for weight in divided) - n_trained
    weights = 4 * n_trained + dtype.itemsize * n_frozen

    lora_rank = args.lora_rank if args.tune == "lora" else 0
    sizes = measure_sizes(config, count_tokens(config, args), dtype, lora_rank)
    n_layers = len(language.layers)
    at_work = sum_activations(sizes, n_layers, 0, 1, args)
    at_work += count_gathered(model, trained, dtype)
    n = args.processes
    optimizer = 8 * n_trained // n  # two moments
    gradients = 4 * n_trained // n
    own = whole + weights // n
    fuller_moment = max(at_work, gradients)  # AdamW's step takes 4 bytes a trained weight, too
    return Row(
        layers=n_layers,
        weights=own,
        gradients=gradients,
        optimizer=optimizer,
        activations=at_work,
        training=own + gradients + optimizer + fuller_moment,
        cache=0,
    )


def is_divided(name: str) -> bool:
    """Say whether a weight is divided over the processes: the language model's are."""
    return name.startswith(sharding.LANGUAGE)


def count_gathered(model, trained: list, dtype) -> int:
    """Count the bytes of what a process holds beside its rows, at the fullest moment.

    Whole in the type that the model computes in: a layer at work and the next one, the embedding
    and the head. Of a layer and the head also the gradients, and those in float32 that are summed.
    """
    language = model.model.language_model
    layer = list(language.layers[0].parameters())
    ends = {language.embed_tokens.weight, model.lm_head.weight}  # one of them, if they are tied
    held = 2 * sum(weight.numel() for weight in layer) + sum(weight.numel() for weight in ends)
    trained = set(trained)
    summed = [weight for weight in (*layer, model.lm_head.weight) if weight in trained]
    return dtype.itemsize * held + (dtype.itemsize + 4) * sum(w.numel() for w in summed)


# ------------------------------------------------------------------------------
# Activations, and the cache


class Tokens(NamedTuple):
    """Numbers of tokens of the sequence [video | branch 1 | branch 2 | ...]."""

    video: int
    branches: int  # questions and answers
    answers: int

    @property
    def total(self) -> int:
        """All tokens of the sequence."""
        return self.video + self.branches


def count_tokens(config, args) -> Tokens:
    """Count the tokens of one video and the pairs about it; a pair is two branches."""
    n_branches = 2 * args.pairs
    return Tokens(
        video=families.count_tokens(config, args.frames)[1],
        branches=n_branches * (args.question_tokens + args.answer_tokens),
        answers=n_branches * args.answer_tokens,
    )


class Sizes(NamedTuple):
    """Bytes that one video and the pairs about it take, to be added up by device."""

    layer: int  # what the backward pass needs of a decoder layer
    head: int  # what it needs of the final norm, the head and the loss
    boundary: int  # a layer's input, which is all that checkpointing keeps of the layer
    copies: int  # mask, cosines and sines: each device but the first has a copy
    cache: int  # keys and values of the video's tokens in one layer


def measure_sizes(config, tokens: Tokens, dtype: torch.dtype, lora_rank: int) -> Sizes:
    """Measure what the parts of the language model keep, and calculate the rest."""
    one_layer = kept_bytes(config, 1, tokens.total, tokens.answers, dtype, lora_rank)
    two_layers = kept_bytes(config, 2, tokens.total, tokens.answers, dtype, lora_rank)
    layer = two_layers - one_layer

    text = config.text_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    mask = tokens.branches * tokens.total * dtype.itemsize
    rotary = 2 * tokens.total * head_size * dtype.itemsize  # cosines and sines
    keys_and_values = 2 * tokens.video * text.num_key_value_heads * head_size * dtype.itemsize
    return Sizes(
        layer=layer,
        head=one_layer - layer,
        boundary=tokens.total * text.hidden_size * dtype.itemsize,
        copies=mask + rotary,
        cache=keys_and_values,
    )


def sum_activations(sizes: Sizes, n_layers: int, number: int, n_devices: int, args) -> int:
    """Add up the bytes of activations on a device, after the forward passes that come first.

    Args:
        number: of the device
    """
    per_video = n_layers * sizes.layer
    if args.activation_checkpointing:
        per_video = n_layers * sizes.boundary
    if number > 0:
        per_video += sizes.copies
    if number == n_devices - 1:
        per_video += sizes.head

    total = count_kept_videos(n_devices, args) * per_video
    if args.activation_checkpointing:
        total += sizes.layer  # the one that is computed again
    return total


def count_kept_videos(n_devices: int, args) -> int:
    """Count the videos whose activations are kept at once.

    On several devices all forward passes of a step come before the first backward pass.
    """
    return args.videos_per_step if n_devices > 1 else 1


def kept_bytes(
    config,
    n_layers: int,
    n_tokens: int,
    n_answers: int,
    dtype: torch.dtype,
    lora_rank: int = 0,
) -> int:
    """Count the bytes that the backward pass needs of a forward pass of the language model.

    Args:
        n_layers: decoder layers that the tokens pass through, before the head
        n_tokens: tokens of the packed sequence, T
        n_answers: those that belong to answers, A
        lora_rank: rank of the factors if they alone are trained; 0: all weights are trained
    """
    model = build_language_model(config, n_layers, dtype, lora_rank)
    hidden_size = config.text_config.hidden_size
    with torch.device("meta"):
        head = torch.nn.Linear(hidden_size, config.text_config.vocab_size, bias=False, dtype=dtype)
        head.requires_grad_(not lora_rank)
        embeddings = torch.empty(1, n_tokens, hidden_size, dtype=dtype, requires_grad=True)
        positions = torch.empty(1, n_tokens, dtype=torch.long)
        mask = torch.empty(1, 1, 1, 1, dtype=torch.bool)  # its own bytes are in Sizes.copies
        targets = torch.empty(n_answers, 1, dtype=torch.long)

    with count_kept([*model.parameters(), head.weight]) as kept:
        hidden = model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state  # (1, T, hidden size)
        logits = head(hidden[0, :n_answers])  # (A, vocabulary)
        logits.float().log_softmax(-1).gather(1, targets)  # (A, 1)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def sum_tower(config, n_devices: int, args) -> int:
    """Add up the bytes of activations of the vision tower and the projector, as sum_activations.

    Returns:
        0 for Qwen-VL, whose tower looks at numbers, which tensors on meta do not have
    """
    if not is_tower_counted(config):
        return 0
    dtype = getattr(torch, args.dtype)
    vision = config.vision_config
    one_layer = kept_by_tower(config, 1, args.frames, dtype)
    layer = kept_by_tower(config, 2, args.frames, dtype) - one_layer
    kept = layer
    if args.activation_checkpointing:
        n_patches = math.prod(vision.image_size) // math.prod(vision.patch_size)
        kept = args.frames * (n_patches + 1) * vision.hidden_size * dtype.itemsize  # its input
    per_video = vision.num_hidden_layers * kept + one_layer - layer
    total = count_kept_videos(n_devices, args) * per_video
    if args.activation_checkpointing:
        total += layer  # the one that is computed again
    return total


def is_tower_counted(config) -> bool:
    """Say whether the activations of the vision tower can be counted, which --tune all keeps."""
    return config.model_type == "internvl"


def kept_by_tower(config, n_layers: int, n_frames: int, dtype: torch.dtype) -> int:
    """Count the bytes that the backward pass needs of InternVL's vision tower and projector."""
    transformers.AttentionInterface.register("kept", attend)
    config = copy.deepcopy(config)
    config.vision_config.num_hidden_layers = n_layers
    config.vision_config._attn_implementation = "kept"
    height, width = config.vision_config.image_size
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
        pixels = torch.empty(n_frames, 3, height, width, dtype=dtype)
    with count_kept(list(model.parameters())) as kept:
        model.get_image_features(pixel_values=pixels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def build_language_model(config, n_layers: int, dtype: torch.dtype, lora_rank: int):
    """Build a language model of n layers on torch's meta device, with `attend` as its attention.

    It is without a head, which AutoModelForCausalLM would give it, but not to Qwen-VL's.
    """
    transformers.AttentionInterface.register("kept", attend)
    text = copy.deepcopy(config.text_config)
    text.num_hidden_layers = n_layers
    text._attn_implementation = "kept"
    # Other types of rotary positions look at numbers, which tensors on meta do not have
    own = getattr(text, "rope_parameters", None) or {}
    axes = {key: value for key, value in own.items() if key.startswith("mrope")}  # of Qwen-VL
    text.rope_parameters = axes | {"rope_type": "default", "rope_theta": 1e4}
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:n_layers]

    with torch.device("meta"):
        model = transformers.AutoModel.from_config(text, dtype=dtype)
        if lora_rank:
            model.requires_grad_(False)
            vlm.add_lora(model.layers, lora_rank, 2 * lora_rank)
    return model


def attend(module, query, key, value, attention_mask, **kwargs):
    """Stand in for flash attention: keep what it keeps, and compute nothing."""
    n_groups = query.shape[1] // key.shape[1]  # query heads that share a key-value head
    keys = key.repeat_interleave(n_groups, 1)  # (1, heads, T, head size), as sdpa does it
    values = value.repeat_interleave(n_groups, 1)
    return KeepLikeFlash.apply(query, keys, values).transpose(1, 2).contiguous(), None


class KeepLikeFlash(torch.autograd.Function):
    """Keep for the backward pass what flash attention keeps: q, k, v and the output."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


@contextlib.contextmanager
def count_kept(weights: list):
    """Record what autograd keeps of a forward pass for the backward pass, but for the weights.

    Yields:
        {storage: tensor}, which fills while the forward pass runs
    """
    weights = {weight.untyped_storage()._cdata for weight in weights}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


# ------------------------------------------------------------------------------
# The command

WIDTHS = {
    "layers": 8,
    "weights": 10,
    "gradients": 11,
    "AdamW": 9,
    "activations": 13,
    "training": 10,
    "answering": 11,
}


def main():
    """Print what each device needs."""
    args = parse_args()
    if args.processes and args.devices > 1:
        raise common.InputError("--processes have one device each: leave --devices out")
    if args.processes and args.tune == "all":
        raise common.InputError("--tune all trains in one process: leave --processes out")
    adapter = vlm.read_adapter(args.model)
    args.lora_rank = adapter.rank or args.lora_rank  # one that is trained further keeps its own
    config = placement.read_config(vlm.find_base(args.model), args.frame_tokens)

    if args.processes:
        print(f"{count_visual(config, args)}, {args.pairs} pairs a video, {args.dtype}; GiB")
        print_titles("training")
        print_row("a process", plan_process(config, args), "training")
        return
    devices = [f"device {number}" for number in range(args.devices)]
    rows = plan(config, devices, args)
    print(f"{count_visual(config, args)}, {args.pairs} pairs a video, {args.dtype}; GiB")
    print_titles()
    for device, row in zip(devices, rows):
        print_row(device, row)
    total = Row(*map(sum, zip(*rows)))
    print_row("in all", total)


def count_visual(config, args) -> str:
    """Say how many visual tokens the video has, and what is not counted of it."""
    if config.model_type == "internvl":
        return f"{args.frames * config.image_seq_length:,} visual tokens"
    _, most = families.count_tokens(config, args.frames)
    counted = f"at most {most:,} tokens of the video, which is what is counted"
    return counted + name_uncounted(config, args.tune)


def name_uncounted(config, tune: str) -> str:
    """Name the activations that are not counted -> how a line about training ends."""
    if tune != "all" or is_tower_counted(config):
        return ""
    return ", without what the vision tower keeps for its gradients"


def parse_args(words: list[str] | None = None):
    """Parse the command line, or words in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="directory with a config.json of InternVL or Qwen-VL, or of an adapter of one",
    )
    at_least_one = common.at_least(1)

    machine = parser.add_argument_group("the machine")
    machine.add_argument(
        "--devices", type=at_least_one, metavar="N", default=1, help="number of devices"
    )
    machine.add_argument(
        "--processes",
        type=common.at_least(2),
        metavar="N",
        help="that train together under torchrun, each on one device (default: one process, which "
        "spreads the layers over --devices)",
    )
    machine.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="of the weights",
    )

    data = parser.add_argument_group("what is read")
    data.add_argument(
        "--frames",
        type=at_least_one,
        metavar="N",
        default=common.DEFAULT_FRAMES,
        help="frames of a video",
    )
    common.add_frame_tokens(data)
    data.add_argument(
        "--pairs", type=at_least_one, metavar="N", default=6, help="pairs about one video"
    )
    data.add_argument(
        "--question-tokens", type=at_least_one, metavar="N", default=40, help="tokens of a question"
    )
    data.add_argument(
        "--answer-tokens", type=at_least_one, metavar="N", default=100, help="tokens of an answer"
    )

    parser.add_argument_group("answering").add_argument(
        "--videos-per-batch",
        type=at_least_one,
        metavar="V",
        default=1,
        help="videos whose answers are decoded together",
    )

    training = parser.add_argument_group("training, as in dpo.py")
    training.add_argument(
        "--videos-per-step", type=at_least_one, metavar="N", default=8, help="videos of one update"
    )
    training.add_argument(
        "--tune",
        choices=tuple(dpo.TRAINED),
        default="full",
        help="all weights of the language model, all weights, or LoRA's factors alone",
    )
    training.add_argument(
        "--lora-rank",
        type=at_least_one,
        metavar="R",
        default=16,
        help="rank of the factors, for --tune lora",
    )
    training.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass (default: keep them)",
    )
    return parser.parse_args(words)


def print_titles(last: str = "answering"):
    """Print the first line of the table, as far as a column."""
    titles = list(WIDTHS)
    titles = titles[: titles.index(last) + 1]
    print(" " * 10 + "".join(f"{title:>{WIDTHS[title]}}" for title in titles))


def print_row(name: str, row: Row, last: str = "answering"):
    """Print a line of the table, as far as a column."""
    cells = {
        "weights": row.weights,
        "gradients": row.gradients,
        "AdamW": row.optimizer,
        "activations": row.activations,
        "training": row.training,
        "answering": row.answering,
    }
    line = f"{name:10}{row.layers:{WIDTHS['layers']}}"
    for title, n_bytes in cells.items():
        line += f"{n_bytes / GIB:{WIDTHS[title]}.1f}"
        if title == last:
            break
    print(line)


if __name__ == "__main__":
    common.run(main)
