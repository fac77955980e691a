"""Reads the files of labeling tools as the tools mean them. A file that cannot be read is an error that names it."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from seggpt_jax.data.datasets import Dataset, open_dataset
from seggpt_jax.errors import InputError
from seggpt_jax.formats.folders import DatasetFiles, order_splits
from seggpt_jax.formats.labels import IGNORE, LabelFormat
from seggpt_jax.formats.layouts import read_label_map
from seggpt_jax.formats.recognize import OUTLINES, recognize
from tests.formats import annotation_folders as write
from tests.formats.annotation_folders import CRACK, HEIGHT, HOLE, WIDTH, drawn, expected


def opened(path, kind, split=".", num_classes=3, **more):
  problems = more.pop("problems", None)
  return open_dataset(Dataset(kind, str(path), num_classes, **more), split, problems=problems)


def refused(match, make):
  with pytest.raises(InputError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


MADE = {
  "labelme": (lambda path: write.labelme(path), "."),
  "yolo": (lambda path: write.yolo(path), "train"),
  "cvat": (lambda path: write.cvat(path), "."),
  "label_studio": (lambda path: write.label_studio(path), "."),
  "voc": (lambda path: write.voc(path), "train"),
}


@pytest.mark.parametrize("kind", MADE)
def test_every_form_is_recognized_and_read_as_the_same_label(tmp_path, kind):
  make, split = MADE[kind]
  make(tmp_path)
  form = recognize(str(tmp_path))
  assert (form.kind, form.splits) == (kind, (split,))
  source = opened(tmp_path, kind, split)
  assert len(source) == 1 and source.name(0) == "a"
  sample = source[0]
  np.testing.assert_array_equal(sample["label"], expected())
  np.testing.assert_array_equal(source.label(0), expected())
  assert sample["image"].shape == (HEIGHT, WIDTH, 3)
  if kind in OUTLINES:
    assert source.categories == ("crack", "hole") and source.classes(0) == (1, 2)


def test_named_categories_become_classes_in_the_given_order(tmp_path):
  source = opened(write.labelme(tmp_path), "labelme", class_names=("hole",), num_classes=2)
  np.testing.assert_array_equal(source[0]["label"], expected() == 2)
  refused(
    "found no category 'cow', expected one of crack, hole", lambda: opened(tmp_path, "labelme", class_names=("cow",))
  )
  refused("found category 'hole' as class 2, expected 0..1", lambda: opened(tmp_path, "labelme", num_classes=2))


# ------------------------------------------------------------------------------------------------------------ LabelMe


def shape(kind, points, label="crack", **more):
  return {"label": label, "points": points, "shape_type": kind, **more}


def disk(center, radius):
  y, x = np.indices((HEIGHT, WIDTH)) + 0.5
  return np.hypot(x - center[0], y - center[1]) < radius


def test_labelme_shapes_of_every_kind(tmp_path):
  small = np.ones((4, 6), np.uint8)
  small[1:3, 2:4] = 0  # a hole, which only a mask can have
  shapes = [
    shape("rectangle", [(10, 8), (2, 2)]),
    shape("circle", [(30, 10), (30, 15)], "hole"),
    shape("mask", [(4, 20), (9, 23)], mask=write.labelme_mask(small)),
  ]
  label = opened(write.labelme(tmp_path, shapes=shapes), "labelme").label(0)
  assert (label[2:8, 2:10] == 1).all() and (label[20:24, 4:10] == small).all()
  assert (label[:16, 20:] == 2).sum() == pytest.approx(disk((30, 10), 5).sum(), abs=4)
  assert ((label == 1).sum(), np.unique(label).tolist()) == (48 + 20, [0, 1, 2])


def test_labelme_draws_in_the_order_of_the_file_and_cuts_the_background_out(tmp_path):
  shapes = [shape("rectangle", [(0, 0), (20, 20)]), shape("rectangle", [(5, 5), (10, 10)], "_background_")]
  shapes.append(shape("rectangle", [(0, 0), (3, 3)], "__ignore__"))
  source = opened(write.labelme(tmp_path, shapes=shapes), "labelme", num_classes=2)
  label = source.label(0)
  assert label[7, 7] == 0 and label[4, 4] == 1 and label[1, 1] == IGNORE and source.classes(0) == (1,)
  assert source.categories == ("crack",)


@pytest.mark.parametrize(
  "shapes, match",
  [
    ([shape("polygon", [(1, 1), (2, 2)])], r"a.json: shape 0 \(crack\): found 2 points, expected at least 3"),
    ([shape("line", [(1, 1), (2, 2)])], "found a line, which covers no pixels"),
    ([shape("mask", [(1, 1), (2, 2)], mask="no")], "found a mask that cannot be read"),
    ([shape("polygon", [(1, "x"), (2, 2), (3, 3)])], "found a polygon that cannot be read"),
    ([{"points": CRACK}], "shape 0: found no label"),
    (["no"], "shape 0: found no label"),
  ],
)
def test_a_wrong_labelme_shape_is_an_error_of_its_image_alone(tmp_path, shapes, match):
  write.labelme(tmp_path, "b")
  source = opened(write.labelme(tmp_path, shapes=shapes), "labelme")
  refused(match, lambda: source[0])
  np.testing.assert_array_equal(source.label(1), expected())


def test_labelme_files_in_folders_of_splits_share_their_classes(tmp_path):
  write.labelme(tmp_path / "train", "a", [shape("polygon", CRACK)])
  write.labelme(tmp_path / "val", "a", [shape("polygon", HOLE, "hole")])
  assert recognize(str(tmp_path)).splits == ("train", "val")
  source = opened(tmp_path, "labelme", "val")
  # hole is class 2 although val alone has no crack.
  np.testing.assert_array_equal(source[0]["label"], 2 * drawn(HOLE))
  refused("found no folder 'test' with JSON files of LabelMe", lambda: opened(tmp_path, "labelme", "test"))


def test_labelme_images_in_another_folder_and_those_without_annotations(tmp_path):
  write.labelme(tmp_path / "annotations", imagePath="..\\images\\a.png")
  (tmp_path / "images").mkdir()
  (tmp_path / "annotations/a.png").rename(tmp_path / "images/a.png")
  write.save_image(tmp_path / "images/b.png")
  refused("images/b.png: found no JSON file for it", lambda: opened(tmp_path, "labelme"))
  problems = []
  source = opened(tmp_path, "labelme", problems=problems)
  assert source[0]["label"].any() and len(source) == 1 and len(problems) == 1


@pytest.mark.parametrize(
  "text, match", [("{", "a.json: cannot be read as JSON"), ('{"shapes": []}', "imagePath: found None")]
)
def test_damaged_labelme_files(tmp_path, text, match):
  write.labelme(tmp_path)
  (tmp_path / "a.json").write_text(text)
  refused(match, lambda: opened(tmp_path, "labelme"))


# --------------------------------------------------------------------------------------------------------------- YOLO


@pytest.mark.parametrize("arranged", ["images/{}", "{}/images"])
def test_yolo_in_both_arrangements_and_images_without_text_are_background(tmp_path, arranged):
  for split in ("train", "val"):
    write.yolo(tmp_path, split, arranged)
    write.save_image(tmp_path / arranged.format(split) / "empty.png")
  assert recognize(str(tmp_path)) == ("yolo", ("train", "val"))
  source = opened(tmp_path, "yolo", "val")
  assert source.name(1) == "empty" and not source[1]["label"].any()
  np.testing.assert_array_equal(source[0]["label"], expected())


def test_yolo_without_names_counts_the_classes_of_all_splits(tmp_path):
  write.yolo(tmp_path, "train")
  write.yolo(tmp_path, "val", text="0 0.1 0.1 0.5 0.1 0.5 0.5")
  (tmp_path / "data.yaml").unlink()
  assert opened(tmp_path, "yolo", "val").categories == ("0", "1")
  refused("found category '1' as class 2", lambda: opened(tmp_path, "yolo", "val", num_classes=2))


def test_roboflow_names_valid_in_its_description(tmp_path):
  write.yolo(tmp_path, "train", "{}/images")
  write.yolo(tmp_path, "valid", "{}/images")
  (tmp_path / "data.yaml").write_text(
    "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {0: crack, 1: hole}\n"
  )
  assert recognize(str(tmp_path)).splits == ("train", "val")
  np.testing.assert_array_equal(opened(tmp_path, "yolo", "val")[0]["label"], expected())


def test_yolo_lists_of_images(tmp_path):
  write.yolo(tmp_path, "all")
  write.yolo(tmp_path, "all", name="b")
  (tmp_path / "train.txt").write_text("./images/all/b.png\n")
  (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [crack, hole]\n")
  source = opened(tmp_path, "yolo", "train")
  assert len(source) == 1 and source[0]["label"].any()


def test_yolo_split_of_several_folders_and_lists(tmp_path):
  for place, name in (("one", "a"), ("two", "a"), ("rest", "b"), ("rest", "c")):
    write.yolo(tmp_path, place, name=name)
  (tmp_path / "some.txt").write_text("./images/rest/c.png\n./images/two/a.png\n")
  (tmp_path / "data.yaml").write_text("train: [images/one, images/two, some.txt]\nnames: [crack, hole]\n")
  source = opened(tmp_path, "yolo", "train")
  assert [source.name(index) for index in range(len(source))] == ["one/a", "rest/c", "two/a"]
  assert all(source[index]["label"].any() for index in range(3))
  (tmp_path / "data.yaml").write_text("train: [images/one, images/three]\nnames: [crack, hole]\n")
  refused("data.yaml: train: found no images in images/three", lambda: opened(tmp_path, "yolo", "train"))


@pytest.mark.parametrize(
  "text, match",
  [
    ("0 0.5 0.5 0.2 0.2\n", "labels/train/a.txt: line 1: found a box, expected a polygon"),
    ("\n5 0.1 0.1 0.5 0.1 0.5 0.5\n", "found class 5, expected 0..1"),
    ("0 1 1 5 1 5 5\n", "found coordinates 1..5, expected 0..1"),
    ("0 0.1 0.1 0.5 0.1 0.5\n", "found 2.5 points, expected at least 3"),
    ("crack 0.1 0.1 0.5 0.1 0.5 0.5\n", "found class 'crack', expected a number"),
    ("0 0.1 0.1 x 0.1 0.5 0.5\n", "expected numbers"),
  ],
)
def test_a_wrong_yolo_line_is_an_error_of_its_image_alone(tmp_path, text, match):
  write.yolo(tmp_path, name="b")
  source = opened(write.yolo(tmp_path, text=text), "yolo", "train")
  refused(match, lambda: source[0])
  np.testing.assert_array_equal(source.label(1), expected())


def test_yolo_text_without_an_image(tmp_path):
  (write.yolo(tmp_path) / "labels/train/lost.txt").write_text("")
  refused("labels/train/lost.txt: found no image for it", lambda: opened(tmp_path, "yolo", "train"))
  problems = []
  assert len(opened(tmp_path, "yolo", "train", problems=problems)) == len(problems) == 1


# --------------------------------------------------------------------------------------------------------------- CVAT


def test_cvat_shapes_of_every_kind_in_their_z_order(tmp_path):
  mask = "2,2,2,2,2,2"  # rows of 4: 0011 0011 0011, counted along rows
  shapes = f"""
    <box label="crack" xtl="2" ytl="2" xbr="10" ybr="8" z_order="1"/>
    <box label="hole" xtl="4" ytl="4" xbr="6" ybr="6" z_order="0"/>
    <ellipse label="hole" cx="30" cy="10" rx="5" ry="5"/>
    <mask label="hole" rle="{mask}" left="4" top="20" width="4" height="3"/>"""
  label = opened(write.cvat(tmp_path, shapes), "cvat").label(0)
  assert (label[2:8, 2:10] == 1).all()  # the box of the higher z-order covers the other
  assert (label[20:23, 4:8] == [0, 0, 2, 2]).all()
  assert (label[:16, 20:] == 2).sum() == pytest.approx(disk((30, 10), 5).sum(), abs=4)


def test_cvat_boxes_may_be_rotated(tmp_path):
  label = opened(
    write.cvat(tmp_path, '<box label="crack" xtl="10" ytl="12" xbr="30" ybr="16" rotation="90"/>'), "cvat"
  ).label(0)
  ys, xs = np.nonzero(label)
  assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((18, 21, 4, 23), abs=1)


def test_cvat_subsets_are_splits(tmp_path):
  write.cvat(tmp_path, image='name="a.png" subset="Train"')
  assert recognize(str(tmp_path)) == ("cvat", ("Train",))
  assert opened(tmp_path, "cvat", "Train")[0]["label"].any()
  refused("found no images of the split 'val', expected one of Train", lambda: opened(tmp_path, "cvat", "val"))


@pytest.mark.parametrize(
  "shapes, match",
  [
    ('<polyline label="crack" points="1,1;2,2"/>', r"a.png: polyline 0 \(crack\): covers no pixels"),
    ('<polygon label="crack" points="1,1;2,2"/>', "found 2 points"),
    ('<polygon label="crack"/>', "cannot be read"),
    (
      '<mask label="crack" rle="1,2" left="0" top="0" width="9" height="9"/>',
      "found run lengths of 3 pixels for 9 x 9",
    ),
    ('<box xtl="1"/>', "found no label"),
  ],
)
def test_a_wrong_cvat_shape_is_named(tmp_path, shapes, match):
  refused(match, lambda: opened(write.cvat(tmp_path, shapes), "cvat").label(0))


def test_damaged_cvat_files(tmp_path):
  (write.cvat(tmp_path) / "annotations.xml").write_text("<annotations><meta>")
  refused("annotations.xml: cannot be read as XML", lambda: opened(tmp_path, "cvat"))


# ------------------------------------------------------------------------------------------------------- Label Studio


def test_label_studio_regions_of_every_kind(tmp_path):
  brush = np.zeros((HEIGHT, WIDTH), bool)
  brush[20:24, 4:10] = True
  brush[21, 5] = False
  results = [
    write.label_studio_result("brushlabels", "crack", format="rle", rle=write.encode_brush(brush)),
    write.label_studio_result("rectanglelabels", "hole", x=50.0, y=50.0, width=25.0, height=20.0, rotation=0),
    write.label_studio_result("ellipselabels", "hole", x=75.0, y=100 / 3, radiusX=12.5, radiusY=50 / 3, rotation=0),
    {"type": "choices", "value": {"choices": ["good"]}, "original_width": WIDTH, "original_height": HEIGHT},
  ]
  source = opened(write.label_studio(tmp_path, results), "label_studio")
  label = source.label(0)
  np.testing.assert_array_equal(label[18:30, :18] == 1, brush[18:30, :18])
  assert (label[15:21, 20:30] == 2).all() and source.categories == ("crack", "hole")
  assert (label[:14, 20:] == 2).sum() == pytest.approx(disk((30, 10), 5)[:14].sum(), abs=4)


@pytest.mark.parametrize(
  "image", ["images/a.png", "0a1b2c3d-a.png", "/data/local-files/?d=set%2Fa.png", "http://host/data/a.png?token=x"]
)
def test_label_studio_images_are_found_by_name(tmp_path, image):
  assert opened(write.label_studio(tmp_path, image=image), "label_studio")[0]["label"].any()


def test_label_studio_short_form(tmp_path):
  write.label_studio(tmp_path)
  region = {"points": [(100 * x / WIDTH, 100 * y / HEIGHT) for x, y in CRACK], "polygonlabels": ["crack"]}
  region |= {"original_width": WIDTH, "original_height": HEIGHT}
  content = [{"image": "/data/upload/1/a.png", "id": 1, "tag": [region], "annotator": 1, "annotation_id": 1}]
  (tmp_path / "export.json").write_text(json.dumps(content))
  np.testing.assert_array_equal(opened(tmp_path, "label_studio").label(0), drawn(CRACK))


def test_label_studio_tasks_that_nobody_or_two_have_annotated(tmp_path):
  write.label_studio(tmp_path, annotations=[])
  refused("task 7: found no annotation", lambda: opened(tmp_path, "label_studio"))
  problems = []
  assert len(opened(tmp_path, "label_studio", problems=problems)) == 0 and len(problems) == 1
  write.label_studio(tmp_path, annotations=[{"result": []}, {"result": []}])
  refused("task 7: found 2 annotations, expected one", lambda: opened(tmp_path, "label_studio")[0])


def test_label_studio_masks_without_an_export(tmp_path):
  write.save_image(tmp_path / "task-3-annotation-2-by-1-tag-crack-0.png")
  refused("masks of Label Studio's brushes without a JSON export", lambda: recognize(str(tmp_path)))


# ---------------------------------------------------------------------------------------------- VOC and CVAT's masks


def test_voc_below_its_usual_folder_with_the_lists_of_its_splits(tmp_path):
  root = tmp_path / "VOCdevkit/VOC2012"
  write.voc(root, "train")
  write.voc(root, "val", name="b")
  write.voc(root, "trainval", name="c")
  assert recognize(str(tmp_path)) == ("voc", ("train", "val"))
  source = opened(tmp_path, "voc", "val")
  assert [source.name(i) for i in range(len(source))] == ["b"]
  refused(
    "test.txt: not found, expected the list of the split 'test'; there are train, val",
    lambda: opened(tmp_path, "voc", "test"),
  )
  (root / "SegmentationClass/b.png").unlink()
  refused("SegmentationClass/b.png: not found, expected for b", lambda: opened(tmp_path, "voc", "val"))


def test_the_colors_of_a_label_map_are_the_classes(tmp_path):
  colors = np.array([(250, 50, 83), (0, 0, 0), (10, 200, 10)], np.uint8)
  write.voc(tmp_path, "default", colors[expected()])
  (tmp_path / "labelmap.txt").write_text(
    "# label:color_rgb:parts:actions\ncrack:0,0,0::\nbackground:250,50,83::\nhole:10,200,10::\nignore:9,9,9::\n"
  )
  stated = read_label_map(DatasetFiles(tmp_path))
  assert stated.names == ("crack", "hole")
  assert stated.label_format == LabelFormat(
    "table", table=((250, 50, 83), (0, 0, 0), (10, 200, 10)), ignore=((9, 9, 9),)
  )
  source = opened(tmp_path, "voc", "default", label_format=stated.label_format)
  np.testing.assert_array_equal(source[0]["label"], expected())


@pytest.mark.parametrize(
  "text, match",
  [
    ("crack:1,2\n", "line 1: found 'crack:1,2', expected NAME:RED,GREEN,BLUE::"),
    ("background:0,0,0::\ncrack:0,0,0::\n", "line 2: found .* as for another class"),
    ("crack:1,2,3::\n", "expected background and at least one other"),
  ],
)
def test_wrong_label_maps(tmp_path, text, match):
  (tmp_path / "labelmap.txt").write_text(text)
  refused(match, lambda: read_label_map(DatasetFiles(tmp_path)))


# -------------------------------------------------------------------------------------------------- folders and splits


@pytest.mark.parametrize(
  "arranged",
  [("{}/images", "{}/labels"), ("images/{}", "labels/{}"), ("img_dir/{}", "ann_dir/{}"), ("{}/images", "{}/masks")],
)
def test_folders_of_label_maps_in_the_usual_arrangements(tmp_path, arranged):
  for split in ("train", "validation"):
    images, labels = (tmp_path / each.format(split) for each in arranged)
    write.save_image(images / "a.png")
    labels.mkdir(parents=True)
    Image.fromarray(expected()).save(labels / "a.png")
  assert recognize(str(tmp_path)) == ("folder", ("train", "validation"))
  np.testing.assert_array_equal(opened(tmp_path, "folder", "validation")[0]["label"], expected())


def test_two_folders_of_label_maps_are_ambiguous(tmp_path):
  for folder in ("images", "masks", "annotations"):
    write.save_image(tmp_path / "train" / folder / "a.png")
  refused("train/masks: found .*train/annotations too", lambda: opened(tmp_path, "folder", "train"))


def test_splits_come_in_the_order_of_their_use():
  assert order_splits(["test", "valid", "train", "extra"]) == ["train", "valid", "test", "extra"]
  assert order_splits(["val2017", "train2017"]) == ["train2017", "val2017"]


def test_a_folder_of_unknown_form_is_described(tmp_path):
  (tmp_path / "scans").mkdir()
  for name in ("a.dcm", "b.dcm", "notes"):
    (tmp_path / "scans" / name).write_text("")
  refused("found 2 .dcm, 1 without an ending in scans, which is no known form", lambda: recognize(str(tmp_path)))


def test_outlines_drawn_by_opencv_differ_at_the_edge_only(tmp_path):
  """The tools draw polygons by other rules at the edge; inside of it all agree."""
  canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
  cv2.fillPoly(canvas, [np.round(HOLE).astype(np.int32)], 1)
  edge = cv2.morphologyEx(canvas, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
  assert (canvas[~edge] == drawn(HOLE)[~edge]).all()
