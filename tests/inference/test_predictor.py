"""The predictor: an image and some examples in, a label map of the image's size out."""

from __future__ import annotations

import dataclasses
import inspect
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from seggpt_jax import canvas, palette
from seggpt_jax.errors import InputError
from seggpt_jax.inference import forward, tiling
from seggpt_jax.inference import prediction as prediction_lib
from seggpt_jax.inference import predictor as predictor_lib
from seggpt_jax.inference import prompts as prompts_lib
from seggpt_jax.inference.forward import TiledImage
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.prediction import Prediction, decode_prediction
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.inference.tiling import Window, blend, cut, image_windows
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.seggpt import SegGPT

SIZE = 32  # height and width of a tile of the test model


@pytest.fixture(scope="module")
def predictor(model):
  return Predictor(model)


def picture(seed, height=SIZE, width=SIZE):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_prompts(count, num_classes=3, height=SIZE, width=SIZE):
  generator = np.random.default_rng(100)
  return [
    (picture(200 + index, height, width), generator.integers(0, num_classes, (height, width))) for index in range(count)
  ]


def call_directly(model, query, prompts, colors):
  """Calls the model with one canvas for each prompt; returns the query's colors as float."""
  images = np.stack([np.concatenate([image, query]) for image, _ in prompts])
  targets = np.stack([np.concatenate([colors[labels], np.zeros_like(query)]) for _, labels in prompts])
  mask = np.broadcast_to(canvas.lower_half_mask(model.config.grid), (len(prompts), *model.config.grid))
  images, targets = (canvas.normalize(jnp.asarray(x)) for x in (images, targets))
  run = nnx.jit(SegGPT.__call__, static_argnames="prompts_per_query")
  painted = run(model, images, targets, jnp.asarray(mask), prompts_per_query=len(prompts))
  return np.asarray(canvas.unnormalize(painted[0, SIZE:]))


@pytest.mark.parametrize("count", [1, 3])
def test_an_ensemble_of_prompts_is_one_call_of_the_network(model, predictor, count):
  query, prompts = picture(0), make_prompts(count)
  expected = call_directly(model, query, prompts, palette.fixed_palette(3))
  prediction = predictor.predict(query, prompts)
  np.testing.assert_allclose(prediction.colors, expected, atol=0.51)  # rounded to whole colors
  assert np.std(prediction.colors) > 10  # otherwise nothing was compared


def test_labels_are_the_nearest_colors_of_classes_that_prompts_show(predictor):
  query = picture(1)
  prompts = [(image, labels * 3) for image, labels in make_prompts(2, num_classes=2)]  # classes 0 and 3
  prediction = predictor.predict(query, prompts)
  assert prediction.palette.shape == (4, 3)
  assert prediction.classes == (0, 3)
  distance = np.linalg.norm(prediction.colors[:, :, None] - prediction.palette[[0, 3]].astype(float), axis=-1)
  np.testing.assert_array_equal(prediction.labels, np.array([0, 3])[np.argmin(distance, axis=-1)])
  assert set(np.unique(prediction.labels)) == {0, 3}


def test_the_order_of_the_prompts_does_not_matter_below_the_seam(predictor):
  """The decoder's 3x3 convolution lets the first prompt's canvas into the first row of pixels, as in the original."""
  query, prompts = picture(2), make_prompts(3)
  first, last = predictor.predict(query, prompts), predictor.predict(query, prompts[::-1])
  np.testing.assert_allclose(first.colors[1:].astype(int), last.colors[1:].astype(int), atol=1)


