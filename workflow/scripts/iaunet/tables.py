"""Read and write CSV and Parquet with declared columns.

Nothing is guessed: the text of a user's table stays text ('001', 'NA' and '1e3' are what they
look like), and a table of ours is read with the types that its columns are declared to have.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from iaunet import checksums
from iaunet.errors import InputError, one_line

Table = pd.DataFrame

IMAGES = (
    "image",
    "path",
    "model",
    "channel",
    "scene",
    "frame",
    "pixel_um_z",
    "pixel_um_y",
    "pixel_um_x",
    "diameter_px",
    "reference",
    "group",
)
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
ZIP = b"PK\x03\x04"
REQUIRED_OF_IMAGES = ("image", "path")


def read_images(path: Path) -> pd.DataFrame:
    """Return the table of images as text, one row per image.

    All columns of `IMAGES` are there, empty text where the file has none; other columns of the
    file follow as they are. The index, named ``row``, is the line of the file.
    """
    frame = read_text(path, required=REQUIRED_OF_IMAGES)
    more = [name for name in frame.columns if name not in IMAGES]
    return frame.reindex(columns=[*IMAGES, *more], fill_value="")


def read_rows(path: Path, expanded: Path | None) -> list[dict[str, str]]:
    """Return the images of a run: the rows of the table, by column.

    `expanded` is the JSON of what all scenes or frames of a row are; each is a row of its own.
    """
    names = {} if expanded is None else json.loads(expanded.read_text("utf-8"))
    return [
        row | {"image": image}
        for row in read_images(path).to_dict("records")
        for image in names.get(row["image"], [row["image"]])
    ]


def expanded(image: str, scenes: Sequence[int], frames: Sequence[int]) -> list[str]:
    """Return the ids of all scenes and frames of an image; an empty sequence: one is chosen.

    Examples
    --------
    >>> expanded("a", range(2), ())
    ['a_s0', 'a_s1']
    >>> expanded("a", (), range(2))
    ['a_t000', 'a_t001']
    """
    of_scenes = [f"_s{scene}" for scene in scenes] or [""]
    of_frames = [f"_t{frame:03d}" for frame in frames] or [""]
    return [f"{image}{scene}{frame}" for scene in of_scenes for frame in of_frames]


def read_text(path: Path, required: Sequence[str] = ()) -> pd.DataFrame:
    """Return a CSV file (UTF-8, with or without BOM) as text without surrounding blanks.

    Ends of lines within a field become those of Python: a lone carriage return would end a row
    when the text is written again. Empty lines, and the empty unnamed columns that spreadsheets
    append, are left out. The index, named ``row``, is the line of the file where a row ends.

    Raises
    ------
    InputError
        No file, no text, no header, a column without name or named twice, a `required` column
        that is absent, or a row with another number of fields than the header.
    """
    lines = [
        (number, [_newlines(field).strip() for field in fields])
        for number, fields in _records(Path(path))
        if any(field.strip() for field in fields)
    ]
    if not lines:
        raise InputError(f"{path}: the table is empty; needs a header line with column names")
    (_, header), *rows = lines
    _check_header(path, header, required)
    uneven = [(number, len(fields)) for number, fields in rows if len(fields) != len(header)]
    if uneven:
        listed = "; ".join(f"line {number}: found {n} fields" for number, n in uneven[:20])
        raise InputError(
            f"{path}, {listed}, needs {len(header)}, one per column of the header; put values "
            "that contain a comma in double quotes"
        )
    frame = pd.DataFrame(
        [fields for _, fields in rows], columns=pd.Index(header, dtype=str), dtype=str
    )
    frame.index = pd.Index([number for number, _ in rows], name="row", dtype=np.int64)
    for place in [k for k, name in enumerate(header) if not name]:
        if (frame.iloc[:, place] != "").any():
            raise InputError(f"{path}: column {place + 1} has values but no name in the header")
    return frame.loc[:, [bool(name) for name in header]]


def _newlines(field: str) -> str:
    return field.replace("\r\n", "\n").replace("\r", "\n") if "\r" in field else field


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line number and the fields of each record."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if any("\0" in field for field in fields):
                    raise InputError(f"{path}, line {reader.line_num}: not text; needs CSV")
                yield reader.line_num, fields
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; needs a table in CSV format") from None
    except IsADirectoryError:
        raise InputError(f"{path}: found a folder, needs a table in CSV format") from None
    except UnicodeDecodeError as error:
        if _starts(path) == ZIP:
            raise InputError(
                f"{path}: not text but a zip file, as XLSX is; save the spreadsheet as CSV UTF-8"
            ) from None
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _starts(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(ZIP))


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column '{twice[0]}' stands twice in the header; remove one")
    absent = [name for name in required if name not in named]
    if absent:
        hint = ""
        other = [name for name in named if name.casefold() == absent[0]]
        if other:
            hint = f"; write '{absent[0]}' for '{other[0]}'"
        for mark, word in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and mark in header[0]:
                hint = f"; fields are separated by {word}, needs commas"
        raise InputError(
            f"{path}: no column '{absent[0]}'; found {', '.join(named)[:200]}; "
            f"needs {', '.join(required)}{hint}"
        )


def conform(
    frame: pd.DataFrame | Mapping[str, Sequence], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Return a table with exactly the declared columns, in that order and of those types."""
    frame = pd.DataFrame(frame)
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise ValueError(f"table lacks the columns {absent}")
    more = [name for name in frame.columns if name not in columns]
    if more:
        raise ValueError(f"table has undeclared columns {more}")
    return frame[list(columns)].astype(dict(columns)).reset_index(drop=True)


