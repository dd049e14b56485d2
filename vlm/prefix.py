"""A video is read once, whatever is asked about it.

32 frames are 8,192 visual tokens; a question and its answer are about a hundred. So every prompt
begins with the video, and everything asked about it shares what the model computed for it:

    Video          vision tower and projector run once
    decode         answering: one prefill, then all prompts as one batch on top of its one cache;
                   of several videos at a time, if they are given
    branch_logps   training: one packed sequence [video | branch 1 | branch 2 | ...], one pass

tests/test_prefix.py compares all three with separate, ordinary sequences.

Shapes: V videos, F frames, P tokens of a video (the prefix), B branches (a prompt with its answer),
T tokens of the video and all branches, A tokens of all answers.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

import common
import media
from vlm import attention, chat, families, limits


class Branch(NamedTuple):
    """What follows the video in one sequence, as token ids."""

    prompt: list[int]  # the user's words, and the template's text between them and the answer
    answer: list[int]  # the answer, and the token that ends its turn


def encode_branch(tokenizer, prompt: str, answer: str = "") -> Branch:
    """Encode prompt and answer separately, so that a prompt has the same ids with any answer.

    Raises:
        InputError: if one has a control token that cannot be encoded as text (chat.encode_text)
    """
    _, before_answer = chat.chat_parts(tokenizer)
    prompt_ids = chat.encode_text(tokenizer, prompt, before_answer)
    answer_ids = chat.encode_text(tokenizer, answer, chat.END_OF_TURN)
    return Branch(prompt_ids, answer_ids)


class Video:
    """A video that the model has looked at: vision tower and projector run once, in here.

    Attributes:
        ids: (1, P) token ids, with a placeholder for each visual token
        positions: (1, P), or (3, 1, P) for a family with three axes: where the tokens stand
        behind: the position of the first token behind the video; P if they are numbered
        inputs: keyword arguments of a forward pass over ids; they contain the visual tokens, which
            take the placeholders' places
        cache: keys and values of the P tokens; None until `decode` first needs them
    """

    def __init__(self, model, tokenizer, frames, seconds=None):
        """Look at frames.

        Args:
            frames: uint8 (F, height, width, 3), RGB
            seconds: (F,) when they are shown; InternVL does without
        """
        self.ids, self.positions, self.inputs = families.look(model, tokenizer, frames, seconds)
        self.behind = int(self.positions.max()) + 1
        self.cache = None


class Shown:
    """What is asked at a time: videos that the model has looked at, and the rows about them.

    Attributes:
        parts: [(rows with the same video, start and end; Video), ...]. The Video is None if it
            cannot be read, or if all these rows were dropped before
    """

    def __init__(self, parts: list):
        self.parts = parts

    @property
    def rows(self) -> list[dict]:
        """All rows."""
        return [row for rows, _ in self.parts for row in rows]

    def to_ask(self) -> list[dict]:
        """List the rows that are not dropped; those of videos that cannot be read are."""
        return [row for row in self.rows if "dropped" not in row]


def watch(model, tokenizer, batches, root, args):
    """Read the videos of batch after batch, while a thread decodes the frames of the next ones.

    Args:
        batches: iterable of [(video, its rows), ...]. Rows may have `start` and `end`, the seconds
            to be shown: by the frames' own times, or for a benchmark's rows by the frame rate, as
            in lmms-eval
        root: directory that the videos' paths are relative to
        args: `frames` is read, the number of frames; None: what the model's config says

    Yields:
        Shown, whose parts are stretches of consecutive rows with the same video, start and end. If
        a batch of V videos has more of them than V, they come V at a time. The rows about a video
        that cannot be read are marked as dropped
    """
    n_frames = families.choose_n_frames(args.frames, model.config)

    with ThreadPoolExecutor(max_workers=1) as thread:

        def start_reading(rows):
            """Start to decode the frames of a segment -> a future; None if no row needs them."""
            if all("dropped" in row for row in rows):
                return None
            return thread.submit(sample_segment, root, rows[0], n_frames, model.config)

        def read(segments):
            return [(rows, start_reading(rows)) for _, rows in segments]

        ahead = itertools.chain(map(read, split_batches(batches)), [None])
        for being_read, _ in itertools.pairwise(ahead):  # (these, the next ones)
            # Not kept in a variable here: the last videos would stay in memory
            yield Shown(
                [(rows, look(model, tokenizer, rows, frames)) for rows, frames in being_read]
            )


def sample_segment(root, row: dict, n_frames: int, config) -> media.Sample:
    """Take the frames of what a row is about, in the size in which a model sees them.

    Raises:
        OSError: if the video cannot be read
    """
    video, start, end = common.segment(row)
    return media.sample_frames(
        Path(root) / video,
        n_frames,
        start,
        end,
        by_rate="benchmark" in row,
        shrink=functools.partial(families.shrink, config=config),
    )


def split_batches(batches):
    """Split batches into segments: of a batch of V videos V segments at a time.

    batches: iterable of [(video, its rows), ...]

    Yields:
        [(video, rows that are shown the same seconds of it), ...]
    """
    for batch in batches:
        segments = []
        for name, rows in batch:
            segments += [(name, list(part)) for _, part in itertools.groupby(rows, common.segment)]
        for start in range(0, len(segments), len(batch)):
            yield segments[start : start + len(batch)]


def look(model, tokenizer, rows: list[dict], frames) -> Video | None:
    """Look at a video whose frames are being decoded; if that fails, its rows are dropped.

    frames: a future of a media.Sample; None if no row needs it
    """
    if frames is None:
        return None
    try:
        sample = frames.result()
    except OSError as error:
        drop_unreadable(rows, error)
        return None
    if sample.warning:
        warn(rows, sample.warning)
    return Video(model, tokenizer, sample.frames, sample.seconds)


def watch_each(model, tokenizer, groups: list, root, args, desc: str | None = None):
    """Read videos one by one: `watch`, for what takes no batches.

    Args:
        groups: [(video, its rows), ...]
        desc: label of the progress bar; None: there is none

    Yields:
        (rows, Video), once for each stretch of consecutive rows with the same video, start and
        end; see Shown
    """
    segments = [segment for [segment] in split_batches([group] for group in groups)]
    watched = watch(model, tokenizer, ([segment] for segment in segments), root, args)
    is_long = desc is not None and len(segments) > 1
    progress = common.progress(total=len(segments), desc=desc, unit="video", disable=not is_long)
    for shown in watched:
        yield shown.parts.pop()  # not kept here: the last video would stay in memory
        progress.update()
    progress.close()


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


# ------------------------------------------------------------------------------
# Answering


class Reply(NamedTuple):
    """What the model says to a prompt."""

    text: str
    whole: bool  # False if it was cut off by max_new_tokens, or where the model's positions end


def reply(model, tokenizer, shown: Shown, ask, max_new_tokens: int, noise=None):
    """Put a prompt to each row that is not dropped, as one batch.

    Args:
        ask: a function that makes a row's prompt
        noise: see `decode`

    Returns:
        [(row, Reply), ...], in order
    """
    videos = []
    texts = []
    for rows, video in shown.parts:
        asked = [ask(row) for row in rows if "dropped" not in row]
        if asked:
            videos.append(video)
            texts.append(asked)
    if not videos:
        return []
    replies = decode(model, tokenizer, videos, texts, max_new_tokens, noise)
    return list(zip(shown.to_ask(), itertools.chain.from_iterable(replies)))


@torch.no_grad()
def decode(
    model, tokenizer, videos: list[Video], prompts: list[list[str]], max_new_tokens: int, noise=None
) -> list[list[Reply]]:
    """Answer prompts about V videos, as one batch on top of the videos' caches.

    Args:
        prompts: for each video its own, at least one
        noise: logits processor over all prompts' rows that turns the argmax into a sample (see
            generate.Noise); None decodes greedily

    Returns:
        for each video the replies to its prompts

    Raises:
        InputError: if a prompt has no room behind the video
    """
    assert model.config.text_config._attn_implementation == attention.NAME, (
        "the model is not load_model's: other attention would not see the video"
    )
    prompt_ids = [[encode_branch(tokenizer, prompt).prompt for prompt in own] for own in prompts]
    room = min(
        limits.check_room(model.config, tokenizer, video.behind, own)
        for video, own in zip(videos, prompt_ids)
    )
    cache = share_caches(model, videos)
    rows = lay_out(prompt_ids)
    [end] = encode_branch(tokenizer, "").answer  # an empty answer is the end of turn alone
    ids, mask, positions = pad(rows.ids, videos, end, model.device)

    processors = transformers.LogitsProcessorList()
    if noise or len(rows.own) < len(rows.ids):
        processors.append(OwnRows(rows.own, end, noise))
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=processors,
    )  # (V * B, longest prompt + longest answer)

    tokens = out[rows.own, ids.shape[1] :].tolist()
    replies = iter(read_reply(tokenizer, row, end) for row in tokens)
    return [list(itertools.islice(replies, len(own))) for own in prompts]


def share_caches(model, videos: list[Video]):
    """Make a cache for rows behind V videos; each video is prefilled once, when it is first asked.

    Videos that have fewer tokens than the longest are padded on the left, and the padding hidden.

    Returns:
        transformers' cache, whose layers hold (V, kv heads, P, D)
    """
    for video in videos:
        if video.cache is None:
            prefill = model(
                video.ids,
                **video.inputs,
                position_ids=video.positions,
                use_cache=True,
                logits_to_keep=1,
            )
            video.cache = prefill.past_key_values
    cache = transformers.DynamicCache()
    padding = list_padding(videos)
    for layers in zip(*(video.cache.layers for video in videos)):
        keys = torch.cat([pad_left(layer.keys, n) for layer, n in zip(layers, padding)])
        values = torch.cat([pad_left(layer.values, n) for layer, n in zip(layers, padding)])
        for number, (layer, n) in enumerate(zip(layers, padding)):  # a view in place of a copy
            layer.keys = keys[number : number + 1, :, n:]
            layer.values = values[number : number + 1, :, n:]
        cache.layers.append(attention.SharedLayer(keys, values, padding))
    return cache


def list_padding(videos: list[Video]) -> list[int]:
    """List how many tokens each video has fewer than the longest."""
    lengths = [video.ids.shape[1] for video in videos]
    return [max(lengths) - length for length in lengths]


def pad_left(tensor, n: int):
    """Put n zeros before the tokens of keys or values, (1, kv heads, tokens, D)."""
    return torch.nn.functional.pad(tensor, (0, 0, n, 0)) if n else tensor


class Rows(NamedTuple):
    """Prompts of V videos as a batch of V x B rows, B for each video."""

    ids: list[list[int]]  # (V * B, ...) token ids
    own: list[int]  # the rows that have a prompt of their own, in order


def lay_out(prompt_ids: list[list[list[int]]]) -> Rows:
    """Give every video as many rows as the one with the most prompts: its last one stands in."""
    most = max(len(own) for own in prompt_ids)
    ids = []
    real = []
    for own in prompt_ids:
        real += range(len(ids), len(ids) + len(own))
        ids += own + own[-1:] * (most - len(own))
    return Rows(ids, real)


class Padded(NamedTuple):
    """Prompts of V videos, padded on the left, so that all answers start in the same column."""

    ids: torch.Tensor  # (V * B, longest prompt)
    mask: torch.Tensor  # (V * B, P + longest prompt): what is seen, the video included
    positions: torch.Tensor  # (V * B, longest prompt) counted on behind the video


def pad(rows: list[list[int]], videos: list[Video], end: int, device) -> Padded:
    """Pad the prompts of V videos.

    rows: (V * B, ...) token ids, B for each video
    """
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=device) for row in rows],
        batch_first=True,
        padding_value=-1,
        padding_side="left",
    )  # (V * B, longest prompt)
    is_prompt = ids >= 0
    n_video = max(video.ids.shape[1] for video in videos)
    mask = torch.nn.functional.pad(is_prompt, (n_video, 0), value=True)
    behind = torch.tensor([video.behind for video in videos], device=device)  # (V,)
    first = behind.repeat_interleave(len(rows) // len(videos))[:, None]  # (V * B, 1)
    return Padded(
        ids=ids.where(is_prompt, end),
        mask=mask.long(),
        positions=first + is_prompt.cumsum(-1) - 1,
    )


class OwnRows(transformers.LogitsProcessor):
    """Apply noise to the rows with a prompt of their own; end the others at once."""

    def __init__(self, own: list[int], end: int, noise=None):
        self.own = own
        self.end = end
        self.noise = noise

    def __call__(self, input_ids, scores):
        """Process one step's scores, (V * B, vocabulary)."""
        own = scores[self.own]
        if self.noise:
            own = self.noise(input_ids[self.own], own)
        processed = torch.full_like(scores, float("-inf"), dtype=own.dtype)
        processed[:, self.end] = 0.0
        processed[self.own] = own
        return processed


