//! Any configuration: no panic; either problems that name their key, or a configuration; the same when read
//! twice; and never a secret in what is told.
//!
//! An input is text: lines of a key and its value, as in the host's own file. `<secret>` stands for a secret.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ferry::config::{
    AzureAuth, Config, Destination, Problem, Properties, SecretSource, Store, check_ca, keys,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let keys = Keys::read(&String::from_utf8_lossy(data));
    let read = Config::read(&keys);
    match &read {
        Ok(config) => check_config(config),
        Err(problems) => check_problems(problems),
    }
    let told = |read: &Result<Config, Vec<Problem>>| format!("{read:?}");
    let once = told(&read);
    hides_the_secret(&once);
    assert_eq!(once, told(&Config::read(&keys)), "read twice");
    if let Some(pem) = keys.0.get("tls_ca_file") {
        // Instead of more files: what stands in one.
        let _ = check_ca(pem.as_bytes());
    }
});

/// What is put in the place of every secret; nothing that reads a configuration writes it by itself.
const SECRET: &str = "~9~4~7~1~";

/// Keys whose value may hold a secret; of others the whole value is one.
const URLS: [&str; 2] = ["endpoint", "sts_endpoint"];

/// Files that a value may name: no other file of the machine is read.
const FILES: [&str; 5] = ["ca.pem", "secret", "empty", "no.pem", "missing"];

/// Every name that is read, in order.
static KNOWN: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let mut names: Vec<&str> = keys::ALL.iter().flat_map(|key| key.names()).collect();
    names.sort_unstable();
    names
});

struct Keys(BTreeMap<String, String>);

impl Properties for Keys {
    fn get(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }
}

impl Keys {
    fn read(text: &str) -> Keys {
        let pairs = text.lines().map(|line| {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            // A key that is not known is one that is: no line is wasted.
            let key = match KNOWN.binary_search(&key) {
                Ok(at) => KNOWN[at],
                Err(_) => KNOWN[key.bytes().map(usize::from).sum::<usize>() % KNOWN.len()],
            };
            (key.to_owned(), harmless(key, value))
        });
        Keys(pairs.collect())
    }
}

/// `value` as it may be read: secrets are ours, and so are files.
fn harmless(key: &str, value: &str) -> String {
    let file = |name: &str| {
        let number: usize = name.bytes().map(usize::from).sum();
        let name = FILES.iter().find(|file| **file == name);
        let name = name.unwrap_or(&FILES[number % FILES.len()]);
        format!("{}/files/{name}", env!("CARGO_MANIFEST_DIR"))
    };
    let mut value = value.to_owned();
    while value.contains(SECRET) {
        value = value.replace(SECRET, "");
    }
    let trimmed = value.trim();
    match key {
        "tls_ca_file" if trimmed.is_empty() => value,
        "tls_ca_file" => file(trimmed),
        _ if keys::find(key).is_some_and(|key| key.value.is_secret()) => {
            match trimmed.strip_prefix('@') {
                Some(name) => format!("@{}", file(name)),
                None if trimmed.is_empty() => value,
                // The account and the addresses beside it are no secret.
                None if key == "connection_string" => format!("AccountKey={SECRET};{value}"),
                None => value + SECRET,
            }
        }
        _ if URLS.contains(&key) => with_secrets(&value),
        // A user in place of the bucket; a prefix may hold any character, and so may a folder.
        "url" if begins_with_a_user(&value) && !value.contains("file://") => with_secrets(&value),
        _ => value,
    }
}

/// Whether a user follows the scheme, rather than a container with such characters somewhere behind it.
fn begins_with_a_user(value: &str) -> bool {
    let rest = value.split_once("://");
    rest.is_some_and(|(_, rest)| rest.starts_with(':'))
}

/// An address with a secret in front of whatever may end one: what begins a query, a fragment or a path in the middle of a
/// user's password, the `@` behind it, and the end of a query or a fragment.
fn with_secrets(value: &str) -> String {
    let host = value.find("://").map_or(0, |at| at + 3);
    let user = value.rfind('@').map_or(host..host, |end| host..end + 1);
    let mut out = String::new();
    for (at, c) in value.char_indices() {
        if user.contains(&at) && "?#/@".contains(c) {
            out += SECRET;
        }
        out.push(c);
    }
    if value.contains(['?', '#']) {
        out += SECRET;
    }
    out
}

fn hides_the_secret(told: &str) {
    assert!(!told.contains(SECRET), "a secret is told: {told}");
}

fn check_problems(problems: &[Problem]) {
    assert!(!problems.is_empty());
    for problem in problems {
        let known = KNOWN.contains(&problem.key);
        assert!(known, "no such key: {problem}");
        assert!(!problem.message.trim().is_empty(), "{problem}");
        hides_the_secret(&problem.to_string());
    }
}

fn check_config(config: &Config) {
    let summary = config.summary();
    hides_the_secret(&summary);
    assert!(!summary.is_empty());
    assert!((4_000_000..=64_000_000_000).contains(&config.memory_limit));
    assert!((1..=3_600).contains(&config.flush_deadline.as_secs()));
    assert!((1..=600).contains(&config.exit_deadline.as_secs()));
    assert!(config.concurrency.is_none_or(|n| (1..=64).contains(&n)));
    assert!(!config.dead_letter_dir.as_os_str().is_empty());
    match &config.destination {
        Destination::Firehose(firehose) => {
            is_an_address(firehose.aws.endpoint.as_deref());
            is_an_address(firehose.aws.sts_endpoint.as_deref());
            if let Some(pem) = &firehose.ca_pem {
                check_ca(pem).expect("checked");
            }
        }
        Destination::Blob {
            blob, extension, ..
        } => {
            assert!(extension.starts_with('.'));
            match &blob.store {
                Store::File(_) => {}
                Store::S3 { aws, bucket } => {
                    assert!(!bucket.is_empty());
                    is_an_address(aws.endpoint.as_deref());
                }
                Store::Gcs { endpoint, .. } => is_an_address(endpoint.as_deref()),
                Store::Azure(azure) => {
                    assert!((3..=63).contains(&azure.container.len()));
                    is_an_address(azure.endpoint.as_deref());
                    let source = match &azure.auth {
                        AzureAuth::SharedKey(source)
                        | AzureAuth::Sas(source)
                        | AzureAuth::ConnectionString(source)
                        | AzureAuth::ClientSecret { secret: source, .. } => Some(source),
                        AzureAuth::ManagedIdentity { .. } | AzureAuth::WorkloadIdentity { .. } => {
                            None
                        }
                    };
                    if let Some(SecretSource::Value(secret)) = source {
                        assert!(!secret.expose().trim().is_empty());
                    }
                }
            }
        }
    }
}

/// What passed as an address is one to the clients that will be made for it.
fn is_an_address(endpoint: Option<&str>) {
    if let Some(endpoint) = endpoint {
        let uri = endpoint.parse::<http::Uri>();
        assert!(uri.is_ok(), "{endpoint}: {uri:?}");
    }
}
