"""The pictures of a run of the loop, drawn from files that are made up here."""

import pytest

import common
from tools import plot


@pytest.fixture
def run(tmp_path):
    """A base and two rounds, as far as the pictures read them: accuracies, one revised row, three steps of training."""
    revised = {"id": "a", "video": "v", "benchmark": "shapes", "task": "count", "options": ["two."], "answer": 0}
    for name, accuracy in (("base", 0.6), ("round1", 0.8), ("round2", 0.9)):
        scores = tmp_path / name / "eval"
        scores.mkdir(parents=True)
        common.write_json(scores / "results.json", {"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]})
        common.write_jsonl(scores / "pairs.jsonl", [revised | {"initial": "one.", "revised": "two."}])
        if name != "base":
            (tmp_path / name / "model").mkdir()
            keys = [key for panel in plot.PANELS.values() for key in panel]
            steps = [{"step": step, **dict.fromkeys(keys, 0.1 * step)} for step in (1, 2, 3)]
            common.write_jsonl(tmp_path / name / "model" / "metrics.jsonl", steps)
    return tmp_path


def test_both_pictures_are_drawn_and_show_what_the_files_say(run, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append((figure, path.name)))
    monkeypatch.setattr("sys.argv", ["plot", str(run), str(tmp_path / "pictures")])
    plot.main()
    (accuracy, first), (training, second) = figures
    assert (first, second) == ("loop.png", "training.png")

    [axes] = accuracy.axes
    heights = [line.get_ydata() for line in axes.lines]
    assert any(list(values) == pytest.approx([60, 80, 90]) for values in heights)
    assert "the base's own revisions: 100%" in [text.get_text() for text in axes.texts]
    # The steps of the second round follow those of the first
    curves = [list(line.get_xdata()) for line in training.axes[0].lines]
    assert curves[:2] == [[1, 2, 3], [4, 5, 6]]


def test_what_is_no_run_of_the_loop_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plot", str(tmp_path), str(tmp_path)])
    with pytest.raises(common.InputError, match="not a run of the loop"):
        plot.main()
