"""Search on the examples of docs/your-own-data.md, beside scikit-learn's MLPClassifier.

Both draw 20 configurations from the space of `search=mlp`, train them on the same training examples
and choose by the accuracy on the same validation examples. scikit-learn's side is a random search
in one process that joblib spreads over the cores.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.neural_network import MLPClassifier

from benchmarks.commands import REPOSITORY, seconds_of
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data import splits

PAGE = REPOSITORY / "docs" / "your-own-data.md"
TRIALS = 20
# By the script that makes the data: the keys of `data`.
EXAMPLES = {
    "digits": ("data=arrays", "data.path=digits.npz"),
    "patients": ("data=table", "data.path=patients.csv", "data.target=diagnosis"),
    "shapes": ("data=images", "data.path=shapes"),
}


def measure(rounds: int) -> dict[str, Any]:
    """Measure both searches on each example, in turns.

    Args:
        rounds: the number of searches of each, with different seeds.

    Returns:
        By example: seconds and best validation accuracies of both sides by round.
    """
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        _make_examples(folder)
        for name, keys in EXAMPLES.items():
            one: dict[str, list[float]] = {
                key: [] for key in ("ours", "theirs", "our_best", "their_best")
            }
            results[name] = one
            for seed in range(rounds):
                sweep = Path(folder, "multirun", f"{name}{seed}")
                one["ours"].append(
                    seconds_of(
                        folder, "-m", "fmnist_sweep.train", "-m", "search=mlp", *keys,
                        f"name={sweep.name}", f"seed={seed}", f"hydra.sweeper.n_trials={TRIALS}",
                    )
                )  # fmt: skip
                one["our_best"].append(float(pd.read_csv(sweep / "sweep.csv").objective.max()))
                out = Path(folder, "theirs")
                one["theirs"].append(
                    seconds_of(folder, "-m", "benchmarks.own_data", name, str(seed), str(out))
                )
                one["their_best"].append(float(out.read_text(encoding="utf-8")))
    return results


def _make_examples(folder: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in EXAMPLES:
        code = re.search(rf"```python\n(# {name}\.py\n.*?)```", text, re.DOTALL)
        assert code, f"{PAGE} has no {name}.py"
        subprocess.run([sys.executable, "-c", code[1]], cwd=folder, check=True)


def random_search(name: str, seed: int) -> float:
    """Return the best validation accuracy of scikit-learn's search, in the folder of the data."""
    values = dict(key.removeprefix("data.").split("=") for key in EXAMPLES[name])
    values["kind"] = values.pop("data")
    config = DataConfig.model_validate(
        {
            **values,
            "normalise": "standardise" if name == "patients" else "minmax",
            "validation": "held_out",
            "val_size": 0.2,
            "train_size": None,
            "classes": None,
            "split_seed": 0,
            "batch_size": 32,
        }
    )
    data = splits.load(config, torch.device("cpu"), test=False)
    train, validation = (
        (data.format.scaling(inputs).flatten(1).numpy(), labels.numpy())
        for inputs, labels in (part.slice(0, len(part)) for part in (data.train, data.validation))
    )
    draws = np.random.default_rng(seed)
    drawn = [
        {
            "learning_rate_init": 10 ** draws.uniform(-4, -2),
            "batch_size": int(draws.choice([16, 32, 64, 128])),
            "hidden_layer_sizes": (width := 64 * int(draws.integers(1, 9)), width // 2),
            "max_iter": int(draws.integers(5, 51)),
        }
        for _ in range(TRIALS)
    ]
    scores: list[float] = joblib.Parallel(n_jobs=-1)(
        joblib.delayed(_score)(one, seed, train, validation) for one in drawn
    )
    return max(scores)


def _score(arguments: dict[str, Any], seed: int, train: Any, validation: Any) -> float:
    warnings.simplefilter("ignore")  # it warns of every training that ends with max_iter
    model = MLPClassifier(**arguments, alpha=0, random_state=seed, n_iter_no_change=100)
    return float(model.fit(*train).score(*validation))


def table(results: dict[str, Any]) -> str:
    """Return the medians of seconds and of best accuracies as Markdown."""
    lines = [
        "| data | search=mlp, s | best | MLPClassifier, s | best |",
        "|---|---|---|---|---|",
    ]
    for name, one in results.items():
        medians = (
            statistics.median(one[key]) for key in ("ours", "our_best", "theirs", "their_best")
        )
        ours, best, theirs, their_best = medians
        lines.append(f"| {name} | {ours:.0f} | {best:.4f} | {theirs:.0f} | {their_best:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    _, example, number, target = sys.argv
    Path(target).write_text(str(random_search(example, int(number))), encoding="utf-8")
