use proptest::prelude::*;

use super::value::parse_time;
use super::*;

/// Keys, or variables, with their values.
type Keys<'a> = &'a [(&'a str, &'a str)];

fn read(keys: &[(&str, &str)]) -> Result<Config, Vec<Problem>> {
    Config::read(&|key: &str| {
        let found = keys.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| (*value).to_owned())
    })
}

/// Returns the keys with problems, and their messages.
fn problems(keys: &[(&str, &str)]) -> Vec<(&'static str, String)> {
    read(keys)
        .expect_err("a bad configuration")
        .into_iter()
        .map(|problem| (problem.key, problem.message))
        .collect()
}

fn one(keys: &[(&str, &str)]) -> (&'static str, String) {
    let mut all = problems(keys);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

const FIREHOSE: (&str, &str) = ("delivery_stream", "app-logs");
const FILE: (&str, &str) = ("url", "file:///logs");
const AZ: (&str, &str) = ("url", "az://logs");

#[test]
fn defaults_are_the_documented_ones() {
    let firehose = read(&[FIREHOSE]).unwrap();
    assert_eq!(firehose.compression, Compression::None);
    assert_eq!(firehose.flush_deadline, Duration::from_secs(30));
    assert_eq!(firehose.exit_deadline, Duration::from_secs(10));
    assert_eq!(firehose.memory_limit, 64_000_000);
    assert_eq!(firehose.concurrency, None);
    assert_eq!(firehose.instance, "firehose-app-logs");
    assert_eq!(
        firehose.dead_letter_dir,
        Path::new("/var/lib/ferry/firehose-app-logs/dead-letters")
    );
    let Destination::Firehose(destination) = firehose.destination else {
        panic!("{:?}", firehose.destination)
    };
    assert_eq!(destination.aggregation, Aggregation::Auto);

    let blob = read(&[FILE]).unwrap();
    assert_eq!(blob.compression, Compression::Gzip(GZIP_LEVEL));
    let Destination::Blob {
        blob, extension, ..
    } = blob.destination
    else {
        panic!("{:?}", blob.destination)
    };
    assert_eq!(extension, ".ndjson.gz");
    assert_eq!(
        (&*blob.content_type, blob.content_encoding),
        ("application/x-ndjson", Some("gzip"))
    );
}

#[test]
fn stores_are_named_by_url_or_by_azures_own_keys() {
    let store = |keys: &[(&str, &str)]| match read(keys).expect("good").destination {
        Destination::Blob { blob, prefix, .. } => (blob.store, prefix),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        store(&[("url", "file://logs/here")]),
        (Store::File("logs/here".into()), String::new())
    );
    assert_eq!(
        store(&[("url", "s3://bucket/a/b"), ("region", "eu-west-1")]),
        (
            Store::S3 {
                bucket: "bucket".into(),
                aws: Aws {
                    region: Some("eu-west-1".into()),
                    ..Aws::default()
                }
            },
            "a/b".into()
        )
    );
    let azure = Azure {
        account: "acct".into(),
        container: "logs".into(),
        auth: AzureAuth::SharedKey(SecretSource::Value(Secret::new("a2V5"))),
        endpoint: None,
        emulator: false,
        auto_create_container: true,
        cloud: None,
    };
    let own = [
        ("account_name", "acct"),
        ("container_name", "logs"),
        ("shared_key", "a2V5"),
    ];
    assert_eq!(store(&own), (Store::Azure(azure.clone()), String::new()));
    let url = [
        ("account_name", "acct"),
        ("url", "az://logs/app"),
        ("shared_key", "a2V5"),
    ];
    assert_eq!(store(&url), (Store::Azure(azure), "app".into()));
}

#[test]
fn keys_of_other_plugins_are_accepted() {
    // kinesis_firehose and the Go plugin.
    let config = read(&[
        FIREHOSE,
        ("region", "ap-northeast-2"),
        ("time_key", "time"),
        ("time_key_format", "%Y-%m-%dT%H:%M:%S.%3N"),
        ("auto_retry_requests", "true"),
        ("simple_aggregation", "true"),
        ("replace_dots", "_"),
        ("data_keys", "a, b"),
        ("compression", "gzip"),
    ])
    .unwrap();
    assert_eq!(config.encode.data_keys, ["a", "b"]);
    assert!(matches!(
        config.destination,
        Destination::Firehose(Firehose {
            aggregation: Aggregation::On,
            ..
        })
    ));
    // azure_blob.
    let config = read(&[
        ("account_name", "acct"),
        ("container_name", "logs"),
        ("auth_type", "sas"),
        ("sas_token", "sv=1"),
        ("blob_type", "blockblob"),
        ("path", "app/$TAG/%Y"),
        ("date_key", "@timestamp"),
        ("compress", "gzip"),
        ("auto_create_container", "off"),
    ])
    .unwrap();
    assert_eq!(
        config.encode.time.map(|(key, _)| key).as_deref(),
        Some("@timestamp")
    );
}

#[test]
fn each_mistake_is_named_with_its_key_its_value_and_what_is_allowed() {
    /// The settings, the key that is named, and a part of its message.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        (&[], "destination", "set delivery_stream"),
        (
            &[FIREHOSE, FILE],
            "destination",
            "delivery_stream and url are both set",
        ),
        (
            &[FILE, ("destination", "firehose")],
            "destination",
            "does not go with url",
        ),
        (
            &[FIREHOSE, ("destination", "blob")],
            "destination",
            "does not go with delivery_stream",
        ),
        (&[FILE, ("destination", "kafka")], "destination", "'kafka'"),
        (
            &[("destination", "firehose")],
            "delivery_stream",
            "is missing",
        ),
        (&[("delivery_stream", "")], "delivery_stream", "is empty"),
        (
            &[("delivery_stream", "app logs")],
            "delivery_stream",
            "'app logs'",
        ),
        (
            &[("delivery_stream", "app-{tga}")],
            "delivery_stream",
            "'{tga}'",
        ),
        (
            &[FIREHOSE, ("path", "x")],
            "path",
            "belongs to a blob destination",
        ),
        (
            &[FIREHOSE, ("shared_key", "x")],
            "shared_key",
            "belongs to a blob destination",
        ),
        (
            &[("url", "s3://b"), ("sas_token", "x")],
            "sas_token",
            "does nothing for s3://b",
        ),
        (
            &[("url", "gs://b"), ("region", "x")],
            "region",
            "does nothing for gs://b",
        ),
        (
            &[FILE, ("endpoint", "https://h")],
            "endpoint",
            "does nothing for file://",
        ),
        (
            &[FIREHOSE, ("aggregation", "maybe")],
            "aggregation",
            "on, off or auto",
        ),
        (
            &[FIREHOSE, ("endpoint", "firehose.example")],
            "endpoint",
            "full URL",
        ),
        (&[FIREHOSE, ("external_id", "x")], "external_id", "role_arn"),
        (&[FIREHOSE, ("role_arn", "admin")], "role_arn", "'admin'"),
        (&[FIREHOSE, ("concurrency", "0")], "concurrency", "1 to 64"),
        (&[FIREHOSE, ("concurrency", "65")], "concurrency", "'65'"),
        (&[FIREHOSE, ("memory_limit", "1M")], "memory_limit", "'1M'"),
        (&[FIREHOSE, ("memory_limit", "lots")], "memory_limit", "64M"),
        (
            &[FIREHOSE, ("flush_deadline", "0")],
            "flush_deadline",
            "'0'",
        ),
        (
            &[FIREHOSE, ("flush_deadline", "2x")],
            "flush_deadline",
            "30s",
        ),
        (
            &[FIREHOSE, ("compression", "brotli")],
            "compression",
            "none, gzip, zstd or snappy",
        ),
        (
            &[FIREHOSE, ("compression", "gzip"), ("compress", "zstd")],
            "compression",
            "keep one",
        ),
        (
            &[
                FIREHOSE,
                ("compression", "gzip"),
                ("compression_level", "13"),
            ],
            "compression_level",
            "1 to 12",
        ),
        (
            &[FIREHOSE, ("compression_level", "1")],
            "compression_level",
            "needs compression",
        ),
        (
            &[FIREHOSE, ("time_key_format", "epoch")],
            "time_key_format",
            "needs time_key",
        ),
        (
            &[FIREHOSE, ("time_key", "t"), ("time_key_format", "%Q")],
            "time_key_format",
            "'%Q'",
        ),
        (
            &[FIREHOSE, ("time_key", "t"), ("tag_key", "t")],
            "time_key",
            "different names",
        ),
        (
            &[FIREHOSE, ("log_key", "log"), ("tag_key", "t")],
            "tag_key",
            "with log_key",
        ),
        (
            &[FIREHOSE, ("tls_ca_file", "/no/such/file")],
            "tls_ca_file",
            "'/no/such/file' cannot be read",
        ),
        (
            &[FIREHOSE, ("auto_retry_requests", "off")],
            "auto_retry_requests",
            "remove it",
        ),
        (
            &[FIREHOSE, ("auto_retry_requests", "maybe")],
            "auto_retry_requests",
            "neither on nor off",
        ),
        (&[("url", "ftp://x")], "url", "'ftp://x'"),
        (&[("url", "logs")], "url", "az://container/prefix"),
        (&[("url", "s3://")], "url", "s3://bucket/prefix"),
        (&[FILE, ("path", "%Q")], "path", "'%Q'"),
        (&[FILE, ("path", "$UUID")], "path", "not needed"),
        (
            &[FILE, ("aggregation", "on")],
            "aggregation",
            "belongs to a Firehose destination",
        ),
        (
            &[("url", "az://logs"), ("shared_key", "a2V5")],
            "account_name",
            "is missing",
        ),
        (
            &[("url", "az://logs"), ("account_name", "a")],
            "shared_key",
            "@/path",
        ),
        (
            &[
                ("url", "az://logs"),
                ("account_name", "a"),
                ("auth_type", "sas"),
            ],
            "sas_token",
            "is missing",
        ),
        (
            &[
                ("url", "az://logs"),
                ("account_name", "a"),
                ("shared_key", "@/no/such"),
            ],
            "shared_key",
            "cannot be read",
        ),
        (
            &[
                ("url", "az://LOGS"),
                ("account_name", "a"),
                ("shared_key", "k"),
            ],
            "container_name",
            "'LOGS'",
        ),
        (
            &[("account_name", "a"), ("shared_key", "k")],
            "container_name",
            "is missing",
        ),
    ];
    for (keys, key, message) in cases {
        let (found, text) = one(keys);
        assert_eq!(found, *key, "{keys:?}: {text}");
        assert!(text.contains(message), "{keys:?}: {text}");
    }
}

