//! What a spool's owner knows of it: a host that hands chunks over until they are taken, a pipeline that
//! writes notes and finishes chunks, and what both may rely on after a crash.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::spool::frame::segment_first;
use crate::spool::note::Ledger;
use crate::spool::sim::Faults;

/// What is done to a spool. Picks are taken modulo what there is to pick from.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The host hands over a chunk that it has not handed over before.
    Append { len: usize },
    /// The host hands over one again: refused before, or taken by a run before this one.
    Again { pick: usize },
    /// A batch of some visible chunks begins.
    Begin {
        picks: Vec<(usize, Part)>,
        durability: Durability,
    },
    /// A pending batch ends.
    End {
        pick: usize,
        whole: bool,
        durability: Durability,
    },
    /// Some events of a visible chunk need nothing more.
    Settle {
        pick: usize,
        part: Part,
        durability: Durability,
    },
    /// A visible chunk is finished.
    Finish {
        pick: usize,
        noted: Option<Durability>,
    },
    /// The run ends, and another begins; on a disk that fails at first, perhaps.
    Restart { how: End, unlucky: bool },
    /// From here on one call in so many fails; 0: none.
    Fail { one_in: u32 },
    /// From here on there is so much room on the disk.
    Room { bytes: u64 },
    /// Somebody takes a segment away.
    Hide { pick: usize },
    /// What was taken away is put back, where nothing is in its place.
    PutBack,
    /// The directory is not where its path leads, or is there again.
    Away { away: bool },
    /// Somebody asks whether all is well.
    Look,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The power goes.
    Crash,
    /// The process dies.
    Kill,
    /// As it should.
    Close,
}

/// Some events.
#[derive(Clone, Debug)]
pub(super) enum Part {
    All,
    Run(u32, u32),
}

impl Part {
    fn of(&self, chunk: Seq) -> Content {
        match self {
            Part::All => all(chunk),
            Part::Run(start, len) => runs(chunk, &[(*start, start + len)]),
        }
    }
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let durability = || prop_oneof![Just(Durability::Written), Just(Durability::Synced)];
    let part = || {
        prop_oneof![
            1 => Just(Part::All),
            3 => (0u32..9, 1u32..4).prop_map(|(start, len)| Part::Run(start, len)),
        ]
    };
    let len = prop_oneof![8 => 0usize..300, 2 => 300usize..2_000, 1 => Just(5_000)];
    let oldest = prop_oneof![3 => Just(0), 1 => any::<usize>()];
    let end = prop_oneof![2 => Just(End::Crash), 1 => Just(End::Kill), 1 => Just(End::Close)];
    let op = prop_oneof![
        12 => len.prop_map(|len| Op::Append { len }),
        5 => any::<usize>().prop_map(|pick| Op::Again { pick }),
        4 => (proptest::collection::vec((any::<usize>(), part()), 1..3), durability())
            .prop_map(|(picks, durability)| Op::Begin { picks, durability }),
        4 => (any::<usize>(), any::<bool>(), durability())
            .prop_map(|(pick, whole, durability)| Op::End { pick, whole, durability }),
        3 => (any::<usize>(), part(), durability())
            .prop_map(|(pick, part, durability)| Op::Settle { pick, part, durability }),
        8 => (oldest, proptest::option::of(durability()))
            .prop_map(|(pick, noted)| Op::Finish { pick, noted }),
        4 => (end, any::<bool>()).prop_map(|(how, unlucky)| Op::Restart { how, unlucky }),
        2 => prop_oneof![2 => Just(0), 1 => 2u32..6, 1 => 6u32..40]
            .prop_map(|one_in| Op::Fail { one_in }),
        1 => (500u64..20_000).prop_map(|bytes| Op::Room { bytes }),
        2 => any::<usize>().prop_map(|pick| Op::Hide { pick }),
        2 => Just(Op::PutBack),
        1 => any::<bool>().prop_map(|away| Op::Away { away }),
        3 => Just(Op::Look),
    ];
    proptest::collection::vec(op, 1..70)
}

/// A chunk, as the host knows it. No two have the same bytes.
#[derive(Clone, Debug, Default)]
struct Parcel {
    data: Vec<u8>,
    /// The host was told that it may forget it.
    taken: bool,
    /// It was refused since something was synced last: the next run may find it.
    ghost: bool,
    /// Its number, if it is or was in the spool.
    seq: Option<Seq>,
    /// Not visible in this run.
    finished: bool,
    /// Not visible in any run.
    gone: bool,
}

