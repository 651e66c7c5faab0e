use std::collections::HashSet;
use std::sync::Mutex;

use super::loopback::{IN_BUFFERS, Loopback, Reply, answer, endless, with_environment};
use super::*;
use crate::config::{AzureAuth, Secret, SecretSource};

mod settings;

const BODY: &[u8] = b"{\"log\":\"one\"}\n";

/// The warnings of a sink.
#[derive(Clone, Default)]
pub(super) struct Ear(Arc<Mutex<Vec<String>>>);

impl Ear {
    pub(super) fn warn(&self) -> Warn {
        let heard = Arc::clone(&self.0);
        Arc::new(move |text| heard.lock().unwrap().push(text.to_owned()))
    }

    pub(super) fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

pub(super) fn sink(store: config::Store, ear: &Ear) -> Result<BlobSink, Problem> {
    let blob = config::Blob {
        store,
        content_type: "application/x-ndjson".into(),
        content_encoding: Some("gzip"),
        objects: config::ObjectSettings::default(),
        ca_pem: None,
    };
    BlobSink::new(&blob, ear.warn())
}

pub(super) fn azure(url: String, auto_create_container: bool, auth: AzureAuth) -> config::Store {
    config::Store::Azure(config::Azure {
        account: config::EMULATOR_ACCOUNT.into(),
        container: "logs".into(),
        auth,
        endpoint: Some(url),
        emulator: true,
        auto_create_container,
        cloud: None,
    })
}

fn well_known() -> AzureAuth {
    AzureAuth::SharedKey(SecretSource::Value(Secret::new(config::EMULATOR_KEY)))
}

async fn put(sink: &BlobSink, target: &str, body: &'static [u8]) -> Outcome {
    let batch = Batch {
        target: target.into(),
        tag: (*b"t").into(),
        records: vec![bytes::Bytes::from_static(body).into()],
        token: None,
    };
    let mut outcomes = sink.send(batch).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".into(),
        Outcome::Retry(fault) => format!("retry {:?} {fault}", fault.class),
        Outcome::Ambiguous(fault) => format!("ambiguous {:?} {fault}", fault.class),
        Outcome::Rejected(fault) => format!("rejected {:?} {fault}", fault.class),
    }
}

#[test]
fn any_name_becomes_a_path_and_no_two_names_the_same() {
    let names = [
        "a/b",
        "a//b",
        "a/./b",
        "a/../b",
        "a/%2E%2E/b",
        "a/%/b",
        "a%2Fb",
        "a\\b",
        "a/b.",
        "a/b%2E",
        "a/b#1",
        "a/b%231",
        "a/\u{0}",
        "a/\n",
        "a/%0A",
        "a/\u{85}",
        "a/é",
        "a/日本",
        "..",
        ".",
        "a/",
        "",
        "a/ b",
        "a/b?c&d=e",
        "a/[x]{y}~`^|<>\"*",
        "a/\u{202e}",
    ];
    let paths: HashSet<String> = names
        .iter()
        .map(|name| object_path(name).to_string())
        .collect();
    assert_eq!(paths.len(), names.len(), "{paths:?}");
    for path in &paths {
        assert!(
            !path.split('/').any(|part| matches!(part, "" | "." | "..")),
            "{path}"
        );
    }
    for plain in [
        "logs/app/2025/11/21/13/x.json.gz",
        "k8s/é/日本/a_b-c=1.json",
    ] {
        assert_eq!(
            object_path(plain).as_ref(),
            plain,
            "plain names stay readable"
        );
        assert_eq!(object_path(&format!("/{plain}")).as_ref(), plain);
    }
}

#[test]
fn another_name_keeps_folder_and_extension() {
    let table = [
        ("a.b/c.json.gz", 0, "a.b/c.json.gz"),
        ("a.b/c.json.gz", 1, "a.b/c-c1.json.gz"),
        ("c", 2, "c-c2"),
        ("a.b/c", 1, "a.b/c-c1"),
        ("a/.c", 1, "a/.c-c1"),
    ];
    for (name, rename, other) in table {
        assert_eq!(renamed(name, rename), other);
    }
}

