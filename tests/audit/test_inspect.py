"""Inspecting datasets with what people's datasets have: every fault is named, and what to do about it."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from seggpt_jax.audit import contact_sheet, file_advice
from seggpt_jax.audit.advice import advise, train_line
from seggpt_jax.audit.file_advice import segment_line
from seggpt_jax.audit.findings import audit_dataset
from seggpt_jax.audit.report import as_facts, as_text
from seggpt_jax.data.datasets import Dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.labels import LabelFormat
from seggpt_jax.formats.recognize import recognize
from seggpt_jax.training.config import check_config
from tests.commands import seggpt
from tests.formats.annotation_folders import labelme as write_labelme

SIZE = 48
ROOT = Path(__file__).parents[2]


def picture(seed, shape=(SIZE, SIZE)):
  """An image unlike any other seed's."""
  blocks = np.random.default_rng(seed).integers(30, 226, (8, 8, 3), np.uint8)
  return np.asarray(Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.BICUBIC))


def blob(value=1, background=0, size=SIZE):
  """A label whose foreground is a quarter of it."""
  label = np.full((size, size), background, np.uint8)
  label[: size // 2, : size // 2] = value
  return label


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(path, **options)


def write(root, label=lambda i: blob(1 + i % 2), num_train=12, num_val=6, ending="png"):
  """A dataset without faults but those of its labels."""
  for split, start, count in (("train", 0, num_train), ("val", 1000, num_val)):
    for i in range(count):
      save(root / split / "images" / f"a{i:02d}.png", picture(start + i))
      save(root / split / "labels" / f"a{i:02d}.{ending}", label(i))
  return root


def command(*arguments):
  """Runs a command and returns what it prints."""
  done = seggpt(*arguments)
  assert done.returncode == 0, done.stderr
  return done.stdout


def inspected(root, groups="", given=frozenset(), max_images=0, splits=("train", "val"), **values):
  values = {"kind": "folder", "num_classes": 255} | values
  return audit_dataset(Dataset(path=str(root), **values), splits, frozenset(given), groups, max_images)


def advised(findings):
  """All advice as one text; and whether report and sheet can be made of it."""
  advice = advise(findings)
  facts = as_facts(findings) | {"advice": [a.text for a in advice], "ready": False}
  facts |= {"segment": segment_line(findings), "train": train_line(findings, advice)}
  report = as_text(json.loads(json.dumps(facts)))
  assert all(each.text in report for each in advice)
  assert contact_sheet.draw_samples(findings).width <= 2000
  return "\n".join(each.text for each in advice)


def read_config(line):
  """The configuration that a training command makes, checked as a run checks it."""
  program, command, *arguments = shlex.split(line)
  assert (program, command) == ("seggpt", "train")
  arguments[arguments.index("--config") + 1] = str(
    ROOT / "configs" / f"{arguments[arguments.index('--config') + 1]}.py"
  )
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  with mock.patch.object(sys, "argv", ["train.py", *arguments]):  # where it looks for keys
    values(sys.argv)
  check_config(holder.value)
  return holder.value


# ---------------------------------------------------------------------------------------------------------- no faults


def test_clean_data_is_called_so_with_a_line_that_trains(tmp_path):
  findings = inspected(write(tmp_path / "my data"))
  assert advised(findings) == ""
  config = read_config(train_line(findings, []))
  assert (config.data.path, config.data.labels, config.data.num_classes) == (str(tmp_path / "my data"), "index", 3)
  facts = as_facts(findings)["splits"]["train"]
  assert facts["num_usable"] == 12 and facts["image_formats"] == {"PNG RGB": 12}
  assert facts["sizes"] == {"different": 1, "smallest": [48, 48], "median": [48, 48], "largest": [48, 48]}
  assert facts["classes"][1]["pixels"] == pytest.approx(0.125) and facts["classes"][1]["samples"] == 0.5
  assert facts["classes"][2]["num_regions"] == 6
  assert facts["classes"][2]["median_region"] == pytest.approx(0.25, rel=0.03)
  assert facts["classes"][2]["smallest_region"] == pytest.approx(0.25)


def test_the_command_writes_its_files_and_prints_a_report(tmp_path):
  root = write(tmp_path / "data", num_train=6)
  (root / "train" / "images" / "a01.png").write_bytes(b"nothing")
  run = run_command(root, "--outdir", tmp_path / "out")
  assert run.returncode == 0, run.stderr
  assert run.stdout.index("TO SEGMENT, without training:") < run.stdout.index("TO TRAIN:")
  assert "STORED VALUES" in run.stdout and "seggpt train --config" in run.stdout and "a01.png" in run.stdout
  facts = json.loads((tmp_path / "out" / "inspect.json").read_text())
  assert facts["labels"]["num_classes"] == 3 and len(facts["splits"]["train"]["problems"]["unreadable"]) == 1
  assert Image.open(tmp_path / "out" / "inspect.png").width > 500


def run_command(*arguments):
  return seggpt("inspect", *arguments)


@pytest.mark.parametrize(
  "arguments",
  [
    ("nowhere",),
    ("{empty}",),
    ("{empty}", "nowhere"),
    ("{empty}", "--ignore=3"),
    ("{empty}", "--labels=binary:300"),
    (),
  ],
)
def test_wrong_flags_end_with_status_2_and_one_line(tmp_path, arguments):
  run = run_command(*(each.format(empty=tmp_path) for each in arguments))
  assert run.returncode == 2 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_a_wrong_group_specification_is_refused(tmp_path):
  with pytest.raises(InputError, match="groups: found 'nonsense'"):
    inspected(write(tmp_path), groups="nonsense")


# -------------------------------------------------------------------------------------------------------------- files


def test_all_broken_files_are_named_not_only_the_first(tmp_path):
  write(tmp_path)
  whole = (tmp_path / "train/images/a00.png").read_bytes()
  (tmp_path / "train/images/a00.png").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "train/images/a01.png").write_bytes(b"no image")
  (tmp_path / "train/labels/a02.png").write_bytes(b"no label")
  (tmp_path / "train/labels/a03.png").unlink()
  (tmp_path / "val/images/a04.png").unlink()
  save(tmp_path / "val/labels/a05.png", blob(size=20))
  findings = inspected(tmp_path)
  text = advised(findings)
  problems = {s: as_facts(findings)["splits"][s]["problems"] for s in ("train", "val")}
  assert [os.path.basename(p.partition(":")[0]) for p in problems["train"]["unreadable"]] == [
    "a00.png",
    "a01.png",
    "a02.png",
  ]
  assert "a03.png" in problems["train"]["unmatched"][0] and "a04.png" in problems["val"]["unmatched"][0]
  assert "20 x 20" in problems["val"]["size"][0]
  assert "3 files unreadable or cut off" in text and "data.bad_share=0.2" in text
  assert "without a partner" in text and "of another size" in text and "a03.png: found no label for it" in text
  config = read_config(train_line(findings, advise(findings)))
  assert config.data.bad_share >= 0.25


