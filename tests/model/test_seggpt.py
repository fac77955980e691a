"""The network against transformers' SegGPT and against a slow reference.

If one of these fails, released weights no longer give the released results, or fine-tuning uses wrong gradients.
"""

import dataclasses
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

from seggpt_jax.model import parameters, seggpt, torch_weights
from tests import peers as peers_lib
from tests import reference


def reference_colors(peers, images, targets, patch_mask, **call):
  # A copy, because to_torch empties its argument.
  state = torch_weights.to_torch({n: np.asarray(p) for n, p in peers.params.items()}, peers.config.depth, "baai")
  config = peers.config
  call = {"merge_block": config.merge_block, "feature_taps": config.feature_taps, **call}
  return reference.forward(state, images, targets, patch_mask, **call)


def relative_norm(found, wanted) -> float:
  found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
  return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def assert_gradients_close(found, wanted, tolerance):
  assert found.keys() == wanted.keys()
  errors = {name: relative_norm(found[name], wanted[name]) for name in wanted if np.any(np.asarray(wanted[name]))}
  worst = max(errors, key=errors.get)
  assert errors[worst] < tolerance, (worst, errors[worst])
  assert not any(np.any(np.asarray(found[name])) for name in wanted.keys() - errors.keys())


# ------------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("seg_type", ["semantic", "instance"])
def test_equals_transformers(peers, seg_type):
  """Converted weights predict what they predict in transformers, and train as they do there.

  Reference: transformers on the CPU. Float32: colors within 1e-4 where they are O(1), loss within a relative 1e-5,
  the gradient of every parameter within 1e-3 of its norm.
  """
  inputs = peers_lib.canvases(peers.config, batch=2)
  peers.theirs.zero_grad()
  output = peers_lib.call_theirs(peers.theirs, *inputs, embedding_type=seg_type)
  output.loss.backward()
  wanted = peers_lib.colors(output)
  assert 0.3 < wanted.std() < 3.0

  is_instance = jnp.full(2, seg_type == "instance", jnp.int32)
  (loss, colors), gradients = peers.loss_and_gradients()(peers.params, *inputs, seg_type=is_instance)

  np.testing.assert_allclose(colors, wanted, atol=1e-4, rtol=0)
  np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-5)
  named = dict(peers.theirs.named_parameters())
  theirs = {
    entry.name: entry.to_ours(np.zeros(named[entry.hf].shape) if (g := named[entry.hf].grad) is None else g.numpy())
    for entry in torch_weights.entries(peers.config.depth)
  }
  assert len(theirs) == len(named)
  assert_gradients_close(gradients, theirs, 1e-3)
  unused = "type_token_ins" if seg_type == "semantic" else "type_token_cls"
  assert {name for name, gradient in gradients.items() if not np.any(np.asarray(gradient))} == {unused}


def test_attention_is_far_from_uniform(square):
  """Guards the tests above: with nearly uniform attention, they would pass for any logits.

  Reference: a uniform row of 32 keys has a largest weight of 1/32. The mean of the largest weights is three times that.
  """
  inputs = peers_lib.canvases(square.config, batch=1)
  square.theirs.set_attn_implementation("eager")
  with torch.no_grad():
    attentions = peers_lib.call_theirs(square.theirs, *inputs, output_attentions=True).attentions
  for attention in attentions:
    assert attention.amax(-1).mean() > 3 / 32


def test_seg_type_of_each_canvas(oblong):
  """A batch may mix semantic and instance samples: each is predicted as in a batch of one kind.

  Reference: the two strings. Float32, 3e-6, because the compiled programs differ.
  """
  inputs = peers_lib.canvases(oblong.config, batch=3)
  by_name = {name: oblong.jitted(seg_type=name)(oblong.params, *inputs) for name in ("semantic", "instance")}
  assert np.abs(by_name["semantic"] - by_name["instance"]).max() > 0.1
  mixed = oblong.jitted()(oblong.params, *inputs, seg_type=jnp.array([1, 0, 1]))
  for index, name in enumerate(["instance", "semantic", "instance"]):
    np.testing.assert_allclose(mixed[index], by_name[name][index], atol=1e-6 * 3, rtol=0)


