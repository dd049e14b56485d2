"""Training on several GPUs at once: FSDP2 (arXiv 2304.11277), one process a GPU, under torchrun.

    torchrun --standalone --nproc-per-node 8 dpo.py ...

weights    each process holds its rows of every weight of the language model, in float32 where it is
           trained, with their gradients and AdamW's state. A layer is whole only while it is at
           work, in the type that the model computes in. Vision tower and projector are whole in
           each process
videos     those of a step are dealt out: process r of n takes number r, r + n, ...
gradients  are summed in float32 over the processes after each video, so that a training does not
           depend on their number, but for rounding

What one process does alone is written down in dpo.py; a divided weight is a DTensor, which
optimizer and clipping take as any other. What the processes say to each other is in processes.py.

The queue of the answering stages (outputs/queue.py) is another thing: there processes are
independent, here all of them run through the layers together, video by video.
"""

import datetime
import itertools
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

import common
from vlm import files, placement
from vlm.lora import Adapter, add_lora
from vlm.prefix import watch_each
from vlm.processes import deal, is_first, like, local, own_rows, whole

# torchrun ends all processes when one ends; to wait for a slow one is no error
FOREVER = datetime.timedelta(days=30)
LANGUAGE = ("model.language_model", "lm_head")  # what is divided


# ------------------------------------------------------------------------------
# A model whose weights are divided


def check_processes(args):
    """Raise InputError for what several processes cannot do.

    That is to have more than one device each, and to train the vision tower, which is whole in all.
    """
    if common.process().n == 1:
        return
    if args.tune == "all":
        raise common.InputError(
            "--tune all trains in one process, started by python; torchrun's divide the language "
            "model alone"
        )
    if args.devices not in (None, "cpu"):
        raise common.InputError(
            f"--devices {args.devices}: under torchrun each process trains on one GPU of its own; "
            "leave the option out"
        )
    n_gpus = torch.cuda.device_count()
    if not args.devices and len(placement.list_own_gpus()) > 1:
        raise common.InputError(
            f"{common.process().n_local} processes for {n_gpus} GPUs: each process trains on one "
            f"GPU, so that --nproc-per-node {n_gpus} takes them all. (One process alone, started "
            "by python, spreads the layers over all GPUs)"
        )


def load(args, adapter: Adapter, freeze):
    """Load the model that the common options name, each process its rows of every weight.

    Args:
        adapter: what is trained beside frozen weights, new or not; its rank is 0 if there is none
        freeze: a function that freezes all weights of a model but those that are trained

    Returns:
        model: in eval mode, on this process's device
        tokenizer
    """
    common.work_has_begun.set()  # from here on the processes wait for each other
    if not distributed.is_initialized():
        distributed.init_process_group(timeout=FOREVER)
    gpus = [] if args.devices == "cpu" else placement.list_own_gpus()
    device = torch.device(gpus[0] if gpus else "cpu")
    if gpus:
        torch.cuda.set_device(device)
    dtype = torch.bfloat16 if gpus else torch.float32
    if args.dtype:
        dtype = getattr(torch, args.dtype)

    tokenizer, _ = placement.load_tokenizer_and_config(args)
    model, names = placement.plan_model(args.model, dtype, args.frame_tokens)
    is_new = adapter.rank and not any(".lora_" in name for name, _ in model.named_parameters())
    if is_new:
        add_lora(model.model.language_model.layers, adapter.rank, adapter.alpha)
    tie_head(model, names)
    freeze(model)
    divide(model, dtype, device)
    for file, names_of_file in names.items():
        read_own_rows(model, file, names_of_file, dtype, device)
    if is_new:
        draw_factors(model, args.seed, device)
    share_tied(model)
    placement.make_buffers(model, device)
    placement.check_complete(model, args.model)
    return model.eval(), tokenizer


def tie_head(model, names: dict):
    """Make head and embedding one weight, where placement.tie_head does so after it has read them.

    fully_shard must know it before. If both are in the files they are compared there.
    """
    if not model.all_tied_weights_keys:
        return
    embedding = model.model.language_model.embed_tokens
    found = {}  # name in the model -> (file, name in the file)
    for file, names_of_file in names.items():
        for key, name in names_of_file.items():
            found[name] = file, key
    both = [found.get("lm_head.weight"), found.get("model.language_model.embed_tokens.weight")]
    if None in both or is_same(*both):
        model.lm_head.weight = embedding.weight
    else:
        model.all_tied_weights_keys.clear()
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(embedding.weight))


def is_same(one: tuple, other: tuple, n_rows: int = 4096) -> bool:
    """Say whether two tensors of files are equal; each is (file, name in the file)."""
    with (
        safetensors.safe_open(one[0], framework="pt") as tensors,
        safetensors.safe_open(other[0], framework="pt") as others,
    ):
        first = tensors.get_slice(one[1])
        second = others.get_slice(other[1])
        for start in range(0, first.get_shape()[0], n_rows):
            rows = slice(start, start + n_rows)
            if not torch.equal(first[rows], second[rows]):
                return False
    return True