def test_a_label_that_an_image_with_exif_turns_away_from_is_explained(tmp_path):
  write(tmp_path)
  exif = Image.Exif()
  exif[274] = 6
  save(tmp_path / "train/images/a00.jpg", Image.fromarray(picture(77, (30, 60))), exif=exif)
  (tmp_path / "train/images/a00.png").unlink()
  save(tmp_path / "train/labels/a00.png", np.ones((30, 60), np.uint8))
  findings = inspected(tmp_path)
  assert "an EXIF tag rotates the image but not its label" in advised(findings)
  assert findings.train.turned == ["a00"] and "1 image turned by a tag" in advised(findings)


def test_images_that_a_tag_turns_are_to_be_compared_even_if_sizes_agree(tmp_path):
  write(tmp_path)
  exif = Image.Exif()
  exif[274] = 3  # upside down
  for i in range(3, 8):
    (tmp_path / f"train/images/a{i:02d}.png").unlink()
    save(tmp_path / f"train/images/a{i:02d}.jpg", picture(i), exif=exif)
  findings = inspected(tmp_path)
  assert "5 images turned by a tag (EXIF orientation), the first: train a03" in advised(findings)
  assert 3 in contact_sheet._choose_samples(findings.train, most=4)


def test_images_that_annotations_list_and_nobody_has_are_missing_not_damaged(tmp_path):
  for split in ("train", "val"):
    for i in range(4):
      write_labelme(tmp_path / split, f"{i}", seed=i + 9 * (split == "val"))
  (tmp_path / "train/1.png").unlink()
  findings = inspected(tmp_path, kind="labelme")
  assert "1 image of train are listed and not there, the first: " in advised(findings)
  assert "data.bad_share=0.26" in advised(findings)
  for path in (tmp_path / "train").glob("*.png"):
    path.unlink()
  text = advised(inspected(tmp_path, kind="labelme"))
  assert "none of the 4 images that the annotations of train list was found" in text and "bad_share=1" not in text


