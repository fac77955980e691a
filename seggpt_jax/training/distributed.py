"""Runs one training on many processes: they find each other, and all of them end when one fails."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from seggpt_jax.errors import InputError, one_line

# A process that has vanished is noticed after this time at the latest; its closed connections often tell sooner.
_HEARTBEAT_SECONDS = 60
_CLUSTERS = "a Cloud TPU slice, SLURM (srun), Open MPI 4 (mpirun) or an indexed Kubernetes Job"
# Another process is gone, which JAX only tells by the message.
_SIGNS = ("Gloo", "gloo", "closed by peer", "reset by peer", "heartbeat", "coordination service")


def start(where: str, timeout_seconds: int = 300) -> None:
  """Joins the other processes; has to be called before any device is used.

  Args:
    where: "off" for one process, "auto" to let JAX ask the cluster, or "HOST:PORT,N,I": where process 0 listens, the
      number of processes, and the number of this one, from 0.
    timeout_seconds: longest time to wait for the other processes.

  Raises:
    InputError: `where` has another form, or the other processes are not found.
  """
  given = _parse(where)
  if given is None:
    return
  # JAX's service would take SIGTERM away from `shutdown`, which lets all processes stop after the same step.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      **given, initialization_timeout=timeout_seconds, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except ValueError as error:
    raise InputError(
      f"--distributed={where}: found no cluster that JAX knows ({error}), expected {_CLUSTERS}; or use "
      "--distributed=HOST:PORT,N,I"
    ) from error
  except RuntimeError as error:
    address = given.get("coordinator_address") or "the address that the cluster gave"
    raise InputError(f"--distributed={where}: cannot join the others at {address}: {one_line(error)}") from error


def _parse(where: str) -> dict[str, Any] | None:
  """Returns the arguments of `jax.distributed.initialize`; None for a single process."""
  if where == "off":
    return None
  if where == "auto":
    return {}
  found = re.fullmatch(r"(.+):(\d{1,5}),([1-9]\d{0,5}),(\d{1,6})", where)
  if not found or int(found[2]) > 65535:
    raise InputError(f"--distributed: found {where!r}, expected off, auto or HOST:PORT,N,I")
  count, number = int(found[3]), int(found[4])
  if number >= count:
    raise InputError(f"--distributed: found process {number} of {count}, expected a number from 0 to {count - 1}")
  address = f"{found[1]}:{found[2]}"
  return {
    **{"coordinator_address": address, "num_processes": count, "process_id": number},
    "cluster_detection_method": "deactivate",
  }


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
    elif isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS):
      print(f"error: {who}: another process has ended; its own output says why", file=sys.stderr)
    else:
      traceback.print_exc()
      print(f"error: {who} ended on the error above", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, InputError) else 1)