def divide(model, dtype, device):
    """Divide a language model, which is on the meta device still, by rows over the processes.

    Every layer is a unit that is gathered as a whole when its turn comes; so are the norm and the
    head at the end. The embedding belongs to the unit of the model itself; where it is the head
    as well, to the head's.
    """
    exact = torch.promote_types(dtype, torch.float32)
    whole = set()
    for name, weight in model.named_parameters():
        if not name.startswith(LANGUAGE):
            whole.add(weight)
        elif weight.requires_grad:
            weight.data = weight.data.to(exact)  # AdamW's masters

    mesh = distributed.init_device_mesh(device.type, (common.process().n,))
    rule = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(dtype, reduce_dtype=exact)}
    language = model.model.language_model
    ends = [language.norm, model.lm_head]
    if model.lm_head.weight is language.embed_tokens.weight:
        ends.append(language.embed_tokens)
    for layer in language.layers:
        fully_shard(layer, **rule)
    fully_shard(ends, **rule)
    # Else it would keep the embedding as a whole behind the reference pass, and a training that
    # resumes would take its first step with the base's
    fully_shard(model, ignored_params=whole, reshard_after_forward=True, **rule)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A sum, not a mean: dpo.step_loss has divided by the pairs of the whole step
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no factors


def read_own_rows(model, file: Path, names: dict, dtype, device):
    """Read this process's rows of a file's tensors into the model; of what is not divided, all.

    names: {name of a tensor in the file: its name in the model}
    """
    weights = model.state_dict()
    chunk = {}
    with safetensors.safe_open(file, framework="pt", device=str(device)) as tensors:
        for key, name in names.items():
            weight = weights[name]
            rows = tensors.get_slice(key)[own_rows(weight)]
            if ".lora_" not in name:
                rows = rows.to(dtype)  # float32 masters begin where the model computes
            placement.check_finite(file, key, rows)
            chunk[name] = like(weight, rows.to(weight.dtype))
    model.load_state_dict(chunk, strict=False, assign=True)


def draw_factors(model, seed: int, device):
    """Draw new factors of LoRA as add_lora does on a CPU: the same numbers in every process."""
    torch.manual_seed(seed)
    weights = model.state_dict()
    drawn = {}
    for name in [name for name in weights if name.endswith("lora_A.weight")]:
        a = weights[name]  # (rank, in)
        b = weights[name.replace("lora_A", "lora_B")]  # (out, rank)
        first = torch.nn.Linear(a.shape[1], a.shape[0], bias=False).weight.detach()
        torch.nn.Linear(b.shape[1], b.shape[0], bias=False)  # add_lora draws B too, before it is 0
        rows = first[own_rows(a)].to(device)
        drawn[name] = like(a, rows)
        zeros = torch.zeros(local(b).shape, device=device)
        drawn[name.replace("lora_A", "lora_B")] = like(b, zeros)
    model.load_state_dict(drawn, strict=False, assign=True)


def share_tied(model):
    """Make head and embedding one weight again: reading has set one of the two, or each."""
    if not model.all_tied_weights_keys:
        return
    embedding = model.model.language_model.embed_tokens
    if embedding.weight.is_meta:
        embedding.weight = model.lm_head.weight
    model.lm_head.weight = embedding.weight


# ------------------------------------------------------------------------------
# A video at a time


def watch_batches(model, tokenizer, batches: list, root, args, desc: str | None = None):
    """Read the videos of batch after batch; each process those that are dealt to it.

    Whoever has no video while others have one takes part in what they do together, the gathering
    of layers and the summing of gradients.

    Args:
        batches: [[(video, its rows), ...], ...], the same in all processes
        desc: label of the progress bar; None: there is none

    Yields:
        an iterator of (rows, Video), as watch_each has them, for each batch; it is to be used up
    """
    dealt = [deal(batch) for batch in batches]
    own = [group for part in dealt for group in part]
    watched = watch_each(model, tokenizer, own, root, args)
    n_videos = sum(len(batch) for batch in batches)
    is_long = desc is not None and n_videos > 1
    progress = common.progress(total=n_videos, desc=desc, unit="video", disable=not is_long)
    for batch, part in zip(batches, dealt):
        of_batch = itertools.islice(watched, len(part))
        if common.process().n > 1:
            of_batch = keep_step(model, of_batch, len(batch))
        yield of_batch
        progress.update(len(batch))
    progress.close()


def keep_step(model, watched, n_videos: int):
    """Yield a process's videos of a batch of n; go through the model without one where need be."""
    n_turns = math.ceil(n_videos / common.process().n)
    for _ in range(n_turns):
        rows, video = next(watched, (None, None))
        if rows:
            yield rows, video
        if not video:
            go_without_video(model)


def go_without_video(model):
    """Run what takes the other processes' videos through the model; it adds 0 to gradients."""
    tensor = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    nothing = 0 * model(input_ids=tensor, use_cache=False).logits.sum()
    if torch.is_grad_enabled():
        nothing.backward()


# ------------------------------------------------------------------------------
# What is written


def save_pretrained(model, base: Path, directory: Path):
    """Write what save_pretrained of transformers does, weights in the files that the base has.

    The first process writes; it holds the tensors of one file at a time.

    base: directory of the checkpoint that the model was loaded from
    """
    dtype = model.config.dtype
    plain, names = placement.plan_model(base, dtype)  # on the meta device
    weights = model.state_dict()
    n_bytes = 0
    for file, names_of_file in names.items():
        tensors = {}
        for key, name in names_of_file.items():
            weight = whole(weights[name])
            if is_first():
                tensors[key] = weight.to("cpu", dtype)
                n_bytes += tensors[key].nbytes
        if is_first():
            written = directory / file.relative_to(base)
            written.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(tensors, written, {"format": "pt"})
    if not is_first():
        return

    if base / files.WEIGHTS not in names:
        table = files.read_index(base / files.INDEX)
        index = {"metadata": {"total_size": n_bytes}, "weight_map": table}
        common.write_json(directory / files.INDEX, index)
    config = model.config
    config.architectures = [type(plain).__name__]  # fully_shard has changed the model's class
    config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