#[test]
fn what_objects_have_is_checked_at_the_start() {
    let s3 = ("url", "s3://logs");
    let gs = ("url", "gs://logs");
    let az: [(&str, &str); 3] = [
        ("url", "az://logs"),
        ("account_name", "a"),
        ("shared_key", "a2V5"),
    ];
    let long = format!("a={}", "x".repeat(257));
    let eleven = (0..11)
        .map(|n| format!("k{n}=v"))
        .collect::<Vec<_>>()
        .join(",");
    let large = format!("a={}", "x".repeat(2_048));
    let table: &[(Keys<'_>, &str, &str)] = &[
        (
            &[s3, ("sse", "aws:kms:dss")],
            "sse",
            "use AES256, aws:kms or aws:kms:dsse",
        ),
        (
            &[s3, ("sse_kms_key_id", "k")],
            "sse_kms_key_id",
            "needs sse aws:kms",
        ),
        (
            &[s3, ("sse", "AES256"), ("sse_kms_key_id", "k")],
            "sse_kms_key_id",
            "needs sse aws:kms",
        ),
        (
            &[s3, ("sse", "aws:kms:dsse"), ("sse_bucket_key", "on")],
            "sse_bucket_key",
            "needs sse aws:kms",
        ),
        (
            &[s3, ("storage_class", "COLD")],
            "storage_class",
            "STANDARD_IA",
        ),
        (
            &[gs, ("storage_class", "GLACIER")],
            "storage_class",
            "NEARLINE",
        ),
        (
            &[s3, ("canned_acl", "everyone")],
            "canned_acl",
            "bucket-owner-full-control",
        ),
        (&[gs, ("kms_key", "my-key")], "kms_key", "cryptoKeys/KEY"),
        (
            &[s3, ("content_type", "json")],
            "content_type",
            "application/json",
        ),
        (
            &[s3, ("object_tags", "team")],
            "object_tags",
            "write key=value",
        ),
        (
            &[s3, ("object_tags", "=x")],
            "object_tags",
            "write key=value",
        ),
        (
            &[s3, ("object_tags", "a=1,a=2")],
            "object_tags",
            "'a' comes twice",
        ),
        (
            &[s3, ("object_tags", "aws:a=1")],
            "object_tags",
            "reserved by AWS",
        ),
        (
            &[s3, ("object_tags", "a=b&c")],
            "object_tags",
            "is not a tag",
        ),
        (&[s3, ("object_tags", &long)], "object_tags", "is not a tag"),
        (&[s3, ("object_tags", &eleven)], "object_tags", "at most 10"),
        (
            &[s3, ("object_tags", "a={record.x}")],
            "object_tags",
            "may differ within an object",
        ),
        (
            &[s3, ("path", "%F"), ("object_tags", "a={tag}")],
            "object_tags",
            "a whole folder of path",
        ),
        (
            &[s3, ("object_tags", "a={tga}")],
            "object_tags",
            "unknown placeholder",
        ),
        (
            &[
                s3,
                ("path", "{tag[0]}/%F"),
                ("object_metadata", "a={tag[1]}"),
            ],
            "object_metadata",
            "a whole folder of path",
        ),
        (
            &[s3, ("object_metadata", "a b=1")],
            "object_metadata",
            "is not a name of metadata",
        ),
        (
            &[s3, ("object_metadata", "a=é")],
            "object_metadata",
            "is not ASCII text",
        ),
        (
            &[s3, ("object_metadata", "Ferry_Name=1")],
            "object_metadata",
            "is Ferry's own",
        ),
        (
            &[s3, ("object_metadata", &large)],
            "object_metadata",
            "at most 2048",
        ),
        (
            &[az[0], az[1], az[2], ("object_metadata", "a-b=1")],
            "object_metadata",
            "letters, digits and '_'",
        ),
        (
            &[az[0], az[1], az[2], ("access_tier", "Frozen")],
            "access_tier",
            "Hot, Cool, Cold or Archive",
        ),
        (
            &[az[0], az[1], az[2], ("encryption_scope", "a b")],
            "encryption_scope",
            "characters that no header has",
        ),
    ];
    for (keys, key, words) in table {
        let (named, message) = one(keys);
        assert!(
            named == *key && message.contains(words),
            "{keys:?}: {named} {message}"
        );
    }
    // A compatible store has classes of its own.
    let other = [
        s3,
        ("endpoint", "https://oss.example"),
        ("storage_class", "IA"),
    ];
    read(&other).expect("a class of the store");
}

#[test]
fn a_bucket_may_be_an_access_point_and_have_an_address_of_its_own() {
    let point = "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-ap";
    for (url, prefix) in [(point.to_owned(), ""), (format!("{point}/app/x"), "app/x")] {
        let config = read(&[("url", &format!("s3://{url}"))]).expect("an access point");
        let Destination::Blob {
            blob: Blob { store, .. },
            prefix: found,
            ..
        } = config.destination
        else {
            panic!("a blob store")
        };
        assert_eq!(store.to_string(), format!("s3://{point}"));
        assert_eq!(found, prefix);
        let of_bucket = "s3-arn-aws-s3-eu-west-1-123456789012-accesspoint-my-ap";
        let rest = config.instance.strip_prefix(of_bucket);
        // A prefix has a folder of its own.
        assert_eq!(rest.map(str::is_empty), Some(prefix.is_empty()));
    }
    for (keys, key, words) in [
        (
            [("url", "s3://b:x"), ("region", "r")],
            "url",
            "is not supported",
        ),
        (
            [("url", "gs://arn:b"), ("path", "x")],
            "url",
            "is not supported",
        ),
        (
            [("url", "s3://b"), ("s3_addressing", "host")],
            "s3_addressing",
            "auto, path or virtual",
        ),
    ] {
        let (named, message) = one(&keys);
        assert!(
            named == key && message.contains(words),
            "{named}: {message}"
        );
    }
}

#[test]
fn endpoints_of_a_kind_are_not_mixed_with_an_address() {
    let fips = ("use_fips_endpoint", "on");
    let dualstack = ("use_dualstack_endpoint", "on");
    let s3 = ("url", "s3://b");
    let address = ("endpoint", "https://s3.example");
    for (keys, key) in [
        ([s3, address, fips], "use_fips_endpoint"),
        ([s3, address, dualstack], "use_dualstack_endpoint"),
        (
            [("delivery_stream", "s"), address, fips],
            "use_fips_endpoint",
        ),
    ] {
        let (named, message) = one(&keys);
        assert_eq!(named, key, "{message}");
    }
    let vpce = "https://vpce-1.firehose-fips.us-east-1.vpce.amazonaws.com";
    read(&[("delivery_stream", "s"), ("endpoint", vpce), fips]).expect("a FIPS endpoint");
    read(&[s3, fips, dualstack]).expect("both");
}

#[test]
fn the_environment_names_the_cloud_of_azure() {
    use AzureCloud::{China, Public, UsGovernment};
    let table: [(Keys<'_>, Option<AzureCloud>); 8] = [
        (&[], None),
        (
            &[("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.us/")],
            Some(UsGovernment),
        ),
        (
            &[("AZURE_AUTHORITY_HOST", "https://login.chinacloudapi.cn")],
            Some(China),
        ),
        (
            &[("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/")],
            Some(Public),
        ),
        (
            &[
                ("AZURE_AUTHORITY_HOST", "http://127.0.0.1:1"),
                ("AZURE_CLOUD", "AzureChinaCloud"),
            ],
            Some(China),
        ),
        (
            &[("AZURE_ENVIRONMENT", "AzureUSGovernmentCloud")],
            Some(UsGovernment),
        ),
        (&[("AZURE_CLOUD", "AzureCloud")], Some(Public)),
        (&[("AZURE_ENVIRONMENT", "AzureStackCloud")], None),
    ];
    for (variables, cloud) in table {
        let found = AzureCloud::of_environment(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(found, cloud, "{variables:?}");
    }
}

#[test]
fn keys_of_fluent_bits_s3_are_honoured_or_refused_by_name() {
    let keys = [
        ("bucket", "logs"),
        ("region", "eu-west-1"),
        ("upload_timeout", "1m"),
        ("store_dir_limit_size", "1G"),
        ("canned_acl", "private"),
        ("storage_class", "GLACIER"),
        ("content_type", "text/plain"),
        ("send_content_md5", "true"),
        ("compression", "gzip"),
        ("auto_retry_requests", "true"),
    ];
    let config = read(&keys).expect("the same meaning");
    let Destination::Blob { blob, prefix, .. } = config.destination else {
        panic!("a blob store")
    };
    assert_eq!(
        (blob.store.to_string().as_str(), prefix.as_str()),
        ("s3://logs", "")
    );
    for (key, words) in [
        ("s3_key_format", "use path"),
        ("total_file_size", "use blob_max_size"),
        ("static_file_path", "token"),
        ("store_dir", "use spool_dir"),
        ("use_put_object", "in one piece"),
    ] {
        let (named, message) = one(&[("bucket", "logs"), (key, "x")]);
        assert!(
            named == key && message.contains(words),
            "{named}: {message}"
        );
    }
    for (keys, key) in [
        ([("bucket", "a/b"), ("region", "x")], "bucket"),
        ([("bucket", "a"), ("url", "s3://b")], "bucket"),
        ([("bucket", "a"), ("url", "gs://b")], "bucket"),
        ([("bucket", "a"), ("delivery_stream", "s")], "destination"),
    ] {
        let (named, message) = one(&keys);
        assert_eq!(named, key, "{message}");
    }
}

#[test]
fn a_key_that_does_nothing_yet_is_refused_by_name() {
    for (key, value) in [
        ("blob_type", "append"),
        ("format", "avro"),
        ("upload_file_size", "50M"),
    ] {
        let all = problems(&[
            ("url", "az://logs"),
            ("account_name", "a"),
            ("shared_key", "k"),
            (key, value),
        ]);
        assert!(all.iter().any(|(found, _)| *found == key), "{key}: {all:?}");
    }
    read(&[
        FILE,
        ("spool", "off"),
        ("format", "json_lines"),
        ("blob_type", "block"),
    ])
    .expect("the only supported values");
}

#[test]
fn blob_stores_are_spooled_by_default_and_firehose_is_not() {
    assert_eq!(read(&[FIREHOSE]).unwrap().spool, None);
    let spooled = read(&[FIREHOSE, ("spool", "on"), ("linger", "250ms")]).unwrap();
    assert_eq!(
        spooled.spool,
        Some(SpoolPlace {
            dir: "/var/lib/ferry/firehose-app-logs".into(),
            limit: 1_000_000_000,
            target_limit: 500_000_000,
        })
    );
    let Destination::Firehose(firehose) = spooled.destination else {
        panic!("{:?}", spooled.destination)
    };
    assert_eq!(firehose.linger, Duration::from_millis(250));

    let blob = read(&[FILE]).unwrap();
    assert!(blob.spool.is_some());
    let Destination::Blob { object, .. } = blob.destination else {
        panic!("{:?}", blob.destination)
    };
    assert_eq!(
        object,
        ObjectBounds {
            bytes: 16_000_000,
            age: Duration::from_secs(300)
        }
    );
    assert_eq!(read(&[FILE, ("spool", "off")]).unwrap().spool, None);

    // azure_blob's names.
    let moved = read(&[
        FILE,
        ("buffering_enabled", "true"),
        ("buffer_dir", "/data/spool"),
        ("store_dir_limit_size", "8G"),
        ("upload_timeout", "30m"),
    ])
    .unwrap();
    assert_eq!(
        moved.spool,
        Some(SpoolPlace {
            dir: "/data/spool".into(),
            limit: 8_000_000_000,
            target_limit: 4_000_000_000,
        })
    );
    assert_eq!(
        moved.dead_letter_dir,
        Path::new("/data/spool/dead-letters"),
        "in the spool's folder"
    );
}

#[test]
fn an_address_with_characters_that_no_url_has_is_refused() {
    for endpoint in ["https://m\u{1}nio:9000", "https://höst", "https://a b"] {
        let (key, text) = one(&[FIREHOSE, ("endpoint", endpoint)]);
        assert_eq!(key, "endpoint", "{text}");
    }
    for (key, address) in [
        ("endpoint", "https://user:hunter2@ho st"),
        ("endpoint", "host?sig=hunter2"),
        ("endpoint", "user:hunter2@host"),
        ("endpoint", "user:hunter2"),
        ("endpoint", "https://user:hunter2?9@ho st"),
        ("endpoint", "https://user:hunter2%40host"),
        ("endpoint", "https://hunter2%40host name"),
        ("metrics_listen", "user:hunter2@127.0.0.1:9464"),
    ] {
        let (_, text) = one(&[FIREHOSE, (key, address)]);
        assert!(!text.contains("hunter2"), "{text}");
    }
    for url in ["ftp://user:hunter2@host/x", "ftp://user:hunter2/9@host/x"] {
        let (_, text) = one(&[("url", url)]);
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("'ftp://***'"), "{text}");
    }
    // An address without a secret is shown.
    for address in ["https:/host", "host:9000", "https://a b:9000"] {
        let (_, text) = one(&[FIREHOSE, ("endpoint", address)]);
        assert!(text.contains(&format!("'{address}'")), "{text}");
    }
}

#[test]
fn an_address_that_holds_a_user_or_a_signature_is_refused_at_every_service() {
    for endpoint in [
        "https://user:hunter2@vpce.internal",
        "https://vpce.internal/?sig=hunter2",
        // A parser ends the host within the password, and reads the rest as a fragment.
        "https://user:hunter2#9@vpce.internal",
        // Or a query, or a path.
        "https://user:hunter2?9@vpce.internal",
        "https://user:9?hunter2@vpce.internal",
        "https://user:9/hunter2@vpce.internal",
        "https://user:9?a/b#c@d?hunter2@vpce.internal",
        "https://vpce.internal/#hunter2",
        "https://vpce.internal/hunter2?9",
    ] {
        for (destination, key) in [
            (FIREHOSE, "endpoint"),
            (FIREHOSE, "sts_endpoint"),
            (("url", "s3://b"), "endpoint"),
            (("url", "s3://b"), "sts_endpoint"),
            (("url", "gs://b"), "endpoint"),
        ] {
            let (found, text) = one(&[destination, (key, endpoint)]);
            assert_eq!(found, key);
            assert!(text.contains("contains a query or a user"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    for url in [
        "az://logs/app?sv=1&sig=hunter2",
        "s3://user:hunter2@bucket/app",
        "s3://bucket?sig=hunter2",
        "gs://bucket/x?token=hunter2",
        "s3://user:hunter2?9@bucket/app",
        "s3://user:hunter2#9@bucket/app",
        "s3://user:hunter2/9@bucket/app",
        "gs://user:hunter2/9@bucket/app",
        "az://user:hunter2/9@logs/app",
    ] {
        let all = problems(&[("url", url)]);
        assert!(all.iter().any(|(key, _)| *key == "url"), "{url}: {all:?}");
        assert!(!format!("{all:?}").contains("hunter2"), "{all:?}");
    }
}

proptest! {
    #[test]
    fn no_part_of_a_user_or_password_is_shown(
        before in "[a-z?#/:@% .]{0,6}",
        behind in "[a-z0-9?#/:@% .]{0,6}",
        scheme in "(https|http|s3|gs|az|ftp)",
        host in "(vpce.internal|ho st|h%ost|)(/app)?",
        key in "(endpoint|sts_endpoint|url|role_arn|metrics_listen)",
    ) {
        let value = format!("{scheme}://u:{before}hunter2{behind}@{host}");
        let store = match key.as_str() {
            "url" => vec![("url", value.as_str()), ("region", "eu-west-1")],
            key => vec![("url", "s3://bucket"), (key, value.as_str())],
        };
        let read = read(&store);
        let shown = format!("{read:?}");
        prop_assert!(read.is_err() && !shown.contains("hunter2"), "{}: {}", value, shown);
    }
}

#[test]
fn a_secret_in_the_place_of_another_value_is_not_repeated() {
    let secrets = [
        EMULATOR_KEY,
        "sv=2021-12-02&sig=hunter2",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2",
        "abC8Q~0123456789abcdefghijABCDEFGHIJ",
    ];
    let keys = [
        ("auth_type", AZ),
        ("auto_create_container", AZ),
        ("container_name", AZ),
        ("memory_limit", FILE),
        ("blob_max_age", FILE),
        ("concurrency", FILE),
        ("compression", FILE),
        ("compression_level", FILE),
        ("metrics_listen", FILE),
        ("metrics_log_interval", FILE),
        ("aggregation", FIREHOSE),
        ("delivery_stream", FIREHOSE),
        ("role_arn", FIREHOSE),
        ("destination", FIREHOSE),
    ];
    for secret in secrets {
        for (key, destination) in keys {
            let mut set = vec![destination, (key, secret)];
            set.dedup_by_key(|(key, _)| *key);
            if key == "delivery_stream" {
                set = vec![(key, secret)];
            }
            let all = problems(&set);
            let text = format!("{all:?}");
            assert!(
                all.iter().any(|(found, _)| *found == key),
                "{set:?}: {text}"
            );
            assert!(
                !text.contains(secret) && !text.contains("hunter2"),
                "{key}: {text}"
            );
        }
    }
    // A mistyped value is shown.
    let (_, text) = one(&[FIREHOSE, ("role_arn", "role/application-logs-production-2")]);
    assert!(
        text.contains("'role/application-logs-production-2'"),
        "{text}"
    );
}

#[test]
fn keys_that_need_the_spool_are_refused_without_it() {
    for (key, value) in [
        ("spool_dir", "/data"),
        ("spool_limit", "1G"),
        ("target_limit", "50%"),
        ("blob_max_size", "1M"),
        ("blob_max_age", "1m"),
    ] {
        let (found, text) = one(&[FILE, ("spool", "off"), (key, value)]);
        assert_eq!(found, key);
        assert!(text.contains("needs spool on"), "{text}");
    }
    let (key, text) = one(&[FIREHOSE, ("linger", "2s")]);
    assert!(
        key == "linger" && text.contains("needs spool on"),
        "{key}: {text}"
    );
    let (key, text) = one(&[FILE, ("spool", "on"), ("buffering_enabled", "off")]);
    assert!(
        key == "spool" && text.contains("contradicts its alias buffering_enabled"),
        "{key}: {text}"
    );
    let (key, text) = one(&[FILE, ("blob_max_size", "64M")]);
    assert!(
        key == "blob_max_size" && text.contains("memory_limit"),
        "{key}: {text}"
    );
    // A smaller memory_limit alone makes objects smaller.
    let config = read(&[FILE, ("memory_limit", "32M")]).unwrap();
    let Destination::Blob { object, .. } = config.destination else {
        panic!("a folder is a blob store");
    };
    assert_eq!(object.bytes, 12_000_000);
    let (key, _) = one(&[FILE, ("spool_limit", "1K")]);
    assert_eq!(key, "spool_limit");
    let (key, _) = one(&[FIREHOSE, ("spool", "on"), ("blob_max_size", "1M")]);
    assert_eq!(key, "blob_max_size");
}

#[test]
fn records_for_a_missing_stream_wait_or_go_where_the_configuration_says() {
    let by_tag = ("delivery_stream", "app-{tag}");
    let action = |keys: &[(&'static str, &'static str)]| {
        let all = [&[by_tag, ("spool", "on")], keys].concat();
        match read(&all).unwrap().destination {
            Destination::Firehose(firehose) => firehose.missing_target,
            other => panic!("{other:?}"),
        }
    };
    let hour = Duration::from_secs(3_600);
    let missing = |action, after| MissingTarget { action, after };
    assert_eq!(action(&[]), missing(MissingAction::Hold, hour));
    assert_eq!(
        action(&[
            ("missing_target", "dead_letter"),
            ("missing_target_after", "0s")
        ]),
        missing(MissingAction::DeadLetter, Duration::ZERO)
    );
    assert_eq!(
        action(&[
            ("missing_target", "fallback"),
            ("missing_target_fallback", "rest")
        ]),
        missing(MissingAction::Fallback("rest".into()), hour)
    );
    type Keys = &'static [(&'static str, &'static str)];
    let cases: [(Keys, &str, &str); 8] = [
        (
            &[("missing_target", "drop")],
            "missing_target",
            "use hold, dead_letter or fallback",
        ),
        (
            &[("missing_target", "drop"), ("missing_target_after", "1m")],
            "missing_target",
            "'drop'",
        ),
        (
            &[("missing_target", "fallback")],
            "missing_target_fallback",
            "is missing",
        ),
        (
            &[
                ("missing_target", "fallback"),
                ("missing_target_fallback", "{tag}"),
            ],
            "missing_target_fallback",
            "'{tag}' is not a stream name",
        ),
        (
            &[("missing_target_fallback", "x")],
            "missing_target_fallback",
            "needs missing_target fallback",
        ),
        (
            &[("missing_target_after", "1m")],
            "missing_target_after",
            "dead_letter or fallback",
        ),
        (
            &[
                ("missing_target", "dead_letter"),
                ("delivery_stream", "app"),
            ],
            "missing_target",
            "needs placeholders in delivery_stream",
        ),
        (
            &[("missing_target", "hold"), ("spool", "off")],
            "missing_target",
            "needs spool on",
        ),
    ];
    for (keys, key, words) in cases {
        // The first of a name counts.
        let all = [keys, &[by_tag, ("spool", "on")]].concat();
        let (found, text) = one(&all);
        assert!(
            found == key && text.contains(words),
            "{keys:?}: {found}: {text}"
        );
    }
}

#[test]
fn a_share_of_the_spool_is_a_size_or_a_percentage_of_its_limit() {
    let spool_limit = ("spool_limit", "200M");
    for (value, bytes) in [
        ("25%", 50_000_000),
        ("12.5 %", 25_000_000),
        ("1%", 2_000_000),
        ("100%", 200_000_000),
        ("1M", 1_000_000),
        ("200M", 200_000_000),
    ] {
        let config = read(&[FILE, spool_limit, ("target_limit", value)]).unwrap();
        assert_eq!(config.spool.unwrap().target_limit, bytes, "{value}");
    }
    for value in [
        "0%",
        "0.9%",
        "101%",
        "%",
        "half",
        "999999",
        "200000001",
        "-1%",
        "NaN%",
    ] {
        let (key, text) = one(&[FILE, spool_limit, ("target_limit", value)]);
        assert_eq!(key, "target_limit");
        let allowed = format!(
            "'{value}' is neither a size from 1000000 bytes to spool_limit (200000000 bytes)"
        );
        assert!(
            text.contains(&allowed) && text.contains("write 50% or 500M"),
            "{text}"
        );
    }
}

#[test]
fn all_problems_are_reported_together() {
    let keys: Vec<&str> = problems(&[
        FIREHOSE,
        ("memory_limit", "x"),
        ("flush_deadline", "x"),
        ("compression", "x"),
        ("concurrency", "x"),
    ])
    .into_iter()
    .map(|(key, _)| key)
    .collect();
    assert_eq!(
        keys,
        [
            "memory_limit",
            "compression",
            "flush_deadline",
            "concurrency"
        ]
    );
}

#[test]
fn metrics_are_served_on_the_loopback_address_unless_another_one_is_set() {
    assert_eq!(read(&[FIREHOSE]).unwrap().metrics_listen, None);
    for (value, address) in [
        ("9464", Some("127.0.0.1:9464")),
        (":9464", Some("127.0.0.1:9464")),
        ("localhost:9464", Some("127.0.0.1:9464")),
        ("127.0.0.2:0", Some("127.0.0.2:0")),
        ("0.0.0.0:9464", Some("0.0.0.0:9464")),
        ("[::1]:9464", Some("[::1]:9464")),
        ("::1:9464", None),
        ("metrics.internal:9464", None),
        ("127.0.0.1:", None),
        ("127.0.0.1:65536", None),
        ("on", None),
        ("http://127.0.0.1:9464/metrics", None),
    ] {
        let keys = [FIREHOSE, ("metrics_listen", value)];
        match address {
            Some(address) => assert_eq!(
                read(&keys).unwrap().metrics_listen,
                Some(address.parse().unwrap()),
                "{value}"
            ),
            None => {
                let (key, message) = one(&keys);
                assert_eq!(key, "metrics_listen");
                assert!(message.contains(&format!("'{value}'")), "{message}");
                assert!(message.contains("write 127.0.0.1:9464"), "{message}");
            }
        }
    }
}

#[test]
fn metrics_are_logged_at_the_configured_interval() {
    let interval = |value| {
        let config = read(&[FIREHOSE, ("metrics_log_interval", value)]).unwrap();
        config.metrics_log_interval
    };
    assert_eq!(read(&[FIREHOSE]).unwrap().metrics_log_interval, None);
    assert_eq!(interval("off"), Some(Duration::ZERO));
    assert_eq!(interval("0"), Some(Duration::ZERO));
    assert_eq!(interval("1m"), Some(Duration::from_secs(60)));
    let (key, message) = one(&[FIREHOSE, ("metrics_log_interval", "100ms")]);
    assert_eq!(key, "metrics_log_interval");
    assert!(message.contains("from 1 to 86400 seconds"), "{message}");
}

#[test]
fn the_line_at_startup_names_destination_and_mode_and_one_for_debug_the_limits() {
    let version = env!("CARGO_PKG_VERSION");
    #[rustfmt::skip] // a table
    let cases = [
        (
            &[FIREHOSE, ("region", "eu-west-1"), ("spool", "on")][..],
            "delivery stream app-logs, region eu-west-1, spooled in /var/lib/ferry/firehose-app-logs (at most 1 GB)",
            "aggregation auto, linger 1000 ms, not compressed, flush_deadline 30 s, exit_deadline 10 s, memory_limit 64 MB, \
             concurrency auto, dead letters in /var/lib/ferry/firehose-app-logs/dead-letters (at most 256 MB)",
        ),
        (
            &[FIREHOSE, ("region", "eu-west-1"), ("endpoint", "https://vpce.internal")],
            "delivery stream app-logs, region eu-west-1 at https://vpce.internal, direct",
            "aggregation auto, not compressed, flush_deadline ",
        ),
        (
            &[FILE],
            "file:///logs, spooled in /var/lib/ferry/file-logs (at most 1 GB)",
            "objects of 16 MB or 300 s, gzip level ",
        ),
        (
            &[("url", "s3://bucket/a/b"), ("region", "eu-west-1"), ("spool", "off")],
            "s3://bucket/a/b, region eu-west-1, direct",
            "gzip level ",
        ),
        (
            &[("url", "az://logs"), ("account_name", "acct"), ("shared_key", "a2V5")],
            "az://logs, account acct, auth_type key, spooled in /var/lib/ferry/az-logs (at most 1 GB)",
            "objects of ",
        ),
        (
            &[("url", "gs://bucket"), ("endpoint", "http://127.0.0.1:1")],
            "gs://bucket at http://127.0.0.1:1, spooled in /var/lib/ferry/gs-bucket (at most 1 GB)",
            "objects of ",
        ),
    ];
    for (keys, summary, details) in cases {
        let config = read(keys).unwrap();
        assert_eq!(config.summary(), format!("ferry {version} to {summary}"));
        assert!(config.summary().len() <= 120, "{}", config.summary());
        assert!(
            config.details().starts_with(details),
            "{}",
            config.details()
        );
    }
}

#[test]
fn a_line_at_startup_says_when_the_first_object_is_due() {
    let line = |keys: &[(&str, &str)]| read(keys).unwrap().first_object();
    assert_eq!(
        line(&[FILE]).unwrap(),
        "the first object is due 300 s after its first line (blob_max_age), or when it has 16 MB (blob_max_size)"
    );
    let soon = line(&[FILE, ("blob_max_age", "1m"), ("blob_max_size", "8M")]).unwrap();
    assert!(
        soon.contains("due 60 s after") && soon.contains("8 MB"),
        "{soon}"
    );
    assert_eq!(line(&[FILE, ("spool", "off")]), None);
    assert_eq!(line(&[FIREHOSE, ("spool", "on")]), None);
}

#[test]
fn outputs_into_one_bucket_have_folders_and_letters_of_their_own() {
    let of = |keys: &[(&str, &str)]| {
        let config = read(keys).unwrap();
        (
            config.instance,
            config.spool.map(|it| it.dir),
            config.dead_letter_dir,
        )
    };
    let state = Path::new("/var/lib/ferry");
    for spool in ["on", "off"] {
        let is_spooled = spool == "on";
        let spool = ("spool", spool);
        let bucket = ("url", "s3://logs");
        let outputs = [
            of(&[bucket, spool]),
            of(&[("url", "s3://logs/app"), spool]),
            of(&[("url", "s3://logs/web"), spool]),
            of(&[bucket, ("path", "app/%Y"), spool]),
            of(&[bucket, ("path", "web/%Y"), spool]),
        ];
        // Without a spool nothing depends on path: outputs may share the folder of dead letters.
        let own = if is_spooled { 5 } else { 3 };
        for (at, one) in outputs.iter().enumerate() {
            let (instance, dir, letters) = one;
            assert_eq!(dir.is_some(), is_spooled);
            assert!(
                dir.as_deref().is_none_or(|dir| dir == state.join(instance)),
                "{one:?}"
            );
            assert_eq!(*letters, state.join(instance).join("dead-letters"));
            let others = &outputs[..at];
            let is_own = others.iter().all(|other| other.0 != *instance);
            assert_eq!(is_own, at < own, "{one:?}");
        }
        assert_eq!(outputs[0].0, "s3-logs");
    }
    // A name that was given is nobody else's business.
    let named = |url| of(&[("url", url), ("instance", "main")]).0;
    assert_eq!(named("s3://logs/app"), "main");
}

#[test]
fn times_given_as_examples_are_in_range() {
    for (key, value, destination) in [
        ("flush_deadline", "500ms", FIREHOSE),
        ("exit_deadline", "1h", FIREHOSE),
        ("linger", "1d", FIREHOSE),
        ("metrics_log_interval", "500ms", FIREHOSE),
        ("blob_max_age", "2d", FILE),
        ("blob_max_age", "500ms", FILE),
    ] {
        let (_, text) = one(&[destination, ("spool", "on"), (key, value)]);
        let (_, examples) = text.split_once("; write ").unwrap();
        let words = examples.split([',', ' ']);
        for example in words.filter(|word| !["", "or"].contains(word)) {
            let config = read(&[destination, ("spool", "on"), (key, example)]);
            assert!(config.is_ok(), "{key} {value}: {config:?}");
        }
    }
}

#[test]
fn secrets_are_in_no_message_and_no_debug_output() {
    let keys = [
        ("url", "az://logs"),
        ("account_name", "a"),
        ("shared_key", "TOPSECRET"),
        ("memory_limit", "x"),
    ];
    for (_, message) in problems(&keys) {
        assert!(!message.contains("TOPSECRET"));
    }
    let config = read(&keys[..3]).unwrap();
    assert!(!format!("{config:?}").contains("TOPSECRET"));
    let lines = [config.summary(), config.details()];
    assert!(!lines.concat().contains("TOPSECRET"));
}

/// Returns the Azure settings of an output with these keys.
fn azure_of(keys: &[(&str, &str)]) -> Azure {
    let keys = [&[("container_name", "logs")], keys].concat();
    match read(&keys).expect("good").destination {
        Destination::Blob {
            blob:
                Blob {
                    store: Store::Azure(azure),
                    ..
                },
            ..
        } => azure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_type_of_authentication_has_its_own_keys() {
    const ACCOUNT: (&str, &str) = ("account_name", "acct");
    let value = |text: &str| SecretSource::Value(Secret::new(text));
    let id = |text: &str| Some(text.to_owned());
    let table: [(&[(&str, &str)], AzureAuth); 9] = [
        (
            &[("auth_type", "key"), ("shared_key", "a2V5")],
            AzureAuth::SharedKey(value("a2V5")),
        ),
        (
            &[
                ("auth_type", "SAS"),
                ("sas_token", "sig=1"),
                ("shared_key", "x"),
            ],
            AzureAuth::Sas(value("sig=1")),
        ),
        (
            &[("auth_type", "managed_identity")],
            AzureAuth::ManagedIdentity { client_id: None },
        ),
        (
            &[("auth_type", "managed_identity"), ("client_id", "app")],
            AzureAuth::ManagedIdentity {
                client_id: id("app"),
            },
        ),
        (
            &[("auth_type", "workload_identity")],
            AzureAuth::WorkloadIdentity {
                tenant_id: None,
                client_id: None,
            },
        ),
        (
            &[
                ("auth_type", "workload_identity"),
                ("tenant_id", "contoso.onmicrosoft.com"),
                ("client_id", "app"),
            ],
            AzureAuth::WorkloadIdentity {
                tenant_id: id("contoso.onmicrosoft.com"),
                client_id: id("app"),
            },
        ),
        (
            &[
                ("auth_type", "client_secret"),
                ("tenant_id", "t-1"),
                ("client_id", "app"),
                ("client_secret", "s"),
            ],
            AzureAuth::ClientSecret {
                tenant_id: "t-1".into(),
                client_id: "app".into(),
                secret: value("s"),
            },
        ),
        (
            &[("connection_string", "AccountName=acct;AccountKey=a2V5")],
            AzureAuth::ConnectionString(value("AccountName=acct;AccountKey=a2V5")),
        ),
        (
            &[
                ("auth_type", "connection_string"),
                (
                    "connection_string",
                    "AccountName=acct;SharedAccessSignature=sig=1",
                ),
            ],
            AzureAuth::ConnectionString(value("AccountName=acct;SharedAccessSignature=sig=1")),
        ),
    ];
    for (keys, auth) in table {
        let azure = azure_of(&[&[ACCOUNT], keys].concat());
        assert_eq!((azure.account.as_str(), &azure.auth), ("acct", &auth));
        let name = keys.iter().find(|(key, _)| *key == "auth_type");
        let name = name.map_or("connection_string".into(), |(_, name)| name.to_lowercase());
        assert_eq!(auth.name(), name);
    }
}

#[test]
fn a_connection_string_names_the_endpoint_in_the_configuration_and_in_a_file() {
    const TEXT: &str = "AccountName=dev;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:10000/dev";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TEXT}\n")).unwrap();
    let path = format!("@{}", file.path().display());
    for given in [TEXT, &path] {
        let azure = azure_of(&[("connection_string", given)]);
        assert_eq!(azure.account, "dev");
        assert_eq!(
            azure.endpoint.as_deref(),
            Some("http://127.0.0.1:10000/dev")
        );
    }
    let azurite = azure_of(&[("connection_string", "UseDevelopmentStorage=true")]);
    assert_eq!(
        (azurite.account.as_str(), azurite.endpoint, azurite.emulator),
        (EMULATOR_ACCOUNT, None, true)
    );
    // A signature does not always name its account.
    let sas = "BlobEndpoint=https://store.example;SharedAccessSignature=sig=1";
    let named = azure_of(&[("connection_string", sas), ("account_name", "acct")]);
    assert_eq!(named.account, "acct");
}

#[test]
fn each_type_of_authentication_reports_missing_keys_and_those_that_do_nothing() {
    const AZ: [(&str, &str); 2] = [("url", "az://logs"), ("account_name", "acct")];
    /// The additional settings, the key that is named, and a part of its message.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let table: [Case<'_>; 15] = [
        (
            &[("auth_type", "oauth")],
            "auth_type",
            "workload_identity or client_secret",
        ),
        (
            &[("auth_type", "connection_string")],
            "connection_string",
            "is missing",
        ),
        (
            &[("connection_string", "hunter2")],
            "connection_string",
            "the value is not a connection string",
        ),
        (
            &[("connection_string", "AccountName=other;AccountKey=a2V5")],
            "account_name",
            "'acct', but connection_string has 'other'",
        ),
        (
            &[
                ("connection_string", "AccountName=acct;AccountKey=hunter2"),
                ("endpoint", "https://x"),
            ],
            "endpoint",
            "with connection_string",
        ),
        (
            &[(
                "connection_string",
                "AccountName=acct;AccountKey=hunter2;BlobEndpoint=x",
            )],
            "connection_string",
            "not a full URL",
        ),
        (
            &[
                ("connection_string", "AccountName=acct;AccountKey=hunter2"),
                ("shared_key", "hunter2"),
            ],
            "shared_key",
            "does nothing with auth_type connection_string",
        ),
        (
            &[
                ("auth_type", "client_secret"),
                ("client_id", "app"),
                ("client_secret", "hunter2"),
            ],
            "tenant_id",
            "is missing",
        ),
        (
            &[
                ("auth_type", "client_secret"),
                ("tenant_id", "t"),
                ("client_secret", "hunter2"),
            ],
            "client_id",
            "is missing",
        ),
        (
            &[
                ("auth_type", "client_secret"),
                ("tenant_id", "t"),
                ("client_id", "app"),
            ],
            "client_secret",
            "@/path",
        ),
        (
            &[
                ("auth_type", "client_secret"),
                ("tenant_id", "t"),
                ("client_id", "app"),
                ("client_secret", "@/no/such"),
            ],
            "client_secret",
            "cannot be read",
        ),
        (
            &[("auth_type", "workload_identity"), ("tenant_id", "t/../u")],
            "tenant_id",
            "'t/../u' is not a tenant",
        ),
        (
            &[("auth_type", "managed_identity"), ("tenant_id", "t")],
            "tenant_id",
            "set auth_type workload_identity or client_secret",
        ),
        (
            &[
                ("auth_type", "workload_identity"),
                ("client_secret", "hunter2"),
            ],
            "client_secret",
            "set auth_type client_secret",
        ),
        (
            &[("shared_key", "hunter2"), ("client_id", "app")],
            "client_id",
            "does nothing with auth_type key",
        ),
    ];
    for (keys, key, words) in table {
        let all = problems(&[&AZ, keys].concat());
        let found = all.iter().find(|(found, _)| *found == key);
        let (_, text) = found.unwrap_or_else(|| panic!("{keys:?}: {all:?}"));
        assert!(text.contains(words), "{keys:?}: {text}");
        assert!(!format!("{all:?}").contains("hunter2"), "{all:?}");
    }
    for other in [
        FIREHOSE,
        FILE,
        ("url", "s3://bucket"),
        ("url", "gs://bucket"),
    ] {
        let (key, _) = one(&[other, ("client_secret", "x")]);
        assert_eq!(key, "client_secret", "{other:?}");
    }
}

#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no pem here").unwrap();
    let path = file.path().display().to_string();
    let (key, message) = one(&[FIREHOSE, ("tls_ca_file", &path)]);
    assert_eq!(key, "tls_ca_file");
    assert!(message.contains("no certificate"), "{message}");
}

#[test]
fn sizes_and_times_are_read_as_the_host_reads_them() {
    for (text, size) in [
        ("4M", Some(4_000_000)),
        ("500k", Some(500_000)),
        ("1GB", Some(1_000_000_000)),
        ("1.5M", Some(1_500_000)),
        ("17", Some(17)),
        ("4MiB", None),
        ("M", None),
        ("-1M", None),
        ("inf", None),
    ] {
        assert_eq!(parse_size(text), size, "{text}");
    }
    for (text, seconds) in [
        ("30", Some(30)),
        ("30s", Some(30)),
        ("5m", Some(300)),
        ("2H", Some(7_200)),
        ("1d", Some(86_400)),
        ("1w", None),
        ("", None),
        ("99999999999999999999d", None),
    ] {
        let time = seconds.map(Duration::from_secs);
        assert_eq!(parse_time(text), time, "{text}");
    }
    assert_eq!(parse_time("250ms"), Some(Duration::from_millis(250)));
}

#[test]
fn a_stream_name_made_from_a_template_is_valid_and_its_own() {
    assert_eq!(stream_name("app-kube.var-1_x"), "app-kube.var-1_x");
    assert_eq!(stream_name(&"x".repeat(64)), "x".repeat(64));
    let mut names = std::collections::BTreeSet::new();
    let cut = stream_name(&"x".repeat(100));
    let others = [
        "app/a".to_owned(),
        "app a".into(),
        "app-a".into(),
        "주문".into(),
        "결제".into(),
        "x".repeat(65),
        "x".repeat(100),
        // What another one is cut to, written out.
        cut.clone(),
        stream_name(&cut),
    ];
    for other in &others {
        let name = stream_name(other);
        assert_eq!(sanitize_stream_name(&name), name, "{other}");
        assert!(names.insert(name), "{other}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn tables_have_defaults_of_their_own_and_what_cannot_be_one_is_refused_with_its_remedy() {
    let read = |more: &[(&str, &str)]| {
        let keys = |key: &str| {
            let all = [("url", "file:///x"), ("format", "parquet")];
            let found = more.iter().chain(&all).find(|(name, _)| *name == key);
            let found = found.filter(|(_, value)| !value.is_empty());
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::read(&keys)
    };
    let config = read(&[("memory_limit", "512M")]).unwrap();
    let table = config.table.as_ref().unwrap();
    assert_eq!(table.packing.to_string(), "zstd 1");
    let Destination::Blob {
        object,
        extension,
        blob,
        folder,
        ..
    } = &config.destination
    else {
        panic!("a store");
    };
    assert_eq!((object.bytes, object.age.as_secs()), (64_000_000, 900));
    assert_eq!(
        (extension.as_str(), blob.content_encoding),
        (".parquet", None)
    );
    assert_eq!(blob.content_type, "application/vnd.apache.parquet");
    assert!(folder.fixed().is_none());

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        &file,
        "# what we ask for\nlevel string\nstatus int = response.status\n",
    )
    .unwrap();
    let path = format!("@{}", file.path().display());
    let config = read(&[
        ("parquet_columns", &path),
        ("parquet_rest", "other"),
        ("tag_key", "app"),
    ])
    .unwrap();
    let columns = &config.table.unwrap().columns;
    assert_eq!(columns.list(), "level string, status int = response.status");
    assert_eq!(
        (columns.rest.as_str(), columns.tag.as_str()),
        ("other", "app")
    );

    for (more, key, words) in [
        (
            &[("log_key", "log")][..],
            "log_key",
            "declare the key in parquet_columns",
        ),
        (&[("spool", "off")], "format", "needs spool on"),
        (
            &[("compression", "gzip")],
            "compression",
            "use zstd, snappy or none",
        ),
        (
            &[("compression_level", "-1")],
            "compression_level",
            "1 to 19",
        ),
        (
            &[("compression", "snappy"), ("compression_level", "1")],
            "compression_level",
            "needs compression zstd",
        ),
        (&[("path", "time=%F")], "path", "name one of them otherwise"),
        (&[("parquet_columns", "Dt string")], "path", "the column Dt"),
        (&[("path", "x:y/%F")], "path", "use another character"),
        (
            &[("parquet_columns", "a varchar")],
            "parquet_columns",
            "use string",
        ),
        (
            &[("parquet_columns", "a int, A int = b")],
            "parquet_columns",
            "name one of them otherwise",
        ),
        (
            &[("parquet_columns", "@/nowhere/at/all")],
            "parquet_columns",
            "cannot be read",
        ),
        (
            &[
                ("blob_max_size", "10K"),
                ("parquet_columns", "a int, b int, c int"),
            ],
            "blob_max_size",
            "raise it",
        ),
        (
            &[("format", "json_lines"), ("parquet_rest", "x")],
            "parquet_rest",
            "needs format parquet",
        ),
        (
            &[("format", "json_lines"), ("compression", "snappy")],
            "compression",
            "use gzip, zstd or none",
        ),
        (
            &[("url", ""), ("delivery_stream", "s"), ("spool", "on")],
            "format",
            "needs a blob store",
        ),
        (
            &[("time_key_format", "epoch"), ("time_key", "t")],
            "time_key_format",
            "remove it",
        ),
    ] {
        let problems = read(more).err().unwrap_or_default();
        let found = problems
            .iter()
            .any(|it| it.key == key && it.message.contains(words));
        assert!(found, "{more:?}: {problems:?}");
    }
}
