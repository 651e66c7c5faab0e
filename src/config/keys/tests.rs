use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;
use crate::config::reader::Reader;
use crate::config::{Config, Destination, Problem};

type Settings = BTreeMap<&'static str, String>;

fn read(settings: &Settings) -> Result<Config, Vec<Problem>> {
    Config::read(&|key: &str| settings.get(key).cloned())
}

/// Each kind of destination, and the keys that configure it.
const PLACES: [(Place, &[(&str, &str)]); 5] = [
    (Place::Firehose, &[("delivery_stream", "s-{tag}")]),
    (Place::File, &[("url", "file:///x")]),
    (Place::S3, &[("url", "s3://x")]),
    (Place::Gcs, &[("url", "gs://x")]),
    (
        Place::Azure,
        &[
            ("url", "az://logs"),
            ("account_name", "a"),
            ("shared_key", "a2V5"),
        ],
    ),
];

/// Returns the settings that a key requires; an empty value removes one.
fn required(key: &Key) -> &'static [(&'static str, &'static str)] {
    match key.name {
        "sse_kms_key_id" | "sse_bucket_key" => &[("sse", "aws:kms")],
        "external_id" => &[("role_arn", "arn:x")],
        "compression_level" | "gzip_members" => &[("compression", "gzip")],
        "missing_target_after" => &[("missing_target", "dead_letter")],
        "missing_target_fallback" => &[("missing_target", "fallback")],
        "time_key_format" => &[("time_key", "t")],
        "parquet_columns" | "parquet_rest" => &[("format", "parquet")],
        "sas_token" => &[("auth_type", "sas")],
        "tenant_id" | "client_id" => &[("auth_type", "workload_identity"), ("shared_key", "")],
        "auth_type" => &[("shared_key", "")],
        "client_secret" => &[
            ("auth_type", "client_secret"),
            ("tenant_id", "t"),
            ("client_id", "c"),
            ("shared_key", ""),
        ],
        "connection_string" => &[("shared_key", "")],
        _ => &[],
    }
}

/// Returns a valid value of a key.
fn value(key: &Key) -> String {
    match key.name {
        "connection_string" => "AccountName=a;AccountKey=a2V5".into(),
        "format" => "json_lines".into(),
        "blob_type" => "block".into(),
        _ if key.value.is_secret() => "a2V5".into(),
        _ if !key.example.is_empty() => key.example.into(),
        _ => "on".into(),
    }
}

/// Reads a configuration with `name` set to `value` at a destination.
fn read_with(
    key: &Key,
    name: &'static str,
    value: &str,
    base: &[(&'static str, &'static str)],
    spool: &str,
) -> (Settings, Result<Config, Vec<Problem>>) {
    let mut settings: Settings = Settings::new();
    settings.insert("spool", spool.to_owned());
    for (other, value) in base.iter().chain(required(key)) {
        match value.is_empty() {
            true => settings.remove(other),
            false => settings.insert(other, (*value).to_owned()),
        };
    }
    settings.insert(name, value.to_owned());
    let read = read(&settings);
    (settings, read)
}

/// Secrets, each with the part that must not be shown.
const SECRETS: [(&str, &str); 12] = [
    ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
        "Eby8vdM02xNO",
    ),
    (
        "?sv=2022-11-02&ss=b&sig=c2VjcmV0LXNpZw%3D%3D",
        "c2VjcmV0LXNpZw",
    ),
    (
        "sv=2022-11-02&ss=b&sig=c2VjcmV0LXNpZw%3D%3D",
        "c2VjcmV0LXNpZw",
    ),
    (
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0LXNpZw==",
        "c2VjcmV0LXNpZw",
    ),
    ("az://logs/app?sv=1&sig=c2VjcmV0LXNpZw", "c2VjcmV0LXNpZw"),
    ("https://user:hunter-two@example.com", "hunter-two"),
    ("http://user:hunter-two@127.0.0.1:9/x", "hunter-two"),
    (
        "https://example.com/?X-Amz-Signature=deadbeef01",
        "deadbeef01",
    ),
    ("user:hunter-two@example.com", "hunter-two"),
    (
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "0123456789abcdef",
    ),
    ("password=hunter-two", "hunter-two"),
];

#[test]
fn no_secret_in_the_wrong_key_is_shown() {
    for (place, base) in PLACES {
        for key in ALL.iter().filter(|key| key.scope.includes(place)) {
            for (secret, part) in SECRETS {
                for name in key.names() {
                    let (_, read) = read_with(key, name, secret, base, "on");
                    let shown = match read {
                        Ok(_) => continue,
                        Err(problems) => format!("{problems:?}"),
                    };
                    assert!(!shown.contains(part), "{name}: {shown}");
                }
            }
        }
    }
}

