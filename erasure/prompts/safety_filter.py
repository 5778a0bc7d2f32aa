"""Refuse prompts that combine a sexual term with a term for minors, before any image is generated. It has no switch.

It reads English, whole words, and the usual disguises: accents, look-alike and full-width letters, digits and signs in
place of letters, dots or spaces between letters, repeated letters. It prefers to refuse too much: "nude lipstick on a
girl" and "a young-looking nude" are refused, though they may be harmless.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from erasure.core.errors import OptionError

ADULT = 18
LISTED = 5  # numbers of refused prompts that an error names
LONGEST = 40  # letters of two words written as one

_SEXUAL_LIST = """
nude nudes nudity nudist naked nakedness nsfw xxx sex sexual sexually sexy sexualize sexualized sexualised erotic
erotica erotically eroticism porn porno pornographic pornography pornstar topless bottomless undress undressed
undressing unclothed disrobed disrobing lingerie panties upskirt hentai ecchi ahegao fetish seductive seductively
sensual sensually orgasm masturbate masturbating masturbation genital genitals genitalia nipple nipples breasts
boobs tits vagina vulva penis penises explicit lewd lewdly kinky slut slutty whore horny bdsm bondage striptease
stripper intercourse aroused fellatio blowjob incest rape raped molest molested pedophile pedophilia paedophilia
breast boob anal cum fuck fucked fucking fucks pussy stripped stripping shirtless unclad uncensored
"""
_MINOR_LIST = """
child children childlike childhood grandchild grandchildren stepchild kid kids kiddie minor minors toddler toddlers
baby babies infant infants newborn teen teens teenage teenaged teenager teenagers preteen preteens tween tweens
underage underaged youngster youngsters schoolgirl schoolgirls schoolboy schoolboys schoolkid schoolchild
schoolchildren preschool preschooler schooler grader kindergarten kindergartner boy boys girl girls juvenile
adolescent adolescents adolescence pubescent prepubescent loli lolita shota daughter stepdaughter kiddo youth
nymphet sophomore freshman cub thirteen fourteen fifteen sixteen seventeen
"""
_SEXUAL, _MINORS = frozenset(_SEXUAL_LIST.split()), frozenset(_MINOR_LIST.split())
_BOTH = frozenset(("lolicon", "shotacon", "toddlercon", "jailbait"))  # each says both by itself
_SEXUAL_PHRASE = re.compile(r"\b(?:(?:no|without(?: any)?) (?:clothes|clothing)|wearing nothing|birthday suit)\b")
_MINOR_PHRASE = re.compile(
    r"\bunder[ -]?age\b|\b(?:under|below|younger than|not yet)[ -](?:the age of )?18\b|\bbarely[ -]legal\b|\bsweet 16\b"
    r"|\b(?:high|middle|elementary|primary|grade)[ -]school (?:student|pupil)s?\b|\bjunior[ -]high\b"
    r"|\b\d{1,2}(?:st|nd|rd|th)[ -]grade\b"
    r"|\b(?:girl|boy|she|he|they|who)(?: is|'s| was| are)? (?:just |only )?1?\d\b(?! (?:feet|inches|kg|of)\b)"
    r"|\b(?:very|too|so|really|extremely)[ -]young\b|\byoung[ -]*looking\b"
)
# Where a sexual word means nothing sexual and the phrase has no second reading.
_INNOCENT = re.compile(
    r"\bthe naked eye\b(?![ -](?:level|contact))|\bnaked mole[ -]rats?\b|\b(?:same|opposite)[ -]sex\b"
    r"|\b(?:chicken|turkey|duck) breasts?\b|\bbreast (?:cancer|feeding|pocket|stroke)\b|\bbottomless (?:pit|well)s?\b"
)

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " + (
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: i for i, word in enumerate(_UNITS.split())} | {w: 20 + 10 * i for i, w in enumerate(_TENS.split())}
_NUMBER = re.compile(
    rf"\b({'|'.join(_TENS.split())})(?:[ -]?({'|'.join(_UNITS.split()[1:10])}))?\b|\b({'|'.join(_UNITS.split())})\b"
)
_AGES = (
    # "14 years old", "14-year-old", "14 to 16 years old", "14yo", "14 y/o", "15 years" but not "15 years ago"
    re.compile(
        r"(?<![\d.,])(\d{1,2})(?:\s*(?:-|to|or)\s*(\d{1,2}))?[\s_-]*(?:years?|yrs?|y)"
        r"(?:[\s._/-]*(?:olds?|o|of age)\b|\b(?! (?:ago|later|of|since|after|before)\b))"
    ),
    # "age 14", "age: 14", "aged 14", "at the age of 14", "ages 14 to 40"
    re.compile(r"\bage[ds]?\s*(?:of|is|at|[:=-])?\s*(\d{1,2})\b()"),
    re.compile(r"(?<!\d)(\d{1,2})(?:st|nd|rd|th) birthday\b()"),
)
_BABY_AGE = re.compile(r"(?<!\d)\d{1,2}[\s-]*(?:months?|weeks?)[\s-]*old\b")

_SIGNS = str.maketrans("0345789@$€", "oeastbgase")
# Cyrillic and Greek letters that look Latin, the dotless i, small capitals.
_LOOKALIKES = str.maketrans("аеорсхуікѕαοιıᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "aeopcxyiksaoiiabcdefghijklmnoprstuvwyz")
_STARRED = re.compile(r"(?<![a-z])[a-z]++(?:\*++[a-z]++)++")
_SPELLED = re.compile(r"(?<![a-z0-9@$])[a-z0-9@$](?:[^a-z0-9@$]{1,3}[a-z0-9@$](?![a-z0-9@$])){2,}")
_JOINED = re.compile(r"(?<![a-z0-9@$])[a-z0-9@$]++(?:[-_.,·•*'’/\\|+~]++[a-z0-9@$]++)++")  # nothing to try twice


class _HasPrompt(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...


R = TypeVar("R", bound=_HasPrompt)


def forbidden(prompt: str) -> bool:
    """Whether `prompt` combines a sexual term with a term for minors (a word, a phrase, or an age below eighteen)."""
    # What cannot be seen parts words or joins them, and a capital I stands for an l.
    readings = {_plain(text, gap) for text in (prompt, re.sub("(?<=[a-z])I", "l", prompt)) for gap in ("", " ")}
    return any(_joins_both(text) for text in readings)


def _joins_both(text: str) -> bool:
    words = _words(text)
    if _has(words, _BOTH):
        return True
    innocent = _INNOCENT.sub(" ", text)
    if not (_has(words if innocent == text else _words(innocent), _SEXUAL) or _SEXUAL_PHRASE.search(text)):
        return False
    return _has(words, _MINORS) or _is_young(text)


def check(prompts: Sequence[str]) -> None:
    """Raise OptionError when a prompt is forbidden; it is named by its number alone."""
    refused = [str(i + 1) for i, prompt in enumerate(prompts) if forbidden(prompt)]
    if refused:
        raise OptionError(
            f"refused prompt {', '.join(refused[:LISTED])} of {len(prompts)}: it combines a sexual term with a "
            "term for minors"
        )


def refuse(rows: Sequence[R]) -> tuple[list[R], list[str]]:
    """Split rows into those that may be generated, in order, and the ids of the refused ones."""
    refused = [row.id for row in rows if forbidden(row.prompt)]
    never = set(refused)
    return [row for row in rows if row.id not in never], refused


def _plain(prompt: str, gap: str) -> str:
    """Small Latin letters: no accents, `gap` for invisible characters, one space where there was any white space."""
    kinds = ((c, unicodedata.category(c)) for c in unicodedata.normalize("NFKD", prompt))
    letters = (gap if kind == "Cf" else c for c, kind in kinds if kind != "Mn")
    return " ".join("".join(letters).casefold().translate(_LOOKALIKES).split())


def _words(text: str) -> set[str]:
    """Every word that a reader may see: as written, joined over hyphens and dots, spelled out, signs as letters."""
    found = set(re.findall(r"[a-z]+", text))
    tokens = re.findall(r"[a-z0-9@$€]+(?:[!1|]+[a-z0-9@$€]+)*", text)
    tokens += [re.sub(r"[^a-z0-9@$]", "", run) for run in _JOINED.findall(text)]
    for token in {token for token in tokens if not token.isdigit()} - found:
        found |= {re.sub("[!1|]", sign, token).translate(_SIGNS) for sign in "il"}
    for run in _SPELLED.findall(text):
        spelled = re.sub(r"[^a-z]", "", run.translate(_SIGNS))
        found |= {word for word in _SEXUAL | _MINORS | _BOTH if word in spelled}
    for starred in _STARRED.findall(text):
        pattern = re.compile(re.sub(r"\*+", "[a-z]", starred))
        found |= {word for word in _SEXUAL | _MINORS if pattern.fullmatch(word)}
    found |= {
        half
        for word in found
        if len(word) < LONGEST
        for cut in range(3, len(word) - 2)
        for half in _halves(word[:cut], word[cut:])
    }
    stretched = [word for word in found if re.search(r"(.)\1\1", word)]
    return found.union(*({re.sub(r"(.)\1{2,}", kept, word) for kept in (r"\1", r"\1\1")} for word in stretched))


def _halves(one: str, other: str) -> tuple[str, ...]:
    """Both, if one is a sexual term and the other one for minors, written as one word."""
    both = any(_has([a], _SEXUAL) and _has([b], _MINORS) for a, b in ((one, other), (other, one)))
    return (one, other) if both else ()


def _has(words: Collection[str], listed: frozenset[str]) -> bool:
    """Whether a word, or what it is the plural of, is listed."""
    return any(word in listed or (word.endswith("s") and word[:-1] in listed) for word in words)


def _is_young(text: str) -> bool:
    """Whether the text states an age below eighteen, in digits or in words."""
    digits = _NUMBER.sub(lambda m: str(sum(_NUMBERS[word] for word in m.groups() if word)), text)
    if _MINOR_PHRASE.search(digits) or _BABY_AGE.search(digits):
        return True
    ages = [age for pattern in _AGES for pair in pattern.findall(digits) for age in pair if age]
    return any(int(age) < ADULT for age in ages)
