"""Tables come back as they were written, and a bad table says what is wrong with it."""

import numpy as np
import pandas as pd
import pytest

from iaunet import checksums, tables
from iaunet.errors import InputError

COLUMNS = {
    "image": "str",
    "label": "uint64",
    "area_px": "int64",
    "y_um": "float64",
    "confidence": "float32",
    "crosses_seam": "bool",
}


@pytest.fixture
def frame():
    return tables.conform(
        pd.DataFrame(
            {
                "confidence": [0.1, 1 / 3, np.nan],
                "image": ["001", "NA", "a,b"],
                "label": [1, 2**64 - 1, 2**53 + 1],
                "area_px": [-5, 0, 2**62 + 1],
                "y_um": [0.1 + 0.2, np.nan, 1e-300],
                "crosses_seam": [True, False, True],
            }
        ),
        COLUMNS,
    )


@pytest.fixture
def csv(tmp_path):
    def write(content):
        path = tmp_path / "images.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("rows", [slice(None), slice(0, 0)], ids=["some rows", "no rows"])
def test_both_formats_give_the_table_back(frame, tmp_path, rows):
    table = frame[rows]
    tables.write_csv(table, tmp_path / "t.csv")
    tables.write_parquet(table, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(tables.read_csv(tmp_path / "t.csv", COLUMNS), table)
    pd.testing.assert_frame_equal(tables.read_parquet(tmp_path / "t.parquet"), table)


def test_the_same_table_gives_the_same_bytes(frame, tmp_path):
    for name, write in (("t.csv", tables.write_csv), ("t.parquet", tables.write_parquet)):
        write(frame, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        write(frame.copy(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_numbers_are_written_with_the_shortest_decimals(frame, tmp_path):
    tables.write_csv(frame, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_bytes().decode()
    assert text.splitlines()[1:] == [
        "001,1,-5,0.30000000000000004,0.1,True",
        f"NA,{2**64 - 1},0,,0.33333334,False",
        f'"a,b",{2**53 + 1},{2**62 + 1},1e-300,,True',
    ]
    assert "\r" not in text


def test_an_undeclared_or_absent_column_is_our_mistake(frame):
    with pytest.raises(ValueError, match="lacks the columns"):
        tables.conform(frame.drop(columns="label"), COLUMNS)
    with pytest.raises(ValueError, match="undeclared columns"):
        tables.conform(frame.assign(more=1), COLUMNS)


def test_text_of_the_images_table_is_never_taken_for_a_number(csv):
    frame = tables.read_images(csv("path,image,channel\na.tif,001,\nb.tif,NA, 1e3 \n"))
    assert frame["image"].tolist() == ["001", "NA"]
    assert frame["channel"].tolist() == ["", "1e3"]
    assert frame["reference"].tolist() == ["", ""]
    assert list(frame.columns) == list(tables.IMAGES)
    assert frame.index.tolist() == [2, 3]


def test_what_spreadsheets_write_is_understood(csv):
    text = '\ufeffimage,path,batch,,\r\n\r\na,"x, y.tif",7,,\r\n,,,,\r\nb,z.tif,8,,\r\n'
    frame = tables.read_images(csv(text))
    assert frame["path"].tolist() == ["x, y.tif", "z.tif"]
    assert frame["batch"].tolist() == ["7", "8"]
    assert frame.index.tolist() == [3, 5]


def test_a_header_alone_is_a_table_without_rows(csv):
    frame = tables.read_images(csv("image,path\n"))
    assert len(frame) == 0
    assert list(frame.columns) == list(tables.IMAGES)


BAD = [
    pytest.param("", "the table is empty; needs a header", id="empty file"),
    pytest.param(" \n,,\n", "the table is empty", id="blank lines"),
    pytest.param("image,path,image\n", "column 'image' stands twice", id="column twice"),
    pytest.param("image,path\na,b\nc\n", "line 3: found 1 fields, needs 2", id="too few fields"),
    pytest.param("image,path\na,b,c\n", "line 2: found 3 fields, needs 2", id="too many fields"),
    pytest.param(
        "image;path\na;b\n", "no column 'image'.*semicolons, needs commas", id="semicolons"
    ),
    pytest.param("image,file\na,b\n", "no column 'path'; found image, file", id="no path"),
    pytest.param("image,path,\na,b,c\n", "column 3 has values but no name", id="no name"),
    pytest.param('image,path\na,"b\n', "not valid CSV", id="open quote"),
    pytest.param("image,path\n\xfc,b\n".encode("latin-1"), "not UTF-8", id="latin-1"),
    pytest.param("image,path\na,b\n".encode("utf-16"), "not UTF-8", id="utf-16"),
    pytest.param(b"image,path\na\0,b\n", "not text|not valid CSV", id="nul"),
    pytest.param("image,path\na," + "b" * 200_000, "not valid CSV .*field larger", id="huge field"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_table_says_what_is_wrong(csv, content, message):
    with pytest.raises(InputError, match=message):
        tables.read_images(csv(content))


def test_a_table_that_is_not_there_says_so(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        tables.read_images(tmp_path / "none.csv")
    with pytest.raises(InputError, match="found a folder"):
        tables.read_images(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        tables.read_parquet(tmp_path / "none.parquet")


def test_a_foreign_parquet_or_csv_is_refused(frame, tmp_path, csv):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable Parquet"):
        tables.read_parquet(path)
    tables.write_parquet(frame, path)
    with pytest.raises(InputError, match="no column 'gid'"):
        tables.read_parquet(path, ["gid"])
    with pytest.raises(InputError, match="column 'label' is not int64"):
        tables.read_csv(csv("label\n1.5\n"), {"label": "int64"})


def test_a_changed_byte_in_the_values_of_a_parquet_table_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    tables.write_parquet({"a": np.random.default_rng(0).normal(size=400)}, path)
    content = path.read_bytes()
    for place in (60, 500, 2000):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"a\.parquet: not a readable Parquet table"):
            tables.read_parquet(path)


def test_a_table_with_another_checksum_than_noted_is_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    noted = checksums.sha256(path)
    tables.check_sha256(path, noted)
    tables.check_sha256(path, None)
    path.write_text("a\n2\n")
    with pytest.raises(InputError, match=r"a\.csv: damaged or edited"):
        tables.check_sha256(path, noted)
