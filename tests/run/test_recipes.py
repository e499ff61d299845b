"""The paper's table, copied by hand, against the settings of a command line."""

import pytest

from increlora_jax.run.command_line import parse_run
from increlora_jax.run.recipes import FOLLOWS_LENGTH, IN_STEPS, RECIPES, TRAIN_ROWS, recipe, scale

TABLE = """
| task | rank | lr | epochs | max len | α | adapter dropout | cls dropout | weight decay | γ | warmup = init_warmup = interval | top_h | growth |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
| cola | 2 / 8 | 8e-4 / 1e-3 | 25 | 64 | 32 | 0 | 0.1 | 0 | 0.1 | 100 | 3 / 3 | 1 / 4 |
| mnli | 2 / 8 | 3.5e-4 / 5e-4 | 9 / 7 | 256 | 16 | 0.2 / 0 | 0.15 | 0 | 0.1 | 1000 | 2 / 18 | 1 / 1 |
| mrpc | 2 / 8 | 1e-3 | 30 | 320 | 32 | 0.3 | 0 | 0.01 | 0.1 | 100 | 6 / 10 | 1 / 4 |
| qnli | 2 / 8 | 7e-4 / 9e-4 | 5 | 512 | 32 | 0 | 0.1 | 0.01 | 0.1 | 500 | 12 / 22 | 1 / 4 |
| qqp | 2 / 8 | 4e-4 / 6e-4 | 7 | 320 | 16 | 0 | 0.15 | 0.01 | 0.1 | 1000 | 3 / 3 | 1 / 4 |
| rte | 2 / 8 | 1.2e-3 | 50 | 320 | 32 | 0 | 0.2 | 0.01 | 0.3 | 100 | 5 / 9 | 1 / 4 |
| sst2 | 2 / 8 | 8e-4 | 24 | 128 | 16 | 0.1 / 0.3 | 0 | 0.01 | 0.1 | 1000 | 5 / 6 | 1 / 4 |
| stsb | 2 | 2.2e-3 | 25 | 128 | 32 | 0 | 0.2 | 0.1 | 0.3 | 100 | 4 | 1 |
"""  # noqa: E501

FLAGS = {
    "lr": ["learning_rate"],
    "epochs": ["num_train_epochs"],
    "max len": ["max_seq_length"],
    "α": ["lora_alpha"],
    "adapter dropout": ["lora_dropout"],
    "cls dropout": ["cls_dropout"],
    "weight decay": ["weight_decay"],
    "γ": ["reg_orth_coef"],
    "warmup = init_warmup = interval": ["warmup_steps", "init_warmup", "incre_interval"],
    "top_h": ["top_h"],
    "growth": ["incre_rank_num"],
}


def rows():
    """(task, rank, {flag: value}) of every row and rank of the table."""
    header, _, *body = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()
    ]
    for cells in body:
        row = dict(zip(header, cells, strict=True))
        ranks = row["rank"].split(" / ")
        for index, rank in enumerate(ranks):
            values = {}
            for column, flags in FLAGS.items():
                choices = row[column].split(" / ")
                values |= dict.fromkeys(flags, float(choices[min(index, len(choices) - 1)]))
            yield row["task"], rank, values


@pytest.mark.parametrize(("task", "rank", "expected"), list(rows()))
def test_a_task_and_a_rank_resolve_to_their_row(task, rank, expected):
    flat = parse_run(["--task", task, "--target-rank", rank]).flat()
    assert {name: flat[name] for name in expected} == expected
    assert recipe(task, float(rank)).keys() == expected.keys()


def test_table_has_every_recipe():
    assert {task for task, *_ in rows()} == RECIPES.keys()


def test_rank_two_is_the_default_and_larger_ranks_below_eight_follow_it():
    assert parse_run(["--task", "mnli"]) == parse_run(["--task", "mnli", "--target-rank", "2"])
    assert recipe("mnli", 7.9) == recipe("mnli", 2)
    assert recipe("mnli", 12) == recipe("mnli", 8) != recipe("mnli", 2)


@pytest.mark.parametrize("task", ["wnli", "text", "nonsense"])
def test_tasks_without_a_recipe_keep_the_defaults(task):
    assert recipe(task, 2) == {}


# Values that no recipe has.
OTHERS = {
    "learning_rate": 0.5, "num_train_epochs": 77, "max_seq_length": 77, "lora_alpha": 77,
    "lora_dropout": 0.75, "cls_dropout": 0.75, "weight_decay": 0.75, "reg_orth_coef": 0.75,
    "warmup_steps": 77, "init_warmup": 77, "incre_interval": 77, "top_h": 77, "incre_rank_num": 77,
}  # fmt: skip


@pytest.mark.parametrize("task", [*sorted(RECIPES), "demo"])
def test_every_setting_of_a_recipe_gives_way_to_its_flag_alone(task):
    settings = recipe(task, 2)
    flat = parse_run(["--task", task]).flat()
    assert {name: flat[name] for name in settings} == settings
    for name in settings.keys() & OTHERS.keys():
        chosen = parse_run(["--task", task, f"--{name}", str(OTHERS[name])]).flat()
        assert chosen == flat | {name: OTHERS[name]}


def steps_of(task, rank):
    """The steps of the paper's run: all of its epochs over GLUE's training split."""
    return round(recipe(task, rank)["num_train_epochs"] * -(-TRAIN_ROWS[task] // 32))


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize("rank", [2, 8])
def test_growth_is_the_papers_at_the_papers_length_and_scales_with_the_run(task, rank):
    settings, steps = recipe(task, rank), steps_of(task, rank)
    same = scale(task, rank, steps)
    assert same == {name: settings[name] for name in FOLLOWS_LENGTH}
    half = scale(task, rank, steps // 2)
    assert half["top_h"] == settings["top_h"]
    assert all(abs(half[name] - settings[name] / 2) <= 1 for name in IN_STEPS)


def test_a_run_too_short_for_an_interval_of_the_paper_chooses_its_own():
    assert set(scale("sst2", 2, 50).values()) == {"auto"}
    assert scale("sst2", 2, 51)["incre_interval"] == 1
    assert scale("text", 2, 600) == scale("wnli", 2, 600) == {}


@pytest.mark.parametrize(
    ("words", "followed"),
    [
        (["--task", "rte"], {*FOLLOWS_LENGTH}),
        (["--task", "rte", "--top-h", "5", "--warmup-steps", "100"],
         {"init_warmup", "incre_interval"}),
        (["--task", "text"], set()),
    ],
)  # fmt: skip
def test_a_setting_that_is_given_does_not_follow_the_run_even_if_it_equals_the_recipes(
    words, followed
):
    assert parse_run(words).unsaid == followed | {"max_seq_length"}


def test_a_setting_of_a_file_does_not_follow_the_run(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("task: rte\ninit_warmup: 100\n", encoding="utf-8")
    unsaid = parse_run(["--config", str(file)]).unsaid
    assert unsaid == {*FOLLOWS_LENGTH, "max_seq_length"} - {"init_warmup"}
