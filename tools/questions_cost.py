"""Measure what a video costs with 1 question and with 12.

    OMP_NUM_THREADS=1 python -m tools.questions_cost     # on a CPU, a minute
    python -m tools.questions_cost --model DIR           # on all visible GPUs

evaluate.py decodes a video's frames, runs the vision tower over them, reads
the prefix once, and answers all questions about it as one batch. All of this is
timed, from file to replies, as in MVBench: 32 frames, replies of 16 tokens.

Without --model it is the shipped tiny architecture at the real size, 448 x 448
pixels and 256 tokens a frame, with random weights, whose replies never end
early: so the proportion counts, not the seconds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

import common
import media
import vlm
from benchmarks import mvbench
from shapes import world

FRAMES = 32
MODEL = "shapes/model"


def write_model(directory: str):
    """Write a checkpoint of the tiny architecture at the real size, with random weights."""
    config = transformers.AutoConfig.from_pretrained(MODEL)
    config.vision_config.image_size = [448, 448]
    config.vision_config.patch_size = [14, 14]
    config.image_seq_length = 256
    config.text_config.max_position_embeddings = 32768  # 32 frames are above 8,192 tokens
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(directory)
    vlm.load_tokenizer(MODEL).save_pretrained(directory)


def write_prompts(shapes: list, n: int) -> list[str]:
    """Write n prompts about a scene, as those of MVBench."""
    questions = []
    for items in world.all_questions(shapes).values():
        questions += [item["question"] for item in items]
    options = ["it moves left.", "it moves right.", "it moves up."]
    prompts = []
    for number in range(n):
        question = questions[number % len(questions)]
        prompts.append(mvbench.render({"question": question, "options": options}))
    return prompts


def ask(model, tokenizer, path: Path, prompts: list[str], max_new_tokens: int) -> float:
    """Answer prompts about a video file -> the seconds that it takes."""
    begun = time.perf_counter()
    sample = media.sample_frames(path, FRAMES)
    video = vlm.Video(model, tokenizer, sample.frames, sample.seconds)
    vlm.decode(model, tokenizer, [video], [prompts], max_new_tokens)
    return time.perf_counter() - begun


def measure(model, tokenizer, path: Path, prompts: list[str], args) -> tuple[float, float]:
    """Measure the median seconds with one prompt, and with all of them."""
    ask(model, tokenizer, path, prompts[:1], args.tokens)  # warms up
    with_one = []
    with_all = []
    for _ in range(args.repeats):
        with_one.append(ask(model, tokenizer, path, prompts[:1], args.tokens))
        with_all.append(ask(model, tokenizer, path, prompts, args.tokens))
    return statistics.median(with_one), statistics.median(with_all)


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--model", help="directory or hub name (default: the tiny one at the real size)")
    add("--devices", help="comma-separated (default: all visible GPUs, else cpu)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: float32 on a CPU, bfloat16 on CUDA",
    )
    add("--questions", type=int, default=12, metavar="N", help="that are compared with one")
    add("--tokens", type=int, default=16, metavar="N", help="of a reply")
    add("--repeats", type=int, default=3, metavar="N", help="the median of so many is printed")
    return parser.parse_args()


def main():
    """Print both times, and their proportion."""
    args = parse_args()
    shapes = world.make_scene(0, "dev", 2)
    prompts = write_prompts(shapes, args.questions)
    with tempfile.TemporaryDirectory() as temporary:
        if not args.model:
            write_model(temporary)
            args.model = temporary
        args.frames = FRAMES
        model, tokenizer = vlm.load(args)
        path = Path(temporary) / "scene.mp4"
        world.render(shapes, path)
        one, many = measure(model, tokenizer, path, prompts, args)
    print(
        f"a video with 1 question: {one:.2f} s; with {args.questions} questions: {many:.2f} s, "
        f"which is {many / one:.2f} times as much"
    )


if __name__ == "__main__":
    common.run(main)
