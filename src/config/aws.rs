//! The keys of AWS, for Firehose and for `s3://`.

use super::keys;
use super::reader::Reader;
use super::value::{at, shown};

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
    pub(super) fn aws(&mut self) -> Aws {
        let aws = Aws {
            region: self.text(&keys::REGION),
            endpoint: self.url(&keys::ENDPOINT),
            sts_endpoint: self.url(&keys::STS_ENDPOINT),
            profile: self.text(&keys::PROFILE),
            role_arn: self.text(&keys::ROLE_ARN),
            external_id: self.text(&keys::EXTERNAL_ID),
        };
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