#[test]
fn the_token_fits_a_header() {
    assert_eq!(token("a/b/1-ab.json.gz"), "1-ab.json.gz");
    let odd = token("a/é\n \"x\" ");
    assert!(
        odd.bytes().all(|b| (0x20..0x7f).contains(&b)) && odd.trim() == odd,
        "{odd}"
    );
}

#[tokio::test]
async fn the_same_object_twice_is_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("made/by/us");
    let ear = Ear::default();
    let sink = sink(config::Store::File(root.clone()), &ear).unwrap();
    for _ in 0..2 {
        assert_eq!(
            put(&sink, "tag/../é//x.json", BODY).await,
            Outcome::Delivered
        );
    }
    assert_eq!(
        std::fs::read(root.join("tag/.%2E/é/%/x.json")).unwrap(),
        BODY
    );
    assert_eq!(
        std::fs::read_dir(root.join("tag/.%2E/é/%"))
            .unwrap()
            .count(),
        1
    );
    assert!(ear.heard().is_empty());
}

#[tokio::test]
async fn another_object_under_the_name_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::default();
    let sink = sink(config::Store::File(folder.path().into()), &ear).unwrap();
    std::fs::write(folder.path().join("x.json"), "another's").unwrap();
    std::fs::write(folder.path().join("x-c1.json"), "of one length\n").unwrap();
    assert_eq!("of one length\n".len(), BODY.len());
    for _ in 0..2 {
        assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    }
    assert_eq!(
        std::fs::read(folder.path().join("x.json")).unwrap(),
        b"another's"
    );
    assert_eq!(
        std::fs::read(folder.path().join("x-c2.json")).unwrap(),
        BODY
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    let heard = ear.heard();
    assert_eq!(heard.len(), 4, "two taken names, twice");
    assert!(heard[0].contains("collision: 'x.json'"), "{heard:?}");

    std::fs::write(folder.path().join("x-c2.json"), "a third").unwrap();
    std::fs::write(folder.path().join("x-c3.json"), "a fourth").unwrap();
    let given_up = told(&put(&sink, "x.json", BODY).await);
    assert!(
        given_up.starts_with("retry Configuration collision: 'x.json'"),
        "{given_up}"
    );
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_a_matter_of_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Ear::default();
    std::fs::write(folder.path().join("occupied"), "").unwrap();
    let problem = sink(config::Store::File(folder.path().join("occupied/x")), &ear)
        .err()
        .unwrap();
    assert_eq!(problem.key, "url");
    assert!(problem.message.contains("occupied/x'"), "{problem:?}");

    let sink = sink(config::Store::File(folder.path().into()), &ear).unwrap();
    let outcome = told(&put(&sink, "occupied/x.json", BODY).await);
    assert!(
        outcome.starts_with("retry Configuration file: Not a directory"),
        "{outcome}"
    );
    let long = format!("{}.json", "x".repeat(300));
    let outcome = told(&put(&sink, &long, BODY).await);
    assert!(
        outcome.starts_with("rejected Record file: File name too long"),
        "{outcome}"
    );
}

fn created() -> Reply {
    answer(201, &[("ETag", "\"1\"")], "")
}

fn error(status: u16, code: &str) -> Reply {
    let body =
        format!("<Error><Code>{code}</Code><Message>It is so. Really.\nTime:1</Message></Error>");
    answer(status, &[("x-ms-request-id", "r-1")], &body)
}

/// The response to HEAD for an object with this length and token.
fn object(length: usize, token: Option<&str>) -> Reply {
    let length = length.to_string();
    let mut headers = vec![
        ("Content-Length", length.as_str()),
        ("ETag", "\"1\""),
        ("Last-Modified", "Fri, 21 Nov 2025 13:00:00 GMT"),
    ];
    headers.extend(token.map(|token| ("x-ms-meta-ferry_name", token)));
    answer(200, &headers, "")
}

fn absent() -> Reply {
    answer(404, &[("x-ms-error-code", "BlobNotFound")], "")
}

