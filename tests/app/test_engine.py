"""The shared predictor: every caller gets the answer that the predictor alone would give for the same image."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from seggpt_jax.app.engine import Engine, NotReadyError
from seggpt_jax.app.limits import BusyError
from seggpt_jax.app.prompt_sets import PromptSet
from seggpt_jax.errors import InputError
from seggpt_jax.inference.options import InferenceOptions
from seggpt_jax.inference.predictor import Predictor
from tests.app.conftest import noise, prompt_of


class Held(Predictor):
  """A predictor that waits for permission before each batch, so that images gather behind it.

  Args:
    predictor: the predictor that does the work.
  """

  def __init__(self, predictor: Predictor):
    self.__dict__.update(predictor.__dict__)
    self.go, self.running = threading.Event(), threading.Event()
    self.sizes: list[int] = []

  def predict_many(self, queries, options=None, *, palette=None):
    self.sizes.append(len(queries))
    self.running.set()
    assert self.go.wait(20)
    return super().predict_many(queries, options, palette=palette)


@pytest.fixture
def held(predictor):
  return Held(predictor)


def assert_same(found, expected):
  np.testing.assert_array_equal(found.labels, expected.labels)
  np.testing.assert_array_equal(found.colors, expected.colors)


OPTIONS = (
  InferenceOptions(),
  InferenceOptions(split=2, overlap=0.25),
  InferenceOptions(split=(1, 2)),
  InferenceOptions(split=2, stitch_width=1, flips="both", foreground_tiles=True),
  InferenceOptions(seg_type="instance", sensitivity=(2.0,), least_area=5),
  InferenceOptions(zoom=1.5, prompt_grid=2, overlap=0.25),
  InferenceOptions(zoom=2, prompt_grid=1),
)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_answers_are_those_of_the_predictor(engine, predictor, options):
  prompts, images = [prompt_of(1), prompt_of(2)], [noise(10), noise(11, 90, 33), noise(12, 31, 70)]
  futures = engine.submit(images, PromptSet(prompts), options)
  expected = list(predictor.predict_many([(image, prompts) for image in images], options))
  for future, prediction in zip(futures, expected, strict=True):
    assert_same(future.result(60), prediction)
  assert not np.array_equal(*(future.result().colors[:31, :33] for future in futures[:2])), "the answers must differ"


def test_images_of_different_callers_share_a_batch_and_get_their_own_answers(engines, held, predictor):
  """Each caller brings another image and another prompt; what one brought must not change the answer of another."""
  engine = engines(lambda: held)
  prompts = [[prompt_of(seed)] for seed in range(8)]
  first = engine.submit([noise(99)], PromptSet(prompts[0]), InferenceOptions())
  assert held.running.wait(60)
  futures = [engine.submit([noise(i)], PromptSet(prompts[i]), InferenceOptions())[0] for i in range(8)]
  held.go.set()
  for i, future in enumerate(futures):
    assert_same(future.result(60), predictor.predict(noise(i), prompts[i]))
  first[0].result(60)
  assert held.sizes == [1, 4, 4], "at most max_canvases together"
  assert (engine.counts.images, engine.counts.batches, engine.counts.shared) == (9, 3, 8)


def test_other_options_or_numbers_of_prompts_do_not_share_a_batch(engines, held):
  engine = engines(lambda: held)
  one, two = PromptSet([prompt_of(1)]), PromptSet([prompt_of(1), prompt_of(2)])
  futures = engine.submit([noise(0)], one, InferenceOptions())
  assert held.running.wait(60)
  for prompts, options in ((one, InferenceOptions()), (two, InferenceOptions()), (one, InferenceOptions(flips="both"))):
    futures += engine.submit([noise(1)], prompts, options)
  futures += engine.submit([noise(2)], one, InferenceOptions())
  held.go.set()
  for future in futures:
    future.result(60)
  assert held.sizes == [1, 2, 1, 1]


def test_a_full_queue_refuses_all_images_of_a_request_and_keeps_the_others(engines, held):
  engine = engines(lambda: held, queue=3)
  prompts = PromptSet([prompt_of(1)])
  futures = engine.submit([noise(0)], prompts, InferenceOptions())
  assert held.running.wait(60)
  futures += engine.submit([noise(1), noise(2)], prompts, InferenceOptions())
  with pytest.raises(BusyError, match="2 images wait"):
    engine.submit([noise(3), noise(4)], prompts, InferenceOptions())
  assert engine.queue_length == 2
  held.go.set()
  assert [future.result(60).labels.shape for future in futures] == [(40, 50)] * 3


def test_an_image_that_nobody_waits_for_is_skipped(engines, held):
  engine = engines(lambda: held)
  prompts = PromptSet([prompt_of(1)])
  engine.submit([noise(0)], prompts, InferenceOptions())
  assert held.running.wait(60)
  given_up, kept = engine.submit([noise(1), noise(2)], prompts, InferenceOptions())
  assert given_up.cancel()
  held.go.set()
  kept.result(60)
  assert (engine.counts.images, engine.counts.abandoned) == (2, 1)


def test_an_error_stays_with_its_caller(engines, held, predictor):
  engine = engines(lambda: held)
  good, bad = PromptSet([prompt_of(1)]), PromptSet([prompt_of(2)._replace(labels=np.full((36, 44), 300, np.uint16))])
  first = engine.submit([noise(0)], good, InferenceOptions())
  assert held.running.wait(60)
  futures = [
    engine.submit([noise(i)], prompts, InferenceOptions())[0] for i, prompts in ((1, good), (2, bad), (3, good))
  ]
  held.go.set()
  with pytest.raises(InputError, match="301 classes"):
    futures[1].result(60)
  for i in (0, 2):
    assert_same(futures[i].result(60), predictor.predict(noise(i + 1), [prompt_of(1)]))
  first[0].result(60)
  assert engine.counts.errors == 1


def test_nothing_is_taken_before_the_network_is_loaded_or_after_the_end(engines, predictor):
  gate = threading.Event()

  def load():
    assert gate.wait(60)
    return predictor

  engine, prompts = engines(load, wait=False), PromptSet([prompt_of(1)])
  with pytest.raises(NotReadyError, match="is loading"):
    engine.submit([noise(0)], prompts, InferenceOptions())
  gate.set()
  engine.started.result(60)
  (future,) = engine.submit([noise(0)], prompts, InferenceOptions())
  engine.close()
  assert future.result(0).labels.shape == (40, 50), "what was taken is finished"
  with pytest.raises(NotReadyError, match="shutting down"):
    engine.submit([noise(0)], prompts, InferenceOptions())


def test_an_error_of_loading_is_kept(engines):
  def load():
    raise InputError("weights: not found")

  engine = engines(load, wait=False)
  with pytest.raises(InputError, match="weights: not found"):
    engine.started.result(60)
  with pytest.raises(NotReadyError, match="could not be loaded"):
    engine.submit([noise(0)], PromptSet([prompt_of(1)]), InferenceOptions())


def test_prompts_are_needed_unless_they_were_learned(engine):
  with pytest.raises(InputError, match="prompts: found none"):
    engine.submit([noise(0)], PromptSet(), InferenceOptions())


def test_programs_of_every_batch_are_compiled_before_the_engine_is_ready(engines, held):
  held.go.set()
  engines(lambda: held, warm_prompts=(1, 2))
  assert held.sizes == [1, 2, 4, 1, 2]


def test_prompts_are_resized_once_for_the_same_split(predictor):
  prompts = PromptSet([prompt_of(1)])
  before = prompts.num_bytes
  first = prompts.for_options(predictor, InferenceOptions())
  assert prompts.for_options(predictor, dataclasses.replace(InferenceOptions(), flips="both")) is first
  assert prompts.num_bytes == before + 32 * 32 * 4
  for split in (2, 3, 4):
    prompts.for_options(predictor, InferenceOptions(split=split))
  assert prompts.num_bytes == before + (9 + 16) * 32 * 32 * 4, "only the last two sizes stay"


def test_closing_twice_is_harmless(predictor):
  engine = Engine(lambda: predictor)
  engine.close()
  engine.close()
