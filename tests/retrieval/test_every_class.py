"""Prompts that show every class: a class without a prompt could never be found."""

from __future__ import annotations

import numpy as np

from seggpt_jax.retrieval.every_class import in_turn


def test_classes_take_turns_and_the_best_come_first():
  holds = np.zeros((6, 4), bool)
  holds[[0, 1, 2], 1], holds[[3, 4], 2], holds[[2], 3] = True, True, True
  scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 1.0])  # image 5 shows nothing
  assert in_turn(holds, scores, 3) == [1, 4, 2]
  # Class 1 continues with the image not shown yet, and class 3 has none but image 2.
  assert in_turn(holds, scores, 6) == [1, 4, 2, 0, 3, 2]
  assert in_turn(holds, scores, 2) == [1, 4]
  assert in_turn(np.zeros((2, 3), bool), scores[:2], 2) == []
