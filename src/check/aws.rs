//! The checks that Firehose and `s3://` have in common: endpoint and identity.

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

/// Resolves region and credentials as the plugin does.
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
        Ok(Err(error @ LoadError::Fips(_))) => {
            let remedy = "name a FIPS endpoint, or set use_fips_endpoint off";
            report.fail("endpoint", error.to_string(), remedy);
            return None;
        }
        Ok(Err(LoadError::Proxy(problem))) => {
            let remedy = "correct the variable in the environment of Fluent Bit";
            report.fail("proxy", problem.to_string(), remedy);
            return None;
        }
        Err(late) => (late, REMEDY),
    };
    report.fail("region", error, remedy);
    None
}

/// An interceptor that records the URL of a request and aborts it.
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
        Err("aborted: only the address is needed".into())
    }
}

/// Returns the URL of Firehose as its client resolves it: from the configuration, the environment, the profile or the
/// region, including dual-stack and FIPS endpoints.
pub(super) async fn firehose_url(loaded: &Loaded, endpoint: Option<&str>) -> Option<String> {
    let dummy = Credentials::new("none", "none", None, None, "none");
    let address = Address::default();
    let mut config = aws_sdk_firehose::config::Builder::from(&loaded.sdk)
        .credentials_provider(SharedCredentialsProvider::new(dummy))
        .interceptor(address.clone());
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    let client = aws_sdk_firehose::Client::from_conf(config.build());
    // The interceptor aborts it.
    let _ = client.list_delivery_streams().send().await;
    address
        .0
        .lock()
        .expect("nothing panics with this lock")
        .take()
}

/// Fetches the credentials and looks up their identity at STS. Returns whether there are any that are not refused.
/// `at_aws`: whether the service is AWS itself, whose users STS knows.
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
        let reason = chain_error(&error);
        report.fail_once("credentials", format!("none found: {reason}"), remedy);
        return false;
    }
    if !at_aws && aws.sts_endpoint.is_none() {
        report.skip(
            "credentials",
            "found; their identity was not looked up, since the endpoint is not AWS's and sts_endpoint is not set",
        );
        return true;
    }
    let mut sts = aws_sdk_sts::config::Builder::from(&loaded.sdk);
    if let Some(endpoint) = &aws.sts_endpoint {
        sts = sts.endpoint_url(endpoint);
    }
    let sts = aws_sdk_sts::Client::from_conf(sts.build());
    match within(options, sts.get_caller_identity().send()).await {
        Ok(Ok(identity)) => {
            let arn = identity.arn().unwrap_or("unknown");
            report.ok("credentials", format!("the identity is {arn}"));
            true
        }
        Ok(Err(error)) => {
            let fault = fault(answer_of(error).0);
            if fault.class == Class::Credentials || fault.code.contains("AccessDenied") {
                report.fail("credentials", format!("STS refuses them: {fault}"), REFUSED);
                return false;
            }
            warn_unidentified(&fault.to_string(), report);
            true
        }
        Err(timeout) => {
            warn_unidentified(&timeout, report);
            true
        }
    }
}

/// Shortens the error of a provider chain, which has a line for each provider: messages of providers that failed come
/// first, those that are not configured are only named.
fn chain_error(error: &str) -> String {
    const ABSENT: &str = "the credential provider was not enabled";
    let Some((_, tried)) = error.split_once("no credentials found in chain. Attempted:") else {
        return error.to_owned();
    };
    let tried = tried
        .lines()
        .filter_map(|line| line.trim().split_once(": "));
    let (absent, failed): (Vec<_>, Vec<_>) =
        tried.partition(|(_, message)| message.starts_with(ABSENT));
    let mut messages: Vec<String> = failed
        .into_iter()
        .map(|(name, message)| format!("{name}: {message}"))
        .collect();
    let absent: Vec<&str> = absent.into_iter().map(|(name, _)| name).collect();
    if !absent.is_empty() {
        messages.push(format!("not configured: {}", absent.join(", ")));
    }
    messages.join("; ")
}

const REFUSED: &str = "renew them, and check this machine's clock";

fn warn_unidentified(reason: &str, report: &mut Report<'_>) {
    report.warn(
        "credentials",
        format!("found, but STS could not identify them: {reason}"),
        "in a private network, set sts_endpoint; needed only with role_arn",
    );
}

/// Returns the remedy for an error of a service.
pub(super) fn remedy(fault: &Fault, permission: &str, thing: &str) -> String {
    match fault.class {
        Class::Credentials => REFUSED.to_owned(),
        Class::Configuration if fault.code.contains("AccessDenied") => {
            format!("allow {permission}")
        }
        Class::Configuration if fault.code.contains("ResourceNotFound") => {
            format!("create {thing}, or correct its name and the region")
        }
        Class::Configuration => {
            format!("fix what the service reports, of {thing} or in the configuration")
        }
        Class::Throttle => "none: try again later".to_owned(),
        _ => "try again; if it persists, check the service's health".to_owned(),
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
    fn a_chain_without_credentials_is_reported_in_one_line() {
        let chain = "an error occurred while loading credentials: the credential provider was not enabled: no \
                     credentials found in chain. Attempted:\n  \
                     Environment: the credential provider was not enabled: environment variable not set\n  \
                     Profile: profile `x` was not defined\n  \
                     EcsContainer: the credential provider was not enabled: ECS provider not configured";
        assert_eq!(
            chain_error(chain),
            "Profile: profile `x` was not defined; not configured: Environment, EcsContainer"
        );
        assert_eq!(chain_error("timeout"), "timeout");
    }
}
