"""The prompts of each query and the format of label files: a wrong one would show in every mask."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.inference import queries
from seggpt_jax.inference.trained import label_format
from tests.inference.image_folders import command, find, write, write_mapping


def test_without_a_mapping_the_first_prompts_by_name_serve_every_query(folders):
  for query in find(folders, top_k=2):
    assert [prompt.image.stem for prompt in query.prompts] == ["p", "q"]
    assert [prompt.labels.parent.name for prompt in query.prompts] == ["labels", "labels"]
  assert len(find(folders, top_k=10)[0].prompts) == 3


def test_a_mapping_gives_the_best_first_and_files_match_by_name_without_ending(folders):
  write(folders / "prompts" / "labels" / "q.bmp", np.zeros((40, 50), np.uint8))
  (folders / "prompts" / "labels" / "q.png").unlink()
  mapping = write_mapping(folders, {f"{name}.jpg": ["r.png", "q.png", "p.png"] for name in "abcz"})
  found = find(folders, mapping=mapping, top_k=2)
  assert [query.name for query in found] == ["a", "b", "c"]
  assert [prompt.labels.name for prompt in found[0].prompts] == ["r.png", "q.bmp"]


def test_a_folder_that_holds_images_directly_has_no_truth(folders):
  prompts = folders / "prompts"
  found = queries.list_queries(folders / "data" / "images", prompts / "images", prompts / "labels")
  assert [(query.name, query.truth) for query in found] == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(
  "mapping, words",
  [
    ({"a.png": ["p.png"], "b.png": ["p.png"]}, ["mapping.json", "'c.png'"]),
    ({name + ".png": ["p.png", "lost.png"] for name in "abc"}, ["mapping.json", "a.png", "lost.png"]),
    ({name + ".png": [] for name in "abc"}, ["mapping.json", "a.png", "[]"]),
    ({name + ".png": "p.png" for name in "abc"}, ["mapping.json", "a.png", "list"]),
    (["p.png"], ["mapping.json", "list"]),
    ("{'a.png'", ["mapping.json", "JSON"]),
  ],
)
def test_a_wrong_mapping_is_named_with_its_key(folders, mapping, words):
  with pytest.raises(InputError) as error:
    find(folders, mapping=write_mapping(folders, mapping), top_k=5)
  assert all(word in str(error.value) for word in words), error.value


@pytest.fixture
def cameras(folders):
  """Queries and prompts of two cameras, which number their images alike."""
  generator = np.random.default_rng(0)
  for camera in ("cam1", "cam2"):
    for place, name in (("data", "001"), ("data", "scan.v2"), ("prompts", f"{camera}_p"), ("prompts", "same")):
      for kind, shape in (("images", (8, 8, 3)), ("labels", (8, 8))):
        write(folders / place / kind / camera / f"{name}.png", generator.integers(0, 2, shape, np.uint8))
  return folders


def test_folders_of_queries_may_hold_folders(cameras):
  found = {query.name: query for query in find(cameras)}
  assert list(found) == ["a", "b", "c", "cam1/001", "cam1/scan.v2", "cam2/001", "cam2/scan.v2"]
  for name in ("cam1/001", "cam2/001"):
    assert found[name].image == cameras / "data" / "images" / f"{name}.png"
    assert found[name].truth == cameras / "data" / "labels" / f"{name}.png"


@pytest.mark.parametrize(
  "key, name",
  [
    ("cam1/001.png", "cam1/001"),
    ("cam1/001", "cam1/001"),
    ("cam1\\001.JPG", "cam1/001"),
    ("./cam2/001.jpg", "cam2/001"),
    ("D:\\photos\\cam2\\001.jpg", "cam2/001"),
    ("/data/images/cam2/001.jpg", "cam2/001"),
    ("cam2/scan.v2", "cam2/scan.v2"),
    ("a.jpg", "a"),
    ("photos/a.jpg", "a"),
    ("lost/001.png", None),
    ("scan.v3", None),
    ("cam1", None),
  ],
)
def test_a_name_means_the_file_that_its_path_says(cameras, key, name):
  names = [query.name for query in find(cameras)]
  assert queries.NameFinder(names, "data").find(key, "mapping.json") == name


def test_a_name_without_a_folder_means_the_only_file_of_that_name():
  finder = queries.NameFinder(["cam1/001", "cam2/001", "cam2/only"], "data")
  assert finder.find("only.png", "mapping.json") == "cam2/only"
  with pytest.raises(
    InputError, match=r"mapping.json: found '001.jpg', which may be 'cam1/001' and 'cam2/001' in data"
  ):
    finder.find("001.jpg", "mapping.json")


def test_two_files_of_one_name_are_never_taken_for_each_other(cameras):
  mapping = write_mapping(cameras, {"cam1/001.jpg": ["cam1/same.png"], "cam2/001.jpg": ["cam2/same.png"]})
  first, second = find(cameras, mapping=mapping, mapped_only=True)
  for query, camera in ((first, "cam1"), (second, "cam2")):
    (prompt,) = query.prompts
    assert (prompt.name, prompt.written) == (f"{camera}/same", f"{camera}/same.png")
    assert prompt.labels.parent.name == camera


@pytest.mark.parametrize(
  "mapping, words",
  [
    ({"cam3/a.jpg": ["p"], "cam4/a.jpg": ["q"]}, "'cam3/a.jpg' and 'cam4/a.jpg', which both mean 'a'"),
    ({"a.jpg": ["p"], "a.png": ["q"]}, "keys 'a.jpg' and 'a.png', which both mean 'a', expected one of them"),
    ({"a": ["cam3/p.png"], "b": ["cam4/p.png"], "c": ["p"]}, "'cam3/p.png' and 'cam4/p.png', which both mean 'p'"),
    ('{"a": ["p"], "a": ["q"]}', "found key 'a' twice, expected it once"),
  ],
)
def test_two_names_of_one_file_are_refused_and_both_named(folders, mapping, words):
  """One of the two would win without a word, and its prompts would serve the other's image."""
  with pytest.raises(InputError) as error:
    find(folders, mapping=write_mapping(folders, mapping))
  assert str(error.value).startswith(f"{folders / 'mapping.json'}: ") and words in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mapping_of_any_editor_and_system_is_read(folders, encoding):
  (folders / "data" / "images" / "a.png").rename(folders / "data" / "images" / "cafe\u0301.png")
  text = json.dumps({"caf\u00e9.png": ["prompts\\images\\q.png"], "b": ["q"], "c": ["q"]}, ensure_ascii=False)
  (folders / "mapping.json").write_bytes(text.encode(encoding))
  (query,) = (query for query in find(folders, mapping=folders / "mapping.json") if query.name.startswith("caf"))
  assert (query.name, query.prompts[0].name) == ("caf\u00e9", "q")


