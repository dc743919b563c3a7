"""Draw the curves of one or several runs into one picture.

python -m train.report runs/adapted runs/scratch --out loss.png
"""

from pathlib import Path
from typing import Any

from qwen3llada_jax import command_line
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.pictures import pyplot
from train.metrics import read_lines


def main() -> None:
    parser = command_line.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("loss.png"), help="picture to write (default: %(default)s)")
    flags = parser.parse()
    if flags.out.suffix != ".png":
        raise InputError(f"--out {flags.out}: unknown kind of picture; use .png")
    names = [run.name for run in flags.runs]
    unique = len(set(names)) == len(names)
    curves = {run.name if unique else str(run): read_lines(run / "metrics.jsonl") for run in flags.runs}
    draw(curves, flags.out)
    for name, records in curves.items():
        held_out = [r for r in records if r.get("eval_loss") is not None]
        if held_out:
            last = held_out[-1]
            print(f"{name}: held-out loss {last['eval_loss']:.4f} after {last['step']} updates")
    print(f"{flags.out}: losses of {len(curves)} run(s)")


def draw(curves: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """The cross-entropy of noised tokens while training (left) and the held-out loss (right), by updates."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (
        (left, "ce", "training: cross-entropy of noised tokens"),
        (right, "eval_loss", "held out: loss (bound on −log p, nats per token)"),
    )
    for axis, field, title in panels:
        for name, records in curves.items():
            points = [(r["step"], r[field]) for r in records if r.get(field) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, label=name, marker="o" if field == "eval_loss" else None, markersize=4)
        axis.set(title=title, xlabel="updates")
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        figure.savefig(part, dpi=120, format="png")
        part.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    plt.close(figure)


if __name__ == "__main__":
    command_line.run(main)