/// A note, and whether it is there after a crash.
#[derive(Clone, Debug)]
struct Noted {
    note: Note,
    sure: bool,
    /// It was answered well.
    good: bool,
}

/// Notes that may be there after a crash or not; more are not written, since all of their combinations are
/// looked at.
const UNSURE: usize = 9;

/// A spool on a bad disk, and what must be true of it.
pub(super) struct Model {
    bench: Bench,
    parcels: Vec<Parcel>,
    notes: Vec<Noted>,
    /// Batches that may be ended.
    pending: Vec<u64>,
    next_batch: u64,
    /// Parcels in the order they came into the spool.
    accepted: Vec<usize>,
    /// Parcels that this run must recognise.
    replayable: BTreeSet<usize>,
    /// Segments that somebody took away, and their files.
    hidden: Vec<(String, usize)>,
    /// The directory is not where its path leads.
    away: bool,
    /// How many runs there were before this one.
    run: usize,
    /// The run in which the power goes, and the call.
    doom: Option<(usize, u64)>,
}

impl Model {
    pub(super) fn new(seed: u64, options: Options) -> Model {
        let (bench, recovered) = Bench::on(Sim::new(seed), options);
        assert_eq!(recovered.unfinished, 0);
        Model {
            bench,
            parcels: Vec::new(),
            notes: Vec::new(),
            pending: Vec::new(),
            next_batch: 1,
            accepted: Vec::new(),
            replayable: BTreeSet::new(),
            hidden: Vec::new(),
            away: false,
            run: 0,
            doom: None,
        }
    }

    /// Lets the power go at a call of a run, counted from the run's beginning.
    pub(super) fn doom(&mut self, run: usize, call: u64) {
        self.doom = Some((run, call));
        self.approach();
    }

    fn approach(&self) {
        if let Some((run, call)) = self.doom
            && run == self.run
        {
            self.sim().fault(Faults {
                down_at: Some(call),
                ..Faults::default()
            });
        }
    }

    /// Whether the power went, as it was to.
    pub(super) fn is_doomed_no_more(&self) -> bool {
        self.doom.is_none() || self.sim().is_down()
    }

    pub(super) fn sim(&self) -> &Sim {
        &self.bench.sim
    }

    /// Does one thing, and checks all that can be checked then.
    pub(super) fn step(&mut self, op: &Op) {
        let written = match op {
            Op::Append { len } => {
                let mut data = self.parcels.len().to_le_bytes().to_vec();
                data.resize(8 + len, 0xab);
                self.parcels.push(Parcel {
                    data,
                    ..Parcel::default()
                });
                self.hand_over(self.parcels.len() - 1)
            }
            Op::Again { pick } => {
                let may =
                    |index: &usize| !self.parcels[*index].taken || self.replayable.contains(index);
                let again: Vec<usize> = (0..self.parcels.len()).filter(may).collect();
                choose(&again, *pick).is_some_and(|index| self.hand_over(index))
            }
            Op::Begin { picks, durability } => self.begin(picks, *durability),
            Op::End {
                pick,
                whole,
                durability,
            } => self.end(*pick, *whole, *durability),
            Op::Settle {
                pick,
                part,
                durability,
            } => choose(&self.visible(), *pick).is_some_and(|chunk| {
                let contents = Vec::from([part.of(chunk)]);
                self.write(Note::Done { contents }, *durability)
            }),
            Op::Finish { pick, noted } => {
                if let Some(chunk) = choose(&self.visible(), *pick) {
                    self.finish(chunk, *noted);
                }
                false
            }
            Op::Restart { how, unlucky } => {
                self.restart(*how, *unlucky);
                false
            }
            Op::Fail { one_in } => {
                self.sim().fault(Faults {
                    one_in: *one_in,
                    ..Faults::default()
                });
                false
            }
            Op::Room { bytes } => {
                self.sim().fault(Faults {
                    capacity: Some(*bytes),
                    ..Faults::default()
                });
                false
            }
            Op::Hide { pick } => {
                let segments = self.bench.segments();
                if let Some(name) = segments.get(pick % segments.len().max(1)) {
                    let file = self.sim().hide(name).expect("it is there");
                    self.hidden.push((name.clone(), file));
                }
                false
            }
            Op::PutBack => {
                self.put_back();
                false
            }
            Op::Away { away } => {
                self.away = *away;
                self.sim().move_away(*away);
                false
            }
            Op::Look => {
                self.bench.spool().look();
                false
            }
        };
        self.bench.spool().rest();
        if !self.sim().is_down() {
            let sim = self.sim().clone();
            sim.spared(|| self.check(written));
        }
    }