def test_objects_that_are_all_crowds_are_no_foreground(tmp_path):
  for split in ("train", "val"):
    for i in range(3):
      save(tmp_path / split / f"{i}.png", picture(i + 9 * (split == "val")))
    content = {"categories": [{"id": 1, "name": "grain"}]}
    content["images"] = [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(3)]
    content["annotations"] = [
      {"id": i, "image_id": i, "category_id": 1, "segmentation": [[0, 0, 24, 0, 24, 24]], "iscrowd": 1}
      for i in range(3)
    ]
    (tmp_path / f"{split}.json").write_text(json.dumps(content))
  text = advised(inspected(tmp_path, kind="coco"))
  assert "no label of train shows any foreground" in text and "all that is marked is ignored (crowd regions" in text


def test_rectangles_among_outlines_are_mentioned(tmp_path):
  for split in ("train", "val"):
    for i in range(4):
      write_labelme(tmp_path / split, f"{i}", seed=i + 9 * (split == "val"))
  assert "rectangles" not in advised(inspected(tmp_path, kind="labelme"))
  write_labelme(
    tmp_path / "val", "9", [{"label": "hole", "points": [(1, 1), (9, 9)], "shape_type": "rectangle"}], seed=99
  )
  assert "1 object of the labels are rectangles" in advised(inspected(tmp_path, kind="labelme"))


def test_a_folder_without_parts_gets_the_line_that_divides_it(tmp_path):
  for i in range(10):
    write_labelme(tmp_path / "data", f"{i}", seed=i)
  findings = inspected(tmp_path / "data", kind="labelme", splits=(".",))
  text = advised(findings)
  assert "the folder has one part only" in text and "--split=." in text
  line = text.partition("seggpt prepare")[2].splitlines()[0]
  command("prepare", *shlex.split(line))
  divided = inspected(tmp_path / "data_divided")
  assert (divided.train.num_usable, divided.val.num_usable) == (8, 2)
  assert (divided.train.pixels / divided.train.pixels.sum()).tolist() == pytest.approx(
    (findings.train.pixels / findings.train.pixels.sum()).tolist()
  )


def test_splits_that_were_not_read_are_named(tmp_path):
  root = write(tmp_path / "data")
  (root / "val").rename(root / "valid")
  shutil.copytree(root / "valid", root / "test")
  output = command("inspect", root, f"--outdir={tmp_path}/out")
  assert "VALID: 6 images" in output and "not read: test; keep" in output
  assert "--config.data.val_split=valid" in output.splitlines()[-3] + output.splitlines()[-4]


def test_names_of_masks_that_begin_with_words_are_classes(tmp_path):
  for split, start in (("train", 0), ("val", 100)):
    for i in range(12):
      save(tmp_path / split / "images" / f"{i}.png", picture(start + i))
      for name, mask in (("crack", blob(255)), ("wide hole", blob(255)[::-1])):
        save(tmp_path / split / "labels" / f"{i}" / f"{name}_{i % 3}.png", mask)
  findings = inspected(tmp_path, kind="masks")
  assert findings.class_names == ["crack", "wide hole"] and findings.train.holding[1:3].tolist() == [12, 12]
  assert "names of masks begin with crack, wide hole" in advised(findings)
  config = read_config(train_line(findings, advise(findings)))
  assert tuple(config.data.class_names) == ("crack", "wide hole") and config.data.num_classes == 3
  # Numbers alone, or one word, are no classes.
  for path in tmp_path.glob("*/labels/*/wide*"):
    path.rename(path.with_name(path.name.replace("wide hole", "crack_1")))
  assert inspected(tmp_path, kind="masks").class_names == []


def test_a_label_map_names_the_colors_of_a_folder(tmp_path):
  colors = np.array([(250, 50, 83), (0, 0, 0), (10, 200, 10)], np.uint8)
  write(tmp_path, lambda i: colors[blob(1 + i % 2)])
  (tmp_path / "labelmap.txt").write_text("crack:0,0,0::\nbackground:250,50,83::\nhole:10,200,10::\n")
  findings = inspected(tmp_path)
  assert findings.dataset.label_format == LabelFormat("table", table=((250, 50, 83), (0, 0, 0), (10, 200, 10)))
  assert findings.class_names == ["crack", "hole"] and "labelmap.txt names 2 classes" in advised(findings)