def test_split_prompts_every_tile_with_all_tiles_of_all_prompts(model, predictor):
  query, prompts = picture(3, 2 * SIZE, 2 * SIZE), make_prompts(2, height=2 * SIZE, width=2 * SIZE)

  def quarters(array):
    return [array[y : y + SIZE, x : x + SIZE] for y in (0, SIZE) for x in (0, SIZE)]

  tiles = [pair for image, labels in prompts for pair in zip(quarters(image), quarters(labels), strict=True)]
  assert len(tiles) == 8
  painted = [call_directly(model, quarter, tiles, palette.fixed_palette(3)) for quarter in quarters(query)]
  expected = np.concatenate([np.concatenate(painted[:2], axis=1), np.concatenate(painted[2:], axis=1)])
  for max_canvases in (1, 16):  # one tile at a time, and two
    prediction = Predictor(model, max_canvases=max_canvases).predict(query, prompts, split=2)
    np.testing.assert_allclose(prediction.colors, expected, atol=0.51)


@pytest.mark.parametrize("max_canvases", [1, 8, 100])
def test_many_at_once_are_what_each_is_alone(model, max_canvases):
  """Images and prompts of many sizes and numbers; colors within one step, because sums have another order."""
  queries = [(picture(seed, 30 + seed, 50), make_prompts(1 + seed % 3)) for seed in range(11)]
  one = Predictor(model)
  for split in (1, 2):
    found = list(Predictor(model, max_canvases=max_canvases).predict_many(iter(queries), InferenceOptions(split)))
    assert len(found) == len(queries)
    for (image, prompts), prediction in zip(queries, found, strict=True):
      alone = one.predict(image, prompts, split=split)
      assert np.abs(prediction.colors.astype(int) - alone.colors).max() <= 1
      assert np.mean(prediction.labels != alone.labels) <= 1e-3


@pytest.mark.parametrize(
  "tiles, prompts, most, expected",
  [(1, 50, 16, [1]), (4, 4, 16, [4]), (9, 2, 16, [8, 1]), (16, 1, 7, [4, 4, 4, 4]), (7, 3, 16, [4, 2, 1])],
)
def test_tiles_go_in_few_sizes_of_batches_within_the_limit(tiles, prompts, most, expected):
  sizes = []

  def run(queries, *rest):
    sizes.append(len(queries))
    return queries

  batches = forward.BatchedForward(run, most)
  windows = [Window(0, left, np.ones((1, 1), bool)) for left in range(tiles)]
  tiled = TiledImage(picture(0, 1, tiles), *[np.zeros((prompts, 1, 1, 3), np.uint8)] * 2, [windows], 1)
  batches.add(tiled)
  batches.finish()
  assert sizes == expected and tiled.finished


def test_images_are_read_as_they_are_needed(predictor):
  """A folder of a hundred thousand images need not fit into memory."""
  read = 0

  def queries():
    nonlocal read
    for seed in range(400):
      read += 1
      yield picture(seed % 5), make_prompts(1)

  for done, _ in enumerate(predictor.predict_many(queries()), start=1):
    assert read - done <= 2 * predictor_lib._MAX_PENDING


def test_several_splits_are_averaged_before_they_are_decoded(predictor):
  query, prompts = picture(9, 50, 70), make_prompts(2)
  colors = [predictor.predict(query, prompts, split=split).colors for split in (1, 2, 3)]
  fused = predictor.predict(query, prompts, split=(1, 2, 3))
  assert np.abs(fused.colors - np.mean(colors, axis=0)).max() <= 1.5
  nearest = palette.decode(jnp.asarray(fused.colors)[None], jnp.asarray(fused.palette)[None])[0]
  np.testing.assert_array_equal(fused.labels, nearest)
  for wrong in ((), (1, 1), (0,)):
    with pytest.raises(InputError, match=r"split: found .* expected an integer of at least 1, or several"):
      predictor.predict(query, prompts, split=wrong)


@pytest.mark.parametrize("height, width, split", [(1, 1, 1), (17, 91, 1), (45, 33, 2)])
def test_any_size_in_the_same_size_out(predictor, height, width, split):
  prompts = make_prompts(1, height=19, width=40) + make_prompts(1, height=50, width=7)
  prediction = predictor.predict(picture(4, height, width), prompts, split=split)
  assert prediction.labels.shape == (height, width)
  assert prediction.labels.dtype == np.uint8
  assert prediction.colors.shape == (height, width, 3)
  assert prediction.colors.dtype == np.uint8


