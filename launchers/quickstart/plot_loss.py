"""Draws the loss curve of a run: `plot_loss.py RUN_FOLDER` writes RUN_FOLDER/loss.png."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt


def main() -> None:
    """Read trainer_state.json and draw loss and learning rate over the steps."""
    folder = Path(sys.argv[1])
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    rows = [row for row in history if "loss" in row]
    steps = [row["step"] for row in rows]
    figure, loss_axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    loss_axis.plot(steps, [row["loss"] for row in rows], color="tab:blue", label="loss")
    loss_axis.set(xlabel="step", ylabel="loss (nats per supervised token)", yscale="log")
    loss_axis.grid(visible=True, alpha=0.3)
    rate_axis = loss_axis.twinx()
    rate_axis.plot(steps, [row["learning_rate"] for row in rows], color="tab:orange", linestyle=":", label="rate")
    rate_axis.set_ylabel("learning rate (dotted)")
    loss_axis.set_title(f"{len(rows)} logged steps, last loss {rows[-1]['loss']:.4f}")
    figure.savefig(folder / "loss.png", dpi=120)
    print(f"wrote {folder / 'loss.png'}")


if __name__ == "__main__":
    main()
