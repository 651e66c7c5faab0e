//! The blob sink against real services: Azurite for Azure, moto for S3 and STS.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferry::config::{
    Aws, Azure, AzureAuth, Blob, Config, Destination, ObjectSettings, Secret, SecretSource, Store,
};
use ferry::sink::blob::BlobSink;
use ferry::sink::{Batch, Class, Outcome, Sink};
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Attribute, ObjectStore, ObjectStoreExt};
use reqwest::{Client, Method, Response};

use crate::support;
use crate::support::emulators::{Azurite, azurite, azurite_tls, moto};

const BODY: &[u8] = b"\x1f\x8b stands for a compressed body";
/// A SAS accepted by every Azurite: signed with the well-known key, with all permissions, valid until 2099.
const SAS: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&spr=https,http&\
                   sig=jlSI%2B5DohmjtlB2oCr2Vhd9u7l%2F%2FvB9E8D7vhfmKGX4%3D";
/// The same, read-only.
const SAS_READ: &str = "sv=2021-12-02&ss=b&srt=sco&sp=r&se=2099-01-01T00%3A00%3A00Z&spr=https,http&\
                        sig=Z22ARgKlx1Xu5AXgowNuaIWr8SkcM2TbzpleLaVK024%3D";
/// The same, expired in 2020.
const SAS_EXPIRED: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2020-01-01T00%3A00%3A00Z&spr=https,http&\
                           sig=co3goPa1b4z5UhprfvnaLAJDbxHIpvhP8TP5As4kSs0%3D";

fn key(value: &str) -> AzureAuth {
    AzureAuth::SharedKey(SecretSource::Value(Secret::new(value)))
}

fn sas(value: &str) -> AzureAuth {
    AzureAuth::Sas(SecretSource::Value(Secret::new(value)))
}

fn azure(server: &Azurite, container: &str, auth: AzureAuth, auto_create_container: bool) -> Blob {
    blob(Store::Azure(Azure {
        account: Azurite::ACCOUNT.into(),
        container: container.into(),
        auth,
        endpoint: Some(server.blob_url()),
        emulator: true,
        auto_create_container,
        cloud: None,
    }))
}

fn blob(store: Store) -> Blob {
    Blob {
        store,
        content_type: "application/x-ndjson".into(),
        content_encoding: Some("gzip"),
        objects: ObjectSettings::default(),
        ca_pem: None,
    }
}

/// A sink, and its warnings.
fn sink(blob: &Blob) -> (BlobSink, Arc<Mutex<Vec<String>>>) {
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&warnings);
    let warn = Arc::new(move |text: &str| log.lock().unwrap().push(text.to_owned()));
    (
        BlobSink::new(blob, warn).expect("the configuration is right"),
        warnings,
    )
}

async fn put(sink: &BlobSink, target: &str, body: &'static [u8]) -> Outcome {
    let batch = Batch {
        target: target.into(),
        tag: (*b"t").into(),
        records: vec![Bytes::from_static(body).into()],
        token: None,
    };
    sink.send(batch).await.remove(0)
}

/// Requests an object or a list like a plain HTTP client.
async fn request(method: Method, url: &str) -> Response {
    support::install_tls();
    let client = Client::builder()
        .no_proxy()
        .build()
        .expect("a client can be built");
    client
        .request(method, url)
        .send()
        .await
        .expect("the emulator responds")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().expect("text"))
}

