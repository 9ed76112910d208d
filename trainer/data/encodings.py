"""In which encoding a text was written, where no byte order mark says so and it is not UTF-8.

Captions are short, and general detectors need long texts: charset-normalizer reads GBK's bytes of two hanzi as Big5.
Here each encoding has a model of how probable its characters are and what they stand beside, and all files of a folder,
which one person wrote, say together which of them it is (Bayes' rule). What leaves a doubt is not read at all. The
process's locale has no say, so a dataset means the same on every machine.
"""

from __future__ import annotations

import codecs
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice, product

from ..base.errors import UserError

DOUBT = math.log(10)
"""A reading must be this much more probable, as a logarithm, than the next one that gives another text."""

TRUST = math.log(1000)
"""The most that the other files of a folder may say against an encoding, as a logarithm."""

MAX_CONSIDERED = 500
"""Characters of a text that are weighed."""

MAX_TOGETHER = 200
"""Files of a folder that say together which encoding it is in."""

MOST = 0.5
"""A reading of which less is common in its script is none."""

_UTF_8 = 4.0
"""The prior of UTF-8 where all texts are valid as UTF-8, and some as something else."""

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (b"\x84\x31\x95\x33", "gb18030"))
_WITH_NUL = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_TITLES = {"gb18030": "GBK", "cp950": "Big5", "big5hkscs": "Big5", "cp932": "Shift-JIS", "euc_jp": "EUC-JP",
           "cp949": "EUC-KR", "cp1252": "Latin-1 (Windows-1252)", "cp1250": "Windows-1250", "cp1251": "Windows-1251",
           "koi8_r": "KOI8-R", "cp1253": "Windows-1253"}
_PRIORS = {"gb18030": 0.0, "cp950": 0.0, "cp932": 0.0, "cp949": 0.0, "cp1252": 0.0, "cp1251": -1.0, "euc_jp": -2.0,
           "big5hkscs": -2.0, "cp1250": -3.0, "cp1253": -3.0, "koi8_r": -3.0, "utf-16-le": -3.0, "utf-16-be": -3.0}
"""How common each is among files without a mark, as a logarithm, roughly."""

_ALPHABETS = ("cp1252", "cp1250", "cp1251", "cp1253", "hebrew", "arabic")
"""Those whose characters take two bytes in UTF-8, as a hanzi does elsewhere."""

FEW = 2
"""So many pairs of bytes may be valid UTF-8 by chance: each pair of GBK is with a probability of about 1 in 6."""

_THREE_BYTES = "\u0800"
"""From here on a character takes three bytes or more in UTF-8, which other encodings' bytes do not resemble."""

_ODD = frozenset({"Cc", "Cn", "Co", "Cs"})
"""Unicode categories of what is in no caption: control characters, and code points without a character."""

_PUNCTUATION = "\u3000、。，．・：；？！…—～“”‘’（）〔〕「」『』【】《》〈〉·％／"
_TYPOGRAPHY = "’‘“”„–—…«»°´\xa0"
_SIGNS = "¡¢£¥§©ª®±²³µ·º¼½¾¿×÷"


@dataclass(frozen=True, slots=True)
class _Model:
    """How probable a text is: its characters one by one, and what stands beside what."""

    characters: dict[str, float]
    """Logarithms of the probabilities of those that are common in this script."""
    rare: float
    """The same of each other one."""
    beside: dict[str, float]
    """Logarithms of the probabilities of pairs of classes; those that are not listed have 0."""

    def share(self, text: str) -> float:
        """The share of what is common in this script among all that is not ASCII."""
        foreign = [each for each in text[:MAX_CONSIDERED] if each > "\x7f"]
        return sum(each in self.characters for each in foreign) / len(foreign) if foreign else 1.0

    def score(self, text: str) -> float:
        """The logarithm of a text's probability; minus infinity if it holds what no text does."""
        text = text[:MAX_CONSIDERED]
        counts = Counter(text)
        if any(map(_is_odd, counts)):
            return -math.inf
        one_by_one = sum(number * self._of(each) for each, number in counts.items())
        classes = "o" + "".join(map(_class_of, text)) + "o"
        pairs = Counter(zip(classes, classes[1:], strict=False))
        return one_by_one + sum(number * self.beside.get(a + b, 0.0) for (a, b), number in pairs.items())

    def _of(self, character: str) -> float:
        if character > "\x7f":
            return self.characters.get(character, self.rare)
        return -3.3 if character.islower() else -1.0 if character.isspace() else -5.0


@cache
def _is_odd(character: str) -> bool:
    return unicodedata.category(character) in _ODD and character not in "\t\n\r\v\f\x1a"


@cache
def _class_of(character: str) -> str:
    """a: an ASCII letter, o: other ASCII, n: another letter, s: another sign."""
    if character <= "\x7f":
        return "a" if character.isalpha() else "o"
    return "n" if character.isalpha() else "s"


