"""Exported files predict what the model predicts, in programs without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from benchmarks.nano import NANO
from seggpt_jax import canvas, palette
from seggpt_jax.export import build_onnx, build_stablehlo
from seggpt_jax.inference.predictor import Predictor
from seggpt_jax.model import parameters, weights
from seggpt_jax.model.adapters import LearnedPrompt, LoRA
from seggpt_jax.model.config import VARIANTS, SegGPTConfig
from seggpt_jax.model.ensemble import predict_queries
from seggpt_jax.model.seggpt import SegGPT
from tests import adapter_runs
from tests.commands import seggpt
from tests.loud_network import LOUD, loud_network, loud_params
from tests.tiny_matcher import CONFIG, tiny_matcher

ROOT = Path(__file__).parents[2]
KINDS = ("onnx", "stablehlo")


def command(*arguments: object) -> subprocess.CompletedProcess:
  return seggpt(*arguments)


def export(*arguments: object) -> None:
  done = command("export", *arguments)
  assert done.returncode == 0, done.stderr


def exportable(model: SegGPT) -> SegGPT:
  graph, _ = parameters.abstract(model.config, attention="folded", training=False)
  return parameters.merge(graph, parameters.split(model)[1])


def pixels(config: SegGPTConfig, batch: int, num_prompts: int) -> list[np.ndarray]:
  """Query, prompt images and colored masks."""
  generator, size = np.random.default_rng(0), (config.canvas_size[0] // 2, config.canvas_size[1])
  query, images = (generator.integers(0, 256, (batch, *k, *size, 3), np.uint8) for k in ((), (num_prompts,)))
  return [query, images, palette.fixed_palette(3)[generator.integers(0, 3, (batch, num_prompts, *size))]]


def expected(model: SegGPT, arrays: list[np.ndarray], seg_type="semantic") -> np.ndarray:
  """Colors 0..255 of the model in float32."""
  config = model.config
  query, images, targets = (canvas.normalize(jnp.asarray(x), config.image_mean, config.image_std) for x in arrays)
  rows, cols = config.grid
  hidden = np.ones((len(query), rows // 2, cols), bool)
  colors = predict_queries(model, query, images, targets, jnp.zeros_like(query), hidden, seg_type)
  return np.asarray(canvas.unnormalize(colors, config.image_mean, config.image_std))


def run(kind: str, data: bytes | bytearray, arrays: list[np.ndarray]) -> np.ndarray:
  if kind == "onnx":
    session = onnxruntime.InferenceSession(bytes(data), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]
  return np.asarray(jax.export.deserialize(bytearray(data)).call(*arrays))


def built(kind: str, model: SegGPT, num_prompts: int, **options) -> bytes | bytearray:
  if kind == "stablehlo":
    return build_stablehlo(exportable(model), num_prompts, **options)
  proto = build_onnx(model, num_prompts, **options)
  onnx.checker.check_model(proto, full_check=True)
  return proto.SerializeToString()


def same_labels(found: np.ndarray, colors: np.ndarray) -> float:
  palettes = np.repeat(palette.fixed_palette(3)[None], len(found), 0)
  return float(np.mean(palette.decode(found, palettes) == palette.decode(colors, palettes)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_exports_predict_what_the_model_predicts_for_batches_of_any_size(kind, dtype, num_prompts):
  model = loud_network()
  data = built(kind, model, num_prompts, dtype=dtype)
  for batch in (1, 2):
    arrays = pixels(LOUD, batch, num_prompts)
    colors, found = expected(model, arrays), run(kind, data, arrays)
    assert found.dtype == np.float32 and np.std(colors) > 10
    np.testing.assert_allclose(found / 255, colors / 255, rtol=0, atol=1e-5 if dtype == "float32" else 1e-3)
    assert same_labels(found, colors) >= (0.9999 if dtype == "float32" else 0.999)


def test_the_graph_of_the_small_networks_design_predicts_what_the_model_predicts():
  """ONNX has no solver, so its linear heads come from conjugate gradients; the reference has Cholesky's, in float32."""
  # Features of about the size that they have after pretraining; far larger ones would take more steps.
  model, masks = tiny_matcher(feature_scale=lambda value: 0.1 * value), np.eye(4, 3, -1, np.uint8) * 255
  query, images, _ = pixels(CONFIG, batch=2, num_prompts=2)
  labels = np.zeros(images.shape[:-1], np.int64)
  labels[..., 4:20, 6:15], labels[..., 10:30, 18:] = 1, 3  # class 2 is not shown
  images[labels == 1] //= 3
  graph, params = parameters.split(model)
  answer = jax.jit(lambda params, *arrays: jax.nn.sigmoid(parameters.merge(graph, params).logits(*arrays)))
  shown = masks[labels].astype(np.float32) / 255
  colors = np.asarray(answer(params, *(canvas.normalize(jnp.asarray(x)) for x in (query, images)), shown))
  data = built("onnx", model, 2)
  assert json.loads(onnx.load_from_string(data).metadata_props[3].value) == masks.tolist()
  for batch in (1, 2):
    found = run("onnx", data, [array[:batch] for array in (query, images, masks[labels])])
    np.testing.assert_allclose(found / 255, colors[:batch], rtol=0, atol=1e-4)
  assert np.std(colors) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_instance_prompts_have_their_own_token(kind):
  model, arrays = loud_network(), pixels(LOUD, 1, 1)
  found = run(kind, built(kind, model, 1, seg_type="instance"), arrays)
  np.testing.assert_allclose(found, expected(model, arrays, "instance"), rtol=0, atol=0.02)
  assert np.abs(found - expected(model, arrays)).max() > 1


