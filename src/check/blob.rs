//! Checks of a blob store: that the container, bucket or folder exists, and may be read and written.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Options, Report, aws, disk, examples, net, warn_of_unfilled, within};
use crate::codec::template::Template;
use crate::config::{
    self, AzureAuth, Config, ConnectionSecret, ConnectionString, SecretSource, Store,
};
use crate::sink::blob::probe::{Absent, Refusal};
use crate::sink::blob::{BlobSink, Warn};
use crate::sink::{Batch, Class, Fault, Outcome, Sink as _};

/// The remaining lifetime of a shared access signature below which to warn.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 86_400);

/// Checks everything of a blob output but the spool.
pub(super) async fn check(
    config: &Config,
    blob: &config::Blob,
    prefix: &str,
    folder: &Template,
    options: &Options,
    report: &mut Report<'_>,
) {
    let folders = examples(folder, options);
    for folder in &folders {
        let name = [prefix, folder]
            .map(|part| part.trim_matches('/'))
            .join("/");
        report.ok(
            "path",
            format!("objects are written to {}/", name.trim_matches('/')),
        );
    }
    warn_of_unfilled("path", folder, options, report);
    if folders.is_empty() {
        report.skip(
            "path",
            "depends on each record, and neither Match nor the spool has an example: give one with --tag and --record",
        );
    }
    if let Store::File(root) = &blob.store {
        disk::destination(root, options, report).await;
        if !options.put {
            report.skip("put", NO_PUT);
            return;
        }
    }
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    let collected = Arc::clone(&warnings);
    let warn: Warn = Arc::new(move |line| {
        collected
            .lock()
            .expect("nothing panics with this lock")
            .push(line.to_owned());
    });
    let sink = match BlobSink::new(blob, warn) {
        Ok(sink) => sink,
        Err(problem) => {
            report.add(
                "configuration",
                super::Mark::Fail,
                problem.to_string(),
                None,
            );
            return;
        }
    };
    if !matches!(blob.store, Store::File(_)) {
        if !reach(blob, &sink, options, report).await {
            report.skip(
                kind(&blob.store),
                "not tried until the failures above are fixed",
            );
            return;
        }
        if !probe(blob, &sink, prefix, options, report).await {
            return;
        }
    }
    put(config, blob, &sink, prefix, options, report).await;
    for line in warnings
        .lock()
        .expect("nothing panics with this lock")
        .drain(..)
    {
        report.warn("store", line, "investigate it");
    }
}

const NO_PUT: &str = "nothing is written without --put; it writes one small object and removes it";

/// Returns the store's term for what contains objects.
fn kind(store: &Store) -> &'static str {
    match store {
        Store::File(_) => "folder",
        Store::S3 { .. } | Store::Gcs { .. } => "bucket",
        Store::Azure(_) => "container",
    }
}

/// Checks the network and the credentials. Returns whether both work.
async fn reach(
    blob: &config::Blob,
    sink: &BlobSink,
    options: &Options,
    report: &mut Report<'_>,
) -> bool {
    let (skew, authenticated) = match &blob.store {
        Store::S3 { aws, .. } => {
            let ca = blob.ca_pem.as_deref();
            let Some(loaded) = aws::load(aws, ca, options, report).await else {
                return false;
            };
            let url = sink.address().await.unwrap_or_default();
            let authenticated =
                aws::credentials(&loaded, aws, aws::is_aws(&url), options, report).await;
            (net::S3_SKEW, authenticated)
        }
        Store::Azure(azure) => {
            let authenticated = match within(options, sink.token()).await {
                Ok(None) => azure_secret(azure, report),
                Ok(Some(token)) => report_token(token, report),
                Err(timeout) => {
                    report.fail(
                        "credentials",
                        format!("no token: {timeout}"),
                        "try again; see --timeout",
                    );
                    false
                }
            };
            (net::AZURE_SKEW, authenticated)
        }
        Store::Gcs { .. } | Store::File(_) => (net::GOOGLE_SKEW, true),
    };
    let url = match sink.address().await.map(|url| url.parse()) {
        Ok(Ok(url)) => url,
        Ok(Err(_)) => {
            report.fail("endpoint", "is not a URL", "write https://host");
            return false;
        }
        Err(fault) => {
            report.fail("endpoint", fault.to_string(), "correct the endpoint");
            return false;
        }
    };
    let service = net::Service {
        url,
        ca_pem: blob.ca_pem.clone(),
        skew,
    };
    net::check(service, options, report).await && authenticated
}

