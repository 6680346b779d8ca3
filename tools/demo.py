"""The main job, end to end: one encoder, one task, all heads dynamic and then all heads constant.

    python tools/demo.py

It runs `papa fit --config configs/demo.yaml` twice, first without the callback that calibrates and makes all heads
constant, and sets the scores side by side.
"""

from papa_lightning.cli import main
from papa_lightning.summary import FitSummary, summarize_fit

RUNS: dict[str, list[str]] = {"all heads dynamic": ["--trainer.callbacks=null"], "all heads constant": []}


def run(arguments: list[str]) -> FitSummary:
    """One fit; its logs, constants and checkpoint stay in lightning_logs."""
    cli = main(["fit", "--config", "configs/demo.yaml", *arguments])
    return summarize_fit(cli.trainer, cli.model)


def compare(results: dict[str, FitSummary]) -> str:
    """A table of the runs."""
    first = next(iter(results.values()))
    lines = [f"{'':<20}{first.score_name:>14}{'constant heads':>18}{'calibration':>14}{'training':>12}"]
    for name, result in results.items():
        lines.append(
            f"{name:<20}{result.score:>14.4f}{result.constant:>10} of {result.total:<4}"
            f"{result.calibration_seconds or 0.0:>12.1f} s{result.training_seconds:>10.1f} s"
        )
    *_, last = results.values()
    lines.append(f"relative change with all heads constant: {(last.score - first.score) / first.score:+.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n" + compare({name: run(arguments) for name, arguments in RUNS.items()}))
    print("all-MiniLM-L6-v2, 2,000 film-review sentences to train on and 500 to validate, one seed")