#[tokio::test]
async fn every_turn_of_a_put_has_its_outcome() {
    struct Story {
        name: &'static str,
        auto_create: bool,
        script: Vec<Reply>,
        outcome: &'static str,
        requests: &'static [&'static str],
    }
    let story = |name, script, outcome, requests| Story {
        name,
        auto_create: false,
        script,
        outcome,
        requests,
    };
    const PUT: &str = "PUT /logs/a/x.json";
    const HEAD: &str = "HEAD /logs/a/x.json";
    const PUT_C1: &str = "PUT /logs/a/x-c1.json";
    const MAKE: &str = "PUT /logs?restype=container";
    let taken = || error(409, "BlobAlreadyExists");
    let ours = || object(BODY.len(), Some("x.json"));
    let missing = || error(404, "ContainerNotFound");
    let stories = [
        story("created", vec![created()], "delivered", &[PUT]),
        story(
            "ours already",
            vec![taken(), ours()],
            "delivered",
            &[PUT, HEAD],
        ),
        story(
            "ours, told by 412",
            vec![error(412, "ConditionNotMet"), ours()],
            "delivered",
            &[PUT, HEAD],
        ),
        story(
            "another's token",
            vec![taken(), object(BODY.len(), Some("y.json")), created()],
            "delivered",
            &[PUT, HEAD, PUT_C1],
        ),
        story(
            "another length",
            vec![taken(), object(1, Some("x.json")), created()],
            "delivered",
            &[PUT, HEAD, PUT_C1],
        ),
        story(
            "no token, the same bytes",
            vec![
                taken(),
                object(BODY.len(), None),
                answer(
                    200,
                    &[
                        ("ETag", "\"1\""),
                        ("Last-Modified", "Fri, 21 Nov 2025 13:00:00 GMT"),
                    ],
                    std::str::from_utf8(BODY).unwrap(),
                ),
            ],
            "delivered",
            &[PUT, HEAD, "GET /logs/a/x.json"],
        ),
        story(
            "a 409 and nothing there",
            vec![error(409, "ContainerBeingDeleted"), absent()],
            "retry Transient ContainerBeingDeleted: It is so (request id r-1)",
            &[PUT, HEAD],
        ),
        story(
            "there, and not to be looked at",
            vec![
                taken(),
                answer(
                    403,
                    &[("x-ms-error-code", "AuthorizationPermissionMismatch")],
                    "",
                ),
            ],
            "ambiguous Configuration AuthorizationPermissionMismatch: Forbidden; 'a/x.json' exists, and must be read",
            &[PUT, HEAD],
        ),
        // The next put decides.
        story(
            "a redirect instead of a look",
            vec![taken(), answer(301, &[("Location", "/login")], "")],
            "ambiguous Configuration HTTP 301",
            &[PUT, HEAD],
        ),
        story(
            "a look that somebody else refuses",
            vec![taken(), answer(400, &[], "")],
            "ambiguous Configuration HTTP 400",
            &[PUT, HEAD],
        ),
        story(
            "busy",
            vec![error(503, "ServerBusy")],
            "retry Throttle ServerBusy: It is so (request id r-1)",
            &[PUT],
        ),
        story(
            "broken",
            vec![error(500, "InternalError")],
            "ambiguous Transient InternalError",
            &[PUT],
        ),
        story(
            "signature refused",
            vec![error(403, "AuthenticationFailed")],
            "retry Credentials AuthenticationFailed",
            &[PUT],
        ),
        story(
            "not allowed",
            vec![error(403, "AuthorizationFailure")],
            "retry Configuration AuthorizationFailure",
            &[PUT],
        ),
        story(
            "too large",
            vec![error(413, "RequestBodyTooLarge")],
            "rejected Record",
            &[PUT],
        ),
        story(
            "answer lost",
            vec![Reply::Cut],
            "ambiguous Transient interrupted: the connection to",
            &[PUT],
        ),
        story(
            "no container",
            vec![missing()],
            "retry Configuration ContainerNotFound: It is so; create it, or set auto_create_container on",
            &[PUT],
        ),
        Story {
            auto_create: true,
            ..story(
                "container made",
                vec![missing(), created(), created()],
                "delivered",
                &[PUT, MAKE, PUT],
            )
        },
        Story {
            auto_create: true,
            ..story(
                "container made by another meanwhile",
                vec![missing(), error(409, "ContainerAlreadyExists"), created()],
                "delivered",
                &[PUT, MAKE, PUT],
            )
        },
        Story {
            auto_create: true,
            ..story(
                "container not to be made",
                vec![missing(), error(403, "AuthorizationFailure")],
                "retry Configuration AuthorizationFailure: It is so; the container could not be created",
                &[PUT, MAKE],
            )
        },
    ];
    for story in stories {
        let server = Loopback::start(story.script);
        let ear = Ear::default();
        let sink = sink(azure(server.url(), story.auto_create, well_known()), &ear).unwrap();
        let outcome = told(&put(&sink, "a/x.json", BODY).await);
        assert!(
            outcome.starts_with(story.outcome),
            "{}: {outcome}",
            story.name
        );
        let requests = server.requests();
        let lines: Vec<_> = requests
            .iter()
            .map(|request| {
                request
                    .split(" HTTP")
                    .next()
                    .unwrap()
                    .replace("/devstoreaccount1", "")
            })
            .collect();
        assert_eq!(lines, story.requests, "{}", story.name);
        assert_eq!(
            ear.heard().len(),
            story.requests.iter().filter(|r| **r == PUT_C1).count()
        );

        let put = requests[0].to_ascii_lowercase();
        for header in [
            "if-none-match: *\r\n",
            "x-ms-blob-content-type: application/x-ndjson\r\n",
            "x-ms-blob-content-encoding: gzip\r\n",
            "x-ms-meta-ferry_name: x.json\r\n",
            "authorization: sharedkey devstoreaccount1:",
        ] {
            assert!(put.contains(header), "{header:?} in {put}");
        }
    }
}

