"""Attention to a video whose keys and values are held once, however many rows attend to it.

load_model registers it with transformers under the name "shared_prefix". It calls transformers'
own sdpa attention, except in two cases that only a shared video brings:

    answering   B rows of the batch have one video before them: its keys come from a SharedLayer
    training    one packed sequence [video | branch 1 | ...], with a mask for the branches alone

Shapes: B rows of a batch, N query tokens, P tokens of the video, D head size,
n_own tokens that a row has after the video. With grouped-query attention there are fewer key and
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
    """One layer's cache for B rows that share a video: its keys and values are held once.

    The base class holds what each row has after the video.
    """

    def __init__(self, keys, values):
        """Take the video's keys and values, each (1, kv heads, P, D)."""
        super().__init__()
        self.video = keys, values

    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)  # (B, kv heads, n_own, D)
        keys.video = self.video  # this is how shared_prefix_attention gets them
        return keys, values

    def get_seq_length(self):
        video_keys, _ = self.video
        return video_keys.shape[2] + super().get_seq_length()


def shared_prefix_attention(module, query, key, value, attention_mask, **kwargs):
    """Do what transformers' sdpa attention does, with a video that rows or branches share.

    query (B, heads, N, D), key and value (B, kv heads, tokens, D) -> (B, N, heads, D), None

    prefill     N = P    tokens = P       no mask: causal
    training    N = T    tokens = T       mask (1, 1, T - P, T), with rows for the branches alone
    answering   N >= 1   tokens = n_own   mask (B, 1, N, P + n_own) or none; video in key.video
    """
    sdpa = transformers.AttentionInterface()["sdpa"]
    if hasattr(key, "video"):  # answering: key comes from a SharedLayer
        return attend_to_shared_video(query, key, value, attention_mask, kwargs["scaling"]), None

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


def attend_to_shared_video(query, key, value, attention_mask, scaling):
    """Let B rows attend to the video's keys, which are held once, and to their own: one softmax.

    The video's keys have no dimension B, so all rows' queries meet them in one matrix product;
    repeating the keys for every row would take B times the memory.

    query (B, heads, N, D), key and value (B, kv heads, n_own, D) -> (B, N, heads, D)
    """
    video_keys, video_values = (part[0] for part in key.video)  # (kv heads, P, D)
    n_video = video_keys.shape[1]
    _, n_kv_heads, n_own, _ = key.shape

    # Kv heads come first; G query heads share each of them (grouped-query attention)
    query = query.unflatten(1, (n_kv_heads, -1)).transpose(0, 1)  # (kv heads, B, G, N, D)
    own_keys = key.transpose(0, 1)[:, :, None]  # (kv heads, B, 1, n_own, D)
    own_values = value.transpose(0, 1)[:, :, None]
    if attention_mask is None:  # causal
        n_queries = query.shape[3]
        visible = torch.ones(n_queries, n_own, dtype=torch.bool, device=query.device)
        visible = visible.tril(n_own - n_queries)
    else:
        visible = attention_mask[..., -n_own:].transpose(0, 1)[:, :, None]  # (1, B, 1, N, n_own)

    scores = query.flatten(1, 3) @ video_keys.mT  # (kv heads, B * G * N, P)
    scores = scores.view(*query.shape[:4], n_video)  # (kv heads, B, G, N, P)
    own_scores = query @ own_keys.mT  # (kv heads, B, G, N, n_own)
    own_scores = own_scores.masked_fill(~visible, float("-inf"))
    scores = torch.cat([scores, own_scores], -1) * scaling  # (kv heads, B, G, N, P + n_own)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)

    to_video, to_own = weights.split([n_video, n_own], -1)
    seen = to_video.flatten(1, 3) @ video_values  # (kv heads, B * G * N, D)
    seen = seen.view(query.shape) + to_own @ own_values  # (kv heads, B, G, N, D)
    return seen.transpose(0, 1).flatten(1, 2).transpose(1, 2)  # (B, N, heads, D)
