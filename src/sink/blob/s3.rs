//! S3: where a bucket is, and its client.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AwsCredentialProvider, Checksum, S3ConditionalPut};
use url::{Host, Url};

use super::answer::{Failure, SharedClient, http_client, listening_to};
use super::codes::{Fate, Vendor};
use super::signing::{Signer, Signing};
use super::{BlobSink, CONNECT_TIMEOUT, Kind, Store, check_bucket, endpoint_url, no_retries};
use crate::config::{self, Addressing, Problem, keys};
use crate::sink::Class;
use crate::sink::aws::{self, Loaded};
use crate::sink::http::Proxies;

/// What `bucket` names.
#[derive(Debug, PartialEq, Eq)]
enum Bucket<'b> {
    /// A bucket, or an access point's alias, which is used like one.
    Name(&'b str),
    /// An access point of one region, whose name is a part of the host's.
    AccessPoint { region: &'b str, label: String },
}

/// The address of a bucket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The URL that an object's name is appended to, without a slash at its end.
    pub(super) url: String,
    /// The region that requests are signed for.
    pub(super) region: String,
}

/// Checks what can be known without a region.
pub(super) fn check(bucket: &str, aws: &config::Aws) -> Result<(), Problem> {
    self::bucket(bucket)?;
    aws.endpoint.as_deref().map(endpoint_url).transpose()?;
    Proxies::from_environment()?;
    Ok(())
}

fn bucket(name: &str) -> Result<Bucket<'_>, Problem> {
    let problem = |message: &str| {
        let message = format!("'{name}' {message}");
        Err(Problem::new(keys::URL.name, message))
    };
    let Some(arn) = name.strip_prefix("arn:") else {
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/directory-bucket-naming-rules.html
        if name.ends_with("--x-s3") {
            return problem(
                "is a directory bucket, which needs sessions that Ferry does not open: name a general purpose bucket",
            );
        }
        check_bucket(name)?;
        return Ok(Bucket::Name(name));
    };
    let parts: Vec<&str> = arn.splitn(5, ':').collect();
    let [_, service, region, account, resource] = parts[..] else {
        return problem("is not an ARN: write arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME");
    };
    let point = resource
        .strip_prefix("accesspoint/")
        .or_else(|| resource.strip_prefix("accesspoint:"));
    let is_label = |text: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !text.is_empty() && text.bytes().all(plain)
    };
    match (service, point) {
        ("s3", Some(_)) if region.is_empty() => problem(
            "is a multi-Region access point, whose requests need another kind of signature: name an access point of one \
             region, or a bucket",
        ),
        ("s3", Some(point)) if is_label(point) && is_label(account) && is_label(region) => {
            Ok(Bucket::AccessPoint {
                region,
                label: format!("{point}-{account}"),
            })
        }
        ("s3-object-lambda", _) => {
            problem("is an Object Lambda access point, which takes no objects: name the bucket")
        }
        ("s3-outposts", _) => {
            problem("is on an Outpost: name the alias of its access point instead of its ARN")
        }
        _ => problem(
            "is not the ARN of an access point: write arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME, or the access point's \
             alias",
        ),
    }
}

