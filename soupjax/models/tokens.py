# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizes texts as OpenCLIP does.

The library `tokenizers` applies the vocabulary beside the checkpoint
(tokenizer.json, or vocab.json and merges.txt) or else that of an installed
OpenCLIP. Texts are first cleaned as in OpenCLIP: ftfy, html.unescape and lower
case; for SigLIP, punctuation is removed too.
"""

from collections.abc import Callable, Sequence
import gzip
import html
import importlib
import importlib.util
import os
import pathlib
import string
from typing import Any

from absl import logging
import numpy as np

from soupjax import files
from soupjax.checkpoints import companions

# The words into which OpenAI's tokenizer splits texts.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Start and end tokens of CLIP in transformers and in OpenCLIP.
_CLIP_ENDS = (
  ("<|startoftext|>", "<|endoftext|>"),
  ("<start_of_text>", "<end_of_text>"),
)
# Number of merges in OpenAI's file that CLIP uses.
_NUM_MERGES = 49_152 - 256 - 2
# Texts encoded at a time: the library needs a few kB for each.
_AT_ONCE = 4096
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
  """Converts texts into token ids, the same number for each text.

  Attributes:
    vocab_size: number of ids.
    context_length: tokens per text, including start, end and padding.
    source: the file of the vocabulary.
    end: id of the end-of-text token.
  """

  def __init__(self, backend: Any, source: pathlib.Path, context_length: int):
    """Finds the special tokens of a vocabulary.

    Args:
      backend: a `tokenizers.Tokenizer`.
      source: the file of the vocabulary.
      context_length: as for `open_tokenizer`.

    Raises:
      ValueError: if it has no known end-of-text token.
    """
    self._backend, self.source = backend, source
    self.context_length = context_length
    self.vocab_size = backend.get_vocab_size()
    ends = [tuple(map(backend.token_to_id, pair)) for pair in _CLIP_ENDS]
    ends = [pair for pair in ends if None not in pair]
    if ends:
      (start, self.end), self._padding = ends[0], 0
      self._start, self._clean = [start], _lower
    elif (end := backend.token_to_id("</s>")) is not None:
      # SigLIP pads with the end token, since it pools the last position.
      self._start, self.end, self._padding = [], end, end
      self._clean = _canonical
    else:
      raise ValueError(
        f"{source} has no end-of-text token ({_CLIP_ENDS[0][1]!r}, "
        f"{_CLIP_ENDS[1][1]!r} or '</s>'): it belongs to a text tower that "
        "soupjax does not support."
      )

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Tokenizes texts.

    A text that is too long is cut, but still ends with the end token; a single
    warning quotes the longest text.

    Args:
      texts: strings of any length.

    Returns:
      Token ids, (len(texts), context_length) int32.

    Raises:
      ValueError: if a text is not a string.
    """
    for text in texts:
      if not isinstance(text, str):
        raise ValueError(f"Texts must be strings, got {text!r:.80}.")
    shape = (len(texts), self.context_length)
    tokens = np.full(shape, self._padding, np.int32)
    room = self.context_length - len(self._start) - 1
    lengths = np.zeros(len(texts), np.int64)
    for first in range(0, len(texts), _AT_ONCE):
      part = [self._clean(text) for text in texts[first : first + _AT_ONCE]]
      encoded = self._backend.encode_batch(part, add_special_tokens=False)
      for row, encoding in enumerate(encoded, first):
        ids = [*self._start, *encoding.ids[:room], self.end]
        tokens[row, : len(ids)] = ids
        lengths[row] = len(encoding.ids)
    if len(texts) and lengths.max() > room:
      k = int(lengths.argmax())
      logging.warning(
        "%d of %d texts have more than %d tokens and are cut; the longest has "
        "%d: %r",
        *(int((lengths > room).sum()), len(texts), room),
        *(int(lengths[k]), texts[k]),
      )
    return tokens