def read_csv(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return a CSV file that `write_csv` wrote, with the declared columns and types.

    Types are ``str``, ``bool`` and the numbers of NumPy; an empty float is NaN.
    """
    text = read_text(path, required=tuple(columns))
    typed = {}
    for name, dtype in columns.items():
        try:
            typed[name] = _typed(text[name].tolist(), dtype)
        except (KeyError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: column '{name}' is not {dtype}: {error}") from None
    return pd.DataFrame(typed)


def _typed(values: list[str], dtype: str) -> pd.Series:
    if dtype == "str":
        return pd.Series(values, dtype=str)
    if dtype == "bool":
        return pd.Series([{"True": True, "False": False}[value] for value in values], dtype=bool)
    if np.dtype(dtype).kind == "f":
        return pd.Series([float(value) if value else np.nan for value in values], dtype=dtype)
    return pd.Series(np.array([int(value) for value in values], dtype=dtype))


def no_formula(text: str) -> str:
    """Return a text of a stranger on one line that no spreadsheet takes for a formula.

    As OWASP advises, an apostrophe stands before what begins with =, +, - or @.

    Examples
    --------
    >>> no_formula("=1+1"), no_formula("drug 5 uM")
    ("'=1+1", 'drug 5 uM')
    """
    shown = one_line(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as UTF-8 with the shortest decimals that give back each number.

    The same table gives the same bytes; NaN is an empty field.
    """
    frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def check_sha256(path: Path, noted: str | None) -> None:
    """Raise when a table is not the one whose checksum a step noted, if it did."""
    if noted is not None and checksums.sha256(path) != noted:
        raise InputError(
            f"{path}: damaged or edited: its SHA-256 is not the noted {noted[:12]}...; run the "
            "step that writes it again"
        )


def write_parquet(frame: pd.DataFrame | Mapping[str, np.ndarray], path: Path) -> None:
    """Write a table, or columns, as Parquet; the same table gives the same bytes."""
    table = pa.Table.from_pandas(pd.DataFrame(frame), preserve_index=False)
    table = table.replace_schema_metadata(None)
    pyarrow.parquet.write_table(
        table, path, compression="zstd", version="2.6", write_page_checksum=True
    )


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a Parquet file, or only some of its columns."""
    try:
        table = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        absent = [name for name in columns or () if name not in table.schema_arrow.names]
        if absent:
            raise InputError(f"{path}: no column '{absent[0]}'; was it written by another version?")
        # Without threads: the jobs that read tables have one core.
        found = table.read(columns=None if columns is None else list(columns), use_threads=False)
        return found.to_pandas(use_threads=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; needs a table in Parquet format") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet table ({error})") from None