def test_hidden_targets_are_not_read(oblong):
  """The answer cannot leak in: targets under the patch mask do not change a single bit of the colors."""
  images, targets, mask = peers_lib.canvases(oblong.config, batch=1)
  run = oblong.jitted()
  hidden = np.repeat(np.repeat(mask, 8, axis=1), 8, axis=2)[..., None]
  changed = np.where(hidden, 100.0, targets).astype(np.float32)
  np.testing.assert_array_equal(run(oblong.params, images, targets, mask), run(oblong.params, images, changed, mask))


# ------------------------------------------------------------------------------------------------- other canvases


@pytest.mark.parametrize(("out_size", "in_size"), [(56, 14), (28, 14), (7, 14), (5, 3), (3, 8), (9, 9), (4, 1), (1, 6)])
def test_resizing_matrices(out_size, in_size):
  """Position embeddings of released weights are resized as they were in training.

  Reference: torch.nn.functional.interpolate, linear in one dimension and bicubic in two. Float32, 1e-6 for linear and
  5e-6 for bicubic, whose weights sum to 1 over terms of up to 1.3 squared times values of up to 4.
  """
  values = np.random.default_rng(0).standard_normal((in_size, in_size)).astype(np.float32)
  tensor = torch.from_numpy(values)
  linear = torch.nn.functional.interpolate(tensor.T[None], size=out_size, mode="linear")[0].T
  found = cv2.resize(values, (in_size, out_size), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_allclose(found, linear, atol=1e-6, rtol=0)
  size = (out_size, in_size + 1)
  bicubic = torch.nn.functional.interpolate(tensor[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
  identity = np.eye(in_size, dtype=np.float32)
  to_rows, to_cols = (cv2.resize(identity, (in_size, n), interpolation=cv2.INTER_CUBIC) for n in size)
  np.testing.assert_allclose(to_rows @ values @ to_cols.T, bicubic, atol=5e-6, rtol=0)


@pytest.mark.parametrize("canvas_size", [(96, 48), (48, 24), (32, 56)])
def test_canvas_of_another_size(oblong, canvas_size):
  """Larger, smaller and differently shaped canvases run with resized tables of relative positions.

  References: transformers built for that canvas, with relative positions that PyTorch resized beforehand, and the
  float64 reference, which resizes them itself. Float32, 1e-4 where colors are O(1).
  """
  config = dict(peers_lib.TINY["oblong"], image_size=list(canvas_size))
  theirs = type(oblong.theirs)(type(oblong.theirs.config)(**config)).eval()
  state = oblong.theirs.state_dict()
  for name, value in theirs.state_dict().items():
    if value.shape != state[name].shape:
      resized = torch.nn.functional.interpolate(state[name].T[None], size=len(value), mode="linear")
      state[name] = resized[0].T
  theirs.load_state_dict(state)
  inputs = peers_lib.canvases(oblong.config, batch=1, canvas_size=canvas_size)

  colors = oblong.jitted()(oblong.params, *inputs)

  with torch.no_grad():
    wanted = peers_lib.colors(peers_lib.call_theirs(theirs, *inputs, embedding_type="semantic"))
  np.testing.assert_allclose(colors, wanted, atol=1e-4, rtol=0)
  np.testing.assert_allclose(colors, reference_colors(oblong, *inputs), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------- feature ensemble


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_feature_ensemble(square, prompts):
  """Several prompts are ensembled as the paper says, and queries in one batch do not influence each other.

  Three queries, in one batch and alone. Reference: the float64 network, one query after another. Float32, 1e-4 where
  colors are O(1). In one batch against alone: 5e-6, not bitwise, because XLA's order of summation depends on the size
  of a matrix product.
  """
  images, targets, _ = peers_lib.canvases(square.config, batch=prompts * 3)
  mask = np.zeros((prompts * 3, 8, 4), bool)
  mask[:, 4:] = True
  run = square.jitted(prompts_per_query=prompts)
  together = run(square.params, images, targets, mask)
  alone = []
  for first in range(0, prompts * 3, prompts):
    query = slice(first, first + prompts)
    alone.append(run(square.params, images[query], targets[query], mask[query]))
  alone = np.concatenate(alone)
  wanted = reference_colors(square, images, targets, mask, prompts_per_query=prompts)
  np.testing.assert_allclose(together, wanted, atol=1e-4, rtol=0)
  np.testing.assert_allclose(alone, wanted, atol=1e-4, rtol=0)
  np.testing.assert_allclose(together, alone, atol=5e-6, rtol=0)
  if prompts > 1:
    not_ensembled = reference_colors(square, images[:prompts], targets[:prompts], mask[:prompts])
    assert np.abs(together[:prompts] - not_ensembled).max() > 0.1


def test_transformers_ensembles_across_the_streams(square):
  """Documents a bug in transformers, for readers who compare its feature ensemble with ours.

  In the merge block, transformers averages image and target stream together. If this test fails, transformers has been
  fixed and can be the reference of the test above.
  """
  images, targets, _ = peers_lib.canvases(square.config, batch=2)
  mask = np.zeros((2, 8, 4), bool)
  mask[:, 4:] = True
  with torch.no_grad():
    output = peers_lib.call_theirs(
      square.theirs, images, targets, mask, embedding_type="semantic", feature_ensemble=True
    )
  wanted = reference_colors(square, images, targets, mask, prompts_per_query=2)
  assert np.abs(peers_lib.colors(output) - wanted).max() > 1e-2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"images": np.zeros((2, 60, 32, 3), np.float32)}, "multiples of the patch size 8"),
    ({"patch_mask": np.zeros((2, 4, 4), bool)}, "patch_mask: found grid"),
    ({"prompts_per_query": 3}, "found 2 canvases"),
    ({"deterministic": False}, "key: found None"),
  ],
)
def test_wrong_calls_say_what_is_wrong(oblong, change, message):
  """A wrong shape or option raises an error that names it, not a broadcasting error deep inside."""
  images, targets, patch_mask = peers_lib.canvases(oblong.config, batch=2)
  call = {"images": images, "targets": targets, "patch_mask": patch_mask, **change}
  call["targets"] = np.zeros_like(call["images"])
  call = {name: jnp.asarray(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
  with pytest.raises(ValueError, match=message):
    oblong.forward(oblong.params, **call)


# ----------------------------------------------------------------------------------------- drop path, remat, bfloat16


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
  """Drop path zeroes whole samples and keeps the expectation, as the original's does.

  Reference: a Bernoulli variable of 0.7 over 4000 samples. The mean of x / 0.7 is within 4 standard deviations of 1.
  """
  x = jnp.ones((4000, 2, 3))
  y = np.asarray(seggpt.drop_path(x, 0.3, jax.random.key(0)))
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
  np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-6)
  assert abs(y.mean() - 1.0) < 4 * (0.3 / 0.7 / 4000) ** 0.5
  np.testing.assert_array_equal(seggpt.drop_path(x, 0.3, None), x)


@pytest.mark.slow  # .ci/run runs it
def test_drop_path_in_the_network(oblong, monkeypatch):
  """Drop path is on in training only, depends on the key, and has the rates of the original's blocks.

  Reference: the rates of transformers' blocks, 1e-6. Each block uses its rate twice, once per residual branch.
  """
  theirs = type(oblong.theirs)(type(oblong.theirs.config)(**peers_lib.TINY["oblong"], drop_path_rate=0.45))
  config = dataclasses.replace(oblong.config, drop_path_rate=0.45)
  peers = dataclasses.replace(oblong, config=config)
  rates = []
  original = seggpt.drop_path
  monkeypatch.setattr(seggpt, "drop_path", lambda x, rate, key: rates.append(float(rate)) or original(x, rate, key))
  inputs = peers_lib.canvases(config, batch=2)
  run = peers.jitted(deterministic=False)
  with jax.disable_jit():
    peers.forward(peers.params, *inputs, deterministic=False, key=jax.random.key(1))
  monkeypatch.undo()
  first = run(peers.params, *inputs, key=jax.random.key(1))
  wanted = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in theirs.model.encoder.layers]
  np.testing.assert_allclose(rates, np.repeat(wanted, 2), atol=1e-6)
  assert rates[:2] == [0.0, 0.0]

  np.testing.assert_array_equal(run(peers.params, *inputs, key=jax.random.key(1)), first)
  assert np.abs(run(peers.params, *inputs, key=jax.random.key(2)) - first).max() > 1e-2
  in_evaluation = peers.jitted()(peers.params, *inputs)
  ignored = peers.jitted(deterministic=True)(peers.params, *inputs, key=jax.random.key(1))
  np.testing.assert_array_equal(ignored, in_evaluation)
  assert np.abs(first - in_evaluation).max() > 1e-2


