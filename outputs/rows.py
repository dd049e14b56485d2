"""A JSONL output, which grows batch by batch of videos and resumes where it was stopped."""

import json
import os
import time
from collections import Counter, deque
from pathlib import Path

import common
from outputs.begin import begin, check_same_files, clear
from outputs.queue import Queue


class Output:
    """A JSONL output, appended to once per batch of videos; an incomplete one is resumed.

    Under torchrun the processes share the batches out among themselves, and the first one writes
    what all of them make (outputs/queue.py). A batch is done as a whole or not at all, since its
    videos are decoded together.

    Attributes:
        finished: whether there is nothing to do
        left: the batches that this process is to do, [(video, its rows), ...] each
        rows: the rows that are in the output; only the first process knows them
    """

    def __init__(self, path: Path, args, meta: dict, groups: list, again: tuple = ()):
        """Begin or resume an output for groups, [(video, its rows), ...].

        again: reasons, such as "unreadable_video". Videos that the output has as dropped for one
            of them are done again, also if it is finished
        """
        self.path = path
        self.meta = meta
        self.groups = groups
        self.again = again
        self.rows = []
        self.most_bad = args.max_bad * len(groups)
        self.begun = time.time()
        self.batches = common.cut_in_batches(groups, args.videos_per_batch)
        self.videos = {row["id"]: video for video, rows in groups for row in rows}
        self.sizes = [sum(len(rows) for _, rows in batch) for batch in self.batches]  # in rows
        self.number_of = {  # id of a row: number of its batch
            row["id"]: number
            for number, batch in enumerate(self.batches)
            for _, rows in batch
            for row in rows
        }
        self.queue = Queue()

        self.lock = None
        self.finished = False
        if self.queue.is_first:
            self.lock = begin(path, meta, args.overwrite, self.is_whole)
            self.finished = self.lock is None
            if self.finished:
                self.check_something_is_kept()
            self.replaces = args.overwrite and path.exists()  # until the first write
            if path.exists() and not self.finished and not self.replaces:
                self.resume()
        done = {self.videos[row["id"]] for row in self.rows}
        left = [
            number for number, batch in enumerate(self.batches) if not done.issuperset(dict(batch))
        ]
        self.finished, left, content = self.queue.tell([self.finished, left, meta["content"]])
        if not self.queue.is_first:
            check_same_files(content, meta)

        self.awaited = deque(left)  # batches that the first process has not written yet
        self.made = []  # rows of the batch that this process is at
        self.left = self.take_batches(left)
        self.progress = None

    def take_batches(self, left: list[int]):
        """Yield the batches that this process takes; the first one shows the progress of all."""
        n_videos = sum(len(self.batches[number]) for number in left)
        is_long = self.queue.is_first and n_videos > 1
        stage = Path(self.meta["stage"]).stem
        self.progress = common.progress(
            total=n_videos, desc=stage, unit="video", disable=not is_long
        )
        common.work_has_begun.set()
        for number in self.queue.take(left):
            yield self.batches[number]

    def resume(self):
        """Keep the rows of complete batches that are not to be done again; remove the others."""
        rows = common.read_jsonl(self.path, ("id", "video"), incomplete=True)
        complete = self.check_rows_belong(rows)
        undone = self.find_undone(rows)
        # The last video may lack rows. If it is unreadable, it may be the one that ended the run
        if rows and (not complete or "error" in rows[-1]):
            undone.add(self.videos[rows[-1]["id"]])
        done = {self.videos[row["id"]] for row in rows} - undone
        for batch in self.batches:
            if not done.issuperset(dict(batch)):
                done -= set(dict(batch))
        self.rows = [row for row in rows if self.videos[row["id"]] in done]

        if self.rows == rows[: len(self.rows)]:
            lines = self.path.read_bytes().splitlines(keepends=True)
            n_bytes = sum(len(line) for line in lines[: len(self.rows)])
            os.truncate(self.path, n_bytes)
        else:
            common.write_jsonl(self.path, self.rows)
        n_videos = len(common.group_by_video(self.rows))
        print(f"resuming {self.path}: {n_videos} videos are complete, what is left is done now")

    def check_rows_belong(self, rows: list[dict]) -> bool:
        """Check that rows are those of the groups: videos in any order, but the rows of each whole.

        Videos that were done again stand behind the others until the output is finished.

        Returns:
            whether the last video is complete

        Raises:
            InputError: names the line that does not belong there
        """
        firsts = {rows_of_video[0]["id"] for _, rows_of_video in self.groups}
        following = {}  # id of a row -> id of the next row about its video; None after the last
        for _, rows_of_video in self.groups:
            ids = [row["id"] for row in rows_of_video]
            following.update(zip(ids, [*ids[1:], None]))

        next_id = None  # None: the first row of any video
        for number, row in enumerate(rows, 1):
            belongs = row["id"] in firsts if next_id is None else row["id"] == next_id
            # Where a missing video is looked for is not where it is found
            is_missing = row.get("dropped") == "missing_video"
            if not belongs or not (is_missing or row["video"] == self.videos[row["id"]]):
                raise common.InputError(
                    f"{self.path}, line {number}: not the row that belongs here; "
                    "restore it, or start anew with --overwrite"
                )
            next_id = following[row["id"]]
        return next_id is None

    def find_undone(self, rows: list[dict]) -> set[str]:
        """Find the videos that are to be done again: dropped for a reason that may be gone."""
        dropped_before = set()  # by an earlier stage, or since a video is still missing
        for _, rows_of_video in self.groups:
            dropped_before.update(row["id"] for row in rows_of_video if "dropped" in row)
        undone = set()
        for row in rows:
            is_dropped_here = row["id"] in self.videos and row["id"] not in dropped_before
            if is_dropped_here and row.get("dropped") in self.again:
                undone.add(self.videos[row["id"]])
        return undone

    def is_whole(self) -> bool:
        """Say whether a finished output has no video that is to be done again."""
        if not self.again:
            return True  # without a look at the rows, which may have been edited since
        return not self.find_undone(common.read_jsonl(self.path, ("id", "video")))

    def write(self, rows: list[dict]):
        """Take the next rows of a batch; once it is whole, it is appended as soon as it is next.

        Raises:
            InputError: if too many videos are unreadable
        """
        self.made += rows
        number = self.number_of[self.made[0]["id"]]
        if len(self.made) < self.sizes[number]:
            return
        self.queue.send(number, self.made)
        self.made = []
        if self.queue.is_first:
            while self.awaited and self.queue.has_arrived(self.awaited[0]):
                self.append(self.queue.receive(self.awaited[0]))
                self.awaited.popleft()

    def collect(self) -> list[dict]:
        """Wait for what the other processes are at -> all rows, in order; [] in those."""
        if not self.queue.is_first:
            return []
        while self.awaited:
            self.append(self.queue.receive(self.awaited[0]))
            self.awaited.popleft()
        self.put_in_order()
        return self.rows

    def append(self, rows: list[dict]):
        """Append the rows of a batch; InputError if too many videos are unreadable."""
        n_bad = 0
        if any("error" in row for row in rows):
            n_bad = len({row["video"] for row in [*self.rows, *rows] if "error" in row})
            if n_bad > self.most_bad:
                self.close_progress()
                self.check_something_is_readable(rows)
        if self.replaces:
            clear(self.path, self.meta)
            self.replaces = False

        lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
        self.rows += rows
        if self.progress:
            self.progress.update(len(common.group_by_video(rows)))
        if n_bad > self.most_bad:
            raise common.InputError(
                f"{n_bad} videos are unreadable, more than --max-bad allows; "
                f"their errors are in {self.path} under `error`. Once they can be read, "
                "--retry-unreadable reads them again"
            )

    def close_progress(self):
        """Leave the progress bar as it is, so that what is printed next stands below it."""
        if self.progress:
            self.progress.close()

    def check_something_is_readable(self, rows: list[dict]):
        """Raise InputError if no video could be read so far: most likely a path is mistyped.

        Nothing is left behind then that would block the corrected command.
        """
        errors = [row["error"] for row in [*self.rows, *rows] if "error" in row]
        if len(errors) < len(self.rows) + len(rows):
            return
        if not self.replaces:
            self.path.unlink(missing_ok=True)
            common.meta_path(self.path).unlink(missing_ok=True)
        n_videos = len({row["video"] for row in [*self.rows, *rows]})
        raise common.InputError(
            f"none of the first {n_videos} videos can be read, which is more than --max-bad "
            f"allows: {errors[0]}. Nothing is kept; "
            "are --input and --videos right?"
        )

    def put_in_order(self):
        """Put the rows into the order of the groups, which videos that were done again are not."""
        place = {id: number for number, id in enumerate(self.videos)}
        ordered = sorted(self.rows, key=lambda row: place[row["id"]])
        if ordered != self.rows:
            self.rows = ordered
            common.write_jsonl(self.path, ordered)

    def finish(self, kept: str):
        """Note in meta.json that the output is finished, and account for all of its rows.

        kept: what the rows are called that were not dropped, such as "pairs":
            rows in 12 = 7 pairs + 5 dropped (unchanged 3, no_error_found 2)

        Raises:
            InputError: if all rows were dropped; the output is finished nevertheless
        """
        self.collect()
        if not self.queue.is_first:
            return
        self.close_progress()
        if self.replaces:
            clear(self.path, self.meta)
        self.path.touch()
        seconds = round(time.time() - self.begun, 1)
        finished = account_for(self.rows, kept) | {"seconds": seconds}
        common.write_json(common.meta_path(self.path), self.meta | {"finished": finished})
        print(f"{self.path}: {finished['account']}")
        n_unreadable = len({row["video"] for row in self.rows if "error" in row})
        if n_unreadable:
            print(f"{n_unreadable} videos are unreadable; --retry-unreadable reads them again")
        n_partial = len({row["video"] for row in self.rows if "warning" in row})
        if n_partial:
            print(f"{n_partial} videos cannot be decoded to their end: `warning` in their rows")
        self.check_something_is_kept()

    def check_something_is_kept(self):
        """Raise InputError if all rows of a finished output were dropped."""
        [finished] = common.read_keys(common.meta_path(self.path), "finished")
        if finished.get("kept") == 0:
            raise common.InputError(
                f"{self.path}: {finished['account']}. It is finished, but has nothing for the "
                f"next stage; {common.WHAT_HELPS}"
            )


def account_for(rows: list[dict], kept: str) -> dict:
    """Account for all rows of an output, for its meta.json: {"account": ..., "kept": ...}.

    kept: see Output.finish
    """
    drops = Counter(row["dropped"] for row in rows if "dropped" in row)
    n_kept = len(rows) - drops.total()
    account = f"rows in {len(rows)} = {n_kept} {kept} + {drops.total()} dropped"
    if drops:
        account += f" ({common.list_reasons(drops)})"
    return {"account": account, "kept": n_kept}
