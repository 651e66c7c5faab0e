//! What Firehose and `s3://` have in common: where a client would go, and who it would be there.

use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_firehose::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_firehose::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;

use super::{Options, Report, within};
use crate::config::{self, Problem};
use crate::log::causes;
use crate::sink::aws::{LoadError, Loaded};
use crate::sink::firehose::{answer_of, fault};
use crate::sink::{Class, Fault};

/// Region and credentials as the plugin would find them.
pub(super) async fn load(
    aws: &config::Aws,
    ca_pem: Option<&[u8]>,
    options: &Options,
    report: &mut Report<'_>,
) -> Option<Loaded> {
    const REMEDY: &str = "write region into the output";
    let (error, remedy) = match within(options, crate::sink::aws::load(aws, ca_pem)).await {
        Ok(Ok(loaded)) => {
            report.ok("region", loaded.region.clone());
            return Some(loaded);
        }
        Ok(Err(error @ LoadError::NoRegion)) => (error.to_string(), REMEDY),
        Ok(Err(error @ LoadError::Ca(_))) => {
            let remedy = "write the PEM of the service's CA into that file";
            report.fail("tls", Problem::from(error).to_string(), remedy);
            return None;
        }
        Err(late) => (late, REMEDY),
    };
    report.fail("region", error, remedy);
    None
}

/// Sees where a request would go, and stops it there.
#[derive(Debug, Default, Clone)]
struct Address(Arc<Mutex<Option<String>>>);

impl Intercept for Address {
    fn name(&self) -> &'static str {
        "Address"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let url = context.request().uri().to_owned();
        *self.0.lock().expect("nothing panics with this lock") = Some(url);
        Err("only the address was wanted".into())
    }
}

/// The URL of Firehose as its client finds it: what is configured, the environment, the profile, the
/// region's own, dual-stack and FIPS among them.
pub(super) async fn firehose_url(loaded: &Loaded, endpoint: Option<&str>) -> Option<String> {
    let nobody = Credentials::new("none", "none", None, None, "none");
    let seen = Address::default();
    let mut config = aws_sdk_firehose::config::Builder::from(&loaded.sdk)
        .credentials_provider(SharedCredentialsProvider::new(nobody))
        .interceptor(seen.clone());
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    let client = aws_sdk_firehose::Client::from_conf(config.build());
    // It fails by design.
    let _ = client.list_delivery_streams().send().await;
    seen.0.lock().expect("nothing panics with this lock").take()
}

/// Fetches the credentials and asks STS whose they are. Whether there are any that are not refused.
/// `at_aws` says whether the service itself is AWS's: else STS would not know its users.
pub(super) async fn credentials(
    loaded: &Loaded,
    aws: &config::Aws,
    at_aws: bool,
    options: &Options,
    report: &mut Report<'_>,
) -> bool {
    let fetched = within(options, loaded.credentials.provide_credentials()).await;
    if let Err(error) = fetched.and_then(|f| f.map_err(|error| causes(&error))) {
        let remedy = match &aws.role_arn {
            Some(_) => {
                "check the credentials of this machine, and that the role trusts them (and external_id)"
            }
            None => {
                "give the machine a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or profile"
            }
        };
        let why = not_found(&error);
        report.fail("credentials", format!("there are none: {why}"), remedy);
        return false;
    }
    if !at_aws && aws.sts_endpoint.is_none() {
        report.skip(
            "credentials",
            "there are some; whose they are is not asked, since the endpoint is not AWS's and sts_endpoint is not set",
        );
        return true;
    }
    let mut sts = aws_sdk_sts::config::Builder::from(&loaded.sdk);
    if let Some(endpoint) = &aws.sts_endpoint {
        sts = sts.endpoint_url(endpoint);
    }
    let sts = aws_sdk_sts::Client::from_conf(sts.build());
    match within(options, sts.get_caller_identity().send()).await {
        Ok(Ok(who)) => {
            let arn = who.arn().unwrap_or("somebody");
            report.ok("credentials", format!("we are {arn}"));
            true
        }
        Ok(Err(error)) => {
            let fault = fault(answer_of(error).0);
            if fault.class == Class::Credentials || fault.code.contains("AccessDenied") {
                report.fail("credentials", format!("STS refuses them: {fault}"), REFUSED);
                return false;
            }
            say_unasked(&fault.to_string(), report);
            true
        }
        Err(late) => {
            say_unasked(&late, report);
            true
        }
    }
}

/// What a chain of providers says that has no credentials: a line for each provider, with the same words in most of
/// them. Where one of them failed, and was not only absent, its words are what a person needs.
fn not_found(error: &str) -> String {
    const ABSENT: &str = "the credential provider was not enabled";
    let Some((_, tried)) = error.split_once("no credentials found in chain. Attempted:") else {
        return error.to_owned();
    };
    let tried = tried
        .lines()
        .filter_map(|line| line.trim().split_once(": "));
    let (absent, failed): (Vec<_>, Vec<_>) =
        tried.partition(|(_, words)| words.starts_with(ABSENT));
    let mut words: Vec<String> = failed
        .into_iter()
        .map(|(name, words)| format!("{name}: {words}"))
        .collect();
    let absent: Vec<&str> = absent.into_iter().map(|(name, _)| name).collect();
    if !absent.is_empty() {
        words.push(format!("nothing is set up for {}", absent.join(", ")));
    }
    words.join("; ")
}

const REFUSED: &str = "renew them, and check this machine's clock";

fn say_unasked(why: &str, report: &mut Report<'_>) {
    report.warn(
        "credentials",
        format!("there are some, but STS could not be asked whose they are: {why}"),
        "in a private network, set sts_endpoint; needed only with role_arn",
    );
}

/// What to do about a refusal of a service's.
pub(super) fn remedy(fault: &Fault, permission: &str, thing: &str) -> String {
    match fault.class {
        Class::Credentials => REFUSED.to_owned(),
        Class::Configuration if fault.code.contains("AccessDenied") => {
            format!("allow {permission}")
        }
        Class::Configuration if fault.code.contains("ResourceNotFound") => {
            format!("make {thing}, or correct its name and the region")
        }
        Class::Configuration => {
            format!("mend what the service says, of {thing} or in the configuration")
        }
        Class::Throttle => "nothing: try again later".to_owned(),
        _ => "try again; if it lasts, look into the service's health".to_owned(),
    }
}

/// Whether a host belongs to AWS.
pub(super) fn is_aws(url: &str) -> bool {
    let host = url
        .parse::<hyper::Uri>()
        .ok()
        .and_then(|url| Some(url.host()?.to_owned()));
    host.is_some_and(|host| {
        [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"]
            .iter()
            .any(|end| host.ends_with(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_without_credentials_is_said_in_one_line() {
        let chain = "an error occurred while loading credentials: the credential provider was not enabled: no \
                     credentials found in chain. Attempted:\n  \
                     Environment: the credential provider was not enabled: environment variable not set\n  \
                     Profile: profile `x` was not defined\n  \
                     EcsContainer: the credential provider was not enabled: ECS provider not configured";
        assert_eq!(
            not_found(chain),
            "Profile: profile `x` was not defined; nothing is set up for Environment, EcsContainer"
        );
        assert_eq!(not_found("timeout"), "timeout");
    }
}
