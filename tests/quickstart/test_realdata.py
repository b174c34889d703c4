import gzip

from quickstart.realdata import entries

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def base64_number(value):
    digits = ""
    while True:
        value, digit = divmod(value, 64)
        digits = DIGITS[digit] + digits
        if not value:
            return digits


def test_entries_of_a_dictd_dictionary(tmp_path):
    texts = [
        "00-database-info\n   a dictionary",
        "Ant \\Ant\\, n.\n   An insect.",
        'Zebra \\Ze"bra\\, n. ' + "long " * 99,
    ]
    places, start = {}, 0
    for word, text in zip(("00-database-info", "ant", "zebra"), texts, strict=True):
        places[word] = (start, len(text) + 1)
        start += len(text) + 1
    places["emmet"] = places["ant"]  # two headwords share an entry
    with gzip.open(tmp_path / "d.dict.dz", "wb") as file:
        file.write("".join(f"{text}\n" for text in texts).encode())
    lines = [f"{word}\t{base64_number(at)}\t{base64_number(length)}\n" for word, (at, length) in sorted(places.items())]
    (tmp_path / "d.index").write_text("".join(lines))
    assert list(entries(tmp_path / "d")) == [text.strip() for text in texts[1:]]