def test_the_packaged_network_in_float16_is_half_the_file(tmp_path):
  """Its kernels are float16 in any case, so both files predict what the model predicts."""
  model = weights.load_model("drawn")
  arrays = pixels(model.config, 1, 2)
  colors, sizes = expected(model, arrays), []
  for dtype in ("float32", "float16"):
    export("drawn", tmp_path / dtype, "--to=onnx", "--prompts=2", f"--dtype={dtype}")
    sizes.append((tmp_path / dtype).stat().st_size)
    found = run("onnx", (tmp_path / dtype).read_bytes(), arrays)
    assert np.abs(found - colors).max() < 1e-4 * 255 and same_labels(found, colors) >= 0.9999
  assert sizes[1] < 0.55 * sizes[0]


def test_the_stored_program_has_large_kernels_in_float16():
  sizes = [len(build_stablehlo(exportable(loud_network()), 1, dtype=dtype)) for dtype in ("float32", "float16")]
  kernels = sum(value.size for name, value in loud_params(LOUD).items() if value.ndim == 2 and "blocks" in name)
  assert sizes[0] - sizes[1] > 2 * kernels * 0.9


def test_only_stored_kernels_are_float16():
  """Arithmetic in float16 would change labels, and activations could overflow."""
  graph = onnx.shape_inference.infer_shapes(build_onnx(loud_network(), 2, dtype="float16")).graph
  float16 = onnx.TensorProto.FLOAT16
  stored = {each.name for each in graph.initializer if each.data_type == float16}
  assert len(stored) == 4 * LOUD.depth + 1
  assert not [each.name for each in graph.value_info if each.type.tensor_type.elem_type == float16]
  assert stored == {name for node in graph.node if node.op_type == "Cast" for name in node.input} & stored
  assert not [node.name for node in graph.node if node.op_type != "Cast" and stored.intersection(node.input)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_the_released_size_agrees(kind):
  from flax import nnx

  model = SegGPT(VARIANTS["vit_large"], training=False, rngs=nnx.Rngs(0))
  arrays = pixels(model.config, 1, 1)
  colors = expected(model, arrays)
  found = run(kind, built(kind, model, 1), arrays)
  assert np.abs(found - colors).max() < 0.255 and same_labels(found, colors) >= 0.9999


# --------------------------------------------------------------------------------------------------- other programs


@pytest.fixture
def files(tmp_path):
  """Images and label maps of odd sizes, and weights of 32 x 32 pixels."""
  weights.save_weights(tmp_path / "weights", loud_params(LOUD), LOUD)
  generator = np.random.default_rng(0)
  for name, shape in (("query", (50, 41)), ("first", (37, 64)), ("second", (32, 32))):
    Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / f"{name}.png")
    labels = np.zeros(shape, np.uint8)
    labels[4:20, 6:30], labels[24:30, 2:24], labels[:2] = 1, 2, 255
    Image.fromarray(labels).save(tmp_path / f"{name}_label.png")
  return tmp_path


