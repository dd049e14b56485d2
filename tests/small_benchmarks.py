"""Small copies of the six benchmarks: made-up annotations in the official formats, videos rendered by shapes/world.py.

WRITERS[benchmark](directory) lays one out. No two questions of a benchmark have the same text and different answers.
"""

import csv
import functools
import json
import shutil
import tempfile
from pathlib import Path

import cv2

from shapes import world


@functools.cache
def rendered(number):
    """An .mp4 of the tiny world, 16 frames at 8 a second -> its path."""
    path = Path(tempfile.mkdtemp()) / "scene.mp4"
    world.render(world.make_scene(0, "dev", number), path)
    return path


def film(path, number=0):
    """A video at `path`: .mp4, .webm or .avi; without a suffix a folder of frames, 00001.jpg to 00016.jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        shutil.copy(rendered(number), path)
        return
    capture, frames = cv2.VideoCapture(str(rendered(number))), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    if path.suffix:
        code = {".webm": "VP80", ".avi": "MJPG"}[path.suffix]
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 8, frames[0].shape[:2])
        for frame in frames:
            writer.write(frame)
        writer.release()
    else:
        path.mkdir()
        for index, frame in enumerate(frames, 1):
            cv2.imwrite(str(path / f"{index:05}.jpg"), frame)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))


# MVBench: a task -> where the raw video of a name lies, and where the pre-trimmed one does, as benchmarks lay them out. {} is the bounds' text.
STAR = ("ABC01.mp4", "video/star/Charades_v1_480/ABC01.mp4", "video/star/Charades_segment/ABC01{}.mp4")
CLEVRER = ("video_10.mp4", "video/clevrer/video_validation/video_10.mp4", "video/clevrer/video_validation/video_10.mp4")
PERCEPTION = ("video_7.mp4", "video/perception/videos/video_7.mp4", "video/perception/videos/video_7.mp4")
MVBENCH = {
    "action_sequence": STAR,
    "action_prediction": STAR,
    # this one is only below data0613
    "object_interaction": (
        "DEF02.mp4",
        "video/data0613/star/Charades_v1_480/DEF02.mp4",
        "video/data0613/star/Charades_segment/DEF02{}.mp4",
    ),
    "action_localization": ("GHI03.mp4", "video/sta/sta_video/GHI03.mp4", "video/sta/sta_video_segment/GHI03{}.mp4"),
    "episodic_reasoning": (
        "s01e02_clip_3",
        "video/tvqa/frames_fps3_hq/s01e02_clip_3",
        "video/tvqa/video_fps3_hq_segment/s01e02_clip_3{}.mp4",
    ),
    "action_antonym": ("1234.webm", "video/ssv2_video/1234.webm", "video/ssv2_video_mp4/1234.mp4"),
    "fine_grained_pose": (
        "S001A010_rgb.avi",
        "video/nturgbd/S001A010_rgb.avi",
        "video/nturgbd_convert/S001A010_rgb.mp4",
    ),
    "fine_grained_action": ("cooking/a b-1.mp4",) + ("video/Moments_in_Time_Raw/videos/cooking/a b-1.mp4",) * 2,
    "unexpected_action": ("H_T_1.mp4",) + ("video/FunQA_test/test/H_T_1.mp4",) * 2,
    "scene_transition": ("Top.mp4",) + ("video/scene_qa/video/Top.mp4",) * 2,
    "egocentric_navigation": ("0_0.mp4",) + ("video/vlnqa/0_0.mp4",) * 2,
    "object_existence": CLEVRER,
    "moving_direction": CLEVRER,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "counterfactual_inference": ("video_11.mp4",) + ("video/data0613/clevrer/video_validation/video_11.mp4",) * 2,
    "object_shuffle": PERCEPTION,
    "action_count": PERCEPTION,
    "state_change": PERCEPTION,
    "character_order": PERCEPTION,
}
BOUNDED = ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
BOUNDS = [
    (0, 1.0),
    (0.5, 1.2999999999999998),
    (0, 1.0),
    (1.5, 99),
]  # seconds: the first again in the third row; the last ends behind the video


def write_mvbench(root, trimmed=False):
    """Four rows a task; the right answer is option B, C, B, C."""
    for task, (name, *places) in MVBENCH.items():
        rows = []
        for number, (start, end) in enumerate(BOUNDS):
            candidates = ["x", "the man", "z"] + ["w"] * (number == 3)
            rows.append(
                {
                    "video": name,
                    "question": f"What is seen in part {number}?",
                    "candidates": candidates,
                    "answer": candidates[1 + number % 2],
                    **({"start": start, "end": end} if task in BOUNDED else {}),
                }
            )
            place = root / places[trimmed].format(f"_{float(start)}_{float(end)}")
            if not place.exists():
                film(place, number)
        write_json(root / "json" / f"{task}.json", rows)


def write_perceptiontest(root):
    """Three questions about video_1, one about video_2, whose suffix is .MP4."""

    def question(id, what, area, reasoning, answer):
        return {
            "id": id,
            "question": f"How many {what} are there?",
            "options": ["one", "two", "three"],
            "answer_id": answer,
            "area": area,
            "reasoning": reasoning,
            "tag": ["object counting"],
        }

    rows = {
        "video_1": [
            question(0, "cups", "memory", "descriptive", 0),
            question(1, "balls", "physics", "counterfactual", 1),
            question(2, "hands", "memory", "explanatory", 2),
        ],
        "video_2": [question(0, "letters", "semantics", "predictive", 1)],
    }
    write_json(
        root / "mc_question_valid.json",
        {name: {"metadata": {"split": "valid"}, "mc_question": part} for name, part in rows.items()},
    )
    film(root / "videos" / "video_1.mp4")
    film(root / "videos" / "video_2.MP4", 1)


def write_tempcompass(root):
    """Two videos, one in a folder of its own; multi-choice with options that are malformed as in the original."""
    write_json(
        root / "questions" / "multi-choice.json",
        {
            "101": {
                "direction": [
                    {
                        "question": "Which way does it turn?\nA. left\nB. right\nC. clockwise\n D. away",
                        "answer": "B. right",
                    }
                ],
                "order": [
                    {"question": "What is first?\nA. a jump\nB. a kiss\nC.Both at once", "answer": "C.Both at once"}
                ],
            },
            "102": {"action": [{"question": "What does he do?\nA. run\nB. sit", "answer": "A. run"}]},
        },
    )
    write_json(
        root / "questions" / "yes_no.json",
        {"101": {"speed": [{"question": "Is it fast?", "answer": "no"}, {"question": "Is it slow?", "answer": "yes"}]}},
    )
    write_json(
        root / "questions" / "caption_matching.json",
        {
            "102": {
                "attribute_change": [
                    {
                        "question": "Which caption matches the video better?\nCaption A: A man runs.\nCaption B: A man sits.",
                        "answer": "Caption B: A man sits.",
                    },
                    {
                        "question": "Which description is a more suitable match for the video?\nOption 1: It grows.\nOption 2: It shrinks.",
                        "answer": "Option 1: It grows.",
                    },
                ]
            }
        },
    )
    write_json(
        root / "questions" / "captioning.json",
        {"101": {"action": [{"question": "Generated Caption:", "answer": "B. run"}]}},
    )
    film(root / "videos" / "101.mp4")
    film(root / "videos" / "more" / "102.mp4", 1)


def write_nextqa(root):
    """Four questions about two videos, in turns; one video lies flat, the other in a folder of VidOR."""
    rows = [
        ("2574374895", 8, ' why did he say "no, thanks" ', "CW", 1),
        ("3238737531", 0, "what comes next", "TN", 4),
        ("2574374895", 9, "how many", "DC", 0),
        ("3238737531", 1, "how did he go", "CH", 2),
    ]
    film(root / "NExTVideo" / "2574374895.mp4")
    film(root / "NExTVideo" / "1164" / "3238737531.mp4", 1)
    with (root / "test.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "video",
                "frame_count",
                "width",
                "height",
                "question",
                "answer",
                "qid",
                "type",
                "a0",
                "a1",
                "a2",
                "a3",
                "a4",
            ]
        )
        for video, qid, question, kind, answer in rows:
            table.writerow([video, 16, 128, 128, question, answer, qid, kind, "walk away", " thumbs up", "c", "d", "e"])


def write_egoschema(root):
    """Three questions, two of them with a public answer."""
    options = {
        f"option {n}": text for n, text in enumerate(["C washes a pan", "C cooks dinner for the family", "c", "d", "e"])
    }
    write_json(
        root / "questions.json",
        [
            {"q_uid": f"0074f737-{n}", "google_drive_id": "1", "question": f"What is C doing in clip {n}?", **options}
            for n in range(3)
        ],
    )
    write_json(root / "subset_answers.json", {"0074f737-0": 1, "0074f737-2": 4})
    for n in range(3):
        film(root / "videos" / f"0074f737-{n}.mp4", n)


def write_longvideobench(root):
    """Three questions about two videos, with four and five candidates."""

    def row(id, video, group, category, n, answer):
        return {
            "video_id": video,
            "id": f"{video}_{id}",
            "video_path": f"{video}.mp4",
            "question": f"What follows {category}, {id}?",
            "candidates": list("vwxyz"[:n]),
            "correct_choice": answer,
            "question_category": category,
            "level": "L1-Perception",
            "duration_group": group,
            "duration": group + 0.5,
            "subtitle_path": f"{video}_en.json",
        }

    write_json(
        root / "lvb_val.json",
        [
            row(0, "86CxyhFV9MI", 15, "E2O", 4, 1),
            row(0, "_Hc6z1wJcw", 3600, "T2A", 5, 4),
            row(1, "86CxyhFV9MI", 15, "T2A", 5, 0),
        ],
    )
    film(root / "videos" / "86CxyhFV9MI.mp4")
    film(root / "videos" / "_Hc6z1wJcw.mp4", 1)


WRITERS = {
    "mvbench": write_mvbench,
    "perceptiontest": write_perceptiontest,
    "tempcompass": write_tempcompass,
    "nextqa": write_nextqa,
    "egoschema": write_egoschema,
    "longvideobench": write_longvideobench,
}
