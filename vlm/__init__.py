"""A video-LLM: loaded, spread over devices, asked and trained.

placement.py   a checkpoint becomes a model, its layers spread over one or more devices
sharding.py    the same model, its weights divided over several processes that train it (FSDP2)
processes.py   what such processes do together; one process alone does none of it
lora.py        low-rank factors beside the weights; adapter directories as PEFT writes them
attention.py   attention to a video whose keys and values are held once for many rows
files.py       which files hold the weights of a checkpoint, and what else it has
limits.py      which models can be used, and how many frames they can take
families.py    how a video enters a family of models: pixels, token ids, positions
chat.py        what is said to a model as token ids, and the chat template around it
prefix.py      a video is read once, whatever is asked about it: start here

The stages use what is listed below, as vlm.NAME.
"""

from vlm.attention import SharedLayer, shared_prefix_attention
from vlm.chat import END_OF_TURN, chat_parts, list_texts
from vlm.families import (
    IMAGE_MEAN,
    IMAGE_STD,
    encode_prefix,
    pixel_values,
    restore_frame_tokens,
)
from vlm.files import carry_over, share
from vlm.limits import check_room
from vlm.lora import Adapter, add_lora, read_adapter, save_adapter
from vlm.placement import (
    check_model,
    find_base,
    find_checkpoint,
    load,
    load_model,
    load_tokenizer,
    plan_placement,
    split_layers,
)
from vlm.prefix import (
    Branch,
    Packed,
    Reply,
    Shown,
    Video,
    branch_logps,
    decode,
    encode_branch,
    pack,
    reply,
    watch,
    watch_each,
)
from vlm.processes import gather, local
from vlm.sharding import watch_batches

__all__ = [
    "END_OF_TURN",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "Adapter",
    "Branch",
    "Packed",
    "Reply",
    "SharedLayer",
    "Shown",
    "Video",
    "add_lora",
    "branch_logps",
    "carry_over",
    "chat_parts",
    "check_model",
    "check_room",
    "decode",
    "encode_branch",
    "encode_prefix",
    "find_base",
    "find_checkpoint",
    "gather",
    "list_texts",
    "load",
    "load_model",
    "load_tokenizer",
    "local",
    "pack",
    "pixel_values",
    "plan_placement",
    "read_adapter",
    "reply",
    "restore_frame_tokens",
    "save_adapter",
    "share",
    "shared_prefix_attention",
    "split_layers",
    "watch",
    "watch_batches",
    "watch_each",
]
