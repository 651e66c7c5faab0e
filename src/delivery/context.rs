//! What all parts of one output's delivery share.

use std::sync::Arc;

use tokio::sync::watch;

use super::memory::Memory;
use crate::config::Config;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::sink::{DestinationTraits, Sink};

/// One for each output.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) traits: DestinationTraits,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) log: Arc<Log>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memory: Memory,
    /// True once we stop: what waits to be filled goes as it is.
    pub(super) draining: watch::Sender<bool>,
}