/// The domain of a region's partition:
/// <https://docs.aws.amazon.com/whitepapers/latest/aws-fault-isolation-boundaries/partitions.html>
fn dns_suffix(region: &str) -> &'static str {
    const SUFFIXES: [(&str, &str); 7] = [
        ("cn-", "amazonaws.com.cn"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("us-isof-", "csp.hci.ic.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("us-isoe-", "cloud.adc-e.uk"),
        ("eusc-", "amazonaws.eu"),
    ];
    let found = SUFFIXES.iter().find(|(start, _)| region.starts_with(start));
    found.map_or("amazonaws.com", |(_, suffix)| suffix)
}

/// Whether a bucket's name can be a host's, which the wildcard certificate covers: it does not cover a dot.
fn is_host_label(bucket: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(plain)
        && !bucket.starts_with('-')
        && !bucket.ends_with('-')
}

/// Returns the address of a bucket. `endpoint`: the URL of the service, if it is not the region's own.
pub(super) fn address(
    name: &str,
    region: &str,
    endpoint: Option<&str>,
    aws: &config::Aws,
    (fips, dualstack): (bool, bool),
) -> Result<Address, Problem> {
    let bucket = bucket(name)?;
    let signed = match bucket {
        Bucket::Name(_) => region,
        Bucket::AccessPoint { region, .. } => region,
    };
    let url = match endpoint {
        Some(endpoint) => at_endpoint(&bucket, endpoint, aws.addressing)?,
        None => {
            let suffix = dns_suffix(signed);
            if fips && signed.starts_with("cn-") {
                let message = "is on, and the regions of China have no FIPS endpoints: set it off";
                return Err(Problem::new(keys::USE_FIPS_ENDPOINT.name, message));
            }
            let kind = if fips { "-fips" } else { "" };
            let stack = if dualstack { ".dualstack" } else { "" };
            match &bucket {
                Bucket::AccessPoint { label, .. } => {
                    format!("https://{label}.s3-accesspoint{kind}{stack}.{signed}.{suffix}")
                }
                Bucket::Name(name) => {
                    let host = format!("s3{kind}{stack}.{signed}.{suffix}");
                    let in_host = match aws.addressing {
                        Addressing::Auto => is_host_label(name),
                        Addressing::Virtual => true,
                        Addressing::Path => false,
                    };
                    match in_host {
                        true => format!("https://{name}.{host}"),
                        false => format!("https://{host}/{name}"),
                    }
                }
            }
        }
    };
    Ok(Address {
        url,
        region: signed.to_owned(),
    })
}

/// Returns the URL of a bucket at a given service: by default in the path, which works without names for each bucket.
fn at_endpoint(
    bucket: &Bucket<'_>,
    endpoint: &str,
    addressing: Addressing,
) -> Result<String, Problem> {
    let mut url = endpoint_url(endpoint)?;
    let label = match bucket {
        Bucket::Name(name) if addressing != Addressing::Virtual => {
            return Ok(format!("{}/{name}", endpoint.trim_end_matches('/')));
        }
        Bucket::Name(name) => (*name).to_owned(),
        Bucket::AccessPoint { label, .. } => label.clone(),
    };
    let host = match url.host() {
        Some(Host::Domain(host)) => host.to_owned(),
        _ => {
            let message = "is virtual, but endpoint has an IP address, which no bucket's name can precede: give a host's name, or \
                           set path";
            return Err(Problem::new(keys::S3_ADDRESSING.name, message));
        }
    };
    if !host.starts_with(&format!("{label}.")) {
        let with_bucket = url.set_host(Some(&format!("{label}.{host}")));
        with_bucket.map_err(|error| {
            let message = format!("'{label}' cannot be a part of a host's name: {error}");
            Problem::new(keys::S3_ADDRESSING.name, message)
        })?;
    }
    Ok(Url::as_str(&url).trim_end_matches('/').to_owned())
}

/// Returns the URL of S3 if it is not the region's own.
fn endpoint(aws: &config::Aws, loaded: &Loaded) -> Option<String> {
    let endpoint = aws.endpoint.clone();
    let endpoint = endpoint.or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok());
    endpoint.or_else(|| loaded.sdk.endpoint_url().map(str::to_owned))
}

/// Returns the address of a bucket with everything that the environment says.
pub(super) fn resolve(name: &str, aws: &config::Aws, loaded: &Loaded) -> Result<Address, Problem> {
    let endpoint = endpoint(aws, loaded);
    if let Some(endpoint) = &endpoint {
        aws::check_fips(loaded.fips, endpoint)?;
    }
    let kinds = (loaded.fips, loaded.dualstack);
    address(name, &loaded.region, endpoint.as_deref(), aws, kinds)
}

