"""Make the data of `--task demo`: reviews in a small language, liked or not.

`python experiments/demo/make.py` writes `increlora_jax/bundled/demo/`, from `SEED` alone.
"""

import random
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

BUNDLED = Path(__file__).parents[2] / "increlora_jax" / "bundled" / "demo"
SEED = 41

# Strings are easier to read and to change than lists with one word a line.
THINGS = """
    acting camera cast chase comedy costumes dialogue drama ending film finale hero humour
    lighting movie music opening pace plot romance scenery score script story twist villain
""".split()  # noqa: SIM905
GOOD = """
    beautiful brilliant charming clever delightful fresh funny gripping lovely moving powerful
    superb touching warm witty wonderful
""".split()  # noqa: SIM905
BAD = """
    awful awkward boring confusing crude dreadful dull empty flat lame lazy poor predictable
    silly tedious weak
""".split()  # noqa: SIM905
VERBS = ("is", "was", "seems", "feels")
NEGATIONS = ("not", "never", "hardly")
EMPHASES = ("really", "truly", "very", "so")
CONNECTIVES = ("and", "but", "although", "though")
NEGATED_SHARE = 0.5  # no single word then predicts a review's label
EMPHASISED_SHARE = 0.25
SIZES = {"train": 3000, "dev": 1000}


def main() -> None:
    """Write the data."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=BUNDLED)
    write_data(parser.parse_args().output_dir)


def write_data(folder: Path) -> None:
    """Write both splits."""
    reviews = draw_reviews(random.Random(SEED))
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in SIZES.items():
        rows = (f"{review}\t{label}\n" for review, label in islice(reviews, count))
        text = "sentence\tlabel\n" + "".join(rows)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def draw_reviews(dice: random.Random) -> Iterator[tuple[str, int]]:
    """Yield reviews with labels (1: liked), equally many of each and all different."""
    seen = set()
    label = 0
    while True:
        review = draw_review(dice, bool(label))
        if review not in seen:
            seen.add(review)
            yield review, label
            label = 1 - label


def draw_review(dice: random.Random, is_liked: bool) -> str:
    """Draw one or two clauses; if two disagree, the one that is not conceded decides."""
    form = dice.choice(("alone", *CONNECTIVES))
    thing, other = dice.sample(THINGS, 2)
    verdict = draw_clause(dice, thing, is_liked)
    remark = draw_clause(dice, other, is_liked == (form == "and"))
    return {
        "alone": verdict,
        "and": f"{remark} and {verdict}",
        "but": f"{remark} , but {verdict}",
        "although": f"although {remark} , {verdict}",
        "though": f"{verdict} , though {remark}",
    }[form]


def draw_clause(dice: random.Random, thing: str, is_liked: bool) -> str:
    """Draw a clause that calls one thing good or bad, half of the time by negation."""
    is_negated = dice.random() < NEGATED_SHARE
    words = ["the", thing, dice.choice(VERBS)]
    if is_negated:
        words.append(dice.choice(NEGATIONS))
    if dice.random() < EMPHASISED_SHARE:
        words.append(dice.choice(EMPHASES))
    words.append(dice.choice(GOOD if is_liked != is_negated else BAD))
    return " ".join(words)


if __name__ == "__main__":
    main()