def test_what_belongs_to_no_query_is_counted(folders, caplog):
  (folders / "data" / "images" / "a.png").unlink()
  write(folders / "data" / "x.png", np.zeros((8, 8, 3), np.uint8))
  write(folders / "prompts" / "labels" / "z.png", np.zeros((8, 8), np.uint8))
  find(folders, mapping=write_mapping(folders, {name: ["p"] for name in "abcz"}))
  said = [record.getMessage() for record in caplog.records]
  data = folders / "data"
  assert f"{data}: passed over: 1 images next to the folder images/" in said
  assert f"{data / 'labels'}: passed over: 1 label files that no image in {data / 'images'} has, first a.png" in said
  assert any("1 label files that no image" in line and line.endswith("first z.png") for line in said)
  assert f"{folders / 'mapping.json'}: passed over: 2 of 4 keys, no images of {data}, first 'a'" in said


def test_results_prompts_and_labels_below_the_images_are_no_queries(folders, caplog):
  """`--dataset-dir . --outdir out`: a second run must not segment the masks of the first."""
  photos, prompts = folders / "photos", folders / "photos" / "examples"
  for name in ("a", "day1/a", "out/label/a", "old/color/a", "examples/images/p", "examples/labels/p", "labels/a"):
    write(photos / f"{name}.png", np.zeros((8, 8), np.uint8))
  (photos / "old" / "progress").mkdir()
  (photos / "old" / "run.json").write_text("{}")
  found = queries.list_queries(photos, prompts / "images", prompts / "labels", apart=[photos / "out"])
  assert [query.name for query in found] == ["a", "day1/a"]
  (said,) = (record.getMessage() for record in caplog.records)
  for words in ("1 folder (labels)", "3 folders (prompts or results)", "1 folder (results of a run)"):
    assert words in said


def test_a_missing_mapping_is_named(folders):
  with pytest.raises(InputError, match=r"nowhere\.json: not found"):
    find(folders, mapping=folders / "nowhere.json")


