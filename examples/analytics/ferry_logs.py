#!/usr/bin/env python3
"""From objects that Ferry delivered to answers.

SOURCE is az://container/prefix, or a folder. For Azure the environment says who asks:
AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_URL (https://NAME.blob.core.windows.net) with
AZURE_STORAGE_SAS_TOKEN. Rights to list and to read are enough."""

import argparse
import datetime
import gzip
import io
import json
import os
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
UTC = datetime.timezone.utc
ENDINGS = (".ndjson", ".ndjson.gz", ".ndjson.zst")
QUESTIONS = sorted(path.stem for path in (HERE / "questions").glob("*.sql"))


class Folder:
    """Objects in a folder."""

    def __init__(self, path):
        self.root = pathlib.Path(path)
        if not self.root.is_dir():
            sys.exit(f"error: {path} is no folder; write a folder or az://container/prefix")

    def names(self):
        files = (path for path in self.root.rglob("*") if path.is_file())
        names = (path.relative_to(self.root).as_posix() for path in files)
        return sorted(name for name in names if name.endswith(ENDINGS))

    def read(self, name):
        return (self.root / name).read_bytes()


class Container:
    """Objects in a container of Azure Blob."""

    def __init__(self, url):
        from azure.storage.blob import ContainerClient

        container, _, self.prefix = url.removeprefix("az://").partition("/")
        connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_URL")
        if connection:
            self.client = ContainerClient.from_connection_string(connection, container)
        elif account:
            sas = os.environ.get("AZURE_STORAGE_SAS_TOKEN")
            self.client = ContainerClient(account, container, credential=sas)
        else:
            sys.exit(
                "error: nothing says which account to read; set AZURE_STORAGE_CONNECTION_STRING,"
                " or AZURE_STORAGE_ACCOUNT_URL and AZURE_STORAGE_SAS_TOKEN"
            )

    def names(self):
        names = self.client.list_blob_names(name_starts_with=self.prefix or None)
        return sorted(name for name in names if name.endswith(ENDINGS))

    def read(self, name):
        # As it is stored: what is compressed is told by its own first bytes.
        return self.client.download_blob(name, decompress=False).readall()


def source(text):
    return Container(text) if text.startswith("az://") else Folder(text)


def lines_of(stored):
    """The lines of an object, whichever way it is compressed."""
    if stored.startswith(b"\x1f\x8b"):
        stored = gzip.decompress(stored)
    elif stored.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        whole = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stored), read_across_frames=True)
        stored = whole.read()
    return [line for line in stored.split(b"\n") if line]


def time_of(line):
    """The line's own time, as Ferry's time_key writes it."""
    try:
        return datetime.datetime.fromisoformat(json.loads(line)["time"])
    except (KeyError, TypeError, ValueError):
        return None


# PostgreSQL's jsonb cannot hold the character U+0000. Its escape counts where it is not itself escaped.
NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def load(arguments):
    import psycopg

    objects = source(arguments.source)
    loaded = skipped = rows = 0
    with psycopg.connect(arguments.postgres, autocommit=True) as database:
        with database.transaction():
            # Two loaders that start at once would both make the tables.
            database.execute("SELECT pg_advisory_xact_lock(hashtext('ferry.schema'))")
            database.execute((HERE / "postgres.sql").read_text())
        database.execute("SET search_path = ferry")
        known = {name for (name,) in database.execute("SELECT name FROM objects")}
        for name in objects.names():
            full = f"{arguments.source.rstrip('/')}: {name}"
            if full in known:
                skipped += 1
                continue
            lines = lines_of(objects.read(name))
            # The object and its lines come together or not at all; of two loaders the second one waits
            # here, and then finds that it is done.
            with database.transaction():
                row = database.execute(
                    "INSERT INTO objects (name, lines) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING id",
                    (full, len(lines)),
                ).fetchone()
                if row is None:
                    skipped += 1
                    continue
                with database.cursor().copy("COPY lines (object, number, logged_at, line) FROM STDIN") as copy:
                    for number, line in enumerate(lines):
                        text = NUL.sub(rb"\1\\ufffd", line).decode()
                        copy.write_row((row[0], number, time_of(line), text))
            loaded += 1
            rows += len(lines)
    print(f"{loaded} objects loaded ({rows} lines), {skipped} were there")


