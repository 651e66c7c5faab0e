//! Tests of the proxy, between a client with plain sockets and a small server.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ferry_harness::proxy::{Options, Proxy, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, body::Incoming};
use hyper_util::rt::TokioIo;

/// A server that answers each request with its body, or with nothing on a path that ends in `/empty`, and
/// writes down what it was asked.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let log = seen.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let log = log.clone();
                    let service = service_fn(move |request| answer(log.clone(), request));
                    let connection =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::spawn(connection);
                }
            });
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    log: Arc<Mutex<Vec<String>>>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let line = format!("{} {} {}", head.method, head.uri, body.len());
    log.lock().unwrap().push(line);
    let (status, body) = match head.uri.path().ends_with("/empty") {
        true => (201, Bytes::new()),
        false => (200, body),
    };
    let reply = Response::builder()
        .status(status)
        .header("x-server", "here");
    Ok(reply.body(Full::new(body)).unwrap())
}

fn start(faults: &str) -> (Server, Proxy) {
    let server = Server::start();
    let faults = faults.to_owned();
    let options = Options {
        faults,
        ..Options::default()
    };
    let proxy = Proxy::start(&server.url, options).unwrap();
    (server, proxy)
}

fn address(url: &str) -> &str {
    url.split_once("://").unwrap().1
}

fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(address(proxy.url())).unwrap()
}

fn text_of(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: there\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request on a connection of its own; what came back until its end.
fn send(proxy: &Proxy, method: &str, path: &str, body: &str) -> String {
    let mut stream = connect(proxy);
    stream
        .write_all(text_of(method, path, body).as_bytes())
        .unwrap();
    received(&mut stream)
}

fn received(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset connection ends the response like an orderly end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// The status of an answer; 0 where not even its first line is whole.
fn status(answer: &str) -> u16 {
    let line = answer.split_once("\r\n").map_or("", |(line, _)| line);
    line.split(' ')
        .nth(1)
        .map_or(0, |status| status.parse().unwrap())
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < patience, "{what}: not within 30 seconds");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_request_and_its_answer_pass_byte_for_byte() {
    let request = "PUT /acct/c/b%20c+d/%ED%9A%8C?comp=block&blockid=QUJD%3D&x HTTP/1.1\r\n\
        Host: someone.blob.example\r\nX-MS-Date: Fri, 21 Nov 2025 13:00:00 GMT\r\n\
        authorization: SharedKey acct:c2lnbg==\r\nx-MS-twice: a\r\nContent-Length: 10\r\n\r\nbody\0\r\n\r\n{";
    let answer = "HTTP/1.1 201 Created\r\nServer: Some/1.0\r\nx-ms-Request-ID: 7\r\nETag: \"0x8\"\r\n\
        Date: Fri, 21 Nov 2025 13:00:01 GMT\r\nContent-Length: 3\r\n\r\n{\"\n";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut seen = vec![0; request.len()];
        stream.read_exact(&mut seen).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(seen).unwrap()
    });
    let proxy = Proxy::start(&upstream, Options::default()).unwrap();
    let mut stream = connect(&proxy);
    stream.write_all(request.as_bytes()).unwrap();
    let mut told = vec![0; answer.len()];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(String::from_utf8(told).unwrap(), answer);
    assert_eq!(server.join().unwrap(), request);
    let wanted = Request {
        method: "PUT".to_owned(),
        path: "/acct/c/b%20c+d/%ED%9A%8C?comp=block&blockid=QUJD%3D&x".to_owned(),
        bytes: 10,
        forwarded: true,
        upstream_status: Some(201),
        status: Some(201),
        fault: None,
    };
    assert_eq!(proxy.requests(), [wanted]);
}

