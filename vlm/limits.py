"""What a model must be to be used here, and how many tokens it can take.

Behind a shared video a token sees the whole video and all of its own branch. So the attention of
every layer must be full: a window that slides over the sequence, chunks, or sinks would give other
numbers when branches are packed than when each of them is alone.
"""

import bisect
import re
import sys

import common
from vlm import families

# Language models that change the cache's keys or values; so do those with kv_lora_rank
OWN_ATTENTION = ("diffllama", "doge")
ROOM = 256  # tokens that are kept free behind the video, for a prompt and its answer


def check_attention(config, where):
    """Raise InputError if a layer of the language model does not attend to all tokens before it.

    Args:
        config: of the whole model; its text_config is looked at
        where: path, for the message
    """
    text = config.text_config
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # such as Mistral, which says it by the window alone
        window = getattr(text, "sliding_window", None)
        kinds = ["full_attention" if window is None else "sliding_attention"]
    others = sorted(set(kinds) - {"full_attention"})
    if getattr(text, "attn_logit_softcapping", None):
        others.append("capped logits")
    if others:
        raise common.InputError(
            f"{where}: its language model ({text.model_type}) has layers with {', '.join(others)}; "
            "only full attention gives the same numbers behind a shared video, so it cannot be used"
        )


def check_language_model(model, where):
    """Raise InputError if the language model is not built as this code needs it.

    model: on any device, also on meta
    """
    kind = model.config.text_config.model_type
    language = model.model.language_model
    names = [name for name, _ in language.named_parameters()]
    if any(".experts." in name for name in names):
        raise common.InputError(
            f"{where}: its language model ({kind}) is a mixture of experts, which cannot be used"
        )
    if any(name.endswith("sinks") for name in names):
        raise common.InputError(
            f"{where}: its language model ({kind}) has attention sinks, which cannot be used: "
            "attention behind a shared video has none"
        )
    if getattr(model.config.text_config, "kv_lora_rank", None) or kind in OWN_ATTENTION:
        raise common.InputError(
            f"{where}: its language model ({kind}) makes its own keys and values of the cache's, "
            "which does not work behind a shared video, so it cannot be used"
        )
    buffers = [name for name, _ in language.named_buffers() if not name.startswith("rotary_emb.")]
    if buffers:
        raise common.InputError(
            f"{where}: its language model ({kind}) has {buffers[0]}, which is in no file, so it "
            "cannot be used"
        )
    for part in ("layers", "norm", "rotary_emb", "embed_tokens"):
        if getattr(language, part, None) is None:
            raise common.InputError(
                f"{where}: its language model ({kind}) has no {part!r}, so it cannot be used"
            )


def remove_dropout(config):
    """Set every dropout of a config to 0, also in the configs of its parts.

    Policy and reference must be one function; activation checkpointing needs train mode, in which
    a dropout would act.
    """
    for part in (config, config.text_config, config.vision_config):
        for key, value in vars(part).items():
            # attention_dropout, hidden_dropout_prob, attn_pdrop, drop_path_rate, layerdrop, ...
            if re.search("drop", key) and isinstance(value, (int, float)):
                setattr(part, key, 0.0)


# ------------------------------------------------------------------------------
# Positions


def count_positions(config) -> int:
    """Count the positions that the language model was made for.

    Rotary positions of the types dynamic and longrope have other frequencies beyond this length
    than below it, so that a token's numbers would depend on what else is in the sequence.
    """
    text = config.text_config
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        limit = sys.maxsize
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


def check_frames(tokenizer, config, n_frames: int):
    """Raise InputError if frames, a prompt and an answer are more than the model's positions.

    The message has the largest --frames that fits.
    """
    if config.model_type != "internvl":
        return  # how many positions a video takes depends on its shape: check_room says it
    limit = count_positions(config)

    def fits(n: int) -> bool:
        least, _ = families.count_tokens(config, n)
        if least + ROOM > limit:  # nothing endless is encoded
            return False
        return len(families.encode_prefix(tokenizer, config, n)) + ROOM <= limit

    if fits(n_frames):
        return
    least, _ = families.count_tokens(config, n_frames)
    most = limit * n_frames // least  # more do not fit
    largest = bisect.bisect(range(1, most + 1), False, key=lambda n: not fits(n))
    hint = f"--frames {largest} fits" if largest else "not even one frame fits"
    raise common.InputError(
        f"{n_frames} frames of {least // n_frames} tokens, and {ROOM} for a prompt and its "
        f"answer, are more than the {limit} positions that the model was made for "
        f"(max_position_embeddings); {hint}"
    )


def check_room(config, tokenizer, n_video: int, rows: list[list[int]]) -> int:
    """Check that token ids which follow a video of n_video positions find room behind it.

    Returns:
        the number of positions that are left after the longest row, at least 1

    Raises:
        InputError: with the longest row's first words, if it has no room
    """
    limit = count_positions(config)
    longest = max(rows, key=len)
    room = limit - n_video - len(longest)
    if room < 1:
        words = tokenizer.decode(longest, skip_special_tokens=True).strip()
        raise common.InputError(
            f"{n_video} positions of the video and {len(longest)} of the text {words[:80]!r} are "
            f"more than the {limit} that the model was made for (max_position_embeddings); leave "
            "that row out of the input, or take fewer --frames (with --overwrite)"
        )
    return room
