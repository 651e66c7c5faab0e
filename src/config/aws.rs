//! The keys of AWS, for Firehose and for `s3://`.

use super::reader::Reader;
use super::value::{at, shown};
use super::{Place, keys};

/// The settings of AWS, for Firehose and for `s3://`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aws {
    /// The region; by default from the environment or the profile.
    pub region: Option<String>,
    /// The full URL of the service, for private endpoints and emulators.
    pub endpoint: Option<String>,
    /// The full URL of STS.
    pub sts_endpoint: Option<String>,
    /// The profile of the shared configuration files.
    pub profile: Option<String>,
    /// The role to assume with the chain's credentials.
    pub role_arn: Option<String>,
    /// The external id that the role requires.
    pub external_id: Option<String>,
    /// Whether FIPS endpoints are used; by default as `AWS_USE_FIPS_ENDPOINT` or the profile says.
    pub use_fips: Option<bool>,
    /// Whether dual-stack endpoints are used; by default as `AWS_USE_DUALSTACK_ENDPOINT` or the profile says.
    pub use_dualstack: Option<bool>,
    /// How a bucket is named in the URLs of S3.
    pub addressing: Addressing,
}

/// The values of `s3_addressing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the host's name where its certificate allows that; in the path of another `endpoint`.
    #[default]
    Auto,
    /// In the path.
    Path,
    /// In the host's name.
    Virtual,
}

impl Aws {
    /// Returns region and endpoint for the log.
    pub(super) fn place(&self) -> String {
        let region = match &self.region {
            Some(region) => format!(", region {region}"),
            None => String::new(),
        };
        region + &at(&self.endpoint)
    }
}

impl Reader<'_> {
    pub(super) fn aws(&mut self, place: Place) -> Aws {
        let addressing = match place {
            Place::S3 => self.choice(&keys::S3_ADDRESSING),
            _ => None,
        };
        let aws = Aws {
            region: self.text(&keys::REGION),
            endpoint: self.url(&keys::ENDPOINT),
            sts_endpoint: self.url(&keys::STS_ENDPOINT),
            profile: self.text(&keys::PROFILE),
            role_arn: self.text(&keys::ROLE_ARN),
            external_id: self.text(&keys::EXTERNAL_ID),
            use_fips: self.flag(&keys::USE_FIPS_ENDPOINT),
            use_dualstack: self.flag(&keys::USE_DUALSTACK_ENDPOINT),
            addressing: addressing.unwrap_or_default(),
        };
        if let (Some(true), Some(endpoint)) = (aws.use_fips, &aws.endpoint)
            && !is_fips_endpoint(endpoint)
        {
            self.problem(
                &keys::USE_FIPS_ENDPOINT,
                "is on, but endpoint is not a FIPS endpoint: name one, or remove one of them",
            );
        }
        if aws.use_dualstack == Some(true) && aws.endpoint.is_some() {
            self.problem(
                &keys::USE_DUALSTACK_ENDPOINT,
                "does nothing with endpoint, which is the address: remove one of them",
            );
        }
        if let Some(role) = &aws.role_arn
            && !role.starts_with("arn:")
        {
            self.problem(
                &keys::ROLE_ARN,
                format!(
                    "{} is not an ARN; write arn:aws:iam::ACCOUNT:role/NAME",
                    shown(role)
                ),
            );
        }
        if aws.external_id.is_some() && aws.role_arn.is_none() {
            self.problem(
                &keys::EXTERNAL_ID,
                "needs role_arn, the role that requires it",
            );
        }
        aws
    }
}

/// Whether a service's URL says that it is a FIPS endpoint: <https://aws.amazon.com/compliance/fips/>
pub(crate) fn is_fips_endpoint(endpoint: &str) -> bool {
    endpoint.contains("fips")
}
