"""Texts that break shells, terminals, parsers and file formats, and strategies that draw from them."""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = {
    "empty": "",
    "a blank": " ",
    "blanks around": "  two  words  ",
    "single quote": "it's",
    "double quote": 'say "x"',
    "both quotes": "'\"'\"'",
    "dollar": "$HOME ${x} $(touch /tmp/x) $'a'",
    "backquote": "`id`",
    "semicolon": "a; exit 3;",
    "pipe": "a | b && c || d > e < f &",
    "tmux format": "#{pid} #S #(id)",
    "comment": "# not a comment",
    "newline": "first\nsecond\n",
    "only a newline": "\n",
    "carriage return": "a\rb\r\n",
    "tab": "\t",
    "backslash": "\\ \\n \\\\",
    "ends with a backslash": "x\\",
    "glob": "* ? [a-z] ~ {a,b}",
    "history": "!! !x",
    "escape": "\x1b[31mred\x07",
    "control": "\x01\x02\x7f",
    "unicode": "é 日本語 🚀 \u202e\u2028",
    "not utf-8": "\udcff\udc80",
    "option": "--help",
    "dashes": "--",
    "here-document": "TORCHFAB\nRUN\nEOF",
    "percent": "%s %n %%",
    "equals": "A=B=C",
    "json": '{"a": [1, null]}\\u0000',
    "100 KB": ("0123456789 '\"$;\n" * 6400)[:100_000],
}

UTF8 = {name: text for name, text in HOSTILE.items() if name != "not utf-8"}


def texts(largest: int = 60) -> st.SearchStrategy[str]:
    """Draw any text that an argument or a variable can hold: all but NUL, lone surrogates as Python decodes bytes."""
    signs = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    short = [text for text in HOSTILE.values() if len(text) < 1000]
    return st.one_of(st.sampled_from(short), st.text(signs, max_size=largest))


def names() -> st.SearchStrategy[str]:
    """Draw names of environment variables that no shell gives a meaning to."""
    return st.from_regex(r"V_[A-Za-z0-9_]{0,12}", fullmatch=True)


def environments(most: int = 6) -> st.SearchStrategy[dict[str, str]]:
    """Draw environments."""
    return st.dictionaries(names(), texts(), max_size=most)
