"""A video is read once, whatever is asked about it.

32 frames are 8,192 visual tokens; a question and its answer are about a hundred. So every prompt
begins with the video, and everything asked about it shares what the model computed for it:

    Video          vision tower and projector run once
    decode         answering: one prefill, then all prompts as one batch on top of its one cache
    branch_logps   training: one packed sequence [video | branch 1 | branch 2 | ...], one pass

tests/test_prefix.py compares all three with separate, ordinary sequences.

Shapes: F frames, P tokens of the video (the prefix), B branches (a prompt with its answer),
T tokens of the video and all branches, A tokens of all answers.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tqdm import tqdm

import common
import media
from vlm import attention, families, limits


class Branch(NamedTuple):
    """What follows the video in one sequence, as token ids."""

    prompt: list[int]  # the user's words, and the template's text between them and the answer
    answer: list[int]  # the answer, and the token that ends its turn


def encode_branch(tokenizer, prompt: str, answer: str = "") -> Branch:
    """Encode prompt and answer separately, so that a prompt has the same ids with any answer."""
    _, before_answer = families.chat_parts(tokenizer)
    prompt_ids = tokenizer.encode(prompt + before_answer, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer + families.END_OF_TURN, add_special_tokens=False)
    return Branch(prompt_ids, answer_ids)


class Video:
    """A video that the model has looked at: vision tower and projector run once, in here.

    Attributes:
        ids: (1, P) token ids, with a placeholder for each visual token
        inputs: keyword arguments of a forward pass over ids; they contain the visual tokens,
            (F, tokens per frame, hidden), which take the placeholders' places
        cache: keys and values of the P tokens; None until `decode` first needs them
    """

    def __init__(self, model, tokenizer, frames):
        """Look at frames, uint8 (F, height, width, 3), RGB."""
        self.ids, self.inputs = families.look_internvl(model, tokenizer, frames)
        self.cache = None


def watch_each(model, tokenizer, groups: list, root, args, desc: str | None = None):
    """Read the videos one by one, while a thread decodes the frames of the next one.

    Args:
        groups: [(video, its rows), ...]. Rows may have `start` and `end`, the seconds to be shown:
            by the frames' own times, or for a benchmark's rows by the frame rate, as in lmms-eval
        root: directory that the videos' paths are relative to
        args: `frames` is read, the number of frames; None: what the model's config says
        desc: label of the progress bar

    Yields:
        (rows, Video), once for each stretch of consecutive rows with the same video, start and
        end. The Video is None if all these rows were dropped before, or if the video cannot be
        read: in that case they are marked as dropped here
    """
    n_frames = families.choose_n_frames(args.frames, model.config)
    size = model.config.vision_config.image_size[0]
    shrink = functools.partial(families.shrink, size=size)

    segments = []  # (video, rows that are shown the same seconds of it)
    for name, rows in groups:
        segments += [(name, list(part)) for _, part in itertools.groupby(rows, common.segment)]

    with ThreadPoolExecutor(max_workers=1) as thread:

        def start_reading(number):
            """Start to decode a segment's frames -> a future; None if no row needs them."""
            if number == len(segments):
                return None
            name, rows = segments[number]
            if all("dropped" in row for row in rows):
                return None
            _, start, end = common.segment(rows[0])
            return thread.submit(
                media.sample_frames,
                Path(root) / name,
                n_frames,
                start,
                end,
                by_rate="benchmark" in rows[0],
                shrink=shrink,
            )

        next_frames = start_reading(0)
        progress = tqdm(segments, desc, unit="video", disable=len(segments) < 2)
        for number, (_, rows) in enumerate(progress):
            frames = next_frames
            next_frames = start_reading(number + 1)
            if frames is None:
                yield rows, None
                continue
            try:
                sample = frames.result()
            except OSError as error:
                drop_unreadable(rows, error)
                yield rows, None
                continue
            if sample.warning:
                warn(rows, sample.warning)
            # Not kept in a variable here: the last video would stay in memory during training
            yield rows, Video(model, tokenizer, sample.frames)


def drop_unreadable(rows: list[dict], error: OSError):
    """Give the rows about a video that cannot be read their reason, and the error."""
    for row in rows:
        if "dropped" not in row:
            row["dropped"] = "unreadable_video"
            row["error"] = str(error)


def warn(rows: list[dict], warning: str):
    """Note in the rows about a video that not all of it was shown."""
    for row in rows:
        if "dropped" not in row:
            row["warning"] = warning