def fetch(arguments):
    objects = source(arguments.source)
    folder = pathlib.Path(arguments.folder)
    fetched = skipped = 0
    for name in objects.names():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            sys.exit(f"error: the object {name} would lie outside {folder}")
        if path.exists():
            skipped += 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # A half-written file must not pass for an object.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            part.write(objects.read(name))
        os.replace(part.name, path)
        fetched += 1
    print(f"{fetched} objects fetched, {skipped} were there")


def ask(arguments):
    question = (HERE / "questions" / f"{arguments.question}.sql").read_text()
    names = set(re.findall(r"\$(\w+)", question))
    given = {name: getattr(arguments, name) for name in names}
    if given.get("trace", "") is None:
        sys.exit("error: the question needs --trace ID")
    if arguments.postgres is not None:
        columns, rows = ask_postgres(arguments.postgres, question, given)
    else:
        columns, rows = ask_duckdb(arguments.files, question, given)
    if arguments.json:
        print(json.dumps([dict(zip(columns, row)) for row in rows], default=when, ensure_ascii=False))
    else:
        table(columns, rows)


def ask_postgres(dsn, question, given):
    import psycopg

    with psycopg.connect(dsn, options="-c TimeZone=UTC -c search_path=ferry") as database:
        query = re.sub(r"\$(\w+)", r"%(\1)s", question.replace("%", "%%"))
        cursor = database.execute(query, given)
        return [column.name for column in cursor.description], cursor.fetchall()


def ask_duckdb(folder, question, given):
    import duckdb

    objects = Folder(folder)
    files = [str(objects.root / name) for name in objects.names()]
    if not files:
        sys.exit(f"error: {folder} holds no *.ndjson, *.ndjson.gz or *.ndjson.zst; fetch some first")
    database = duckdb.connect()
    database.execute("SET VARIABLE files = $files", {"files": files})
    database.execute((HERE / "duckdb.sql").read_text())
    # The files' times are in UTC, and are compared as such.
    naive = {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime.datetime) else value
        for name, value in given.items()
    }
    cursor = database.execute(question, naive)
    return [column[0] for column in cursor.description], cursor.fetchall()


def when(value):
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def table(columns, rows):
    def cell(value):
        if value is None:
            return ""
        if isinstance(value, datetime.datetime):
            return when(value)
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    cells = [list(columns)] + [[cell(value) for value in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print(f"({len(rows)} rows)")


def time(text):
    try:
        value = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no time; write 2025-07-02 or 2025-07-02T20:44:00Z")
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fetch", help="copy objects that are not there yet into a folder")
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("folder", metavar="FOLDER")
    command.set_defaults(run=fetch)

    command = commands.add_parser("load", help="load objects into PostgreSQL, each once")
    command.add_argument("source", metavar="SOURCE")
    command.add_argument(
        "--postgres", metavar="DSN", default="", help="such as 'host=db dbname=logs'; PGHOST and the like count too"
    )
    command.set_defaults(run=load)

    command = commands.add_parser("ask", help="ask PostgreSQL, or the files themselves by way of DuckDB")
    command.add_argument("question", choices=QUESTIONS)
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--postgres", metavar="DSN", help="where objects were loaded to ('' takes PGHOST and the like)")
    where.add_argument("--files", metavar="FOLDER", help="where objects were fetched to, or file:// wrote them")
    command.add_argument("--from", type=time, default=time("1970-01-01"), metavar="TIME", help="UTC where it has no zone")
    command.add_argument("--to", type=time, default=time("2200-01-01"), metavar="TIME", help="not included")
    command.add_argument("--bucket", choices=["minute", "hour", "day"], default="hour", help="of errors")
    command.add_argument("--limit", type=int, default=20, help="of slowest")
    command.add_argument("--trace", metavar="ID", help="of trace")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=ask)

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
