//! Asks for the shape of targets while nothing waits for the answers.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::task::JoinSet;

use super::context::Context;
use crate::sink::Shape;

/// The maximum number of targets asked about at once. The sink asks in its own order and at its own pace; this bounds
/// its waiters.
const MAX_ASKED: usize = 1_000;

/// The targets whose shape is not known yet. Their events are deferred.
#[derive(Default)]
pub(super) struct Describing {
    unknown: HashSet<Arc<str>>,
    asked: JoinSet<Arc<str>>,
    /// The targets asked about later.
    queue: VecDeque<Arc<str>>,
}

impl Describing {
    /// Returns the shape of a target if it is known, and otherwise asks for it.
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

    /// Returns whether a target is being asked about.
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

    /// Waits for the next answer. Never completes while nothing is being asked.
    pub(super) async fn answered(&mut self, context: &Arc<Context>) {
        match self.asked.join_next().await {
            Some(Ok(target)) => drop(self.unknown.remove(&target)),
            // It panicked. Which target it was is unknown: all are asked again.
            Some(Err(_)) => self.unknown.clear(),
            None => return std::future::pending().await,
        }
        self.ask(context);
    }
}