def test_new_image_sizes_compile_nothing(predictor):
  prompts = make_prompts(1)
  predictor.predict(picture(5, 40, 600), prompts)
  compiled = forward.predict_colors.compiled()._cache_size(), prediction_lib._decode_block._cache_size()
  for height in range(41, 46):
    predictor.predict(picture(5, height, 600), prompts)
  assert (forward.predict_colors.compiled()._cache_size(), prediction_lib._decode_block._cache_size()) == compiled


@pytest.mark.parametrize("num_colors", [1, 2, 5])
def test_decoding_in_blocks_is_decoding(num_colors):
  generator = np.random.default_rng(num_colors)
  colors = generator.integers(0, 256, (700, 801, 3), np.uint8)  # more than two blocks
  entries = generator.integers(0, 256, (num_colors, 3), np.uint8)
  expected = palette.decode(jnp.asarray(colors)[None], jnp.asarray(entries)[None])[0]
  np.testing.assert_array_equal(prediction_lib.decode(colors, entries), expected)


def test_more_than_256_classes_keep_their_indices(predictor):
  image, labels = make_prompts(1, num_classes=2)[0]
  own = np.random.default_rng(0).integers(0, 256, (301, 3))
  prediction = predictor.predict(picture(6), [(image, labels * 300)], palette=own)
  assert prediction.labels.dtype == np.uint16
  assert set(np.unique(prediction.labels)) <= {0, 300}


def test_the_network_sees_the_colors_of_a_given_palette(model, predictor):
  query, prompts = picture(7), make_prompts(1, num_classes=2)
  own = np.array([[10, 200, 30], [240, 20, 90]])
  prediction = predictor.predict(query, prompts, palette=own)
  np.testing.assert_array_equal(prediction.palette, own)
  expected = call_directly(model, query, prompts, own.astype(np.uint8))
  np.testing.assert_allclose(prediction.colors, expected, atol=0.51)


def test_semantic_and_instance_are_different_questions(predictor):
  query, prompts = picture(8), make_prompts(1)
  semantic = predictor.predict(query, prompts).colors
  assert (semantic != predictor.predict(query, prompts, seg_type="instance").colors).any()


def test_the_weights_on_disk_give_the_same_answer(weights_directory, predictor):
  query, prompts = picture(9), make_prompts(1)
  loaded = Predictor.from_checkpoint(weights_directory)
  np.testing.assert_array_equal(loaded.predict(query, prompts).colors, predictor.predict(query, prompts).colors)


def test_bfloat16_is_close_and_can_be_asked_for(weights_directory, predictor):
  query, prompts = picture(9), make_prompts(1)
  half = Predictor.from_checkpoint(weights_directory, dtype=jnp.bfloat16).predict(query, prompts).colors
  difference = np.abs(half.astype(float) - predictor.predict(query, prompts).colors)
  assert 0 < np.mean(difference) < 2


def test_a_prediction_shows_what_it_found():
  labels = np.zeros((10, 20), np.uint8)
  labels[:1] = 2
  prediction = Prediction(labels, np.zeros((10, 20, 3), np.uint8), palette.fixed_palette(3), (0, 2))
  assert repr(prediction) == "Prediction(10 x 20, class 0: 90.0%, class 2: 10.0%)"


