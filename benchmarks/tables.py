"""Writes the tables of docs/speed.md, chips.md, export.md and reliability.md from benchmarks/results.

  python -m benchmarks.tables

Everything between the two marks on a page is generated here. Benchmarks without a file are left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import absent, report
from benchmarks.collectives import Collective
from seggpt_jax.files import write_whole

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- begin: benchmarks/tables.py -->", "<!-- end -->"


def head(*columns: str) -> str:
  return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def line(*cells: str) -> str:
  return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
  """Returns a duration with three digits, in s, ms or µs."""
  for unit, length in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= length:
      return f"{number(seconds / length)} {unit}"
  return f"{number(seconds / 1e-6)} µs"


def number(value: float) -> str:
  """Returns a number with three digits, never in the form 1e+03."""
  return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def spread(seconds: Sequence[float]) -> str:
  return f"{duration(min(seconds))} .. {duration(max(seconds))}"


def disturbed(row: dict[str, Any]) -> str:
  """Returns a remark for times of a row that was disturbed by other processes; else an empty text."""
  return f" (void: others took {row['others']:.0%} of the processors)" if report.is_disturbed(row) else ""


MODEL_HEAD = head(
  *("network", "dtype", "canvases", "work", "side", "median", "least .. most", "canvases/s", "TFLOP/s", "of peak"),
  *("peak memory", "time of ours / of this", "differs by"),
)


def model_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in model.json."""
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
  """Returns the rows of each device, with a line that describes the device."""
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
  """Returns the table line of a row in decode.json."""
  ours, theirs = row["seconds"]["seggpt_jax"], row["seconds"]["torch"]
  times = [cell for seconds in (ours, theirs) for cell in (duration(statistics.median(seconds)), spread(seconds))]
  return line(
    str(row["colors"]) + disturbed(row), *times, f"{row['ratio']:.3f}", " and ".join(map(str, row["wrong"].values()))
  )


def decode_tables(results: dict[str, Any]) -> str:
  parts = ["## Decoding colors", "Four canvases of 896 x 448 pixels are decoded to labels. A label is wrong if float64"]
  parts[-1] += " gives another one; the numbers are of both sides."
  for title, rows in by_device(results):
    parts += [title, "\n".join([DECODE_HEAD, *map(decode_line, rows)])]
  return "\n\n".join(parts)


GROWTH_HEAD = head("what grows", "to", "median", "for each", "GFLOP", "GFLOP/s", "exponent")


def growth_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in growth.json."""
  seconds = statistics.median(row["seconds"])
  exponent = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
  times = (duration(seconds) + disturbed(row), duration(seconds / row["units"]))
  return line(
    row["grows"], row["size"], *times, number(row["flops"] / 1e9), number(row["flops"] / seconds / 1e9), exponent
  )


def growth_tables(results: dict[str, Any]) -> str:
  parts = [
    "## How cost grows",
    "The exponent describes how time grows from one size to the next: at 1, twice the size takes twice the time.",
    "![Seconds over prompts, canvases and tokens, both logarithmic](images/growth.png)",
  ]
  for title, rows in by_device(results):
    for variant, dtype in dict.fromkeys((row["variant"], row["dtype"]) for row in rows):
      found = [row for row in rows if (row["variant"], row["dtype"]) == (variant, dtype)]
      parts += [f"{variant}, {dtype}, {title}", "\n".join([GROWTH_HEAD, *map(growth_line, found)])]
  return "\n\n".join(parts)


def attention_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in attention.json."""
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
      "The attention of one block, with each implementation in `model/attention`. The error is the norm of the\n"
      "difference to the formula in float32, relative to its norm, and the largest over output and gradients. Memory\n"
      "is temporary memory, without operands and results.",
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


def chip_line(case: str, found: dict[str, Any]) -> str:
  """Returns the table line of a case in chips.json."""
  work, network, name, mesh, batch, remat = case.split(":")
  if "error" in found:
    return line(work, network, name, mesh, batch, remat, f"does not compile: {found['error']}", *[""] * 6)
  memory = absent.chip(name).memory
  whole = sum(found[f"{part}_bytes"] for part in ("argument", "temporary", "output"))
  sent = sum(count * Collective(*one).sent for *one, count in found["collectives"])
  times = found["predicted_seconds"]
  bound = max(times, key=times.get)
  return line(
    *(work, network, name, mesh, batch, remat),
    *(f"{number(found[f'{part}_bytes'] / 1e9)} GB" for part in ("argument", "temporary")),
    f"{whole / memory:.0%}" if whole <= memory else f"**{whole / memory:.0%}, does not fit**",
    *(str(found["kernels"]), f"{number(sent / 1e6)} MB" if sent else ""),
    *(duration(times[bound]), bound),
  )


