"""The report in a browser: no errors, no requests, a slider that works, nothing that overlaps."""

import json
import re

import pytest

from increlora_jax.run.report_page import write_report
from tests.browser import Browser
from tests.run.test_history import write

OVERLAPS = """
(() => {
  const found = [];
  const box = (part) => part.getBoundingClientRect();
  const meet = (a, b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const compare = (parts, say) => parts.forEach((part, index) => {
    for (const other of parts.slice(index + 1))
      if (meet(box(part), box(other))) found.push(`${say(part)} | ${say(other)}`);
  });
  for (const svg of document.querySelectorAll("svg")) {
    const edge = box(svg), texts = [...svg.querySelectorAll("text")];
    for (const text of texts) {
      const own = box(text);
      if (own.left < edge.left - 1 || own.right > edge.right + 1
          || own.top < edge.top - 1 || own.bottom > edge.bottom + 1)
        found.push(`outside: ${text.textContent}`);
    }
    compare(texts, (text) => text.textContent);
  }
  const width = document.documentElement.clientWidth;
  const parts = "h1, h2, figure, figcaption, dl, li, .note, output, input";
  for (const part of document.querySelectorAll(parts))
    if (box(part).right > width + 0.5) found.push(`too wide: ${part.outerHTML.slice(0, 80)}`);
  compare([...document.querySelectorAll("figure, dl")], (part) => part.outerHTML.slice(0, 80));
  return found;
})()
"""
CONTRAST = """
(() => {
  const paper = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (color) => {
    paper.clearRect(0, 0, 1, 1); paper.fillStyle = color; paper.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...paper.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return Math.min(...[...document.querySelectorAll("td.cell")].map((cell) => {
    const style = getComputedStyle(cell);
    const [one, other] = [light(style.color), light(style.backgroundColor)];
    return Math.max(one, other) / Math.min(one, other);
  }));
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(run_once, tmp_path_factory):
    """Return the report of a small run, and of a large one that trains."""
    folder = tmp_path_factory.mktemp("pages")
    modules = [f"model.layers.{n}.{kind}_proj" for n in range(32) for kind in "qkvogud"]
    train = [
        {"step": n, "split": "train", "loss": 1e4 / (n + 1), "orth_loss": n % 9, "grad_norm": 1e-7,
         "learning_rate": 1e-3, "total_rank": 224 + n, "tokens": 9}
        for n in range(3000)
    ]  # fmt: skip
    growth = [
        {"step": 100 * n, "split": "growth", "total_rank": 225 * (n + 1),
         "parameters": 10**6 * (n + 1),
         "ranks": {name: 1 + (n * i) % 24 for i, name in enumerate([*modules, "lm_head"])},
         "importance": {name: 10.0**-(1 + i % 12) for i, name in enumerate(modules)}}
        for n in range(20)
    ]  # fmt: skip
    large = write(folder / "a-run-with-quite-a-long-name-of-its-folder", [*train, *growth],
                  max_steps=3000, warmup_steps=50)  # fmt: skip
    write_report([run_once(), large], folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_overlaps_fails_or_is_loaded(browser, page, width, is_dark):
    browser.show(page, width, is_dark=is_dark)
    assert browser.run(OVERLAPS) == []
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run(CONTRAST) > 4.5
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 60) is is_dark
    assert browser.problems() == []
    assert browser.requests() == [page.absolute().as_uri()]


def test_the_slider_changes_ranks_and_label_by_keys(browser, page):
    browser.show(page, 1400)
    frames = json.loads(browser.run("document.querySelector('.heat script').textContent"))["frames"]
    shown = """(() => {
      const heat = document.querySelector(".heat");
      return [heat.querySelector("output").textContent,
              heat.querySelector("input").getAttribute("aria-valuetext"),
              [...heat.querySelectorAll("td.cell")].map((cell) => Number(cell.textContent))];
    })()"""
    browser.run("document.querySelector('.heat input').focus()")
    for key, index in (("End", -1), ("ArrowLeft", -2), ("Home", 0), ("ArrowRight", 1)):
        browser.press(key)
        label, said, ranks = browser.run(shown)
        assert label == said == frames[index]["label"]
        assert ranks == frames[index]["ranks"]
    assert frames[0]["label"].startswith("before growth · total rank")
    assert frames[0]["ranks"] != frames[-1]["ranks"]
    assert browser.problems() == []


def test_the_page_is_whole_without_its_script(browser, page, tmp_path):
    html = re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    (tmp_path / "plain.html").write_text(html, encoding="utf-8")
    browser.show(tmp_path / "plain.html", 1400)
    visible = "getComputedStyle(document.querySelector('.heat input')).display"
    assert browser.run(visible) == "none"
    cells = browser.run("""[...document.querySelectorAll(".heat")].map(
      (heat) => heat.querySelectorAll("td.cell").length)""")
    assert cells == [12, 225]
    assert browser.run(OVERLAPS) == []


def test_every_drawing_has_a_name(browser, page):
    browser.show(page, 1400)
    assert browser.run("""[...document.querySelectorAll("svg")].every(
      (svg) => svg.getAttribute("aria-label") && svg.querySelector("title").textContent)""")
    assert browser.run("""[...document.querySelectorAll("input")].every(
      (input) => input.getAttribute("aria-label"))""")