def _logs(**shares: float) -> dict[str, float]:
    return {pair: math.log(share) for pair, share in shares.items()}


_OWN_SCRIPT = _logs(nn=.85, na=.02, no=.12, ns=.1, an=.02, on=.4, sn=.5, ss=.2, so=.2, sa=.05, os=.1)
_OWN_SCRIPT["as"] = math.log(.02)
_AMONG_LATIN = _logs(nn=.03, na=.75, no=.2, ns=.02, an=.04, on=.02, sn=.02, ss=.05, so=.7, sa=.1, os=.03)
_AMONG_LATIN["as"] = math.log(.02)


def _model(beside: dict[str, float], rare: float, *shares: tuple[str, float]) -> _Model:
    """`shares` are characters and the share of a text that they make up together, where they are not ASCII."""
    characters: dict[str, float] = {}
    for letters, share in shares:
        for letter in letters:
            characters.setdefault(letter, math.log(share / len(letters)))
    return _Model(characters, rare, beside)


def _alphabet(often: str, seldom: str) -> _Model:
    return _model(_OWN_SCRIPT, -11.0, (often, .75), (seldom, .2), ((often + seldom).upper(), .04), (_TYPOGRAPHY, .01))


def _latin(often: str, seldom: str) -> _Model:
    return _model(_AMONG_LATIN, -9.0, (often, .9), (seldom, .02), ((often + seldom).upper(), .06), (_TYPOGRAPHY, .3),
                  (_SIGNS, .02))


def _rows(encoding: str, first: int, last: int, trails: Iterable[int] = range(0xA1, 0xFF)) -> str:
    """The characters of the two-byte codes in these rows."""
    return "".join(bytes(code).decode(encoding, "ignore") for code in product(range(first, last + 1), trails))