/// Reports the identity of a token, or the failure to fetch one. Returns whether there is one.
fn report_token(
    token: Result<(String, Option<SystemTime>), Fault>,
    report: &mut Report<'_>,
) -> bool {
    match token {
        Ok((identity, expiry)) => {
            let expiry = expiry
                .map(|time| DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true));
            let until = expiry.map_or(String::new(), |time| format!(", until {time}"));
            report.ok("credentials", format!("a token for {identity}{until}"));
            true
        }
        Err(fault) => {
            report.fail(
                "credentials",
                fault.to_string(),
                "fix what Microsoft Entra ID or this machine's metadata service reports",
            );
            false
        }
    }
}

/// Checks Azure's secrets as far as that is possible offline. Returns whether they may be valid.
fn azure_secret(azure: &config::Azure, report: &mut Report<'_>) -> bool {
    let text = |source: &SecretSource| match source {
        SecretSource::Value(secret) => secret.expose().to_owned(),
        // The sink has reported a file that cannot be read.
        SecretSource::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
    };
    let sas = match &azure.auth {
        AzureAuth::Sas(source) => Some(text(source)),
        AzureAuth::ConnectionString(source) => match ConnectionString::parse(&text(source)) {
            Ok(ConnectionString {
                secret: ConnectionSecret::Sas(sas),
                ..
            }) => Some(sas.expose().to_owned()),
            _ => None,
        },
        _ => None,
    };
    let Some(sas) = sas else {
        report.ok(
            "credentials",
            format!("a shared key of the account '{}'", azure.account),
        );
        return true;
    };
    check_sas(&Sas::read(&sas), Utc::now(), report)
}

/// The parameters of a shared access signature that are not secret.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sas {
    permissions: Option<String>,
    starts: Option<DateTime<Utc>>,
    ends: Option<DateTime<Utc>>,
}

impl Sas {
    fn read(text: &str) -> Sas {
        let mut sas = Sas::default();
        let query = text.trim().trim_start_matches('?');
        let Ok(url) = url::Url::parse(&format!("sas:/?{query}")) else {
            return sas;
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "sp" => sas.permissions = Some(value.into_owned()),
                "st" => sas.starts = sas_time(&value),
                "se" => sas.ends = sas_time(&value),
                _ => {}
            }
        }
        sas
    }
}

/// Parses the forms of ISO 8601 that a signature may contain, always in UTC:
/// <https://learn.microsoft.com/rest/api/storageservices/formatting-datetime-values>
fn sas_time(text: &str) -> Option<DateTime<Utc>> {
    let plain = text.strip_suffix('Z').unwrap_or(text);
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let time = forms
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(plain, form).ok());
    let day = || {
        NaiveDate::parse_from_str(plain, "%Y-%m-%d")
            .ok()?
            .and_hms_opt(0, 0, 0)
    };
    time.or_else(day).map(|time| time.and_utc())
}

fn check_sas(sas: &Sas, now: DateTime<Utc>, report: &mut Report<'_>) -> bool {
    let permissions = sas.permissions.as_deref();
    let shown = format!(
        "a shared access signature with the permissions '{}', until {}",
        permissions.unwrap_or("of its policy"),
        sas.ends
            .map_or("its policy ends".to_owned(), |ends| ends.to_rfc3339())
    );
    let renew = "issue a new one, with the permissions c, w and r";
    let left = sas.ends.map(|ends| ends - now);
    if left.is_some_and(|left| left <= chrono::TimeDelta::zero()) {
        report.fail("credentials", format!("{shown}: it has expired"), renew);
        return false;
    }
    if sas.starts.is_some_and(|starts| starts > now) {
        report.fail(
            "credentials",
            format!("{shown}: it is not valid yet"),
            "wait, or issue a new one",
        );
        return false;
    }
    let allows = |letter: char| permissions.is_none_or(|letters| letters.contains(letter));
    if !allows('c') && !allows('w') {
        report.fail(
            "credentials",
            format!("{shown}: it does not allow creating objects"),
            renew,
        );
        return false;
    }
    if !allows('r') {
        let message = format!(
            "{shown}: without r Ferry cannot tell its own objects from others after a lost response"
        );
        report.warn("credentials", message, renew);
    } else if left
        .and_then(|left| left.to_std().ok())
        .is_some_and(|left| left < EXPIRES_SOON)
    {
        report.warn(
            "credentials",
            format!("{shown}: it expires soon"),
            "issue a new one; with @/path it is read without a restart",
        );
    } else {
        report.ok("credentials", shown);
    }
    true
}

