"""Runs one training on many processes: they find each other, and all of them end when one fails."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

import jax

from seggpt_jax.errors import InputError, one_line

MODES = ("off", "auto", "explicit")

# A process that has vanished is noticed after this time at the latest; its closed connections often tell sooner.
_HEARTBEAT_SECONDS = 60
_CLUSTERS = "a Cloud TPU slice, SLURM (srun), Open MPI 4 (mpirun) or an indexed Kubernetes Job"


def start(
  mode: str,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_seconds: int = 300,
) -> None:
  """Joins the other processes; has to be called before any device is used.

  Args:
    mode: "off" for one process, "auto" to let JAX ask the cluster, or "explicit" to use the other arguments.
    coordinator_address: HOST:PORT where process 0 listens; by default the value of JAX_COORDINATOR_ADDRESS.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    timeout_seconds: longest time to wait for the other processes.

  Raises:
    InputError: the arguments do not fit each other, or the other processes are not found.
  """
  given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
  _check(mode, given)
  if mode == "off":
    return
  # JAX's service would take SIGTERM away from `shutdown`, which lets all processes stop after the same step.
  jax.config.update("jax_enable_preemption_service", False)
  if mode == "explicit":
    given |= {"cluster_detection_method": "deactivate"}
  try:
    jax.distributed.initialize(
      **given, initialization_timeout=timeout_seconds, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except ValueError as error:
    raise InputError(
      f"--distributed={mode}: found no cluster that JAX knows ({error}), expected {_CLUSTERS}; or use "
      "--distributed=explicit --coordinator_address=HOST:PORT --num_processes=N --process_id=I"
    ) from error
  except RuntimeError as error:
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "the address that the cluster gave")
    raise InputError(f"--distributed={mode}: cannot join the others at {address}: {one_line(error)}") from error


def _check(mode: str, given: dict[str, str | int | None]) -> None:
  """Raises an InputError for flags that do not fit each other."""
  if mode not in MODES:
    raise InputError(f"--distributed: found {mode!r}, expected one of {', '.join(MODES)}")
  if mode != "explicit":
    for name, value in given.items():
      if value is not None:
        raise InputError(f"--{name}: found {value} with --distributed={mode}, expected --distributed=explicit")
    return
  address = given["coordinator_address"] or os.environ.get("JAX_COORDINATOR_ADDRESS")
  if not address:
    raise InputError("--coordinator_address: missing, expected HOST:PORT of process 0 (or JAX_COORDINATOR_ADDRESS)")
  host, _, port = address.rpartition(":")
  if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
    raise InputError(f"--coordinator_address: found {address!r}, expected HOST:PORT")
  for name in ("num_processes", "process_id"):
    if given[name] is None:
      raise InputError(f"--{name}: missing, expected a number with --distributed=explicit")
  if given["num_processes"] < 1:
    raise InputError(f"--num_processes: found {given['num_processes']}, expected at least 1")
  if not 0 <= given["process_id"] < given["num_processes"]:
    raise InputError(
      f"--process_id: found {given['process_id']}, expected 0 to {given['num_processes'] - 1} "
      f"(--num_processes={given['num_processes']})"
    )


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
  """Ends a failing process at once if there are others, with status 2 for an InputError and 1 for any other error.

  Without this, JAX would make it wait at exit for the other processes, which in turn wait for it. Once it is gone, the
  next exchange of the others fails, or the missing heartbeat ends them.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1:
      raise
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, InputError):
      print(f"error: {who}: {one_line(error)}", file=sys.stderr)
    elif _lost_another(error):
      print(f"error: {who}: another process has ended; its own output says why", file=sys.stderr)
    else:
      traceback.print_exc()
      print(f"error: {who} ended on the error above", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, InputError) else 1)


def _lost_another(error: Exception) -> bool:
  """Returns whether an error says that another process is gone, which JAX only tells by the message."""
  text = str(error)
  return isinstance(error, RuntimeError) and any(
    sign in text for sign in ("Gloo", "gloo", "closed by peer", "reset by peer", "heartbeat", "coordination service")
  )
