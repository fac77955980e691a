"""Mutations of files: the content of a file and a random generator in, the content of a damaged or hostile one out.

Bytes of any file are replaced, cut out, repeated and inserted. Files whose structure is known (JSON, YAML, XML, PNG,
lines of text) also get other values, missing and repeated entries, with everything around them intact.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import random
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import yaml

_PNG = b"\x89PNG\r\n\x1a\n"
_NUMBERS = ("-1", "0", "1", "65536", "1e308", "-1e308", "1e-320", "NaN", "Infinity", "-Infinity", "9" * 400, "9" * 5000)
_NUMBERS += (str(2**31), str(2**63), str(2**64), str(2**70), "0.5", "1e400")
_TEXTS = (
  "",
  "x",
  "0",
  "-1",
  "nan",
  "inf",
  "1e308",
  "x" * 300,
  "x" * 70_000,
  "a\0b",
  "../../x",
  "/etc/passwd",
  "/dev/zero",
)
_TEXTS += (
  "~",
  "~nobody/x",
  "\ud800",
  "\u202e\u0301",
  ".",
  "..",
  "/",
  "gs://x/y",
  "a\nb",
  "\\",
  "C:\\x",
  "%00",
  "http://[",
)
_VALUES = (
  "null",
  "true",
  "false",
  "[]",
  "{}",
  "[[]]",
  "[[[[0]]]]",
  "[null]",
  "[true]",
  '["x"]',
  "[1, 2, 3]",
  '{"x": 1}',
)
_VALUES += (
  "[[1, 2], [3]]",
  "[" * 60 + "]" * 60,
  "[" * 3000 + "]" * 3000,
  "[NaN, 1, 2, 3, 4, 5]",
  "[1e308, 1, 2, 3, 4, 5]",
)
_YAML = ("!!timestamp x", "!!bool x", "!!int ''", "!!float ''", "!!python/name:os.system", "!!binary x", "2001-99-99")
_YAML += (
  "&a [*a]",
  "*a",
  "0x" + "f" * 5000,
  "190:20:30",
  ".inf",
  ".nan",
  "&a {x: 1, <<: *a}",
  "!!set {a}",
  "!!omap [a]",
)
_YAML += ("&a [x, x]", "[&b [x, x], &c [*b, *b], &d [*c, *c]]", "!!pairs [a]", "{<<: x}", "? [a]\n: b", "%")
_WORDS = (
  *_NUMBERS,
  *(text for text in _TEXTS if "\n" not in text and text),
  "1e400",
  "0x10",
  "\u0661",
  "²",
  "1_000",
  "0.0.0",
)
_BYTES = (
  b"\0",
  b"\xff",
  b"\xff\xff\xff\xff",
  b"\x7f\xff\xff\xff",
  b"\x80\0\0\0",
  b"\0\0\0\0",
  b"\xff" * 8,
  b"\xfe\xff",
  b"\n",
)


def mutate(content: bytes, name: str, structured: bool, draw: random.Random) -> bytes:
  """Returns a mutated file.

  Args:
    content: content of the file.
    name: name of the file, whose ending tells the structure of everything but JSON.
    structured: whether to mutate values of the structure, in two of three cases.
    draw: generator of the random choices.
  """
  if structured and draw.random() < 0.67:
    changed = _mutate_structure(content, name, draw)
    if changed is not None:
      return changed
  return mutate_bytes(content, draw)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
  """Replaces, cuts out, repeats and inserts bytes, more of them near the beginning, where headers are."""
  data = bytearray(content)
  for _ in range(draw.choice((1, 1, 2, 4))):
    if not data:
      break
    place = draw.randrange(min(len(data), 256) if draw.random() < 0.5 else len(data))
    length = draw.choice((1, 2, 4, draw.randint(1, 64), draw.randint(1, max(len(data) // 2, 1))))
    match draw.randrange(7):
      case 0:
        data[place] = draw.randrange(256)
      case 1:
        data[place] ^= 1 << draw.randrange(8)
      case 2:
        del data[place : place + length]
      case 3:
        data[place:place] = data[place : place + length] * draw.choice((1, 1, 2, 30))
      case 4:
        special = draw.choice(_BYTES)
        data[place : place + len(special)] = special
      case 5:
        data[place:place] = draw.choice(_BYTES)
      case 6:
        del data[place:]
  return bytes(data)


def _mutate_structure(content: bytes, name: str, draw: random.Random) -> bytes | None:
  """Returns a file with other values, or None if its structure is not known."""
  ending = name.rpartition(".")[2].lower()
  try:
    if content.startswith(_PNG):
      return _mutate_png(content, draw)
    if ending == "xml":
      return _mutate_xml(content, draw)
    if ending in ("yaml", "yml"):
      tree = _pairs(yaml.safe_load(content))
      return _dump(_mutate_tree(tree, draw, _YAML)).encode(errors="surrogatepass")
    if ending == "jsonl":
      lines = content.splitlines()
      place = draw.randrange(len(lines))
      lines[place] = _mutate_json(lines[place], draw)
      return b"\n".join(lines) + b"\n"
    if ending in ("txt", "csv"):
      return _mutate_lines(content, draw)
    return _mutate_json(content, draw)
  except (ValueError, RecursionError, zlib.error, IndexError, ElementTree.ParseError, yaml.YAMLError):
    return None


# --------------------------------------------------------------------------------------------------------- JSON, YAML


class _Pairs(list):
  """The keys and values of an object, where keys may be there twice."""


class _Raw(str):
  """Text that is written as it is."""


def _mutate_json(content: bytes, draw: random.Random) -> bytes:
  tree = json.loads(content, object_pairs_hook=lambda pairs: _Pairs(map(list, pairs)))
  return _dump(_mutate_tree(tree, draw)).encode(errors="surrogatepass")


def _pairs(value: Any) -> Any:
  if isinstance(value, dict):
    return _Pairs([str(key), _pairs(inner)] for key, inner in value.items())
  return [_pairs(inner) for inner in value] if isinstance(value, list) else value


def _dump(value: Any) -> str:
  if isinstance(value, _Raw):
    return str(value)
  if isinstance(value, _Pairs):
    return "{" + ", ".join(f"{_dump(key)}: {_dump(inner)}" for key, inner in value) + "}"
  if isinstance(value, list):
    return "[" + ", ".join(map(_dump, value)) + "]"
  return json.dumps(value)


def _mutate_tree(tree: Any, draw: random.Random, more: tuple[str, ...] = ()) -> Any:
  """Changes one to three values of a tree of objects and lists."""
  for _ in range(draw.choice((1, 1, 1, 2, 3))):
    places = list(_places(tree))
    if not places:
      return _nasty(draw, more)
    # Deep places are many, so that the keys near the top would seldom be met.
    depth = draw.choice(sorted({depth for _, _, depth in places}))
    parent, place, _ = draw.choice([each for each in places if each[2] == depth])
    value = _value(parent, place)
    match draw.randrange(8):
      case 0:
        del parent[place]
      case 1:
        parent.insert(place, copy.deepcopy(parent[place]))
      case 2 if isinstance(parent, _Pairs):
        parent[place] = [draw.choice(_TEXTS), value]
      case 3 if isinstance(value, str):
        _put(parent, place, _mutate_text(value, draw))
      case 4:
        _put(parent, place, copy.deepcopy(_value(*draw.choice(places)[:2])))
      case _:
        _put(parent, place, _nasty(draw, more))
  return tree


def _places(tree: Any, depth: int = 0):
  """Yields the parent, the place in it and the depth of every value, at most 12 deep."""
  if isinstance(tree, list) and depth < 12:
    for place in range(min(len(tree), 200)):
      yield tree, place, depth
      yield from _places(_value(tree, place), depth + 1)


def _value(parent: list, place: int) -> Any:
  return parent[place][1] if isinstance(parent, _Pairs) else parent[place]


def _put(parent: list, place: int, value: Any) -> None:
  if isinstance(parent, _Pairs):
    parent[place] = [parent[place][0], value]
  else:
    parent[place] = value


def _nasty(draw: random.Random, more: tuple[str, ...]) -> Any:
  pool = draw.choice((_NUMBERS, _VALUES, _TEXTS, more or _VALUES))
  return draw.choice(pool) if pool is _TEXTS else _Raw(draw.choice(pool))


def _mutate_text(text: str, draw: random.Random) -> str:
  """Mutates a string, and inside base64 the file that it holds."""
  try:
    inside = base64.b64decode(text, validate=True)
    if len(inside) > 16:
      return base64.b64encode(mutate(inside, "", True, draw)).decode()
  except (binascii.Error, ValueError):
    pass
  return mutate_bytes(text.encode(errors="replace"), draw).decode(errors="replace")


# ---------------------------------------------------------------------------------------------------------- XML, lines

_BOMB = "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10}">' for i in range(1, 12))
_HEADS = (
  f'<!DOCTYPE x [<!ENTITY b0 "lol">{_BOMB}]>',
  '<!DOCTYPE x [<!ENTITY b11 SYSTEM "file:///etc/passwd">]>',
  f'<!DOCTYPE x [<!ENTITY b11 "{"x" * 60_000}">]>',
  '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
)


def _mutate_xml(content: bytes, draw: random.Random) -> bytes:
  root = ElementTree.fromstring(content)
  parents = [(parent, child) for parent in root.iter() for child in parent]
  for _ in range(draw.choice((1, 1, 2, 3))):
    parent, element = draw.choice(parents)
    kind = draw.randrange(7)
    if kind == 0 and element in list(parent):
      parent.remove(element)
    elif kind == 1:
      parent.append(element)
    elif kind == 2:
      element.text = draw.choice(_WORDS)
    elif kind == 3:
      element.tag = draw.choice([other.tag for _, other in parents])
    elif element.attrib:
      key = draw.choice(sorted(element.attrib))
      old = element.attrib.pop(key)
      if kind > 3:
        parts = old.replace(",", " ").replace(";", " ").split()
        new = draw.choice(_WORDS)
        element.set(key, old.replace(draw.choice(parts), new, 1) if parts and draw.random() < 0.5 else new)
  text = ElementTree.tostring(root).replace(b"\0", b"&#0;")
  if draw.random() < 0.1:
    text = draw.choice(_HEADS).encode() + text.replace(b"</", b"&b11;</", 1)
  return text


def _mutate_lines(content: bytes, draw: random.Random) -> bytes:
  """Changes words and lines of a string whose words are separated by spaces, commas or colons."""
  lines = content.decode().splitlines()
  for _ in range(draw.choice((1, 1, 2, 3))):
    place = draw.randrange(len(lines))
    separator = next((each for each in (" ", ",", ":") if each in lines[place]), " ")
    words = lines[place].split(separator)
    match draw.randrange(6):
      case 0:
        lines.insert(place, lines[place])
      case 1:
        lines[place] = ""
      case 2:
        del words[draw.randrange(len(words))]
        lines[place] = separator.join(words)
      case 3:
        lines[place] = separator.join(words * draw.choice((2, 500)))
      case _:
        words[draw.randrange(len(words))] = draw.choice(_WORDS)
        lines[place] = separator.join(words)
  return "\n".join(lines).encode(errors="surrogatepass")


# ----------------------------------------------------------------------------------------------------------------- PNG


def _mutate_png(content: bytes, draw: random.Random) -> bytes:
  """Changes the chunks of a PNG file and gives them right checksums, without which no decoder looks at them."""
  chunks, place = [], len(_PNG)
  while place + 12 <= len(content):
    (length,) = struct.unpack_from(">I", content, place)
    chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length]])
    place += 12 + length
  for _ in range(draw.choice((1, 1, 2))):
    place = draw.randrange(len(chunks))
    kind, data = chunks[place]
    match draw.randrange(6):
      case 0:
        del chunks[place]
      case 1:
        chunks.insert(draw.randrange(len(chunks)), [kind, data])
      case 2 if kind == b"IHDR":
        fields = list(struct.unpack(">IIBBBBB", data.ljust(13, b"\0")[:13]))
        fields[draw.randrange(2)] = draw.choice((0, 1, 7, 2**16, 2**20, 2**31 - 1, 2**32 - 1))
        chunks[place][1] = struct.pack(">IIBBBBB", *fields)
      case 3 if kind == b"IDAT":
        pixels = mutate_bytes(zlib.decompressobj().decompress(data, 10**6), draw)
        chunks[place][1] = zlib.compress(pixels)
      case 4:
        extra = draw.choice(
          ((b"tRNS", b"\0\1\2"), (b"PLTE", b"\0" * 9), (b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"))
        )
        extra = draw.choice(
          (
            extra,
            (b"tEXt", b"x\0y"),
            (b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 10**6)),
            (b"acTL", b"\0\0\0\2\0\0\0\0"),
          )
        )
        chunks.insert(1, list(extra))
      case _:
        chunks[place][1] = mutate_bytes(data, draw)
    if not chunks:
      break
  parts = [
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
  ]
  return _PNG + b"".join(parts)
