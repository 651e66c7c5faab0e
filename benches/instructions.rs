//! Instruction counts of each step, by callgrind: `make bench-instructions`. They do not depend on the load of the
//! machine, and say nothing about the time that an instruction takes.
//!
//! Without arguments, each step runs in a process of its own under valgrind, and the counts are printed. With the name
//! of a step, only that step runs, once.

#[allow(
    dead_code,
    reason = "the tests' helpers, of which some are needed here"
)]
#[path = "../tests/support/mod.rs"]
mod support;
mod work;

use std::hint::black_box;
use std::process::Command;

use ferry::codec;
use ferry::codec::json::simd::Level;
use ferry::codec::json::{Encoder, Options};
use ferry::codec::template::Template;
use ferry::compress::Compression;
use work::EVENTS;

/// A step that is measured.
struct Part {
    name: String,
    run: Run,
}

type Run = Box<dyn Fn(&Input<'_>) -> Vec<u8>>;

struct Input<'c> {
    chunk: &'c [u8],
    /// The bodies of the chunk's events.
    bodies: Vec<&'c [u8]>,
    lines: Vec<u8>,
}

fn parts() -> Vec<Part> {
    let part = |name: String, run: Run| Part { name, run };
    let mut parts = Vec::new();
    for level in Level::all() {
        let run = move |input: &Input<'_>| encoded(input.chunk, level);
        parts.push(part(format!("encode {level:?}"), Box::new(run)));
    }
    parts.push(part(
        "encode and sort by name".to_owned(),
        Box::new(|input| sorted(input.chunk)),
    ));
    parts.push(part(
        "encode reference: rmp-serde and serde_json".to_owned(),
        Box::new(|input| transcoded(&input.bodies, input.lines.len())),
    ));
    for compression in [
        Compression::Gzip(1),
        Compression::Gzip(2),
        Compression::Zstd(1),
    ] {
        let run = move |input: &Input<'_>| compression.apply(&input.lines);
        parts.push(part(format!("compress {compression:?}"), Box::new(run)));
    }
    parts.push(part(
        "compress reference: miniz 6".to_owned(),
        Box::new(|input| miniz_oxide::deflate::compress_to_vec(&input.lines, 6)),
    ));
    parts
}

fn encoded(chunk: &[u8], level: Level) -> Vec<u8> {
    let options = Options::default();
    let mut out = Vec::with_capacity(2 * chunk.len());
    work::encode(&mut Encoder::at_level(&options, level), chunk, &mut out);
    out
}

fn sorted(chunk: &[u8]) -> Vec<u8> {
    let names = Template::parse("{tag}/%Y/%m/%d/%H", true).expect("a name");
    let mut parts = codec::encode(&Options::default(), &names, b"app", chunk, |_| true).parts;
    parts.swap_remove(0).text
}

fn transcoded(bodies: &[&[u8]], lines: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * lines);
    work::transcode(bodies, &mut out);
    out
}

/// The function that callgrind counts, with everything that it calls.
#[inline(never)]
fn ferry_counted(part: &Part, input: &Input<'_>) -> Vec<u8> {
    black_box((part.run)(black_box(input)))
}

fn main() {
    let chosen = std::env::args().nth(1).filter(|name| name != "--bench");
    let chunk = support::plugin::chunk(0..EVENTS);
    let lines = encoded(&chunk, Level::best());
    let input = Input {
        chunk: &chunk,
        bodies: work::bodies(&chunk),
        lines,
    };
    let Some(chosen) = chosen else {
        println!("instructions for each byte of JSON lines");
        for part in parts() {
            let count = count(&part.name) as f64 / input.lines.len() as f64;
            println!("{count:>8.2}  {}", part.name);
        }
        return;
    };
    let part = parts().into_iter().find(|part| part.name == chosen);
    let part = part.expect("a part's name");
    assert!(!ferry_counted(&part, &input).is_empty());
}

/// Returns the number of instructions of a part.
fn count(name: &str) -> u64 {
    let executable = std::env::current_exe().expect("a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*ferry_counted*"])
        .arg(executable)
        .arg(name)
        .output()
        .expect("valgrind is installed; remedy: apt install valgrind");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.expect("callgrind reports a count");
    let count = count.trim().parse().expect("a number");
    assert!(count > 0, "the function's name was stripped");
    count
}