#[test]
fn credentials_in_an_address_are_refused_for_every_destination() {
    let addresses = [
        "https://user:hunter-two@example.com",
        "https://user@example.com",
        "https://user%3Ahunter-two%40example.com",
        "https://example.com/?sig=hunter-two",
        "https://example.com/#hunter-two",
    ];
    for (place, base) in PLACES {
        for key in [&ENDPOINT, &STS_ENDPOINT] {
            if !key.scope.includes(place) {
                continue;
            }
            for address in addresses {
                let (_, read) = read_with(key, key.name, address, base, "on");
                let problems = read.expect_err(address);
                assert!(problems.iter().any(|problem| problem.key == key.name));
                assert!(!format!("{problems:?}").contains("hunter-two"));
            }
        }
    }
    for url in [
        "az://logs/app?sig=hunter-two",
        "s3://logs/app?X-Amz-Signature=hunter-two",
        "gs://logs/app#hunter-two",
        "s3://user:hunter-two@logs/app",
        "az://logs/user:hunter-two@app",
        "file:///logs?sig=hunter-two",
    ] {
        let settings = Settings::from([("url", url.to_owned())]);
        let problems = read(&settings).expect_err(url);
        assert!(problems.iter().any(|problem| problem.key == "url"), "{url}");
        assert!(!format!("{problems:?}").contains("hunter-two"), "{url}");
    }
}

#[test]
fn no_two_rows_have_the_same_name() {
    let ours = ALL.iter().flat_map(|key| key.names());
    let hosts = HOST.iter().map(|key| key.name);
    let foreign = FOREIGN.iter().map(|key| key.name);
    let mut seen = BTreeSet::new();
    for name in ours.chain(hosts).chain(foreign) {
        assert!(seen.insert(name.to_lowercase()), "{name} comes twice");
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
        assert!(!name.is_empty() && name.chars().all(fits), "{name}");
    }
    for name in ALL.iter().flat_map(|key| key.names()) {
        assert_eq!(name, name.to_lowercase());
        assert!(find_host(name).is_none(), "the host takes {name}");
    }
}

#[test]
fn every_row_is_documented() {
    for key in ALL {
        let name = key.name;
        assert!(!key.doc.is_empty(), "{name}");
        assert!(
            !key.doc.ends_with('.'),
            "{name}: a cell ends without a full stop"
        );
        assert!(!key.value.words().is_empty(), "{name}");
        assert_eq!(
            key.section == Section::Refused,
            key.instead.is_some(),
            "{name}"
        );
        // Keys with one value, or for compatibility only, need no example.
        let plain = [
            "format",
            "blob_type",
            "auto_retry_requests",
            "compress_blob",
        ];
        let needs = key.instead.is_none() && !plain.contains(&name);
        assert_eq!(!key.example.is_empty(), needs, "{name}: example");
    }
}

#[test]
fn each_key_is_accepted_or_refused_at_each_destination() {
    for (place, base) in PLACES {
        for &key in ALL {
            if place == Place::Firehose
                && ["url", "container_name", "account_name", "connection_string"]
                    .contains(&key.name)
                || place != Place::Firehose
                    && ["delivery_stream", "destination"].contains(&key.name)
                || ["spool", "destination", "url", "container_name", "bucket"].contains(&key.name)
            {
                continue; // They determine the destination; see `kind` and its tests.
            }
            for spool in ["on", "off"] {
                let (settings, read) = read_with(key, key.name, &value(key), base, spool);
                let messages: Vec<String> = read
                    .err()
                    .into_iter()
                    .flatten()
                    .filter(|problem| problem.key == key.name)
                    .map(|problem| problem.message)
                    .collect();
                let wanted = if key.instead.is_some() {
                    Some("does nothing in this version")
                } else if !key.scope.includes(place) {
                    Some(match (place, key.scope) {
                        (Place::Firehose, _) => "belongs to a blob destination",
                        (_, Scope::Firehose) => "belongs to a Firehose destination",
                        _ => "does nothing for ",
                    })
                } else if key.spooled && spool == "off" {
                    Some("needs spool on")
                } else if key.name == "tls_ca_file" {
                    Some("cannot be read")
                } else {
                    None
                };
                match wanted {
                    Some(words) => {
                        assert_eq!(messages.len(), 1, "{settings:?}: {messages:?}");
                        assert!(messages[0].contains(words), "{settings:?}: {messages:?}");
                    }
                    None => assert!(messages.is_empty(), "{place:?} {settings:?}: {messages:?}"),
                }
            }
        }
    }
}

