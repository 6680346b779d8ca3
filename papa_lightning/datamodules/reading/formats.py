"""Readers of JSON, tables and Parquet that guess no types, and whose errors name the line."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Json, Value

from papa_lightning.errors import DataError

Row = dict[str, Any]

ID_COLUMNS = ("idx", "id")
"""Columns whose whole numbers identify the rows; the first existing one counts."""

_INT64 = range(-(2**63), 2**63)
_WHOLE = re.compile(r"-?[0-9]{1,19}(\.0)?")  # pandas writes 5.0 where other rows have no number


class Format(NamedTuple):
    """Reader of a file format: types of the columns of a file, its rows given these, and whether it is UTF-8 text."""

    types: Callable[[Path], Features]
    rows: Callable[[Path, Features], Iterator[Row]]
    is_text: bool = True


def suffix_of(path: Path) -> str:
    """Suffix of the format of a file, without that of its compression."""
    return Path(path.name.removesuffix(".gz")).suffix


def unreadable(path: Path, reason: str) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(f"{str(path)!r} cannot be read as {suffix_of(path)}: {reason}. Mend the file or write it again.")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacked if its name ends with .gz."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def open_text(path: Path) -> IO[str]:
    r"""Open a text file in UTF-8, also with a byte order mark; lines end with "\n", or, if none does, with "\r"."""
    with open_bytes(path) as file:
        has_newlines = any(b"\n" in piece for piece in iter(lambda: file.read(2**20), b""))
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="\n" if has_newlines else "\r")


def _table_lines(path: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Fields of a table and the line where they begin, from 1; empty lines are left out."""
    with open_text(path) as file:
        reader = csv.reader(file, strict=True, **dialect)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise unreadable(path, f"line {line}: {_table_fault(str(error))}") from error
            if fields:
                yield line, fields


def _table_fault(message: str) -> str:
    """Plain words for an error of the csv library."""
    if "new-line character" in message:
        return "a carriage return stands inside a field: put the field into quotation marks, or remove it"
    if "unexpected end" in message:
        return "a field begins with a quotation mark that nothing closes"
    if "expected after" in message:
        return "a field goes on behind its closing quotation mark: write a quotation mark inside of a field twice"
    if "field limit" in message:
        return f"a field is longer than {csv.field_size_limit()} characters: write the rows as .jsonl or .parquet"
    return message


def _table_header(path: Path, **dialect: Any) -> list[str]:
    """Names of the columns, each once; columns without a name have the name ""."""
    _, header = next(_table_lines(path, **dialect), (0, []))
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise unreadable(path, f"the header names the column {twice[0]!r} more than once")
    return header


def _table_types(path: Path, **dialect: Any) -> Features:
    """Types of the columns of a table: text, except whole numbers that identify the rows."""
    header = _table_header(path, **dialect)
    types = {name: Value("string") for name in header if name}
    for name in set(ID_COLUMNS) & set(types):
        cells = {row[name] for row in _table_rows(path, Features(types), **dialect)} - {""}
        if cells and all(_WHOLE.fullmatch(cell) and int(cell.partition(".")[0]) in _INT64 for cell in cells):
            types[name] = Value("int64")
    return Features(types)


def _table_rows(path: Path, types: Features, **dialect: Any) -> Iterator[Row]:
    """Rows of a table; each has as many fields as the header."""
    header = _table_header(path, **dialect)
    numbers = {name for name, kind in types.items() if kind.dtype == "int64"}
    lines = _table_lines(path, **dialect)
    next(lines, None)
    for line, fields in lines:
        if len(fields) != len(header):
            raise unreadable(
                path,
                f"line {line} has {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(map(repr, header))})",
            )
        row: Row = {name: field for name, field in zip(header, fields, strict=True) if name}
        yield row | {name: int(row[name].partition(".")[0]) if row[name] else None for name in numbers}