def test_few_images_are_called_few_and_a_missing_val_gets_the_line_that_divides(tmp_path):
  write(tmp_path, num_train=5, num_val=0)
  text = advised(inspected(tmp_path))
  assert "only 5 usable samples" in text and "seggpt prepare --kind=folder" in text
  assert "its scores are noisy" in advised(inspected(write(tmp_path, num_val=3)))


def test_an_only_sample_is_too_few(tmp_path):
  assert "1 usable sample: training will refuse" in advised(inspected(write(tmp_path, num_train=1)))


def test_images_without_any_labels_are_inspected_all_the_same(tmp_path):
  write(tmp_path)
  for label in (tmp_path / "train/labels").iterdir():
    label.unlink()
  findings = inspected(tmp_path)
  assert len(findings.train.problems["unmatched"]) == 13 and "train is unusable" in advised(findings)


def test_large_images_want_memory_or_smaller_copies(tmp_path):
  write(tmp_path, num_train=2, num_val=2)
  for name in ("a00", "a01"):
    for folder, pixels in (("images", picture(5, (2100, 2000))), ("labels", blob(size=2100)[:, :2000])):
      save(tmp_path / "train" / folder / f"{name}.png", pixels, compress_level=1)
  text = advised(inspected(tmp_path))
  assert "data.cache_mb=33" in text
  arguments = shlex.split(text[text.index("seggpt prepare") :].splitlines()[0])[1:]
  assert "--shorter_side=1024" in arguments
  command(*arguments)
  assert Image.open(f"{tmp_path}_1024/train/images/a00.png").size == (1024, 1075)


def test_sixteen_bits_with_a_small_range_say_how_they_are_read(tmp_path):
  write(tmp_path)
  for i in range(12):
    save(tmp_path / f"train/images/a{i:02d}.png", picture(i)[..., 0].astype(np.uint16) * 16)
  text = advised(inspected(tmp_path))
  assert "reach only" in text and "of 65535" in text and "are read with 4095 as white" in text


def test_max_images_reads_a_spread_of_them_and_says_so(tmp_path):
  findings = inspected(write(tmp_path), max_images=4)
  assert [sample.name for sample in findings.train.samples] == ["a00", "a04", "a07", "a11"]
  assert as_facts(findings)["splits"]["train"]["num_samples"] == 12


# ------------------------------------------------------------------------------------------------------------- labels


def colors(i):
  label = np.zeros((SIZE, SIZE, 3), np.uint8)
  label[:20], label[30:] = (200, 0, 0), (0, 120, 0) if i % 2 else (0, 0, 90)
  return label


def palette_image(i):
  image = Image.fromarray(blob(1 + i % 2)).convert("P")
  image.putpalette([0, 0, 0, 200, 10, 10, 10, 10, 200] + [0] * 759)
  image.info.clear()
  return image


def with_values(*values):
  return lambda i: np.array(values, np.uint16 if max(values) > 255 else np.uint8)[
    np.arange(SIZE * SIZE) % len(values)
  ].reshape(SIZE, SIZE)


@pytest.mark.parametrize(
  ("label", "expected", "num_classes"),
  [
    (lambda i: blob(255), LabelFormat("binary"), 2),
    (lambda i: np.full((SIZE, SIZE), i % 2 * 255, np.uint8), LabelFormat("binary"), 2),
    (lambda i: blob() > 0, LabelFormat("index"), 2),
    (with_values(0, 1, 2, 255), LabelFormat("index", ignore=(255,)), 3),
    (with_values(1, 2, 3, 3), LabelFormat("table", table=(3, 1, 2)), 3),
    (with_values(0, 64, 128, 192), LabelFormat("table", table=(0, 64, 128, 192)), 4),
    (with_values(0, 1000, 2000), LabelFormat("table", table=(0, 1000, 2000)), 3),
    (with_values(*range(400)), LabelFormat("binary", 0), 2),
    (with_values(0, 1, 3), LabelFormat("index"), 4),
    (with_values(255), LabelFormat("binary"), 2),
    (with_values(1), LabelFormat("index"), 2),
    (colors, LabelFormat("table", table=((0, 0, 0), (0, 0, 90), (0, 120, 0), (200, 0, 0))), 4),
    (lambda i: np.repeat(blob(1 + i % 2)[..., None], 3, axis=2), LabelFormat("index"), 3),
    (palette_image, LabelFormat("index"), 3),
  ],
)
def test_how_labels_are_meant_is_found_out(tmp_path, label, expected, num_classes):
  findings = inspected(write(tmp_path, label))
  text = advised(findings)
  assert findings.dataset.label_format == expected and findings.dataset.num_classes == num_classes
  assert not findings.train.problems["meaning"] and findings.train.num_labels == 12
  plain = expected == LabelFormat("index")
  assert (f"set data.labels={expected.mode}" in text) == (not plain)
  config = read_config(train_line(findings, advise(findings)))
  threshold = None if config.data.threshold < 0 else config.data.threshold
  read = LabelFormat(config.data.labels, threshold, config.data.table, config.data.ignore)
  assert read == expected and config.data.num_classes == num_classes


