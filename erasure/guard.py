"""The guard: no image is ever drawn from words that join a sexual term with a term for minors. It has no switch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from erasure.errors import OptionError

_SEXUAL = """
nude nudes nudity naked nsfw sex sexual sexy sexualized sexualised erotic erotica porn porno pornographic topless
bottomless undressed undressing lingerie hentai fetish seductive orgasm masturbating masturbation genitals genitalia
nipple nipples breasts vagina penis explicit lewd bdsm striptease intercourse aroused
"""
_MINORS = """
child children childlike kid kids minor minors toddler toddlers baby babies infant infants newborn teen teens teenage
teenager teenagers preteen preteens tween tweens underage schoolgirl schoolgirls schoolboy schoolboys schoolchild
schoolchildren boy boys girl girls juvenile adolescent adolescents pubescent prepubescent loli lolita shota kindergarten
"""
_SEXUAL_WORDS, _MINOR_WORDS = frozenset(_SEXUAL.split()), frozenset(_MINORS.split())
_AGE = re.compile(r"\b(\d{1,2})\s*[- ]?\s*(?:years?|yrs?|y)[\s/-]*(?:old|o)?\b|\baged?\s+(\d{1,2})\b", re.IGNORECASE)


def forbidden(prompt: str) -> bool:
    """Whether `prompt` joins a sexual term with a term for minors (a word, or an age below eighteen)."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    if not words & _SEXUAL_WORDS:
        return False
    ages = [int(a or b) for a, b in _AGE.findall(prompt)]
    return bool(words & _MINOR_WORDS) or any(age < 18 for age in ages)


def check(prompts: Sequence[str]) -> None:
    """Raise OptionError when a prompt is forbidden; it is named by its number alone."""
    refused = [str(i + 1) for i, prompt in enumerate(prompts) if forbidden(prompt)]
    if refused:
        raise OptionError(
            f"refused to draw prompt {', '.join(refused[:5])} of {len(prompts)}: it joins a sexual term with a term "
            "for minors"
        )
