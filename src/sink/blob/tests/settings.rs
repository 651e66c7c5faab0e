//! What is sent with objects, from the configuration to the wire.

use super::*;
use crate::config::{Config, Destination};

/// Returns the sink of a configuration.
fn sink_of(settings: &[(&str, &str)]) -> BlobSink {
    let config = Config::read(&|key: &str| {
        let found = settings.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| (*value).to_owned())
    });
    let Destination::Blob { blob, .. } = config.expect("a configuration").destination else {
        panic!("a blob store")
    };
    BlobSink::new(&blob, Ear::default().warn()).expect("a sink")
}

async fn put_tagged(sink: &BlobSink, tag: &str) -> Outcome {
    let batch = Batch {
        target: "a/x.json".into(),
        tag: tag.as_bytes().into(),
        records: vec![bytes::Bytes::from_static(BODY).into()],
        token: Some("T1".into()),
    };
    sink.send(batch).await.remove(0)
}

/// Returns the value of a header, which has it once.
fn header<'r>(request: &'r str, name: &str) -> Option<&'r str> {
    let mut values = request.lines().filter_map(|line| {
        let (known, value) = line.split_once(": ")?;
        known.eq_ignore_ascii_case(name).then_some(value)
    });
    let value = values.next();
    assert!(values.next().is_none(), "{name} comes twice in {request}");
    value
}

fn signed_headers(request: &str) -> Vec<&str> {
    let authorization = header(request, "authorization").expect("a signature");
    let (_, rest) = authorization.split_once("SignedHeaders=").expect("names");
    let (names, _) = rest.split_once(',').expect("an end");
    names.split(';').collect()
}

/// Signs a request once more with the SDK's own signer, and compares.
#[cfg(feature = "firehose")]
fn assert_signed(request: &str) {
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    let (head, _) = request.split_once("\r\n\r\n").expect("a head");
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let signed = signed_headers(request);
    let own = ["x-amz-date", "x-amz-content-sha256", "host"];
    let headers: Vec<_> = signed
        .iter()
        .filter(|name| !own.contains(name))
        .map(|name| (*name, header(request, name).expect("a signed header")))
        .collect();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let date = header(request, "x-amz-date").expect("a date");
    let date = chrono::NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").unwrap();
    let identity = aws_credential_types::Credentials::new("AKID", "secret", None, None, "t").into();
    let params = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-west-1")
        .name("s3")
        .time(date.and_utc().into())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let url = format!("http://{}{path}", header(request, "host").unwrap());
    let digest = header(request, "x-amz-content-sha256").unwrap().to_owned();
    let body = SignableBody::Precomputed(digest);
    let request_of = SignableRequest::new(method, url, headers.into_iter(), body).unwrap();
    let signature = sign(request_of, &params).unwrap();
    let authorization = header(request, "authorization").unwrap();
    let expected = format!("Signature={}", signature.signature());
    assert!(
        authorization.ends_with(&expected),
        "{expected} of {request}"
    );
}

#[tokio::test]
async fn everything_that_an_object_of_s3_has_is_sent_and_signed() {
    const NAME: &str =
        "sink::blob::tests::settings::everything_that_an_object_of_s3_has_is_sent_and_signed";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let taken = error(412, "PreconditionFailed");
    let ours = answer(
        200,
        &[
            ("Content-Length", "14"),
            ("ETag", "\"1\""),
            ("Last-Modified", "Fri, 21 Nov 2025 13:00:00 GMT"),
            ("x-amz-meta-ferry_name", "T1"),
        ],
        "",
    );
    let server = Loopback::start(vec![taken, ours]);
    let key = "arn:aws:kms:eu-west-1:1:key/k";
    let sink = sink_of(&[
        ("url", "s3://logs"),
        ("endpoint", &server.url()),
        ("sse", "aws:kms"),
        ("sse_kms_key_id", key),
        ("sse_bucket_key", "on"),
        ("storage_class", "STANDARD_IA"),
        ("canned_acl", "bucket-owner-full-control"),
        ("object_tags", "team=logs + co, app={tag[1]}"),
        ("object_metadata", "Owner=platform,source=k8s/{tag}"),
        ("path", "{tag}/%F"),
        ("content_type", "application/json"),
        ("content_encoding", "off"),
        ("send_content_md5", "on"),
        ("request_payer", "on"),
    ]);
    assert_eq!(put_tagged(&sink, "app.http").await, Outcome::Delivered);
    let requests = server.requests();
    let put = &requests[0];
    for (name, value) in [
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", key),
        ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-acl", "bucket-owner-full-control"),
        ("x-amz-tagging", "team=logs+%2B+co&app=http"),
        ("x-amz-meta-owner", "platform"),
        ("x-amz-meta-source", "k8s/app.http"),
        ("x-amz-meta-ferry_name", "T1"),
        ("x-amz-request-payer", "requester"),
        ("content-type", "application/json"),
        ("content-md5", "Xj6x/IC5XhZtpbNN2O8BeA=="),
        ("if-none-match", "*"),
    ] {
        assert_eq!(header(put, name), Some(value), "{name} in {put}");
        assert!(signed_headers(put).contains(&name), "{name} of {put}");
    }
    assert_eq!(header(put, "content-encoding"), None, "{put}");
    // S3 refuses a HEAD with the headers of a put.
    let head = &requests[1];
    assert!(head.starts_with("HEAD /logs/a/x.json HTTP"), "{head}");
    let amazon = signed_headers(head).into_iter();
    let amazon: Vec<_> = amazon.filter(|name| name.starts_with("x-amz-")).collect();
    assert_eq!(
        amazon,
        ["x-amz-content-sha256", "x-amz-date", "x-amz-request-payer"]
    );
    #[cfg(feature = "firehose")]
    for request in &requests {
        assert_signed(request);
    }
}

