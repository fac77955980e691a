"""Writes the tables of docs/speed.md from what the benchmarks have kept in benchmarks/results.

  python -m benchmarks.tables

All that stands between the two marks is made here; a benchmark that has kept nothing is left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from seggpt_jax.files import write_whole

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
BEGIN, END = "<!-- begin: benchmarks/tables.py -->", "<!-- end -->"


def head(*columns: str) -> str:
  return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def line(*cells: str) -> str:
  return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
  """Three digits, in the unit that fits."""
  for unit, length in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= length:
      return f"{number(seconds / length)} {unit}"
  return f"{number(seconds / 1e-6)} µs"


def number(value: float) -> str:
  """Three digits, and none of 1e+03."""
  return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def spread(seconds: Sequence[float]) -> str:
  return f"{duration(min(seconds))} .. {duration(max(seconds))}"


def disturbed(row: dict[str, Any]) -> str:
  """What is said beside a time that is not to be trusted."""
  return f" (void: others took {row['others']:.0%} of the processors)" if report.is_disturbed(row) else ""


MODEL_HEAD = head(
  *("network", "dtype", "canvases", "work", "side", "median", "least .. most", "canvases/s", "TFLOP/s", "of peak"),
  *("peak memory", "time of ours / of this", "differs by"),
)


def model_line(row: dict[str, Any]) -> str:
  """A row of model.json."""
  setting = [row["variant"], row["dtype"], str(row["batch_size"]), row["work"], row["side"]]
  if "error" in row:
    return line(*setting, row["error"].replace("|", "/"), *[""] * 7)
  seconds = statistics.median(row["seconds"])
  rate = row["flops"] / seconds
  ratios = [
    f"{ratio:.2f}" if len(row["ratios"]) == 1 else f"{ratio:.2f} ({ours})" for ours, ratio in row["ratios"].items()
  ]
  if report.is_disturbed(row):
    ratios = ["void"]
  differs = "" if row["difference"] is None else f"{row['difference']:.0e}"
  return line(
    *setting,
    *(duration(seconds) + disturbed(row), spread(row["seconds"]), number(row["batch_size"] / seconds)),
    *(number(rate / 1e12), f"{rate / row['peak']:.1%}", f"{row['memory'] / 1e9:.2f} GB", ", ".join(ratios), differs),
  )


def by_device(results: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
  """The rows of each device under a line that says what it is."""
  return [
    (about(device, machine), [row for row in results["rows"] if row["device"] == device])
    for device, machine in results["machines"].items()
  ]


def about(device: str, machine: dict[str, Any]) -> str:
  versions = [f"{name} {value}" for name, value in machine.items() if name not in ("processor", "cores", "date")]
  return f"{device} ({machine['processor']}, {machine['cores']} cores; {', '.join(versions)}; {machine['date']}):"


def model_tables(results: dict[str, Any]) -> str:
  parts = ["## Forward pass, training step, inference"]
  for title, rows in by_device(results):
    peaks = {row["dtype"]: row["peak"] for row in rows if "peak" in row}
    measured = ", ".join(f"{dtype} {number(peak / 1e12)} TFLOP/s" for dtype, peak in peaks.items())
    parts += [title, "\n".join([MODEL_HEAD, *map(model_line, rows)])]
    parts += [f"Peak, as measured with large matrix products: {measured}."] if peaks else []
  return "\n\n".join(parts)


DECODE_HEAD = head(
  "colors",
  "seggpt_jax",
  "least .. most",
  "a loop with cdist, PyTorch",
  "least .. most",
  "ours / theirs",
  "wrong labels",
)


def decode_line(row: dict[str, Any]) -> str:
  """A row of decode.json."""
  ours, theirs = row["seconds"]["seggpt_jax"], row["seconds"]["torch"]
  times = [cell for seconds in (ours, theirs) for cell in (duration(statistics.median(seconds)), spread(seconds))]
  return line(
    str(row["colors"]) + disturbed(row), *times, f"{row['ratio']:.3f}", " and ".join(map(str, row["wrong"].values()))
  )


def decode_tables(results: dict[str, Any]) -> str:
  parts = ["## Decoding colors", "Four canvases of 896 x 448 pixels to labels; wrong labels, ours and theirs, are of"]
  parts[-1] += " those that float64 finds."
  for title, rows in by_device(results):
    parts += [title, "\n".join([DECODE_HEAD, *map(decode_line, rows)])]
  return "\n\n".join(parts)


GROWTH_HEAD = head("what grows", "to", "median", "for each", "GFLOP", "GFLOP/s", "exponent")


def growth_line(row: dict[str, Any]) -> str:
  """A row of growth.json."""
  seconds = statistics.median(row["seconds"])
  exponent = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
  times = (duration(seconds) + disturbed(row), duration(seconds / row["units"]))
  return line(
    row["grows"], row["size"], *times, number(row["flops"] / 1e9), number(row["flops"] / seconds / 1e9), exponent
  )


def growth_tables(results: dict[str, Any]) -> str:
  parts = [
    "## How cost grows",
    "The exponent is of the time, between a size and the one before: at 1, twice the size takes twice the time.",
    "![Seconds over prompts, canvases and tokens, both logarithmic](images/growth.png)",
  ]
  for title, rows in by_device(results):
    for variant, dtype in dict.fromkeys((row["variant"], row["dtype"]) for row in rows):
      found = [row for row in rows if (row["variant"], row["dtype"]) == (variant, dtype)]
      parts += [f"{variant}, {dtype}, {title}", "\n".join([GROWTH_HEAD, *map(growth_line, found)])]
  return "\n\n".join(parts)


def attention_line(row: dict[str, Any]) -> str:
  """A row of attention.json."""
  setting = [row["grid_of"], row["dtype"], str(row["batch"]), row["implementation"]]
  if "problem" in row:
    return line(*setting, row["problem"].replace("|", "/"), *[""] * 3)
  times = [duration(row[key]) for key in ("forward_seconds", "both_seconds")]
  return line(*setting, f"{row['error']:.0e}", *times, f"{row['temporary_bytes'] / 1e6:.0f} MB")


def attention_tables(results: dict[str, Any]) -> str:
  columns = ("grid of", "dtype", "canvases", "implementation", "error", "forward", "and backward", "memory")
  return "\n\n".join(
    [
      "## Attention",
      "The attention of one block, by each way to compute it (`model/attention.py`). An error is that of the norm,\n"
      "relative to the formula in float32, the largest of output and gradients; memory is beside operands and results.",
      about(results["machine"]["device"], {k: v for k, v in results["machine"].items() if k != "device"}),
      "\n".join([head(*columns), *map(attention_line, results["rows"])]),
    ]
  )


def inference_tables(results: dict[str, Any]) -> str:
  arguments, rates = results["arguments"], results["images_per_second"]
  queries, prompts, split = (arguments[name] for name in ("num_queries", "num_prompts", "split"))
  rows = [
    line(name, number(rate), f"{rates['many'] / rate:.2f} x", f"{results['differ'][name]:.2%}")
    for name, rate in rates.items()
  ]
  device = f"CPU, {results['machine']['cores']} cores"
  return "\n\n".join(
    [
      "## Images to labels",
      f"{queries} images, {prompts} prompts, split {split}. {about(device, results['machine'])}",
      "\n".join([head("way (benchmarks/inference.py)", "images/s", "`many` is faster by", "other labels"), *rows]),
    ]
  )


TABLES = {
  "model": model_tables,
  "decode": decode_tables,
  "inference": inference_tables,
  "attention": attention_tables,
  "growth": growth_tables,
}


def generate(results: Path) -> str:
  """All tables of the results in a folder."""
  paths = {name: results / f"{name}.json" for name in TABLES}
  return "\n\n".join(make(json.loads(paths[name].read_text())) for name, make in TABLES.items() if paths[name].exists())


def fill(page: str, tables: str) -> str:
  """The page with the tables between its marks."""
  before, rest = page.split(BEGIN)
  after = rest.split(END)[1]
  return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
  page = fill(PAGE.read_text(), generate(report.RESULTS))
  write_whole(PAGE, lambda file: file.write(page.encode()))
  print(f"written: {PAGE}")


if __name__ == "__main__":
  main()
