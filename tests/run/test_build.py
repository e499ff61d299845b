"""A run laid out and made ready, without the command around it."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from transformers import GPT2Config

from increlora_jax.errors import InputError
from increlora_jax.methods.table import METHODS
from increlora_jax.run import token_cache
from increlora_jax.run.build import plan_run, prepare_run
from increlora_jax.run.command_line import parse_run
from increlora_jax.training.together import members, pick
from tests.tiny import assert_same, without


@pytest.fixture
def make_plan(short_run):
    """Plan the short run with more words; `--seeds` take the place of its seed."""

    def make(*words):
        own = without(short_run, "--seed") if "--seeds" in words else short_run
        return plan_run(parse_run([*own, *words]))

    return make


def test_the_plan_counts_steps_and_ranks_without_weights(make_plan, tiny_model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    plan = make_plan("--model", str(bare))
    assert (plan.total_steps, plan.epoch_steps) == (14, 10)  # 160 examples, 16 a step
    assert plan.method.rank_budget == 24


def test_the_columns_of_the_data_are_those_that_the_flags_name(make_plan, tmp_path):
    rows = '[{"body": "good", "gold": true, "by": "x"}, {"body": "bad", "gold": false, "by": "y"}]'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.JSON").write_text(rows)
    words = ["--data-dir", str(tmp_path), "--text-column", "body", "--label-column", "gold"]
    data = make_plan("--task", "text", *words).data
    assert (data.train.first, data.kind.labels) == (["good", "bad"], ("false", "true"))
    assert "columns not read in train.JSON and dev.JSON: 'by'" in data.notes
    with pytest.raises(InputError, match=r"train.JSON:1: the columns here are 'body', 'gold'"):
        make_plan("--task", "text", *words[:2])


def test_epochs_become_steps_of_whole_batches(make_plan, short_run):
    words = list(short_run)
    at = words.index("--max-steps")
    del words[at : at + 2]
    config = parse_run([*words, "--num-train-epochs", "2.5", "--gradient-accumulation-steps", "3"])
    plan = plan_run(config)
    assert plan.epoch_steps == 4  # 160 examples, 48 a step
    assert plan.total_steps == 10


def test_steps_planned_before_are_kept(short_run):
    assert plan_run(parse_run(short_run), total_steps=33).total_steps == 33


def test_a_run_made_ready_evaluates_every_example(make_plan):
    run = prepare_run(make_plan())
    state = run.first_state()
    metrics = run.evaluator.metrics(state, run.parts.base)
    examples = len(run.plan.data.dev["dev"])
    assert examples == 41
    right = metrics["accuracy"] * examples
    assert right == pytest.approx(round(right))


def test_accumulation_cuts_the_same_batch_up(make_plan):
    whole = prepare_run(make_plan("--no-packing")).batch_at(3)
    flags = ("--train-batch-size", "4", "--gradient-accumulation-steps", "4")
    cut = prepare_run(make_plan("--no-packing", *flags)).batch_at(3)
    assert cut["input_ids"].shape == (4, 4, 16)
    for name, values in whole.items():
        np.testing.assert_array_equal(cut[name].reshape(values.shape), values)


def test_runs_that_train_together_are_made_ready_as_each_alone(make_plan, minilm_dir, tmp_path):
    flags = ("--modules-to-save", "classifier", "--model", str(minilm_dir), "--no-growth")
    flags = (*flags, "--no-packing")  # packed, the run with the fewest rows alone has fewer
    together = prepare_run(make_plan(*flags, "--seeds", "7,9"))
    state, batch = together.first_state(), together.batch_at(3)
    assert members(state) == (2,)
    for index, seed in enumerate(("7", "9")):
        alone = prepare_run(make_plan(*flags, "--seed", seed))
        assert_same(pick(state, index), alone.first_state())
        jax.tree.map(np.testing.assert_array_equal, together.starts[index].base, alone.parts.base)
        for name, values in alone.batch_at(3).items():
            np.testing.assert_array_equal(batch[name][index], values)


def test_batches_of_runs_that_train_together_are_padded_alike_and_cut_up_alike(make_plan):
    flags = ("--train-batch-size", "4", "--gradient-accumulation-steps", "4")
    flags = (*flags, "--no-packing", "--max-seq-length", "24")
    run = prepare_run(make_plan(*flags, "--seeds", "7,9"))
    assert run.batch_at(0)["input_ids"].shape == (2, 4, 4, 16)
    assert run.batch_at(0)["labels"].shape == (2, 4, 4)
    padded = prepare_run(make_plan("--pad-to-max-length", "--max-seq-length", "24"))
    assert padded.batch_at(0)["input_ids"].shape == (16, 24)


def test_the_seed_makes_the_adapters(make_plan):
    first, again, other = (
        prepare_run(make_plan("--seed", seed)).parts.adapters for seed in ("7", "7", "8")
    )
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))
    name = next(iter(first))
    assert not np.array_equal(first[name].A, other[name].A)


def test_what_the_files_lack_is_noted(make_plan, minilm_dir):
    notes = prepare_run(make_plan("--model", str(minilm_dir), "--no-growth")).notes
    assert any(note.startswith("new, not in the model's files: classifier.bias") for note in notes)
    assert any("not used: embeddings.position_ids" in note for note in notes)


def test_a_plan_that_cannot_finish_is_refused_before_weights_are_read(make_plan, tmp_path):
    with pytest.raises(InputError, match="--max-steps"):
        make_plan("--max-steps", "5")


def test_a_subfolder_is_the_model_that_it_holds(make_plan, tiny_model):
    outer = ("--model", str(tiny_model.parent), "--model-subfolder", tiny_model.name)
    assert make_plan(*outer).identity == make_plan().identity


def test_batches_of_a_block_of_steps_are_padded_alike(make_plan):
    run = prepare_run(make_plan("--steps-per-execution", "4", "--max-seq-length", "24"))
    single = prepare_run(make_plan("--max-seq-length", "24"))
    alone = [single.batch_at(step)["input_ids"] for step in range(14)]
    blocks = [run.batch_at(step)["input_ids"] for step in range(14)]
    for step, ids in enumerate(blocks):
        length = alone[step].shape[1]
        np.testing.assert_array_equal(ids[:, :length], alone[step])
        assert ids.shape[1] == max(
            single.batch_at(at)["input_ids"].shape[1] for at in run.plan.timetable.block(step)
        )


def test_examples_share_rows_by_default_where_the_model_can_read_that(make_plan, tmp_path):
    run = prepare_run(make_plan())
    assert run.plan.config.task.packing == "auto"
    assert run.batch_at.packed.places < 0.85 * 16 * 16
    assert "firsts" in run.batch_at(0)
    for word in ("--no-packing", "--pad-to-max-length"):
        assert "firsts" not in prepare_run(make_plan(word)).batch_at(0)


def test_packing_is_refused_for_a_model_that_judges_by_the_last_token(make_plan, tmp_path):
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=4, pad_token_id=0)
    config.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"--packing: GPT2ForSequenceClassification does not read"):
        make_plan("--packing", "--model", str(tmp_path / "gpt2"))


def test_kernels_are_refused_for_an_attention_that_they_do_not_compute(make_plan):
    with pytest.raises(InputError, match=r"--attn-implementation pallas: BertFor.* Leave it out"):
        make_plan("--attn-implementation", "pallas")


def test_packing_is_refused_where_devices_share_the_rows(short_run):
    command = [sys.executable, "-m", "increlora_jax.train", *short_run, "--packing"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ended = subprocess.run(
        [*command, "--mesh", "data=2"],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "--packing cannot be used if --mesh divides the rows" in ended.stderr


@pytest.fixture
def own_data(tmp_path):
    """Questions of a user's own, in a folder and a layout of his own."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for split, rows in {"train": 300, "dev": 30}.items():
        lines = [f"the film is {'good' if i % 2 else 'bad'}\t{i % 3}" for i in range(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return ["--task", "text", "--data-dir", str(folder), "--max-seq-length", "16"]


def test_growth_follows_the_length_of_a_run_on_own_data(own_data, tiny_model):
    plan = plan_run(parse_run([*own_data, "--model", str(tiny_model)]))
    assert plan.total_steps == 30  # 10 a epoch
    growth, training = plan.config.growth, plan.config.training
    # 12 ranks more, after step 1 and within 9 steps: 4 rounds of 3.
    assert (growth.top_h, growth.init_warmup, growth.incre_interval) == (3, 1, 2)
    assert training.warmup_steps == 2
    assert plan.method.rank_budget == 24


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lora-pattern"}))
def test_every_method_has_the_same_warmup_on_own_data(own_data, tiny_model, method):
    words = [*own_data, "--model", str(tiny_model), "--method", method, "--max-steps", "100"]
    assert plan_run(parse_run(words)).config.training.warmup_steps == 6


def test_an_explicit_schedule_is_obeyed_on_own_data(own_data, tiny_model):
    given = ["--top-h", "4", "--init-warmup", "3", "--incre-interval", "5", "--warmup-steps", "9"]
    plan = plan_run(parse_run([*own_data, "--model", str(tiny_model), *given]))
    growth = plan.config.growth
    assert (growth.top_h, growth.init_warmup, growth.incre_interval) == (4, 3, 5)
    assert plan.config.training.warmup_steps == 9


def test_a_recipe_scales_to_the_data_that_is_there(toy_data, tiny_model):
    words = ["--task", "sst2", "--data-dir", str(toy_data), "--model", str(tiny_model)]
    growth = plan_run(parse_run([*words, "--max-seq-length", "16"])).config.growth
    # 120 steps (24 epochs of 5) instead of the paper's 50,520, of which 1,000 are 2.
    assert (growth.top_h, growth.init_warmup, growth.incre_interval) == (5, 2, 2)
    half = plan_run(parse_run([*words, "--max-seq-length", "16", "--max-steps", "600"])).config
    assert (half.growth.incre_interval, half.training.warmup_steps) == (12, 12)


def test_warmups_that_differ_between_runs_stay_theirs(own_data, tiny_model):
    sweep = ["--sweep", "warmup_steps=3,5"]
    plan = plan_run(parse_run([*own_data, "--model", str(tiny_model), *sweep]))
    assert [member.config.training.warmup_steps for member in plan.members] == [3, 5]
    assert all(member.config.growth.top_h == 3 for member in plan.members)


def test_tokens_from_the_cache_are_those_of_this_run(make_plan, tiny_model, tmp_path, monkeypatch):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text()
    swapped = tokenizer.replace('"good"', '"*"').replace('"bad"', '"good"').replace('"*"', '"bad"')
    (other / "tokenizer.json").write_text(swapped)
    runs = [(), ("--max-seq-length", "5"), ("--model", str(other)), ()]
    fresh = [prepare_run(make_plan(*words)).encoded_train for words in runs]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "WORTH_KEEPING", 0.0)
    for words, expected in zip(runs, fresh, strict=True):
        found = prepare_run(make_plan(*words)).encoded_train
        for name, field in expected.ragged.items():
            np.testing.assert_array_equal(found.ragged[name].values, field.values)
            np.testing.assert_array_equal(found.ragged[name].offsets, field.offsets)
        np.testing.assert_array_equal(found.fixed["labels"], expected.fixed["labels"])
    assert len(list((tmp_path / "increlora_jax" / "tokens").iterdir())) == 6  # train and dev