#[test]
fn an_alias_means_what_its_key_means_and_contradicts_it_only_once() {
    let base = |key: &Key| match key.scope {
        Scope::Firehose => PLACES[0].1,
        _ => PLACES[1].1,
    };
    let mut aliases = 0;
    for &key in ALL {
        for &alias in key.aliases {
            aliases += 1;
            let value = value(key);
            let (_, named) = read_with(key, key.name, &value, base(key), "on");
            let (_, aliased) = read_with(key, alias, &value, base(key), "on");
            let named = named.expect(key.name);
            assert_eq!(
                format!("{named:?}"),
                format!("{:?}", aliased.expect(alias)),
                "{alias}"
            );

            let other = match value.as_str() {
                "on" => "off",
                _ => "7m",
            };
            let (mut settings, _) = read_with(key, alias, other, base(key), "on");
            settings.insert(key.name, value);
            let problems = read(&settings).expect_err(alias);
            let words = problems.iter().find(|problem| problem.key == key.name);
            let words = &words
                .unwrap_or_else(|| panic!("{alias}: {problems:?}"))
                .message;
            assert!(
                words.contains(alias) && words.contains("keep one of them"),
                "{words}"
            );
        }
    }
    assert_eq!(aliases, 8);
}

#[test]
fn defaults_lie_in_their_range_and_what_lies_outside_is_refused() {
    let sizes = [
        &SPOOL_LIMIT,
        &MEMORY_LIMIT,
        &DEAD_LETTER_LIMIT,
        &BLOB_MAX_SIZE,
    ];
    let times = [
        &FLUSH_DEADLINE,
        &EXIT_DEADLINE,
        &LINGER,
        &BLOB_MAX_AGE,
        &MISSING_TARGET_AFTER,
        &READY_AFTER,
    ];
    let starting = |word: &str| {
        ALL.iter()
            .filter(|key| key.value.words().starts_with(word))
            .count()
    };
    assert_eq!(starting("size, "), sizes.len());
    assert_eq!(
        starting("time, "),
        times.len() + 1,
        "and metrics_log_interval"
    );

    let refused = |key: &'static Key, value: String| {
        let base = match key.scope {
            Scope::Firehose => PLACES[0].1,
            _ => PLACES[1].1,
        };
        let (_, read) = read_with(key, key.name, &value, base, "on");
        let problems = read.err().unwrap_or_default();
        problems.iter().any(|problem| {
            problem.key == key.name && problem.message.contains(&format!("'{value}' is not a "))
        })
    };
    for key in sizes {
        let (least, most) = (*key.value.range.start(), *key.value.range.end());
        assert!(key.value.range.contains(&key.value.default), "{}", key.name);
        assert!(
            !refused(key, least.to_string()) && refused(key, (least - 1).to_string()),
            "{}",
            key.name
        );
        assert!(
            !refused(key, most.to_string()) && refused(key, (most + 1).to_string()),
            "{}",
            key.name
        );
    }
    for key in times {
        let (least, most) = (*key.value.range.start(), *key.value.range.end());
        assert!(key.value.range.contains(&key.value.default), "{}", key.name);
        assert!(!refused(key, least.to_string()), "{}", key.name);
        assert!(
            least == 0 || refused(key, (least - 1).to_string()),
            "{}",
            key.name
        );
        assert!(
            !refused(key, most.to_string()) && refused(key, (most + 1).to_string()),
            "{}",
            key.name
        );
    }
}

/// Properties whose values must not be read.
struct Names(HashSet<String>);

impl Names {
    fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Names {
        Names(names.into_iter().map(Into::into).collect())
    }
}

impl Properties for Names {
    fn get(&self, key: &str) -> Option<String> {
        panic!("the value of {key} was read")
    }