def test_jpeg_labels_and_their_noise_want_a_threshold(tmp_path):
  for name, ending in (("jpeg", "jpg"), ("noise", "png")):
    write(tmp_path / name, lambda i: np.roll(blob(255), (i, 11), (0, 1)), ending="jpg")
    if ending == "png":
      for path in list((tmp_path / name).glob("*/labels/*.jpg")):
        save(path.with_suffix(".png"), Image.open(path))
        path.unlink()
    findings = inspected(tmp_path / name)
    assert "set data.labels=binary, data.threshold=127" in advised(findings), name
    assert findings.train.pixels[1] / findings.train.pixels.sum() == pytest.approx(0.25, abs=0.01)


def test_a_palette_is_said_not_to_count(tmp_path):
  assert "18 labels with a color palette" in advised(inspected(write(tmp_path, palette_image)))


def test_palettes_in_another_order_are_refused_when_indices_are_asked_for(tmp_path):
  colors = [0, 0, 0, 200, 10, 10, 10, 10, 200]

  def label(i):
    image = Image.fromarray(blob(1 + i % 2))
    image.putpalette(colors if i % 3 else colors[:3] + colors[6:] + colors[3:6])
    return image

  write(tmp_path, label)
  advice = advise(inspected(tmp_path, given={"labels"}, label_format=LabelFormat()))
  assert any("the palettes of the labels differ: index 1 is" in each.text and each.fatal for each in advice)
  findings = inspected(tmp_path)
  assert findings.dataset.label_format.colors and not findings.train.problems["meaning"]


def test_labels_in_the_alpha_channel_are_named(tmp_path):
  def label(i):
    image = Image.new("RGBA", (SIZE, SIZE), "white")
    image.putalpha(Image.fromarray(blob(255)))
    return image

  findings = inspected(write(tmp_path, label))
  assert "18 labels cannot be read in this format, the first: " in advised(findings)
  assert "the mask is in the alpha channel" in advised(findings) and not findings.train.problems["unreadable"]


def test_labels_resized_with_interpolation_are_named(tmp_path):
  def large(i):
    return np.pad(blob(1 + i % 3, size=40), 16)

  def resized(resample):
    return lambda i: Image.fromarray(large(i)).resize((SIZE, SIZE), resample)

  text = advised(inspected(write(tmp_path / "smooth", resized(Image.Resampling.BILINEAR))))
  assert "resize labels with nearest neighbor" in text
  assert "nearest" not in advised(inspected(write(tmp_path / "nearest", resized(Image.Resampling.NEAREST))))


def test_specks_and_classes_without_a_pixel_are_named(tmp_path):
  def label(i):
    label = blob(1)
    label[30::6, 30::6] = 1
    label[:20, 30:] = 3
    return label

  text = advised(inspected(write(tmp_path, label)))
  assert "162 of the 180 regions of class 1 have at most 3 pixels" in text
  assert "class 2 is in no label" in text


def test_given_flags_that_do_not_fit_are_answered_with_those_that_do(tmp_path):
  findings = inspected(write(tmp_path, lambda i: blob(255)), given={"labels"}, label_format=LabelFormat("index"))
  assert len(findings.train.problems["meaning"]) == 12
  assert "does not fit; set data.labels=binary" in advised(findings)


def test_more_classes_than_given(tmp_path):
  findings = inspected(write(tmp_path), given={"num_classes"}, num_classes=2)
  assert "labels hold class 2, beyond num_classes=2: set data.num_classes=3" in advised(findings)


