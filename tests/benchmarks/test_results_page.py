from benchmarks.results_page import replace_part


def test_a_part_is_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / "speed.md"
    replace_part(page, "one", "One", ["first"])
    replace_part(page, "two", "Two", ["second", ""])
    replace_part(page, "one", "One", ["again"])
    text = page.read_text()
    assert text.startswith("# Speed\n")
    assert "first" not in text
    assert text.index("## One\nagain\n") < text.index("## Two\nsecond\n")
    replace_part(page, "one", "One", ["again"])
    assert page.read_text() == text
