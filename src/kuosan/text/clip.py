"""CLIP's byte-pair tokenizer (Radford et al. 2021): its vocabulary is in the package, for a single file carries none.

A text is normalised (NFC, small letters) and cut into words, single digits and runs of marks; each is spelt in bytes,
the last of them with `</w>`, and of neighbours the pair that comes first in the list of merges is joined until none is
left. Token ids are those of transformers' `CLIPTokenizer` with the same vocabulary. Torch-free.
"""

from __future__ import annotations

import gzip
import heapq
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kuosan.errors import Error, shown
from kuosan.regular import exists, read_regular

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens that CLIP reads, with begin and end
_MERGES = Path(__file__).parent / "assets" / "clip_merges.txt.gz"
_LARGEST = 128 << 20  # bytes of a tokenizer's file
_WORD_END = "</w>"
_CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")
_SPACES = frozenset("\t\n\v\f\r\x85")  # beside Unicode's separators
_KEPT = 1 << 16  # words whose tokens are remembered


def byte_characters() -> list[str]:
    """The characters that stand for bytes in byte-level BPE (Radford et al. 2019), in the vocabulary's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


_BYTES = dict(
    zip([*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173], byte_characters())
)
_BACK = {character: byte for byte, character in _BYTES.items()}


class Special(NamedTuple):
    """A token that a text is cut at before anything else."""

    id: int
    normalised: bool = False  # looked for in the text in small letters


class Encoded(NamedTuple):
    """Token ids, and from where to where in the text each is read."""

    input_ids: list[int]
    offset_mapping: list[tuple[int, int]]


class CLIPTokenizer:
    """Texts to CLIP's token ids; called as those of transformers are.

    Attributes:
        pad_token_id: what fills a prompt up: the end token, but `!` (0) in Stable Diffusion 2 and the second of XL.
    """

    is_fast = True  # it says where its tokens come from

    def __init__(
        self,
        vocabulary: Mapping[str, int] | None = None,  # None: CLIP's own
        merges: Sequence[tuple[str, str]] | None = None,
        *,
        pad: str = END,
        special: Mapping[str, Special] | None = None,  # further ones, and those that are looked for otherwise
        length: int = LENGTH,
    ) -> None:
        if vocabulary is None or merges is None:
            vocabulary, merges = own_vocabulary()
        self.vocabulary, self.model_max_length = vocabulary, length
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        extra = dict(special or {})
        for token in (BEGIN, END, pad):
            if token not in vocabulary and token not in extra:
                raise Error(f"the tokenizer's vocabulary has no {token}: it is not CLIP's.")
            extra.setdefault(token, Special(vocabulary.get(token, 0)))
        self.special = extra
        self.bos_token_id, self.eos_token_id = extra[BEGIN].id, extra[END].id
        self.pad_token_id = extra[pad].id
        self._cuts = [self._cut(normalised) for normalised in (False, True)]
        self._names = {number: token for token, number in vocabulary.items()}
        self._names |= {each.id: token for token, each in extra.items()}
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_: Any) -> Encoded:
        """The tokens of a text, by default with begin and end."""
        found = list(self._tokens(text))
        if add_special_tokens:
            found = [(self.bos_token_id, (0, 0)), *found, (self.eos_token_id, (0, 0))]
        return Encoded([token for token, _ in found], [where for _, where in found])

    def decode(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for, in small letters."""
        text = "".join(self._names.get(each, "") for each in ids).replace(_WORD_END, " ")
        raw = b"".join(bytes([_BACK[c]]) if c in _BACK else c.encode("utf-8", "replace") for c in text)
        return raw.decode("utf-8", "replace").strip()

    def _cut(self, normalised: bool) -> re.Pattern[str] | None:
        """A pattern of the special tokens, the longest first."""
        tokens = sorted((token for token, each in self.special.items() if each.normalised == normalised), key=len)
        return re.compile("|".join(map(re.escape, reversed(tokens)))) if tokens else None

    def _tokens(self, text: str) -> Iterator[tuple[int, tuple[int, int]]]:
        for start, end, token in _cut_at(self._cuts[0], text):
            if token:
                yield self.special[token].id, (start, end)
                continue
            small, places = _normalised(text[start:end], start)
            for first, last, token in _cut_at(self._cuts[1], small):
                if token:
                    yield self.special[token].id, (places[first][0], places[last - 1][1])
                    continue
                for begin, stop in _words(small, first, last):
                    yield from self._spelt(small[begin:stop], places[begin:stop])

    def _spelt(self, word: str, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int]]]:
        """A word's tokens, each from the place of its first byte's character to that of its last one's."""
        spelling = [(byte, place) for c, place in zip(word, places) for byte in c.encode("utf-8", "replace")]
        at = 0
        for token in self._bpe(word):
            size = len(self._names[token].removesuffix(_WORD_END)) if token != self.eos_token_id else 1
            yield token, (spelling[at][1][0], spelling[min(at + size, len(spelling)) - 1][1][1])
            at = min(at + size, len(spelling) - 1)

    def _bpe(self, word: str) -> tuple[int, ...]:
        """A word's token ids; what the vocabulary has not is the end token, as with transformers."""
        if (known := self._known.get(word)) is not None:
            return known
        parts = [_BYTES[byte] for byte in word.encode("utf-8", "replace")]
        parts[-1] += _WORD_END
        behind, before = list(range(1, len(parts) + 1)), list(range(-1, len(parts) - 1))
        waiting: list[tuple[int, int, str, str]] = []  # rank, where, the two parts

        def look(i: int) -> None:
            if i >= 0 and behind[i] < len(parts):
                pair = parts[i], parts[behind[i]]
                if (rank := self._ranks.get(pair)) is not None:
                    heapq.heappush(waiting, (rank, i, *pair))

        for i in range(len(parts)):
            look(i)
        while waiting:
            _, i, first, second = heapq.heappop(waiting)
            j = behind[i]
            if parts[i] != first or j == len(parts) or parts[j] != second:
                continue  # one of them was joined meanwhile
            parts[i], parts[j] = first + second, ""
            behind[i] = behind[j]
            if behind[i] < len(parts):
                before[behind[i]] = i
            look(before[i])
            look(i)
        found = tuple(self.vocabulary.get(part, self.eos_token_id) for part in parts if part)
        if len(self._known) < _KEPT:
            self._known[word] = found
        return found