def in_process(folder: Path, *arguments: object) -> None:
  """Runs Python where this package cannot be imported."""
  blocked = "import sys; sys.modules['seggpt_jax'] = None; "
  code = blocked + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_the_example_segments_like_the_predictor(files):
  export(files / "weights", files / "model.onnx", "--to=onnx", "--prompts=2")
  prompts = [files / f"{name}{end}.png" for name in ("first", "second") for end in ("", "_label")]
  in_process(files, ROOT / "examples" / "onnx_segment.py", "model.onnx", "query.png", "found.png", *prompts)
  pairs = [(image, np.asarray(Image.open(label))) for image, label in zip(prompts[0::2], prompts[1::2], strict=True)]
  labels = Predictor.from_checkpoint(files / "weights").predict(files / "query.png", pairs).labels
  found = np.asarray(Image.open(files / "found.png"))
  assert set(np.unique(labels)) == {0, 1, 2}
  assert found.shape == labels.shape and np.mean(found == labels) >= 0.999


def test_a_program_with_jax_only_runs_stablehlo(files):
  export(files / "weights", files / "model.stablehlo", "--to=stablehlo")
  arrays = pixels(LOUD, 2, 1)
  np.savez(files / "pixels.npz", *arrays)
  program = """
import jax, numpy as np
with open("model.stablehlo", "rb") as file:
  exported = jax.export.deserialize(bytearray(file.read()))
assert exported.platforms == ("cpu", "cuda", "tpu")
np.save("found.npy", exported.call(*np.load("pixels.npz").values()))
"""
  (files / "program.py").write_text(program)
  in_process(files, "program.py")
  np.testing.assert_allclose(np.load(files / "found.npy"), expected(loud_network(), arrays), rtol=0, atol=0.02)


# ------------------------------------------------------------------------------------------------------ the command


def test_a_lora_is_merged_first(tmp_path):
  weights.save_weights(tmp_path / "base", loud_params(NANO), NANO)
  adapter_runs.write_run(tmp_path / "lora", LoRA(rank=4, alpha=2.0), NANO, tmp_path / "base")
  export(tmp_path / "base", tmp_path / "a.onnx", "--to=onnx", f"--adapter={tmp_path / 'lora'}")
  assert command("merge", *(tmp_path / name for name in ("base", "lora", "merged"))).returncode == 0
  arrays = pixels(NANO, 1, 1)
  merged = expected(weights.load_model(tmp_path / "merged"), arrays)
  np.testing.assert_allclose(run("onnx", (tmp_path / "a.onnx").read_bytes(), arrays), merged, rtol=0, atol=0.02)
  assert np.abs(expected(weights.load_model(tmp_path / "base"), arrays) - merged).max() > 0.1


def test_the_metadata_say_how_to_use_the_file():
  session = onnxruntime.InferenceSession(build_onnx(loud_network(), 2).SerializeToString())
  assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
    ("query", "tensor(uint8)", ["batch", 32, 32, 3]),
    ("prompt_images", "tensor(uint8)", ["batch", 2, 32, 32, 3]),
    ("prompt_colors", "tensor(uint8)", ["batch", 2, 32, 32, 3]),
  ]
  metadata = session.get_modelmeta().custom_metadata_map
  assert metadata["tile_size"] == "[32, 32]" and metadata["num_prompts"] == "2"
  assert set(metadata) == {"tile_size", "canvas_size", "num_prompts", "palette", "seggpt_jax_version"}


def test_wrong_input_is_refused_in_one_line_and_leaves_no_file(tmp_path):
  def refused(*arguments) -> str:
    done = command("export", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    return done.stderr

  output = tmp_path / "out.onnx"
  assert "--to: missing" in refused("small", output)
  huge = {**loud_params(NANO), "blocks.0.mlp.fc2.kernel": np.full((NANO.mlp_dim, NANO.width), 1e6, np.float32)}
  weights.save_weights(tmp_path / "huge", huge, NANO)
  for kind in KINDS:
    message = refused(tmp_path / "huge", output, f"--to={kind}", "--dtype=float16")
    assert "huge: blocks.0.mlp.fc2.kernel: found values beyond the range of float16" in message
  adapter_runs.write_run(tmp_path / "prompt", LearnedPrompt(), NANO, tmp_path / "huge")
  assert "found a learned prompt" in refused(tmp_path / "huge", output, "--to=onnx", f"--adapter={tmp_path / 'prompt'}")
  assert not output.exists()
  output.write_bytes(b"kept")
  assert "already exists" in refused("small", output, "--to=onnx")
  assert output.read_bytes() == b"kept"