def test_labels_unlike_those_looked_at_first_are_met(tmp_path):
  """The first labels are all 0 and 1; one among many has a 7 and changes how all are read."""
  write(tmp_path, lambda i: blob(), num_train=80)
  save(tmp_path / "train/labels/a01.png", blob(200))
  findings = inspected(tmp_path)
  assert findings.dataset.label_format.table == (0, 1, 200) and findings.train.holding[2] == 1


def test_no_foreground_at_all_is_refused_and_much_emptiness_is_not(tmp_path):
  assert "no label of train shows any foreground" in advised(inspected(write(tmp_path / "a", lambda i: blob(0))))
  text = advised(inspected(write(tmp_path / "b", lambda i: blob(int(i % 4 == 0)))))
  assert "75% of train have no foreground" in text and "training stops" not in text


def test_rare_classes_and_those_of_one_split_only(tmp_path):
  write(tmp_path, lambda i: blob(1), num_train=30)
  save(tmp_path / "train/labels/a07.png", blob(2))
  text = advised(inspected(tmp_path))
  assert "rare classes (2 in 3.3% of the samples)" in text
  assert "classes only in train, not in val: 2; they are not scored" in text


def test_little_foreground_wants_crops_on_it_where_the_released_weights_are_trained(tmp_path, monkeypatch):
  monkeypatch.setattr(file_advice, "_WEIGHTS", tmp_path)
  label = np.zeros((SIZE, SIZE), np.uint8)
  label[: SIZE // 8, : SIZE // 8] = 1
  text = advised(inspected(write(tmp_path, lambda i: label)))
  assert "data.foreground_crop=0.5" in text and "regions are small" not in text


def test_small_regions_want_tiles_of_the_released_weights_and_larger_squares_of_a_head(tmp_path, monkeypatch):
  def speck(i):
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[i, i] = 1
    return label

  write(tmp_path, speck)
  monkeypatch.setattr(file_advice, "SMALL", file_advice.SMALL._replace(square=96))
  text = advised(inspected(tmp_path))
  assert "a larger config.data.resize shows them" in text and "foreground_crop" not in text
  monkeypatch.setattr(file_advice, "_WEIGHTS", tmp_path)
  assert "--config defects trains on tiles" in advised(inspected(tmp_path))


def test_mostly_ignored_pixels(tmp_path):
  write(tmp_path, with_values(0, 1, 2, 255, 255, 255, 255, 255))
  assert "62% of the pixels are ignored" in advised(inspected(tmp_path))


# ------------------------------------------------------------------------------------------------------------- splits


def test_groups_in_two_splits_leak(tmp_path):
  write(tmp_path)
  for split, names in (("train", "pqr"), ("val", "rst")):
    for folder in ("images", "labels"):
      for i, path in enumerate(sorted((tmp_path / split / folder).iterdir())):
        path.rename(path.with_name(f"{names[i % 3]}_{path.name}"))
  findings = inspected(tmp_path, groups="prefix:_")
  assert findings.groups.shared == ["r"] and "1 group in more than one split (r)" in advised(findings)
  assert dict(findings.groups.sizes["train"]) == {"p": 4, "q": 4, "r": 4}


def test_names_that_look_like_groups_get_a_proposal(tmp_path):
  """Each kind may mark something else: pairs of all kinds would then teach nothing."""
  write(tmp_path / "a")
  assert "groups" not in advised(inspected(tmp_path / "a"))
  for path in list((tmp_path / "a").rglob("a*.png")):
    path.rename(path.with_name(f"kind{int(path.stem[1:]) % 3}_{path.name}"))
  assert "3 groups, such as kind0: if each is a task" in advised(inspected(tmp_path / "a"))
  assert "names look like" not in advised(inspected(tmp_path / "a", groups="prefix:_"))


def test_the_line_that_segments_works(tmp_path):
  root = write(tmp_path / "my data", label=lambda i: 255 * blob(), num_train=4, num_val=1)
  line = segment_line(inspected(root))
  assert "--labels=binary" in line
  command(*shlex.split(line.replace("=segmented", f"={shlex.quote(str(tmp_path / 'out'))}"))[1:])
  assert len(list((tmp_path / "out" / "label").iterdir())) == 1


def test_copies_between_and_inside_splits(tmp_path):
  write(tmp_path)
  save(tmp_path / "val/images/a03.jpg", picture(4), quality=60)
  (tmp_path / "val/images/a03.png").unlink()
  save(tmp_path / "train/images/a09.png", picture(8))
  findings = inspected(tmp_path)
  text = advised(findings)
  assert findings.copies[0].pairs[0][:2] == ("a04", "a03") and findings.copies[0].num_copied == 1
  assert "1 of 6 images of val are also in train" in text and "a08 = a09" in text


# -------------------------------------------------------------------------------------------------------------- kinds


def test_masks_are_told_by_their_folders_and_orphans_listed(tmp_path):
  for split in ("train", "val"):
    for i in range(12):
      save(tmp_path / split / "images" / f"{i}.png", picture(i + 100 * (split == "val")))
      save(tmp_path / split / "labels" / "crack" / f"{i}.png", blob(255))
  save(tmp_path / "train/labels/dent/orphan.png", blob(255))
  save(tmp_path / "train/labels/dent/3.png", blob(255)[::-1])
  assert recognize(str(tmp_path)).kind == "masks"
  findings = inspected(tmp_path, kind="masks")
  assert findings.class_names == ["crack", "dent"] and findings.dataset.num_classes == 3
  assert "orphan" in findings.train.problems["unmatched"][0]
  assert findings.train.holding[1:3].tolist() == [12, 1] and "rare classes (2 dent" in advised(findings)


def test_class_folders_are_told_by_their_folders(tmp_path):
  for split in ("train", "val"):
    for i in range(12):
      for folder, pixels in (("image", picture(i + 100 * (split == "val"))), ("label", blob(255))):
        save(tmp_path / split / "tile" / "crack" / folder / f"{i}.png", pixels)
  (tmp_path / "train/tile/crack/label/3.png").unlink()
  assert recognize(str(tmp_path)).kind == "class_folders"
  findings = inspected(tmp_path, kind="class_folders")
  assert findings.train.num_samples == 11 and len(findings.train.problems["unmatched"]) == 1
  assert "--config.data.source=class_folders" in train_line(findings, advise(findings))


def test_coco_annotations_are_read_as_they_are(tmp_path):
  pytest.importorskip("seggpt_jax.formats.coco")
  for split in ("train", "val"):
    for i in range(11):
      save(tmp_path / split / f"{i}.png", picture(i + 100 * (split == "val")))
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(11)]
    box = [0, 0, 24, 0, 24, 24, 0, 24]
    annotations = [{"id": i, "image_id": i, "category_id": 5, "segmentation": [box]} for i in range(11)]
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]
    (tmp_path / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
  (tmp_path / "train/4.png").unlink()
  assert recognize(str(tmp_path)).kind == "coco"
  findings = inspected(tmp_path, kind="coco")
  assert findings.dataset.num_classes == 3 and findings.train.holding[1] == 11
  assert "4.png" in findings.train.problems["missing"][0] and "data.source=coco" in train_line(findings, [])
  assert "1 image of train are listed and not there" in advised(findings) and "bad_share=0.1" in advised(findings)


def test_records_are_read_as_they_are(tmp_path):
  write(tmp_path / "folder")
  flags = ("--num_classes=3", "--labels=index", "--format=records", "--groups=prefix:a", f"--outdir={tmp_path}/records")
  command("prepare", f"--path={tmp_path}/folder", *flags)
  assert recognize(str(tmp_path / "records")).kind == "tfds"
  findings = inspected(tmp_path / "records", kind="tfds", groups="field:name")
  assert (findings.train.num_usable, findings.dataset.num_classes) == (12, 3)
  assert len(findings.groups.shared) == 6 and "6 groups in more than one split" in advised(findings)


def test_the_line_that_divides_works(tmp_path):
  write(tmp_path / "data", lambda i: blob(255), num_train=20, num_val=0)
  (tmp_path / "data/train/labels/a03.png").write_bytes(b"no label")
  line = advised(inspected(tmp_path / "data")).partition("seggpt prepare")[2].splitlines()[0]
  command("prepare", *shlex.split(line))
  assert "usable" not in advised(inspected(tmp_path / "data_divided", splits=("train",)))


def test_folders_of_names_are_no_masks(tmp_path):
  for folder in ("images", "labels"):
    save(tmp_path / "train" / folder / "street" / "1.png", blob())
  assert recognize(str(tmp_path)).kind == "folder"
