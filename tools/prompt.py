"""Print what a model is given for a row of a file, to the token.

    python -m tools.prompt --model shapes/model runs/loop/round1/pairs.jsonl \
        round1_0001.mp4/temporal/0

For each text that the row has (question, answer, critique, revision, the two
sides of a pair, or the reply to a benchmark's question) it prints the prompt
that asked for it, and the text as it is trained, with their numbers of tokens.
All of them follow the video, which is printed once. The stages' own functions
encode them, with the prompts that the file's meta.json records.

Control tokens are in [brackets], on a terminal in reverse video: what looks
like one and is not marked is ordinary text to the model. Weights are not read;
the video is only where its tokens depend on it (Qwen-VL).
"""

import argparse
import difflib
import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import common
import dpo
import prompts
import vlm
from vlm import chat, families, limits, placement, prefix


class Exchange(NamedTuple):
    """A prompt, and the text that follows it."""

    title: str
    prompt: str
    answer: str


# ------------------------------------------------------------------------------
# Which texts


def find_row(path: Path, id: str) -> dict:
    """Find a row by its id; InputError names the ids that are nearest to it."""
    rows = {row["id"]: row for row in common.read_jsonl(path, ("id",))}
    if id in rows:
        return rows[id]
    nearest = difflib.get_close_matches(id, rows, cutoff=0.0)
    raise common.InputError(
        f"{path}: no row has the id {id!r}; the nearest are {', '.join(nearest) or 'none'}"
    )


def list_exchanges(row: dict, wording) -> list[Exchange]:
    """List what the stages asked for the texts of a row, in the order of the stages.

    wording: prompts.Prompts
    """
    exchanges = []
    if "benchmark" in row and "prompt" in row:
        exchanges.append(Exchange("evaluate.py", row["prompt"], row["initial"]))
    elif "question" in row:
        asked = find_question_prompt(row, wording)
        if asked:
            title = "generate.py, the question"
            exchanges.append(Exchange(title, asked, row["question"]))
        if "initial" in row:
            title = "generate.py, the answer"
            exchanges.append(Exchange(title, fill(wording.answer, row, wording), row["initial"]))
    if "critique" in row:
        asked = fill(wording.critique, row, wording)
        exchanges.append(Exchange("critique.py", asked, row["critique"]))
    if "revised" in row:
        asked = fill(wording.revision, row, wording)
        exchanges.append(Exchange("refine.py", asked, row["revised"]))
    for side in ("chosen", "rejected"):
        if side in row:
            asked = dpo.render_prompt(row, wording.answer)
            exchanges.append(Exchange(f"dpo.py, {side}", asked, row[side]))
    return exchanges


def find_question_prompt(row: dict, wording) -> str | None:
    """Find the prompt that generate.py asked for a row's question with; None if it did not."""
    kind, _, number = row["id"].removeprefix(f"{row.get('video')}/").rpartition("/")
    if kind not in wording.questions or not re.fullmatch("[0-9]{1,9}", number):
        return None
    in_turn = len(wording.questions[kind]["aspects"]) or 1  # after so many, prompts come again
    counts = dict.fromkeys(wording.questions, 0) | {kind: int(number) % in_turn + 1}
    *_, (_, _, prompt) = prompts.list_questions(wording.questions, counts)
    return prompt


def fill(prompt: str, row: dict, wording) -> str:
    """Fill a prompt with the texts of a row."""
    texts = {key: row[key] for key in ("question", "initial", "critique") if key in row}
    listed = prompts.describe_error_types(wording.error_types)
    return prompts.fill(prompt, **texts, error_types=listed)


# ------------------------------------------------------------------------------
# How tokens are shown


def cut(ids: list[int], controls: dict[int, str]) -> list[list[int]]:
    """Cut token ids into stretches of text, and control tokens: each alone, or repeated."""
    return [
        list(stretch)
        for _, stretch in itertools.groupby(ids, lambda id: id if id in controls else -1)
    ]


def show_text(tokenizer, ids: list[int], mark) -> list[str]:
    """Show token ids as text, in pieces.

    mark: a function that makes a control token visible
    """
    controls = chat.control_tokens(tokenizer)
    pieces = []
    for stretch in cut(ids, controls):
        token = controls.get(stretch[0])
        if token is None:
            pieces.append(tokenizer.decode(stretch))
        elif len(stretch) == 1:
            pieces.append(mark(token))
        else:
            pieces.append(mark(f"{token} x {len(stretch)}"))
    return pieces


def show_ids(tokenizer, ids: list[int]) -> str:
    """Show token ids as numbers; a control token that is repeated as 5 x 256."""
    controls = chat.control_tokens(tokenizer)
    shown = []
    for stretch in cut(ids, controls):
        repeated = stretch[0] in controls and len(stretch) > 1
        shown.append(f"{stretch[0]} x {len(stretch)}" if repeated else " ".join(map(str, stretch)))
    return ", ".join(shown)