#[tokio::test]
async fn whether_an_object_exists_is_told_by_its_token_or_not_at_all() {
    let cases = [
        ("there", vec![object(9, Some("t"))], "true"),
        ("not there", vec![absent()], "false"),
        (
            "under another name",
            vec![object(9, Some("another")), object(9, Some("t"))],
            "true",
        ),
        (
            "another's",
            vec![object(9, Some("another")), absent()],
            "false",
        ),
        ("a page", vec![object(9, None)], "no_token: 'a/x.json' has"),
        (
            "not allowed",
            vec![answer(403, &[], "")],
            "HTTP 403: Forbidden",
        ),
        (
            "a redirect",
            vec![answer(302, &[("Location", "/login")], "")],
            "HTTP 302",
        ),
        ("cut", vec![Reply::Cut], "interrupted"),
    ];
    for (name, script, expected) in cases {
        let server = Loopback::start(script);
        let sink = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
        let exists = match sink.exists("a/x.json", "t").await {
            Ok(exists) => exists.to_string(),
            Err(fault) => fault.to_string(),
        };
        assert!(exists.starts_with(expected), "{name}: {exists}");
    }
    let folder = tempfile::tempdir().unwrap();
    let sink = sink(config::Store::File(folder.path().into()), &Ear::default()).unwrap();
    assert_eq!(sink.exists("x.json", "t").await, Ok(false));
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    assert_eq!(sink.exists("x.json", "t").await, Ok(true));
}

#[tokio::test]
async fn a_service_that_is_not_there_was_not_written_to() {
    let gone = Loopback::start(vec![]).url();
    let sink = sink(azure(gone, false, well_known()), &Ear::default()).unwrap();
    let outcome = told(&put(&sink, "x.json", BODY).await);
    assert!(
        outcome.starts_with("retry Transient connect: no connection to 127.0.0.1:"),
        "{outcome}"
    );
    assert!(outcome.contains("Connection refused"), "{outcome}");
}

#[tokio::test]
async fn a_service_that_stays_silent_is_not_waited_for_forever() {
    let server = Loopback::start(vec![Reply::Hang]);
    let mut sink = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
    sink.timeout.base = Duration::from_millis(100);
    let outcome = told(&put(&sink, "x.json", BODY).await);
    assert!(
        outcome.starts_with("ambiguous Transient timeout: no response within 100ms"),
        "{outcome}"
    );
}

#[test]
fn larger_objects_are_waited_for_longer() {
    let timeout = Timeout {
        base: Duration::from_secs(30),
    };
    assert_eq!(timeout.for_bytes(0), Duration::from_secs(30));
    assert_eq!(
        timeout.for_bytes(64 * 1024 * 1024),
        Duration::from_secs(30 + 256)
    );
}

