"""Finding, fingerprinting and detecting source files."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import InputError
from tasks import _snapshot
from tasks._snapshot import NA_VALUES, CsvConfig, DataConfig, Dialect, Snapshot, detect_dialect, take_snapshot

ROWS = b"age,income\n39,low\n50,high\n"


def write(folder: Path, name: str, payload: bytes | str = ROWS) -> Path:
    """Write a file and the folders above it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload.encode() if isinstance(payload, str) else payload)
    return path


def snapshot(base: Path, source: str | list[str], **csv: str) -> Snapshot:
    """Take a snapshot with a minimal configuration."""
    return take_snapshot(DataConfig(source=source, target="income", csv=CsvConfig.model_validate(csv)), base)


def names(base: Path, source: str | list[str]) -> list[str]:
    """Return the paths of a snapshot relative to its base."""
    return [os.path.relpath(file.path, base) for file in snapshot(base, source).files]


def detected(base: Path, payload: bytes | str, name: str = "a.csv", **csv: str) -> tuple[str, str | None, str]:
    """Return delimiter, quote and encoding of a text."""
    dialect = detect_dialect(str(write(base, name, payload)), CsvConfig.model_validate(csv))
    return dialect.delimiter, dialect.quote, dialect.encoding


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("days", ["days/1.csv", "days/more/2.CSV"]),
        ("days/*.csv", ["days/1.csv"]),
        ("days/**/*.[cC][sS][vV]", ["days/1.csv", "days/more/2.CSV"]),
        ("days/_*.csv", ["days/_draft.csv"]),
        ("odd[1].csv", ["odd[1].csv"]),
        (["days", "a.csv", "*.csv"], ["a.csv", "days/1.csv", "days/more/2.CSV", "odd[1].csv"]),
    ],
)
def test_source_is_a_file_folder_pattern_or_list(tmp_path: Path, source: str | list[str], expected: list[str]) -> None:
    """Files are found sorted and once, hidden and private names only when they are asked for."""
    found = ["a.csv", "odd[1].csv", "days/1.csv", "days/more/2.CSV"]
    skipped = ["days/.hidden.csv", "days/_draft.csv", "days/_tmp/3.csv", "days/.git/4.csv", "days/notes.md"]
    for name in found + skipped:
        write(tmp_path, name)

    assert expected == names(tmp_path, source)


def test_absolute_source_ignores_the_base(tmp_path: Path) -> None:
    """An absolute path means the same from every configuration."""
    path = write(tmp_path, "data/a.csv")

    assert [str(path)] == [file.path for file in snapshot(tmp_path / "elsewhere", str(path)).files]


def test_linked_folder_is_followed_once(tmp_path: Path) -> None:
    """A link to a folder counts as a folder, and a circle of links ends."""
    write(tmp_path, "real/a.csv")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "real")
    (tmp_path / "data/circle").symlink_to(tmp_path / "data")

    assert ["data/link/a.csv"] == names(tmp_path, "data")


def test_every_supported_suffix_has_its_format(tmp_path: Path) -> None:
    """The format follows from the suffix alone, in any case."""
    suffixes = {"x.parquet": "parquet", "x.PQ": "parquet", "x.jsonl": "jsonl", "x.ndjson.gz": "jsonl"}
    suffixes |= {"x.arrow": "arrow", "x.feather": "arrow", "x.ipc": "arrow", "x.tsv": "csv", "x.v2.csv": "csv"}
    for name in suffixes:
        write(tmp_path, name)

    assert suffixes == {Path(file.path).name: file.format for file in snapshot(tmp_path, ".").files}


def test_fingerprint_depends_on_content_and_dialect_alone(tmp_path: Path) -> None:
    """A moved or touched file changes nothing; other bytes or another delimiter change the fingerprint."""
    first = write(tmp_path, "a/x.csv")
    os.utime(write(tmp_path, "b/y.csv"), (1, 1))
    write(tmp_path, "c/x.csv", ROWS + b"1,low\n")
    before = snapshot(tmp_path, str(first))

    assert before.fingerprint == snapshot(tmp_path, "b").fingerprint
    assert before.num_bytes == len(ROWS)
    assert before.fingerprint != snapshot(tmp_path, "c").fingerprint
    assert before.fingerprint != snapshot(tmp_path, "a", delimiter=";").fingerprint