@pytest.mark.parametrize("way", ["dots", "full"])
def test_remat_changes_nothing(oblong, way):
  """Rematerialization changes neither loss nor gradients, also with drop path.

  Reference: without remat. Float32, 1e-5 of the norm of each gradient, because recomputed sums are compiled separately.
  """
  peers = dataclasses.replace(oblong, config=dataclasses.replace(oblong.config, drop_path_rate=0.3))
  inputs = peers_lib.canvases(peers.config, batch=2)
  key = jax.random.key(3)
  (loss, _), gradients = peers.loss_and_gradients(deterministic=False)(peers.params, *inputs, key=key)
  remat = peers.loss_and_gradients(remat=way, deterministic=False)(peers.params, *inputs, key=key)
  np.testing.assert_allclose(remat[0][0], loss, rtol=1e-6)
  assert_gradients_close(remat[1], gradients, 1e-5)


@pytest.mark.parametrize(
  ("variant", "remat"),
  [
    ("oblong", "none"),
    *(
      pytest.param(*each, marks=pytest.mark.slow)
      for each in (("oblong", "full"), ("square", "none"), ("square", "full"))
    ),
  ],
)
def test_a_loop_over_equal_blocks_changes_nothing(variant, remat, request):
  """A scan over stacked parameters gives the loss and gradients of block after block, with drop path and without.

  Reference: without the loop. Float32, 1e-5 of the norm of each gradient.
  """
  peers = request.getfixturevalue(variant)
  peers = dataclasses.replace(peers, config=dataclasses.replace(peers.config, drop_path_rate=0.3))
  inputs = peers_lib.canvases(peers.config, batch=2)
  for deterministic, key in ((True, {}), (False, {"key": jax.random.key(1)})):
    (loss, _), gradients = peers.loss_and_gradients(remat=remat, deterministic=deterministic)(
      peers.params, *inputs, **key
    )
    scanned = peers.loss_and_gradients(scan=True, remat=remat, deterministic=deterministic)(
      peers.params, *inputs, **key
    )
    np.testing.assert_allclose(scanned[0][0], loss, rtol=1e-6)
    assert_gradients_close(scanned[1], gradients, 1e-5)