#[tokio::test]
async fn preparing_creates_the_container_once_and_reports_what_prevents_it() {
    let there = error(409, "ContainerAlreadyExists");
    let server = Loopback::start(vec![created(), there, error(403, "AuthorizationFailure")]);
    let making = sink(azure(server.url(), true, well_known()), &Ear::default()).unwrap();
    assert_eq!(making.prepare().await, Ok(()));
    assert_eq!(making.prepare().await, Ok(()));
    let fault = making.prepare().await.unwrap_err();
    assert_eq!(
        (fault.class, fault.code.as_str()),
        (Class::Configuration, "AuthorizationFailure")
    );
    let not_making = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
    assert_eq!(
        not_making.prepare().await,
        Ok(()),
        "nothing was sent: nobody listens any more"
    );
}

#[tokio::test]
async fn a_refusal_reports_that_the_previous_secret_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sas");
    std::fs::write(&path, "sv=1&sig=c2VjcmV0").unwrap();
    let server = Loopback::start(vec![created(), error(403, "AuthenticationFailed")]);
    let ear = Ear::default();
    let auth = AzureAuth::Sas(SecretSource::File(path.clone()));
    let sink = sink(azure(server.url(), false, auth), &ear).unwrap();
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    std::fs::remove_file(&path).unwrap();
    let outcome = told(&put(&sink, "x.json", BODY).await);
    assert!(outcome.starts_with(
        "retry Credentials AuthenticationFailed: It is so; the previous secret stays in use"
    ));
    assert!(outcome.contains("sas' cannot be read"), "{outcome}");
    assert_eq!(ear.heard().len(), 1);
    let requests = server.requests();
    assert!(
        requests
            .iter()
            .all(|request| request.contains("sig=c2VjcmV0")),
        "the last good one"
    );
}