def read_reply(tokenizer, tokens: list[int], end: int) -> Reply:
    """Read a reply up to its end of turn, which it lacks if it was cut off."""
    whole = end in tokens
    if whole:
        tokens = tokens[: tokens.index(end)]
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return Reply(text, whole)


# ------------------------------------------------------------------------------
# Training


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
    logps, branch = token_logps(model, video, branches)
    sums = logps.new_zeros(len(branches)).index_add(0, branch, logps)  # (B,)
    lengths = torch.bincount(branch, minlength=len(branches))  # (B,)
    return sums, lengths


def token_logps(model, video, branches: list[Branch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-prob of each token of B answers.

    Returns:
        logps: (A,) of the tokens, one answer after another
        branch: (A,) number of the branch that each belongs to
    """
    n_video = video.ids.shape[1]
    packed = Packed(*(part.to(model.device) for part in pack(n_video, branches)))
    ids = torch.cat([video.ids[0], packed.ids])  # (T,)
    behind = packed.positions[n_video:] - n_video + video.behind  # (T - P,)
    behind = behind.expand(*video.positions.shape[:-1], -1)  # the same along all axes
    positions = torch.cat([video.positions, behind], -1)  # (1, T) or (3, 1, T)
    last = model.lm_head.weight.device
    logits = model(
        ids[None],
        **video.inputs,
        position_ids=positions,
        # Additive, made once for all layers: 0 where seen, else -inf
        attention_mask=packed.mask[None, None].to(model.dtype).log(),
        logits_to_keep=(packed.targets - 1).to(last),  # each token is predicted by the one before
        use_cache=False,
    ).logits[0]  # (A, vocabulary): the head runs on these positions alone

    logits = logits.float()  # the same name, so that the first copy is freed
    targets = ids[packed.targets, None].to(last)  # (A, 1)
    logps = logits.log_softmax(-1).gather(1, targets)[:, 0]  # (A,)
    return logps, packed.branch.to(last)
