"""Files that leave the page, and come back: every format is read by the package's own readers."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from seggpt_jax.app import bundles
from seggpt_jax.app.bundles import MOST_FRAMES, add_frames
from seggpt_jax.app.limits import TooLargeError
from seggpt_jax.app.sessions import Session
from seggpt_jax.data.datasets import OutlineSource
from seggpt_jax.errors import InputError
from seggpt_jax.formats.coco import read_coco
from seggpt_jax.formats.labelme import read_labelme
from seggpt_jax.formats.labels import LabelFormat, read_labels
from seggpt_jax.formats.recognize import recognize
from seggpt_jax.formats.yolo import read_yolo
from seggpt_jax.inference.prediction import decode_prediction
from seggpt_jax.inference.video import write_video
from seggpt_jax.palette import fixed_palette
from tests.app.page_clients import noise, png, square


@pytest.fixture
def session(tmp_path):
  """A session of three images: one labeled, one answered, one neither."""
  session = Session(tmp_path / "session")
  session.set_classes(["crack", "hole"])
  labeled, answered, _ = [session.add_image(f"part_{seed}.png", png(noise(seed))).key for seed in range(3)]
  session.set_label(labeled, square(2))
  palette = fixed_palette(3)
  session.put_answer(answered, session.round, decode_prediction(palette[square(1, start=12)], palette, np.arange(3)))
  return session


def unpacked(session: Session, kind: bundles.Download, folder: Path) -> Path:
  bundles.write_download(session, kind, folder / "download.zip")
  zipfile.ZipFile(folder / "download.zip").extractall(folder / kind)
  return folder / kind


def test_masks_are_label_maps_of_the_same_names(session, tmp_path):
  folder = unpacked(session, "masks", tmp_path)
  assert sorted(path.stem for path in (folder / "images").iterdir()) == ["part_0", "part_1"]
  for name, expected in (("part_0", square(2)), ("part_1", square(1, start=12))):
    np.testing.assert_array_equal(read_labels(folder / "labels" / f"{name}.png", LabelFormat()), expected)


@pytest.mark.parametrize(("kind", "read"), [("coco", read_coco), ("labelme", read_labelme), ("yolo", read_yolo)])
def test_annotations_are_read_back(session, tmp_path, kind, read):
  folder = unpacked(session, kind, tmp_path)
  assert recognize(str(folder)).kind == kind
  found = OutlineSource(read(folder, recognize(str(folder)).splits[0]), 3, ("crack", "hole"))
  labels = {found.name(index).rpartition("/")[2]: found.label(index) for index in range(len(found))}
  np.testing.assert_array_equal(labels["part_0"], square(2))
  np.testing.assert_array_equal(labels["part_1"], square(1, start=12))
  other = Session(tmp_path / "other")
  assert bundles.load_session(other, tmp_path / "download.zip", 10**7) == 2
  assert other.classes == ["crack", "hole"]
  loaded = {each.name.rpartition("/")[2]: other.label(each.key) for each in other.examples}
  np.testing.assert_array_equal(loaded["part_0"], square(2))
  np.testing.assert_array_equal(loaded["part_1"], square(1, start=12))


def test_masks_of_one_class_load(tmp_path):
  session = Session(tmp_path / "session")
  files = {"top__images__cam1__a.png": png(noise(0)), "top__masks__cam1__a.png": png(square(255))}
  archive = zipped(tmp_path, **files)
  bundles.load_session(session, archive, 10**7)
  (picture,) = session.examples
  assert picture.name == "cam1/a" and session.classes == ["object"]
  np.testing.assert_array_equal(session.label(picture.key), square(1))


def test_a_saved_session_is_a_dataset_and_loads_again(session, tmp_path):
  bundles.save_session(session, tmp_path / "session.zip")
  zipfile.ZipFile(tmp_path / "session.zip").extractall(tmp_path / "dataset")
  assert recognize(str(tmp_path / "dataset")) == ("folder", ("train",))
  other = Session(tmp_path / "other")
  assert bundles.load_session(other, tmp_path / "session.zip", 10**7) == 3
  assert other.classes == ["crack", "hole"] and [each.name for each in other.examples] == ["part_0"]
  np.testing.assert_array_equal(other.label(other.examples[0].key), square(2))
  np.testing.assert_array_equal(other.pixels(other.examples[0].key), noise(0))


def test_a_zip_of_another_dataset_loads(session, tmp_path):
  with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
    packed.writestr("mine/images/a.png", png(noise(5)))
    packed.writestr("mine/masks/a.png", png(square(1)))
  assert bundles.load_session(session, tmp_path / "other.zip", 10**7) == 1
  assert len(session.examples) == 2 and session.classes == ["crack", "hole"]


def test_archives_that_are_too_large_or_damaged_are_refused(session, tmp_path):
  bundles.save_session(session, tmp_path / "session.zip")
  with pytest.raises(TooLargeError, match="archive"):
    bundles.load_session(session, tmp_path / "session.zip", 1000)
  data = (tmp_path / "session.zip").read_bytes()
  (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError, match="zip file"):
    bundles.load_session(session, tmp_path / "cut.zip", 10**7)
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as packed:
    packed.writestr("notes.txt", "nothing")
  (tmp_path / "empty.zip").write_bytes(file.getvalue())
  with pytest.raises(InputError, match=r"archive: it: found 1 \.txt, which is no known form"):
    bundles.load_session(session, tmp_path / "empty.zip", 10**7)
  assert len(session.pictures) == 3


def test_names_of_files_are_kept_apart_and_clean(session):
  for name, expected in (
    ("part_0.png", "part_0_2"),
    ("C:\\photos\\part_0.jpg", "part_0_3"),
    ("../../etc/pass\nwd", "pass_wd"),
    ("<b>.png", "_b_"),
    ("...", "image"),
    ("Ünï 1.png", "Ünï 1"),
  ):
    assert session.add_image(name, png(noise(9))).name == expected


def test_a_video_becomes_evenly_spread_frames(session, tmp_path):
  frames = [np.full((32, 48, 3), 2 * index, np.uint8) for index in range(100)]
  write_video(tmp_path / "film.mp4", frames, 25)
  assert add_frames(session, tmp_path / "film.mp4", "film.mp4", 10**6) == MOST_FRAMES
  names = [each.name for each in session.pictures.values() if each.name.startswith("film")]
  assert names[0] == "film_00000" and names[-1] == "film_00099" and len(names) == MOST_FRAMES
  (tmp_path / "bad.mp4").write_bytes(b"no video")
  with pytest.raises(InputError, match=r"^mine\.mp4"):
    add_frames(session, tmp_path / "bad.mp4", "mine.mp4", 10**6)
  with pytest.raises(TooLargeError):
    add_frames(session, tmp_path / "film.mp4", "film.mp4", 100)


def saved(folder: Path, classes: list[str], **labels: int) -> Path:
  """Saves a session with an image of one class for each label."""
  session = Session(folder / "saved")
  session.set_classes(classes)
  for seed, (name, index) in enumerate(labels.items()):
    session.set_label(session.add_image(f"{name}.png", png(noise(50 + seed))).key, square(index))
  bundles.save_session(session, folder / "saved.zip")
  return folder / "saved.zip"


def test_classes_of_an_archive_are_found_by_name(tmp_path):
  """Matches classes by name: by number, cracks would become rust in labels, downloads and training."""
  archive = saved(tmp_path, ["crack", "rust"], a=1, b=2)
  session = Session(tmp_path / "session")
  session.set_classes(["rust", "dent"])
  session.set_label(session.add_image("mine.png", png(noise(0))).key, square(1))
  bundles.load_session(session, archive, 10**8)
  assert session.classes == ["rust", "dent", "crack"]
  held = {each.name: [session.classes[index - 1] for index in each.holds] for each in session.pictures.values()}
  assert held == {"mine": ["rust"], "a": ["crack"], "b": ["rust"]}
  learned = Session(tmp_path / "learned", learned_classes=["rust", "crack"])
  bundles.load_session(learned, archive, 10**8)
  assert learned.classes == ["rust", "crack"]
  assert {each.name: each.holds for each in learned.pictures.values()} == {"a": (2,), "b": (1,)}


def zipped(folder: Path, **files: bytes) -> Path:
  with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
    for name, data in files.items():
      packed.writestr(name.replace("__", "/"), data)
  return folder / "a.zip"


def test_classes_without_names_do_not_join_labels_of_the_same_number(tmp_path):
  """An archive without classes.txt does not say whether its class 1 is the rust of the session."""
  with zipfile.ZipFile(saved(tmp_path, ["crack", "dent"], a=1, b=2)) as packed:
    files = {name.replace("/", "__"): packed.read(name) for name in packed.namelist() if name != "classes.txt"}
  archive, session = zipped(tmp_path, **files), Session(tmp_path / "session")
  session.set_classes(["rust", "hole"])
  session.set_label(session.add_image("mine.png", png(noise(0))).key, square(1))
  bundles.load_session(session, archive, 10**8)
  assert session.classes == ["rust", "hole", "class_1"]
  assert {each.name: each.holds for each in session.pictures.values()} == {"mine": (1,), "a": (3,), "b": (2,)}
  empty = Session(tmp_path / "empty")
  bundles.load_session(empty, archive, 10**8)
  assert empty.classes == ["object", "class_2"] and len(empty.examples) == 2


def test_archives_are_measured_before_they_are_read(session, tmp_path, monkeypatch):
  """A file of some hundred bytes may stand for gigabytes."""
  image, label = png(noise(0)), png(np.zeros((3000, 3000), np.uint8))
  bomb = zipped(tmp_path, **{"train__images__a.png": image, "train__labels__a.png": label})
  monkeypatch.setattr(bundles, "read_labels", lambda *_: pytest.fail("decoded"))
  with pytest.raises(InputError, match="a: found a label of 3000 x 3000 pixels, expected 48 x 40"):
    bundles.load_session(session, bomb, 10**8)
  monkeypatch.undo()
  names = zipped(
    tmp_path,
    **{"train__images__a.png": image, "train__labels__a.png": png(square(1)), "classes.txt": b"\n" * 10**6},
  )
  with pytest.raises(InputError, match=r"classes\.txt: found 1000000 bytes, expected at most 65536"):
    bundles.load_session(session, names, 10**8)
  data = bytearray(bomb.read_bytes())
  data[-10:-6] = (2**31).to_bytes(4, "little")  # the list of contents says that it is long
  bomb.write_bytes(data)
  with pytest.raises(TooLargeError, match="found a list of contents of 2147483648 bytes"):
    bundles.load_session(session, bomb, 10**8)