#[tokio::test]
async fn a_google_store_creates_only_what_is_not_there() {
    let taken = || error(412, "PreconditionFailed");
    let head = answer(
        200,
        &[
            ("Content-Length", "14"),
            ("ETag", "\"1\""),
            ("Last-Modified", "Fri, 21 Nov 2025 13:00:00 GMT"),
            ("x-goog-meta-ferry_name", "x.json"),
        ],
        "",
    );
    let server = Loopback::start(vec![answer(200, &[("ETag", "\"1\"")], ""), taken(), head]);
    let store = config::Store::Gcs {
        bucket: "logs".into(),
        endpoint: Some(server.url()),
    };
    let sink = sink(store, &Ear::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    }
    let requests = server.requests();
    assert!(
        requests[0]
            .to_ascii_lowercase()
            .contains("x-goog-if-generation-match: 0")
    );
    assert!(
        requests[2]
            .to_ascii_lowercase()
            .contains("accept-encoding: gzip"),
        "{}",
        requests[2]
    );
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used_except_where_no_proxy_matches() {
    const NAME: &str =
        "sink::blob::tests::the_proxy_of_the_environment_is_used_except_where_no_proxy_matches";
    let proxy = Loopback::start(vec![created()]);
    if !with_environment(
        NAME,
        &[("HTTP_PROXY", &proxy.url()), ("NO_PROXY", "127.0.0.1")],
    ) {
        let request = proxy.requests().remove(0);
        assert!(
            request.starts_with("PUT http://blob.invalid/devstoreaccount1/logs/x HTTP"),
            "{request}"
        );
        return;
    }
    let direct = Loopback::start(vec![created()]);
    for url in ["http://blob.invalid".to_owned(), direct.url()] {
        let sink = sink(azure(url, false, well_known()), &Ear::default()).unwrap();
        assert_eq!(put(&sink, "x", BODY).await, Outcome::Delivered);
    }
}

#[test]
fn invalid_addresses_are_reported_with_their_key() {
    let s3 = |bucket: &str, endpoint: Option<&str>| config::Store::S3 {
        bucket: bucket.into(),
        aws: config::Aws {
            endpoint: endpoint.map(str::to_owned),
            ..config::Aws::default()
        },
    };
    let table = [
        (s3("a/b", None), "url", "'a/b'"),
        (s3("", None), "url", "''"),
        (s3("b", Some("minio:9000")), "endpoint", "'minio:9000'"),
        (
            azure("http://h/?sig=c2VjcmV0".into(), false, well_known()),
            "endpoint",
            "query",
        ),
        (
            azure("https://me:c2VjcmV0@h:99999".into(), false, well_known()),
            "endpoint",
            "'https://***'",
        ),
        (
            azure("https://:c2VjcmV0@h".into(), false, well_known()),
            "endpoint",
            "user",
        ),
        (
            azure("https://h/#c2VjcmV0".into(), false, well_known()),
            "endpoint",
            "query",
        ),
        (
            config::Store::Gcs {
                bucket: "b".into(),
                endpoint: Some("h".into()),
            },
            "endpoint",
            "'h'",
        ),
    ];
    for (store, key, words) in table {
        let problem = sink(store, &Ear::default()).err().unwrap();
        assert_eq!(problem.key, key);
        assert!(
            problem.message.contains(words) && !problem.message.contains("c2Vj"),
            "{problem:?}"
        );
    }
}

/// Responses of a store or an intermediary that concern the destination, not the object.
const ABOUT_THE_DESTINATION: &[(u16, Option<&str>)] = &[
    (400, None),
    (411, None),
    (413, None),
    (414, None),
    (422, None),
    (431, None),
    (400, Some("CodeOfTheFuture")),
    (413, Some("CodeOfTheFuture")),
    (400, Some("InvalidArgument")),
    (400, Some("InvalidRequest")),
];

/// A gateway's page, or the store's own error.
fn refusal(status: u16, code: Option<&str>) -> Reply {
    match code {
        Some(code) => error(status, code),
        None => answer(status, &[], "<html><h1>No</h1></html>"),
    }
}

/// Puts an object for each response, and compares the outcomes with the expected one.
async fn judge(
    store: impl Fn(String) -> config::Store,
    name: &str,
    answers: &[(u16, Option<&str>)],
    expected: &str,
) {
    for (status, code) in answers {
        let server = Loopback::start(vec![refusal(*status, *code)]);
        let sink = sink(store(server.url()), &Ear::default()).unwrap();
        let outcome = told(&put(&sink, name, BODY).await);
        assert!(
            outcome.starts_with(expected),
            "{status} {code:?}: {outcome}"
        );
    }
}

const HELD: &str = "retry Configuration ";
const GIVEN_UP: &str = "rejected Record ";

#[tokio::test]
async fn azure_gives_an_object_up_only_by_codes_that_name_it() {
    let store = |url| azure(url, false, well_known());
    judge(store, "x.json", ABOUT_THE_DESTINATION, HELD).await;
    // These codes are also used for an invalid name of a container.
    let names = [
        (400, Some("InvalidResourceName")),
        (400, Some("OutOfRangeInput")),
        (400, Some("InvalidUri")),
    ];
    judge(store, "x.json", &names, HELD).await;
    let others = [
        (400, Some("AccountRequiresHttps")),
        (400, Some("InvalidHeaderValue")),
        (400, Some("KeyTooLongError")),
    ];
    judge(store, "x.json", &others, HELD).await;

    judge(
        store,
        "x.json",
        &[(413, Some("RequestBodyTooLarge"))],
        GIVEN_UP,
    )
    .await;
    judge(store, &"x".repeat(1_025), &names[..2], GIVEN_UP).await;
    judge(store, &"/x".repeat(255), &names[..2], GIVEN_UP).await;
}

#[tokio::test]
async fn s3_gives_an_object_up_only_by_codes_that_name_it() {
    const NAME: &str = "sink::blob::tests::s3_gives_an_object_up_only_by_codes_that_name_it";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    judge(s3, "x.json", ABOUT_THE_DESTINATION, HELD).await;
    let others = [
        (400, Some("KMS.DisabledException")),
        (400, Some("InvalidURI")),
        (400, Some("MetadataTooLarge")),
        (400, Some("MissingContentLength")),
        (400, Some("RequestBodyTooLarge")),
        (403, Some("KeyTooLongError")),
    ];
    judge(s3, "x.json", &others, HELD).await;
    let names = [
        (400, Some("KeyTooLongError")),
        (400, Some("EntityTooLarge")),
    ];
    judge(s3, "x.json", &names, GIVEN_UP).await;
}

#[tokio::test]
async fn google_gives_an_object_up_only_by_codes_that_name_it() {
    let store = |url| config::Store::Gcs {
        bucket: "logs".into(),
        endpoint: Some(url),
    };
    judge(store, "x.json", ABOUT_THE_DESTINATION, HELD).await;
    let others = [
        (400, Some("CloudKmsDisabledKey")),
        (400, Some("InvalidURI")),
        (400, Some("KeyTooLongError")),
    ];
    judge(store, "x.json", &others, HELD).await;
    let names = [(400, Some("KeyTooLong")), (400, Some("EntityTooLarge"))];
    judge(store, "x.json", &names, GIVEN_UP).await;
}

#[tokio::test]
async fn held_data_is_delivered_once_the_destination_is_fixed() {
    const NAME: &str = "sink::blob::tests::held_data_is_delivered_once_the_destination_is_fixed";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let server = Loopback::start(vec![error(400, "InvalidRequest"), created()]);
    let sink = sink(s3(server.url()), &Ear::default()).unwrap();
    let held = told(&put(&sink, "x.json", BODY).await);
    assert_eq!(
        held,
        "retry Configuration InvalidRequest: It is so (request id r-1)"
    );
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    let puts = server.requests();
    assert_eq!(puts.len(), 2);
    assert!(
        puts.iter()
            .all(|put| put.starts_with("PUT /logs/x.json HTTP")),
        "{puts:?}"
    );
}

const AWS_KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKID"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_REGION", "eu-west-1"),
];