#[tokio::test]
async fn an_object_without_settings_has_none_of_their_headers() {
    const NAME: &str =
        "sink::blob::tests::settings::an_object_without_settings_has_none_of_their_headers";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let server = Loopback::start(vec![created()]);
    let sink = sink_of(&[("url", "s3://logs"), ("endpoint", &server.url())]);
    assert_eq!(put_tagged(&sink, "t").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    let names: Vec<&str> = put
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .filter(|name| name.starts_with("x-amz-") || name.starts_with("content-"))
        .collect();
    let mut names = names;
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "content-encoding",
            "content-length",
            "content-type",
            "x-amz-checksum-sha256",
            "x-amz-content-sha256",
            "x-amz-date",
            "x-amz-meta-ferry_name"
        ]
    );
    assert_eq!(header(&put, "content-encoding"), Some("gzip"));
}

#[tokio::test]
async fn everything_that_an_object_of_azure_has_is_sent() {
    let server = Loopback::start(vec![created()]);
    let sink = sink_of(&[
        ("url", "az://logs"),
        ("emulator_mode", "on"),
        ("endpoint", &server.url()),
        ("access_tier", "cool"),
        ("encryption_scope", "secret-logs"),
        ("object_tags", "team=logs,app={tag}"),
        ("object_metadata", "owner=platform"),
        ("send_content_md5", "on"),
    ]);
    assert_eq!(put_tagged(&sink, "app.http").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    for (name, value) in [
        ("x-ms-access-tier", "Cool"),
        ("x-ms-encryption-scope", "secret-logs"),
        ("x-ms-tags", "team=logs&app=app.http"),
        ("x-ms-meta-owner", "platform"),
        ("content-md5", "Xj6x/IC5XhZtpbNN2O8BeA=="),
        ("if-none-match", "*"),
    ] {
        assert_eq!(header(&put, name), Some(value), "{name} in {put}");
    }
    let authorization = header(&put, "authorization").unwrap_or_default();
    assert!(authorization.starts_with("SharedKey "), "{authorization}");
}

#[tokio::test]
async fn everything_that_an_object_of_google_has_is_sent() {
    let server = Loopback::start(vec![created()]);
    let sink = sink_of(&[
        ("url", "gs://logs"),
        ("endpoint", &server.url()),
        ("kms_key", "projects/p/locations/eu/keyRings/r/cryptoKeys/k"),
        ("storage_class", "NEARLINE"),
        ("object_metadata", "source={tag}"),
        ("send_content_md5", "on"),
    ]);
    assert_eq!(put_tagged(&sink, "app.http").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    let key = "projects/p/locations/eu/keyRings/r/cryptoKeys/k";
    for (name, value) in [
        ("x-goog-encryption-kms-key-name", key),
        ("x-goog-storage-class", "NEARLINE"),
        ("x-goog-meta-source", "app.http"),
        ("content-md5", "Xj6x/IC5XhZtpbNN2O8BeA=="),
        ("authorization", "Bearer none"),
    ] {
        assert_eq!(header(&put, name), Some(value), "{name} in {put}");
    }
}

#[tokio::test]
async fn the_parts_of_a_tag_are_those_of_the_folder() {
    let server = Loopback::start(vec![created()]);
    let sink = sink_of(&[
        ("url", "az://logs"),
        ("emulator_mode", "on"),
        ("endpoint", &server.url()),
        ("tag_delimiters", ".-"),
        ("path", "{tag[1]}/%F"),
        ("object_tags", "app={tag[1]}"),
    ]);
    assert_eq!(put_tagged(&sink, "app-one.x").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    assert_eq!(header(&put, "x-ms-tags"), Some("app=one"), "{put}");
}

/// A tag may have any characters; those that a store does not take become `_`, and a hash tells the values apart.
#[tokio::test]
async fn a_tag_that_no_header_can_carry_is_sent_as_far_as_it_can() {
    let server = Loopback::start(vec![created()]);
    let sink = sink_of(&[
        ("url", "az://logs"),
        ("emulator_mode", "on"),
        ("endpoint", &server.url()),
        ("object_tags", "app={tag}"),
        ("object_metadata", "app={tag}"),
    ]);
    assert_eq!(put_tagged(&sink, "주문,a\n").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    let hash = "u7fikqe52ohrhavhxxpr";
    for (name, value) in [
        ("x-ms-tags", format!("app=___a__{hash}")),
        ("x-ms-meta-app", format!("__,a_~{hash}")),
    ] {
        assert_eq!(header(&put, name), Some(&*value), "{put}");
    }
}

#[tokio::test]
async fn a_store_may_have_an_ipv6_address() {
    const NAME: &str = "sink::blob::tests::settings::a_store_may_have_an_ipv6_address";
    let Some(server) = Loopback::start_v6(vec![created()]) else {
        return;
    };
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let url = server.url();
    assert!(url.starts_with("http://[::1]:"), "{url}");
    let sink = sink_of(&[("url", "s3://logs"), ("endpoint", &url)]);
    assert_eq!(put_tagged(&sink, "t").await, Outcome::Delivered);
    let put = server.requests().remove(0);
    assert!(put.starts_with("PUT /logs/a/x.json HTTP"), "{put}");
    assert_eq!(header(&put, "host"), Some(&url["http://".len()..]));
    #[cfg(feature = "firehose")]
    assert_signed(&put);
}

/// A store without `If-None-Match`: the object is written under its name again, and nothing else is asked for.
#[tokio::test]
async fn without_conditions_a_lost_answer_makes_the_same_object_again() {
    const NAME: &str =
        "sink::blob::tests::settings::without_conditions_a_lost_answer_makes_the_same_object_again";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    let server = Loopback::start(vec![
        error(501, "NotImplemented"),
        Reply::Cut,
        created(),
        error(409, "OperationAborted"),
        created(),
    ]);
    let url = server.url();
    let common = [("url", "s3://logs"), ("endpoint", url.as_str())];
    let conditional = sink_of(&common);
    let refused = told(&put_tagged(&conditional, "t").await);
    assert!(
        refused.starts_with("retry Configuration NotImplemented: It is so")
            && refused.contains("set conditional_put off"),
        "{refused}"
    );
    let sink = sink_of(&[&common[..], &[("conditional_put", "off")]].concat());
    let lost = told(&put_tagged(&sink, "t").await);
    assert!(
        lost.starts_with("ambiguous Transient interrupted"),
        "{lost}"
    );
    assert_eq!(put_tagged(&sink, "t").await, Outcome::Delivered);
    let raced = told(&put_tagged(&sink, "t").await);
    assert!(
        raced.starts_with("retry Transient OperationAborted"),
        "{raced}"
    );
    assert_eq!(put_tagged(&sink, "t").await, Outcome::Delivered);

    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!(header(&requests[0], "if-none-match"), Some("*"));
    let unsigned = |request: &str| {
        let lines = request.lines();
        let stable = lines.filter(|line| {
            !line.starts_with("authorization: ") && !line.starts_with("x-amz-date: ")
        });
        let mut stable: Vec<String> = stable.map(str::to_owned).collect();
        stable.sort();
        stable
    };
    for put in &requests[1..] {
        assert!(put.starts_with("PUT /logs/a/x.json HTTP"), "{put}");
        assert_eq!(header(put, "if-none-match"), None, "{put}");
        assert_eq!(unsigned(put), unsigned(&requests[1]), "the same each time");
    }
}

/// What a store refuses of them is said with the key to mend, and holds the object back.
#[tokio::test]
async fn a_refused_setting_holds_the_object_back_and_names_its_key() {
    const NAME: &str =
        "sink::blob::tests::settings::a_refused_setting_holds_the_object_back_and_names_its_key";
    if !with_environment(NAME, &AWS_KEYS) {
        return;
    }
    for (status, code, key) in [
        (400, "KMS.NotFoundException", "sse_kms_key_id"),
        (400, "KMS.AccessDeniedException", "sse_kms_key_id"),
        (400, "InvalidStorageClass", "storage_class"),
        (400, "AccessControlListNotSupported", "canned_acl"),
        (400, "InvalidTag", "object_tags"),
        (400, "MetadataTooLarge", "object_metadata"),
        (400, "InvalidEncryptionAlgorithmError", "sse"),
        (403, "SecondLevelDomainForbidden", "s3_addressing"),
        (
            409,
            "BlobAccessTierNotSupportedForAccountType",
            "access_tier",
        ),
    ] {
        let absent = || answer(404, &[], "");
        let server = Loopback::start(vec![error(status, code), absent()]);
        let outcome = told(
            &put_tagged(
                &super::sink(s3(server.url()), &Ear::default()).unwrap(),
                "t",
            )
            .await,
        );
        assert!(
            outcome.starts_with(&format!("retry Configuration {code}")) && outcome.contains(key),
            "{outcome}"
        );
    }
}