def test_same_content_twice_is_two_files(tmp_path: Path) -> None:
    """A copy of a file is read as well, and shows in the fingerprint."""
    write(tmp_path, "a.csv")
    single = snapshot(tmp_path, "a.csv")
    write(tmp_path, "b.csv")
    both = snapshot(tmp_path, ".")

    assert 1 == len({file.key for file in both.files})
    assert (2, True) == (len(both.files), both.fingerprint != single.fingerprint)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "gs://bucket/x.csv",
            'A source must be a local path or an address that starts with s3://, but got source="gs://bucket/x.csv"'
            r"\. Sync it to a local folder or to S3, and name that\.$",
        ),
        ("agee.csv", r'must exist, but got source="agee.csv" \(looked in .*\)\. Did you mean "age.csv"\? Correct'),
        ("2024-*.csv", 'match at least one file, but got pattern="2024-.*in folder="/.*Correct data.source'),
        ("fold*", r"\(1 folders or private names match\)"),
        ("folder", r'at least one supported file, but got folder=".*/folder" \(1 of another kind, such as n.md\). Add'),
        ("x.xls.gz", 'supported format, but got suffix=".xls.gz" of ".*x.xls.gz".*Convert it to one of .parquet'),
        ("x.cvs", r'but got suffix=".cvs" of ".*"\. Did you mean ".csv"\? Convert it'),
        ("x.*", 'but got suffix="'),
        ("empty.csv", 'must not be empty, but got num_bytes=0 for ".*/empty.csv". Write it again'),
        ("broken.csv", 'must exist, but got source="broken.csv"'),
        ("links", r'must be readable, but got file=".*/links/broken.csv" \(No such file'),
        ([], r"must name files, but got source=\[\]. Name a file"),
        ("", "must name files, but got source=''. Name a file"),
    ],
)
def test_source_that_cannot_be_used_is_refused(tmp_path: Path, source: str | list[str], message: str) -> None:
    """Each mistake in data.source has a message with the name, the place and the next step."""
    for name in ("age.csv", "folder/n.md", "x.xls.gz", "x.cvs"):
        write(tmp_path, name)
    write(tmp_path, "empty.csv", b"")
    write(tmp_path, "links/ok.csv")
    (tmp_path / "links/broken.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "broken.csv").symlink_to(tmp_path / "gone.csv")

    with pytest.raises(InputError, match=message):
        snapshot(tmp_path, source)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission is named, with the reason of the operating system."""
    write(tmp_path, "a.csv")

    def deny(path: str, divider: object) -> tuple[str, os.stat_result]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_snapshot, "_digest", deny)  # chmod does not stop root, who runs tests in containers

    with pytest.raises(InputError, match=r'readable, but got file=".*a.csv" \(Permission denied\). Check its perm'):
        snapshot(tmp_path, "a.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_detected(tmp_path: Path, delimiter: str) -> None:
    """The delimiter gives all rows as many fields as the header, with the others inside quotes."""
    others = ",;\t|".replace(delimiter, "")
    rows = [["id", "note", "value"], ["1", f'"{others}"', "2"], ["2", f'"x\n{delimiter}y"', "3"]]

    assert (delimiter, '"', "utf-8") == detected(tmp_path, "\n".join(delimiter.join(row) for row in rows))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preis;menge\n1,5;2,0\n2,5;3,0\n", (";", '"', "utf-8")),
        ("a,b\n'x,y','z'\n'p','q'\n", (",", "'", "utf-8")),
        ("a,b\nit's,'x'\n'tis,'y'z\n", (",", '"', "utf-8")),
        ("text\nHello, world\nBye\n", (",", '"', "utf-8")),
        ("", (",", '"', "utf-8")),
        ("a;b;c\n" + "1;2;3\n" * 50 + "1;2\n", (";", '"', "utf-8")),
        ("\n\na;b\n1;2\n", (";", '"', "utf-8")),
    ],
)
def test_dialect_of_unusual_texts(tmp_path: Path, text: str, expected: tuple[str, str, str]) -> None:
    """Decimal commas, apostrophes, one column, a ragged row and blank lines do not mislead the detection."""
    assert expected == detected(tmp_path, text or "only\n1\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_encoding_is_detected(tmp_path: Path, encoding: str) -> None:
    """A byte order mark decides the encoding, and without one it is UTF-8."""
    assert (";", '"', encoding) == detected(tmp_path, "größe;b\n1;2\n".encode(encoding))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.csv.zip", "a.tsv.gz"])
def test_packed_text_is_detected(tmp_path: Path, name: str) -> None:
    """Detection looks inside .gz, .zst and .zip."""
    text = b"a\tb\n1\t2\n"
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.csv", text)
            archive.writestr("__MACOSX/._inner.csv", b"x")
    else:
        packed = gzip.compress(text, mtime=0) if name.endswith("gz") else pa.compress(text, codec="zstd", asbytes=True)
        path.write_bytes(packed)

    assert Dialect("\t") == detect_dialect(str(path), CsvConfig())


def test_stated_dialect_wins(tmp_path: Path) -> None:
    """What the configuration says is not questioned."""
    path = write(tmp_path, "a.csv", "a;b,c\n'1';2,3\n")
    config = CsvConfig(delimiter=",", quote="", encoding="latin-1", na_values=["-"])

    assert Dialect(",", None, "iso8859-1", ("-",)) == detect_dialect(str(path), config)


def test_default_missing_values_leave_real_categories(tmp_path: Path) -> None:
    """'None' and '-' are values of real data, so they are not among the defaults."""
    assert {"None", "-"}.isdisjoint(NA_VALUES)
    assert detect_dialect(str(write(tmp_path, "a.csv")), CsvConfig()).na_values == NA_VALUES


def test_undeclared_encoding_is_refused(tmp_path: Path) -> None:
    """A byte that is not UTF-8 stops the run, with its line, a guess and the setting to make."""
    text = "name,city\nAnna,Bonn\nJosé,Málaga\nZoë,Zürich\n".encode("cp1252")
    message = (
        r'written in utf-8 throughout, but got byte=0xe9 in line 3 of ".*/a.csv" '
        r'\(charset-normalizer takes it for cp1252\). Set data.csv.encoding = "cp1252" if that is right.'
    )

    with pytest.raises(InputError, match=message):
        detected(tmp_path, text)
    assert (",", '"', "cp1252") == detected(tmp_path, text, encoding="cp1252")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"age,pay,age\n1,2,3\n", 'unique, but got column="age" at positions 1 and 3 of ".*". Rename one'),
        (b",column_1\n1,2\n", 'unique, but got column="column_1" at positions 1 and 2'),
        (gzip.compress(ROWS, mtime=0), r'must be text, but got binary content \(gzip\) in ".*a.csv". Rename it'),
        ("a,b\n".encode("utf-16-le"), 'must be text, but got binary content in ".*set data.csv.encoding if it is'),
        (b"a,b\r1,2\r", 'end in LF or CRLF, but got line_end=CR in ".*". Save it'),
        (b"\n\n", 'begin with a header, but got blank lines alone in ".*". Write it again'),
        (b'a,"b' + b"x" * 200_000, r'header of a CSV file must be readable, but got file=".*" \(field larger'),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, payload: bytes, message: str) -> None:
    """A header or content that cannot be CSV is named before anything is read."""
    with pytest.raises(InputError, match=message):
        detected(tmp_path, payload)


def test_column_without_a_name_is_numbered(tmp_path: Path) -> None:
    """An index column that pandas wrote without a name becomes column_1."""
    assert ["column_1", "age"] == _snapshot.header("a.csv", ", age \n0,39\n", Dialect())


def test_zip_of_several_files_is_refused(tmp_path: Path) -> None:
    """A .zip must not need a choice."""
    with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as archive:
        archive.writestr("1.csv", ROWS)
        archive.writestr("2.csv", ROWS)

    with pytest.raises(InputError, match='exactly one file, but got num_files=2 in ".*a.csv.zip". Unpack it'):
        snapshot(tmp_path, ".")


def test_file_that_changes_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows during the snapshot has no fingerprint."""
    path = write(tmp_path, "a.csv")

    class Growing:
        AUTO = -1

        def __init__(self, max_threads: int) -> None:
            pass

        def update(self, chunk: bytes) -> None:
            path.write_bytes(ROWS + ROWS)
            os.truncate(path, len(ROWS) + 1)
            monkeypatch.undo()

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(_snapshot, "blake3", Growing)

    with pytest.raises(InputError, match='stay as it is during a run, but got file=".*", which changed.*Run again'):
        snapshot(tmp_path, "a.csv")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"delimiter": "::"}, "must be one ASCII character, but got value='::'. Leave it empty"),
        ({"quote": "«"}, "must be one ASCII character, but got value='«'"),
        ({"delimiter": ""}, 'one character, but got delimiter="". Remove it'),
        ({"encoding": "cp125"}, 'Python knows, but got encoding="cp125". Did you mean "cp125.".*Write for example'),
    ],
)
def test_wrong_csv_setting_is_refused(setting: dict[str, str], message: str) -> None:
    """A setting that no file could satisfy is refused with the configuration."""
    with pytest.raises(ValueError, match=message):
        CsvConfig.model_validate(setting)


def test_every_setting_is_described() -> None:
    """The form shows a text beside each field."""
    fields = DataConfig.model_fields | CsvConfig.model_fields

    assert [] == [name for name, field in fields.items() if not field.description]