def test_remat_keeps_no_attention(oblong, capsys):
  """With remat, no attention weights (60 x 60 here) are kept for the backward pass.

  This asks JAX, before compilation. XLA's CPU compiler may undo it, which the training step prevents.
  """
  inputs = [jnp.asarray(array) for array in peers_lib.canvases(oblong.config, batch=1)]
  attention, widening = {}, {}
  for remat in ("none", "dots", "full"):
    print_saved_residuals(
      lambda p, remat=remat: oblong.forward(p, *inputs, remat=remat, attention="folded"), oblong.params
    )
    kept = capsys.readouterr().out
    attention[remat], widening[remat] = kept.count(",60,60]"), kept.count(f"[60,{oblong.config.mlp_dim}] output")
  assert attention["none"] >= oblong.config.depth
  assert attention["dots"] == attention["full"] == 0
  assert widening["dots"] > widening["full"] == 0


def test_bfloat16_is_close(oblong):
  """Mixed precision uses the same parameters and returns float32 colors, close to those of the float32 network.

  Reference: ours in float32. bfloat16 has 8 bits, so colors agree within 2 % of their norm after 3 blocks, the loss
  within 0.5 %, all gradients together within 6 %.
  """
  inputs = peers_lib.canvases(oblong.config, batch=2)
  seg_type = jnp.array([0, 1])
  (loss, colors), gradients = oblong.loss_and_gradients()(oblong.params, *inputs, seg_type=seg_type)
  in_bfloat16 = oblong.loss_and_gradients(dtype=jnp.bfloat16)
  (loss16, colors16), gradients16 = in_bfloat16(oblong.params, *inputs, seg_type=seg_type)
  assert colors16.dtype == jnp.float32
  assert all(gradient.dtype == jnp.float32 for gradient in gradients16.values())
  flat, flat16 = (np.concatenate([np.ravel(g[n]) for n in gradients]) for g in (gradients, gradients16))
  assert relative_norm(colors16, colors) < 0.02
  np.testing.assert_allclose(loss16, loss, rtol=0.005)
  assert relative_norm(flat16, flat) < 0.06


