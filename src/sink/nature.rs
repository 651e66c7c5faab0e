//! What a destination is like. Delivery goes by this, and asks no destination by its name.

use std::fmt::Write as _;
use std::time::Duration;

use crate::codec::template::{Template, compact_time};
use crate::config::{Destination, ObjectBounds, stream_name};
use crate::ids::Time;

/// What a destination is like.
#[derive(Clone, Debug)]
pub struct Nature {
    /// Names the delivery stream of an event, or the folder of its object.
    pub names: Template,
    /// Names an event's target, the part of the destination that may be in trouble by itself: what of `names` does not change
    /// with time. `None` where `names` does so itself, or where all is one target.
    pub targets: Option<Template>,
    /// Whether all is one target.
    pub one_target: bool,
    /// What a target is called.
    pub target_kind: &'static str,
    /// Whether each target throttles by itself.
    pub throttles_targets: bool,
    /// Where what is sent becomes an object. Its name is its own, so that the store tells a repeat: nothing is there
    /// twice, and a chunk is sent whole again. Without it a repeat makes a duplicate, and records are sent on their own.
    pub objects: Option<ObjectNature>,
    /// How long a request that is not full waits for more, where no flush waits for it.
    pub linger: Duration,
    /// Each record is billed in multiples of so many bytes.
    pub billing_unit: Option<u64>,
}

/// How objects are named, and when one is complete.
#[derive(Clone, Debug)]
pub struct ObjectNature {
    /// Before each folder, below the store's root.
    pub prefix: String,
    /// Behind each name, with its dot.
    pub extension: String,
    /// When an object that grows is sealed.
    pub bounds: ObjectBounds,
}

/// <https://aws.amazon.com/firehose/pricing/>
const FIREHOSE_BILLING_UNIT: u64 = 5 * 1024;

impl Nature {
    /// Of this destination.
    pub fn of(destination: &Destination) -> Nature {
        match destination {
            Destination::Firehose(firehose) => Nature {
                one_target: firehose.delivery_stream.fixed().is_some(),
                names: firehose.delivery_stream.clone(),
                targets: None,
                target_kind: "delivery stream",
                throttles_targets: true,
                objects: None,
                linger: firehose.linger,
                billing_unit: Some(FIREHOSE_BILLING_UNIT),
            },
            Destination::Blob {
                prefix,
                folder,
                object,
                extension,
                ..
            } => Nature {
                one_target: folder.timeless().fixed().is_some(),
                targets: Some(folder.timeless()).filter(|targets| targets.fixed().is_none()),
                names: folder.clone(),
                target_kind: "folder",
                throttles_targets: false,
                objects: Some(ObjectNature {
                    prefix: prefix.clone(),
                    extension: extension.clone(),
                    bounds: *object,
                }),
                linger: Duration::ZERO,
                billing_unit: None,
            },
        }
    }
}

impl Nature {
    /// The only target, where there is but one. A store has no name for it.
    pub fn only_target(&self) -> Option<String> {
        match &self.objects {
            _ if !self.one_target => None,
            Some(_) => Some(String::new()),
            None => self.names.fixed().map(|name| stream_name(&name)),
        }
    }
}

impl ObjectNature {
    /// The whole name of an object below the store's root: its folder, when its first event happened, and
    /// what tells it from others.
    pub fn name(&self, folder: &str, first: Time, unique: &str) -> String {
        let mut name = String::with_capacity(128);
        for folder in [self.prefix.as_str(), folder] {
            let folder = folder.trim_matches('/');
            if !folder.is_empty() {
                name.push_str(folder);
                name.push('/');
            }
        }
        compact_time(first, &mut name);
        let _ = write!(name, "-{unique}{}", self.extension);
        name
    }
}
