"""What tools.page shows of tokens: the packed sequence, and where training moved probability."""

import argparse
from pathlib import Path

import torch

import common
import dpo
import prompts
import vlm
from tools import page_frames, report_rounds
from vlm import families, placement, prefix

VIDEO = -1
HEIGHT = 360  # of the frame that is drawn, in pixels
WIDTH = 640

# ------------------------------------------------------------------------------
# The packed sequence of a video: one frame, and two pairs about it


def draw_packed(rounds: list[Path]) -> dict | None:
    """Lay out the pairs about a video of the first round that has some, as dpo.py does.

    Returns:
        tokens: [[text, owner], ...]; owner -1 is the video, others are the branches' numbers
        sees: for each token the ranges of tokens that it sees, [[first, last], ...]
        None, if no round has a pair, or its model is not there any more
    """
    for directory in rounds:
        path = directory / "pairs.jsonl"
        if not path.exists():
            continue
        pairs = [row for row in read(path) if "chosen" in row]
        model = find_model(path)
        if pairs and model:
            _, of_video = max(common.group_by_video(pairs), key=lambda group: len(group[1]))
            return lay_out(model, path, of_video[:2])
    return None


def read(path: Path) -> list[dict]:
    """Read the rows of an output, which may not be finished."""
    return common.read_jsonl(path, ("id", "video"), incomplete=True)


def find_model(output: Path) -> str | None:
    """Find the model that an output was made with or from; None if it is not known or not there."""
    if not common.meta_path(output).exists():
        return None
    try:
        model = page_frames.find_model(common.meta_path(output))
        vlm.find_base(model)
    except common.InputError:
        return None
    return model


def lay_out(model: str, path: Path, pairs: list[dict]) -> dict:
    """Lay out pairs about one frame, whose visual tokens are drawn as one; see draw_packed."""
    tokenizer = vlm.load_tokenizer(model)
    [arguments] = common.read_keys(common.meta_path(path), "arguments")
    config = placement.read_config(vlm.find_base(model), arguments.get("frame_tokens"))
    placeholder = families.find_placeholder(config)
    size = families.choose_size(config, HEIGHT, WIDTH)
    ids = families.encode_video(tokenizer, config, size, [0.0])
    before, *_, after = split(ids, placeholder)
    video = [*before, placeholder, *after]
    branches = encode(tokenizer, path, pairs)
    packed = prefix.pack(len(video), branches)

    texts = [tokenizer.decode([token]) for token in [*video, *packed.ids.tolist()]]
    texts[len(before)] = f"{ids.count(placeholder)} visual tokens"
    owners = [VIDEO] * len(video)
    for number, branch in enumerate(branches):
        owners += [number] * (len(branch.prompt) + len(branch.answer))
    causal = torch.ones(len(video), len(texts), dtype=torch.bool).tril()
    mask = torch.cat([causal, packed.mask])  # (T, T)
    return {"tokens": list(zip(texts, owners)), "sees": [list_ranges(row) for row in mask.tolist()]}


def split(ids: list[int], separator: int) -> list[list[int]]:
    """Split ids at each separator, as str.split does."""
    parts = [[]]
    for token in ids:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def list_ranges(seen: list[bool]) -> list[list[int]]:
    """List the ranges of True.

    >>> list_ranges([True, True, False, True])
    [[0, 1], [3, 3]]
    """
    ranges = []
    for number, is_seen in enumerate(seen):
        if not is_seen:
            continue
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def encode(tokenizer, path: Path, pairs: list[dict]) -> list:
    """Encode pairs behind the prompts that their questions were asked with, as dpo.py does."""
    answer = prompts.recorded(path).get("answer", prompts.DEFAULT.answer)
    asked = [pair | {"prompt": dpo.render_prompt(pair, answer)} for pair in pairs]
    return dpo.encode_pairs(tokenizer, asked)


# ------------------------------------------------------------------------------
# Where training moved probability


def compare(rounds: list[Path], n: int, draw) -> dict[str, list]:
    """Compare each round's model with the one that it was trained from, on n of its pairs.

    Returns:
        {round: [[id, tokens of chosen, tokens of rejected], ...]}; a token is [text, its log-prob
        before the training, after it]
    """
    compared = {}
    if n == 0:
        return compared
    for directory in rounds:
        path = directory / "pairs.jsonl"
        trained = directory / "model"
        if not path.exists() or report_rounds.read_finished(trained) is None:
            continue
        before = find_model(trained)
        if before is None or not trained.is_dir():
            which = "that it was trained from" if trained.is_dir() else "that was trained"
            print(f"{directory.name}: no tokens; the model {which} is not there")
            continue
        pairs = [row for row in read(path) if "chosen" in row]
        drawn = draw.sample(pairs, min(n, len(pairs)))
        scored_before = score(before, path, drawn)
        scored_after = score(trained, path, drawn)
        if not scored_before:
            print(f"{directory.name}: no tokens; the videos of its pairs cannot be read")
            continue
        compared[directory.name] = [
            [id, *map(join, sides, scored_after[id])] for id, sides in scored_before.items()
        ]
    return compared


def score(model_path, path: Path, pairs: list[dict]) -> dict[str, list]:
    """Score the tokens of pairs -> {id: [tokens of chosen, of rejected]}; a token: [text, logp]."""
    tokenizer = vlm.load_tokenizer(model_path)
    root, arguments = common.read_keys(common.meta_path(path), "root", "arguments")
    model = vlm.load_model(model_path, frame_tokens=arguments.get("frame_tokens"))
    args = argparse.Namespace(frames=arguments["frames"])
    groups = common.group_by_segment(pairs)
    scored = {}
    for rows, video in vlm.watch_each(model, tokenizer, groups, root, args, f"{model_path}"):
        if video is None:  # it cannot be read any more
            continue
        branches = encode(tokenizer, path, rows)
        with torch.no_grad():
            logps, branch = prefix.token_logps(model, video, branches)  # (A,)
        answers = [logps[branch == number].tolist() for number in range(len(branches))]
        spelled = [
            [[tokenizer.decode([token]), logp] for token, logp in zip(encoded.answer, answer)]
            for encoded, answer in zip(branches, answers)
        ]
        for number, row in enumerate(rows):
            scored[row["id"]] = [spelled[number], spelled[number + len(rows)]]
    return scored


def join(tokens: list, tokens_after: list) -> list:
    """Join the tokens of an answer before and after the training -> [[text, logp, logp], ...]."""
    joined = []
    for (text, before), (_, after) in zip(tokens, tokens_after):
        joined.append([text, round(before, 3), round(after, 3)])
    return joined
