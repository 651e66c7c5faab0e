//! The open files of segments: they remain readable even if they are removed or renamed.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::Seq;
use super::disk::{Disk, File};
use super::frame::segment_name;

/// The maximum number of files kept open, besides the active one.
const MAX_OPEN: usize = 16;

/// The open files: that of the active segment, and the most recently used others.
pub struct Handles {
    disk: Arc<dyn Disk>,
    files: Mutex<OpenFiles>,
}

#[derive(Default)]
struct OpenFiles {
    writing: Option<(Seq, Arc<dyn File>)>,
    /// Most recently used first.
    others: VecDeque<Other>,
}

struct Other {
    segment: Seq,
    file: Arc<dyn File>,
    /// The file has lost its name: this handle is all that is left of it.
    unlinked: bool,
}

impl OpenFiles {
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
            unlinked: false,
        });
        if self.others.len() > MAX_OPEN
            && let Some(at) = self.others.iter().rposition(|other| !other.unlinked)
        {
            self.others.remove(at);
        }
    }
}

impl Handles {
    /// Creates an empty set, which opens files on demand.
    pub fn new(disk: Arc<dyn Disk>) -> Handles {
        Handles {
            disk,
            files: Mutex::default(),
        }
    }

    fn files(&self) -> MutexGuard<'_, OpenFiles> {
        self.files.lock().expect("nothing panics with this lock")
    }

    /// A segment's file. Fails with [`ErrorKind::NotFound`] if it is neither open nor on disk.
    pub fn get(&self, segment: Seq) -> io::Result<Arc<dyn File>> {
        let open = self.files().find(segment);
        if let Some(file) = open {
            return Ok(file);
        }
        let opened: Arc<dyn File> = self.disk.open(&segment_name(segment))?.into();
        let mut files = self.files();
        // Another thread may have added it meanwhile.
        if let Some(file) = files.find(segment) {
            return Ok(file);
        }
        files.add(segment, Arc::clone(&opened));
        Ok(opened)
    }

    /// Whether a segment's file still has its name. One finished meanwhile does not.
    pub fn is_named(&self, segment: Seq, file: &dyn File) -> io::Result<bool> {
        match self.disk.id(&segment_name(segment)) {
            Ok(found) => Ok(found == file.id()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets the active segment's file.
    pub(super) fn set_active(&self, segment: Seq, file: &Arc<dyn File>) {
        let mut files = self.files();
        let before = files.writing.replace((segment, Arc::clone(file)));
        if let Some((segment, file)) = before {
            files.add(segment, file);
        }
    }

    /// Replaces a segment's file, if it is open.
    pub(super) fn replace(&self, segment: Seq, file: &Arc<dyn File>) {
        let mut files = self.files();
        if let Some((_, writing)) = files
            .writing
            .as_mut()
            .filter(|(first, _)| *first == segment)
        {
            *writing = Arc::clone(file);
        } else if let Some(at) = files.position(segment) {
            files.others[at].file = Arc::clone(file);
            files.others[at].unlinked = false;
        }
    }

    /// Records whether a segment's file has lost its name; if so, it stays open regardless of the limit.
    pub(super) fn set_unlinked(&self, segment: Seq, unlinked: bool) {
        let mut files = self.files();
        if let Some(at) = files.position(segment) {
            files.others[at].unlinked = unlinked;
        }
    }

    /// Closes a segment's file. Returns `false` for the active one, which stays open.
    pub(super) fn forget(&self, segment: Seq) -> bool {
        let mut files = self.files();
        if let Some(at) = files.position(segment) {
            files.others.remove(at);
        }
        files
            .writing
            .as_ref()
            .is_none_or(|(first, _)| *first != segment)
    }

    /// All open files.
    pub(super) fn all(&self) -> Vec<(Seq, Arc<dyn File>)> {
        let files = self.files();
        let writing = files.writing.clone().into_iter();
        let others = files.others.iter();
        writing
            .chain(others.map(|other| (other.segment, Arc::clone(&other.file))))
            .collect()
    }
}