#[test]
fn heads_large_bodies_and_bodies_in_pieces_pass() {
    let (server, proxy) = start("");
    let head = send(&proxy, "HEAD", "/a", "0123456789");
    assert!(
        head.contains("content-length: 10\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );

    let large = "x".repeat(5_000_000);
    let answer = send(&proxy, "PUT", "/large", &large);
    assert!(answer.ends_with(&format!("\r\n\r\n{large}")));

    let mut stream = connect(&proxy);
    stream
        .write_all(b"PUT /pieces HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        .unwrap();
    stream
        .write_all(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        .unwrap();
    assert!(received(&mut stream).ends_with("\r\n\r\nabcdefg"));
    assert_eq!(
        server.seen(),
        ["HEAD /a 10", "PUT /large 5000000", "PUT /pieces 7"]
    );
}

#[test]
fn each_fault_shows_as_itself_and_forwards_what_it_says() {
    // (fault, begin of the answer, part of it, whether the server sees it, status noted)
    #[rustfmt::skip] // a table
    let cases = [
        ("status 503", "HTTP/1.1 503 Service Unavailable\r\n", "x-ms-error-code: ServerBusy\r\n", false, Some(503)),
        ("status 404 BlobNotFound", "HTTP/1.1 404 Not Found\r\n", "<Code>BlobNotFound</Code>", false, Some(404)),
        ("status 403", "HTTP/1.1 403 Forbidden\r\n", "content-type: application/xml\r\n", false, Some(403)),
        ("status 502", "HTTP/1.1 502 Bad Gateway\r\n", "<h1>502</h1>", false, Some(502)),
        ("status-after-forward 500", "HTTP/1.1 500 Internal Server Error\r\n", "<Code>InternalError</Code>", true, Some(500)),
        ("cut", "", "", false, None),
        ("cut-after-forward", "", "", true, None),
        ("hang 1ms", "", "", false, None),
        ("hang-after-forward 1ms", "", "", true, None),
        ("delay 1ms", "HTTP/1.1 200 OK\r\n", "\r\n\r\nbody", true, Some(200)),
        ("delay-after-forward 1ms", "HTTP/1.1 200 OK\r\n", "\r\n\r\nbody", true, Some(200)),
    ];
    for (fault, begin, part, seen, noted) in cases {
        let (server, proxy) = start(&format!("{fault} times 1"));
        let answer = send(&proxy, "PUT", "/b", "body");
        assert!(
            answer.starts_with(begin) && answer.contains(part),
            "{fault}: {answer}"
        );
        assert_eq!(answer.is_empty(), begin.is_empty(), "{fault}: {answer}");
        assert_eq!(!server.seen().is_empty(), seen, "{fault}");
        let request = &proxy.requests()[0];
        assert!(
            request
                .fault
                .as_deref()
                .is_some_and(|words| fault.starts_with(words) || words.starts_with(fault)),
            "{request:?}"
        );
        assert_eq!(
            (request.forwarded, request.status),
            (seen, noted),
            "{fault}"
        );
        assert_eq!(request.upstream_status, seen.then_some(200), "{fault}");

        let well = send(&proxy, "PUT", "/b", "body");
        assert!(well.ends_with("\r\n\r\nbody"), "after {fault}: {well}");
        let counts = proxy.counts();
        assert_eq!(counts.requests, 2, "{fault}");
        assert_eq!(counts.forwarded, 1 + u64::from(seen), "{fault}");
        assert_eq!(counts.unanswered(), u64::from(noted.is_none()), "{fault}");
        assert_eq!(counts.faults.values().sum::<u64>(), 1, "{fault}");
    }
}

#[test]
fn an_answer_is_cut_in_its_middle_even_where_it_has_no_body() {
    let (server, proxy) = start("cut-mid-answer");
    let empty = send(&proxy, "PUT", "/c/empty", "");
    assert!(
        empty.starts_with("HTTP/1.1 201 Created") && !empty.contains("\r\n\r\n"),
        "{empty}"
    );
    let half = send(&proxy, "GET", "/c", &"x".repeat(1_000));
    let (head, body) = half.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("content-length: 1000") && (100..900).contains(&body.len()),
        "{half}"
    );
    assert_eq!(server.seen().len(), 2);
    for request in proxy.requests() {
        assert!(request.forwarded && request.status.is_none(), "{request:?}");
    }
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let (_server, proxy) = start("call 2 status 503");
    let mut stream = BufReader::new(connect(&proxy));
    for wanted in [200, 503, 200] {
        let request = text_of("PUT", "/b", "body").replace("Connection: close\r\n", "");
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut head, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).unwrap();
            head += &line;
        }
        assert_eq!(status(&head), wanted);
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
    }
}

#[test]
fn rules_come_and_go_and_switches_turn_them_on() {
    let (_server, proxy) = start("");
    let put = || status(&send(&proxy, "PUT", "/b", ""));
    proxy.push_fault("calls 1-2 status 500 method PUT").unwrap();
    assert_eq!([put(), put(), put()], [500, 500, 200]);
    proxy.push_fault("status 403 while locked").unwrap();
    assert_eq!(put(), 200);
    proxy.set_switch("locked", true);
    assert_eq!([put(), put()], [403, 403]);
    proxy.set_switch("locked", false);
    assert_eq!(put(), 200);
    proxy.push_fault("status 503").unwrap();
    proxy.clear_faults();
    assert_eq!(put(), 200);
    let error = proxy.push_fault("status 99").unwrap_err().to_string();
    assert!(error.contains("needs a status from 400 to 599"), "{error}");
    assert_eq!(
        proxy.counts().answered,
        [(200, 4), (403, 2), (500, 2)].into()
    );
}

#[test]
fn a_hang_lasts_until_the_client_leaves() {
    let (server, proxy) = start("hang path /before\nhang-after-forward path /after");
    for path in ["/before", "/after"] {
        let mut stream = connect(&proxy);
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        stream
            .write_all(text_of("PUT", path, "x").as_bytes())
            .unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::WouldBlock,
            "{path}: no answer and no end"
        );
    }
    wait_until("the second request is forwarded", || {
        proxy.requests()[1].upstream_status.is_some()
    });
    assert_eq!(server.seen(), ["PUT /after 1"]);
    assert_eq!(proxy.counts().unanswered(), 2);
}

