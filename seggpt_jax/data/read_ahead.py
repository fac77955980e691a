"""Reading ahead: a bounded queue of results that threads prepare while the caller works on earlier ones."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Most threads or worker processes that a user may ask for: reading waits for disks, so that a core serves several.
MOST_WORKERS = max(16, 4 * (os.cpu_count() or 1))

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
  read: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int = 4, ahead: int = 8
) -> Generator[tuple[_Item, Future[_Result]], None, None]:
  """Calls a function on items in threads, in order, a bounded number of items ahead.

  Args:
    read: the function, called once for each item.
    items: what to read; taken one by one as the caller proceeds.
    threads: number of threads.
    ahead: number of items that may be read before the caller asks for them.

  Yields:
    Each item with the future of its result. `result()` raises what `read` raised, so that the caller decides whether
    one bad item ends the work. Close the generator to cancel what is still waiting, for example with
    `contextlib.closing`.
  """
  with ThreadPoolExecutor(threads) as pool:
    coming: collections.deque[tuple[_Item, Future[_Result]]] = collections.deque()
    try:
      for item in items:
        coming.append((item, pool.submit(read, item)))
        if len(coming) > ahead:
          yield coming.popleft()
      while coming:
        yield coming.popleft()
    finally:
      for _, future in coming:
        future.cancel()
