//! What is told of AWS, for Firehose and for `s3://` alike.

use super::reader::Reader;
use super::value::at;

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

/// Keys that say something of AWS alone.
pub(super) const AWS_KEYS: &[&str] = &[
    "region",
    "sts_endpoint",
    "profile",
    "role_arn",
    "external_id",
];

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
            region: self.text("region"),
            endpoint: self.url("endpoint"),
            sts_endpoint: self.url("sts_endpoint"),
            profile: self.text("profile"),
            role_arn: self.text("role_arn"),
            external_id: self.text("external_id"),
        };
        if let Some(role) = &aws.role_arn
            && !role.starts_with("arn:")
        {
            self.problem(
                "role_arn",
                format!("'{role}' is no ARN; write arn:aws:iam::ACCOUNT:role/NAME"),
            );
        }
        if aws.external_id.is_some() && aws.role_arn.is_none() {
            self.problem("external_id", "needs role_arn, the role that asks for it");
        }
        aws
    }
}