def test_initial_parameters():
  """Training from scratch needs layers that keep the scale of their inputs.

  Norms start at one and biases at zero. Linear layers have Glorot and Bengio's deviation, tokens and positions the
  original's 0.02. Deviations agree within 15 % where a tensor has over 1000 values.
  """
  config = seggpt.SegGPTConfig(
    canvas_size=(64, 32),
    patch_size=8,
    posemb_size=4,
    width=64,
    depth=1,
    num_heads=2,
    mlp_dim=128,
    merge_block=0,
    feature_taps=(0,),
    decoder_dim=8,
  )
  _, params = parameters.split(seggpt.SegGPT(config, rngs=nnx.Rngs(0)))
  for name, value in params.items():
    assert value.dtype == jnp.float32
    if name.endswith(".scale"):
      np.testing.assert_array_equal(value, 1.0)
    elif name.endswith(".bias"):
      np.testing.assert_array_equal(value, 0.0)
    elif value.size > 1000 and not name.startswith(("patch_embed", "decoder_pred")):
      expected = (2 / sum(value.shape)) ** 0.5 if name.endswith(".kernel") else 0.02
      assert abs(value.std() / expected - 1) < 0.15, name


# ------------------------------------------------------------------------------------------------------- full size


@pytest.mark.slow
def test_vit_large_equals_transformers():
  """The released size finds mistakes that only show with 24 blocks of 1568 tokens.

  Reference: transformers, float32 on the CPU, random weights. Colors within 1e-4 of their largest value. Prints the
  difference, the scale and the times.
  """
  started = time.perf_counter()
  with torch.no_grad():
    peers = peers_lib.build()
    inputs = peers_lib.canvases(peers.config, batch=1)
    built = time.perf_counter()
    wanted = peers_lib.colors(peers_lib.call_theirs(peers.theirs, *inputs, embedding_type="semantic"))
  theirs = time.perf_counter()
  compiled = peers.jitted().lower(peers.params, *inputs).compile()
  ready = time.perf_counter()
  colors = np.asarray(compiled(peers.params, *inputs))
  ours = time.perf_counter()
  difference, scale = np.abs(colors - wanted).max(), np.abs(wanted).max()
  print(
    f"ViT-L: difference {difference:.2e}, largest color {scale:.3f}, deviation {wanted.std():.3f}; build "
    f"{built - started:.1f} s, transformers {theirs - built:.1f} s, compile {ready - theirs:.1f} s, ours "
    f"{ours - ready:.1f} s"
  )
  assert difference < 1e-4 * max(scale, 1.0)
