"""PEFT's side: LoRA on a classifier by a plain loop, from the process's start to the metric."""

import argparse
import csv
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()
ADAPTED = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
TEXTS = {"sst2": ("sentence",), "mrpc": ("sentence1", "sentence2")}


def read(path: Path, task: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """Read the texts and labels of a GLUE file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [tuple(row[c] for c in TEXTS[task]) for row in rows], [int(row["label"]) for row in rows]


def main() -> None:
    """Train and print one line: seconds in all, seconds of training, accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TEXTS, default="sst2")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(41)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts, labels = read(options.data_dir / "train.tsv", options.task)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=16,
        target_modules=ADAPTED,
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    model = get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, fused=True, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / options.steps)

    def batch_of(rows: list[int], texts: list[tuple[str, ...]]) -> dict[str, torch.Tensor]:
        columns = [list(column) for column in zip(*(texts[row] for row in rows), strict=True)]
        return tokenizer(
            *columns, truncation=True, max_length=128, padding=True, return_tensors="pt"
        )

    order: list[int] = []
    began = time.perf_counter()
    for _ in range(options.steps):
        if len(order) < 32:
            order += torch.randperm(len(texts)).tolist()
        rows, order = order[:32], order[32:]
        batch = batch_of(rows, texts)
        loss = model(**batch, labels=torch.tensor([labels[row] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    training = time.perf_counter() - began

    model.eval()
    texts, labels = read(options.data_dir / "dev.tsv", options.task)
    by_length = sorted(range(len(texts)), key=lambda row: sum(map(len, texts[row])))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(by_length), 64):
            rows = by_length[start : start + 64]
            found = model(**batch_of(rows, texts)).logits.argmax(-1).tolist()
            right += sum(a == labels[row] for a, row in zip(found, rows, strict=True))
    total = time.perf_counter() - BEGAN
    sys.stdout.write(f"{total:.1f} {training:.1f} {right / len(texts):.4f}\n")


if __name__ == "__main__":
    main()
