"""Attention to videos whose keys and values are held once, however many rows attend to them.

load_model registers it with transformers under the name "shared_prefix". It calls transformers'
own sdpa attention, except in two cases that only a shared video brings:

    answering   V videos, each with B rows of the batch behind it: its keys are in a SharedLayer
    training    one packed sequence [video | branch 1 | ...], with a mask for the branches alone

Shapes: V videos with B rows each, N query tokens, P tokens of a video, D head size,
n_own tokens that a row has after its video. With grouped-query attention there are fewer key and
value heads (kv heads) than query heads.
"""

import torch
import transformers
from transformers.cache_utils import DynamicLayer

NAME = "shared_prefix"


def register():
    """Make the attention known to transformers; its masks are made like sdpa's."""
    transformers.AttentionInterface.register(NAME, shared_prefix_attention)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)


class SharedLayer(DynamicLayer):
    """One layer's cache for V x B rows, of which B share a video: its keys are held once.

    The base class holds what each row has after its video.
    """

    def __init__(self, keys, values, padding: list[int] | None = None):
        """Take the videos' keys and values.

        Args:
            keys, values: (V, kv heads, P, D)
            padding: for each video how many of its first keys are none; None: there is no such
        """
        super().__init__()
        hidden = None
        if padding and any(padding):
            places = torch.arange(keys.shape[2], device=keys.device)
            hidden = places < torch.tensor(padding, device=keys.device)[:, None]  # (V, P)
        self.videos = keys, values, hidden

    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)  # (V * B, kv heads, n_own, D)
        keys.videos = self.videos  # this is how shared_prefix_attention gets them
        return keys, values

    def get_seq_length(self):
        video_keys, *_ = self.videos
        return video_keys.shape[2] + super().get_seq_length()


def shared_prefix_attention(module, query, key, value, attention_mask, **kwargs):
    """Do what transformers' sdpa attention does, with a video that rows or branches share.

    query (B, heads, N, D), key and value (B, kv heads, tokens, D) -> (B, N, heads, D), None

    prefill     N = P    tokens = P       no mask: causal
    training    N = T    tokens = T       mask (1, 1, T - P, T), with rows for the branches alone
    answering   N >= 1   tokens = n_own   mask (V * B, 1, N, P + n_own) or none; key.videos
    """
    sdpa = transformers.AttentionInterface()["sdpa"]
    if hasattr(key, "videos"):  # answering: key comes from a SharedLayer
        return attend_to_shared_videos(query, key, value, attention_mask, kwargs["scaling"]), None

    # A mask with fewer rows than there are queries is prefix.pack's: the video's rows are missing
    n_video = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if n_video == 0:  # a prefill, or anything else that is ordinary
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    # Training: the mask has rows for the branches alone (see prefix.pack); the video comes first
    of_video, of_branches = query.tensor_split([n_video], dim=2)
    keys = key[:, :, :n_video]
    values = value[:, :, :n_video]
    video, _ = sdpa(module, of_video, keys, values, None, **kwargs)  # without a mask: causal
    branches, _ = sdpa(module, of_branches, key, value, attention_mask, **kwargs)
    return torch.cat([video, branches], dim=1), None  # (B, N, heads, D)


def attend_to_shared_videos(query, key, value, attention_mask, scaling):
    """Let rows attend to their video's keys, which are held once, and to their own: one softmax.

    All queries of a video's B rows meet its keys in one matrix product; repeating the keys for
    every row would take B times the memory.

    query (V * B, heads, N, D), key and value (V * B, kv heads, n_own, D) -> (V * B, N, heads, D)
    """
    video_keys, video_values, hidden = key.videos  # (V, kv heads, P, D), twice; (V, P) or None
    n_videos, n_kv_heads, n_video, _ = video_keys.shape
    n_own = key.shape[2]

    def by_video(rows):
        """Put the rows of a video side by side: (V * B, kv heads, ...) -> (V, kv heads, B, ...)."""
        return rows.unflatten(0, (n_videos, -1)).transpose(1, 2)

    # G query heads share each of the kv heads (grouped-query attention)
    query = by_video(query.unflatten(1, (n_kv_heads, -1)))  # (V, kv heads, B, G, N, D)
    own_keys = by_video(key)[:, :, :, None]  # (V, kv heads, B, 1, n_own, D)
    own_values = by_video(value)[:, :, :, None]
    if attention_mask is None:  # causal
        n_queries = query.shape[4]
        visible = torch.ones(n_queries, n_own, dtype=torch.bool, device=query.device)
        visible = visible.tril(n_own - n_queries)
    else:
        visible = by_video(attention_mask[..., -n_own:])[:, :, :, None]  # (V, 1, B, 1, N, n_own)

    scores = query.flatten(2, 4) @ video_keys.mT  # (V, kv heads, B * G * N, P)
    scores = scores.view(*query.shape[:5], n_video)  # (V, kv heads, B, G, N, P)
    if hidden is not None:  # videos of fewer tokens are padded
        scores = scores.masked_fill(hidden[:, None, None, None, None], float("-inf"))
    own_scores = query @ own_keys.mT  # (V, kv heads, B, G, N, n_own)
    own_scores = own_scores.masked_fill(~visible, float("-inf"))
    scores = torch.cat([scores, own_scores], -1) * scaling  # (V, kv heads, B, G, N, P + n_own)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)

    to_video, to_own = weights.split([n_video, n_own], -1)
    seen = to_video.flatten(2, 4) @ video_values  # (V, kv heads, B * G * N, D)
    seen = seen.view(query.shape) + to_own @ own_values  # (V, kv heads, B, G, N, D)
    # (V, B, kv heads, G, N, D) -> (V * B, heads, N, D) -> (V * B, N, heads, D)
    return seen.transpose(1, 2).flatten(0, 1).flatten(1, 2).transpose(1, 2)
