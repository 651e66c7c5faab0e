//! How many instructions each part of the work takes, counted by callgrind: `make bench-instructions`. Counts are
//! the same on a busy machine as on a quiet one; how long an instruction takes is another matter.
//!
//! Without arguments it counts every part, each in a process of its own under valgrind, and prints them.
//! With a part's name it does that part once.

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

/// A part of the work.
struct Part {
    name: String,
    run: Run,
}

type Run = Box<dyn Fn(&Input<'_>) -> Vec<u8>>;

struct Input<'c> {
    chunk: &'c [u8],
    /// Those of the chunk's events.
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

/// What callgrind counts: this and all it calls.
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

/// Instructions that one part takes.
fn count(name: &str) -> u64 {
    let executable = std::env::current_exe().expect("a path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*ferry_counted*"])
        .arg(executable)
        .arg(name)
        .output()
        .expect("valgrind; remedy: apt install valgrind");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.expect("callgrind says what it collected");
    let count = count.trim().parse().expect("a number");
    assert!(count > 0, "the function's name was stripped");
    count
}
