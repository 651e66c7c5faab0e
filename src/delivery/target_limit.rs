//! `target_limit`: what may wait in the spool for one of several targets.
//!
//! Otherwise a target that is unavailable for long would fill the spool, and the flushes for all others would be answered
//! with RETRY. Where the tag alone decides the target, a flush for one beyond its limit is answered so before anything is
//! written. Where records decide, a chunk may have records for any target, so its chunks are still accepted until a
//! *reserve* is full as well; then those with the tags are refused that came with records for the target meanwhile.
//!
//! The feed counts and decides; flushes only ask. Pure, except for the lock between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The reserve is this fraction of the limit.
const RESERVE_SHARE: u64 = 4;
/// A target is within its limit again once it is below it by this fraction, so that it does not change with every chunk.
const MARGIN_SHARE: u64 = 8;
/// The maximum number of tags that are remembered for one target. Chunks with further ones are accepted.
const MAX_TAGS: usize = 4_096;

/// The standing of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Less waits than the limit.
    Within,
    /// More than the limit waits. Records decide the target: chunks are accepted into the reserve.
    Reserve,
    /// Chunks for it are refused.
    Full,
}

/// The limit of one output's targets.
#[derive(Debug)]
pub(super) struct TargetLimit {
    /// The limit in bytes.
    most: u64,
    /// Whether the tag alone decides the target.
    by_tag: bool,
    /// Whether any target is full. Flushes look at nothing else while there is none.
    refuses: AtomicBool,
    /// The targets that are not within the limit.
    over: Mutex<BTreeMap<Arc<str>, Over>>,
}

#[derive(Debug)]
struct Over {
    standing: Standing,
    /// If records decide: the tags that came with records for it since it passed the limit.
    tags: BTreeSet<Arc<[u8]>>,
}

impl TargetLimit {
    /// Creates a limit of `most` bytes; `by_tag` says whether the tag alone decides the target.
    pub(super) fn new(most: u64, by_tag: bool) -> TargetLimit {
        TargetLimit {
            most,
            by_tag,
            refuses: AtomicBool::new(false),
            over: Mutex::default(),
        }
    }

    /// Returns the limit in bytes.
    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// Returns the bytes that may wait beyond the limit, if records decide the target.
    pub(super) fn reserve(&self) -> u64 {
        match self.by_tag {
            true => 0,
            false => self.most / RESERVE_SHARE,
        }
    }

    /// Returns the bytes up to which nothing changes for a target that is within its limit.
    pub(super) fn watched_from(&self) -> u64 {
        self.most - self.most / MARGIN_SHARE
    }

    /// Records that `bytes` wait for a target. Returns its standing before and now.
    pub(super) fn update(&self, target: &Arc<str>, bytes: u64) -> (Standing, Standing) {
        let mut over = self.over.lock().expect("nothing panics with this lock");
        let before = over.get(target).map_or(Standing::Within, |it| it.standing);
        let full = self.most + self.reserve();
        let now = match before {
            _ if bytes > full => Standing::Full,
            Standing::Full if bytes > full - full / MARGIN_SHARE => Standing::Full,
            _ if self.by_tag || bytes <= self.watched_from() => Standing::Within,
            Standing::Within if bytes <= self.most => Standing::Within,
            _ => Standing::Reserve,
        };
        match now {
            Standing::Within => drop(over.remove(target)),
            _ => {
                let entry = over.entry(Arc::clone(target)).or_insert_with(|| Over {
                    standing: now,
                    tags: BTreeSet::new(),
                });
                entry.standing = now;
            }
        }
        let refuses = over.values().any(|it| it.standing == Standing::Full);
        self.refuses.store(refuses, Ordering::Release);
        (before, now)
    }

    /// Records that a chunk with this tag has records that wait for a target.
    pub(super) fn note_tag(&self, target: &str, tag: &Arc<[u8]>) {
        if self.by_tag {
            return;
        }
        let mut over = self.over.lock().expect("nothing panics with this lock");
        if let Some(over) = over.get_mut(target)
            && over.tags.len() < MAX_TAGS
        {
            over.tags.insert(Arc::clone(tag));
        }
    }