def show_video(tokenizer, config, ids: list[int], mark) -> list[str]:
    """Show a video's token ids: of more than three frames, or pairs, the first and the last."""
    placeholder = families.find_placeholder(config)
    runs = [run for run in cut(ids, chat.control_tokens(tokenizer)) if run[0] == placeholder]
    pieces = show_text(tokenizer, ids, mark)
    if len(runs) <= 3:
        return pieces
    # A run of placeholders has one control token before it and one behind it
    shown = "".join(show_text(tokenizer, runs[0], mark))
    frames = [number for number, piece in enumerate(pieces) if piece == shown]
    what = "frames" if config.model_type == "internvl" else "pairs of frames"
    between = f"\n... {what} 2 to {len(runs) - 1} in the same way ...\n"
    last = frames[-1] - 2  # the text "Frame32: " is before the control token
    return [*pieces[: frames[0] + 2], between, pieces[last].lstrip(), *pieces[last + 1 :]]


def mark_in_brackets(token: str) -> str:
    """Mark a control token."""
    return f"[{token}]"


def mark_in_reverse(token: str) -> str:
    """Mark a control token on a terminal."""
    return f"\033[7m{token}\033[0m"


# ------------------------------------------------------------------------------
# The command


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="JSONL of any stage, or of evaluate.py")
    add("id", metavar="ID", help="of the row")
    add("--model", required=True, help="directory of a checkpoint or of an adapter, or hub name")
    add(
        "--frames",
        type=common.at_least(1),
        metavar="N",
        help="frames of a video (default: as the file's meta.json says, else as the model does)",
    )
    common.add_frame_tokens(parser)
    add("--videos", metavar="DIR", help="where the videos are (default: as the meta.json says)")
    add("--ids", action="store_true", help="print the tokens' ids, too")
    prompts.add_option(parser)
    return parser.parse_args()


def main():
    """Print a row as the model gets it."""
    args = parse_args()
    row = find_row(args.file, args.id)
    wording = prompts.choose(args, [args.file], settled=("answer",))
    exchanges = list_exchanges(row, wording)
    print(f"{args.id} in {args.file}; {name_source(args)}")
    if "dropped" in row:
        print(f"dropped: {row['dropped']}")
    if not exchanges:
        raise common.InputError(f"{args.file}: the row {args.id!r} has no text")

    made_with = read_arguments(args.file)
    frame_tokens = args.frame_tokens or made_with.get("frame_tokens")
    config = placement.read_config(vlm.find_base(args.model), frame_tokens)
    tokenizer = vlm.load_tokenizer(args.model)
    n_frames = families.choose_n_frames(args.frames or made_with.get("frames"), config)
    video = encode_video(args, row, tokenizer, config, n_frames)
    mark = mark_in_reverse if sys.stdout.isatty() else mark_in_brackets
    print(f"\n---- the video: {n_frames} frames, {len(video)} tokens")
    print("".join(show_video(tokenizer, config, video, mark)))
    if args.ids:
        print(f"ids: {show_ids(tokenizer, video)}")
    for title, prompt, answer in exchanges:
        branch = vlm.encode_branch(tokenizer, prompt, answer)
        n_prompt, n_answer = len(branch.prompt), len(branch.answer)
        print(
            f"\n---- {title}: prompt {n_prompt} tokens, answer {n_answer} tokens; with the video "
            f"{len(video) + n_prompt + n_answer} of {limits.count_positions(config)} positions"
        )
        for ids in branch:
            print("".join(show_text(tokenizer, ids, mark)).removesuffix("\n"))
            if args.ids:
                print(f"ids: {show_ids(tokenizer, ids)}")
            if ids is branch.prompt:
                print("-- answer")


def encode_video(args, row: dict, tokenizer, config, n_frames: int) -> list[int]:
    """Encode a row's video. It is read if its tokens depend on its own size and times."""
    if config.model_type == "internvl":
        return vlm.encode_prefix(tokenizer, config, n_frames)
    meta = common.meta_path(args.file)
    if "video" not in row or not (args.videos or meta.exists()):
        raise common.InputError(
            f"{args.file}: what a {config.model_type} sees depends on the video; the row needs "
            "`video`, and without a meta.json --videos must say where the videos are"
        )
    root = args.videos or common.read_keys(meta, "root")[0]
    try:
        sample = prefix.sample_segment(root, row, n_frames, config)
    except OSError as error:
        raise common.InputError(f"{error} (--videos says where the videos are)") from error
    return families.encode_video(tokenizer, config, sample.frames.shape[1:3], sample.seconds)


def name_source(args) -> str:
    """Say where the prompts are from."""
    if args.prompts:
        return f"prompts of {args.prompts}"
    if prompts.recorded(args.file):
        return "prompts as its meta.json records them"
    return "no meta.json records its prompts: the model's own if it lists them, else the default"


def read_arguments(path: Path) -> dict:
    """Read the options that a file was made with; {} if no meta.json says them."""
    meta = common.meta_path(path)
    return common.read_json(meta).get("arguments", {}) if meta.exists() else {}


if __name__ == "__main__":
    common.run(main)
