"""Sentences about a concept: the templates that its words are put into, with the right article, and without them.

English only, by rules of thumb; for other sentences, write a CSV file.
"""

from __future__ import annotations

import re

TEMPLATES = ("{}", "a photo of {}", "an image of {}", "a painting of {}")
MEDIA = "photo|photograph|image|picture|painting|drawing|sketch|illustration|portrait|watercolor|cartoon"

_PROMPT = re.compile(
    rf"(?P<article>(an?|the)\s+([\w-]+\s+){{0,3}}?)?(?P<medium>{MEDIA})"
    r"(\s+(of|in|by|with|from|showing)\s|(?(article)$|(?!)))",
    re.I,
)
_DETERMINER = re.compile(r"(an?|the|my|your|his|her|our|their|this|some|two|three|many|several|\d+)\s", re.I)
_CONSONANT_SOUND = re.compile(r"uni(?![nm])|us[aeu]|ut[eo]|ura|eu|ewe|ufo|one\b|once")
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|hono|heir")
_AFTER_THE_NOUN = re.compile(r"\s(?:of|in|on|at|with|by|from|and)\s")
_SINGULAR = re.compile(r"(ss|us|is|\b(gas|canvas|atlas|lens))$")
_NO_ARTICLE = re.compile(
    "people|men|women|children|mice|geese|feet|nudity|violence|blood|gore|porn|pornography|"
    "hair|water|fire|smoke|snow|rain|food|grass|art|weather|money"
)
_SAYS_NOTHING = frozenset(
    f"a an the of in on at by with from to and or for near under over next style {MEDIA.replace('|', ' ')}".split()
)


def templates_for(words: str) -> tuple[str, ...]:
    """The templates for a concept: itself alone where it already reads as a prompt ("a photo of a nude person")."""
    return TEMPLATES[:1] if _PROMPT.match(words) else TEMPLATES


def filled(template: str, words: str) -> str:
    """The template with the words in it, after an article where they need one."""
    return words if template == "{}" else template.replace("{}", with_article(words))


def replacement(template: str, words: str, anchor: str | None = None) -> str:
    """What `filled(template, words)` becomes: the same with `anchor` in it, or the anchor itself where it is a prompt.

    Without an anchor, "a photo of a church" becomes "a photo", and "church" the empty prompt.
    """
    if anchor is not None:
        return anchor if not anchor or _PROMPT.match(anchor) else filled(template, anchor)
    prompt = _PROMPT.match(words)
    if prompt is None:
        return template.removesuffix("{}").removesuffix(" of ")
    return "" if prompt.end() == len(words) else with_article(prompt["medium"].lower())


def with_article(words: str) -> str:
    """The words after "a" or "an"; as they are when they bring a determiner, begin with a capital, or look plural."""
    head = _AFTER_THE_NOUN.split(words.lower())[0].split()[-1]
    plural = _NO_ARTICLE.fullmatch(head) or (head.endswith("s") and not _SINGULAR.search(head))
    if plural or words[0].isupper() or _DETERMINER.match(words):
        return words
    vowel = _VOWEL_SOUND.match(words) and not _CONSONANT_SOUND.match(words)
    return f"{'an' if vowel else 'a'} {words}"


def mentions(text: str, words: str) -> bool:
    """Whether a prompt shares a word that says something with a concept, in the singular or the plural."""
    own = _stems(words)
    return not _stems(text).isdisjoint((own - _SAYS_NOTHING) or own)


def _stems(text: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"\w+", text.lower())}


def _singular(word: str) -> str:
    if len(word) < 4 or _SINGULAR.search(word):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return re.sub(r"(?<=ch)es$|(?<=sh)es$|(?<=ss)es$|(?<=x)es$|s$", "", word)