def _table(**dialect: Any) -> Format:
    """The format of tables that the csv library reads."""
    return Format(lambda path: _table_types(path, **dialect), lambda path, types: _table_rows(path, types, **dialect))


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Objects of a JSON file with their places: one a line, or in a .json file also a list."""
    with open_text(path) as file:
        if suffix_of(path) == ".json" and (text := file.read()).lstrip().startswith("["):
            for number, row in enumerate(_parse(path, "the list", text), start=1):
                yield f"entry {number}", _checked(path, f"entry {number}", row)
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _checked(path, f"line {number}", _parse(path, f"line {number}", line))


def _parse(path: Path, place: str, text: str) -> Any:
    """Value of a text in JSON."""

    def members(pairs: list[tuple[str, Any]]) -> Row:
        if len(found := dict(pairs)) < len(pairs):
            raise unreadable(path, f"{place} names a key of an object twice")
        return found

    def constant(name: str) -> None:
        raise unreadable(path, f"{place} holds {name}, which is not JSON: write null")

    try:
        found = json.loads(text, object_pairs_hook=members, parse_constant=constant)
    except json.JSONDecodeError as error:
        where = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, character {error.colno}"
        hint = "" if suffix_of(path) == ".jsonl" else ": write a list of objects, or one object a line"
        raise unreadable(path, f"{place} is not JSON ({error.msg}, {where}){hint}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise unreadable(path, f"{place} is not JSON that can be read ({type(error).__name__}: {error})") from error
    if re.search(r"\\u[dD][89a-fA-F]", text) and re.search("[\ud800-\udfff]", json.dumps(found, ensure_ascii=False)):
        raise unreadable(path, f"{place} holds half a character (\\ud800 to \\udfff without its other half)")
    return found


def _checked(path: Path, place: str, row: Any) -> Row:
    """The row, if it is an object."""
    if not isinstance(row, dict):
        hint = "; a list of rows goes into a .json file" if isinstance(row, list) else ""
        raise unreadable(path, f"{place} is not a JSON object{hint}")
    return row


def _json_types(path: Path) -> Features:
    """Types of all keys of a JSON file; a key whose values differ in type holds JSON."""
    types: dict[str, pa.DataType | None] = {}
    for _, row in _json_rows(path):
        for name, value in row.items():
            types[name] = _joint(types.get(name, pa.null()), _type_of(value))
    known = {name: pa.string() if kind is not None and pa.types.is_null(kind) else kind for name, kind in types.items()}
    return Features({name: Json() if kind is None else _feature(kind) for name, kind in known.items()})


def _typed_json_rows(path: Path, types: Features) -> Iterator[Row]:
    """Rows of a JSON file with all keys of the file."""
    for _, row in _json_rows(path):
        yield {
            # The library parses texts that look like JSON, so all values are given as JSON.
            name: json.dumps(value) if isinstance(kind, Json) and value is not None else value
            for name, kind in types.items()
            for value in [row.get(name)]
        }


def _type_of(value: Any) -> pa.DataType | None:
    """Type of a value of JSON; None where no column of one type can hold it."""
    if isinstance(value, list):
        entry = reduce(_joint, map(_type_of, value), pa.null())
        return None if entry is None else pa.list_(entry)
    if isinstance(value, int) and not isinstance(value, bool):
        return pa.int64() if value in _INT64 else None
    known = {type(None): pa.null(), bool: pa.bool_(), float: pa.float64(), str: pa.string()}
    return known.get(type(value))


def _joint(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """The type of a column that holds values of two types; None if there is none."""
    if one is None or other is None or one == other:
        return one if one == other else None
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    if pa.types.is_list(one) and pa.types.is_list(other):
        entry = _joint(one.value_type, other.value_type)
        return None if entry is None else pa.list_(entry)
    return None


def _feature(kind: pa.DataType) -> Any:
    """The type of the datasets library; a list of nothing at all is one of texts."""
    if pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
        kind = pa.list_(pa.string())
    return Features.from_arrow_schema(pa.schema([("", kind)]))[""]


def _parquet_types(path: Path) -> Features:
    """Types of the columns of a Parquet file, as the file says; columns that the library cannot hold are left out."""
    schema = pq.read_schema(path)
    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema
    ]
    known = []
    for field in plain:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except (NotImplementedError, TypeError, ValueError):
            continue
        known.append(field)
    return Features.from_arrow_schema(pa.schema(known, metadata=schema.metadata))


def _parquet_rows(path: Path, types: Features) -> Iterator[Row]:
    """Rows of a Parquet file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(types)):
            yield from batch.to_pylist()


# Suffix of a file and how it is read. Tab-separated task files (GLUE's) hold unpaired quotation marks, so there
# they are letters like all others.
READERS: Mapping[str, Format] = {
    ".jsonl": Format(_json_types, _typed_json_rows),
    ".json": Format(_json_types, _typed_json_rows),
    ".csv": _table(),
    ".tsv": _table(delimiter="\t", quoting=csv.QUOTE_NONE),
    ".parquet": Format(_parquet_types, _parquet_rows, is_text=False),
}