    /// Puts back what was taken away and is still needed, and not there again.
    fn put_back(&mut self) {
        // Of one that was taken away twice, what was taken last.
        for (name, file) in std::mem::take(&mut self.hidden).into_iter().rev() {
            let first = segment_first(&name).expect("a segment");
            let is_needed = {
                let state = self.bench.spool().shared.state();
                state.segments.contains_key(&first)
            };
            if is_needed && !self.sim().has(&name) {
                self.sim().put_back(&name, file);
            }
        }
    }

    /// What the host still has is handed over until it is taken, the spool is emptied, and after a last
    /// crash nothing is left of it.
    pub(super) fn conclude(&mut self) {
        self.restart(End::Crash, false);
        for round in 0.. {
            let left: Vec<usize> = (0..self.parcels.len())
                .filter(|i| !self.parcels[*i].taken)
                .collect();
            for index in &left {
                self.hand_over(*index);
                self.bench.spool().rest();
                self.check(false);
            }
            for chunk in self.visible() {
                self.finish(chunk, Some(Durability::Synced));
            }
            self.bench.spool().rest();
            if left.is_empty() {
                break;
            }
            assert!(round < 100, "{} parcels are never taken", left.len());
        }
        self.restart(End::Close, false);
        self.check(false);
        assert_eq!(self.spares().count(), 0);
        assert_eq!(self.visible(), [] as [Seq; 0]);
        assert_eq!(
            self.bench.segments().len(),
            usize::from(!self.accepted.is_empty() || !self.notes.is_empty())
        );
    }

    /// The numbers of the chunks that are visible in this run.
    fn visible(&self) -> Vec<Seq> {
        let visible = self.parcels.iter().filter(|parcel| !parcel.finished);
        let mut chunks: Vec<Seq> = visible.filter_map(|parcel| parcel.seq).collect();
        chunks.sort_unstable();
        chunks
    }

    fn with_seq(&mut self, chunk: Seq) -> &mut Parcel {
        let mut parcels = self.parcels.iter_mut();
        parcels.find(|parcel| parcel.seq == Some(chunk)).unwrap()
    }

