"""How a video enters a family of models: its pixels, the token ids that stand for it, positions.

All that differs from family to family is in here; what follows the video is the same for all. A
prompt begins with the video:

    InternVL      <|im_start|>user
                  Frame1: <img><IMG_CONTEXT>...<IMG_CONTEXT></img>
                  Frame2: <img><IMG_CONTEXT>...<IMG_CONTEXT></img>
                  ...
    Qwen3-VL      <|im_start|>user
                  <0.3 seconds><|vision_start|><|video_pad|>...<|vision_end|><1.3 seconds>...
    Qwen2.5-VL    <|im_start|>user
                  <|vision_start|><|video_pad|>...<|vision_end|>

with one <IMG_CONTEXT> or <|video_pad|> for each visual token; the vision tower's features take
their places. Tokens of InternVL are numbered. Those of Qwen-VL have three positions, time, row and
column; in a text all three are the same, and go on behind the largest of the video's.

Shapes: F frames, P tokens of the video (the prefix). Qwen-VL makes tokens of two frames together:
T pairs of frames, of h x w tokens each; a token is 2 x 2 patches.
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import common
from vlm import chat

QWEN = ("qwen3_vl", "qwen2_5_vl")
FAMILIES = ("internvl", *QWEN)  # model_type of config.json

# Mean and standard deviation of pixels, RGB
IMAGE_MEAN = (0.485, 0.456, 0.406)  # InternVL: ImageNet's
IMAGE_STD = (0.229, 0.224, 0.225)
QWEN_PIXELS = {
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "qwen2_5_vl": (  # CLIP's
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}
QWEN_TOKENS = (128, 768)  # of two frames, at least and at most, as in qwen-vl-utils


class Look(NamedTuple):
    """A video as a model has looked at it."""

    ids: torch.Tensor  # (1, P) token ids, with a placeholder for each visual token
    positions: torch.Tensor  # (1, P), or (3, 1, P): where the tokens stand
    inputs: dict  # keyword arguments of a forward pass over ids: the features, ready for the model


def look(model, tokenizer, frames, seconds) -> Look:
    """Run the vision tower and the projector over a video, once, whatever is asked about it.

    The features have a gradient where these two are trained.

    Args:
        frames: uint8 (F, height, width, 3), RGB
        seconds: (F,) when each of them is shown; InternVL is not told
    """
    if model.config.model_type == "internvl":
        return look_internvl(model, tokenizer, frames)
    return look_qwen(model, tokenizer, frames, seconds)


def choose_size(config, height: int, width: int) -> tuple[int, int]:
    """Choose the size in which a model sees frames of a size, all in pixels."""
    if config.model_type == "internvl":  # a square, whatever the shape was, as InternVL does it
        return tuple(config.vision_config.image_size)
    unit = 2 * config.vision_config.patch_size
    return fit(height, width, unit, *read_bounds(config))


def count_tokens(config, n_frames: int) -> tuple[int, int]:
    """Count the tokens of a video: at least, and at most (a little more than they are)."""
    if config.model_type == "internvl":
        visual = n_frames * config.image_seq_length
        return visual, visual + 8 * n_frames  # 8: "Frame1: <img></img>\n"
    least, most = read_bounds(config)
    n_pairs = math.ceil(n_frames / 2)
    return n_pairs * least, n_pairs * (most + 12)  # 12: the time, and the marks around a pair


def encode_video(tokenizer, config, size: tuple[int, int], seconds) -> list[int]:
    """Encode everything up to the end of a video, which all prompts about it share: P ids.

    Args:
        size: of its frames, as choose_size gives it
        seconds: (F,) when they are shown
    """
    if config.model_type == "internvl":
        return encode_prefix(tokenizer, config, len(seconds))
    return encode_qwen(tokenizer, config, size, make_even(seconds))


def find_placeholder(config) -> int:
    """Find the id of the token that stands for a visual token."""
    return config.image_token_id if config.model_type == "internvl" else config.video_token_id


# ------------------------------------------------------------------------------
# InternVL


def look_internvl(model, tokenizer, frames) -> Look:
    """Look at frames, each by itself: the features are (F, tokens per frame, hidden)."""
    size = choose_size(model.config, *frames.shape[1:3])
    pixels = pixel_values(frames, size, IMAGE_MEAN, IMAGE_STD)  # (F, 3, size, size)
    features = model.get_image_features(pixel_values=pixels.to(model.device, model.dtype))
    ids = encode_prefix(tokenizer, model.config, len(frames))
    return Look(
        ids=torch.tensor([ids], device=model.device),
        positions=torch.arange(len(ids), device=model.device)[None],  # (1, P)
        inputs={"mm_encoder_outputs": {"image": features}},
    )


def encode_prefix(tokenizer, config, n_frames: int) -> list[int]:
    """Encode everything up to the end of the video, which all prompts about it share: P ids."""
    placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
    placeholders = placeholder * config.image_seq_length
    before_user, _ = chat.chat_parts(tokenizer)
    frames = [f"Frame{n + 1}: <img>{placeholders}</img>\n" for n in range(n_frames)]
    return chat.encode(tokenizer, before_user + "".join(frames))


# ------------------------------------------------------------------------------
# Qwen3-VL and Qwen2.5-VL


def look_qwen(model, tokenizer, frames, seconds) -> Look:
    """Look at frames two by two: the features are (T * h * w, hidden).

    Qwen3-VL also has features for its first layers, which go with them ("deepstack").
    """
    config = model.config
    between = (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)  # two frames, in seconds
    frames = make_even(frames)
    seconds = make_even(seconds)
    size = frames.shape[1:3]
    if not is_fitted(config, *size):  # `shrink` did it mostly; twice may give another size
        size = choose_size(config, *size)
    pixels = pixel_values(frames, size, *QWEN_PIXELS[config.model_type])  # (F, 3, height, width)
    patch = config.vision_config.patch_size
    grid = (len(frames) // 2, size[0] // patch, size[1] // patch)  # in patches
    patches = cut_in_patches(pixels, patch)  # (T * 4 * h * w, 3 * 2 * patch * patch)
    features = model.get_video_features(
        pixel_values_videos=patches.to(model.device, model.dtype),
        video_grid_thw=torch.tensor([grid], device=model.device),
    )
    ids = encode_qwen(tokenizer, config, size, seconds)
    positions = place_qwen(config, ids, size, between)  # (3, P)
    return Look(
        ids=torch.tensor([ids], device=model.device),
        positions=positions[:, None].to(model.device),  # (3, 1, P)
        inputs={"mm_encoder_outputs": {"video": features}},
    )


def make_even(of_frames) -> np.ndarray:
    """Show the last frame twice if their number F is odd, as Qwen's processor does.

    of_frames: (F, ...), the frames or their seconds
    """
    of_frames = np.asarray(of_frames)
    return np.concatenate([of_frames, of_frames[len(of_frames) - len(of_frames) % 2 :]])


def read_bounds(config) -> tuple[int, int]:
    """Read how many tokens two frames have at least and at most: --frame-tokens, or Qwen's own."""
    bounds = getattr(config, "frame_tokens", QWEN_TOKENS)
    is_pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2
    if not is_pair or any(type(n) is not int for n in bounds) or not 1 <= bounds[0] <= bounds[1]:
        raise common.InputError(
            f"--frame-tokens, or frame_tokens of config.json: {bounds} are not two whole numbers "
            "from 1 on, the larger one last"
        )
    return tuple(bounds)