fn s3(url: String) -> config::Store {
    config::Store::S3 {
        bucket: "logs".into(),
        aws: config::Aws {
            endpoint: Some(url),
            ..config::Aws::default()
        },
    }
}

#[tokio::test]
async fn a_few_interim_responses_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let last =
        "HTTP/1.1 201 Created\r\nETag: \"1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let server = Loopback::start(vec![Reply::Text(interim.repeat(8) + last)]);
    let sink = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
}

/// A gateway may redirect to a login page, whose status 200 does not acknowledge the object.
#[tokio::test]
async fn no_redirect_is_followed_and_none_delivers() {
    const ELSEWHERE: &str = "is at another address";
    for (status, region, says) in [
        (
            301,
            Some("eu-central-1"),
            "another address (region eu-central-1)",
        ),
        (
            307,
            Some("eu-central-1"),
            "another address (region eu-central-1)",
        ),
        (301, None, "to '/login'"),
        (302, None, "to '/login'"),
        (303, None, "to '/login'"),
        (307, None, "to '/login'"),
        (308, None, "to '/login'"),
    ] {
        let mut headers = vec![("Location", "/login")];
        headers.extend(region.map(|region| ("x-amz-bucket-region", region)));
        let server = Loopback::start(vec![answer(status, &headers, ""), created()]);
        let sink = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
        let told = told(&put(&sink, "x.json", BODY).await);
        let expected = format!("retry Configuration HTTP {status}");
        assert!(told.starts_with(&expected) && told.contains(says), "{told}");
        assert_eq!(told.contains(ELSEWHERE), region.is_some(), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_endless_response_is_abandoned_and_delivers_nothing() {
    let taken = || error(409, "BlobAlreadyExists");
    let unnamed = || object(BODY.len(), None);
    let etag = [("ETag", "\"1\"")];
    let get = [
        ("ETag", "\"1\""),
        ("Last-Modified", "Fri, 21 Nov 2025 13:00:00 GMT"),
        ("Content-Length", "1099511627776"),
    ];
    let code = [("x-ms-error-code", "ContainerBeingDisabled")];
    let body = std::str::from_utf8(BODY).unwrap();
    let headers = Reply::Endless("HTTP/1.1 201 X\r\n".into(), "X-More: 1\r\n".repeat(1_000));
    let header = Reply::Endless("HTTP/1.1 201 X\r\nX-More: ".into(), "x".repeat(64 * 1024));
    let interim = Reply::Endless(String::new(), "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000));
    let stories = [
        (
            "an error",
            vec![endless(500, &[], "")],
            "ambiguous Transient HTTP 500",
        ),
        (
            "a refusal",
            vec![endless(400, &code, "")],
            "retry Configuration ContainerBeingDisabled",
        ),
        (
            "a redirect",
            vec![endless(302, &[], "")],
            "retry Configuration HTTP 302",
        ),
        (
            "a success",
            vec![endless(201, &etag, "")],
            "ambiguous Transient too_long: the response of 127.0.0.1:",
        ),
        (
            "an object that begins as ours",
            vec![taken(), unnamed(), endless(200, &get, body)],
            "ambiguous Transient too_long: ",
        ),
        (
            "an object that is another's",
            vec![taken(), unnamed(), endless(200, &get, "other"), created()],
            "delivered",
        ),
        (
            "a body where there is none",
            vec![
                taken(),
                endless(
                    200,
                    &[
                        ("ETag", "\"1\""),
                        ("Last-Modified", get[1].1),
                        ("Content-Length", "14"),
                        ("x-ms-meta-ferry_name", "x.json"),
                    ],
                    "",
                ),
            ],
            "delivered",
        ),
        (
            "many headers",
            vec![headers],
            "ambiguous Transient interrupted: ",
        ),
        (
            "one long header",
            vec![header],
            "ambiguous Transient interrupted: ",
        ),
        (
            "interim answers",
            vec![interim],
            "ambiguous Transient too_long: ",
        ),
    ];
    for (name, script, expected) in stories {
        let server = Loopback::start(script);
        let store = azure(server.url(), false, well_known());
        let sink = sink(store, &Ear::default()).unwrap();
        let outcome = told(&put(&sink, "x.json", BODY).await);
        assert!(outcome.starts_with(expected), "{name}: {outcome}");
        let sent = server.sent();
        assert!(
            sent > 0 && sent < IN_BUFFERS,
            "{name}: {sent} bytes were read"
        );
    }
}

#[tokio::test]
async fn every_put_to_s3_carries_the_checksum_of_its_body() {
    const NAME: &str = "sink::blob::tests::every_put_to_s3_carries_the_checksum_of_its_body";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let server = Loopback::start(vec![created()]);
    let sink = sink(s3(server.url()), &Ear::default()).unwrap();
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    let put = server.requests().remove(0);
    let header = |name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        put.lines().find_map(value).unwrap_or_default()
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, BODY);
    let base64 = base64_simd::STANDARD.encode_to_string(digest.as_ref());
    assert_eq!(header("x-amz-checksum-sha256"), base64, "{put}");
    let hex = crate::codec::json::hex(digest.as_ref());
    assert_eq!(
        header("x-amz-content-sha256"),
        hex,
        "the same hash, for the signature"
    );
    let authorization = header("authorization");
    assert!(
        authorization.contains(";x-amz-checksum-sha256;"),
        "{authorization}"
    );
}

#[tokio::test]
async fn a_store_that_returns_no_etag_delivers() {
    const NAME: &str = "sink::blob::tests::a_store_that_returns_no_etag_delivers";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let server = Loopback::start(vec![answer(200, &[], "")]);
    let sink = sink(s3(server.url()), &Ear::default()).unwrap();
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    assert_eq!(server.requests().len(), 1);
}

#[cfg(feature = "check")]
#[tokio::test]
async fn what_is_missing_is_known_by_the_stores_own_code_alone() {
    use super::probe::Absent;
    let table = [
        (error(404, "BlobNotFound"), Ok(Absent::Object)),
        (error(404, "ContainerNotFound"), Ok(Absent::Container)),
        (
            answer(404, &[], "<html>no such page</html>"),
            Err(Some(404)),
        ),
        (error(403, "AuthorizationFailure"), Err(Some(403))),
    ];
    for (reply, expected) in table {
        let server = Loopback::start(vec![reply]);
        let sink = sink(azure(server.url(), false, well_known()), &Ear::default()).unwrap();
        let absent = sink.probe("x").await.map_err(|refusal| refusal.status);
        assert_eq!(absent, expected);
    }
}
