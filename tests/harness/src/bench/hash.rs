//! The cost of the SHA-256 of request bodies, which request signing requires of every sender. It is estimated from the
//! bytes hashed and the speed of each sender's implementation on this machine.

use std::process::Command;

use ring::digest::{SHA256, digest};

use super::cpu::this_thread;

/// The size of a hashed body, in bytes: far beyond the fastest cache, as in the senders.
const BODY: usize = 4 << 20;
const BODIES: usize = 16;

/// The bytes that each implementation hashes per second of CPU time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speeds {
    /// The system's OpenSSL, which Fluent Bit is linked with; `None` without the `openssl` command.
    pub(super) openssl: Option<f64>,
    /// The crate that signs Ferry's requests.
    pub(super) ring: f64,
}

impl Speeds {
    /// Takes about two seconds.
    pub(super) fn measure() -> Self {
        let arguments = ["speed", "-mr", "-seconds", "1", "-bytes", "16384", "sha256"];
        let openssl = Command::new("openssl").args(arguments).output().ok();
        Self {
            openssl: openssl
                .and_then(|output| parse_speed(&String::from_utf8_lossy(&output.stdout))),
            ring: ring(),
        }
    }
}

fn ring() -> f64 {
    let body: Vec<u8> = (0..BODY).map(|n| b'A' + (n % 64) as u8).collect();
    let started = this_thread();
    for _ in 0..BODIES {
        std::hint::black_box(digest(&SHA256, std::hint::black_box(&body)));
    }
    let used = this_thread() - started;
    (BODY * BODIES) as f64 / used.as_secs_f64()
}

/// Parses the bytes per second in the output of `openssl speed -mr`: `+F:…:sha256:379000000.00`.
fn parse_speed(output: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.starts_with("+F:"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_the_last_field_of_openssl_s_line() {
        let output = "+H:16384\n+F:22:sha256:379215872.00\n";
        assert_eq!(parse_speed(output), Some(379_215_872.0));
        assert_eq!(parse_speed("speed: unknown option\n"), None);
        assert_eq!(parse_speed("+F:22:sha256:\n"), None);
    }
}