def take_frame_tokens(config, asked: list[int] | None):
    """Take --frame-tokens into a config, in the place of what config.json says.

    A model that is trained does not keep it: it is given to every stage, as --frames is.
    """
    if not asked:
        return
    if config.model_type == "internvl":
        raise common.InputError(
            f"--frame-tokens is for Qwen-VL; a frame of this model has {config.image_seq_length} "
            "tokens, always"
        )
    config.frame_tokens = asked


def restore_frame_tokens(config, base: Path):
    """Put back into a config, before it is saved, what its base's config.json says of them."""
    own = common.read_json(base / "config.json").get("frame_tokens")
    if own:
        config.frame_tokens = own
    elif hasattr(config, "frame_tokens"):
        del config.frame_tokens


def check_config(config, path: Path):
    """Raise InputError if a config.json has not what this code needs of Qwen-VL.

    path: of it, for the message
    """
    if config.model_type not in QWEN:
        return
    read_bounds(config)
    for key in ("temporal_patch_size", "spatial_merge_size"):
        value = getattr(config.vision_config, key)
        if value != 2:
            raise common.InputError(
                f"{path}: vision_config.{key} is {value}; only 2 can be used, as all published "
                "models of this class have it"
            )


def check_tokenizer(tokenizer, config, path):
    """Raise InputError if Qwen-VL's marks of a video are no tokens, or others than config.json's.

    path: of the checkpoint, for the message
    """
    if config.model_type not in QWEN:
        return
    controls = chat.control_tokens(tokenizer)
    for mark in ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"):
        id = tokenizer.convert_tokens_to_ids(mark)
        is_own = mark != "<|video_pad|>" or id == config.video_token_id
        if id not in controls or not is_own:
            raise common.InputError(
                f"{path}: {mark} is not the control token in its tokenizer that config.json says; "
                "take the tokenizer's files of the same checkpoint"
            )