/// Returns a name that no object has.
fn unused_name(prefix: &str) -> String {
    let mut name = String::new();
    crate::codec::template::compact_time(crate::codec::time::now(), &mut name);
    let random: u64 = StdRng::from_os_rng().random();
    let prefix = prefix.trim_matches('/');
    let name = format!("{prefix}/ferry-check-{name}-{random:016x}.txt");
    name.trim_start_matches('/').to_owned()
}

/// Requests an object that does not exist: the error tells whether the container does. Returns whether to go on.
async fn probe(
    blob: &config::Blob,
    sink: &BlobSink,
    prefix: &str,
    options: &Options,
    report: &mut Report<'_>,
) -> bool {
    let kind = kind(&blob.store);
    let store = &blob.store;
    let auto_create = matches!(store, Store::Azure(azure) if azure.auto_create_container);
    match within(options, sink.probe(&unused_name(prefix))).await {
        Ok(Ok(Absent::Object)) => {
            report.ok(kind, format!("'{store}' exists and can be read"));
            true
        }
        Ok(Ok(Absent::Container)) if auto_create => {
            report.warn(
                kind,
                format!(
                    "'{store}' does not exist; Ferry creates it (auto_create_container) if it has the permission"
                ),
                "create it, or try --put, which creates it",
            );
            true
        }
        Ok(Ok(Absent::Container)) => {
            report.fail(
                kind,
                format!("'{store}' does not exist"),
                format!("create the {kind}, or correct its name"),
            );
            false
        }
        Ok(Err(refusal)) => report_refusal(kind, store, &refusal, report),
        Err(timeout) => {
            report.fail(
                kind,
                format!("'{store}': {timeout}"),
                "try again; see --timeout",
            );
            false
        }
    }
}

fn report_refusal(
    kind: &'static str,
    store: &Store,
    refusal: &Refusal,
    report: &mut Report<'_>,
) -> bool {
    let fault = &refusal.fault;
    // Azure sends this for a network rule, and Azurite for a wrong key or signature.
    let blocked = matches!(store, Store::Azure(_)) && fault.code == "AuthorizationFailure";
    if fault.class == Class::Credentials || blocked {
        let remedy = match store {
            Store::Azure(azure) if !azure.auth.is_secret() => {
                "check that the identity belongs to the account's tenant, and this machine's clock"
            }
            Store::Azure(_) => {
                "check account_name, the key or signature, and the network rules of the account"
            }
            Store::Gcs { .. } => "check GOOGLE_APPLICATION_CREDENTIALS or the machine's identity",
            _ => "renew the credentials, and check this machine's clock",
        };
        report.fail(
            "credentials",
            format!("the store refuses them: {fault}"),
            remedy,
        );
        return false;
    }
    if refusal.status == Some(404) {
        report.warn(
            kind,
            format!("the response for '{store}' may not be the store's: {fault}"),
            "check the endpoint, and look for a proxy in between; or try --put",
        );
        return true;
    }
    if refusal.status == Some(403) {
        let remedy = match store {
            Store::Azure(azure) if !azure.auth.is_secret() => {
                "assign the role, which may take minutes to take effect"
            }
            Store::Azure(_) => "give the signature the permission r; or try --put",
            // https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
            Store::S3 { .. } => {
                "allow s3:GetObject and s3:PutObject; without s3:ListBucket S3 responds like this for any missing object, so try --put"
            }
            _ => "allow reading and creating objects; or try --put",
        };
        report.warn(kind, format!("'{store}' may not be read: {fault}"), remedy);
        return true;
    }
    let remedy = "check the name and the endpoint; if they are right, check the service's health";
    report.fail(kind, format!("'{store}': {fault}"), remedy);
    false
}

/// Returns the remedy for an object that was not accepted.
fn put_remedy(store: &Store, fault: &Fault) -> &'static str {
    // The codes of S3, Google and Azure for missing permissions; a response to HEAD has no code.
    let denied = [
        "AccessDenied",
        "Authorization",
        "InsufficientAccountPermissions",
        "HTTP 403",
    ]
    .iter()
    .any(|code| fault.code.starts_with(code));
    match (store, fault.class) {
        (Store::File(_), _) => "the file system needs space, permissions and hard links",
        (_, Class::Credentials) => "renew the credentials",
        (Store::S3 { .. }, _) if denied => {
            "allow s3:PutObject, with object_tags s3:PutObjectTagging, with canned_acl s3:PutObjectAcl, and with sse aws:kms \
             kms:GenerateDataKey for the key"
        }
        (Store::Azure(azure), _) if denied && !azure.auth.is_secret() => "assign the role",
        (Store::Azure(_), _) if denied => {
            "give the signature the permissions c and w, and t with object_tags"
        }
        (Store::Gcs { .. }, _) if denied => "allow storage.objects.create",
        (_, Class::Configuration) => {
            "fix what the store reports, at the destination or in the configuration"
        }
        (_, Class::Throttle) => "none: try again later",
        _ => "try again; if it persists, check the service's health",
    }
}