def test_overlapping_tiles_are_windows_of_the_picture(model, predictor):
  """Reference: every window is predicted by itself with the prompts' tiles, then all are blended."""
  query, prompts = picture(3, 2 * SIZE, 2 * SIZE), make_prompts(1, height=2 * SIZE, width=2 * SIZE)
  tiles = [(cut(image, 2), cut(labels, 2)) for image, labels in prompts]
  pairs = [pair for images, labels in tiles for pair in zip(images, labels, strict=True)]
  windows = image_windows((2 * SIZE, 2 * SIZE), (SIZE, SIZE), 8, 0.5)
  assert len(windows) == 9
  seen = [query[w.top : w.top + SIZE, w.left : w.left + SIZE] for w in windows]
  painted = [np.round(call_directly(model, tile, pairs, palette.fixed_palette(3))).astype(np.uint8) for tile in seen]
  expected = blend(np.stack(painted), windows, query.shape[:2])
  found = predictor.predict(query, prompts, split=2, overlap=0.5).colors
  assert np.abs(found.astype(int) - expected).max() <= 1
  assert np.abs(found.astype(int) - predictor.predict(query, prompts, split=2).colors).mean() > 1


@pytest.mark.parametrize("flips, views", [("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_mirror_images_are_averaged_upright(predictor, flips, views):
  query, prompts = picture(9), make_prompts(2)

  def mirrored(axes):
    pairs = [(np.flip(image, axes), np.flip(labels, axes)) for image, labels in prompts]
    return np.flip(predictor.predict(np.flip(query, axes), pairs).colors, axes)

  axes = {"horizontal": [(), (1,)], "vertical": [(), (0,)], "both": [(), (1,), (0,), (0, 1)]}[flips]
  assert len(axes) == views
  expected = np.mean([mirrored(each) for each in axes], axis=0)
  found = predictor.predict(query, prompts, flips=flips)
  assert np.abs(found.colors - expected).max() <= 1.5
  assert found.unstitched is None


def test_prompt_tiles_without_foreground_can_be_left_out(model, predictor):
  query, (image, _) = picture(3), make_prompts(1, height=2 * SIZE, width=2 * SIZE)[0]
  labels = np.zeros((2 * SIZE, 2 * SIZE), int)
  labels[SIZE + 3 : SIZE + 20, 5:25] = 1  # in the third of four tiles
  found = predictor.predict(query, [(image, labels)], split=2, foreground_tiles=True).colors
  tile = image[SIZE:, :SIZE], labels[SIZE:, :SIZE]
  quarters = cut(tiling.resize_image(query, (2 * SIZE, 2 * SIZE)), 2)
  painted = [call_directly(model, quarter, [tile], palette.fixed_palette(2)) for quarter in quarters]
  resized = tiling.resize_colors(tiling.join(np.round(painted).astype(np.uint8)), query.shape[:2])
  assert np.abs(found.astype(int) - resized).max() <= 1


def test_ignored_pixels_of_a_prompt_are_background(predictor, tmp_path):
  """Class 255 in the answer would be an object that nobody asked for."""
  query, ((image, labels),) = picture(5, 40, 30), make_prompts(1)
  ignored = labels.astype(np.uint8)
  ignored[:9] = palette.IGNORE
  expected = predictor.predict(query, [(image, np.where(ignored == palette.IGNORE, 0, ignored))])
  found = predictor.predict(query, [(image, ignored)])
  np.testing.assert_array_equal(found.colors, expected.colors)
  np.testing.assert_array_equal(found.labels, expected.labels)
  assert found.classes == (0, 1, 2) and len(found.palette) == 3


def test_a_mask_of_0_and_255_is_refused_as_in_a_file(predictor):
  """Such masks are common, and 255 means ignored here: the class that was meant would not be found."""
  image, labels = make_prompts(1, num_classes=2)[0]
  for mask in (labels * 255, (labels * 255).astype(np.float32), np.full_like(labels, 255)):
    with pytest.raises(
      InputError, match=r"prompts\[0\] labels: found label value 255 .*; pass a mask .* as labels > 0"
    ):
      predictor.predict(picture(5), [(image, mask)])
  with pytest.raises(InputError, match=r"prompts\[0\] labels: found label value 255.*; in Python, pass .* mask > 0"):
    predictor.predict(picture(5), [(image, Image.fromarray((labels * 255).astype(np.uint8)))])


def test_masks_of_any_array_are_read_if_they_have_one_meaning(predictor):
  """OpenCV, PyTorch and SAM give masks as bool, float, with one more axis, or with equal channels."""
  query, (image, labels) = picture(5, 40, 30), make_prompts(1, num_classes=2)[0]
  expected = predictor.predict(query, [(image, labels)]).colors
  channels = np.repeat(labels[..., None], 3, axis=-1)
  for mask in (labels == 1, labels.astype(np.float32), labels[..., None], labels[None], channels):
    np.testing.assert_array_equal(predictor.predict(query, [(image, mask)]).colors, expected)
  assert predictor.predict(query, [(image, labels == 1)]).classes == (0, 1)
  for mask, words in (
    (labels * 0.5, "with fractions, expected integers; pass a mask as labels > 0.5"),
    (np.where(labels, np.nan, 0), "with fractions"),
    (channels * [1, 2, 3], "found colors"),
    (np.repeat(labels[None], 2, axis=0), "found int64 [2, 32, 32]"),
    (labels.astype(str), "found <U"),
  ):
    with pytest.raises(InputError) as error:
      predictor.predict(query, [(image, mask)])
    assert f"prompts[0] labels: {words}" in str(error.value) or words in str(error.value)


def test_one_pair_in_place_of_a_list_is_named():
  """`predict(query, (image, labels))` is the first mistake of many."""
  labels, drawn = LABELS, Image.fromarray(IMAGE)
  check = inspect.unwrap(prompts_lib.check_pairs)
  for single in (
    (IMAGE, labels),
    [drawn, labels],
    (drawn, drawn),
    ("a.png", "b.png"),
    prompts_lib.PreparedPrompt(IMAGE, labels),
  ):
    with pytest.raises(
      InputError, match=r"prompts: found one pair .*, expected a list of pairs, such as \[\(image, labels"
    ):
      check(single)
  for single in (IMAGE, drawn, "a.png"):
    with pytest.raises(InputError, match=r"prompts: found an? .*, expected a list of pairs"):
      check(single)
  for pairs in ([(IMAGE, labels)], [(IMAGE, labels)] * 2, [prompts_lib.PreparedPrompt(IMAGE, labels)] * 2, ()):
    check(pairs)
  for wrong in (drawn, "ab", (IMAGE,)):
    with pytest.raises(InputError, match=r"prompts\[0\]: found .*, expected a pair of image and label map"):
      inspect.unwrap(prompts_lib.load_prompt)(wrong, "prompts[0]")


def test_a_pillow_label_is_turned_as_its_image_is(predictor, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  (image, labels) = make_prompts(1, height=20, width=30)[0]
  for name, pixels in (("image", image), ("labels", labels.astype(np.uint8))):
    Image.fromarray(pixels).save(tmp_path / f"{name}.tif", exif=exif)
  opened = [Image.open(tmp_path / f"{name}.tif") for name in ("image", "labels")]
  expected = predictor.predict(IMAGE, [(np.rot90(image, 3), np.rot90(labels, 3))])
  np.testing.assert_array_equal(predictor.predict(IMAGE, [tuple(opened)]).colors, expected.colors)


def test_a_prompt_that_shows_nothing_is_warned_about_once(model, caplog, tmp_path):
  """All background would be predicted, without a word."""
  predictor = Predictor(model)
  Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "empty.png")
  for _ in range(2):
    predictor.predict(IMAGE, [(IMAGE, tmp_path / "empty.png")])
  assert [record.getMessage() for record in caplog.records] == [
    f"{tmp_path / 'empty.png'}: no foreground in the label map, so the prompt shows no class"
  ]
  caplog.clear()
  labels = np.zeros((1000, 1000), np.uint8)
  labels[103:108, 400:405], labels[500:, :] = 1, 2
  for split in (1, 1, 2):
    found = predictor.predict(IMAGE, [(picture(3, 1000, 1000), labels)], split=split)
    assert found.classes == (0, 1, 2), "no class of the prompts vanishes"
  (said,) = (record.getMessage() for record in caplog.records)
  assert (
    said.startswith("prompts[0]: class 1 is too small: it covers 0.026 of the 32 x 32 pixels") and "--split" in said
  )
  caplog.clear()
  predictor.predict(IMAGE, make_prompts(1))
  assert not caplog.text


@pytest.mark.parametrize("split", [1, 2])
def test_prepared_prompts_give_the_same_prediction(predictor, split):
  query, prompts = picture(5, 40, 30), make_prompts(2, height=50, width=71)
  prepared = [predictor.prepare_prompt(*prompt, split=split) for prompt in prompts]
  assert all(image.shape == (split * SIZE, split * SIZE, 3) for image, _ in prepared)
  expected = predictor.predict(query, prompts, split=split)
  for mixed in (prepared, [prompts[0], prepared[1]]):
    np.testing.assert_array_equal(predictor.predict(query, mixed, split=split).colors, expected.colors)
  with pytest.raises(InputError, match=r"prompt labels: found int64 \[50, 70\], expected integers \[50, 71\]"):
    predictor.prepare_prompt(prompts[0][0], prompts[0][1][:, 1:])


def test_a_prediction_is_saved_as_class_indices_and_drawn_in_colors_for_people(predictor, tmp_path):
  query, (image, labels) = picture(5, 40, 30), make_prompts(1)[0]
  prediction = predictor.predict(query, [(image, labels)])
  prediction.save(tmp_path / "new" / "labels.png")
  with pytest.raises(InputError, match=r"x.jpg: expected .png, which keeps class indices exactly"):
    prediction.save(tmp_path / "x.jpg")
  saved = Image.open(tmp_path / "new" / "labels.png")
  assert saved.mode == "L"
  np.testing.assert_array_equal(saved, prediction.labels)
  shown, background = prediction.overlay(), prediction.labels == 0
  assert shown.dtype == np.uint8 and shown.shape == (40, 30, 3)
  np.testing.assert_array_equal(shown[background], query[background])
  blend_of = 0.4 * query.astype(float) + 0.6 * palette.display_palette(3)[prediction.labels]
  assert np.abs(shown - blend_of)[~background].max() < 1.001  # Pillow blends in float32 and cuts fractions off
  np.testing.assert_array_equal(prediction.overlay(query[::-1], alpha=0), query[::-1])
  np.testing.assert_array_equal(prediction.overlay(alpha=1)[~background], prediction.colored()[~background])
  many = predictor.predict(query, [(image, labels * 300)], palette=np.random.default_rng(0).integers(0, 256, (601, 3)))
  many.save(tmp_path / "many.png")
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many.png")).astype(int), many.labels)


def test_lists_folders_and_gray_arrays_are_predicted_with_options_and_names(predictor, tmp_path):
  prompts, options = make_prompts(1), InferenceOptions(split=2, flips="both")
  for name, image in (("b.png", IMAGE), ("a.png", IMAGE[..., 0])):
    Image.fromarray(image).save(tmp_path / name)
  whole = predictor.predict(IMAGE, prompts)
  found = predictor.predict([IMAGE, IMAGE[..., 0]], prompts, options=options, flips="none", class_names=["crack"])
  expected = [predictor.predict(each, prompts, split=2) for each in (IMAGE, np.repeat(IMAGE[..., :1], 3, axis=2))]
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one.colors, other.colors)
  by_name = predictor.predict(tmp_path, prompts)
  assert len(by_name) == 2
  np.testing.assert_array_equal(by_name[1].colors, whole.colors)
  np.testing.assert_array_equal(found[0].mask("crack"), found[0].labels == 1)
  with pytest.raises(InputError, match="mask: found 'hole', expected one of crack"):
    found[0].mask("hole")
  assert "crack: " in repr(dataclasses.replace(found[0], labels=np.ones_like(found[0].labels)))
  assert repr(options) == "InferenceOptions(split=2, flips='both')"
  assert len(repr(predictor.prepare_prompt(*prompts[0]))) < 80


def test_a_device_is_chosen_by_itself_or_by_its_platform(weights_directory, predictor):
  prompts, device = make_prompts(1), jax.devices()[-1]
  other = Predictor.from_checkpoint(weights_directory, device=device)
  assert {each for value in other._params.values() for each in value.devices()} == {device}
  expected = predictor.predict(IMAGE, prompts).colors.astype(int)
  np.testing.assert_allclose(other.predict(IMAGE, prompts).colors, expected, atol=1)
  assert Predictor.from_checkpoint(weights_directory, device="cpu").config == other.config
  with pytest.raises(InputError, match="device: found 'abacus', expected a platform that JAX finds here"):
    Predictor.from_checkpoint(weights_directory, device="abacus")


def test_probabilities_are_those_that_cross_entropy_is_trained_on():
  """A color on a class is that class; one halfway between the two closest is either, whatever the other classes are."""
  palette = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.uint8)
  colors = np.array([[[0, 0, 0], [255, 255, 255], [128, 0, 0]]], np.uint8)
  found = decode_prediction(colors, palette, np.arange(3)).probabilities()
  assert found.shape == (1, 3, 3)
  np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
  np.testing.assert_allclose(found[0, [0, 1], [0, 1]], 1, atol=1e-3)
  np.testing.assert_allclose(found[0, 2, [0, 2]], 0.5, atol=0.02)
  assert found[0, 2, 1] < 1e-6


def test_confidence_is_one_on_a_color_and_zero_between_two():
  colors = np.array([[[0, 0, 0], [255, 255, 255], [250, 0, 0]]], np.uint8)
  entries = np.array([[0, 0, 0], [255, 255, 255], [0, 255, 0]], np.uint8)
  prediction = prediction_lib.decode_prediction(colors, entries, np.array([0, 1]))
  np.testing.assert_allclose(prediction.distances()[0, 2], [250, np.hypot(255, np.hypot(255, 5))], rtol=1e-6)
  far = np.hypot(255, np.hypot(255, 5))
  np.testing.assert_allclose(prediction.confidence(), [[1, 1, (far - 250) / (far + 250)]], atol=1e-6)
  halfway, two = np.array([[[0, 100, 0]]], np.uint8), np.array([[0, 0, 0], [0, 200, 0]], np.uint8)
  tie = prediction_lib.decode_prediction(halfway, two, np.arange(2))
  assert tie.confidence() == 0 and tie.labels == 0
  alone = prediction_lib.decode_prediction(colors, entries, np.array([0]))
  assert (alone.confidence() == 1).all() and np.isinf(alone.distances()[..., 1]).all()


def test_distances_of_many_colors_are_the_two_least():
  generator = np.random.default_rng(0)
  colors, entries = (generator.integers(0, 256, shape, np.uint8) for shape in ((70, 81, 3), (7, 3)))
  prediction = prediction_lib.decode_prediction(colors, entries, np.arange(7))
  distance = np.linalg.norm(colors[:, :, None].astype(float) - entries, axis=-1)
  np.testing.assert_allclose(prediction.distances(), np.sort(distance, axis=-1)[..., :2], rtol=1e-5)


def test_files_and_pillow_images_are_taken_as_arrays_are(predictor, tmp_path):
  """Notebooks have all three."""
  query, ((image, labels),) = picture(5, 40, 30), make_prompts(1)
  labels = labels.astype(np.uint8)
  expected = predictor.predict(query, [(image, labels)])
  for name, pixels in (("query", query), ("image", image), ("labels", labels)):
    Image.fromarray(pixels).save(tmp_path / f"{name}.png")
  opened = [Image.open(tmp_path / f"{name}.png") for name in ("query", "image", "labels")]
  for q, i, l in (opened, [tmp_path / "query.png", str(tmp_path / "image.png"), tmp_path / "labels.png"]):  # noqa: E741
    found = predictor.predict(q, [(i, l)])
    np.testing.assert_array_equal(found.colors, expected.colors)
    np.testing.assert_array_equal(found.labels, expected.labels)
  with pytest.raises(InputError, match=r"gone\.png: not found"):
    predictor.predict(tmp_path / "gone.png", [(image, labels)])
  shown = Image.open(io.BytesIO(expected._repr_png_()))
  np.testing.assert_array_equal(shown, palette.display_palette(3)[expected.labels])
  np.testing.assert_array_equal(expected.mask(1), expected.labels == 1)
  assert repr(predictor) == "Predictor(93,699 parameters, sees 32 x 32 pixels at once)"


def test_weights_that_are_not_numbers_are_named(config, model, tmp_path):
  """Weights of a diverged training are refused; their predictions would look like images without objects."""
  params = {name: np.array(value) for name, value in parameters.split(model)[1].items()}
  params["blocks.1.mlp.fc1.kernel"][3, 4] = np.nan
  weights.save_weights(tmp_path / "weights", params, config)
  with pytest.raises(InputError, match=r"weights: blocks\.1\.mlp\.fc1\.kernel holds 1 values that are not finite"):
    Predictor.from_checkpoint(tmp_path / "weights")


IMAGE, LABELS = picture(0), np.zeros((SIZE, SIZE), np.int32)


@pytest.mark.parametrize(
  "arguments, words",
  [
    ({"image": IMAGE.astype(np.float32)}, "image: found float32"),
    ({"image": IMAGE[..., :2]}, "expected uint8 [H, W, 3]"),
    ({"image": IMAGE[:0]}, "expected uint8 [H, W, 3]"),
    ({"prompts": []}, "prompts: found none"),
    ({"prompts": [(IMAGE, LABELS), (IMAGE, LABELS[:5])]}, "prompts[1] labels: found int32 [5, 32]"),
    ({"prompts": [(IMAGE, LABELS + 0.5)]}, "prompts[0] labels: found float64"),
    ({"prompts": [(IMAGE, LABELS - 1)]}, "found values -1..-1"),
    ({"prompts": [(IMAGE[..., :2], LABELS)]}, "prompts[0] image: found uint8 [32, 32, 2]"),
    ({"split": 0}, "split: found 0"),
    ({"overlap": 1.0, "split": 2}, "overlap: found 1.0, expected 0 to 0.9"),
    ({"overlap": 0.5}, "overlap: found 0.5 with split 1, expected a split of at least 2"),
    ({"overlap": 0.5, "stitch_width": 1, "split": 2}, "overlap: 0.5 cannot be combined with stitch_width 1"),
    ({"stitch_width": 3, "split": 2}, "stitch_width: found 3, expected at most 2, half a tile's patches"),
    ({"stitch_width": -1, "split": 2}, "stitch_width: found -1"),
    ({"foreground_tiles": True}, "foreground_tiles: found True with split 1"),
    ({"prompts": [(IMAGE, LABELS + 2)], "palette": np.zeros((2, 3))}, "expected [N, 3] with N >= 3"),
    ({"prompts": [(IMAGE, LABELS + 256)]}, "palette: found none for 257 classes"),
    ({"palette": np.zeros((2, 4))}, "palette: found [2, 4]"),
    ({"palette": np.full((2, 3), 256)}, "palette: found values 256..256"),
  ],
)
def test_wrong_input_is_one_line_that_says_what_was_expected(predictor, arguments, words):
  arguments = {"image": IMAGE, "prompts": [(IMAGE, LABELS)], **arguments}
  with pytest.raises(InputError) as error:
    predictor.predict(**arguments)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_images_of_the_right_size_are_not_resized():
  image = picture(0, 64, 64)
  np.testing.assert_array_equal(tiling.join(cut(tiling.resize_image(image, (64, 64)), 2)), image)