def open_tokenizer(
  path: str | os.PathLike = "",
  *,
  context_length: int = 77,
  vocab_size: int | None = None,
) -> Tokenizer:
  """Opens the tokenizer of a checkpoint.

  Looks for tokenizer.json beside the checkpoint, then for vocab.json and
  merges.txt, then for the vocabulary of OpenAI's CLIP in an installed OpenCLIP.

  Args:
    path: path of a checkpoint; "" for the vocabulary of OpenCLIP.
    context_length: positions of the text tower.
    vocab_size: rows of its token embedding, which must equal the size of the
      vocabulary; None skips this check.

  Raises:
    ValueError: if a package is missing; or if the vocabulary is missing or
      unreadable, or has another size.
  """
  tokenizers = _package("tokenizers")
  _package("ftfy")
  path = os.fspath(path)
  if file := companions.file_beside(path, "tokenizer.json"):
    backend = _read(file, lambda: tokenizers.Tokenizer.from_file(str(file)))
    backend.no_truncation()
    backend.no_padding()
  elif (file := companions.file_beside(path, "vocab.json")) and (
    merges := companions.file_beside(path, "merges.txt")
  ):
    vocab = files.read_json(file)
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    backend = _read(file, lambda: _byte_pairs(tokenizers, vocab, pairs))
  else:
    file = _openclip_vocabulary(path)
    vocab, pairs = _of_openclip(file)
    backend = _byte_pairs(tokenizers, vocab, pairs)
  tokenizer = Tokenizer(backend, file, context_length)
  if vocab_size is not None and tokenizer.vocab_size != vocab_size:
    raise ValueError(
      f"The vocabulary of {file} has {tokenizer.vocab_size} tokens, but the "
      f"token embedding of {path or 'the model'} has {vocab_size} rows: put "
      "the tokenizer.json of this model beside its weights."
    )
  return tokenizer


def _package(name: str):
  if importlib.util.find_spec(name) is None:
    raise ValueError(
      f"Tokenizing texts needs the package {name}: pip install 'soupjax[clip]'."
    )
  return importlib.import_module(name)


def _read(file: pathlib.Path, read: Callable[[], Any]):
  try:
    return read()
  except Exception as e:  # tokenizers raises plain Exceptions.
    raise ValueError(f"{file} is not a vocabulary for CLIP: {e}") from e


def _openclip_vocabulary(path: str) -> pathlib.Path:
  """Finds the vocabulary of an installed OpenCLIP without importing it."""
  spec = importlib.util.find_spec("open_clip")
  for folder in (spec and spec.submodule_search_locations) or ():
    file = pathlib.Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
    if file.exists():
      return file
  where = f"Beside {path} there is neither" if path else "There is neither"
  raise ValueError(
    f"{where} tokenizer.json nor vocab.json with merges.txt, and OpenCLIP, "
    "which has the vocabulary of OpenAI's CLIP, is not installed: pip install "
    "open_clip_torch, or add one of these files."
  )


def _of_openclip(file: pathlib.Path) -> tuple[dict[str, int], list[str]]:
  """Returns token -> id, and the merges in the order of their ids."""
  with gzip.open(file, "rt", encoding="utf-8") as lines:
    merges = lines.read().split("\n")[1 : _NUM_MERGES + 1]
  # Printable bytes come first, in the order of their codes.
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [*map(chr, printable), *(chr(256 + n) for n in range(68))]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
  tokens += [merge.replace(" ", "") for merge in merges]
  tokens += _CLIP_ENDS[1]
  return {token: k for k, token in enumerate(tokens)}, merges


def _byte_pairs(tokenizers, vocab: dict[str, int], merges: list[str]):
  """Returns a byte-pair tokenizer with this vocabulary."""
  pairs = [tuple(merge.split(" ")) for merge in merges]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab, pairs, end_of_word_suffix="</w>")
  )
  pre = tokenizers.pre_tokenizers
  words = tokenizers.Regex(_WORDS)
  backend.pre_tokenizer = pre.Sequence(
    [
      pre.Split(words, "removed", invert=True),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  ends = [token for pair in _CLIP_ENDS for token in pair if token in vocab]
  backend.add_special_tokens(
    [tokenizers.AddedToken(token, normalized=False) for token in ends]
  )
  return backend


# --- Cleaning -----------------------------------------------------------------


def _basic(text: str) -> str:
  import ftfy

  return html.unescape(html.unescape(ftfy.fix_text(text)))


def _lower(text: str) -> str:
  return " ".join(_basic(text).split()).lower()


def _canonical(text: str) -> str:
  """Removes punctuation, for SigLIP."""
  text = _basic(text).replace("_", " ").translate(_NO_PUNCTUATION)
  return " ".join(text.lower().split())