/// Writes and removes a small object, if requested.
async fn put(
    config: &Config,
    blob: &config::Blob,
    sink: &BlobSink,
    prefix: &str,
    options: &Options,
    report: &mut Report<'_>,
) {
    if !options.put {
        report.skip("put", NO_PUT);
        return;
    }
    let name = unused_name(prefix);
    let body = config
        .compression
        .apply(b"an object of ferry check: it may be removed\n");
    let batch = Batch {
        target: name.as_str().into(),
        tag: (*b"ferry-check").into(),
        records: vec![Bytes::from(body).into()],
        token: Some("ferry-check".into()),
    };
    match within(options, sink.send(batch))
        .await
        .map(|mut outcomes| outcomes.pop())
    {
        Ok(Some(Outcome::Delivered)) => {}
        Ok(Some(Outcome::Retry(fault) | Outcome::Ambiguous(fault) | Outcome::Rejected(fault))) => {
            let remedy = put_remedy(&blob.store, &fault);
            return report.fail(
                "put",
                format!("'{name}' could not be written: {fault}"),
                remedy,
            );
        }
        Ok(None) => return report.fail("put", "no response", "try again"),
        Err(timeout) => return report.fail("put", timeout, "try again; see --timeout"),
    }
    match within(options, sink.remove(&name)).await {
        Ok(Ok(())) => report.ok("put", format!("'{name}' was written and removed")),
        Ok(Err(Refusal { fault, .. })) => report.warn(
            "put",
            format!("'{name}' was written, but may not be removed, which Ferry never needs to do: {fault}"),
            "remove it by hand",
        ),
        Err(timeout) => report.warn("put", format!("'{name}' was written; removing it: {timeout}"), "remove it by hand"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_for_an_object_that_was_not_accepted_fits_the_stores_error() {
        let s3 = Store::S3 {
            bucket: "logs".into(),
            aws: config::Aws::default(),
        };
        let table = [
            (Class::Configuration, "AccessDenied", "allow s3:PutObject"),
            (
                Class::Configuration,
                "InvalidRequest",
                "fix what the store reports",
            ),
            (
                Class::Configuration,
                "KMS.DisabledException",
                "fix what the store reports",
            ),
            (Class::Credentials, "ExpiredToken", "renew the credentials"),
            (Class::Throttle, "SlowDown", "none"),
            (Class::Transient, "InternalError", "try again"),
        ];
        for (class, code, remedy) in table {
            let fault = Fault {
                class,
                code: code.to_owned(),
                message: String::new(),
                request_id: None,
            };
            assert!(put_remedy(&s3, &fault).starts_with(remedy), "{code}");
        }
    }
    use crate::check::Mark;

    #[test]
    fn a_signature_is_read_without_its_secret() {
        let now = DateTime::parse_from_rfc3339("2026-05-01T00:00:00Z")
            .unwrap()
            .to_utc();
        let table = [
            (
                "?sv=1&sp=rcw&se=2027-01-01T00%3A00%3A00Z&sig=secret",
                Mark::Ok,
            ),
            ("sp=rcw&se=2027-01-01&sig=secret", Mark::Ok),
            ("si=policy&sig=secret", Mark::Ok),
            ("sp=rcw&se=2026-05-02T00:00Z&sig=secret", Mark::Warn),
            ("sp=cw&se=2027-01-01&sig=secret", Mark::Warn),
            ("sp=rl&se=2027-01-01&sig=secret", Mark::Fail),
            ("sp=rcw&se=2026-04-30&sig=secret", Mark::Fail),
            ("sp=rcw&st=2026-06-01&se=2027-01-01&sig=secret", Mark::Fail),
        ];
        for (text, mark) in table {
            let mut findings = Vec::new();
            let mut report = Report {
                said: &mut std::collections::HashMap::new(),
                output: "x",
                sink: &mut |finding| findings.push(finding),
            };
            let valid = check_sas(&Sas::read(text), now, &mut report);
            assert_eq!(
                (findings[0].mark, valid),
                (mark, mark != Mark::Fail),
                "{text}"
            );
            assert!(
                !findings[0].to_string().contains("secret"),
                "{}",
                findings[0]
            );
        }
    }
}
