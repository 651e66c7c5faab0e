//! The state shared by all parts of one output's delivery.

use std::sync::Arc;

use tokio::sync::watch;

use super::memory::Memory;
use crate::config::Config;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::sink::{DestinationTraits, Sink};

/// The shared state of one output.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) traits: DestinationTraits,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) log: Arc<Log>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memory: Memory,
    /// True once the output is stopping: partly filled requests and objects are then sent as they are.
    pub(super) draining: watch::Sender<bool>,
}