#[test]
fn a_delayed_request_arrives_though_its_client_has_left() {
    let (server, proxy) = start("delay 100ms");
    let mut stream = connect(&proxy);
    stream
        .write_all(text_of("PUT", "/late", "x").as_bytes())
        .unwrap();
    wait_until("the request came in", || !proxy.requests().is_empty());
    drop(stream);
    wait_until("it is forwarded all the same", || {
        server.seen() == ["PUT /late 1"]
    });
    wait_until("the server answered", || {
        proxy.requests()[0].upstream_status == Some(200)
    });
    assert_eq!(
        proxy.requests()[0].status,
        None,
        "nobody is there to be told"
    );
}

#[test]
fn down_refuses_connections_and_closes_those_that_are_open() {
    let (server, proxy) = start("hang path /held");
    let mut held = connect(&proxy);
    held.write_all(text_of("GET", "/held", "").as_bytes())
        .unwrap();
    wait_until("the request came in", || !proxy.requests().is_empty());
    let mut idle = connect(&proxy);
    for _ in 0..2 {
        proxy.set_down(true).unwrap();
        let refused = TcpStream::connect(address(proxy.url())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(received(&mut held), "");
    assert_eq!(received(&mut idle), "");
    for _ in 0..2 {
        proxy.set_down(false).unwrap();
        assert_eq!(status(&send(&proxy, "GET", "/up", "")), 200);
    }
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_server_that_is_gone_is_a_bad_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let proxy = Proxy::start(&upstream, Options::default()).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
    });
    assert_eq!(status(&send(&proxy, "PUT", "/b", "x")), 502);
    server.join().unwrap();
    assert_eq!(status(&send(&proxy, "PUT", "/b", "x")), 502);
    let forwarded: Vec<_> = proxy
        .requests()
        .iter()
        .map(|request| request.forwarded)
        .collect();
    assert_eq!(forwarded, [true, false], "the first one was sent");
    assert_eq!(proxy.counts().forwarded, 1);
}

#[test]
fn requests_at_the_same_time_are_all_counted() {
    let (server, proxy) = start("10% status 503; 10% cut-after-forward");
    let answers: Vec<_> = thread::scope(|scope| {
        let proxy = &proxy;
        let clients: Vec<_> = (0..8)
            .map(|client| {
                scope.spawn(move || {
                    let path = format!("/{client}");
                    (0..50)
                        .map(|_| status(&send(proxy, "PUT", &path, "x")))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let count = |wanted: u16| answers.iter().filter(|status| **status == wanted).count() as u64;
    let counts = proxy.counts();
    assert_eq!(counts.requests, 400);
    assert_eq!(
        counts.answered,
        [(200, count(200)), (503, count(503))].into()
    );
    assert_eq!(counts.unanswered(), count(0));
    assert!(count(503) > 10 && count(0) > 10, "{counts}");
    assert_eq!(server.seen().len() as u64, counts.forwarded);
}

#[test]
fn the_wide_world_is_not_served() {
    let listen = "0.0.0.0:0".parse().unwrap();
    let options = Options {
        listen,
        ..Options::default()
    };
    let error = Proxy::start("http://127.0.0.1:1", options).err().unwrap();
    assert!(error.to_string().contains("loopback"), "{error}");
}

#[test]
fn the_command_follows_its_switches_and_sums_up() {
    let server = Server::start();
    let switches = tempfile::tempdir().unwrap();
    let switch = |name: &str| switches.path().join(name);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferry-harness"))
        .args([
            "proxy",
            "--upstream",
            &server.url,
            "--faults",
            "status 503 while busy",
        ])
        .arg("--switches")
        .arg(switches.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap();
    let get = || {
        let mut stream = TcpStream::connect(address(url))?;
        stream.write_all(text_of("GET", "/", "").as_bytes())?;
        Ok::<_, std::io::Error>(status(&received(&mut stream)))
    };
    assert_eq!(get().unwrap(), 200);
    std::fs::write(switch("busy"), "").unwrap();
    assert_eq!(get().unwrap(), 503);
    std::fs::write(switch("down"), "").unwrap();
    wait_until("the proxy is down", || get().is_err());
    std::fs::remove_file(switch("down")).unwrap();
    std::fs::remove_file(switch("busy")).unwrap();
    wait_until("the proxy is up", || {
        get().is_ok_and(|status| status == 200)
    });

    // SAFETY: the number is that of a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert!(child.wait().unwrap().success());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("  answered 200: "), "{rest}");
    assert!(rest.contains("fault status 503 ServerBusy: "), "{rest}");
}
