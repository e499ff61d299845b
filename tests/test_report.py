"""The report command on runs that the training command has written."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest
import yaml

import increlora_jax as il
from increlora_jax import train
from increlora_jax.run import report_command as report
from increlora_jax.run.command_line import parse_run
from increlora_jax.run.report_page import LiveReport, write_report
from increlora_jax.runtime.signals import Preempted
from tests.run.test_history import FINISHED, GROWTH, STEPS, write
from tests.training.test_loop import SignalAt

BAD = '<script>alert("&")</script>'


@pytest.fixture(scope="module")
def run(run_once):
    return run_once()


@pytest.fixture(scope="module")
def seeds(short_words, tmp_path_factory):
    """Return the folder of a sweep over two learning rates with two seeds each."""
    folder = tmp_path_factory.mktemp("report") / "all"
    at = short_words.index("--seed")
    words = [*short_words[:at], *short_words[at + 2 :]]
    at = words.index("--learning-rate")
    words = [*words[:at], *words[at + 2 :]]
    several = ["--seeds", "1,2", "--sweep", "learning_rate=1e-3,1e-2"]
    train.main([*words, *several, "--pad-to-max-length", "--output-dir", str(folder)])
    return folder


class Words(HTMLParser):
    """The text of a page, its tags, and all attributes that could load something."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.sources = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        loads = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "background")
        self.sources += [value for name, value in attrs if name in loads]

    def handle_data(self, data):
        self.text += data


def make(capsys, tmp_path, *runs, more=()):
    """Carry out the command; return the page."""
    output = tmp_path / "out" / "report.html"
    words = [word for run in runs for word in ("--run", str(run))]
    report.main([*words, "--output", str(output), *map(str, more)])
    assert capsys.readouterr().out.splitlines() == [str(output)]
    return output.read_text(encoding="utf-8")


def test_the_command_reports_a_finished_run(run, tmp_path):
    output = tmp_path / "report.html"
    words = ["--run", str(run), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "increlora_jax.report", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{output}\n", "")
    results = json.loads((run / "results.json").read_text())
    page = Words(output.read_text(encoding="utf-8"))
    assert f"{results['metrics']['accuracy']:.4f}" in page.text
    assert f"{results['trainable_parameters']['active']:,}" in page.text
    assert f"of a budget of {results['rank_budget']}" in page.text
    for section in ("Training", "Ranks", "Learning rate", "Speed and padding", "Environment"):
        assert section in page.text
    for name, value in results["versions"].items():
        assert name in page.text
        assert value in page.text


def test_every_setting_is_in_the_page(run, tmp_path, capsys):
    html = make(capsys, tmp_path, run)
    for name in yaml.safe_load((run / "config.yaml").read_text()):
        assert f'<th scope="row">{name}</th>' in html


def test_the_final_ranks_are_drawn_without_the_script(run, tmp_path, capsys):
    html = make(capsys, tmp_path, run)
    ranks = json.loads((run / "results.json").read_text())["ranks"]
    drawn = re.findall(r'<td class="cell[^>]*title="([^"]*)">(\d+)</td>', html)
    assert {name: int(rank) for name, rank in drawn} == ranks
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    growth = [line for line in lines if line["split"] == "growth"]
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    assert len(data["frames"]) == len(growth) > 3
    for frame, line in zip(data["frames"], growth, strict=True):
        assert sum(frame["ranks"]) == line["total_rank"]
        assert f"total rank {line['total_rank']} of" in frame["label"]


def test_the_page_loads_nothing(run, seeds, tmp_path, capsys):
    html = make(capsys, tmp_path, run, seeds)
    page = Words(html)
    assert page.sources == []
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", html)
    assert "default-src 'none'" in html


def test_a_sweep_is_one_curve_a_variant_with_its_range(seeds, tmp_path, capsys):
    html = make(capsys, tmp_path, seeds)
    for variant in ("learning_rate-1e-3", "learning_rate-1e-2"):
        assert f"{variant}: mean and range of 2 runs" in html
    assert html.count('class="band c0"') == html.count('class="band c1"') > 3
    results = json.loads((seeds / "results.json").read_text())
    for variant in results["variants"]:
        told = variant["metrics"]["accuracy"]
        assert f"{told['mean']:.4f} ± {told['sample_standard_deviation']:.4f}" in html
    (row,) = re.findall(r'<tr class="marked"><th scope="row">learning_rate</th>(.*?)</tr>', html)
    assert "0.001" in row
    assert "0.01" in row
    assert "<td>1, 2</td>" in html  # the seeds


def test_a_single_run_stands_beside_a_sweep(run, seeds, tmp_path, capsys):
    text = Words(make(capsys, tmp_path, run, seeds)).text
    assert "all: learning_rate-1e-3" in text
    assert text.count("Rank by layer and module") == 3


def test_a_run_that_trains_is_marked_and_may_be_torn(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "torn")
    (folder / "results.json").unlink()
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[: len(whole) * 2 // 3])
    page = Words(make(capsys, tmp_path, folder))
    assert "unfinished" in page.text
    assert "of 14" in page.text
    assert "Environment" not in page.text


def test_a_run_of_an_older_version_has_its_ranks_from_the_results(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "old")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"growth"' not in line]
    (folder / "metrics.jsonl").write_text("".join(kept))
    new, old = make(capsys, tmp_path, run), make(capsys, tmp_path, folder)
    data = re.compile(r'<script type="application/json">(.*?)</script>')
    assert data.search(new)[1] == data.search(old)[1]
    assert "Importance" in new
    assert "Importance" not in old


def test_words_of_a_run_are_text_and_never_markup(tmp_path, capsys):
    growth = [
        {**line, "ranks": {BAD: 1, f"h.0.{BAD}": line["total_rank"]}, "importance": {BAD: 0.1}}
        for line in GROWTH
    ]
    dev = [{"step": 5, "split": "dev", BAD: 0.5}]
    results = {**FINISHED, "versions": {BAD: BAD}, "platform": {BAD: BAD},
               "seconds_by_phase": {BAD: 1.0}}  # fmt: skip
    folder = write(tmp_path / BAD.replace("/", "-"), [*STEPS, *growth, *dev], results,
                   model=BAD, max_steps=9, warmup_steps=2)  # fmt: skip
    html = make(capsys, tmp_path, folder)
    page = Words(html)
    assert page.tags.count("script") == html.count("<script") == html.count("</script>") == 2
    assert "<script>alert" not in html
    assert page.text.count("alert") > 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "{empty}", "--output", "a.html"], "no run is here (config.yaml is missing)"),
        (["--run", "{run}", "--output", "a.pdf"], "not the name of an HTML file. End it in .html"),
        (["--run", "{run}", "--output", "{empty}"], "End it in .html"),
        (["--run", "{run}", "--output", "{page}"], "is a folder. Name a file in it"),
        (["--run", "{run}", "--run", "{run}", "--output", "a.html"], "given twice"),
        (["--run", "{run}"], "required: --output"),
        (["--output", "a.html"], "required: --run"),
        (["--run", "{run}", "--output", "a.html", "--png", "{run}/config.yaml"], "is a file"),
        (["--run", "{damaged}", "--output", "a.html"], "metrics.jsonl:3: not a line of metrics"),
    ],
)
def test_wrong_input_is_one_line_and_a_status(run, words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("empty", "page.html", "damaged")}
    places["empty"].mkdir()
    places["page.html"].mkdir()
    shutil.copytree(run, places["damaged"])
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (places["damaged"] / "metrics.jsonl").write_text("".join([*lines[:2], "{x\n", *lines[3:]]))
    names = {name.removesuffix(".html"): path for name, path in places.items()} | {"run": run}
    with pytest.raises(SystemExit) as ended:
        report.main([word.format(**names) for word in words])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "a.html").exists()