async fn names(server: &Azurite, container: &str) -> Vec<String> {
    let list = format!(
        "{}/{container}?restype=container&comp=list&{SAS}",
        server.blob_url()
    );
    let list = request(Method::GET, &list)
        .await
        .text()
        .await
        .expect("a list");
    let names = list
        .split("<Name>")
        .skip(1)
        .filter_map(|rest| rest.split("</Name>").next());
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn an_object_reaches_azure_once_with_its_type_encoding_and_name() {
    let server = azurite();
    for (container, auth) in [("by-key", key(Azurite::KEY)), ("by-sas", sas(SAS))] {
        let (sink, warnings) = sink(&azure(server, container, auth, true));
        sink.prepare().await.expect("the container is created");
        sink.prepare().await.expect("it may already exist");
        for _ in 0..2 {
            assert_eq!(
                put(&sink, "logs/2025/11/a b+c é.json.gz", BODY).await,
                Outcome::Delivered
            );
        }
        assert_eq!(
            names(server, container).await,
            ["logs/2025/11/a b+c é.json.gz"]
        );
        let url = format!(
            "{}/{container}/logs/2025/11/a%20b+c%20%C3%A9.json.gz?{SAS}",
            server.blob_url()
        );
        let object = request(Method::GET, &url).await;
        assert_eq!(header(&object, "content-type"), "application/x-ndjson");
        assert_eq!(header(&object, "content-encoding"), "gzip");
        assert_eq!(header(&object, "x-ms-blob-type"), "BlockBlob");
        assert_eq!(
            header(&object, "x-ms-meta-ferry_name"),
            "a b+c %C3%A9.json.gz"
        );
        assert_eq!(object.bytes().await.unwrap(), BODY);
        assert!(warnings.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_connection_string_reaches_azure_and_is_read_again_when_its_file_changes() {
    let server = azurite();
    let url = server.blob_url();
    let with_key = |key: &str| {
        format!(
            "DefaultEndpointsProtocol=http;AccountName={};AccountKey={key};BlobEndpoint={url};",
            Azurite::ACCOUNT
        )
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let by_file = format!("@{}", file.path().display());
    std::fs::write(file.path(), with_key(Azurite::KEY)).unwrap();
    let table = [
        ("string-key", with_key(Azurite::KEY)),
        (
            "string-sas",
            format!(
                "BlobEndpoint={url};SharedAccessSignature={SAS};AccountName={}",
                Azurite::ACCOUNT
            ),
        ),
        ("string-file", by_file),
    ];
    for (container, text) in table {
        let keys = |key: &str| match key {
            "container_name" => Some(container.to_owned()),
            "connection_string" => Some(text.clone()),
            _ => None,
        };
        let config = Config::read(&keys).expect("a good configuration");
        let Destination::Blob { blob, .. } = config.destination else {
            panic!("{:?}", config.destination)
        };
        let (sink, warnings) = sink(&blob);
        assert_eq!(put(&sink, "one", BODY).await, Outcome::Delivered);
        assert_eq!(names(server, container).await, ["one"]);
        if text.starts_with('@') {
            // Rotations: to a wrong key, then to another account, then back.
            std::fs::write(file.path(), with_key("c29tZW9uZSBlbHNlJ3M=")).unwrap();
            let refused = put(&sink, "two", BODY).await;
            assert!(matches!(refused, Outcome::Retry(_)), "{refused:?}");
            let other = with_key(Azurite::KEY).replace(Azurite::ACCOUNT, "other");
            std::fs::write(file.path(), other).unwrap();
            let refused = put(&sink, "two", BODY).await;
            assert!(matches!(refused, Outcome::Retry(_)), "{refused:?}");
            std::fs::write(file.path(), with_key(Azurite::KEY)).unwrap();
            assert_eq!(put(&sink, "two", BODY).await, Outcome::Delivered);
            let warnings = warnings.lock().unwrap();
            assert!(
                warnings[0].contains("names another account"),
                "{warnings:?}"
            );
        } else {
            assert!(warnings.lock().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn odd_names_stay_distinct_in_azure() {
    let server = azurite();
    let (sink, warnings) = sink(&azure(server, "odd-names", key(Azurite::KEY), true));
    let odd = [
        "a/b",
        "a//b",
        "a/../b",
        "a/b.",
        "a/b\\c",
        "a/b#1",
        "a/%2Fb",
        "a/b?c&d",
        "a/[x]{y}~'",
        "日本/\n",
    ];
    for name in odd {
        assert_eq!(put(&sink, name, BODY).await, Outcome::Delivered, "{name}");
    }
    let stored = names(server, "odd-names").await;
    assert_eq!(stored.len(), odd.len(), "{stored:?}");
    assert!(warnings.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_deleted_container_is_recreated() {
    let server = azurite();
    let (sink, _) = sink(&azure(server, "goes-missing", sas(SAS), true));
    assert_eq!(put(&sink, "one", BODY).await, Outcome::Delivered);
    let container = format!("{}/goes-missing?restype=container&{SAS}", server.blob_url());
    assert!(
        request(Method::DELETE, &container)
            .await
            .status()
            .is_success()
    );
    assert_eq!(put(&sink, "two", BODY).await, Outcome::Delivered);
    assert_eq!(names(server, "goes-missing").await, ["two"]);
}

#[tokio::test]
async fn another_object_with_the_same_name_is_not_changed_in_azure() {
    let server = azurite();
    let (sink, warnings) = sink(&azure(server, "collision", key(Azurite::KEY), true));
    sink.prepare().await.unwrap();
    assert_eq!(put(&sink, "x.json", b"another's").await, Outcome::Delivered);
    assert_eq!(put(&sink, "x.json", BODY).await, Outcome::Delivered);
    assert_eq!(names(server, "collision").await, ["x-c1.json", "x.json"]);
    let url = format!("{}/collision/x.json?{SAS}", server.blob_url());
    assert_eq!(
        request(Method::GET, &url).await.text().await.unwrap(),
        "another's"
    );
    assert_eq!(warnings.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn azures_own_error_messages_are_reported() {
    let server = azurite();
    // Instead of Azure's AuthenticationFailed, Azurite answers AuthorizationFailure, which Azure uses for its firewall.
    // So the class of these faults differs from Azure's.
    let table = [
        (
            key(Azurite::KEY),
            "ContainerNotFound",
            "does not exist; create it, or set auto_create_container on",
        ),
        (
            key("d3Jvbmc="),
            "AuthorizationFailure",
            "failed to authenticate",
        ),
        (
            sas(SAS_EXPIRED),
            "AuthorizationFailure",
            "failed to authenticate",
        ),
        (
            sas(SAS_READ),
            "AuthorizationPermissionMismatch",
            "not authorized to perform this operation",
        ),
    ];
    for (auth, code, words) in table {
        let (sink, _) = sink(&azure(server, "nowhere", auth, false));
        let Outcome::Retry(fault) = put(&sink, "x.json", BODY).await else {
            panic!("{code}")
        };
        assert_eq!(
            (fault.class, fault.code.as_str()),
            (Class::Configuration, code),
            "{fault}"
        );
        assert!(
            fault.message.contains(words) && fault.request_id.is_some(),
            "{fault}"
        );
        assert!(!fault.to_string().contains("sig="), "{fault}");
    }
}

#[tokio::test]
async fn a_private_ca_is_trusted_only_when_it_is_given() {
    let server = azurite_tls();
    let mut blob = azure(server, "private-ca", key(Azurite::KEY), true);
    let Outcome::Retry(fault) = put(&sink(&blob).0, "x.json", BODY).await else {
        panic!("not refused")
    };
    assert_eq!(
        (fault.class, fault.code.as_str()),
        (Class::Configuration, "tls")
    );
    assert!(fault.message.contains("tls_ca_file"), "{fault}");
    blob.ca_pem = server.ca_pem.clone().map(String::into_bytes);
    assert_eq!(
        put(&sink(&blob).0, "x.json", BODY).await,
        Outcome::Delivered
    );
}

#[tokio::test]
async fn an_object_reaches_s3_once_with_credentials_of_an_assumed_role() {
    let url = moto().url();
    let aws = Aws {
        region: Some("eu-west-1".into()),
        endpoint: Some(url.into()),
        sts_endpoint: Some(url.into()),
        role_arn: Some("arn:aws:iam::123456789012:role/ferry".into()),
        external_id: Some("ours".into()),
        ..Aws::default()
    };
    let (sink, warnings) = sink(&blob(Store::S3 {
        bucket: "ferry-logs".into(),
        aws,
    }));
    sink.prepare().await.expect("region and credentials exist");
    let Outcome::Retry(fault) = put(&sink, "x", BODY).await else {
        panic!("no bucket, no refusal")
    };
    assert_eq!(
        (fault.class, fault.code.as_str()),
        (Class::Configuration, "NoSuchBucket")
    );

    assert!(
        request(Method::PUT, &format!("{url}/ferry-logs"))
            .await
            .status()
            .is_success()
    );
    for _ in 0..2 {
        assert_eq!(
            put(&sink, "logs/a b é//x.json.gz", BODY).await,
            Outcome::Delivered
        );
    }
    let reader = AmazonS3Builder::new()
        .with_bucket_name("ferry-logs")
        .with_endpoint(url)
        .with_allow_http(true)
        .with_access_key_id("a")
        .with_secret_access_key("b")
        .build()
        .expect("a client can be built");
    let object = reader
        .get(&Path::parse("logs/a b é/%/x.json.gz").unwrap())
        .await
        .expect("the object");
    let expected = [
        (Attribute::ContentType, "application/x-ndjson"),
        (Attribute::ContentEncoding, "gzip"),
        (Attribute::Metadata("ferry_name".into()), "x.json.gz"),
    ];
    for (attribute, value) in expected {
        assert_eq!(
            object.attributes.get(&attribute).map(AsRef::as_ref),
            Some(value)
        );
    }
    assert_eq!(object.bytes().await.unwrap(), BODY);

    assert_eq!(
        put(&sink, "logs/a b é//x.json.gz", b"another").await,
        Outcome::Delivered
    );
    assert_eq!(
        warnings.lock().unwrap().len(),
        1,
        "the second is kept next to the first"
    );
    let stored: Vec<_> = reader.list(None).try_collect().await.expect("a list");
    assert_eq!(stored.len(), 2, "{stored:?}");
}

/// Returns the blob settings of a configuration.
fn configured(keys: &[(&str, &str)]) -> Blob {
    let config = Config::read(&|key: &str| {
        let found = keys.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| (*value).to_owned())
    });
    let Destination::Blob { blob, .. } = config.expect("a good configuration").destination else {
        panic!("a blob store")
    };
    blob
}

/// Azurite checks the signature over the headers.
#[tokio::test]
async fn what_objects_have_is_stored_by_azure() {
    let server = azurite();
    let url = server.blob_url();
    for (container, auth, secret) in [
        ("settings-key", "shared_key", Azurite::KEY),
        ("settings-sas", "sas_token", SAS),
    ] {
        let auth_type = if auth == "sas_token" { "sas" } else { "key" };
        let blob = configured(&[
            ("container_name", container),
            ("account_name", Azurite::ACCOUNT),
            ("endpoint", &url),
            ("auth_type", auth_type),
            (auth, secret),
            ("access_tier", "Cool"),
            ("object_tags", "team=logs,source={tag}"),
            ("object_metadata", "owner=platform"),
            ("content_type", "application/json"),
            ("content_encoding", "off"),
            ("send_content_md5", "on"),
        ]);
        let (sink, warnings) = sink(&blob);
        for _ in 0..2 {
            assert_eq!(put(&sink, "x.json.gz", BODY).await, Outcome::Delivered);
        }
        assert!(warnings.lock().unwrap().is_empty());
        let object = request(Method::HEAD, &format!("{url}/{container}/x.json.gz?{SAS}")).await;
        for (name, value) in [
            ("content-type", "application/json"),
            ("content-encoding", ""),
            ("x-ms-access-tier", "Cool"),
            ("x-ms-meta-owner", "platform"),
            ("x-ms-tag-count", "2"),
        ] {
            assert_eq!(header(&object, name), value, "{name} in {container}");
        }
    }
}

#[tokio::test]
async fn what_objects_have_is_stored_by_s3() {
    let url = moto().url();
    moto().create_bucket("ferry-settings");
    let mut blob = configured(&[
        ("bucket", "ferry-settings"),
        ("endpoint", url),
        ("region", "us-east-1"),
        ("sts_endpoint", url),
        ("role_arn", "arn:aws:iam::123456789012:role/ferry"),
        ("sse", "aws:kms"),
        ("sse_kms_key_id", "alias/logs"),
        ("sse_bucket_key", "on"),
        ("storage_class", "STANDARD_IA"),
        ("canned_acl", "public-read"),
        ("object_tags", "team=logs,source={tag}"),
        ("object_metadata", "owner=platform"),
        ("content_type", "application/json"),
        ("content_encoding", "off"),
        ("send_content_md5", "on"),
    ]);
    for overwrite in [false, true] {
        blob.objects.overwrite = overwrite;
        let (sink, warnings) = sink(&blob);
        for _ in 0..2 {
            assert_eq!(put(&sink, "x.json.gz", BODY).await, Outcome::Delivered);
        }
        assert!(warnings.lock().unwrap().is_empty());
    }
    let object = format!("{url}/ferry-settings/x.json.gz");
    let stored = request(Method::GET, &object).await;
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-encoding", ""),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "alias/logs"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-meta-owner", "platform"),
        ("x-amz-tagging-count", "2"),
    ] {
        assert_eq!(header(&stored, name), value, "{name}");
    }
    assert_eq!(stored.bytes().await.unwrap(), BODY);
    let tags = request(Method::GET, &format!("{object}?tagging")).await;
    let tags = tags.text().await.unwrap();
    assert!(
        tags.contains("<Key>source</Key>") && tags.contains("<Value>t</Value>"),
        "{tags}"
    );
    let acl = request(Method::GET, &format!("{object}?acl")).await;
    let acl = acl.text().await.unwrap();
    assert!(acl.contains("AllUsers") && acl.contains("READ"), "{acl}");
    let list = request(Method::GET, &format!("{url}/ferry-settings?list-type=2")).await;
    let list = list.text().await.unwrap();
    assert_eq!(list.matches("<Key>").count(), 1, "{list}");
}