    fn is_set(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

#[test]
fn a_key_one_edit_away_is_found_and_the_nearest_known_one_is_named() {
    for known in effective_names() {
        let name = known.to_lowercase();
        let mut tried = HashSet::new();
        misspellings(&name, &mut |edit| {
            tried.insert(edit.to_owned());
        });
        for at in 0..name.len() {
            let (head, tail) = name.split_at(at);
            let mut swapped: Vec<char> = name.chars().collect();
            if at + 1 < swapped.len() {
                swapped.swap(at, at + 1);
            }
            let edits = [
                format!("{head}x{tail}"),
                format!("{head}{}", &tail[1..]),
                format!("{head}q{}", &tail[1..]),
                swapped.into_iter().collect(),
            ];
            for edit in edits.iter().filter(|edit| is_idle(edit)) {
                assert!(tried.contains(edit), "{edit}, for {name}");
                let near = nearest(edit).expect(edit).to_lowercase();
                let distance = strsim::damerau_levenshtein(edit, &near);
                assert!(
                    near == name || distance <= 1,
                    "{edit} is {name} and not {near}"
                );
            }
        }
        let edit = format!("{name}x");
        let found = idle_keys(&Names::new([edit.as_str()]));
        assert_eq!(found.len(), 1, "{edit}: {found:?}");
        let message = format!("{edit} is not known and does nothing; did you mean {known}?");
        assert_eq!((&found[0].name, &found[0].message), (&edit, &message));
    }
}

#[test]
fn other_separators_are_found() {
    for (name, meant) in [
        ("deadletterdir", "dead_letter_dir"),
        ("dead-letter-dir", "dead_letter_dir"),
        ("blob.max.size", "blob_max_size"),
        ("retrylimit", "Retry_Limit"),
    ] {
        let found = idle_keys(&Names::new([name]));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(
            found[0].message.contains(&format!("did you mean {meant}?")),
            "{found:?}"
        );
    }
}

#[test]
fn known_keys_are_not_reported() {
    let groups = [
        "tls.verify",
        "net.keepalive",
        "net.dns.mode",
        "oauth2.enable",
    ];
    let ours = ALL.iter().flat_map(|key| key.names());
    let hosts = HOST.iter().map(|key| key.name);
    let known = ours.chain(hosts).chain(groups).map(str::to_lowercase);
    assert_eq!(idle_keys(&Names::new(known)), []);
    for key in FOREIGN.iter().filter(|key| !key.is_refused()) {
        let found = idle_keys(&Names::new([key.name]));
        assert_eq!(found.len(), 1, "{}: {found:?}", key.name);
        assert!(found[0].message.contains(key.why), "{found:?}");
    }
}

#[test]
fn a_row_of_the_reference_contains_everything_in_the_table() {
    let reference = reference();
    for row in [
        "| `memory_limit` | size, 4M to 64G | `64M` | all | the memory for lines",
        "| `blob_max_age` | time, 1s to 1d | `5m`, `15m` for `format parquet` | blob stores | with `spool on`: an object is sealed",
        "(alias: `upload_timeout`) | `1m` |",
        "| `path` | template with strftime | `{tag}/%Y/%m/%d/%H` | blob stores |",
        "| `auto_create_container` | `on` or `off` | `on` | `az://` |",
        "`{record.app|none}`",
        "| `upload_file_size` | the size of `azure_blob`'s files on disk | use blob_max_size",
        "| `net.…` | does nothing here: remove it",
    ] {
        assert!(reference.contains(row), "{row} in {reference}");
    }
    for name in ALL.iter().map(|key| key.name) {
        assert_eq!(
            reference.matches(&format!("\n| `{name}` |")).count(),
            1,
            "{name}"
        );
    }
}

/// Variants of each destination, so that each of its keys takes effect in one of them.
const VARIANTS: [&[(&str, &str)]; 8] = [
    &[("spool", "on")],
    &[("spool", "off")],
    &[("auth_type", "key")],
    &[("auth_type", "sas"), ("sas_token", "s")],
    &[("auth_type", "managed_identity"), ("shared_key", "")],
    &[("auth_type", "workload_identity"), ("shared_key", "")],
    &[
        ("auth_type", "client_secret"),
        ("client_secret", "s"),
        ("tenant_id", "t"),
        ("client_id", "c"),
        ("shared_key", ""),
    ],
    &[
        ("connection_string", "AccountName=a;AccountKey=a2V5"),
        ("shared_key", ""),
    ],
];

#[test]
fn every_row_is_used_at_each_destination_that_it_applies_to() {
    for (place, base) in PLACES {
        let mut used = BTreeSet::new();
        for variant in VARIANTS {
            let of_azure =
                |(name, _): &(&str, &str)| find(name).is_some_and(|key| key.scope == Scope::Azure);
            if place != Place::Azure && variant.iter().any(of_azure) {
                continue;
            }
            let mut settings = Settings::new();
            for (key, value) in base.iter().chain(variant) {
                match value.is_empty() {
                    true => settings.remove(key),
                    false => settings.insert(key, (*value).to_owned()),
                };
            }
            let properties = |key: &str| settings.get(key).cloned();
            let mut reader = Reader::new(&properties);
            assert!(reader.config().is_some(), "{settings:?}");
            used.extend(reader.into_used());
        }
        let idle: Vec<&str> = ALL
            .iter()
            .filter(|key| key.instead.is_none() && key.scope.includes(place))
            .map(|key| key.name)
            .filter(|key| !used.contains(key))
            .collect();
        assert!(idle.is_empty(), "{place:?}: nothing uses {idle:?}");
    }
}

#[test]
fn no_key_marks_the_lines_of_a_replay() {
    let config = Config::read(&|key: &str| match key {
        "url" => Some("file:///objects".to_owned()),
        "log_key" => Some("record".to_owned()),
        _ if find(key).is_none() && find_foreign(key).is_none() => Some("on".to_owned()),
        _ => None,
    });
    let Ok(Destination::Blob { blob, .. }) = config.map(|it| it.destination) else {
        panic!("a blob store");
    };
    assert_eq!(blob.content_type, "text/plain; charset=utf-8");
}