def fit(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """Round both sides to multiples of a unit, and keep the shape -> pixels, as in qwen-vl-utils.

    Args:
        unit: pixels a side of a token
        least, most: tokens in all

    >>> fit(360, 640, 28, 128, 768)
    (364, 644)
    >>> fit(1080, 1920, 28, 128, 768)  # 39 x 69 would be more than 768
    (560, 1008)

    Where no such size has as many tokens as narrow bounds ask for, it has fewer.
    """
    rows = max(1, round(height / unit))
    columns = max(1, round(width / unit))
    # The order of the operations decides how a size that divides exactly is rounded
    if rows * columns < least:
        scale = math.sqrt(least * unit**2 / (height * width))
        rows = math.ceil(height * scale / unit)
        columns = math.ceil(width * scale / unit)
    if rows * columns > most:
        scale = math.sqrt(height * width / (most * unit**2))
        rows = max(1, math.floor(height / scale / unit))
        columns = max(1, math.floor(width / scale / unit))
    return rows * unit, columns * unit


def is_fitted(config, height: int, width: int) -> bool:
    """Tell whether frames consist of whole tokens, and not of too many."""
    unit = 2 * config.vision_config.patch_size
    _, most = read_bounds(config)
    is_whole = height % unit == 0 and width % unit == 0
    return is_whole and (height // unit) * (width // unit) <= most


def cut_in_patches(pixels, patch: int):
    """Cut frames into patches through two frames, in the order that Qwen's tower reads them.

    The 2 x 2 patches of a token come one after another.

    pixels: (F, 3, height, width), F even -> (T * 4 * h * w, 3 * 2 * patch * patch)
    """
    n_frames, channels, height, width = pixels.shape
    rows = height // patch // 2
    columns = width // patch // 2
    cut = pixels.view(n_frames // 2, 2, channels, rows, 2, patch, columns, 2, patch)
    # -> T, h, w, the 2 x 2 patches, channel, the two frames, and a patch's pixels
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(-1, channels * 2 * patch * patch)


def encode_qwen(tokenizer, config, size, seconds) -> list[int]:
    """Encode everything up to the end of the video: P ids.

    Qwen3-VL is told the time of each pair of frames in words, the mean of both. There are no other
    marks around all of them, as at its release and in vLLM; transformers since 5.0 has two more.
    """
    unit = 2 * config.vision_config.patch_size
    n_tokens = (size[0] // unit) * (size[1] // unit)  # of a pair of frames
    placeholder = tokenizer.convert_ids_to_tokens(config.video_token_id)
    times = seconds.reshape(-1, 2).mean(1)  # (T,)
    if config.model_type == "qwen3_vl":
        of_pair = f"<|vision_start|>{placeholder * n_tokens}<|vision_end|>"
        video = "".join(f"<{time:.1f} seconds>{of_pair}" for time in times)
    else:
        video = f"<|vision_start|>{placeholder * n_tokens * len(times)}<|vision_end|>"
    before_user, _ = chat.chat_parts(tokenizer)
    return chat.encode(tokenizer, before_user + video)


def place_qwen(config, ids: list[int], size, between: float) -> torch.Tensor:
    """Give time, row and column of each token -> (3, P).

    A text has the same number three times. Visual tokens count from the number behind the text
    before them; what follows them goes on behind their largest. A pair of frames is one step of
    time in Qwen3-VL, which has the seconds in words; in Qwen2.5-VL it is `tokens_per_second` a
    second, rounded down. As in Qwen's training code (qwen-vl-finetune, rope2d.py); transformers 5
    goes on behind the largest row or column, even if time went further.

    between: seconds from one frame to the next; below 0 for a segment that ends before it starts
    """
    unit = 2 * config.vision_config.patch_size
    rows = size[0] // unit
    columns = size[1] // unit
    step = 0.0  # of time, from one pair of frames to the next
    if config.model_type == "qwen2_5_vl":
        step = config.vision_config.tokens_per_second * 2 * max(0.0, between)

    parts = []
    behind = 0
    for is_visual, run in itertools.groupby(ids, lambda token: token == config.video_token_id):
        n_tokens = len(list(run))
        if is_visual:
            pairs = torch.arange(n_tokens // (rows * columns))
            times = (pairs * step).long()
            axes = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
            places = torch.stack(axes).flatten(1)  # (3, tokens)
        else:
            places = torch.arange(n_tokens).expand(3, -1)
        parts.append(behind + places)
        behind = parts[-1].max().item() + 1
    return torch.cat(parts, 1)


# ------------------------------------------------------------------------------
# Frames


def pixel_values(frames, size: tuple[int, int], mean=IMAGE_MEAN, std=IMAGE_STD):
    """Resize and normalize frames, uint8 (F, height, width, 3) -> float32 (F, 3, *size).

    Bicubic, with antialiasing.
    """
    images = resize(frames, size)  # (F, 3, height, width)
    mean = torch.tensor(mean).view(3, 1, 1)
    std = torch.tensor(std).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def resize(frames, size: tuple[int, int]):
    """Resize frames, uint8 (F, height, width, 3) -> uint8 tensor (F, 3, *size)."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (F, 3, height, width)
    if images.shape[-2:] == size:  # `shrink` did it
        return images
    return torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)


def shrink(frame, config):
    """Resize one frame, as soon as it is decoded: uint8 (height, width, 3), to what is seen of it.

    pixel_values gives the same pixels of it as of the frame at its full size.
    """
    [image] = resize(frame[None], choose_size(config, *frame.shape[:2]))  # (3, height, width)
    return image.permute(1, 2, 0).numpy()


def choose_n_frames(asked: int | None, config) -> int:
    """Choose how many frames of a video are shown: --frames, else what the model's config says."""
    says = getattr(config, "num_frames", None)
    if not asked and says is not None and (type(says) is not int or says < 1):
        raise common.InputError(
            f"config.json: num_frames is {says!r}, not a whole number from 1 on; or give --frames"
        )
    return asked or says or common.DEFAULT_FRAMES
