//! The properties of a destination that delivery depends on, so that it does not distinguish destinations by name.

use std::fmt::Write as _;
use std::time::Duration;

use crate::codec::template::{Template, compact_time};
use crate::config::{Destination, MissingTarget, ObjectBounds, stream_name};
use crate::ids::Time;

/// The properties of a destination: how names are made, what can fail by itself, and what a repeated request does.
#[derive(Clone, Debug)]
pub struct DestinationTraits {
    /// The template of an event's delivery stream or object folder.
    pub name_template: Template,
    /// The template of an event's target, the part of the destination that can fail or throttle by itself: `name_template`
    /// without the parts that change with time. `None` without an `object_layout`, where the name is itself the target, or
    /// if there is only one target.
    pub target_template: Option<Template>,
    /// Returns the name of the target that an event's name stands for; used if there is no `object_layout`.
    pub target_of_name: fn(&str) -> String,
    /// The word for a target in log lines.
    pub target_word: &'static str,
    /// Whether each target throttles by itself, so that each has a concurrency limit of its own.
    pub throttles_targets: bool,
    /// The naming and bounds of objects, if each request creates one. An object's name is unique, so that the store
    /// detects a repeat, and a chunk is sent again as a whole without duplicates. `None` if a repeated request creates
    /// duplicates, so that only the records that are not settled are sent again.
    pub object_layout: Option<ObjectLayout>,
    /// The codes of refusals that concern the whole destination, whichever target is named.
    pub destination_wide_codes: &'static [&'static str],
    /// The codes of answers that a target does not exist, and of nothing else.
    pub missing_target_codes: &'static [&'static str],
    /// What happens to records whose target does not exist.
    pub missing_target: MissingTarget,
    /// The time that a request that is not full waits for more records, unless a flush waits for it.
    pub linger: Duration,
    /// The unit, in bytes, that each billed record is rounded up to.
    pub billing_unit: Option<u64>,
}

/// The naming and bounds of objects.
#[derive(Clone, Debug)]
pub struct ObjectLayout {
    /// The path before each folder, below the store's root.
    pub prefix: String,
    /// The extension of each name, with its dot.
    pub extension: String,
    /// The bounds at which a growing object is sealed.
    pub bounds: ObjectBounds,
}

/// A bucket, container or account that is missing or closed is not the trouble of one folder. From the stores' tables of
/// codes, which `sink/blob/codes.rs` links.
const BLOB_WIDE_CODES: &[&str] = &[
    "AccountIsDisabled",
    "AccountProblem",
    "AllAccessDisabled",
    "ContainerBeingDeleted",
    "ContainerDisabled",
    "ContainerNotFound",
    "NoSuchBucket",
];

/// The answer for a stream that does not exist:
/// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_PutRecordBatch.html#API_PutRecordBatch_Errors>
const FIREHOSE_MISSING_CODES: &[&str] = &["ResourceNotFoundException"];

/// The unit that Firehose bills by: <https://aws.amazon.com/firehose/pricing/>
const FIREHOSE_BILLING_UNIT: u64 = 5 * 1024;

impl DestinationTraits {
    /// Returns the properties of a destination.
    pub fn of(destination: &Destination) -> DestinationTraits {
        match destination {
            Destination::Firehose(firehose) => DestinationTraits {
                name_template: firehose.delivery_stream.clone(),
                target_template: None,
                target_of_name: stream_name,
                target_word: "delivery stream",
                throttles_targets: true,
                object_layout: None,
                destination_wide_codes: &[],
                missing_target_codes: FIREHOSE_MISSING_CODES,
                missing_target: firehose.missing_target.clone(),
                linger: firehose.linger,
                billing_unit: Some(FIREHOSE_BILLING_UNIT),
            },
            Destination::Blob {
                prefix,
                folder,
                object,
                extension,
                ..
            } => DestinationTraits {
                target_template: Some(folder.timeless())
                    .filter(|targets| targets.fixed().is_none()),
                name_template: folder.clone(),
                target_of_name: str::to_owned,
                target_word: "folder",
                throttles_targets: false,
                object_layout: Some(ObjectLayout {
                    prefix: prefix.clone(),
                    extension: extension.clone(),
                    bounds: *object,
                }),
                destination_wide_codes: BLOB_WIDE_CODES,
                // No store has folders that could be missing: an object's name creates them.
                missing_target_codes: &[],
                missing_target: MissingTarget::default(),
                linger: Duration::ZERO,
                billing_unit: None,
            },
        }
    }
}

impl DestinationTraits {
    /// Returns the only target, if there is just one. At a store, its name is empty.
    pub fn only_target(&self) -> Option<String> {
        match &self.object_layout {
            Some(_) => self.target_template.is_none().then(String::new),
            None => self
                .name_template
                .fixed()
                .map(|name| (self.target_of_name)(&name)),
        }
    }
}

impl DestinationTraits {
    /// Returns the target of all events with a tag. `None` if there is only one target, or if records decide.
    pub fn target_of_tag(&self, tag: &[u8]) -> Option<String> {
        match (&self.object_layout, &self.target_template) {
            (Some(_), targets) => targets.as_ref()?.of_tag(tag),
            (None, _) if self.name_template.fixed().is_some() => None,
            (None, _) => {
                let name = self.name_template.of_tag(tag)?;
                Some((self.target_of_name)(&name))
            }
        }
    }
}

impl ObjectLayout {
    /// Returns the path of a folder below the store's root, without slashes around it.
    pub fn directory(&self, folder: &str) -> String {
        let mut path = String::with_capacity(128);
        for folder in [self.prefix.as_str(), folder] {
            let folder = folder.trim_matches('/');
            if !folder.is_empty() && !path.is_empty() {
                path.push('/');
            }
            path.push_str(folder);
        }
        path
    }

    /// Returns the full name of an object below the store's root: its folder, the time of its first event, and a unique
    /// part.
    pub fn name(&self, folder: &str, first: Time, unique: &str) -> String {
        let mut name = self.directory(folder);
        if !name.is_empty() {
            name.push('/');
        }
        compact_time(first, &mut name);
        let _ = write!(name, "-{unique}{}", self.extension);
        name
    }
}
