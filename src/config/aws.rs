//! What is told of AWS, for Firehose and for `s3://` alike.

use super::keys;
use super::reader::Reader;
use super::value::{at, shown};

/// How to reach AWS, for Firehose and for `s3://` alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aws {
    /// Region; from the environment or the profile where it is not given.
    pub region: Option<String>,
    /// Full URL of the service, for private endpoints and emulators.
    pub endpoint: Option<String>,
    /// Full URL of STS.
    pub sts_endpoint: Option<String>,
    /// Profile of the shared configuration files.
    pub profile: Option<String>,
    /// Role to assume with the credentials of the chain.
    pub role_arn: Option<String>,
    /// External id the role asks for.
    pub external_id: Option<String>,
}

impl Aws {
    /// Where that is, for the log.
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
                    "{} is no ARN; write arn:aws:iam::ACCOUNT:role/NAME",
                    shown(role)
                ),
            );
        }
        if aws.external_id.is_some() && aws.role_arn.is_none() {
            self.problem(
                &keys::EXTERNAL_ID,
                "needs role_arn, the role that asks for it",
            );
        }
        aws
    }
}
