"""make bench-parquet: what Parquet costs in a real Fluent Bit, beside pyarrow on the same lines in the same run.

Each row is a process whose CPU time (user and system) and largest resident size are read when it ends. The figures of
Fluent Bit are shown above those of the same host with the output null. DuckDB then compares what was written with the
lines: how many rows, each once, and every double bit for bit.

With FLUENT_BIT_ARROW=FILE, a Fluent Bit that was built with Arrow, its own output s3 writes Parquet beside it, to a
server in this process.
"""

import argparse
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

COLUMNS = """\
level string
message string
method string = request.method
route string = request.path
agent string = request.userAgent
length int = request.headers.content-length
status int = response.status
bytes int = response.bytes
cached bool = response.cached
latency float
remote string
user int
seq int
"""
# What pyarrow reads of the same lines: the same columns, from typed JSON, and nothing else.
PYARROW = """
import sys, pyarrow as pa, pyarrow.json as pj, pyarrow.parquet as pq
source, target = sys.argv[1:]
request = pa.struct([("method", pa.string()), ("path", pa.string()), ("userAgent", pa.string()),
                     ("headers", pa.struct([("content-length", pa.int64())]))])
response = pa.struct([("status", pa.int64()), ("bytes", pa.int64()), ("cached", pa.bool_())])
schema = pa.schema([("time", pa.string()), ("level", pa.string()), ("message", pa.string()), ("request", request),
                    ("response", response), ("latency", pa.float64()), ("remote", pa.string()), ("user", pa.int64()),
                    ("seq", pa.int64())])
table = pj.read_json(source, parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"))
pq.write_table(table, target, compression="zstd", compression_level=1)
"""