@torch.no_grad()
def decode(model, tokenizer, video, prompts: list[str], max_new_tokens: int, noise=None):
    """Answer B prompts about one video, as one batch on top of the video's one cache.

    Args:
        noise: logits processor that turns the argmax into a sample (see generate.Noise);
            None decodes greedily

    Returns:
        [(answer, whole), ...]: whole is False if an answer was cut off by max_new_tokens, or where
            the model's positions end

    Raises:
        InputError: if a prompt has no room behind the video
    """
    assert model.config.text_config._attn_implementation == attention.NAME, (
        "the model is not load_model's: other attention would not see the video"
    )
    n_video = video.ids.shape[1]
    prompt_ids = [encode_branch(tokenizer, prompt).prompt for prompt in prompts]
    room = limits.check_room(model.config, tokenizer, n_video, prompt_ids)
    if video.cache is None:
        prefill = model(video.ids, **video.inputs, use_cache=True, logits_to_keep=1)
        video.cache = prefill.past_key_values
    cache = transformers.DynamicCache()
    cache.layers = [attention.SharedLayer(layer.keys, layer.values) for layer in video.cache.layers]

    # Prompts are padded on the left, so that all answers start in the same column
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=model.device) for row in prompt_ids],
        batch_first=True,
        padding_value=-1,
        padding_side="left",
    )  # (B, longest prompt)
    is_prompt = ids >= 0
    mask = torch.nn.functional.pad(is_prompt, (n_video, 0), value=True)  # (B, P + longest prompt)
    [end] = encode_branch(tokenizer, "").answer  # an empty answer is the end of turn alone

    processors = transformers.LogitsProcessorList()
    if noise:
        processors.append(noise)
    out = model.generate(
        input_ids=ids.where(is_prompt, end),
        attention_mask=mask.long(),
        past_key_values=cache,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=processors,
    )  # (B, longest prompt + longest answer)

    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        whole = end in row
        tokens = row[: row.index(end)] if whole else row
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        answers.append((text, whole))
    return answers


class Packed(NamedTuple):
    """A video of P tokens and its branches as one sequence of T tokens; see `pack`."""

    ids: torch.Tensor  # (T - P,) of the branches
    positions: torch.Tensor  # (T,) every branch starts again at P
    mask: torch.Tensor  # (T - P, T) bool: what the branches' tokens see
    targets: torch.Tensor  # (A,) indices of the answers' tokens in the sequence
    branch: torch.Tensor  # (A,) number of the branch that each of them belongs to


def pack(prefix_length: int, branches: list[Branch]) -> Packed:
    """Lay branches after a video of P = prefix_length tokens, each as if it were alone there.

        [video | prompt 1, answer 1 | prompt 2, answer 2 | ...]

    A token sees the video and, in its own branch, itself and the tokens before it:

        mask[i, j] = (j <= i) and (branch[j] == VIDEO or branch[j] == branch[i])

    Here i and j count over the whole sequence. The mask that is returned has the rows i = P to
    T - 1 alone, those of the branches' tokens: among the video's, attention is causal.
    """
    VIDEO = -1
    ids = []
    owners = [VIDEO] * prefix_length
    positions = list(range(prefix_length))
    is_answer = [False] * prefix_length
    for number, (prompt, answer) in enumerate(branches):
        length = len(prompt) + len(answer)
        ids += prompt + answer
        owners += [number] * length
        positions += range(prefix_length, prefix_length + length)
        is_answer += [False] * len(prompt) + [True] * len(answer)

    branch = torch.tensor(owners)  # (T,)
    own = branch[prefix_length:, None]  # (T - P, 1)
    mask = (branch == VIDEO) | (branch == own)  # (T - P, T)
    mask = mask.tril(prefix_length)  # row r is position i = P + r: j <= P + r
    targets = torch.tensor(is_answer).nonzero()[:, 0]  # (A,)
    return Packed(torch.tensor(ids), torch.tensor(positions), mask, targets, branch[targets])


def branch_logps(model, video, branches: list[Branch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log-probs of B answers in one forward pass: those of B separate sequences.

    Returns:
        sums: (B,) log-prob of each answer, summed over its tokens
        lengths: (B,) number of its tokens
    """
    n_video = video.ids.shape[1]
    packed = Packed(*(part.to(model.device) for part in pack(n_video, branches)))
    ids = torch.cat([video.ids[0], packed.ids])  # (T,)
    last = model.lm_head.weight.device
    logits = model(
        ids[None],
        **video.inputs,
        position_ids=packed.positions[None],
        # Additive, made once for all layers: 0 where seen, else -inf
        attention_mask=packed.mask[None, None].to(model.dtype).log(),
        logits_to_keep=(packed.targets - 1).to(last),  # each token is predicted by the one before
        use_cache=False,
    ).logits[0]  # (A, vocabulary): the head runs on these positions alone

    logits = logits.float()  # the same name, so that the first copy is freed
    targets = ids[packed.targets, None].to(last)  # (A, 1)
    logps = logits.log_softmax(-1).gather(1, targets)[:, 0]  # (A,)
    branch = packed.branch.to(last)
    sums = logps.new_zeros(len(branches)).index_add(0, branch, logps)  # (B,)
    lengths = torch.bincount(branch, minlength=len(branches))  # (B,)
    return sums, lengths
