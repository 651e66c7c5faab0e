//! `ferry health`: a probe for containers without a shell.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::{Done, Failure, print, tell};

/// The most bytes of an answer that are read: `/ready` has some hundred.
const MAX_ANSWER: u64 = 64 * 1024;

/// Ask a running output whether it delivers, as a health check
#[derive(clap::Args)]
#[command(after_help = HEALTH)]
pub(super) struct Args {
    /// The address: metrics_listen, with /ready or /live
    #[arg(default_value = "http://127.0.0.1:2021/ready")]
    url: String,
    /// The seconds to wait for the answer, in all
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

const HEALTH: &str = "\
Example:
  ferry health http://127.0.0.1:2021/ready

The output needs metrics_listen. /ready is answered with 503 and the reason if a destination has taken nothing for
ready_after while something waits, if the spool is above 90%, or if dead letters are full. /live is answered with 200
while the process runs.

Exit status: 0, the answer is 200; 1, it is another, or there is none; 2, the address is not one";

pub(super) fn run(args: &Args) -> Done {
    let (host, path) = split(&args.url)?;
    match ask(&host, &path, Duration::from_secs(args.timeout)) {
        Ok((200, body)) => {
            print(&body)?;
            Ok(true)
        }
        Ok((status, body)) => {
            tell(format_args!("{}: {status}: {}", args.url, body.trim_end()));
            Ok(false)
        }
        Err(error) => {
            tell(format_args!("{}: {error}", args.url));
            Ok(false)
        }
    }
}

/// Splits `http://host:port/path` into `host:port` and `/path`.
fn split(url: &str) -> Result<(String, String), Failure> {
    let bad = || {
        Failure::Message(format!(
            "'{url}' is not an address; remedy: write http://127.0.0.1:2021/ready, with the port of metrics_listen"
        ))
    };
    let rest = url.strip_prefix("http://").ok_or_else(bad)?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/ready"),
    };
    let port = host.rsplit_once(':').map(|(_, port)| port);
    let has_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
    let is_clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !has_port || host.contains('@') || !is_clean(host) || !is_clean(path) {
        return Err(bad());
    }
    Ok((host.to_owned(), path.to_owned()))
}

/// Sends a request, and returns the status and the body.
fn ask(host: &str, path: &str, within: Duration) -> io::Result<(u16, String)> {
    let end = Instant::now() + within;
    let left = || match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut connection = Err(io::Error::from(io::ErrorKind::NotFound));
    for address in host.to_socket_addrs()? {
        connection = TcpStream::connect_timeout(&address, left()?);
        if connection.is_ok() {
            break;
        }
    }
    let mut connection = connection?;
    connection.set_write_timeout(Some(left()?))?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while (answer.len() as u64) < MAX_ANSWER {
        connection.set_read_timeout(Some(left()?))?;
        match connection.read(&mut part)? {
            0 => break,
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let mut words = head.split(' ');
    let status = match (words.next(), words.next()) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some(status)) => status.parse().map_err(|_| invalid())?,
        _ => return Err(invalid()),
    };
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_an_http_address_with_a_port_is_one() {
        for (url, expected) in [
            (
                "http://127.0.0.1:2021/ready",
                Some(("127.0.0.1:2021", "/ready")),
            ),
            ("http://[::1]:9464/live", Some(("[::1]:9464", "/live"))),
            ("http://localhost:9464", Some(("localhost:9464", "/ready"))),
            ("https://127.0.0.1:2021/ready", None),
            ("127.0.0.1:2021", None),
            ("http://127.0.0.1/ready", None),
            ("http://u:p@127.0.0.1:1/", None),
            ("http://127.0.0.1:1/a\r\nX: y", None),
            ("http://127.0.0.1:70000/", None),
        ] {
            let found = split(url).ok();
            let expected = expected.map(|(host, path)| (host.to_owned(), path.to_owned()));
            assert_eq!(found, expected, "{url:?}");
        }
    }

    #[test]
    fn the_status_of_the_answer_decides() {
        for (answer, well) in [
            ("HTTP/1.1 200 OK\r\n\r\nready\n", true),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: why\n",
                false,
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/ready", listener.local_addr().unwrap());
            let server = std::thread::spawn(move || {
                let (mut connection, _) = listener.accept().unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    connection.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                connection.write_all(answer.as_bytes()).unwrap();
            });
            let done = run(&Args { url, timeout: 60 });
            assert_eq!(done.ok(), Some(well), "{answer:?}");
            server.join().unwrap();
        }
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let url = format!("http://{closed}/ready");
        assert_eq!(
            run(&Args { url, timeout: 60 }).ok(),
            Some(false),
            "no answer"
        );
    }
}