def measured(arguments, log, environment=None, stop_when=None):
    """Runs a process to its end, and returns its CPU seconds and its peak memory in MB."""
    with open(log, "wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
        while stop_when is not None and not stop_when():
            if process.poll() is not None:
                sys.exit(f"{arguments[0]} ended by itself; its log is {log}")
            time.sleep(0.1)
        if stop_when is not None:
            process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{arguments[0]} ended with {process.returncode}; its log is {log}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


class Bucket(http.server.BaseHTTPRequestHandler):
    """Takes whatever the output s3 puts, in one request or in parts."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body=b"", headers=()):
        self.send_response(200)
        self.send_header("ETag", '"0"')
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.partition("?")[0].strip("/").replace("/", "_")
        part = self.path.partition("partNumber=")[2].partition("&")[0]
        (self.server.folder / f"{name}{part}").write_bytes(body)
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(b"<R><UploadId>1</UploadId><ETag>0</ETag></R>")


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = Path(arguments.dir).absolute()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.lines = self.folder / "lines.ndjson"
        plain = self.folder / "plain.ndjson"
        generate = [arguments.harness, "generate", "--shape", "http", "-n", str(arguments.lines)]
        subprocess.run([*generate, "--output", str(plain)], check=True)
        # One of 1,000 folders for each line.
        with open(plain, encoding="utf-8") as source, open(self.lines, "w", encoding="utf-8") as target:
            for number, line in enumerate(source):
                target.write(f'{{"folder":"f{number * 7919 % 1000}",' + line[1:])
        plain.unlink()
        (self.folder / "columns").write_text(COLUMNS, encoding="utf-8")

    def host(self, name, output, executable=None):
        folder = self.folder / name
        folder.mkdir()
        (folder / "parsers.conf").write_text("[PARSER]\n    Name json\n    Format json\n", encoding="utf-8")
        keys = "".join(f"    {line.strip()}\n" for line in output.format(folder=folder, all=self.folder).splitlines())
        (folder / "bench.conf").write_text(
            f"[SERVICE]\n    Flush 0.5\n    Grace 60\n    Parsers_File {folder}/parsers.conf\n"
            f"[INPUT]\n    Name tail\n    Tag app\n    Path {self.lines}\n    Read_from_Head on\n    Exit_On_Eof on\n"
            "    Parser json\n    Buffer_Chunk_Size 512K\n    Buffer_Max_Size 512K\n    Mem_Buf_Limit 32M\n"
            f"[OUTPUT]\n{keys}    Match *\n    Workers 1\n    Retry_Limit no_limits\n",
            encoding="utf-8",
        )
        environment = {
            "AWS_ACCESS_KEY_ID": "TESTKEY",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        command = [executable or self.arguments.fluent_bit, "-c", str(folder / "bench.conf")]
        if "Name ferry" in output:
            command += ["-e", self.arguments.library]
        return measured(command, folder / "host.log", environment)

    def ferry(self, name, path, keys):
        return self.host(
            name,
            "Name ferry\nurl file://{folder}/objects\npath " + path + "\nspool on\nspool_dir {folder}/spool\n"
            "dead_letter_dir {folder}/letters\nblob_max_age 1h\n" + keys,
        )

    def s3(self, executable):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
        server.folder = self.folder / "s3-objects"
        server.folder.mkdir()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        keys = (
            f"Name s3\nendpoint http://127.0.0.1:{server.server_port}\nbucket bench\nregion us-east-1\ntls off\n"
            "use_put_object on\ncompression parquet\ntotal_file_size 64M\nstore_dir {folder}/store\n"
        )
        return self.host("s3", keys, executable)

    def check(self, name):
        """Compares the objects with the lines: rows, rows that are there once, doubles that differ."""
        import duckdb

        objects = f"{self.folder}/{name}/objects/**/*.parquet"
        query = duckdb.connect()
        query.execute(f"CREATE VIEW written AS SELECT * FROM read_parquet('{objects}', hive_partitioning = false)")
        query.execute(
            f"CREATE TABLE lines AS SELECT seq, latency FROM read_json('{self.lines}', format = 'newline_delimited', "
            "columns = {seq: 'BIGINT', latency: 'DOUBLE'}, ignore_errors = false)"
        )
        rows, once = query.execute("SELECT count(*), count(DISTINCT seq) FROM written").fetchone()
        (differ,) = query.execute(
            "SELECT count(*) FROM lines JOIN written USING (seq) WHERE lines.latency IS DISTINCT FROM written.latency"
        ).fetchone()
        assert rows == once == self.arguments.lines, f"{name}: {rows} rows, {once} different ones"
        assert differ == 0, f"{name}: {differ} doubles differ"
        files = list(Path(self.folder, name, "objects").rglob("*.parquet"))
        return len(files), sum(file.stat().st_size for file in files) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fluent-bit", required=True, metavar="FILE")
    parser.add_argument("--fluent-bit-arrow", metavar="FILE")
    parser.add_argument("--library", default="target/out_ferry.so", metavar="LIB.so")
    parser.add_argument("--harness", default="target/ferry-harness", metavar="FILE")
    parser.add_argument("--lines", type=int, default=600_000, metavar="N")
    parser.add_argument("--dir", default="target/bench-parquet", metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.library = os.path.abspath(arguments.library)
    arguments.harness = os.path.abspath(arguments.harness)
    bench = Bench(arguments)
    null_cpu, null_memory = bench.host("null", "Name null")
    print(f"{os.path.getsize(bench.lines) / 1e6:.0f} MB of lines; the host with null: {null_cpu:.2f} CPU s, {null_memory:.0f} MB")
    parquet = "format parquet\nparquet_columns @{all}/columns\n"
    rows = {}
    for name, title, path, keys in [
        ("lines", "Ferry, lines, zstd", "dt=%F", "compression zstd\n"),
        ("parquet", "Ferry, Parquet, zstd", "dt=%F", parquet),
        ("folders", "Ferry, Parquet, zstd, 1,000 folders", "dt=%F/folder={{record.folder}}", parquet),
    ]:
        cpu, memory = bench.ferry(name, path, keys)
        files, stored = bench.check(name) if name != "lines" else (0, 0)
        rows[title] = (cpu - null_cpu, memory - null_memory, files, stored)
    target = bench.folder / "pyarrow.parquet"
    cpu, memory = measured([sys.executable, "-c", PYARROW, str(bench.lines), str(target)], bench.folder / "pyarrow.log")
    rows["pyarrow: parse and write"] = (cpu, memory, 1, target.stat().st_size / 1e6)
    if arguments.fluent_bit_arrow:
        cpu, memory = bench.s3(arguments.fluent_bit_arrow)
        files = list((bench.folder / "s3-objects").iterdir())
        stored = sum(file.stat().st_size for file in files) / 1e6
        rows["Fluent Bit's s3, Parquet"] = (cpu - null_cpu, memory - null_memory, len(files), stored)
    peer = rows.get("Fluent Bit's s3, Parquet", rows["pyarrow: parse and write"])
    print("| output | CPU s | of the peer's | MB above null | files | stored MB |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for title, (cpu, memory, files, stored) in rows.items():
        print(f"| {title} | {cpu:.2f} | {cpu / peer[0]:.2f} | {memory:.0f} | {files or ''} | {f'{stored:.1f}' if stored else ''} |")
    print("rows compared by DuckDB: every line once, every double the same")


if __name__ == "__main__":
    main()
