"""Check the exercise of a lesson.

    python -m course.check 3                 # course/exercises/loss.py
    python -m course.check 3 --solutions     # course/solutions/loss.py

Each line is something that the exercise must do. The first that fails says what
is wrong and ends the check with 1.
"""

import argparse
import importlib
import sys

import common
from course import lesson0, lesson1, lesson2, lesson3, lesson4, lesson5, lesson6, lesson7
from course.wrong import Wrong

LESSONS = dict(enumerate([lesson0, lesson1, lesson2, lesson3, lesson4, lesson5, lesson6, lesson7]))


def main():
    """Check an exercise."""
    args = parse_args()
    lesson = LESSONS[args.lesson]
    place = "solutions" if args.solutions else "exercises"
    exercise = importlib.import_module(f"course.{place}.{lesson.EXERCISE}")
    sys.exit(check(lesson, exercise, f"course/{place}/{lesson.EXERCISE}.py"))


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("lesson", type=int, choices=LESSONS, help="its number")
    parser.add_argument("--solutions", action="store_true", help="check ours in place of yours")
    return parser.parse_args()


def check(lesson, exercise, path: str) -> int:
    """Check an exercise by all checks of its lesson -> the exit code.

    Args:
        lesson: a module with CHECKS, functions that take the exercise and raise Wrong
        exercise: the module that was written
        path: of it, for the messages
    """
    for number, one in enumerate(lesson.CHECKS, 1):
        what = one.__doc__.removeprefix("Check that ").removesuffix(".")
        try:
            one(exercise)
        except NotImplementedError:
            print(f"{path}: not written yet. Lesson: course/{lesson.PAGE}")
            return 1
        except Wrong as wrong:
            print(f"{number}/{len(lesson.CHECKS)} not yet: {what}\n    {wrong}")
            return 1
        print(f"{number}/{len(lesson.CHECKS)} ok: {what}")
    print(f"{path}: passed")
    return 0


if __name__ == "__main__":
    common.run(main)