@cache
def own_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's own 49,408 tokens and the merges that make them."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    characters = byte_characters()
    tokens = [*characters, *(each + _WORD_END for each in characters), *map("".join, merges), BEGIN, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _cut_at(pattern: re.Pattern[str] | None, text: str) -> Iterator[tuple[int, int, str]]:
    """A text's parts (start, end, the special token or nothing), none of them empty."""
    at = 0
    for found in pattern.finditer(text) if pattern else ():
        if at < found.start():
            yield at, found.start(), ""
        yield found.start(), found.end(), found[0]
        at = found.end()
    if at < len(text):
        yield at, len(text), ""


def _normalised(text: str, start: int) -> tuple[str, list[tuple[int, int]]]:
    """A text in NFC and small letters, and for each of its characters the place it came from."""
    if text.isascii():
        return text.lower(), [(i, i + 1) for i in range(start, start + len(text))]
    bounds = [0]  # of clusters: a character with what composes with it
    for i in range(1, len(text)):
        if unicodedata.combining(text[i]):
            continue
        last = text[bounds[-1] : i]
        apart = unicodedata.normalize("NFC", last) + unicodedata.normalize("NFC", text[i])
        if text[i].isascii() or unicodedata.normalize("NFC", last + text[i]) == apart:
            bounds.append(i)
    clusters = [text[first:last] for first, last in pairwise([*bounds, len(text)])]
    if "".join(unicodedata.normalize("NFC", each) for each in clusters) != unicodedata.normalize("NFC", text):
        clusters = [text]
    small: list[str] = []
    places: list[tuple[int, int]] = []
    for cluster in clusters:
        composed = unicodedata.normalize("NFC", cluster)
        for i, character in enumerate(composed):
            small.append(character.lower())  # each alone: no final sigma
            place = (start + i, start + i + 1) if composed == cluster else (start, start + len(cluster))
            places += [place] * len(small[-1])
        start += len(cluster)
    return "".join(small), places


def _kind(character: str) -> str:
    """L a letter, N a number, Z a space, P whatever else."""
    category = unicodedata.category(character)
    if category[0] == "Z" or character in _SPACES:
        return "Z"
    return category[0] if category[0] in "LN" else "P"


def _words(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where words, contractions, single numbers and runs of marks stand in text[start:end]."""
    kinds = "".join(map(_kind, text[start:end]))
    at = start
    while at < end:
        kind = kinds[at - start]
        stop = at + 1
        if mark := next((each for each in (BEGIN, END) if text.startswith(each, at, end)), ""):
            word = at + 2, at + len(mark) - 2  # one that came of capitals: cut as CLIP's own are cut, and read as words
            yield from ((at, word[0]), word, (word[1], at + len(mark)))
            at += len(mark)
            continue
        contraction = next((each for each in _CONTRACTIONS if text.startswith(each, at, end)), "")
        if contraction:
            stop = at + len(contraction)
        elif kind in "LP":
            while stop < end and kinds[stop - start] == kind:
                stop += 1
        if kind != "Z":
            yield at, stop
        at = stop


def open_tokenizer(folder: Path | None = None, *, pad: str = END) -> CLIPTokenizer:
    """The tokenizer of a model's folder (vocab.json and merges.txt, or tokenizer.json), else CLIP's own.

    Args:
        pad: what fills a prompt up where the folder says nothing.

    Raises: `Error` for files that are damaged, or another tokenizer's.
    """
    if folder is None or not any(exists(folder / name) for name in ("vocab.json", "tokenizer.json")):
        return CLIPTokenizer(pad=pad)
    settings = _json(folder / "tokenizer_config.json")
    kind = str(settings.get("tokenizer_class", "CLIPTokenizer"))
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast", "TokenizersBackend"):
        raise Error(f"the tokenizer in {folder} is a {shown(kind)}; CLIP's is a CLIPTokenizer.")
    if exists(folder / "vocab.json"):
        vocabulary = _json(folder / "vocab.json")
        lines = _text(folder / "merges.txt").split("\n")
        merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    else:
        stored = _json(folder / "tokenizer.json").get("model")
        model: dict[str, Any] = stored if isinstance(stored, dict) else {}
        vocabulary, own = model.get("vocab", {}), model.get("merges")
        if model.get("end_of_word_suffix") != _WORD_END or not isinstance(own, list):
            raise Error(f"{folder / 'tokenizer.json'} is not CLIP's: its words do not end in {_WORD_END}.")
        merges = [each.split(" ") if isinstance(each, str) else each for each in own]
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise Error(f"the vocabulary in {folder} is damaged: it gives tokens no numbers.")
    if not all(isinstance(each, list) and len(each) == 2 for each in merges):
        raise Error(f"the merges in {folder} are damaged: each is of two tokens.")
    stated = {**_json(folder / "special_tokens_map.json"), **settings}
    pad = _content(stated.get("pad_token")) or END
    length = settings.get("model_max_length", LENGTH)
    return CLIPTokenizer(
        vocabulary,
        [(str(first), str(second)) for first, second in merges],
        pad=pad,
        special=_special(folder, vocabulary, settings),
        length=length if type(length) is int and 2 < length < 1 << 20 else LENGTH,
    )


def _special(folder: Path, vocabulary: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Special]:
    """The special tokens that a folder states, those added to the vocabulary (textual inversion) among them."""
    found: dict[str, Special] = {}
    for token, number in _json(folder / "added_tokens.json").items():
        if type(number) is int and token:
            found[token] = Special(number, normalised=token not in (BEGIN, END))
    stored, added = _json(folder / "tokenizer.json").get("added_tokens"), settings.get("added_tokens_decoder")
    entries = [(each.get("id"), each) for each in stored if isinstance(each, dict)] if isinstance(stored, list) else []
    entries += list(added.items()) if isinstance(added, dict) else []
    for key, each in entries:
        token, number = _content(each), str(key)
        if not token or not number.isdecimal():
            continue
        if any(each.get(name) for name in ("lstrip", "rstrip", "single_word")):
            raise Error(
                f"the token {shown(token)} in {folder} takes what stands around it, which kuosan does not read."
            )
        found[token] = Special(int(number), normalised=bool(each.get("normalized")))
    stated = _json(folder / "special_tokens_map.json") if not entries else {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):  # of one token the last says how
        token = _content(stated.get(name))
        if token in vocabulary:
            each = stated[name]
            found[token] = Special(vocabulary[token], isinstance(each, dict) and bool(each.get("normalized")))
    return found


def _content(token: Any) -> str:
    """A token as it is written in a tokenizer's settings, as text or with how it is looked for."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _text(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path} cannot be read: {error}.") from None


def _json(path: Path) -> dict[str, Any]:
    """A mapping from a file of JSON; empty where there is none."""
    if not exists(path):
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise Error(f"{path} is damaged: it is not valid JSON.") from None
    if not isinstance(found, dict):
        raise Error(f"{path} is damaged: it is no mapping.")
    return found