impl BlobSink {
    pub(super) async fn open_s3(&self, bucket: &str, aws: &config::Aws) -> Result<Store, Failure> {
        let failure =
            |message: String| Failure::new(Fate::Retry, Class::Configuration, "aws", message);
        let problem = |problem: Problem| failure(format!("{}: {}", problem.key, problem.message));
        let ca_pem = self.config.ca_pem.as_deref();
        let loaded = aws::load(aws, ca_pem).await;
        let loaded = loaded.map_err(|error| failure(error.to_string()))?;
        let Address { url, region } = resolve(bucket, aws, &loaded).map_err(problem)?;
        let proxies = Proxies::from_environment().map_err(problem)?;
        let client = http_client(ca_pem, &proxies, CONNECT_TIMEOUT).map_err(problem)?;
        let credentials: AwsCredentialProvider = Arc::new(loaded.credentials.clone());
        let signer = Signer::S3 {
            credentials: Arc::clone(&credentials),
            region: region.clone(),
            request_payer: self.config.objects.request_payer,
        };
        let client = listening_to(Vendor::S3, client);
        let client = Signing::wrap(client, self.put_headers.clone(), signer);
        let objects = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            // The address is that of the bucket already.
            .with_endpoint(url)
            .with_virtual_hosted_style_request(true)
            .with_credentials(credentials)
            .with_skip_signature(true)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // The signature uses the same hash, so this costs only a header. Buckets with Object Lock require it:
            // https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html
            .with_checksum_algorithm(Checksum::SHA256)
            .with_http_connector(SharedClient(client))
            .with_retry(no_retries())
            .build()?;
        Ok(Store {
            objects: Arc::new(objects),
            kind: Kind::S3(loaded.credentials),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(
        name: &str,
        endpoint: Option<&str>,
        addressing: Addressing,
        kinds: (bool, bool),
        region: &str,
    ) -> Result<String, String> {
        let aws = config::Aws {
            addressing,
            ..config::Aws::default()
        };
        let address = address(name, region, endpoint, &aws, kinds);
        let found = address.map(|address| format!("{} {}", address.url, address.region));
        found.map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_bucket_has_one_address_for_its_region_and_style() {
        use Addressing::{Auto, Path, Virtual};
        const PLAIN: (bool, bool) = (false, false);
        const POINT: &str = "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-ap";
        let table = [
            (
                "logs",
                Auto,
                PLAIN,
                "eu-west-1",
                "https://logs.s3.eu-west-1.amazonaws.com eu-west-1",
            ),
            (
                "logs",
                Path,
                PLAIN,
                "eu-west-1",
                "https://s3.eu-west-1.amazonaws.com/logs eu-west-1",
            ),
            // The wildcard certificate has no names with a further dot.
            (
                "my.logs",
                Auto,
                PLAIN,
                "eu-west-1",
                "https://s3.eu-west-1.amazonaws.com/my.logs eu-west-1",
            ),
            (
                "my.logs",
                Virtual,
                PLAIN,
                "eu-west-1",
                "https://my.logs.s3.eu-west-1.amazonaws.com eu-west-1",
            ),
            (
                "My_Logs",
                Auto,
                PLAIN,
                "us-east-1",
                "https://s3.us-east-1.amazonaws.com/My_Logs us-east-1",
            ),
            (
                "logs",
                Auto,
                (true, false),
                "us-gov-west-1",
                "https://logs.s3-fips.us-gov-west-1.amazonaws.com us-gov-west-1",
            ),
            (
                "logs",
                Auto,
                (false, true),
                "eu-west-1",
                "https://logs.s3.dualstack.eu-west-1.amazonaws.com eu-west-1",
            ),
            (
                "logs",
                Auto,
                (true, true),
                "us-east-1",
                "https://logs.s3-fips.dualstack.us-east-1.amazonaws.com us-east-1",
            ),
            (
                "logs",
                Auto,
                PLAIN,
                "cn-north-1",
                "https://logs.s3.cn-north-1.amazonaws.com.cn cn-north-1",
            ),
            (
                "logs",
                Auto,
                (false, true),
                "cn-north-1",
                "https://logs.s3.dualstack.cn-north-1.amazonaws.com.cn cn-north-1",
            ),
            (
                "logs",
                Auto,
                PLAIN,
                "us-iso-east-1",
                "https://logs.s3.us-iso-east-1.c2s.ic.gov us-iso-east-1",
            ),
            (
                "my-ap-abc-s3alias",
                Auto,
                PLAIN,
                "eu-west-1",
                "https://my-ap-abc-s3alias.s3.eu-west-1.amazonaws.com eu-west-1",
            ),
            // An access point is signed for its own region.
            (
                POINT,
                Auto,
                PLAIN,
                "us-east-1",
                "https://my-ap-123456789012.s3-accesspoint.eu-west-1.amazonaws.com eu-west-1",
            ),
            (
                POINT,
                Path,
                (true, true),
                "us-east-1",
                "https://my-ap-123456789012.s3-accesspoint-fips.dualstack.eu-west-1.amazonaws.com eu-west-1",
            ),
        ];
        for (name, addressing, kinds, region, expected) in table {
            let found = url(name, None, addressing, kinds, region);
            assert_eq!(found.as_deref(), Ok(expected), "{name} {addressing:?}");
        }
        let at = [
            ("logs", "http://minio:9000", Auto, "http://minio:9000/logs"),
            ("logs", "http://minio:9000/", Path, "http://minio:9000/logs"),
            ("logs", "http://[::1]:9000", Auto, "http://[::1]:9000/logs"),
            (
                "logs",
                "https://oss-cn-hangzhou.aliyuncs.com",
                Virtual,
                "https://logs.oss-cn-hangzhou.aliyuncs.com",
            ),
            (
                "logs",
                "https://logs.oss.example",
                Virtual,
                "https://logs.oss.example",
            ),
            (
                "logs",
                "https://host:8443/base/",
                Virtual,
                "https://logs.host:8443/base",
            ),
            (
                POINT,
                "https://accesspoint.vpce-1.s3.eu-west-1.vpce.amazonaws.com",
                Auto,
                "https://my-ap-123456789012.accesspoint.vpce-1.s3.eu-west-1.vpce.amazonaws.com",
            ),
        ];
        for (name, endpoint, addressing, expected) in at {
            let found = url(name, Some(endpoint), addressing, PLAIN, "eu-west-1");
            assert_eq!(found, Ok(format!("{expected} eu-west-1")), "{endpoint}");
        }
    }

    #[test]
    fn what_has_no_address_is_refused_with_the_remedy() {
        let refused = [
            (
                "arn:aws:s3::123456789012:accesspoint/m.mrap",
                "an access point of one region",
            ),
            (
                "arn:aws:s3-object-lambda:eu-west-1:1:accesspoint/o",
                "name the bucket",
            ),
            (
                "arn:aws:s3-outposts:eu-west-1:1:outpost/op-1/accesspoint/a",
                "the alias",
            ),
            ("arn:aws:s3:::logs", "accesspoint/NAME"),
            ("arn:aws:s3", "is not an ARN"),
            ("arn:aws:s3:eu-west-1:1:accesspoint/a/b", "accesspoint/NAME"),
            ("logs--use1-az4--x-s3", "a general purpose bucket"),
            ("a b", "is not a bucket name"),
        ];
        for (name, words) in refused {
            let refusal =
                url(name, None, Addressing::Auto, (false, false), "eu-west-1").unwrap_err();
            assert!(
                refusal.starts_with("url: ") && refusal.contains(words),
                "{refusal}"
            );
        }
        let address = url(
            "logs",
            Some("http://127.0.0.1:9000"),
            Addressing::Virtual,
            (false, false),
            "r",
        );
        assert!(address.unwrap_err().starts_with("s3_addressing: "));
        let china = url("logs", None, Addressing::Auto, (true, false), "cn-north-1");
        assert!(china.unwrap_err().starts_with("use_fips_endpoint: "));
    }
}
