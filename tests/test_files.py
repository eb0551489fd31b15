"""Writing a file whole or not at all."""

import pytest

from detco_d2.files import replacing


def test_a_file_is_replaced_whole_and_an_error_leaves_the_old_one_alone(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(file) as part:
        part.write_text("half")
        raise OSError("disk full")
    with replacing(str(file)) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]
