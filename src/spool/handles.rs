//! Segments' files that stay open, so that what was accepted can be read though somebody takes a file's name away.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Seq;
use super::disk::{Disk, File};
use super::frame::segment_name;

/// Files that are kept open, beside the one that is written to.
const MOST: usize = 16;

/// The files of some segments: of the one that is written to, and of those that were written to or read last.
pub struct Handles {
    disk: Arc<dyn Disk>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    writing: Option<(Seq, Arc<dyn File>)>,
    /// The one that was used last comes first.
    others: VecDeque<Other>,
}

struct Other {
    segment: Seq,
    file: Arc<dyn File>,
    /// It has no name: this is all that is left of it.
    stranded: bool,
}

impl Held {
    fn find(&mut self, segment: Seq) -> Option<Arc<dyn File>> {
        if let Some((_, file)) = self.writing.as_ref().filter(|(first, _)| *first == segment) {
            return Some(Arc::clone(file));
        }
        let at = self.position(segment)?;
        let other = self.others.remove(at)?;
        let file = Arc::clone(&other.file);
        self.others.push_front(other);
        Some(file)
    }

    fn position(&self, segment: Seq) -> Option<usize> {
        self.others
            .iter()
            .position(|other| other.segment == segment)
    }

    fn add(&mut self, segment: Seq, file: Arc<dyn File>) {
        self.others.push_front(Other {
            segment,
            file,
            stranded: false,
        });
        if self.others.len() > MOST
            && let Some(at) = self.others.iter().rposition(|other| !other.stranded)
        {
            self.others.remove(at);
        }
    }
}

impl Handles {
    /// Opens files of a directory when they are asked for.
    pub fn new(disk: Arc<dyn Disk>) -> Handles {
        Handles {
            disk,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics with this lock")
    }

    /// A segment's file. [`ErrorKind::NotFound`]: there is none of its name, and it was not open.
    pub fn get(&self, segment: Seq) -> io::Result<Arc<dyn File>> {
        let held = self.held().find(segment);
        if let Some(file) = held {
            return Ok(file);
        }
        let opened: Arc<dyn File> = self.disk.open(&segment_name(segment))?.into();
        let mut held = self.held();
        // Another one may have put it there meanwhile.
        if let Some(file) = held.find(segment) {
            return Ok(file);
        }
        held.add(segment, Arc::clone(&opened));
        Ok(opened)
    }

    /// Whether a segment's file still has its name. One that was finished meanwhile has not.
    pub fn is_named(&self, segment: Seq, file: &dyn File) -> io::Result<bool> {
        match self.disk.id(&segment_name(segment)) {
            Ok(found) => Ok(found == file.id()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// This is the file that is written to from now on.
    pub(super) fn write_to(&self, segment: Seq, file: &Arc<dyn File>) {
        let mut held = self.held();
        let before = held.writing.replace((segment, Arc::clone(file)));
        if let Some((segment, file)) = before {
            held.add(segment, file);
        }
    }

    /// This is a segment's file from now on.
    pub(super) fn replace(&self, segment: Seq, file: &Arc<dyn File>) {
        let mut held = self.held();
        if let Some((_, writing)) = held.writing.as_mut().filter(|(first, _)| *first == segment) {
            *writing = Arc::clone(file);
        } else if let Some(at) = held.position(segment) {
            held.others[at].file = Arc::clone(file);
            held.others[at].stranded = false;
        }
    }

    /// Whether a segment's file has no name: then it is kept open in any case.
    pub(super) fn strand(&self, segment: Seq, stranded: bool) {
        let mut held = self.held();
        if let Some(at) = held.position(segment) {
            held.others[at].stranded = stranded;
        }
    }

    /// A segment's file is not needed any more, or is not what it was. `false`: it is written to, and stays.
    pub(super) fn forget(&self, segment: Seq) -> bool {
        let mut held = self.held();
        if let Some(at) = held.position(segment) {
            held.others.remove(at);
        }
        held.writing
            .as_ref()
            .is_none_or(|(first, _)| *first != segment)
    }

    /// All that are open.
    pub(super) fn all(&self) -> Vec<(Seq, Arc<dyn File>)> {
        let held = self.held();
        let writing = held.writing.clone().into_iter();
        let others = held.others.iter();
        writing
            .chain(others.map(|other| (other.segment, Arc::clone(&other.file))))
            .collect()
    }
}
