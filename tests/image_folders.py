"""Small image folders with the columns that kanjilab's own datasets have."""

import csv

from kanjilab.data.dictionary import load_characters
from kanjilab.data.radicals import visible_position
from kanjilab.data.rendering import default_font, draw_font

HOSTILE = """<img src=x onerror="window.obeyed=1">"""
CHARACTERS = "鯉鮒鯨信仏柵淵火"
RADICALS = "魚魚魚人人木水火"
COLUMNS = ("file_name", "text", "split", "character", "radical_character", "position", "strokes", "group")


def write_dataset(folder, rows, images):
    """An image folder of rows (as many values as there are, in the order of COLUMNS) and PIL images."""
    folder.mkdir()
    for row, image in zip(rows, images, strict=True):
        image.save(folder / row[0])
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS[: len(rows[0])], *rows])
    return folder


def eight_kanji(folder, times=1):
    """Eight characters, some times over; 鯉 and 鮒 are both a carp, the caption of 火 is hostile."""
    rows = [row for number in range(times) for row in _rows(number)]
    return write_dataset(folder, rows, [draw_font(character, default_font()) for character in CHARACTERS] * times)


def _rows(number):
    table, rows = load_characters(), []
    for character, radical in zip(CHARACTERS, RADICALS, strict=True):
        entry = table.loc[character]
        text = HOSTILE if character == "火" else ";".join(entry["meanings"])
        position = visible_position(character, entry["radical"], entry["skip"])
        split = "held_out" if character in "仏淵" else "train"
        group = 0 if character in "鯉鮒" else ord(character)
        name = f"{ord(character):x}-{number}.png"
        rows.append([name, text, split, character, radical, position, entry["strokes"], group])
    return rows