@cache
def _models() -> dict[str, _Model]:
    """By encoding, or by script where that is met in UTF-8 alone.

    The hanzi, kanji and hangul are those that their standards list as the common ones.
    """
    kana = "".join(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FD)]))
    simplified, hangul = _rows("gb2312", 0xB0, 0xD7), _rows("euc_kr", 0xB0, 0xC8)
    kanji = _rows("euc_jp", 0xB0, 0xCF)
    traditional = _rows("big5", 0xA4, 0xC6, [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    chinese = _model(_OWN_SCRIPT, -13.4, (_PUNCTUATION, .1), (simplified, .8), (_rows("gb2312", 0xA1, 0xA9), .05))
    taiwanese = _model(_OWN_SCRIPT, -13.4, (_PUNCTUATION, .1), (traditional, .8), (_rows("big5", 0xA1, 0xA3), .05))
    japanese = _model(_OWN_SCRIPT, -13.4, (_PUNCTUATION, .1), (kana + "ー々", .45), (kanji, .35),
                      (_rows("euc_jp", 0xA1, 0xA8), .05))
    korean = _model(_OWN_SCRIPT, -13.4, (_PUNCTUATION, .05), (hangul, .85), (_rows("euc_kr", 0xA1, 0xAC), .05))
    russian = _alphabet("оеаинтсрвлк", "мдпуяыьгзбчйхжшюцщэфъё")
    everything = _model(_OWN_SCRIPT, -16.0, (simplified + traditional + kana + hangul, .9), (_PUNCTUATION, .1),
                        ("".join(map(chr, range(0xA0, 0x250))), .01))
    return {
        "gb18030": chinese, "cp950": taiwanese, "big5hkscs": taiwanese, "cp932": japanese, "euc_jp": japanese,
        "cp949": korean, "cp1252": _latin("éèêëàâäáãåæçíîïñóôöõøúùûüß", "œýÿðþìò"),
        "cp1250": _latin("ąęłńóśźżćáčďéěíňřšťúůýžöőüűäß", "đăâîşţëôçľĺŕ"), "cp1251": russian, "koi8_r": russian,
        "cp1253": _alphabet("αοιετσνηυρπκ", "λμωςέόίάήύώγδθφχβξζψ"),
        "hebrew": _alphabet("".join(map(chr, range(0x5D0, 0x5EB))), "־׳״"),
        "arabic": _alphabet("".join(map(chr, [*range(0x620, 0x64B), 0x6A9, 0x6AF, 0x6CC])), "،؛؟پچژگ"),
        **dict.fromkeys(_WITH_NUL, everything),
    }


class Encodings:
    """Reads the texts of one folder, each in the encoding that it, and what it stands among, is most probably in."""

    def __init__(self, texts: dict[str, bytes]) -> None:
        """`texts` are all of them by name; only those that are not UTF-8 cost time."""
        unmarked = (name for name, data in texts.items() if _plainly(data) is None and b"\0" not in data
                    and not data.startswith(tuple(mark for mark, _ in _MARKS)))
        self._said = {name: _evidence(texts[name]) for name in islice(unmarked, MAX_TOGETHER)}
        self._together = {encoding: sum(said.get(encoding, -TRUST) for said in self._said.values())
                          for encoding in _PRIORS}
        self._settled = self._settle()
        plain = (text for data in texts.values() if (text := _plainly(data)) is not None and not text.isascii())
        self._is_few = sum(sum(each > "\x7f" for each in text) for text in islice(plain, FEW + 1)) <= FEW

    def read(self, name: str, data: bytes) -> tuple[str, str]:
        """(text, title of its encoding where that had to be found out, else "").

        Raises:
            UserError: it is in no encoding that is known, or could be in several.
        """
        for mark, encoding in _MARKS:
            if data.startswith(mark):
                try:
                    return data.removeprefix(mark if encoding == "gb18030" else b"").decode(encoding), ""
                except UnicodeDecodeError:
                    raise UserError(f"{name} begins as {encoding.upper()} and goes on as something else; save it "
                                    "again as UTF-8.") from None
        if b"\0" in data:
            found = {encoding: reading for encoding in _WITH_NUL if (reading := _reading(data, encoding))}
            return self._best(name, found, "UTF-16")
        plain = _plainly(data)
        if plain is not None and (certain(data) is not None or not self._is_ambiguous(plain)):
            return plain, ""
        if plain is None and self._settled:
            reading = _decoded(data, self._settled)
            if reading is not None and _models()[self._settled].share(reading) == 1:
                return reading, _title(self._settled)  # the others would cost time and could not win
        prior = self._prior(name)
        found = {encoding: (reading[0], reading[1] + prior[encoding]) for encoding in _PRIORS
                 if (reading := _reading(data, encoding))}
        if plain is not None:
            score = max(_models()[encoding].score(plain) for encoding in _ALPHABETS)
            found["utf-8"] = plain, score + (-DOUBT if self._said else _UTF_8)
        return self._best(name, found, "")

    def _is_ambiguous(self, text: str) -> bool:
        """Whether pairs of bytes may be valid UTF-8 by chance: few in all texts, or among texts that are none."""
        return bool(self._said) or self._is_few and sum(each > "\x7f" for each in text) <= FEW

    def _settle(self) -> str:
        """The encoding that is so much more probable than all others that a text of its common characters is in it."""
        totals = {encoding: total + _PRIORS[encoding] for encoding, total in self._together.items()}
        best = max(totals, key=totals.__getitem__)
        is_clear = all(total <= totals[best] - TRUST for encoding, total in totals.items()
                       if _title(encoding) != _title(best))
        return best if self._said and is_clear else ""

    def _prior(self, name: str) -> dict[str, float]:
        """What the other texts say of each encoding, and how common it is."""
        own = self._said.get(name, {})
        others = {encoding: total - (own.get(encoding, -TRUST) if name in self._said else 0)
                  for encoding, total in self._together.items()}
        best = max(others.values())
        return {encoding: max(total - best, -TRUST) + _PRIORS[encoding] for encoding, total in others.items()}

    @staticmethod
    def _best(name: str, found: dict[str, tuple[str, float]], title: str) -> tuple[str, str]:
        """The one reading that leaves no doubt; `found` has (text, score) by encoding."""
        by_text: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for encoding, (text, score) in found.items():
            by_text[text].append((score, encoding))
        ranked = sorted((max(readings) for readings in by_text.values()), reverse=True)
        if not ranked:
            raise UserError(f"{name} is not UTF-8, and in no other encoding that is known; save it as UTF-8.")
        (score, encoding), *others = ranked
        if others and score - others[0][0] < DOUBT:
            titles = dict.fromkeys(_title(each) for _, each in ranked[:2])
            raise UserError(f"{name} is not marked as UTF-8 and may be {' or '.join(titles)}; save it as UTF-8.")
        return found[encoding][0], "" if encoding == "utf-8" else title or _title(encoding)


def certain(data: bytes) -> str | None:
    """The text where nothing else needs to be known: UTF-8 that is so by no chance."""
    text = _plainly(data)
    return text if text is not None and (text.isascii() or max(text) >= _THREE_BYTES) else None


def _title(encoding: str) -> str:
    return _TITLES.get(encoding, encoding.upper())


def _plainly(data: bytes) -> str | None:
    """The text if it is UTF-8 without a NUL."""
    try:
        return data.decode("utf-8-sig") if b"\0" not in data else None
    except UnicodeDecodeError:
        return None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _reading(data: bytes, encoding: str) -> tuple[str, float] | None:
    """The text in an encoding, with its score; None where it is no text."""
    text, model = _decoded(data, encoding), _models()[encoding]
    if text is None or model.share(text) < MOST or (score := model.score(text)) == -math.inf:
        return None
    return text, score


def _evidence(data: bytes) -> dict[str, float]:
    """How probable each encoding is compared with the most probable one, as a logarithm not below -TRUST."""
    scores = {encoding: reading[1] for encoding in _PRIORS if (reading := _reading(data, encoding))}
    best = max(scores.values(), default=0.0)
    return {encoding: max(score - best, -TRUST) for encoding, score in scores.items()}