def test_an_error_leaves_the_old_report(run, tmp_path, capsys):
    output = tmp_path / "report.html"
    output.write_text("as it was")
    with pytest.raises(SystemExit):
        report.main(["--run", str(tmp_path), "--output", str(output)])
    assert output.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_has_its_own_status(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        report.main(["--run", str(run), "--output", str(tmp_path / "file" / "a.html")])
    assert ended.value.code == 4
    assert "cannot be created" in capsys.readouterr().err


def test_charts_are_drawn_as_png(run, seeds, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    html = make(capsys, tmp_path, run, seeds, more=["--png", tmp_path / "charts"])
    names = sorted(path.name for path in (tmp_path / "charts").iterdir())
    assert names[0] == "01-training-loss.png"
    assert len(names) == html.count('role="img"') + html.count('<table class="ranks">')
    for name in names:
        assert (tmp_path / "charts" / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_without_matplotlib_png_says_how_to_get_it(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "increlora_jax.page.png.find_spec",
        lambda name: None if name == "matplotlib" else find_spec(name),
    )
    with pytest.raises(SystemExit) as ended:
        report.main(["--run", str(run), "--output", str(tmp_path / "a.html"), "--png",
                     str(tmp_path / "png")])  # fmt: skip
    assert ended.value.code == 2
    assert "pip install 'increlora_jax[report]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_from_python_it_is_one_function_and_the_same_each_time(run, tmp_path):
    for name in ("a.html", "b.html"):
        write_report([run], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_command_does_not_hide_the_public_function():
    with pytest.raises(ImportError, match="is a command"):
        importlib.import_module("increlora_jax.report")
    assert il.report.__module__ == "increlora_jax.nn.report"


def test_training_writes_the_report_at_every_evaluation(short_run, tmp_path):
    page = tmp_path / "run" / "report.html"
    stop = SignalAt(8)
    with stop.listening(), pytest.raises(Preempted):
        train.train(parse_run([*short_run, "--report"]), stop)
    assert "unfinished" in Words(page.read_text()).text
    train.main([*short_run, "--report"])
    assert "finished" in Words(page.read_text()).text


def test_a_report_that_cannot_be_written_ends_no_run(run, tmp_path, capsys):
    live = LiveReport(run, tmp_path / "none.html" / "report.html")
    (tmp_path / "none.html").write_text("a file where a folder has to be")
    live.refresh()
    live.refresh()
    assert capsys.readouterr().err.count("note: --report ends here: ") == 1
