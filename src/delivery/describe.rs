//! Asks what streams take, while nothing waits for the answers.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::task::JoinSet;

use super::context::Context;
use crate::sink::Shape;

/// Streams that are asked about at once. The sink asks in its own order and at its own pace; this bounds who waits for it.
const MAX_ASKED: usize = 1_000;

/// The targets whose requests' shape is not known yet. What is for them is deferred.
#[derive(Default)]
pub(super) struct Describing {
    unknown: HashSet<Arc<str>>,
    asked: JoinSet<Arc<str>>,
    /// Those that are asked about later.
    queue: VecDeque<Arc<str>>,
}

impl Describing {
    /// Returns what a target takes, if that is known. Otherwise it is asked.
    pub(super) fn shape(&mut self, context: &Arc<Context>, target: &Arc<str>) -> Option<Shape> {
        if self.unknown.contains(target) {
            return None;
        }
        let shape = context.sink.shape(target).now_or_never();
        if shape.is_none() {
            self.unknown.insert(Arc::clone(target));
            self.queue.push_back(Arc::clone(target));
            self.ask(context);
        }
        shape
    }

    /// Whether a target is being asked about.
    pub(super) fn is_unknown(&self, target: &str) -> bool {
        self.unknown.contains(target)
    }

    fn ask(&mut self, context: &Arc<Context>) {
        while self.asked.len() < MAX_ASKED
            && let Some(target) = self.queue.pop_front()
        {
            let context = Arc::clone(context);
            self.asked.spawn(async move {
                context.sink.shape(&target).await;
                target
            });
        }
    }

    /// Waits for the next answer. Does not complete while nothing is asked.
    pub(super) async fn answered(&mut self, context: &Arc<Context>) {
        match self.asked.join_next().await {
            Some(Ok(target)) => drop(self.unknown.remove(&target)),
            // It panicked. Which one it was is not known: all are asked again.
            Some(Err(_)) => self.unknown.clear(),
            None => return std::future::pending().await,
        }
        self.ask(context);
    }
}
