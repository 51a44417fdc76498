"""The page's own files: small, readable, and nothing in them comes from elsewhere or runs inline."""

import gzip
import re
from pathlib import Path

import cones2.studio

PAGE = Path(cones2.studio.__file__).with_name("page")
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}


def test_it_travels_light_and_no_file_is_long() -> None:
    assert sum(len(gzip.compress(text.encode())) for text in FILES.values()) <= 150_000
    assert {name: text.count("\n") for name, text in FILES.items() if text.count("\n") > 350} == {}


def test_nothing_comes_from_elsewhere() -> None:
    for name, text in FILES.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert "@import" not in text, name


def test_nothing_is_inline_and_no_text_becomes_html() -> None:
    page = FILES["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for name, text in FILES.items():
        if name.endswith(".js"):
            assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) == [], name


def test_every_module_is_used_and_every_element_that_is_sought_is_there() -> None:
    scripts = {name: text for name, text in FILES.items() if name.endswith(".js")}
    imported = {found for text in scripts.values() for found in re.findall(r'from "\./([\w.]+)"', text)}
    assert set(scripts) - imported == {"main.js", "theme.js"}
    ids = set(re.findall(r'\bid="([\w-]+)"', FILES["index.html"]))
    made = {found for text in scripts.values() for found in re.findall(r'\bid: "([\w-]+)"', text)}
    sought = {found for text in scripts.values() for found in re.findall(r'\$\("#([\w-]+)"\)', text)}
    assert sought - ids - made == set()