def chip_tables(results: dict[str, Any]) -> str:
  columns = ("work", "network", "chip", "mesh", "canvases", "remat", "arguments", "temporaries", "of its memory")
  columns += ("kernels", "sent", "least time", "bound by")
  rows = [chip_line(case, found) for case, found in results["cases"].items()]
  return "\n".join((f"{about('Compiled', results['machine'])}\n", head(*columns), *rows))


def fault_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in faults.json."""
  if "not_tried" in row:
    return line(row["fault"], f"not tried here: {row['not_tried']}", *[""] * 4)
  lost = f"{row['lost']:.0f} {row['unit']}" if row["unit"] else ""
  seconds = [duration(each) for each in row["seconds"] or ()] or ["", ""]
  return line(row["fault"], str(row["tries"]), str(row["survived"]), lost, *seconds)


def fault_tables(results: dict[str, Any]) -> str:
  columns = ("fault", "tries", "survived", "work lost, at most", "seconds to recover, median", "at most")
  rows = map(fault_line, results["rows"])
  return "\n".join((f"{about('CPU', results['machine'])}\n", head(*columns), *rows))


def fuzz_tables(results: dict[str, Any]) -> str:
  def fuzz_line(name: str, row: dict[str, Any]) -> str:
    failed = (f"{row[what]} {what}" for what in ("crashed", "slow", "large") if row[what])
    return line(name.replace("_", " "), *(str(row[what]) for what in ("tries", "read", "refused")), ", ".join(failed))

  rows = (fuzz_line(name, row) for name, row in results["targets"].items())
  top = head("files", "tries", "read", "refused", "neither")
  return "\n".join((f"Mutated files, {about('CPU', results['machine'])}\n", top, *rows))


def soak_tables(results: dict[str, Any]) -> str:
  def soak_line(row: dict[str, Any]) -> str:
    counts = (f"{row[name]:.0f}" for name in ("second_quarter", "last_quarter", "most"))
    return line(row["run"], row["counted"].replace("_mb", ", MB").replace("_", " "), *counts, duration(row["seconds"]))

  top = head("run", "counted", "second quarter, median", "last quarter, median", "most", "time")
  return "\n".join((f"Long runs, {about('CPU', results['machine'])}\n", top, *map(soak_line, results["rows"])))


LOADING_HEAD = head("network", "files", "with digests", "without", "digests alone", "share of the time with them")


def loading_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in loading.json."""
  times = (duration(statistics.median(row[name])) for name in ("with", "without", "alone"))
  # A share below zero is noise.
  return line(row["variant"], f"{row['bytes'] / 1e6:.0f} MB", *times, f"{max(row['share'], 0):.0%}{disturbed(row)}")


def loading_tables(results: dict[str, Any]) -> str:
  tables = ["\n".join((f"{title}\n", LOADING_HEAD, *map(loading_line, rows))) for title, rows in by_device(results)]
  return "\n\n".join(("`load_model` of weights in memory (`python -m benchmarks.loading`)", *tables))


def export_line(row: dict[str, Any]) -> str:
  """Returns the table line of a row in exports.json."""
  memory = (f"{row[name] / 1e9:.1f} GB" if row[name] else "" for name in ("export_memory", "memory"))
  return line(
    *(row["network"], str(row["prompts"]), row["kind"], row["dtype"]),
    *(f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else "", f"{row['error']:.0e}", f"{row['same_labels']:.3%}"),
    duration(statistics.median(row["seconds"])) + disturbed(row),
    "void" if report.is_disturbed(row) else f"{row['ratio']:.2f}",
    *memory,
  )


def export_tables(results: dict[str, Any]) -> str:
  rows = results["rows"]
  columns = ("network", "prompts", "program", "dtype", "file", "largest error", "same labels", "median time")
  columns += ("of the model's", "memory to export", "memory to run")
  title = f"{rows[0]['batch']} query. {about(rows[0]['device'], results['machine'])}"
  return f"{title}\n\n" + "\n".join([head(*columns), *map(export_line, rows)])


PAGES = {
  "speed.md": TABLES,
  "chips.md": {"chips": chip_tables},
  "export.md": {"exports": export_tables},
  "reliability.md": {"faults": fault_tables, "fuzz": fuzz_tables, "soak": soak_tables, "loading": loading_tables},
}


def generate(page: str, results: Path) -> str:
  """Returns all tables of a page from the results in a folder."""
  paths = {name: results / f"{name}.json" for name in PAGES[page]}
  return "\n\n".join(
    make(json.loads(paths[name].read_text())) for name, make in PAGES[page].items() if paths[name].exists()
  )


def fill(page: str, tables: str) -> str:
  """Returns the page with the tables between its marks."""
  before, rest = page.split(BEGIN)
  after = rest.split(END)[1]
  return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
  for name in PAGES:
    path = DOCS / name
    page = fill(path.read_text(), generate(name, report.RESULTS))
    write_whole(path, lambda file, page=page: file.write(page.encode()), replace=True)
    print(f"written: {path}")


if __name__ == "__main__":
  main()
