"""The data of a run: every kind of dataset reaches the canvas, and data without foreground stops a run early."""

import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.pipeline import training_batches
from seggpt_jax.data.scale import Scale
from seggpt_jax.errors import InputError
from seggpt_jax.model.config import VARIANTS
from seggpt_jax.training.config import check_config, default_config
from seggpt_jax.training.inputs import open_inputs
from seggpt_jax.training.monitor import SharedBadFiles
from tests.formats.annotation_folders import labelme as write_labelme

TINY = VARIANTS["tiny"]
GENERATOR = np.random.default_rng(0)


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def image():
  return GENERATOR.integers(0, 256, (20, 24, 3), np.uint8)


def label(*values):
  """Returns a label with equal stripes of the values, from left to right."""
  return np.repeat(np.array(values, np.uint8), 24 // len(values))[None].repeat(20, axis=0)


@pytest.fixture
def config(tmp_path):
  """A folder with six images a_0, a_1, a_2, b_0, b_1, b_2 of two groups for training, and six for validation."""
  for split in ("train", "val"):
    for name in ("a_0", "a_1", "a_2", "b_0", "b_1", "b_2"):
      write(tmp_path / "data" / split / "images" / f"{name}.png", image())
      write(tmp_path / "data" / split / "labels" / f"{name}.png", label(0, 255 if name[0] == "a" else 0, 0))
  config = default_config()
  config.data.path = str(tmp_path / "data")
  config.data.resize = 0
  return config


def opened(config, tmp_path):
  check_config(config)
  return open_inputs(config, TINY, tmp_path / "run")


def batch_of(config, tmp_path, size=6):
  inputs = opened(config, tmp_path)
  batches = training_batches(inputs.training, batch_size=size, seed=0, num_threads=0, num_workers=0)
  return inputs, next(batches)


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_a_folder_becomes_canvases_of_the_model_s_size(config, tmp_path):
  inputs, batch = batch_of(config, tmp_path)
  assert batch["images"].shape == (6, *TINY.canvas_size, 3) and set(np.unique(batch["labels"])) == {0, 1}
  assert len(inputs.notes) == 2 and inputs.notes[0] == "train: 6 samples, 1 classes"
  assert "100% have prompts that show every class of the query and 100% of the foreground" in inputs.notes[1]
  assert len(inputs.evaluation) == 6


def test_files_without_a_partner_are_left_out_if_bad_files_are_skipped(config, tmp_path):
  (tmp_path / "data/train/labels/a_0.png").unlink()
  refused("a_0.png: found no label for it", lambda: opened(config, tmp_path))
  config.data.bad_share = 0.01
  refused("config.data.bad_share: found 1 files of train that do not fit, of 6", lambda: opened(config, tmp_path))
  config.data.bad_share = 0.2
  inputs = opened(config, tmp_path)
  assert len(inputs.sources["train"]) == 5 and "train: left out 1 files that do not fit" in inputs.notes[0]


def test_a_split_or_form_that_the_data_does_not_have_is_answered_with_what_it_has(config, tmp_path):
  (tmp_path / "data/val").rename(tmp_path / "data/valid")
  refused("found the splits train, valid: set data.train_split and data.val_split", lambda: opened(config, tmp_path))
  for split in ("train", "val"):
    write_labelme(tmp_path / "tool" / split)
  config.data.path = str(tmp_path / "tool")
  refused("this looks like data.source=labelme: `seggpt inspect ", lambda: opened(config, tmp_path))


def test_several_classes_are_not_trained_on_as_one_without_a_word(config, tmp_path):
  """The base configuration reads masks, 0 and another value. Files with another class each are no such masks."""
  for i, path in enumerate(sorted((tmp_path / "data").glob("*/labels/*.png"))):
    write(path, label(0, 1 + i % 3, 0))
  refused(
    "found 2 as the value of the foreground, expected 1 as in .*; class indices are read with labels=index, num_",
    (lambda: opened(config, tmp_path)),
  )
  config.data.threshold = 0  # on purpose
  opened(config, tmp_path)


def test_outlines_reach_the_canvas(config, tmp_path):
  for split in ("train", "val"):
    for i in range(4):
      write_labelme(tmp_path / "tool" / split, f"{i}", seed=i)
  config.data.path, config.data.source, config.data.num_classes = str(tmp_path / "tool"), "labelme", 3
  inputs, batch = batch_of(config, tmp_path)
  assert set(np.unique(batch["labels"])) == {0, 1, 2} and inputs.class_names == ("crack", "hole")


def test_prompts_come_from_the_query_s_group(config, tmp_path):
  config.data.groups, config.data.same_class, config.data.unanswerable = "prefix:_", 0.0, "keep"
  inputs, batch = batch_of(config, tmp_path)
  names = [[inputs.sources["train"].name(int(i))[0] for i in pair] for pair in batch["samples"]]
  assert all(prompt == query for prompt, query in names)
  assert inputs.notes == ("train: 6 samples, 2 groups",)
  pairs = [inputs.evaluation(i)["samples"][0] for i in range(6)]
  assert all(int(prompt) // 3 == int(query) // 3 for prompt, query in pairs)
  config.data.groups = "size"
  refused("config.data.groups: .*'size'", lambda: opened(config, tmp_path))


def test_negative_pairs_read_the_labels_and_a_resumed_run_keeps_what_it_read(config, tmp_path):
  config.data.negative = 1.0
  inputs, batch = batch_of(config, tmp_path)
  assert "1 classes, 3 samples that can be the query of a negative pair" in inputs.notes[0]
  negative = batch["samples"][:, 1] >= 3
  square = TINY.canvas_size[1]
  assert (batch["labels"][negative][:, square:] == 0).all()
  assert (batch["labels"][negative][:, :square] == 1).any(axis=(1, 2)).all()
  assert not (tmp_path / "run").exists()  # nothing is written before everything has been checked
  (tmp_path / "run" / "checkpoints").mkdir(parents=True)
  opened(config, tmp_path)
  assert (tmp_path / "run" / "classes_train.npz").exists()


def test_class_folders_are_groups_with_a_meaning_of_their_own(config, tmp_path):
  config.data.source = "class_folders"
  config.data.path = str(tmp_path / "folders")
  for split in ("train", "val"):
    for defect in ("open", "short"):
      for name in "ab":
        write(tmp_path / "folders" / split / "board" / defect / "image" / f"{name}.png", image())
        write(tmp_path / "folders" / split / "board" / defect / "label" / f"{name}.png", label(0, 255))
  _, batch = batch_of(config, tmp_path, size=4)
  assert (batch["samples"][:, 0] // 2 == batch["samples"][:, 1] // 2).all()
  config.data.negative = 1.0
  _, batch = batch_of(config, tmp_path, size=4)
  assert (batch["samples"][:, 0] // 2 != batch["samples"][:, 1] // 2).all()
  assert (batch["labels"][:, TINY.canvas_size[1] :] == 0).all()
  config.data.groups = "prefix:_"
  refused("config.data.groups: found 'prefix:_', expected folder", lambda: opened(config, tmp_path))


def test_a_table_of_colors_with_an_ignored_one(config, tmp_path):
  colors = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
  for split in ("train", "val"):
    for path in (tmp_path / "data" / split / "labels").iterdir():
      write(path, colors[label(0, 1, 2)])
  config.data.labels = "table"
  config.data.table = ((0, 0, 0), (255, 0, 0))
  config.data.ignore = ((0, 0, 255),)
  _, batch = batch_of(config, tmp_path)
  assert set(np.unique(batch["labels"])) == {0, 1, 255}
  config.data.ignore = (255,)
  refused("config.data: ignore: found 255, expected three numbers", lambda: opened(config, tmp_path))


def test_training_labels_without_foreground_are_refused(config, tmp_path):
  """Such a run would learn to predict background everywhere, with a good loss."""
  config.data.threshold = 255
  match = "found nothing but background in the 6 labels of train, read as binary, foreground above 255"
  refused(match, lambda: opened(config, tmp_path))


def test_several_prompts(config, tmp_path):
  config.data.prompts = 3
  _, batch = batch_of(config, tmp_path, size=2)
  assert batch["images"].shape[0] == 6


def test_decoded_images_are_kept(config, tmp_path):
  config.data.cache_mb = 1
  inputs = opened(config, tmp_path)
  assert inputs.training.source[0]["image"] is inputs.training.source[0]["image"]


def test_bad_files_stop_the_run_or_are_passed_over_up_to_a_share(config, tmp_path):
  (tmp_path / "data" / "train" / "images" / "a_1.png").write_bytes(b"")
  refused("a_1.png: cannot be read", lambda: opened(config, tmp_path))
  config.data.bad_share = 0.2
  inputs, batch = batch_of(config, tmp_path, size=12)
  assert 1 in batch["bad"] and 1 not in batch["samples"]
  said = []
  account = SharedBadFiles(inputs.sources, 0.2, said.append)
  for split in ("train", "train", "val"):
    account.add(split, batch["bad"])
  account.settle()
  account.add("train", batch["bad"])
  account.settle()
  assert said == [f"passed over: {split} a_1 cannot be read (1 so far)" for split in ("train", "val")]
  account.add("train", np.array([4]))
  refused("found 2 bad files of 6 in train, expected at most 20.00%", account.settle)
  for path in (tmp_path / "data" / "train" / "labels").iterdir():
    path.write_bytes(b"")
  refused("as are all 6 samples looked at", lambda: opened(config, tmp_path))


def test_missing_parts_of_a_dataset_are_named(config, tmp_path):
  config.data.val_split = "test"
  refused("data/test/images: folder not found", lambda: opened(config, tmp_path))
  config.data.val_split = "val"
  config.data.num_train = 1
  refused("found 1 images in train, expected at least 2 to make a pair", lambda: opened(config, tmp_path))


def zooming(config, **keys):
  config.data.resize, config.data.labels, config.data.num_classes = 1024, "index", 3
  config.data.update({"zoom": 1.0, "lower_half_share": 1.0, "palette": "fixed"} | keys)
  for split in ("train", "val"):
    for place, name in enumerate(("a_0", "a_1", "a_2", "b_0", "b_1", "b_2")):
      path = f"{config.data.path}/{split}/labels/{name}.png"
      Image.fromarray(label(0, 1 + place % 2, 0)).save(path)
  return config


def test_with_a_zoom_every_prompt_shows_every_class_and_validation_covers_the_images(config, tmp_path):
  inputs, batch = batch_of(zooming(config, zoom=4.0), tmp_path)
  size = TINY.canvas_size[1]
  assert inputs.scale == Scale(4.0, 2)
  assert all(set(np.unique(labels[:size])) >= {0, 1, 2} for labels in batch["labels"])
  # 20 x 24 pixels become 80 x 96, three by three windows of 32 pixels; each of six images is validated in nine windows.
  assert len(inputs.evaluation) == 6 * -(-80 // size) * -(-96 // size)
  shown = [inputs.evaluation(index) for index in range(0, len(inputs.evaluation), 6)]
  assert len({pair["images"][0, size:].tobytes() for pair in shown}) == len(shown)
  np.testing.assert_array_equal(shown[0]["images"], inputs.evaluation(0)["images"])


def test_prompts_with_fewer_cells_than_classes_are_refused(config, tmp_path):
  refused(
    "config.data.prompt_grid: found 1 prompts of 1 x 1 cells, expected at least 2 cells",
    lambda: opened(zooming(config, prompt_grid=1), tmp_path),
  )