def test_labels_are_read_as_in_training_unless_asked_otherwise(tmp_path):
  """A run that was trained on masks of 0 and 255 is scored on the same classes without further flags."""
  for folder in ("best/7", "checkpoints/9"):
    for item in ("params", "config"):
      (tmp_path / "run" / folder / item).mkdir(parents=True)
  settings = {"data": {"labels": "binary", "threshold": 127}}
  (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
  for path in ("run", "run/best", "run/best/7", "run/checkpoints/9"):
    assert label_format(tmp_path / path) == LabelFormat("binary", 127), path
  assert label_format(tmp_path / "run", threshold=5) == LabelFormat("binary", 5)
  assert label_format(tmp_path / "run", "index").mode == "index"
  settings = {"data": {"labels": "table", "threshold": 0, "table": [[0, 0, 0], [255, 0, 0]], "ignore": [[1, 2, 3]]}}
  (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
  expected = LabelFormat("table", None, ((0, 0, 0), (255, 0, 0)), ((1, 2, 3),))
  assert label_format(tmp_path / "run") == expected
  assert label_format(tmp_path / "run", "index") == LabelFormat()
  # Older runs stored 0 with every mode; only in a binary run somebody may have meant it.
  assert label_format(tmp_path / "run", "binary") == LabelFormat("binary")
  for stored, threshold in ((0, 0), (-1, None)):
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": {"labels": "binary", "threshold": stored}}))
    assert label_format(tmp_path / "run") == LabelFormat("binary", threshold)
  (tmp_path / "run" / "config.json").unlink()
  assert label_format(tmp_path / "run") == LabelFormat()
  with pytest.raises(InputError, match="threshold: cannot be combined with labels=index"):
    label_format(tmp_path / "run", None, 127)


@pytest.mark.parametrize(
  "text, words",
  [
    ("{'data'", "cannot be read as JSON"),
    ("\udcff", "cannot be read as JSON"),
    ("", "cannot be read as JSON"),
    ("[]", "found no object"),
    ("5", "found no object"),
    ('{"data": []}', "found no object"),
    ('{"data": {"labels": 5}}', "data.labels: found 5, expected one of index, binary, table"),
    ('{"data": {"labels": ["binary"]}}', "data.labels: found ['binary']"),
    ('{"data": {"labels": "binary", "threshold": "x"}}', "data.threshold: found 'x', expected 0..255"),
    ('{"data": {"labels": "binary", "threshold": 300}}', "data.threshold: found 300, expected 0..255"),
    ('{"data": {"labels": "table", "table": 5}}', "data.table: found 5, expected a list"),
    ('{"data": {"labels": "table", "table": [0, null]}}', "data.table: found [0, None], expected a list"),
    ('{"data": {"labels": "table"}}', "data: table: found 0 entries"),
    ('{"data": {"ignore": ["x"]}}', "data.ignore: found ['x'], expected a list"),
  ],
)
def test_a_garbled_configuration_of_the_run_is_named(tmp_path, text, words):
  for item in ("params", "config"):
    (tmp_path / "best" / "7" / item).mkdir(parents=True)
  (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(InputError) as error:
    label_format(tmp_path)
  assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
  assert words in str(error.value) and "\n" not in str(error.value)


def test_a_garbled_configuration_ends_the_command_with_one_line(folders, weights_directory):
  shutil.copytree(weights_directory, folders / "run" / "best" / "7")
  (folders / "run" / "config.json").write_text('{"data": {"labels": "binary", "threshold": "x"}}')
  done = command(folders, folders / "run")
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
  assert "config.json: data.threshold: found 'x'" in done.stderr


def test_files_named_one_by_one_have_to_be_there_and_fit(folders):
  prompts, image = folders / "prompts", str(folders / "data" / "images" / "a.png")
  pair = [str(prompts / kind / "p.png") for kind in ("images", "labels")]
  (found,) = queries.list_queries([image], prompts=queries.given_prompts([pair[0]], [pair[1]]))
  assert (found.name, found.truth) == ("a", None)
  assert [(str(files.image), str(files.labels)) for files in found.prompts] == [tuple(pair)]
  with pytest.raises(InputError, match=r"--prompt-label: found 1 files, expected 2, one for each --prompt-image"):
    queries.given_prompts(pair, pair[:1])
  with pytest.raises(InputError, match=r"--image: .*gone\.png: not found, expected an image file"):
    queries.list_queries([str(folders / "gone.png")])
  with pytest.raises(InputError, match=r"--prompt-image: .*images: is a folder, expected an image file"):
    queries.given_prompts([str(prompts / "images")], pair[1:])
  with pytest.raises(InputError, match=r"--image: found .*a\.png and .*a\.png, expected names that differ"):
    queries.list_queries([image, image])


def test_a_mapping_can_say_which_images_are_queries(folders):
  mapping = write_mapping(folders, {"b.png": ["q.png"]})
  assert [query.name for query in find(folders, mapping=mapping, mapped_only=True)] == ["b"]
  with pytest.raises(InputError, match=r"mapping\.json: found key 'z\.png', expected names of images in"):
    find(folders, mapping=write_mapping(folders, {"z.png": ["q.png"]}), mapped_only=True)
