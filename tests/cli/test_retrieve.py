"""Tests of `seggpt retrieve`: the prompts it chooses, that `seggpt infer` reads its mappings, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference.queries import list_queries
from seggpt_jax.retrieval.labeled_images import list_prompts, read_facts
from seggpt_jax.retrieval.mapping import by_class, by_group, choose, classes_of
from seggpt_jax.retrieval.prompt_index import PromptIndex
from tests.commands import seggpt

# Prompts by name: their classes. The same for queries; each looks like the prompt of the same number.
PROMPTS = {"red_0": (1,), "red_1": (1, 2), "red_2": (2,), "blue_3": (3,), "blue_4": (1, 3), "blue_5": ()}
QUERIES = {"red_q0": (1,), "blue_q3": (3,), "blue_q4": (3,)}


def picture(number: int, seed: int = 0) -> np.ndarray:
  colors = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
  image = np.asarray(Image.fromarray(colors).resize((40, 32), Image.Resampling.BICUBIC)).astype(int)
  return np.clip(image + np.random.default_rng([number, seed]).integers(-3, 4, image.shape), 0, 255).astype(np.uint8)


def write(folder: Path, name: str, image: np.ndarray, classes: tuple[int, ...]) -> None:
  label = np.zeros(image.shape[:2], np.uint8)
  for place, index in enumerate(classes):
    label[4:20, 10 * place + 2 : 10 * place + 9] = index
  for kind, pixels in (("images", image), ("labels", label)):
    path = folder / kind / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
  for number, (name, classes) in enumerate(PROMPTS.items()):
    write(tmp_path / "prompts", name, picture(number), classes)
  for name, classes in QUERIES.items():
    write(tmp_path / "data", name, picture(int(name[-1]), seed=1), classes)
  return tmp_path


def command(folders, weights_directory, *options, name="retrieve"):
  prompts = folders / "prompts"
  return seggpt(
    *(name, "--model-path", weights_directory, "--dataset-dir", folders / "data"),
    *("--prompt-img-dir", prompts / "images", "--prompt-label-dir", prompts / "labels", *options),
    cwd=folders,
    env={"HOME": str(folders / "home")},
  )


def chosen(folders, model, **options):
  """Returns both mappings as the command makes them, without file endings."""
  conditions = options.pop("conditions", None)
  queries = list_queries(folders / "data")
  prompts = list_prompts(folders / "prompts" / "images", folders / "prompts" / "labels")
  index = PromptIndex.build(model, prompts)
  if conditions == "by_class":
    conditions = by_class(classes_of(queries, LabelFormat()), index.facts)
  elif conditions:
    conditions = by_group(queries, prompts, conditions, LabelFormat())
  mappings = choose(queries, prompts, index.facts, index=index, conditions=conditions, **options)
  return tuple({Path(q).stem: [Path(p).stem for p in files] for q, files in mapping.items()} for mapping in mappings)


def test_infer_takes_the_mapping_and_features_are_kept_where_caches_are(folders, weights_directory, model):
  done = command(folders, weights_directory, "--top_k", "3", "--output", "out/mapping.json")
  assert done.returncode == 0, done.stderr
  assert "6/6" in done.stderr  # the bar
  assert "1 of 6 labeled images hold no class and cannot be prompts" in done.stdout
  written = json.loads((folders / "out" / "mapping.json").read_text())
  expected, _ = chosen(folders, model, top_k=3)
  assert written == {f"{q}.png": [f"{p}.png" for p in files] for q, files in expected.items()}
  assert [written[f"{name}.png"][0] for name in QUERIES] == ["red_0.png", "blue_3.png", "blue_4.png"]
  assert len(list((folders / "home" / ".cache" / "seggpt_jax").glob("*.npz"))) == 1
  assert sorted(p.name for p in (folders / "prompts").iterdir()) == ["images", "labels"]

  mapping = ("--mapping", folders / "out" / "mapping.json", "--top-k", "3", "--outdir", folders / "segmented")
  done = command(folders, weights_directory, *mapping, name="infer")
  assert done.returncode == 0, done.stderr
  assert json.loads((folders / "segmented" / "metrics.json").read_text())["images"] == 3


def test_a_query_is_no_prompt_of_its_own_neither_by_path_nor_as_a_copy(folders, model):
  data = folders / "data"
  shutil.rmtree(data)
  write(data, "copied", picture(0), (1,))
  (data / "images" / "linked.png").symlink_to(folders / "prompts" / "images" / "red_1.png")
  shutil.copy(folders / "prompts" / "images" / "red_2.png", data / "images" / "red_2.png")
  mapping, _ = chosen(folders, model, top_k=9)
  for query, own in (("copied", "red_0"), ("linked", "red_1"), ("red_2", "red_2")):
    assert sorted(mapping[query]) == sorted({"red_0", "red_1", "red_2", "blue_3", "blue_4"} - {own})


def test_negative_prompts_are_the_nearest_of_other_groups(folders, model):
  options = {"top_k": 2, "conditions": "prefix:_"}
  positive, negative = chosen(folders, model, negatives=True, **options)
  everything, _ = chosen(folders, model, top_k=9)
  for query, order in everything.items():
    group = query.partition("_")[0]
    assert positive[query] == [name for name in order if name.startswith(group)][:2]
    assert negative[query] == [name for name in order if not name.startswith(group)][:2]
  assert chosen(folders, model, **options) == (positive, {})


def test_by_class_positive_prompts_share_a_class_and_negative_ones_none(folders, model):
  positive, negative = chosen(folders, model, top_k=9, negatives=True, conditions="by_class")
  assert sorted(positive["red_q0"]) == ["blue_4", "red_0", "red_1"]
  assert sorted(negative["red_q0"]) == ["blue_3", "red_2"]  # nor the one without any class
  assert sorted(positive["blue_q3"]) == ["blue_3", "blue_4"]
  assert sorted(negative["blue_q3"]) == ["red_0", "red_1", "red_2"]
  exact, _ = chosen(folders, model, top_k=9, conditions="classes")
  assert exact["red_q0"] == ["red_0"]


def test_groups_from_a_table_and_one_that_no_prompt_has(folders):
  queries = list_queries(folders / "data")
  prompts = list_prompts(folders / "prompts" / "images", folders / "prompts" / "labels")
  table = folders / "groups.csv"
  rows = [f"{name},{'odd' if name[-1] in '135' else 'even'}" for name in [*PROMPTS, *QUERIES]]
  table.write_text("\n".join(["name,group", *rows]))
  found = by_group(queries, prompts, f"csv:{table}", LabelFormat())
  for query, own in zip(queries, found.queries, strict=True):
    same = [p.image.stem[-1] in "135" for p in prompts]
    assert (found.prompts & own).any(axis=1).tolist() == [s == (query.name[-1] in "135") for s in same]
  table.write_text(table.read_text().replace("red_q0,even", "red_q0,new"))
  with pytest.raises(InputError, match=r"red_q0\.png: found no labeled image of its group 'new'"):
    by_group(queries, prompts, f"csv:{table}", LabelFormat())
  with pytest.raises(InputError, match="--groups: found 'folder', expected prefix:SEP, csv:FILE, classes or class"):
    by_group(queries, prompts, "folder", LabelFormat())


def test_images_of_two_folders_with_one_name_stay_apart(folders):
  """A mapping by file name would give the prompts of one camera to the images of the other."""
  for number, camera in enumerate(("cam1", "cam2")):
    write(folders / "data", f"{camera}/001", picture(number), (1,))
    write(folders / "prompts", f"{camera}/p", picture(number + 5), (1,))
  queries = list_queries(folders / "data")
  prompts = list_prompts(folders / "prompts" / "images", folders / "prompts" / "labels")
  mapping, _ = choose(queries, prompts, read_facts(prompts, LabelFormat()), 9)
  assert {"cam1/001.png", "cam2/001.png"} <= mapping.keys() and len(mapping) == len(QUERIES) + 2
  assert {"cam1/p.png", "cam2/p.png", "red_1.png"} <= set(mapping["cam1/001.png"])
  (folders / "mapping.json").write_text(json.dumps(mapping))
  read = list_queries(
    folders / "data", folders / "prompts/images", folders / "prompts/labels", folders / "mapping.json", 9
  )
  assert {query.written: [files.written for files in query.prompts] for query in read} == mapping


def test_queries_without_what_is_asked_of_them_are_named(folders, model):
  write(folders / "data", "empty", picture(7), ())
  with pytest.raises(InputError, match=r"labels/empty\.png: found no class in it"):
    chosen(folders, model, conditions="by_class")
  (folders / "data" / "labels" / "empty.png").unlink()
  for conditions in ("by_class", "classes"):
    with pytest.raises(InputError, match=r"images/empty\.png: found no label for it"):
      chosen(folders, model, conditions=conditions)
  write(folders / "data", "empty", picture(7), (9,))
  with pytest.raises(InputError, match=r"empty\.png: found no labeled image that can be .* one of its classes 9"):
    chosen(folders, model, conditions="by_class")


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (["--groups=prefix:-"], "blue_q3.png: found no labeled image of its group 'blue_q3'"),
    (["--output=a.json", "--negative-output=b.json"], "--groups: not found; --negative-output needs it"),
    (["--groups=class", "--output=a.json", "--negative-output=a.json"], "--negative-output: found a.json, expected"),
    (["--prompt-img-dir=bare"], "bare: found no images"),
    (["--prompt-label-dir=few"], "found no label for it, expected few/"),
    (["--cache=damaged"], "cannot be read as features, damaged"),
  ],
)
def test_wrong_input_ends_the_command_with_status_2_and_one_line(folders, weights_directory, model, options, says):
  (folders / "few").mkdir()
  (folders / "bare").mkdir()
  shutil.copy(folders / "prompts" / "labels" / "red_0.png", folders / "few")
  if "--cache=damaged" in options:
    prompts = list_prompts(folders / "prompts" / "images", folders / "prompts" / "labels")
    PromptIndex.build(model, prompts, cache=folders / "damaged")
    for kept in (folders / "damaged").iterdir():
      kept.write_bytes(kept.read_bytes()[:100])
  done = command(folders, weights_directory, "--output", "m.json", *options)
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert says in done.stderr
  assert not (folders / "m.json").exists()