    /// Returns up to `most` of the tags whose chunks are refused because of a target, and how many there are.
    pub(super) fn tags(&self, target: &str, most: usize) -> (Vec<Arc<[u8]>>, usize) {
        let over = self.over.lock().expect("nothing panics with this lock");
        over.get(target).map_or((Vec::new(), 0), |over| {
            let first = over.tags.iter().take(most).cloned().collect();
            (first, over.tags.len())
        })
    }

    /// Returns whether a chunk with this tag is refused. `target` returns the target of all chunks with this tag, if the
    /// tag alone decides.
    pub(super) fn refuses(&self, tag: &[u8], target: impl FnOnce() -> Option<String>) -> bool {
        if !self.refuses.load(Ordering::Acquire) {
            return false;
        }
        let target = target();
        let over = self.over.lock().expect("nothing panics with this lock");
        match target {
            Some(target) => over.contains_key(&*target),
            None => over
                .values()
                .any(|it| it.standing == Standing::Full && it.tags.contains(tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(target: &str) -> Arc<str> {
        target.into()
    }

    /// Returns the standing of `bad` after each number of bytes.
    fn standings(limit: &TargetLimit, bytes: &[u64]) -> Vec<Standing> {
        let mut before = Standing::Within;
        let standing = |bytes: &u64| {
            let (was, now) = limit.update(&name("bad"), *bytes);
            assert_eq!(std::mem::replace(&mut before, now), was);
            now
        };
        bytes.iter().map(standing).collect()
    }

    #[test]
    fn a_target_that_the_tag_decides_is_full_beyond_its_limit_until_it_is_well_below() {
        use Standing::{Full, Within};
        let limit = TargetLimit::new(800, true);
        let decided = |to: &'static str| limit.refuses(b"tag", || Some(to.to_owned()));
        assert_eq!((limit.reserve(), limit.watched_from()), (0, 700));
        assert_eq!(standings(&limit, &[0, 800]), [Within, Within]);
        assert!(!decided("bad"));
        assert_eq!(standings(&limit, &[801]), [Full]);
        assert!(decided("bad") && !decided("good"));
        limit.update(&name("good"), 700);
        assert!(!decided("good"));
        assert_eq!(limit.update(&name("bad"), 701), (Full, Full));
        assert!(decided("bad"));
        assert_eq!(limit.update(&name("bad"), 700), (Full, Within));
        assert!(!decided("bad"));
    }

    #[test]
    fn where_records_decide_there_is_a_reserve_and_then_the_tags_seen_are_refused() {
        use Standing::{Full, Reserve, Within};
        let limit = TargetLimit::new(800, false);
        let refused = |tag: &[u8]| limit.refuses(tag, || None);
        let tag = |text: &[u8]| -> Arc<[u8]> { text.into() };
        limit.note_tag("bad", &tag(b"early"));
        assert_eq!(
            standings(&limit, &[800, 801, 1_000]),
            [Within, Reserve, Reserve]
        );
        limit.note_tag("bad", &tag(b"one"));
        limit.note_tag("bad", &tag(b"two"));
        assert!(!refused(b"one"));
        assert_eq!(limit.update(&name("bad"), 1_001), (Reserve, Full));
        assert!(refused(b"one") && refused(b"two") && !refused(b"early") && !refused(b"x"));
        assert_eq!(limit.tags("bad", 1), (vec![tag(b"one")], 2));
        // A tag that is seen later.
        limit.note_tag("bad", &tag(b"three"));
        assert!(refused(b"three"));
        assert_eq!(limit.update(&name("bad"), 876), (Full, Full));
        assert_eq!(limit.update(&name("bad"), 875), (Full, Reserve));
        assert!(!refused(b"one"));
        assert_eq!(limit.update(&name("bad"), 701), (Reserve, Reserve));
        assert_eq!(limit.update(&name("bad"), 700), (Reserve, Within));
        assert_eq!(limit.tags("bad", 9), (Vec::new(), 0));
    }

    #[test]
    fn the_tags_of_a_target_are_bounded() {
        let limit = TargetLimit::new(800, false);
        limit.update(&name("bad"), 2_000);
        for n in 0..=MAX_TAGS as u64 {
            limit.note_tag("bad", &n.to_le_bytes()[..].into());
        }
        assert_eq!(limit.tags("bad", 0), (Vec::new(), MAX_TAGS));
    }
}
