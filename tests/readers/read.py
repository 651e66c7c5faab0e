"""Reads the Parquet files of a folder with a reader of another maker, and prints each row as a line of JSON.

    read.py READER FOLDER

READER is duckdb, pyarrow, polars or spark. The columns are those of all files together; a row has null for a column that
its file does not have. Times are microseconds since the Unix epoch. Rows are sorted by the column seq.
"""

import datetime
import glob
import json
import math
import os
import sys
import time

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def plain(value):
    """Returns a value as JSON can have it, alike for each reader."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=datetime.timezone.utc)
        return (value - EPOCH) // datetime.timedelta(microseconds=1)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def duckdb(files):
    import duckdb

    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    table = connection.execute("select * from read_parquet(?, union_by_name = true, hive_partitioning = false)", [files])
    names = [column[0] for column in table.description]
    return [dict(zip(names, row)) for row in table.fetchall()]


def pyarrow(files):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    tables = [parquet.ParquetFile(file).read() for file in files]
    return arrow.concat_tables(tables, promote_options="default").to_pylist()


def polars(files):
    import polars

    return polars.concat([polars.read_parquet(file) for file in files], how="diagonal").to_dicts()


def spark(files):
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = session.config("spark.sql.session.timeZone", "UTC").config("spark.driver.host", "127.0.0.1")
    session = session.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    rows = session.read.option("mergeSchema", "true").parquet(*files)
    return [row.asDict() for row in rows.collect()]


def main():
    # Some readers return local times.
    os.environ["TZ"] = "UTC"
    time.tzset()
    reader, folder = sys.argv[1:]
    files = sorted(glob.glob(f"{folder}/**/*.parquet", recursive=True))
    rows = {"duckdb": duckdb, "pyarrow": pyarrow, "polars": polars, "spark": spark}[reader](files)
    for row in sorted(rows, key=lambda row: row["seq"]):
        print(json.dumps({name: plain(value) for name, value in sorted(row.items())}))


main()
