"""How a video enters a family of models: its pixels, and the token ids that stand for it.

There is one family so far, transformers' InternVL. A prompt begins with the video:

    <|im_start|>user
    Frame1: <img><IMG_CONTEXT>...<IMG_CONTEXT></img>
    Frame2: <img><IMG_CONTEXT>...<IMG_CONTEXT></img>
    ...

with one <IMG_CONTEXT> for each visual token; the vision tower's features take their places.

Shapes: F frames, P tokens of the video (the prefix).
"""

import torch

import common

END_OF_TURN = "<|im_end|>"  # of every InternVL chat template; it is the last token of an answer
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB
IMAGE_STD = (0.229, 0.224, 0.225)


@torch.no_grad()
def look_internvl(model, tokenizer, frames):
    """Run the vision tower and the projector over frames, uint8 (F, height, width, 3), RGB.

    Returns:
        ids: (1, P) token ids, with a placeholder for each visual token
        inputs: keyword arguments of a forward pass over ids; they contain the visual tokens,
            (F, tokens per frame, hidden), so that neither tower nor projector runs again
    """
    size = model.config.vision_config.image_size[0]
    pixels = pixel_values(frames, size).to(model.device, model.dtype)  # (F, 3, size, size)
    prefix = encode_prefix(tokenizer, model.config, len(frames))
    ids = torch.tensor([prefix], device=model.device)
    features = model.get_image_features(pixel_values=pixels)
    return ids, {"mm_encoder_outputs": {"image": features}}


def pixel_values(frames, size: int):
    """Resize and normalize frames, uint8 (F, height, width, 3) -> float32 (F, 3, size, size).

    Bicubic, with antialiasing, to a square whatever the shape was, as InternVL does with video.
    """
    images = resize(frames, size)  # (F, 3, size, size)
    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def resize(frames, size: int):
    """Resize frames, uint8 (F, height, width, 3) -> uint8 tensor (F, 3, size, size)."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (F, 3, height, width)
    if images.shape[-2:] == (size, size):  # `shrink` did it
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)


def shrink(frame, size: int):
    """Resize one frame, as soon as it is decoded: uint8 (height, width, 3) -> (size, size, 3).

    pixel_values gives the same pixels of it as of the frame at its full size.
    """
    [image] = resize(frame[None], size)  # (3, size, size)
    return image.permute(1, 2, 0).numpy()


def choose_n_frames(asked: int | None, config) -> int:
    """Choose how many frames of a video are shown: --frames, else what the model's config says."""
    return asked or getattr(config, "num_frames", None) or common.DEFAULT_FRAMES


def encode_prefix(tokenizer, config, n_frames: int) -> list[int]:
    """Encode everything up to the end of the video, which all prompts about it share: P ids."""
    placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
    placeholders = placeholder * config.image_seq_length
    before_user, _ = chat_parts(tokenizer)
    frames = [f"Frame{n + 1}: <img>{placeholders}</img>\n" for n in range(n_frames)]
    return tokenizer.encode(before_user + "".join(frames), add_special_tokens=False)


def chat_parts(tokenizer) -> tuple[str, str]:
    """Split the chat template at the user's words.

    Returns:
        (text before the user's words, text between them and the answer)
    """
    words = "WORDS"
    messages = [{"role": "user", "content": words}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after = chat.split(words)
    return before, after
