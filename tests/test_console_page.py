"""The files of the page: they ask no other host, and every word is in every language."""

from __future__ import annotations

import json
import re
from pathlib import Path

WEB = Path(__file__).parent.parent / "console" / "web"
CATALOGUES = {path.stem: json.loads(path.read_text()) for path in WEB.glob("locales/*.json")}


def test_no_outside_address_in_what_the_browser_loads() -> None:
    for path in WEB.rglob("*"):
        if path.suffix in (".js", ".css", ".html", ".json", ".svg"):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import", text), path.name


def test_catalogues_have_the_same_keys_and_values() -> None:
    assert set(CATALOGUES) == {"en", "de"}
    english, german = CATALOGUES["en"], CATALOGUES["de"]
    assert english.keys() == german.keys()
    for key, text in english.items():
        blanks = re.findall(r"\{\w+\}", text)
        # A singular may be in words: "Das erste Gesicht".
        assert set(re.findall(r"\{\w+\}", german[key])) <= set(blanks), key
        assert text.strip() and german[key].strip(), key
        if key.endswith(".one"):
            assert key.removesuffix(".one") + ".other" in english


def test_every_word_of_the_page_is_in_the_catalogue_and_every_entry_is_used() -> None:
    source = "\n".join(path.read_text() for path in WEB.glob("*.js"))
    used = set(re.findall(r"\bt\(\s*(?:[\w.() ]+ \? )?'([a-z_.\w]+)'", source))
    used |= set(
        re.findall(
            r"'((?:live|card|filter|face|fact|search|system|estimate|purpose)\.[\w.]+)'", source
        )
    )
    patterns = [
        re.compile(
            "[a-z_A-Z0-9]+(\\.[a-z_]+)*".join(re.escape(p) for p in re.split(r"\$\{[^}]+\}", t))
        )
        for t in re.findall(r"`([a-z$][\w.${}()]*\.[\w.${}()]*)`", source)
    ]
    keys = {re.sub(r"\.(one|other)$", "", key) for key in CATALOGUES["en"]}
    assert used <= keys, sorted(used - keys)
    unused = {key for key in keys - used if not any(p.fullmatch(key) for p in patterns)}
    assert not unused, sorted(unused)
