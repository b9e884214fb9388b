"""Tokens against those of OpenCLIP, and vocabularies beside a checkpoint."""

import json
import logging

import numpy as np
import pytest
import torch_models

from soupjax.models import tiny_clip, tokens

pytest.importorskip("tokenizers", reason="needs pip install soupjax[clip]")
pytest.importorskip("ftfy", reason="needs pip install soupjax[clip]")

ODD = [
  "a photo of a cat.",
  "naïve café &amp;amp; 100% œuvre",
  "日本語のテキスト 😀👍🏽",
  "a\u0300 b\u200bzero",
  "&lt;b&gt;it's&lt;/b&gt;  I'LL we'VE 'S",
  "",
  "   \n\t",
  "İstanbul ß ﬁ ½ Ⅳ ñ𝔘𝔫𝔦",
  "\x00\x07bell",
  "sÃ© mojibake â€œquotedâ€\x9d",
  "1234567890 3.14 1e-5 __init__ don't a–b—c…",
  "<end_of_text> in the middle <start_of_text>",
  "word " * 200,
]


@pytest.fixture
def tiny(tmp_path):
  tiny_clip.write_vocabulary(tmp_path)
  return tmp_path


def test_tokens_of_odd_texts_equal_those_of_openclip():
  theirs = torch_models.package("open_clip.tokenizer").SimpleTokenizer()
  ours = tokens.open_tokenizer(vocab_size=49_408)
  np.testing.assert_array_equal(ours(ODD), theirs(ODD).numpy())


def test_a_vocabulary_beside_the_weights(tiny):
  tokenizer = tokens.open_tokenizer(tiny, context_length=6, vocab_size=56)
  rows = tokenizer(["Cat  at", "&amp;CAT"])
  # c, a and t are 2, 0 and 19; at the end of a word they are 26 later.
  np.testing.assert_array_equal(rows[0], [54, 53, 0, 45, 55, 0])
  assert tokenizer.source.name == "vocab.json"


def test_long_texts_keep_their_end(tiny, caplog):
  tokenizer = tokens.open_tokenizer(tiny, context_length=5)
  with caplog.at_level(logging.WARNING, logger="absl"):
    rows = tokenizer(["cat", "cat cat cat cat", "at cat cat cat cat cat"])
  assert (rows[1:, -1] == 55).all() and rows[0, -1] == 0
  [record] = caplog.records
  assert "2 of 3" in record.message and "'at cat cat" in record.message


def test_tokenizer_json_comes_first(tiny):
  library = pytest.importorskip("tokenizers")
  unigram = library.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)])
  library.Tokenizer(unigram).save(str(tiny / "tokenizer.json"))
  tokenizer = tokens.open_tokenizer(tiny, context_length=4, vocab_size=3)
  assert tokenizer.source.name == "tokenizer.json"
  # SigLIP's: without punctuation, and the end up to the last position.
  np.testing.assert_array_equal(tokenizer(["A!", ""]), [[2, 1, 1, 1], [1] * 4])


def test_vocabularies_that_do_not_fit(tiny, monkeypatch):
  with pytest.raises(ValueError, match="vocab.json has 56.*has 57 rows"):
    tokens.open_tokenizer(tiny, vocab_size=57)
  with pytest.raises(ValueError, match="must be strings, got 3"):
    tokens.open_tokenizer(tiny)(["cat", 3])
  (tiny / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="tokenizer.json is not a vocabulary"):
    tokens.open_tokenizer(tiny)
  found = tokens.importlib.util.find_spec
  for missing, message in (
    ("tokenizers", r"tokenizers: pip install 'soupjax\[clip\]'"),
    ("ftfy", r"ftfy: pip install 'soupjax\[clip\]'"),
    ("open_clip", "There is neither tokenizer.json"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(
        tokens.importlib.util,
        "find_spec",
        lambda name, m=missing: None if name == m else found(name),
      )
      with pytest.raises(ValueError, match=message):
        tokens.open_tokenizer()


def test_an_end_of_text_that_is_unknown(tiny):
  vocab = json.loads((tiny / "vocab.json").read_text())
  del vocab["<|endoftext|>"]
  (tiny / "vocab.json").write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match="no end-of-text token"):
    tokens.open_tokenizer(tiny)