    /// Whether it was written.
    fn hand_over(&mut self, index: usize) -> bool {
        let data = self.parcels[index].data.clone();
        let replayable = self.replayable.remove(&index);
        match self.bench.append(b"t", &data) {
            Ok(Appended::Replayed) => {
                assert!(replayable, "parcel {index} is no replay");
                self.parcels[index].taken = true;
                false
            }
            answer if replayable => panic!("parcel {index} is in the spool: {answer:?}"),
            Ok(Appended::Kept) => {
                let limit = self.bench.options.limit;
                assert!(self.bench.spool().usage().bytes <= limit);
                self.synced();
                let last = self.parcels.iter().filter_map(|parcel| parcel.seq).max();
                let (seq, len) = self
                    .bench
                    .spool()
                    .peek(last)
                    .expect("it is visible at once");
                assert_eq!(len, data.len());
                self.accepted.push(index);
                let parcel = &mut self.parcels[index];
                parcel.seq = Some(seq);
                parcel.taken = true;
                true
            }
            Err(Refusal::Full { bytes, limit }) => {
                let needed = bytes + data.len() as u64 + 4_000;
                assert!(needed > limit, "{bytes} bytes are not full");
                false
            }
            Err(Refusal::Disk(error)) => {
                assert!(self.sim().has_faulted() || self.away, "{error}");
                self.parcels[index].ghost = true;
                false
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn begin(&mut self, picks: &[(usize, Part)], durability: Durability) -> bool {
        let visible = self.visible();
        let part = |(pick, part): &(usize, Part)| Some(part.of(choose(&visible, *pick)?));
        let contents: Vec<Content> = picks.iter().filter_map(part).collect();
        let batch = self.next_batch;
        if contents.is_empty() {
            return false;
        }
        self.next_batch += 1;
        let written = self.write(begun(batch, &contents), durability);
        if written {
            self.pending.push(batch);
        }
        written
    }

    fn end(&mut self, pick: usize, whole: bool, durability: Durability) -> bool {
        let Some(batch) = choose(&self.pending, pick) else {
            return false;
        };
        let contents = self.notes.iter().find_map(|noted| match &noted.note {
            Note::Begun {
                batch: begun,
                contents,
                ..
            } if *begun == batch => Some(contents.clone()),
            _ => None,
        });
        let first = || contents.unwrap().into_iter().take(1).collect();
        let delivered = (!whole).then(first);
        let written = self.write(Note::Ended { batch, delivered }, durability);
        if written {
            self.pending.retain(|pending| *pending != batch);
        }
        written
    }

    fn finish(&mut self, chunk: Seq, noted: Option<Durability>) {
        if noted.is_none_or(|durability| self.write(done(chunk), durability)) {
            self.bench.spool().finish(chunk);
            self.with_seq(chunk).finished = true;
        }
    }

    /// Whether it was written.
    fn write(&mut self, note: Note, durability: Durability) -> bool {
        let unsure = self.notes.iter().filter(|noted| !noted.sure).count();
        if unsure >= UNSURE {
            return false;
        }
        let answer = self.bench.note(note.clone(), durability);
        let good = answer.is_ok();
        assert!(good || self.sim().has_faulted(), "{answer:?}");
        self.notes.push(Noted {
            note,
            sure: false,
            good,
        });
        if good && durability == Durability::Synced {
            self.synced();
        }
        good
    }

    /// Something was synced: what was answered well before is safe, and what failed will never be seen.
    fn synced(&mut self) {
        self.notes.retain(|noted| noted.good);
        for noted in &mut self.notes {
            noted.sure = true;
        }
        for parcel in &mut self.parcels {
            parcel.ghost = false;
        }
    }

    /// Everything that is visible is what it should be, and counted.
    fn check(&self, written: bool) {
        let seen = self.bench.peeked();
        let numbers: Vec<Seq> = seen.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, self.visible());
        for (seq, stored) in &seen {
            let stored = match stored {
                Err(Unreadable::Missing(segment)) => {
                    let name = segment_name(*segment);
                    let is_hidden = self.hidden.iter().any(|(hidden, _)| *hidden == name);
                    assert!(is_hidden, "{name} is there");
                    continue;
                }
                read => read.as_ref().unwrap(),
            };
            let parcel = self
                .parcels
                .iter()
                .find(|parcel| parcel.seq == Some(*seq))
                .unwrap();
            assert_eq!(
                (&stored.tag[..], &stored.data[..]),
                (&b"t"[..], &parcel.data[..])
            );
        }
        let usage = self.bench.spool().usage();
        assert_eq!(usage.unfinished, seen.len() as u64);
        if let Some((_, Ok(oldest))) = seen.first() {
            assert_eq!(usage.oldest, Some(oldest.arrived));
        }
        // Where a call failed, a length may be unknown until the disk works again.
        let healthy = written && self.sim().faults() == Faults::default();
        let whole = self.hidden.is_empty();
        if whole && (healthy || !self.sim().has_faulted()) {
            assert_eq!(usage.bytes, self.sim().bytes(), "{:?}", self.sim().files());
        }
        if !self.sim().has_faulted() {
            let spares: u64 = self.spares().map(|(_, bytes)| bytes).sum();
            assert_eq!(self.bench.spool().shared.state().spares, spares);
            assert!(spares <= self.bench.options.limit / SPARE_SHARE);
        }
    }

    fn restart(&mut self, how: End, unlucky: bool) {
        let mut lucky = !self.sim().has_faulted();
        if how == End::Close {
            self.bench.spool().close();
        }
        lucky &= !self.sim().has_faulted();
        self.put_back();
        self.away = false;
        self.bench.end(how == End::Crash);
        self.run += 1;
        if how == End::Close && lucky {
            self.written_is_sure();
        }
        if unlucky {
            self.sim().fault(Faults {
                one_in: 4,
                ..Faults::default()
            });
        }
        self.approach();
        let recovered = self.bench.open();
        lucky &= !self.sim().has_faulted();
        let recovered = recovered.unwrap_or_else(|error| {
            assert!(self.sim().has_faulted(), "{error}");
            if self.sim().is_down() {
                self.doom = None;
            }
            self.bench.end(self.sim().is_down());
            self.bench.open().unwrap()
        });
        if how == End::Kill && lucky {
            self.written_is_sure();
        }
        self.sim().fault(Faults::default());
        self.approach();
        self.meet(&recovered);
    }

    fn written_is_sure(&mut self) {
        for noted in &mut self.notes {
            noted.sure = noted.good;
        }
    }

    /// Makes sure that what was recovered can be explained, and goes on from there.
    fn meet(&mut self, recovered: &Recovered) {
        let sim = self.sim().clone();
        let seen = sim.spared(|| self.bench.visible());
        assert_eq!(recovered.unfinished, seen.len() as u64);
        for (seq, stored) in &seen {
            let same = |parcel: &Parcel| parcel.data == stored.data;
            let index = self
                .parcels
                .iter()
                .position(same)
                .expect("nobody handed that over");
            let parcel = &mut self.parcels[index];
            if parcel.seq.is_none() {
                assert!(parcel.ghost, "parcel {index} was refused, and comes back");
                parcel.seq = Some(*seq);
                self.accepted.push(index);
            }
            assert_eq!(parcel.seq, Some(*seq), "parcel {index} is there twice");
            assert!(!parcel.gone, "parcel {index} was gone");
        }
        let numbers: BTreeSet<Seq> = seen.iter().map(|(seq, _)| *seq).collect();

        let unsure: Vec<usize> = (0..self.notes.len())
            .filter(|i| !self.notes[*i].sure)
            .collect();
        let explains = |chosen: &u32| {
            let there = |index: &usize| match unsure.iter().position(|i| i == index) {
                Some(bit) => chosen >> bit & 1 == 1,
                None => true,
            };
            self.explains(there, recovered, &numbers)
        };
        let chosen = (0u32..1 << unsure.len()).rev().find(explains);
        let Some(chosen) = chosen else {
            panic!(
                "recovered {recovered:?}\nsees {numbers:?}\nknows {:#?}",
                self.notes
            );
        };
        for (bit, index) in unsure.iter().enumerate().rev() {
            if chosen >> bit & 1 == 0 {
                self.notes.remove(*index);
            }
        }
        for noted in &mut self.notes {
            (noted.sure, noted.good) = (true, true);
        }
        for parcel in &mut self.parcels {
            parcel.ghost = false;
            parcel.finished = parcel.seq.is_some_and(|seq| !numbers.contains(&seq));
            parcel.gone = parcel.finished;
        }
        self.pending = recovered
            .pending
            .iter()
            .map(|pending| pending.batch)
            .collect();
        self.next_batch = self.next_batch.max(recovered.next_batch);
        let window = Limits::new(self.bench.options).window;
        self.replayable = self.accepted.iter().rev().take(window).copied().collect();
        // What was refused and is there all the same comes again first, and is recognised: later it may not be.
        let is_back = |index: &usize| {
            let parcel = &self.parcels[*index];
            !parcel.taken && !parcel.finished && parcel.seq.is_some()
        };
        let back: Vec<usize> = self.replayable.iter().copied().filter(is_back).collect();
        for index in back {
            self.hand_over(index);
        }
    }

    /// Files that wait to be written again.
    fn spares(&self) -> impl Iterator<Item = (String, u64)> {
        let files = self.sim().files().into_iter();
        files.filter(|(name, _)| name.ends_with(".spare"))
    }

    /// Whether all is as it should be if exactly these notes are there.
    fn explains(
        &self,
        there: impl Fn(&usize) -> bool,
        recovered: &Recovered,
        seen: &BTreeSet<Seq>,
    ) -> bool {
        let mut ledger = Ledger::default();
        for index in (0..self.notes.len()).filter(there) {
            ledger.take(self.notes[index].note.clone());
        }
        let chunks_fit = self.parcels.iter().all(|parcel| match parcel.seq {
            None => true,
            Some(seq) if ledger.settled(seq) == Some(&Events::All) => !seen.contains(&seq),
            Some(seq) => parcel.finished || parcel.gone || seen.contains(&seq),
        });
        let settled = |chunk: &Seq| match ledger.settled(*chunk) {
            Some(Events::Runs(runs)) if !runs.is_empty() => Some((*chunk, runs.clone())),
            _ => None,
        };
        let settled: HashMap<_, _> = seen.iter().filter_map(settled).collect();
        chunks_fit
            && recovered.next_batch >= ledger.next_batch()
            && recovered.pending == ledger.pending(|chunk| seen.contains(&chunk))
            && recovered.settled == settled
    }
}

fn choose<T: Copy>(from: &[T], pick: usize) -> Option<T> {
    from.get(pick % from.len().max(1)).copied()
}
