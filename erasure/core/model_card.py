"""Model cards in Markdown: a title, what the model is, and sections. One layout for trained and for exported models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def model_card(title: str, about: Sequence[str], sections: Mapping[str, Sequence[str]]) -> str:
    """The card: `about` and each section are paragraphs; a section without any is left out."""
    parts = [f"# {title}", *about]
    for name, paragraphs in sections.items():
        if paragraphs:
            parts += [f"## {name}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list, a line an entry."""
    return "\n".join(f"- {line}" for line in lines)


def table(header: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `header` gives each column's alignment (`--:`, `:-:` or `---`)."""
    lines = [list(header), list(header.values()), *rows]
    head, rule, *body = ("|".join(f" {cell} " for cell in line) for line in lines)
    return "\n".join([f"|{head}|", f"|{rule.replace(' ', '')}|", *(f"|{row}|" for row in body)])
