import pytest


@pytest.fixture
def texts(tmp_path):
    """A folder with three little files, easy to learn."""
    for number in range(3):
        lines = [f"line {count}: one, two, three, {'abc'[number]}\n" for count in range(100)]
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    return tmp_path
